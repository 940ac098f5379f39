"""Softmax, lengths, moments and similarities over dimensions of a tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sknan.functional._domain import (
    Edge,
    is_between,
    narrow,
    widen,
    widen_pair,
    within,
    without_zero,
)

Dim = int | tuple[int, ...] | None


def softmax(
    x: Tensor, dim: int = -1, *, mask: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    r"""Softmax that is defined for infinite logits and for rows that are masked.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Logits.
    dim : int, default=-1
        Dimension that sums to 1.
    mask : Tensor of bool, broadcast to the shape of ``x``, or None, default=None
        Elements to include. An excluded element has weight 0 and receives no gradient,
        even if it is NaN. A row in which all elements are excluded gives zeros.
    eps : float, default=0.0
        Term added to the denominator, in units of its largest term. Rows then sum to
        :math:`s / (s + \epsilon)` with :math:`s = \sum_j \exp(x_j - \max x)`.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.softmax`` for logits whose absolute value is less than
        a quarter of the largest number. Larger logits and infinities count as that
        number, with gradient 0: several infinite logits share the row equally, and so
        do all elements of a row of -inf. The error is at most 4 units in the last place
        of the largest weight of the row.

    Examples
    --------
    >>> import torch
    >>> from sknan.functional import softmax
    >>> x = torch.tensor([[1.0, 1.0], [float("inf"), 0.0]])
    >>> softmax(x, mask=torch.tensor([[False, False], [True, True]]))
    tensor([[0., 0.],
            [1., 0.]])
    """
    wide, edge = widen(x)
    if mask is not None:
        # An excluded element may be NaN, which a product with 0 would keep.
        wide = wide.masked_fill(~mask, -math.inf)
    wide = within(wide, -edge.largest / 4, edge.largest / 4)
    weights = torch.softmax(wide, dim)
    if eps and wide.numel():
        top = wide.amax(dim, keepdim=True)
        total = torch.exp(torch.logsumexp(wide, dim, keepdim=True) - top)
        weights = weights * (total / (total + eps))
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    return narrow(weights, x.dtype)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Logarithm of the softmax that is finite for infinite logits.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Logits, limited as in :func:`softmax`.
    dim : int, default=-1
        Dimension whose exponentials sum to 1.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.log_softmax`` for logits whose absolute value is less
        than a quarter of the largest number.
    """
    wide, edge = widen(x)
    most = edge.largest / 4
    return narrow(torch.log_softmax(within(wide, -most, most), dim), x.dtype)


def logsumexp(x: Tensor, dim: Dim = -1, *, keepdim: bool = False) -> Tensor:
    """Logarithm of the sum of exponentials that is finite for infinite arguments.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Exponents, limited as in :func:`softmax`.
    dim : int or tuple of int, default=-1
        Dimensions to sum over.
    keepdim : bool, default=False
        Whether the dimensions are kept, with length 1.

    Returns
    -------
    Tensor
        Bitwise equal to ``torch.logsumexp`` for arguments whose absolute value is less
        than a quarter of the largest number.
    """
    wide, edge = widen(x)
    most = edge.largest / 4
    total = torch.logsumexp(within(wide, -most, most), _dims(x, dim), keepdim=keepdim)
    # An empty sum gives the logarithm of 0.
    return narrow(within(total, -most, most), x.dtype)


def norm(x: Tensor, dim: Dim = None, *, keepdim: bool = False) -> Tensor:
    """Euclidean length with a finite gradient at zero and no overflow of squares.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Elements, limited to the largest number over the root of the number of elements.
    dim : int, tuple of int or None, default=None
        Dimensions to sum over; None for all.
    keepdim : bool, default=False
        Whether the dimensions are kept, with length 1.

    Returns
    -------
    Tensor
        Bitwise equal to ``torch.linalg.vector_norm`` where squares neither overflow nor
        underflow. Elsewhere computed from the ratios to the largest element, within 2
        units in the last place. 0 with gradient 0 where no element is larger in
        absolute value than the root of the smallest normal number (1.1e-19 in float32).
    """
    wide, edge = widen(x)
    length = _length(_with_finite_length(wide, dim, edge), dim, keepdim, edge)
    return narrow(length, x.dtype)


def _dims(x: Tensor, dim: Dim) -> tuple[int, ...]:
    """Return the dimensions of a reduction as a tuple."""
    if dim is None:
        return tuple(range(x.ndim))
    return (dim,) if isinstance(dim, int) else tuple(dim)


def _count(x: Tensor, dim: Dim) -> int:
    """Return the number of elements that a reduction combines into one."""
    count = 1  # torch.compile does not trace math.prod over a generator
    for d in _dims(x, dim):
        count *= x.shape[d]
    return count


def _with_finite_length(x: Tensor, dim: Dim, edge: Edge, times: float = 1.0) -> Tensor:
    """Limit the elements so that ``times`` the length of ``x`` is finite."""
    most = edge.largest / times / math.sqrt(max(_count(x, dim), 1))
    most *= 1 - 4 * edge.gap
    return within(x, -most, most)


def _sums_in_double(x: Tensor) -> bool:
    """Whether sums can be computed in a wider dtype; Apple's GPUs lack float64."""
    return x.dtype is torch.float32 and x.device.type != "mps"


def _length(x: Tensor, dim: Dim, keepdim: bool, edge: Edge) -> Tensor:
    """Euclidean length of vectors whose length is finite."""
    least = math.sqrt(edge.tiny)
    length: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)
    # No square has overflowed, and no square of relevant size has underflowed.
    is_moderate = is_between(
        length, least / math.sqrt(edge.gap), math.sqrt(edge.largest)
    )
    if is_moderate or not x.numel():
        return length
    # The unit is the largest element, treated as a constant in the gradient.
    unit = x.detach().abs().amax(_dims(x, dim), keepdim=True)
    is_zero = unit <= least
    unit = torch.where(is_zero, 1.0, unit)
    # A constant where the vector is zero: all derivatives are 0.
    inside = torch.where(is_zero, 1.0, x)
    length = torch.linalg.vector_norm(inside / unit, dim=dim, keepdim=True) * unit
    length = torch.where(is_zero, 0.0, length)
    return length if keepdim else length.squeeze(_dims(x, dim))


def normalize(x: Tensor, dim: Dim = -1, *, eps: float | None = None) -> Tensor:
    """Vectors scaled to length 1; a zero vector stays zero.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.
    dim : int, tuple of int or None, default=-1
        Dimensions of a vector.
    eps : float or None, default=None
        Largest length that counts as zero. None is the limit of :func:`norm`, and at
        least the largest number to the power of -1/2 (0.004 in float16), because the
        gradient is one over the length.

    Returns
    -------
    Tensor of shape (*)
        Within 4 units in the last place of ``torch.nn.functional.normalize`` for
        lengths above ``eps``. 0 with gradient 0 for smaller lengths, which torch
        divides by its ``eps``.
    """
    wide, edge = widen(x)
    vectors = _with_finite_length(wide, dim, edge)
    return narrow(_unit_vectors(vectors, dim, eps, edge), x.dtype)


def _unit_vectors(x: Tensor, dim: Dim, eps: float | None, edge: Edge) -> Tensor:
    """Scale vectors whose length is finite to length 1."""
    gap = edge.largest**-0.5 if eps is None else eps
    return x / without_zero(_length(x, dim, True, edge), gap)


def var(
    x: Tensor, dim: Dim = None, *, correction: float = 1, keepdim: bool = False
) -> Tensor:
    """Variance that does not overflow, and is 0 for too few elements.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.
    dim : int, tuple of int or None, default=None
        Dimensions to reduce; None for all.
    correction : float, default=1
        Difference between the number of elements and the denominator.
    keepdim : bool, default=False
        Whether the dimensions are kept, with length 1.

    Returns
    -------
    Tensor
        Within 4 units in the last place of ``torch.var``. 0 with gradient 0 if the
        number of elements is not more than ``correction``. Deviations are limited to
        the root of the largest number (1.8e19 in float32), so that their squares are
        finite.
    """
    wide, edge = widen(x)
    most = math.sqrt(edge.largest / max(_count(wide, dim), 1)) / 2
    deviations = within(_centered(wide, dim, edge), -most, most)
    freedom = _count(wide, dim) - correction
    total = deviations.square().sum(_dims(x, dim), keepdim=keepdim)
    return narrow(total / freedom if freedom > 0 else total * 0.0, x.dtype)


def std(
    x: Tensor, dim: Dim = None, *, correction: float = 1, keepdim: bool = False
) -> Tensor:
    """Standard deviation with a finite gradient where all elements are equal.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.
    dim : int, tuple of int or None, default=None
        Dimensions to reduce; None for all.
    correction : float, default=1
        Difference between the number of elements and the denominator.
    keepdim : bool, default=False
        Whether the dimensions are kept, with length 1.

    Returns
    -------
    Tensor
        Within 4 units in the last place of ``torch.std``. 0 with gradient 0 if all
        elements are equal, or their number is not more than ``correction``.
    """
    wide, edge = widen(x)
    deviations = _centered(wide, dim, edge)
    freedom = _count(wide, dim) - correction
    share = 1 / math.sqrt(freedom) if freedom > 0 else 0.0
    return narrow(_length(deviations, dim, keepdim, edge) * share, x.dtype)


def _centered(x: Tensor, dim: Dim, edge: Edge) -> Tensor:
    """Return deviations from the mean, limited so that their length is finite."""
    # A deviation is at most twice the largest absolute value.
    inside = _with_finite_length(x, dim, edge, 2.0)
    dims = _dims(x, dim)
    if not _sums_in_double(x):
        # Divided before they are added, since the sum of large numbers overflows.
        mean = (inside / max(_count(x, dim), 1)).sum(dims, keepdim=True)
    else:
        total = inside.sum(dims, keepdim=True, dtype=torch.float64)
        mean = total / max(_count(x, dim), 1)
    return inside - mean.to(x.dtype)


def standardize(
    x: Tensor, dim: Dim = -1, *, correction: float = 0, eps: float | None = None
) -> Tensor:
    """Deviations from the mean in units of the standard deviation.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.
    dim : int, tuple of int or None, default=-1
        Dimensions to reduce; None for all.
    correction : float, default=0
        Correction of :func:`std`; 0 as in batch and layer normalization.
    eps : float or None, default=None
        Largest standard deviation that counts as zero. None as in :func:`normalize`.

    Returns
    -------
    Tensor of shape (*)
        ``(x - mean) / std``. 0 with gradient 0 if all elements are equal, or if there
        is only one.
    """
    wide, edge = widen(x)
    deviations = _centered(wide, dim, edge)
    freedom = _count(wide, dim) - correction
    length = _length(deviations, dim, True, edge)
    gap = edge.largest**-0.5 if eps is None else eps
    root = math.sqrt(max(freedom, 0))
    unit = without_zero(length, gap * max(root, 1.0))
    return narrow(deviations / unit * root, x.dtype)


def cosine_similarity(
    x: Tensor, y: Tensor, dim: int = -1, *, eps: float | None = None
) -> Tensor:
    """Cosine of the angle between vectors, 0 if one of them is zero.

    Parameters
    ----------
    x, y : Tensor of shape (*), float
        Vectors, broadcast against each other.
    dim : int, default=-1
        Dimension of a vector.
    eps : float or None, default=None
        Largest length that counts as zero, as in :func:`normalize`.

    Returns
    -------
    Tensor of shape (*) without ``dim``
        Cosines in [-1, 1], up to rounding. For lengths above ``eps`` they differ from
        torch's by at most 4 units in the last place of 1.
    """
    first, second, dtype, edge = widen_pair(x, y)
    first = _with_finite_length(first, dim, edge)
    second = _with_finite_length(second, dim, edge)
    return narrow(_cosine(first, second, dim, eps, edge), dtype)


def _cosine(x: Tensor, y: Tensor, dim: int, eps: float | None, edge: Edge) -> Tensor:
    """Cosine of the angle between vectors whose length is finite."""
    lengths = [_length(z, dim, False, edge) for z in (x, y)]
    low = max(eps or 0.0, edge.largest**-0.25)
    if all(is_between(length, low, edge.largest**0.25) for length in lengths):
        product: Tensor = torch.linalg.vecdot(x, y, dim=dim)
        return product / (lengths[0] * lengths[1])
    first, second = (_unit_vectors(z, dim, eps, edge) for z in (x, y))
    return (first * second).sum(dim)


def correlation(
    x: Tensor, y: Tensor, dim: int = -1, *, eps: float | None = None
) -> Tensor:
    """Pearson's correlation, 0 if one of the variables is constant.

    Parameters
    ----------
    x, y : Tensor of shape (*), float
        Variables, broadcast against each other.
    dim : int, default=-1
        Dimension of the observations.
    eps : float or None, default=None
        Largest length of the deviations that counts as zero, as in :func:`normalize`.

    Returns
    -------
    Tensor of shape (*) without ``dim``
        Correlations in [-1, 1], up to rounding.
    """
    first, second, dtype, edge = widen_pair(x, y)
    first, second = _centered(first, dim, edge), _centered(second, dim, edge)
    return narrow(_cosine(first, second, dim, eps, edge), dtype)


def pairwise_distance(
    x: Tensor, y: Tensor, dim: int = -1, *, keepdim: bool = False
) -> Tensor:
    """Euclidean distance between rows, with a finite gradient if they are equal.

    Parameters
    ----------
    x, y : Tensor of shape (*), float
        Vectors, broadcast against each other.
    dim : int, default=-1
        Dimension of a vector.
    keepdim : bool, default=False
        Whether the dimension is kept, with length 1.

    Returns
    -------
    Tensor of shape (*) without ``dim``
        Within 2 units in the last place of ``torch.linalg.vector_norm(x - y)``. 0 with
        gradient 0 if the rows are equal. (``torch.nn.functional.pairwise_distance``
        adds 1e-6 to each difference.)
    """
    first, second, dtype, edge = widen_pair(x, y)
    most = edge.largest / 2
    difference = within(first, -most, most) - within(second, -most, most)
    return narrow(norm(difference, dim, keepdim=keepdim), dtype)
