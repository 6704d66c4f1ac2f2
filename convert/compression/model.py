"""The configuration and the weights of a compressed model, from those of any other."""

from collections import Counter

import numpy as np
from tqdm.auto import tqdm

from algpt2.checkpoints.casting import common_dtype
from algpt2.checkpoints.formats.lazy_tensor import LazyTensor, RowwiseTensor, lazy, pieces
from algpt2.checkpoints.weights import LANGUAGE_MODELS, architecture, depth_layer, weight_shapes
from algpt2.config_arguments import parse_sharing
from algpt2.configuration import WITHOUT_DEPTHS, ALGPT2Config
from algpt2.errors import InputError
from convert.compression import STARTS
from convert.compression.low_rank import principal_directions, share
from convert.plain_gpt2 import as_gpt2

NORMS = ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias")
# What compression leaves as it is.
KEPT = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "inner_width", "activation_function")
KEPT += ("layer_norm_epsilon", "tie_word_embeddings")


def compressed_config(config, sharing, embedding_size=None, **depths):
    """The configuration of a compressed model.

    Args:
        config: `ALGPT2Config` of the source.
        sharing: str, as of `algpt2.config_arguments.parse_sharing`.
        embedding_size: int, up to `n_embd`; `None` keeps the embeddings as they are.
        **depths: `depth_norms`, `depth_biases` and `depth_lora_rank` of `ALGPT2Config`.

    Returns:
        `ALGPT2Config`.

    Raises:
        InputError: if the pattern does not fit the depths of the source, or a size is too large.

    Example:
        >>> gpt2 = ALGPT2Config.from_preset("gpt2")
        >>> small = compressed_config(gpt2, "cycle:3", embedding_size=256, depth_lora_rank=16, depth_norms=True)
        >>> small.n_block, small.embedding_size
        (3, 256)
    """
    changes = {"trained_schedule": None, "residual_multiplier": 1.0, **WITHOUT_DEPTHS, **depths}
    if embedding_size not in (None, config.embedding_size):
        if embedding_size > config.n_embd:
            raise InputError(
                f"embedding_size {embedding_size} is more than n_embd, {config.n_embd}; give at most that, which is "
                "exact, or leave it out to keep the embeddings"
            )
        changes |= {"embedding_size": embedding_size, "tie_projections": False}
    try:
        schedule = parse_sharing(sharing, config.n_layer)
        if len(schedule) != config.n_layer:
            raise ValueError(f"sharing {sharing} names {len(schedule)} depths; the source has {config.n_layer}")
        return ALGPT2Config.from_dict(config.to_dict(), layer_schedule=schedule, **changes)
    except ValueError as error:
        raise InputError(f"{error}") from error


def shared_depths(config):
    """list of int: the depths whose block is applied at others too, for an `ALGPT2Config`."""
    applied = Counter(config.layer_schedule)
    return [depth for depth, block in enumerate(config.layer_schedule) if applied[block] > 1]


def compressed(config, weights, new_config, init="average", moments=None):
    """The weights of a compressed model.

    Each matrix of a block that several depths share starts as `init` says; what a depth adds to it is the truncated SVD
    of the difference to that depth's own. Norms and biases of single depths are kept, shared ones start as the
    matrices do. Embeddings and positions are projected to their principal directions. What has the full rank is exact.

    Args:
        config: `ALGPT2Config` of the source, a language model. A sentence-order head is left out.
        weights: dict of str to numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`, canonical.
        new_config: `ALGPT2Config` of as many depths and of the same sizes, as `compressed_config` gives it.
        init: str, how shared matrices start:

            - `"average"`: the mean over the depths of the block.
            - `"first"`: that of the first of these depths.
            - `"stepwise"`: those of K depths, for K shared blocks, at even steps from the first to the last shared
              depth, rounded (a half to the even one). As `"first"` if another depth lies between them.
            - `"svd"`: the shared matrix and the additions that together are nearest, fitted in turns from the mean on;
              without additions the mean.
        moments: dict of (depth, linear layer) to array (inputs, inputs), for every depth of shared blocks and every
            name of `new_config.linear_layers`: the second moments of its inputs, which then weight all distances; as
            `convert.compression.calibration.input_moments` gives them.

    Returns:
        dict of str to numpy array or `LazyTensor`, canonical, in the order of `weight_shapes`. Read in this order,
        everything is computed once and one block is in memory at a time.

    Raises:
        InputError: if the configurations do not fit one another, or there is no language model.

    References:
        Relaxed Recursive Transformers (Bae et al., 2025, https://arxiv.org/abs/2410.20672): average, first (for
        cycles, there "lower"), stepwise, and the additions by SVD.

    Example:
        >>> from algpt2.checkpoints.checkpoint import open_checkpoint  # doctest: +SKIP
        >>> gpt2 = open_checkpoint("gpt2/")  # doctest: +SKIP
        >>> config = compressed_config(gpt2.config, "cycle:3", depth_lora_rank=16)  # doctest: +SKIP
        >>> weights = compressed(gpt2.config, gpt2.weights, config)  # doctest: +SKIP
    """
    if init not in STARTS:
        raise InputError(f"unknown start {init!r}; choose one of {', '.join(STARTS)}")
    _require_fit(config, weights, new_config)
    # As a plain GPT-2 every depth has weights of its own; the nearest one will do, as the result is near only.
    plain_config, plain = as_gpt2(config, weights, lossy=True)
    dtype = "float64" if common_dtype(weights) == "float64" else "float32"
    result = {name: plain[name] for name in ("transformer.ln_f.weight", "transformer.ln_f.bias")}
    result |= _embeddings(config, weights, plain_config, plain, new_config, dtype)
    for block in range(new_config.n_block):
        result |= _block(plain, new_config, block, init, moments, dtype)
    return {name: result[name] for name in weight_shapes(new_config)}


def source_depths(config, init):
    """The depth whose matrices each block of a compressed model starts with.

    Args:
        config: `ALGPT2Config` of the compressed model.
        init: str, `"first"` or `"stepwise"`.

    Returns:
        list of int, by block.

    Example:
        >>> source_depths(ALGPT2Config(layer_schedule=[0, 1, 2, 0, 1, 2]), "stepwise")
        [0, 2, 5]
    """
    sources = [config.layer_schedule.index(block) for block in range(config.n_block)]
    depths = shared_depths(config)
    # Steps across a block of its own would take some out of order.
    if init == "stepwise" and depths and depths == list(range(depths[0], depths[-1] + 1)):
        blocks = list(dict.fromkeys(config.layer_schedule[depth] for depth in depths))
        for block, depth in zip(blocks, np.linspace(depths[0], depths[-1], len(blocks)), strict=True):
            sources[block] = round(depth)
    return sources


def _require_fit(config, weights, new_config):
    if architecture(weights) not in LANGUAGE_MODELS:
        raise InputError(f"the source is of {architecture(weights)}; give the language model that it was trained from")
    for field in KEPT:
        old, new = getattr(config, field), getattr(new_config, field)
        if old != new:
            raise InputError(f"{field} is {old!r} in the source and {new!r} in the compressed model; it must stay")
    if new_config.trained_schedule is not None or new_config.residual_multiplier != 1:
        raise InputError("a compressed model has no trained_schedule and a residual_multiplier of 1; leave them out")


def _block(plain, config, block, init, moments, dtype):
    """The weights of one block and its depths."""
    prefix = f"transformer.h.{block}."
    depths = [depth for depth, other in enumerate(config.layer_schedule) if other == block]
    names = [*NORMS, *(f"{linear}.bias" for linear in config.linear_layers)]
    if len(depths) == 1:
        names += [f"{linear}.weight" for linear in config.linear_layers]
        return {f"{prefix}{name}": plain[f"transformer.h.{depths[0]}.{name}"] for name in names}
    # The depth that the block starts with; None for a mean.
    source = source_depths(config, init)[block] if init in ("first", "stepwise") else None
    result = {}
    for name in names:
        own = [plain[f"transformer.h.{depth}.{name}"] for depth in depths]
        if config.depth_norms if name in NORMS else config.depth_biases:
            layer, _, part = name.rpartition(".")
            owned = [f"{prefix}{depth_layer(f'depths.{depth}.', layer)}.{part}" for depth in depths]
            result |= dict(zip(owned, own, strict=True))
        elif source is not None:
            result[prefix + name] = plain[f"transformer.h.{source}.{name}"]
        else:
            result[prefix + name] = np.mean([np.asarray(tensor, "float64") for tensor in own], axis=0).astype(dtype)
    for name in config.linear_layers:
        matrices = [plain[f"transformer.h.{depth}.{name}.weight"] for depth in depths]
        start = None if source is None else plain[f"transformer.h.{source}.{name}.weight"]
        moment = moments and [moments[depth, name] for depth in depths]
        shared = _SharedLinear(prefix + name, matrices, start, config.depth_lora_rank, init, moment, dtype)
        result |= shared.tensors(prefix, name, depths)
    return result


class _SharedLinear:
    """A matrix and its additions, computed when the first of them is asked for; the additions, being small, stay."""

    def __init__(self, title, matrices, start, rank, init, moments, dtype):
        self.title, self.shape, self.rank, self.dtype = title, matrices[0].shape, rank, np.dtype(dtype)
        self.arguments = {"matrices": matrices, "rank": rank, "start": start, "moments": moments}
        self.arguments["alternate"] = init == "svd"
        self.additions = None

    def tensors(self, prefix, name, depths):
        """dict of canonical name to `LazyTensor`: the matrix, and if there are any, its additions."""
        (outputs, inputs), rank = self.shape, self.rank
        result = {f"{prefix}{name}.weight": LazyTensor(self.shape, self.dtype, self._shared)}
        for place, depth in enumerate(depths if rank else ()):
            for part, (key, shape) in enumerate({"up": (outputs, rank), "down": (rank, inputs)}.items()):
                load = lambda place=place, part=part: self._addition(place, part)  # noqa: E731
                result[f"{prefix}{depth_layer(f'depths.{depth}.', name)}.{key}"] = LazyTensor(shape, self.dtype, load)
        return result

    def _shared(self):
        shared, additions = share(**self.arguments, progress=self._progress)
        self.additions = [tuple(factor.astype(self.dtype) for factor in addition) for addition in additions]
        return shared.astype(self.dtype)

    def _addition(self, place, part):
        if self.additions is None:
            self._shared()
        return self.additions[place][part]

    def _progress(self, depths):
        return tqdm(depths, desc=self.title, unit="depth", leave=False, delay=2, disable=None)


def _embeddings(config, weights, plain_config, plain, new_config, dtype):
    """The embeddings, the positions, the projections and the head."""
    factorization = ("embedding_size", "tie_projections")
    if all(getattr(config, field) == getattr(new_config, field) for field in factorization):
        parts = ("transformer.w", "transformer.project_", "transformer.ln_f.", "lm_head.")
        return {name: weights[name] for name in weights if name.startswith(parts)}
    if not new_config.is_factorized:
        if plain_config.tie_word_embeddings != new_config.tie_word_embeddings:
            raise InputError("the head of the source is not its embedding; give the compressed model an embedding_size")
        return {name: plain[name] for name in plain if name.startswith(("transformer.w", "lm_head."))}
    size, hidden = new_config.embedding_size, new_config.n_embd
    tokens, positions = plain["transformer.wte.weight"], plain["transformer.wpe.weight"]
    basis = principal_directions(_gram(tokens, tokens) + _gram(positions, positions), size)
    result = {
        "transformer.wte.weight": _rowwise(tokens, basis, dtype),
        "transformer.wpe.weight": _rowwise(positions, basis, dtype),
        "transformer.project_in.weight": basis.astype(dtype),
        "transformer.project_in.bias": np.zeros(hidden, dtype),
        "transformer.project_out.bias": np.zeros(size, dtype),
    }
    project_out = basis.T
    if not new_config.tie_word_embeddings:
        head = plain["lm_head.weight"]
        directions = basis if new_config.tie_projections else principal_directions(_gram(head, head), size)
        result["lm_head.weight"] = _rowwise(head, directions, dtype)
        project_out = directions.T
    elif not plain_config.tie_word_embeddings:
        # The head of a factorized source is another product of its embedding: the nearest one of the new embedding.
        inner = basis.T @ _gram(tokens, tokens) @ basis
        project_out = np.linalg.lstsq(inner, basis.T @ _gram(tokens, plain["lm_head.weight"]), rcond=1e-12)[0]
    if not new_config.tie_projections:
        result["transformer.project_out.weight"] = np.ascontiguousarray(project_out).astype(dtype)
    return result


def _rowwise(rows, basis, dtype):
    return RowwiseTensor(lazy(rows), basis.shape[1], dtype, lambda some: some.astype("float64") @ basis)


def _gram(first, second):
    """first^T second in float64, one piece of the rows at a time; both have the same dtype, and so the same pieces."""
    return sum(
        one.astype("float64").T @ other.astype("float64")
        for one, other in zip(pieces(first), pieces(second), strict=True)
    )
