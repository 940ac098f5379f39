"""Lengths, moments and similarities over dimensions of a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sknan.functional._domain import (
    EDGES,
    Dim,
    dims_of,
    is_between,
    limited,
    narrow,
    scale_for,
    widen,
    widen_pair,
    within,
)


def norm(x: Tensor, dim: Dim = None, *, keepdim: bool = False) -> Tensor:
    """Euclidean length with a finite gradient at zero and no overflow of squares.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers; infinities count as the largest number.
    dim : int, tuple of int or None, default=None
        Dimensions to sum over; None for all.
    keepdim : bool, default=False
        Whether the dimensions are kept, with length 1.

    Returns
    -------
    Tensor
        Bitwise equal to ``torch.linalg.vector_norm`` where squares neither overflow nor
        underflow, and exact elsewhere, where torch's is 0 or infinite. 0 with gradient
        0 for a zero vector. A length that overflows is the largest number.
    """
    wide, _ = widen(x)
    return narrow(_length(wide, dim, keepdim), x.dtype)


def _count(x: Tensor, dim: Dim) -> int:
    """Return the number of elements that a reduction combines into one."""
    count = 1  # torch.compile does not trace math.prod over a generator
    for d in dims_of(x, dim):
        count *= x.shape[d] if x.ndim else 1
    return count


def _scaled(x: Tensor, dim: Dim) -> tuple[Tensor, Tensor | None]:
    """Return finite vectors times powers of two, and these; None if all are 1."""
    if not x.numel():
        return x, None
    x = limited(x)
    scale = scale_for(x.detach().abs().amax(dims_of(x, dim), keepdim=True))
    return (x, None) if scale is None else (x * scale, scale)


def _length(x: Tensor, dim: Dim, keepdim: bool) -> Tensor:
    """Euclidean length of vectors."""
    length: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)
    if scale_for(length) is None:
        return length
    scaled, scale = _scaled(x, dim)
    length = _length_if_not_zero(scaled, dim)
    if scale is not None:
        length = limited(length / scale)
    return length if keepdim else length.squeeze(dims_of(x, dim))


def _length_if_not_zero(scaled: Tensor, dim: Dim) -> Tensor:
    """Length whose second derivative is finite for a zero vector, too."""
    is_zero = (scaled.detach() == 0).all(dims_of(scaled, dim), keepdim=True)
    inside = torch.where(is_zero, 1.0, scaled)
    length = torch.linalg.vector_norm(inside, dim=dim, keepdim=True)
    return torch.where(is_zero, 0.0, length)


def normalize(x: Tensor, dim: Dim = -1, *, eps: float | None = None) -> Tensor:
    """Vectors scaled to length 1; a zero vector stays zero.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.
    dim : int, tuple of int or None, default=-1
        Dimensions of a vector.
    eps : float or None, default=None
        Largest length that counts as zero; None is 0.

    Returns
    -------
    Tensor of shape (*)
        Within 4 units in the last place of ``x / torch.linalg.vector_norm(x)``. 0 with
        gradient 0 for lengths that count as zero, which
        ``torch.nn.functional.normalize`` divides by its ``eps``. Gradient 0 also for
        lengths near the smallest normal number, because the gradient is one over the
        length.
    """
    wide, _ = widen(x)
    return narrow(_unit_vectors(wide, dim, 0.0 if eps is None else eps), x.dtype)


def _unit_vectors(
    x: Tensor, dim: Dim, eps: float, factor: Tensor | None = None
) -> Tensor:
    """Scale vectors to length 1, or to 0 if their length over ``factor`` is small."""
    length: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    is_plain = factor is None and scale_for(length) is None
    if is_plain and is_between(length, eps, math.inf):
        return x / length
    size = _length(x.detach(), dim, True)
    size = size if factor is None else size / factor
    scaled, _ = _scaled(x, dim)
    has_gradient = size > EDGES[x.dtype].tiny * max(_count(x, dim), 1)
    scaled = torch.where(has_gradient, scaled, scaled.detach())
    length = _length_if_not_zero(scaled, dim)
    return scaled / torch.where(size <= eps, math.inf, length)


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
        number of elements is not more than ``correction``. A variance that overflows is
        the largest number, with gradient 0.
    """
    wide, _ = widen(x)
    most = EDGES[wide.dtype].largest / 4
    # Halves, because a deviation is at most twice the largest number.
    share = 1.0 if is_between(wide, -most, most) else 0.5
    deviations = _centered(limited(wide) * share, dim)
    # The square may overflow, but not its derivative.
    deviations = within(deviations, -most / 2, most / 2) / share
    freedom = _count(wide, dim) - correction
    if freedom <= 0:
        deviations = deviations * 0.0
    total = deviations.square().sum(dims_of(x, dim), keepdim=keepdim)
    return narrow(limited(total / max(freedom, 1)), x.dtype)


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
    wide, _ = widen(x)
    deviations, scale = _deviations(wide, dim)
    freedom = _count(wide, dim) - correction
    share = 1 / math.sqrt(freedom) if freedom > 0 else 0.0
    spread = _length(deviations, dim, True) * share
    if scale is not None:
        spread = limited(spread / scale)
    return narrow(spread if keepdim else spread.squeeze(dims_of(x, dim)), x.dtype)


def _deviations(x: Tensor, dim: Dim) -> tuple[Tensor, Tensor | None]:
    """Return deviations from the mean, times powers of two, and these, as `_scaled`."""
    most = EDGES[x.dtype].largest ** 0.25
    if is_between(x, -most, most):
        return _centered(x, dim), None
    scaled, scale = _scaled(x, dim)
    return _centered(scaled, dim), scale


def _centered(x: Tensor, dim: Dim) -> Tensor:
    """Return deviations from the mean, exactly 0 for equal numbers."""
    dims, count = dims_of(x, dim), max(_count(x, dim), 1)
    if x.dtype is torch.float32 and x.device.type != "mps":  # which lacks float64
        total = x.sum(dims, keepdim=True, dtype=torch.float64)
        return x - (total / count).to(x.dtype)
    if x.numel() and x.ndim:
        first = x.detach()
        for d in dims:
            first = first.narrow(d, 0, 1)
        x = x - first
    # Divided before they are added, since the sum of large numbers overflows.
    return x - (x / count).sum(dims, keepdim=True)


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
    wide, _ = widen(x)
    deviations, scale = _deviations(wide, dim)
    root = math.sqrt(max(_count(wide, dim) - correction, 0))
    gap = 0.0 if eps is None else eps * max(root, 1.0)
    return narrow(_unit_vectors(deviations, dim, gap, scale) * root, x.dtype)


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
    first, second, dtype, _ = widen_pair(x, y)
    pair = [(first, None), (second, None)]
    return narrow(_cosine(pair, dim, 0.0 if eps is None else eps), dtype)


def _cosine(
    pair: Sequence[tuple[Tensor, Tensor | None]], dim: int, eps: float
) -> Tensor:
    """Cosine of the angle between vectors, each with the factor it was scaled by."""
    (x, x_factor), (y, y_factor) = pair
    lengths: list[Tensor] = [torch.linalg.vector_norm(z, dim=dim) for z in (x, y)]
    most = EDGES[x.dtype].largest ** 0.25
    is_plain = x_factor is None and y_factor is None
    if is_plain and all(
        is_between(length, max(eps, 1 / most), most) for length in lengths
    ):
        product: Tensor = torch.linalg.vecdot(x, y, dim=dim)
        return product / (lengths[0] * lengths[1])
    units = [_unit_vectors(z, dim, eps, factor) for z, factor in pair]
    return (units[0] * units[1]).sum(dim)


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
    first, second, dtype, _ = widen_pair(x, y)
    pair = [_deviations(z, dim) for z in (first, second)]
    return narrow(_cosine(pair, dim, 0.0 if eps is None else eps), dtype)


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
    most = edge.largest / 4
    if is_between(first, -most, most) and is_between(second, -most, most):
        return narrow(_length(first - second, dim, keepdim), dtype)
    # Halves of large numbers, because the difference may overflow.
    first, second = limited(first), limited(second)
    size = torch.maximum(first.abs(), second.abs()).detach()
    share = torch.where((size > most).any(dim, keepdim=True), 0.5, 1.0)
    share = share.to(size.dtype)
    length = limited(_length(first * share - second * share, dim, True) / share)
    return narrow(length if keepdim else length.squeeze(dim), dtype)
