"""Weights in 4 and 8 bits, in the layout of ONNX Runtime's `MatMulNBits`."""

import numpy as np

# Numbers that share a scale: small blocks where there are few levels.
BLOCK_SIZES = {4: 32, 8: 128}
# What a block's scale is tried at, relative to the one at which its largest number is just not cut off.
TRIED = {4: np.linspace(0.7, 1.05, 15), 8: np.ones(1)}


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
