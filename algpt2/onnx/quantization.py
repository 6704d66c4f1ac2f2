"""Weights in 4 and 8 bits, in the layout of ONNX Runtime's `MatMulNBits`."""

import numpy as np

from algpt2.checkpoints.weights import names_at_depth, weight_shapes

# The normalization before each product that has one.
NORMS = {"attn.c_attn": "ln_1", "mlp.c_fc": "ln_2"}
# Numbers that share a scale: small blocks where there are few levels.
BLOCK_SIZES = {4: 32, 8: 128}
# What a block's scale is tried at, relative to the one at which its largest number is just not cut off.
TRIED = {4: np.linspace(0.7, 1.05, 15), 8: np.ones(1)}


def balance(config, weights):
    """Weights of the same model whose products have inputs that lose less when they are rounded.

    A channel that a normalization makes large forces a coarse scale on those that it shares a block with. Half of it,
    in powers of its size, moves into the product: the norm is divided, and the columns are multiplied, by the square
    root. This is SmoothQuant (Xiao et al., 2023, https://arxiv.org/abs/2211.10438) at 1/2, where the norm's own weights
    stand for the activations.

    Args:
        config: `ALGPT2Config`.
        weights: dict of str to numpy array, canonical.

    Returns:
        dict as `weights`.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> config = ALGPT2Config(n_layer=1, n_embd=2, n_head=1, vocab_size=5)
        >>> names = names_at_depth(config, 0)
        >>> weights = {name: np.ones((8, 2)) for name in names.values()}
        >>> weights |= {names[f"ln_{k}.{part}"]: np.array([16.0, 1.0]) for k in (1, 2) for part in ("weight", "bias")}
        >>> balance(config, weights)[names["mlp.c_fc.weight"]][0].tolist()
        [2.0, 0.5]
    """
    weights = dict(weights)
    for block in range(config.n_block):
        depths = [names_at_depth(config, depth) for depth, used in enumerate(config.layer_schedule) if used == block]
        for product, norm in NORMS.items():
            norms = {names[f"{norm}.{part}"] for names in depths for part in ("weight", "bias")}
            parts = (f"{product}.weight", f"{product}.down")
            matrices = {names[part] for names in depths for part in parts if part in names}
            squares = [weights[name].astype("float64") ** 2 for name in sorted(norms)]
            sizes = np.maximum(np.sqrt(np.mean(squares, axis=0)), 1e-6)
            factors = np.sqrt(sizes / np.exp(np.log(sizes).mean()))
            for name in norms:
                weights[name] = (weights[name] / factors).astype(weights[name].dtype)
            for name in matrices:
                weights[name] = (weights[name] * factors).astype(weights[name].dtype)
    return weights


def quantized_names(config):
    """The canonical names of the matrices that have 4 bits in a graph in `q4`.

    Args:
        config: `ALGPT2Config`.

    Returns:
        list of str.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> quantized_names(ALGPT2Config(n_layer=1, embedding_size=None))[:2]
        ['transformer.wte.weight', 'transformer.h.0.attn.c_attn.weight']
    """
    matrices = (name for name, shape in weight_shapes(config).items() if len(shape) == 2)
    return [name for name in matrices if name != "transformer.wpe.weight" and ".depths." not in name]


def fills_blocks(columns, bits):
    """bool: whether rows of so many columns fill half a block at least.

    Example:
        >>> fills_blocks(16, 4), fills_blocks(16, 8)
        (True, False)
    """
    return 2 * columns >= BLOCK_SIZES[bits]


def quantize_blocks(matrix, bits):
    """Round a matrix to unsigned integers with a scale for each block of a row; 2^(bits - 1) stands for 0.

    Of several scales a block gets the one with the smallest squared error.

    Args:
        matrix: float (rows, columns).
        bits: int, 4 or 8.

    Returns:
        tuple of uint8 (rows, blocks, bytes of a block), of 4 bits the first number in the lower half, and of scales,
        float32 (rows, blocks). The last block is filled up with zeros.

    Example:
        >>> import numpy as np
        >>> packed, scales = quantize_blocks(np.linspace(-1, 1, 64)[None], 4)
        >>> packed.shape, scales.shape
        ((1, 2, 16), (1, 2))
    """
    size, half = BLOCK_SIZES[bits], 1 << (bits - 1)
    rows, columns = matrix.shape
    blocks = np.zeros((rows, -(-columns // size) * size), "float32")
    blocks[:, :columns] = matrix
    blocks = blocks.reshape(rows, -1, size)
    # The sign of the scale lets the largest number use the level that only one side has.
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    best = levels = scales = None
    for factor in TRIED[bits]:
        scale = largest * np.float32(factor) / -half
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
        found = np.clip(np.rint(blocks * inverse), -half, half - 1)
        error = ((found * scale - blocks) ** 2).sum(-1, keepdims=True)
        if best is None:
            best, levels, scales = error, found, scale
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, scale, scales)
        levels = np.where(better, found, levels)
    levels = (levels + half).astype("uint8")
    if bits == 4:
        levels = levels[..., 0::2] | levels[..., 1::2] << 4
    return levels, scales[..., 0]
