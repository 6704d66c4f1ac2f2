"""One matrix of a block that several depths share, and what each depth adds to it: the linear algebra, in float64.

The distance of two matrices is the Frobenius norm of their difference; or, where the second moments C = E[x x^T] of the
inputs x are known, the root mean square of the difference of their outputs, ||D||^2 = tr(D C D^T).
"""

import numpy as np

# Of `svd`: how often the shared matrix and the additions are fitted to one another.
ROUNDS = 10
# What is added to the diagonal of second moments, of its mean: in directions that the text never took, matrices are
# compared as they are.
RIDGE = 1e-6


def share(matrices, rank=0, start=None, alternate=False, moments=None, progress=list):
    """A matrix for several depths, and the additions of low rank that bring it near to that of each depth.

    Args:
        matrices: list of numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor` (outputs, inputs), one for
            each depth; of lazy ones, one is in memory at a time.
        rank: int. That of the additions; 0 for none.
        start: array of the same shape, the shared matrix; `None` for the one whose summed squared distance to
            `matrices` is least, their (weighted) mean.
        alternate: bool. Whether to go on from the mean: fit the additions, then the shared matrix to what they leave,
            and so on. No step makes the distance larger.
        moments: list of array (inputs, inputs), one for each depth: the second moments of its inputs.
        progress: function that wraps the list of depths that is gone through.

    Returns:
        tuple of the shared matrix, float64 (outputs, inputs), and a list of the additions, tuples of `up`, float64
        (outputs, rank), and `down`, float64 (rank, inputs), empty for rank 0.

    References:
        Relaxed Recursive Transformers (Bae et al., 2025, https://arxiv.org/abs/2410.20672), section 2.3.

    Example:
        >>> shared, ((up, down), _) = share([np.eye(2), np.diag([1.0, 3.0])], rank=1)
        >>> np.allclose(shared + up @ down, np.eye(2))
        True
    """
    moments = moments or [None] * len(matrices)
    shared = _mean(matrices, moments) if start is None else np.asarray(start, "float64")
    if not rank:
        return shared, []

    def fit():
        pairs = zip(matrices, moments, strict=True)
        return [low_rank(np.asarray(matrix, "float64") - shared, rank, moment) for matrix, moment in progress([*pairs])]

    additions = fit()
    for _ in range(ROUNDS if alternate else 0):
        shared = _mean(matrices, moments, additions)
        additions = fit()
    return shared, additions


def low_rank(matrix, rank, moments=None):
    """The product of rank at most `rank` that is nearest to a matrix.

    With the singular value decomposition M = U S V^T it is U_r U_r^T M, of the first r columns of U. Weighted by C =
    L L^T, U is that of M L, as in SVD-LLM. The eigenvectors of the smaller square of the matrix tell the columns; that
    they are orthonormal makes the result exact at full rank, however near to zero the singular values are.

    Args:
        matrix: float64 (outputs, inputs), M.
        rank: int.
        moments: array (inputs, inputs), C, symmetric and positive semi-definite; `None` for the identity.

    Returns:
        tuple of `up`, float64 (outputs, rank), and `down`, float64 (rank, inputs), whose rows are orthonormal; what
        exceeds the rank that the shape allows is zero.

    References:
        Eckart and Young, 1936; SVD-LLM (Wang et al., 2025, https://arxiv.org/abs/2403.07378).

    Example:
        >>> up, down = low_rank(np.diag([3.0, 2.0, 1.0]), 2)
        >>> np.round(up @ down, 6)
        array([[3., 0., 0.],
               [0., 2., 0.],
               [0., 0., 0.]])
    """
    outputs, inputs = matrix.shape
    if outputs <= inputs:
        weighted = matrix if moments is None else matrix @ _regular(moments)
        basis = principal_directions(weighted @ matrix.T, rank)
    else:
        weighted = matrix if moments is None else matrix @ np.linalg.cholesky(_regular(moments))
        basis = np.linalg.qr(weighted @ principal_directions(weighted.T @ weighted, rank))[0]
    # The rows of `down` are orthonormal, as those that training starts with nearly are.
    rows, triangle = np.linalg.qr(matrix.T @ basis)
    missing = rank - basis.shape[1]
    return np.pad(basis @ triangle.T, ((0, 0), (0, missing))), np.pad(rows.T, ((0, missing), (0, 0)))


def principal_directions(gram, count):
    """The orthonormal directions in which vectors are longest.

    Args:
        gram: float64 (width, width), the sum of x x^T over the vectors x.
        count: int. Of more than `width`, all are given.

    Returns:
        float64 (width, count), the longest first.

    Example:
        >>> abs(principal_directions(np.diag([1.0, 4.0]), 1))
        array([[0.],
               [1.]])
    """
    return np.linalg.eigh(gram)[1][:, ::-1][:, :count]


def squared_length(difference, moments=None):
    """float: the squared distance from zero of a matrix (outputs, inputs), weighted by its inputs' moments if given."""
    weighted = difference if moments is None else difference @ np.asarray(moments, difference.dtype)
    return float(np.vdot(weighted, difference))


def _mean(matrices, moments, additions=()):
    """What is nearest to all matrices less their additions."""
    total = weights = 0.0
    for place, (matrix, moment) in enumerate(zip(matrices, moments, strict=True)):
        matrix = np.asarray(matrix, "float64")
        if additions:
            up, down = additions[place]
            matrix = matrix - up @ down
        weight = 1.0 if moment is None else _regular(moment)
        total = total + (matrix if moment is None else matrix @ weight)
        weights = weights + weight
    return total / weights if np.ndim(weights) == 0 else np.linalg.solve(weights, total.T).T


def _regular(moments):
    moments = np.array(moments, "float64")
    mean = np.trace(moments) / len(moments)
    moments[np.diag_indices(len(moments))] += RIDGE * mean if mean > 0 else 1.0
    return moments
