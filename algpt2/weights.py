"""Canonical weights: the names and shapes that a configuration implies, and the one check of every reader."""

import math

import numpy as np

from algpt2.errors import InputError
from algpt2.formats.tensors import DTYPES, is_finite, pieces

# So many faults are listed in an error; a wrong configuration may make one of every tensor.
LISTED = 12


def weight_shapes(config):
    """The name and shape of every canonical weight, in PyTorch's names and (out, in) layout; tied tensors once.

    These are the weights of the language model; `sop_shapes` are those that a model for pretraining has besides.

    Args:
        config: `ALGPT2Config`.

    Returns:
        dict of str to tuple of int.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> weight_shapes(ALGPT2Config())["transformer.project_in.weight"]
        (768, 128)
    """
    hidden, embedding, inner = config.n_embd, config.embedding_width, config.inner_width
    shapes = {
        "transformer.wte.weight": (config.vocab_size, embedding),
        "transformer.wpe.weight": (config.n_positions, embedding),
    }
    if config.is_factorized:
        shapes["transformer.project_in.weight"] = (hidden, embedding)
        shapes["transformer.project_in.bias"] = (hidden,)
    for block in range(config.n_block):
        prefix = f"transformer.h.{block}"
        for norm in ("ln_1", "ln_2"):
            shapes[f"{prefix}.{norm}.weight"] = shapes[f"{prefix}.{norm}.bias"] = (hidden,)
        for name, inputs, outputs in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, inner),
            ("mlp.c_proj", inner, hidden),
        ):
            shapes[f"{prefix}.{name}.weight"] = (outputs, inputs)
            shapes[f"{prefix}.{name}.bias"] = (outputs,)
    shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (hidden,)
    if config.is_factorized:
        if not config.tie_projections:
            shapes["project_out.weight"] = (embedding, hidden)
        shapes["project_out.bias"] = (embedding,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, embedding)
    return shapes


def sop_shapes(config):
    """The name and shape of the weights of the sentence-order head, which a checkpoint has both or neither of.

    Args:
        config: `ALGPT2Config`.

    Returns:
        dict of str to tuple of int.
    """
    return {"sop_classifier.weight": (2, config.n_embd), "sop_classifier.bias": (2,)}


def parameter_count(config):
    """The number of parameters of a language model with this configuration; tied tensors count once.

    A sentence-order head adds `2 * n_embd + 2`, which are not counted: only pretraining uses them.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> parameter_count(ALGPT2Config())
        13850880
    """
    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def check_weights(config, weights, source="checkpoint"):
    """Raise unless `weights` are exactly those of `config`: every tensor once, in shape, of a finite float type.

    The sentence-order head may be there or not.

    Args:
        config: `ALGPT2Config`.
        weights: dict of str to numpy array or `algpt2.formats.tensors.LazyTensor`.
        source: str or path. Names the weights in the error.

    Raises:
        InputError: lists everything missing, unexpected, misshapen or not finite.
    """
    shapes = weight_shapes(config)
    if not weights.keys().isdisjoint(sop_shapes(config)):
        shapes |= sop_shapes(config)
    check_tensors(shapes, weights, source)


def check_tensors(shapes, tensors, source, reference="configuration"):
    """Raise unless `tensors` are exactly those expected: each once, in shape, of a finite float type.

    Args:
        shapes: dict of str to tuple of int, what is expected.
        tensors: dict of str to numpy array or `algpt2.formats.tensors.LazyTensor`.
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
        tensor: numpy array or `algpt2.formats.tensors.LazyTensor`.
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


def common_dtype(weights):
    """The dtype that holds all weights.

    Args:
        weights: dict of str to numpy array or `algpt2.formats.tensors.LazyTensor`.

    Returns:
        str, one of `DTYPES`.

    Example:
        >>> common_dtype({"a": np.zeros(1, "float32"), "b": np.zeros(1, "float16")})
        'float32'
    """
    names = {tensor.dtype.name for tensor in weights.values()}
    # Of two halves neither holds the other.
    return names.pop() if len(names) == 1 else "float64" if "float64" in names else "float32"


class Casting:
    """Casts weights piece by piece, checks that they are finite, and keeps the largest rounding error of each.

    Args:
        dtype: str, one of `DTYPES`.
        source: str or path. Names the weights in an error.

    Example:
        >>> casting = Casting("bfloat16")
        >>> _ = casting("a", np.array([1.0, 1.001], "float32"))
        >>> round(casting.error, 6), casting.tensor
        (0.000999, 'a')
    """

    def __init__(self, dtype, source="weights"):
        self.dtype, self.source = DTYPES[dtype], source
        # By the name of the tensor, over all its pieces so far.
        self._largest_error, self._largest_value = {}, {}

    @property
    def error(self):
        """float: the largest difference of a value and what it was rounded to, relative to the largest of its tensor.

        0.0 if nothing was rounded.
        """
        return self._relative_error(self.tensor) if self.tensor else 0.0

    @property
    def tensor(self):
        """str: the name of the tensor where that is; `None` if nothing was rounded."""
        rounded = [name for name, error in self._largest_error.items() if error]
        return max(rounded, key=self._relative_error, default=None)

    def _relative_error(self, name):
        return self._largest_error[name] / self._largest_value[name]

    def __call__(self, name, piece):
        """The piece of a tensor, a numpy array, in the dtype.

        Raises:
            InputError: if a value is not finite, or too large for the dtype.
        """
        if not is_finite(piece):
            raise_for_faults([not_finite(name)], self.source)
        if piece.dtype == self.dtype:
            return piece
        with np.errstate(over="ignore"):
            cast = piece.astype(self.dtype)
        if not is_finite(cast):
            raise InputError(f"{self.source}: {name} holds values too large for {self.dtype}; choose another --dtype")
        if not np.can_cast(piece.dtype, self.dtype):
            exact = piece.astype("float64")
            for largest, values in ((self._largest_error, exact - cast), (self._largest_value, exact)):
                largest[name] = max(largest.get(name, 0.0), float(np.abs(values).max()))
        return cast


def cast_weights(weights, dtype):
    """The weights in another dtype.

    Args:
        weights: dict of str to numpy array or `algpt2.formats.tensors.LazyTensor`.
        dtype: str, one of `DTYPES`.

    Raises:
        InputError: if a value is not finite, or too large for the dtype.
    """
    casting = Casting(dtype)
    return {name: casting(name, np.asarray(tensor)) for name, tensor in weights.items()}
