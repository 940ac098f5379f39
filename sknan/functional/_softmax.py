"""Softmax, its logarithm, and the logarithm of a sum of exponentials."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sknan.functional._domain import (
    EDGES,
    Dim,
    dims_of,
    is_between,
    limited,
    narrow,
    widen,
    within,
)


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
        Bitwise equal to ``torch.softmax`` for finite logits. Infinities count as the
        largest number, with gradient 0: several infinite logits share the row equally,
        and so do all elements of a row of -inf. The error is at most 4 units in the
        last place of the largest weight of the row.

    Examples
    --------
    >>> import torch
    >>> from sknan.functional import softmax
    >>> x = torch.tensor([[1.0, 1.0], [float("inf"), 0.0]])
    >>> softmax(x, mask=torch.tensor([[False, False], [True, True]]))
    tensor([[0., 0.],
            [1., 0.]])
    """
    wide, _ = widen(x)
    if mask is not None:
        # An excluded element may be NaN, which a product with 0 would keep.
        wide = wide.masked_fill(~mask, -math.inf)
    wide = _finite_logits(wide, dim)
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
        Bitwise equal to ``torch.log_softmax`` for finite logits. A logarithm that
        overflows is the lowest number, with gradient 0.
    """
    wide, _ = widen(x)
    most = EDGES[wide.dtype].largest / 2
    if is_between(wide, -most, most):
        return narrow(torch.log_softmax(wide, dim), x.dtype)
    return narrow(limited(torch.log_softmax(_finite_logits(wide, dim), dim)), x.dtype)


def _finite_logits(x: Tensor, dim: int) -> Tensor:
    """Limit infinite logits; the elements of a row of -inf become equal."""
    largest = EDGES[x.dtype].largest
    if not x.numel() or is_between(x, -largest, largest):
        return x
    is_empty = (x.detach() == -math.inf).all(dim, keepdim=True)
    return torch.where(is_empty, 0.0, within(x, -math.inf, largest))


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
        Bitwise equal to ``torch.logsumexp`` for finite arguments. The logarithm of an
        empty sum is the lowest number.
    """
    wide, _ = widen(x)
    total = torch.logsumexp(limited(wide), dims_of(x, dim), keepdim=keepdim)
    return narrow(limited(total), x.dtype)
