"""Weights in another dtype, with the rounding errors that this makes."""

import numpy as np

from algpt2.checkpoints.formats.lazy_tensor import DTYPES, is_finite
from algpt2.checkpoints.weights import not_finite, raise_for_faults
from algpt2.errors import InputError


def common_dtype(weights):
    """The dtype that holds all weights.

    Args:
        weights: dict of str to numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`.

    Returns:
        str, one of `DTYPES`.

    Example:
        >>> common_dtype({"a": np.zeros(1, "float32"), "b": np.zeros(1, "float16")})
        'float32'
    """
    names = {tensor.dtype.name for tensor in weights.values()}
    # Neither of the two half-precision types holds the other.
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
        """float: the largest rounding error of a value, relative to the largest value of its tensor.

        0.0 if nothing was rounded.
        """
        return self._relative_error(self.tensor) if self.tensor else 0.0

    @property
    def tensor(self):
        """str: the name of the tensor with that error; `None` if nothing was rounded."""
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
        weights: dict of str to numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`.
        dtype: str, one of `DTYPES`.

    Raises:
        InputError: if a value is not finite, or too large for the dtype.
    """
    casting = Casting(dtype)
    return {name: casting(name, np.asarray(tensor)) for name, tensor in weights.items()}
