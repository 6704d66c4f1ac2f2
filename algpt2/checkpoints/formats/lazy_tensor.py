"""Tensors that stay in their files until their values are asked for, so that a checkpoint may be larger than memory."""

import math
import weakref

import ml_dtypes
import numpy as np

DTYPES = {
    "float64": np.dtype("float64"),
    "float32": np.dtype("float32"),
    "float16": np.dtype("float16"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# The bits of the exponent, all set in NaN and infinity; numpy's own functions are slow on half precision.
EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80}
# How many bytes are copied or converted at once, and how many columns of a transposed matrix, each of which takes a
# cache line.
PIECE = 1 << 22
COLUMNS = 128


class LazyTensor:
    """A tensor whose values are loaded each time that numpy asks for them.

    Args:
        shape: tuple of int.
        dtype: numpy dtype.
        load: function that returns the values, a numpy array of this shape and dtype.

    Example:
        >>> tensor = LazyTensor((2, 3), np.dtype("float32"), lambda: np.ones((2, 3), "float32"))
        >>> tensor.T.shape, float(np.asarray(tensor).sum())
        ((3, 2), 6.0)
    """

    def __init__(self, shape, dtype, load):
        self.shape, self.dtype, self.load = tuple(shape), np.dtype(dtype), load

    def __array__(self, dtype=None, copy=None):
        return np.array(self.load(), dtype=dtype, copy=copy)

    @property
    def size(self):
        """int: the number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self):
        """int: the bytes of all values."""
        return self.size * self.dtype.itemsize

    @property
    def T(self):
        """`LazyTensor`: the transposed tensor."""
        return LazyTensor(self.shape[::-1], self.dtype, lambda: self.load().T)

    def reshape(self, shape):
        """`LazyTensor`: the same values in another shape, a tuple of int."""
        if shape == self.shape:
            return self
        return LazyTensor(shape, self.dtype, lambda: self.load().reshape(shape))

    def rows(self, start, stop):
        """`LazyTensor`: the part from one index of the first axis to another."""
        return LazyTensor((stop - start, *self.shape[1:]), self.dtype, lambda: self.load()[start:stop])


class RowwiseTensor(LazyTensor):
    """A matrix whose rows are computed from those of another, so that its pieces need not be there all at once.

    Args:
        source: `LazyTensor` of as many rows.
        width: int. The number of columns.
        dtype: numpy dtype.
        compute: function from some rows of `source`, a numpy array, to the same rows of the matrix.

    Example:
        >>> tensor = RowwiseTensor(lazy(np.ones((4, 2))), 3, "float32", lambda rows: rows @ np.ones((2, 3)))
        >>> tensor.shape, float(np.asarray(tensor).sum())
        ((4, 3), 24.0)
    """

    def __init__(self, source, width, dtype, compute):
        super().__init__((source.shape[0], width), dtype, self._load)
        self.source, self.compute = source, compute

    def pieces(self):
        """The rows in their order; see `pieces`."""
        source = np.asarray(self.source)
        for part in row_slices(self):
            yield self.compute(source[part]).astype(self.dtype)

    def _load(self):
        array = np.empty(self.shape, self.dtype)
        for part, piece in zip(row_slices(self), self.pieces(), strict=True):
            array[part] = piece
        return array


def lazy(array):
    """A numpy array, or a `LazyTensor`, as a `LazyTensor`."""
    return array if isinstance(array, LazyTensor) else LazyTensor(array.shape, array.dtype, lambda: array)


def join(tensors):
    """Tensors joined along their first axis.

    Args:
        tensors: list of `LazyTensor` of one dtype, alike in all other axes.

    Returns:
        `LazyTensor`.
    """
    first = tensors[0]
    shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
    return LazyTensor(shape, first.dtype, lambda: np.concatenate([np.asarray(tensor) for tensor in tensors]))


class OpenFile:
    """A file that stays open as long as a tensor refers to it, even if another file takes its name meanwhile.

    Args:
        path: `Path`.
    """

    def __init__(self, path):
        self.file = path.open("rb")
        weakref.finalize(self, self.file.close)


def pieces(tensor):
    """The values of a tensor in contiguous pieces along its first axis, so that no copy of all of them is made.

    Args:
        tensor: numpy array or `LazyTensor`, of one axis or more, not empty.

    Yields:
        numpy array.
    """
    if isinstance(tensor, RowwiseTensor):
        yield from tensor.pieces()
        return
    array = np.asarray(tensor)
    # Copied as integers, which numpy does faster for the dtypes that are not its own.
    bits = array.view(f"u{array.dtype.itemsize}")
    for part in row_slices(array):
        yield _contiguous(bits[part]).view(array.dtype)


def row_slices(tensor):
    """The slices of the first axis of a tensor that are its pieces.

    Args:
        tensor: numpy array or `LazyTensor`, of one axis or more, not empty.

    Returns:
        list of slice.
    """
    count = tensor.shape[0]
    rows = max(1, PIECE * count // tensor.nbytes)
    return [slice(start, start + rows) for start in range(0, count, rows)]


def equal(first, second):
    """Whether two tensors of one shape, which may be of different dtypes, have equal values.

    Args:
        first, second: numpy array or `LazyTensor`, of one axis or more, not empty.

    Example:
        >>> equal(np.ones((2, 3), "float16"), np.ones((2, 3), "float32"))
        True
    """
    first, second = np.asarray(first), np.asarray(second)
    return all(np.array_equal(first[part], second[part]) for part in row_slices(first))


def _contiguous(array):
    if array.flags.c_contiguous:
        return array
    copy = np.empty(array.shape, array.dtype)
    # In tiles, which is three times as fast as all at once.
    for column in range(0, array.shape[-1], COLUMNS):
        copy[..., column : column + COLUMNS] = array[..., column : column + COLUMNS]
    return copy


def is_finite(array):
    """Whether all values of a float array are finite.

    Example:
        >>> is_finite(np.array([1, np.inf], "float16"))
        False
    """
    exponent = EXPONENTS.get(array.dtype.name)
    if exponent is None:
        return bool(np.isfinite(array).all())
    return not array.size or int((array.view("u2") & exponent).max()) < exponent
