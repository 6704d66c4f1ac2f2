"""Canonical weights: the names and shapes that a configuration implies, and the one check of every reader."""

import math
import re

import numpy as np

from algpt2.checkpoints.formats.lazy_tensor import DTYPES, LazyTensor, is_finite, pieces
from algpt2.configuration import ALGPT2Config
from algpt2.errors import InputError

# The most faults that an error lists; a wrong configuration may make every tensor one.
LISTED = 12


def weight_shapes(config):
    """The name and shape of every canonical weight, in PyTorch's names and (out, in) layout; tied tensors once.

    These are the weights of the language model; `head_shapes` are those that other models have besides.

    Args:
        config: `ALGPT2Config`.

    Returns:
        dict of str to tuple of int.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> weight_shapes(ALGPT2Config())["transformer.project_in.weight"]
        (768, 128)
    """
    hidden, embedding = config.n_embd, config.embedding_width
    shapes = {
        "transformer.wte.weight": (config.vocab_size, embedding),
        "transformer.wpe.weight": (config.n_positions, embedding),
    }
    if config.is_factorized:
        shapes["transformer.project_in.weight"] = (hidden, embedding)
        shapes["transformer.project_in.bias"] = (hidden,)
    for block in range(config.n_block):
        shapes |= {f"transformer.h.{block}.{name}": shape for name, shape in _block_shapes(config, block).items()}
    shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (hidden,)
    if config.is_factorized:
        if not config.tie_projections:
            shapes["transformer.project_out.weight"] = (embedding, hidden)
        shapes["transformer.project_out.bias"] = (embedding,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, embedding)
    return shapes


def _block_shapes(config, block):
    depths = config.depths_of(block)
    rank = config.depth_lora_rank
    # Whose the norms and the biases are: the block's, or each depth's.
    of_norms = [f"depths.{depth}." for depth in depths] if config.depth_norms and depths else [""]
    of_biases = [f"depths.{depth}." for depth in depths] if config.depth_biases and depths else [""]
    shapes = {}
    for owner in of_norms:
        for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
            shapes[owner + name] = (config.n_embd,)
    for name, (inputs, outputs) in config.linear_layers.items():
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes |= {f"{depth_layer(owner, name)}.bias": (outputs,) for owner in of_biases}
        for depth in depths if rank else ():
            layer = depth_layer(f"depths.{depth}.", name)
            shapes[f"{layer}.down"] = (rank, inputs)
            shapes[f"{layer}.up"] = (outputs, rank)
    return shapes


def depth_layer(owner, linear):
    """The canonical name of what a depth adds to a linear layer, less what stands before it.

    Tools that look for layers by the end of their name, as PEFT does, must find those of the block alone.

    Args:
        owner: str. `"depths.DEPTH."`, or nothing for the block itself.
        linear: str, of `ALGPT2Config.linear_layers`.

    Returns:
        str.

    Example:
        >>> depth_layer("depths.3.", "attn.c_attn")
        'depths.3.attn_c_attn'
    """
    return owner + (linear.replace(".", "_") if owner else linear)


def names_at_depth(config, depth):
    """The canonical names of all that applies at a depth, by the names within a block.

    Args:
        config: `ALGPT2Config`.
        depth: int.

    Returns:
        dict of str to str.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> names = names_at_depth(ALGPT2Config(depth_norms=True), 3)
        >>> names["ln_1.bias"], names["attn.c_attn.bias"]
        ('transformer.h.0.depths.3.ln_1.bias', 'transformer.h.0.attn.c_attn.bias')
    """
    block, source = config.layer_schedule[depth], config.depth_sources()[depth]
    names = {}
    for name in _block_shapes(config, block):
        own = name.removeprefix(f"depths.{source}.")
        if own != name:
            names[re.sub("^(attn|mlp)_", r"\1.", own)] = f"transformer.h.{block}.{name}"
        elif not name.startswith("depths."):
            names[name] = f"transformer.h.{block}.{name}"
    return names


def fold_residual_multiplier(config, weights):
    """A configuration and weights of the same model with `residual_multiplier` 1: it goes into both c_proj.

    Args:
        config: `ALGPT2Config`.
        weights: dict of str to numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`, canonical.

    Returns:
        tuple of `ALGPT2Config` and a dict as `weights`; what is multiplied is float32, or float64 where it was.
    """
    factor = config.residual_multiplier
    if factor == 1:
        return config, weights

    def multiplied(weight):
        dtype = "float64" if weight.dtype == "float64" else "float32"
        return LazyTensor(weight.shape, dtype, lambda: (np.asarray(weight, "float64") * factor).astype(dtype))

    # Not what leads down to the low rank, since `up` follows.
    scaled = re.compile(r"transformer\.h\..*[._]c_proj\.(weight|bias|up)")
    folded = {name: multiplied(weight) if scaled.fullmatch(name) else weight for name, weight in weights.items()}
    return ALGPT2Config.from_dict(config.to_dict(), residual_multiplier=1.0), folded


def head_shapes(config):
    """The name and shape of the weights of each head that a checkpoint may have beside the language model's.

    Args:
        config: `ALGPT2Config`.

    Returns:
        dict of str, the name of the PyTorch class, to dict of str to tuple of int.
    """
    hidden, labels = config.n_embd, config.num_labels
    return {
        "ALGPT2ForPreTraining": {"sop_classifier.weight": (2, hidden), "sop_classifier.bias": (2,)},
        "ALGPT2ForSequenceClassification": {"score.weight": (labels, hidden)},
        "ALGPT2ForTokenClassification": {"classifier.weight": (labels, hidden), "classifier.bias": (labels,)},
        "ALGPT2ForQuestionAnswering": {"qa_outputs.weight": (2, hidden), "qa_outputs.bias": (2,)},
    }


# The PyTorch classes that give the logits of tokens.
LANGUAGE_MODELS = ("ALGPT2LMHeadModel", "ALGPT2ForPreTraining")


def architecture(names):
    """The PyTorch class whose head some weights are of.

    Args:
        names: set of str, or dict of them. The canonical names.

    Returns:
        str.
    """
    for name, shapes in head_shapes(ALGPT2Config()).items():
        if shapes.keys() & set(names):
            return name
    return "ALGPT2LMHeadModel"


def required_shapes(config, names):
    """As `weight_shapes`, of what must be there: a model with another head may lack that of the language model.

    Args:
        config: `ALGPT2Config`.
        names: as in `architecture`.
    """
    shapes = weight_shapes(config)
    if architecture(names) not in LANGUAGE_MODELS and "lm_head.weight" not in names:
        shapes.pop("lm_head.weight", None)
    return shapes


# What a parameter belongs to: a part of the model, and the names of its weights.
PARTS = {
    "embeddings": r"transformer\.(wte|wpe|project_in|project_out)\..*|lm_head\..*",
    "depths": r"transformer\.h\.\d+\.depths\..*",
    "blocks": r"transformer\.(h\.\d+|ln_f)\.(?!depths\.).*",
}


def parameter_count(config, part=None):
    """The number of parameters of a language model with this configuration; tied tensors count once.

    Those of other heads are not counted, such as the `2 * n_embd + 2` of a sentence-order head.

    Args:
        config: `ALGPT2Config`.
        part: str, one of `PARTS`: the embeddings with their projections, the blocks with the last normalization, or
            what belongs to single depths. By default all.

    Returns:
        int.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> parameter_count(ALGPT2Config()), parameter_count(ALGPT2Config(), "blocks")
        (13850880, 7089408)
    """
    pattern = PARTS[part] if part else ".*"
    shapes = weight_shapes(config)
    return sum(math.prod(shape) for name, shape in shapes.items() if re.fullmatch(pattern, name))


def check_weights(config, weights, source="checkpoint"):
    """Raise unless `weights` are exactly those of `config`: every tensor once, in shape, of a finite float type.

    Other heads may be there or not.

    Args:
        config: `ALGPT2Config`.
        weights: dict of str to numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`.
        source: str or path. Names the weights in the error.

    Raises:
        InputError: lists everything missing, unexpected, misshapen or not finite.
    """
    shapes = required_shapes(config, weights)
    for head in head_shapes(config).values():
        shapes |= head if head.keys() & weights.keys() else {}
    check_tensors(shapes, weights, source)


def check_tensors(shapes, tensors, source, reference="configuration"):
    """Raise unless `tensors` are exactly those expected: each once, in shape, of a finite float type.

    Args:
        shapes: dict of str to tuple of int, what is expected.
        tensors: dict of str to numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`.
        source: str or path. Names the tensors in the error.
        reference: str. What they must fit.

    Raises:
        InputError: lists everything missing, unexpected, misshapen or not finite.
    """
    faults = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in tensors]
    faults += [f"unexpected: {name} {tensor.shape}" for name, tensor in tensors.items() if name not in shapes]
    found = {name: tensor_fault(name, tensors[name], shapes[name]) for name in shapes.keys() & tensors.keys()}
    faults += filter(None, found.values())
    for name in (name for name in tensors if name in found and not found[name]):
        if not all(is_finite(piece) for piece in pieces(tensors[name])):
            faults.append(not_finite(name))
    raise_for_faults(faults, source, reference)


def tensor_fault(name, tensor, shape):
    """What is wrong with the shape or the type of a tensor.

    Args:
        name: str.
        tensor: numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`.
        shape: tuple of int, as expected.

    Returns:
        str, or `None` if nothing is.
    """
    if tensor.shape != shape:
        return f"misshapen: {name} is {tensor.shape}, expected {shape}"
    if tensor.dtype not in DTYPES.values():
        return f"not a float type: {name} is {tensor.dtype}"
    return None


def not_finite(name):
    """str: that a tensor, of this name, is not finite."""
    return f"not finite: {name} holds NaN or infinity"


def raise_for_faults(faults, source, reference="configuration"):
    """Raise an InputError that lists the faults of tensors, if there are any.

    Args:
        faults: list of str.
        source: str or path. Names the tensors.
        reference: str. What they must fit.
    """
    if not faults:
        return
    listing = "; ".join(faults[:LISTED]) + (f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else "")
    noun, verb = ("tensor", "does") if len(faults) == 1 else ("tensors", "do")
    raise InputError(f"{source}: {len(faults)} {noun} {verb} not fit the {reference}: {listing}")
