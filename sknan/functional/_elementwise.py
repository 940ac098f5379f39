"""Tensor functions with finite value and slope: softmax, log, sqrt, norm and kin.

One mechanism serves the whole family. An argument is first brought *within* the domain
on which torch's function and its slope are finite; there it is torch's function, to the
bit unless a docstring says otherwise. Beyond, the value is that at the edge of the
domain, and the slope is 0. Where the edge has an exact limit that the domain just
misses, such as 0 for the square root, the value is *snapped* to it.

Both steps are single kernels of torch that select instead of multiplying, forward and
backward: a slope of infinity at the edge is dropped, never turned into ``0 * inf``.
They hold under second derivatives, ``torch.func``, ``torch.compile`` and autocast. On a
CPU one look at the smallest and largest element comes first, since it costs a fraction
of the repair: where all of them are well inside, torch's function is called as it is.

What holds for every function here:

- NaN that comes in goes out: these repair the edge of a domain, never the data.
- Infinities count as the largest finite number of the dtype, unless torch's own limit
  there is finite.
- Value and slope are finite for every other number; the second derivative is where
  torch's is. (That of log at 1e-38 is 1e76, which float32 cannot hold.)
- float16 and bfloat16 are computed in float32 and rounded once; the limits are those of
  the narrow dtype. Integers become floats, as in torch.
- Shape, device and dtype of the result are those of torch's function.

Ground floor: imports only the mechanism, `_edges`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sknan.functional._domain import (
    Edge,
    above,
    is_between,
    narrow,
    snapped,
    widen,
    widen_pair,
    within,
    without_zero,
)

__all__ = [
    "acos",
    "asin",
    "atan2",
    "atanh",
    "correlation",
    "cosine_similarity",
    "divide",
    "exp",
    "expm1",
    "hypot",
    "log",
    "log1p",
    "log_sigmoid",
    "log_softmax",
    "logit",
    "logsumexp",
    "norm",
    "normalize",
    "pairwise_distance",
    "power",
    "reciprocal",
    "rsqrt",
    "sigmoid",
    "smooth_clip",
    "soft_clamp",
    "softmax",
    "softplus",
    "sqrt",
    "standardize",
    "std",
    "var",
]

Dim = int | tuple[int, ...] | None


# -- logarithms and exponentials -----------------------------------------------------


def log(x: Tensor) -> Tensor:
    """Natural logarithm that is finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, above the edge; the smallest normal number (in float16
        1.5e-5, below which the slope does not fit) and less give the logarithm of that
        edge, -87.3 in float32. Slope 1/x, and 0 at and below the edge and at infinity.

    Examples
    --------
    >>> import torch
    >>> from sknan.functional import log
    >>> log(torch.tensor([0.0, 1.0, float("inf")]))
    tensor([-87.3365,   0.0000,  88.7228])
    """
    wide, edge = widen(x)
    low = max(edge.tiny, 1 / edge.largest)
    return narrow(torch.log(within(wide, low, edge.largest)), x.dtype)


def log1p(x: Tensor) -> Tensor:
    """Logarithm of 1 + x that is finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, above the number next to -1; -1 and less give the value
        there, -16.6 in float32. Slope 1/(1 + x), and 0 at the edge and beyond.
    """
    wide, edge = widen(x)
    return narrow(torch.log1p(within(wide, edge.gap - 1.0, edge.largest)), x.dtype)


def exp(x: Tensor) -> Tensor:
    """Exponential that does not overflow.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, up to the logarithm of the largest number, 88.7 in float32;
        from there on the value at that edge, with slope 0. exp(-inf) is 0.
    """
    wide, edge = widen(x)
    return narrow(torch.exp(within(wide, -math.inf, _log_largest(edge))), x.dtype)


def expm1(x: Tensor) -> Tensor:
    """Exponential minus 1 that does not overflow.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, up to the edge of :func:`exp`, and like it beyond.
    """
    wide, edge = widen(x)
    return narrow(torch.expm1(within(wide, -math.inf, _log_largest(edge))), x.dtype)


def _log_largest(edge: Edge) -> float:
    # A little less: an error in its last place is one of 88 in that of the result.
    return math.log(edge.largest) - 64 * edge.gap


def logit(x: Tensor) -> Tensor:
    """Inverse of the sigmoid, finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, strictly between 0 and 1, but for the number next to 1 and
        for those below the edge of :func:`log`; there and outside the value at the edge
        (-87.3 and 16.6 in float32), with slope 0. Around 1/2, where it crosses 0, the
        error is one of numbers around 1.
    """
    wide, edge = widen(x)
    low = max(edge.tiny, 2 / edge.largest)
    return narrow(torch.logit(within(wide, low, 1.0 - edge.gap)), x.dtype)


def sigmoid(x: Tensor) -> Tensor:
    """Logistic function: torch's own, which is finite everywhere.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        In [0, 1]; slope 0 at the infinities.
    """
    return torch.sigmoid(x)


def log_sigmoid(x: Tensor) -> Tensor:
    """Logarithm of the sigmoid, finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, for finite numbers. -inf gives the lowest finite number.
        Slope sigmoid(-x), and 0 at the infinities.
    """
    wide, edge = widen(x)
    return narrow(F.logsigmoid(within(wide, -edge.largest, edge.largest)), x.dtype)


def softplus(x: Tensor) -> Tensor:
    """Logarithm of 1 + exp(x), finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, for finite numbers up to 20. Beyond 20 torch returns x
        itself; here only beyond 40, where it is exact in float64 too. Infinity gives
        the largest number. Slope sigmoid(x), and 0 at infinity.
    """
    wide, edge = widen(x)
    return narrow(
        F.softplus(within(wide, -math.inf, edge.largest), threshold=40.0), x.dtype
    )


# -- roots, powers, quotients --------------------------------------------------------


def sqrt(x: Tensor) -> Tensor:
    """Square root with a finite slope at zero.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, above the smallest normal number; 0 with slope 0 at and
        below it. Infinity gives the root of the largest number, with slope 0.

    Notes
    -----
    ``torch.where(x > 0, torch.sqrt(x), 0)`` has the right value at 0 and a slope of
    NaN: both branches are differentiated, and the one not taken contributes
    ``0 * inf``.

    Examples
    --------
    >>> import torch
    >>> from sknan.functional import sqrt
    >>> x = torch.tensor([-1.0, 0.0, 4.0], requires_grad=True)
    >>> sqrt(x).sum().backward()
    >>> sqrt(x).tolist(), x.grad.tolist()
    ([0.0, 0.0, 2.0], [0.0, 0.0, 0.25])
    """
    wide, edge = widen(x)
    root = torch.sqrt(within(wide, edge.tiny, edge.largest))
    return narrow(snapped(root, above(math.sqrt(edge.tiny)), 0.0), x.dtype)


def rsqrt(x: Tensor) -> Tensor:
    """Reciprocal of the square root, with finite value and slope at zero.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, above the largest number to the power of -2/3 (2.1e-26 in
        float32), below which the slope overflows; there and for less the value at that
        edge, with slope 0. Infinity gives 0.
    """
    wide, edge = widen(x)
    low = max(edge.tiny, above(edge.largest ** (-2 / 3)))
    return narrow(torch.rsqrt(within(wide, low, math.inf)), x.dtype)


def reciprocal(x: Tensor) -> Tensor:
    """One over x, and 0 for zero.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, for sizes above the largest number to the power of -1/2
        (5.4e-20 in float32), below which the slope overflows; there 0 with slope 0, the
        middle between the limits from both sides.
    """
    wide, edge = widen(x)
    return narrow(torch.reciprocal(without_zero(wide, edge.largest**-0.5)), x.dtype)


def divide(
    numerator: Tensor, denominator: Tensor, *, eps: float | None = None
) -> Tensor:
    """Quotient that is 0 where nothing is divided by.

    Parameters
    ----------
    numerator : Tensor of shape (*), float
        Any numbers, infinities included.
    denominator : Tensor of shape (*), float
        Broadcast against the numerator.
    eps : float or None, default=None
        Sizes of the denominator up to this one count as zero. None is the largest
        number to the power of -1/4: 2.3e-10 in float32, 0.06 in float16.

    Returns
    -------
    Tensor of shape (*)
        torch's quotient, to the bit, where the denominator counts and the numerator is
        smaller than the largest number to the power of 1/2 (1.8e19 in float32), beyond
        which it is that number, with slope 0. 0 with slope 0 where the denominator does
        not count.

    Notes
    -----
    The slope by the denominator, numerator / denominator**2, is finite with these
    limits and not without them.

    Examples
    --------
    >>> import torch
    >>> from sknan.functional import divide
    >>> divide(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([4.0, 0.0, 0.0]))
    tensor([0.2500, 0.0000, 0.0000])
    """
    upper, lower, dtype, edge = widen_pair(numerator, denominator)
    most = edge.largest**0.5
    gap = edge.largest**-0.25 if eps is None else eps
    return narrow(within(upper, -most, most) / without_zero(lower, gap), dtype)


def power(x: Tensor, exponent: float) -> Tensor:
    """Power with a fixed exponent, finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Negative numbers count as 0 unless the exponent is an integer.
    exponent : float
        Finite.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, where the power and its slope are finite; the value at the
        edge, with slope 0, beyond. 0 to a positive power is 0, to a negative one 0 if
        the exponent is an odd integer, else the value at the edge. NaN stays NaN, to
        the power of 0 too.

    Raises
    ------
    ValueError
        If the exponent is not finite.
    """
    if not math.isfinite(exponent):
        raise ValueError(f"exponent must be finite, got {exponent!r}.")
    wide, edge = widen(x)
    low, high = _range_of_power(exponent, edge)
    is_integer = float(exponent).is_integer()
    if exponent == 0:
        return narrow(within(wide, -1.0, 1.0) * 0.0 + 1.0, x.dtype)
    if is_integer and exponent >= 0:
        return narrow(torch.pow(within(wide, -high, high), exponent), x.dtype)
    if is_integer and exponent % 2:
        return narrow(torch.pow(without_zero(wide, low), exponent), x.dtype)
    inside = within(wide.abs() if is_integer else wide, low, high)
    y = torch.pow(inside, exponent)
    if exponent > 0:
        y = snapped(y, above(low**exponent), 0.0)
    return narrow(y, x.dtype)


def _range_of_power(p: float, edge: Edge) -> tuple[float, float]:
    """Positive numbers between which ``x**p`` and ``p * x**(p - 1)`` are finite."""
    low, high = edge.tiny, edge.largest
    ends = []
    if p != 0:
        ends.append((math.log(edge.largest)) / p)
    if p not in (0, 1):
        # torch takes the power first, then multiplies by p.
        ends.append((math.log(edge.largest) - max(math.log(abs(p)), 0.0)) / (p - 1))
    for end, is_upper in zip(ends, (p > 0, p > 1), strict=False):
        # Rounded into the domain: errors in the exponent grow by its size.
        if is_upper:
            high = min(high, math.exp(min(end * (1 - 1e-6), math.log(edge.largest))))
        else:
            low = max(low, math.exp(end * (1 - 1e-6)))
    return low, high


# -- angles --------------------------------------------------------------------------


def atanh(x: Tensor) -> Tensor:
    """Inverse hyperbolic tangent, finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, strictly between the numbers next to -1 and 1; there and
        beyond the value at that edge, 8.7 in float32, with slope 0.
    """
    wide, edge = widen(x)
    most = 1.0 - edge.gap
    return narrow(torch.atanh(within(wide, -most, most)), x.dtype)


def asin(x: Tensor) -> Tensor:
    """Inverse sine with a finite slope at -1 and 1.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, strictly between the numbers next to -1 and 1; from -1 and
        1 on minus and plus pi/2, with slope 0.
    """
    wide, edge = widen(x)
    inner, jump = _beyond_one(wide, edge)
    return narrow(torch.asin(inner) + jump, x.dtype)


def acos(x: Tensor) -> Tensor:
    """Inverse cosine with a finite slope at -1 and 1.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, strictly between the numbers next to -1 and 1; from -1 on
        pi and from 1 on 0, with slope 0.
    """
    wide, edge = widen(x)
    inner, jump = _beyond_one(wide, edge)
    return narrow(torch.acos(inner) - jump, x.dtype)


def _beyond_one(x: Tensor, edge: Edge) -> tuple[Tensor, Tensor | float]:
    """``x`` inside (-1, 1), and what the angle lacks where it has been moved there."""
    most = 1.0 - edge.gap
    lacking = math.pi / 2 - math.asin(most)
    inner = within(x, -most, most)
    if inner is x:
        return x, 0.0
    steps = F.softshrink(F.hardtanh(x.detach()), most)  # -gap, 0 or gap
    return inner, steps * (lacking / edge.gap)


def atan2(y: Tensor, x: Tensor) -> Tensor:
    """Angle of the point (x, y), with a finite slope at the origin.

    Parameters
    ----------
    y, x : Tensor of shape (*), float
        Broadcast against each other. Infinities count as the largest number.

    Returns
    -------
    Tensor of shape (*)
        In [-pi, pi]. torch's within 2 units in the last place. At the origin, that is
        where neither is larger than the largest number to the power of -1/2, the value
        is torch's and the slope 0.
    """
    upper, lower, dtype, edge = widen_pair(y, x)
    upper = within(upper, -edge.largest, edge.largest)
    lower = within(lower, -edge.largest, edge.largest)
    size = torch.maximum(upper.abs(), lower.abs()).detach()
    if is_between(size, edge.largest**-0.5, edge.largest**0.5 / 2):
        return narrow(torch.atan2(upper, lower), dtype)
    # The angle does not change when both are divided by the same, and the sum of their
    # squares then neither overflows nor vanishes.
    scale = torch.reciprocal(without_zero(size, edge.largest**-0.5))
    at_origin = scale == 0
    # Detached at the origin: the angle there is that of the signs alone.
    upper = torch.where(at_origin, upper.detach(), upper * scale)
    lower = torch.where(at_origin, lower.detach().sign() + (lower == 0), lower * scale)
    return narrow(torch.atan2(upper, lower), dtype)


def hypot(x: Tensor, y: Tensor) -> Tensor:
    """Length of the vector (x, y), with a finite slope at the origin.

    Parameters
    ----------
    x, y : Tensor of shape (*), float
        Broadcast against each other. Sizes count up to 0.7 times the largest number.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, where longer than the root of the smallest normal number
        (1.1e-19 in float32); 0 with slope 0 where shorter.
    """
    first, second, dtype, edge = widen_pair(x, y)
    most = 0.7 * edge.largest
    floor = math.sqrt(edge.tiny)
    length = torch.hypot(first, second)
    if is_between(length, above(floor * math.sqrt(2)), most):
        return narrow(length, dtype)
    first, second = within(first, -most, most), within(second, -most, most)
    is_origin = (first.abs() <= floor) & (second.abs() <= floor)
    length = torch.hypot(torch.where(is_origin, floor, first), second)
    return narrow(snapped(length, above(floor * math.sqrt(2)), 0.0), dtype)


# -- bounds --------------------------------------------------------------------------


def smooth_clip(x: Tensor, limit: float) -> Tensor:
    r"""Bend large numbers smoothly to a limit on both sides.

    .. math:: x / \sqrt{1 + (x / l)^2}

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.
    limit : float
        Positive; :math:`l`.

    Returns
    -------
    Tensor of shape (*)
        In [-limit, limit], with slope 1 at 0. Large numbers go to the limit, where the
        formula written out overflows in the square and returns 0.

    Raises
    ------
    ValueError
        If ``limit`` is not a positive finite number.

    References
    ----------
    D. Holzmueller, L. Grinsztajn, I. Steinwart. Better by Default: Strong Pre-Tuned
    MLPs and Boosted Trees on Tabular Data. NeurIPS 2024, arXiv 2407.04491, section 3.
    """
    if not 0 < limit < math.inf:
        raise ValueError(f"limit must be a positive finite number, got {limit!r}.")
    wide, edge = widen(x)
    part = within(wide / limit, -edge.largest, edge.largest)
    return narrow(part / torch.hypot(part, torch.ones_like(part)) * limit, x.dtype)


def soft_clamp(
    x: Tensor,
    low: float | None = None,
    high: float | None = None,
    *,
    width: float | None = None,
) -> Tensor:
    r"""Bring numbers between two bounds and keep a slope outside of them.

    Up to ``width`` before a bound nothing changes. From that knee :math:`k` on the way
    left to the bound is shortened by the logarithm of how far the number lies out,

    .. math:: k + w \, (1 - 1 / (1 + \log(1 + (x - k) / w)))

    whose slope falls off only little faster than that of a logarithm: no function with
    a bound can keep a slope of 1/x.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.
    low, high : float or None, default=None
        Bounds; None for none on that side.
    width : float or None, default=None
        Distance from a bound at which the bend begins, :math:`w`. None is a quarter of
        the distance between the bounds, or 1 with one bound only.

    Returns
    -------
    Tensor of shape (*)
        In [low, high]; ``x`` itself, to the bit, where the bends have not begun. The
        slope is 1 at the knee and positive beyond; 0 at the infinities.

    Raises
    ------
    ValueError
        If the bounds are not finite, not in order, or leave no room for the bends.

    Examples
    --------
    >>> import torch
    >>> from sknan.functional import soft_clamp
    >>> x = torch.tensor([1.0, 1e4, 1e30], requires_grad=True)
    >>> y = soft_clamp(x, 0.0, 10.0)
    >>> [round(v, 3) for v in y.tolist()]
    [1.701, 9.731, 9.964]
    >>> y.sum().backward()
    >>> bool((x.grad > 0).all())
    True
    """
    low_knee, high_knee, w = _knees(low, high, width)
    wide, edge = widen(x)
    y = wide
    if high_knee is not None:
        y = torch.where(y > high_knee, high_knee + w * _bent(y, high_knee, w, edge), y)
    if low_knee is not None:
        y = torch.where(y < low_knee, low_knee - w * _bent(-y, -low_knee, w, edge), y)
    return narrow(within(y, -edge.largest, edge.largest), x.dtype)


def _bent(x: Tensor, knee: float, width: float, edge: Edge) -> Tensor:
    """Share of the way from the knee to the bound; 0 before the knee."""
    beyond = within((x - knee) / width, 0.0, edge.largest)
    return 1 - 1 / (1 + torch.log1p(beyond))


def _knees(
    low: float | None, high: float | None, width: float | None
) -> tuple[float | None, float | None, float]:
    """Where the bends of :func:`soft_clamp` begin, and how wide they are."""
    bounds = [bound for bound in (low, high) if bound is not None]
    if not all(math.isfinite(bound) for bound in bounds) or bounds != sorted(bounds):
        raise ValueError(
            f"low must be less than high and both finite, got {low!r} and {high!r}."
        )
    span = bounds[1] - bounds[0] if len(bounds) == 2 else math.inf
    if width is None:
        width = span / 4 if span < math.inf else 1.0
    if not 0 < width <= span / 2:
        raise ValueError(
            f"width must be positive and at most half of high - low, got {width!r} for "
            f"{low!r} and {high!r}."
        )
    return (
        None if low is None else low + width,
        None if high is None else high - width,
        width,
    )


# -- over a dimension ----------------------------------------------------------------


def softmax(
    x: Tensor, dim: int = -1, *, mask: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    r"""Softmax that has a value for infinite logits and for rows with nothing in them.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Logits.
    dim : int, default=-1
        Dimension that sums to 1.
    mask : Tensor of bool, broadcast to the shape of ``x``, or None, default=None
        Where False, the element takes no part: its weight is 0, whatever it holds, NaN
        included, and no gradient reaches it. A row without any True gives zeros.
    eps : float, default=0.0
        Added to the denominator, in units of the largest term: rows then sum to
        :math:`s / (s + \epsilon)` with :math:`s = \sum_j \exp(x_j - \max x)`.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, for logits smaller in size than a quarter of the largest
        number, which is what larger ones and infinities count as: several infinite
        logits share the row equally, as do all of a row of -inf. Slope 0 there. Within
        4 units in the last place of the largest weight of the row.

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
        # Masked elements may hold NaN, which a product with 0 would keep.
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
    """Logarithm of the softmax, finite for infinite logits.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Logits; counted as in :func:`softmax`.
    dim : int, default=-1
        Dimension whose exponentials sum to 1.

    Returns
    -------
    Tensor of shape (*)
        torch's, to the bit, for logits smaller in size than a quarter of the largest
        number.
    """
    wide, edge = widen(x)
    most = edge.largest / 4
    return narrow(torch.log_softmax(within(wide, -most, most), dim), x.dtype)


def logsumexp(x: Tensor, dim: Dim = -1, *, keepdim: bool = False) -> Tensor:
    """Logarithm of the sum of exponentials, finite for infinite arguments.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Counted as in :func:`softmax`.
    dim : int or tuple of int, default=-1
        Dimensions to sum over.
    keepdim : bool, default=False
        Whether they stay, with length 1.

    Returns
    -------
    Tensor
        torch's, to the bit, for arguments smaller in size than a quarter of the largest
        number.
    """
    wide, edge = widen(x)
    most = edge.largest / 4
    inside = within(wide, -most, most)
    dims = _dims(x, dim)
    # Over nothing it is the logarithm of 0.
    total = within(torch.logsumexp(inside, dims, keepdim=keepdim), -most, most)
    return narrow(total, x.dtype)


def norm(x: Tensor, dim: Dim = None, *, keepdim: bool = False) -> Tensor:
    """Euclidean length, with a finite slope at zero and no overflow of squares.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Elements count up to the largest number over the root of their number.
    dim : int, tuple of int or None, default=None
        Dimensions to sum over; None for all.
    keepdim : bool, default=False
        Whether they stay, with length 1.

    Returns
    -------
    Tensor
        torch's, to the bit, where its squares neither overflow nor vanish; elsewhere
        that of the elements over the largest of them, within 2 units in the last place.
        0 with slope 0 where no element is larger than the root of the smallest normal
        number (1.1e-19 in float32).
    """
    wide, edge = widen(x)
    return narrow(_length(_measurable(wide, dim, edge), dim, keepdim, edge), x.dtype)


def _dims(x: Tensor, dim: Dim) -> tuple[int, ...]:
    """Dimensions that a reduction takes together."""
    if dim is None:
        return tuple(range(x.ndim))
    return (dim,) if isinstance(dim, int) else tuple(dim)


def _count(x: Tensor, dim: Dim) -> int:
    """Number of elements that a reduction takes together."""
    count = 1
    for d in _dims(x, dim):
        count *= x.shape[d]
    return count


def _measurable(x: Tensor, dim: Dim, edge: Edge, times: float = 1.0) -> Tensor:
    """``x``, its elements such that ``times`` its length is finite."""
    most = edge.largest / times / math.sqrt(max(_count(x, dim), 1))
    most *= 1 - 4 * edge.gap
    return within(x, -most, most)


def _sums_in_double(x: Tensor) -> bool:
    """Whether there is a wider dtype to sum in; Apple's GPUs lack float64."""
    return x.dtype is torch.float32 and x.device.type != "mps"


def _length(x: Tensor, dim: Dim, keepdim: bool, edge: Edge) -> Tensor:
    """Euclidean length of numbers whose length is finite."""
    floor = math.sqrt(edge.tiny)
    length: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)
    # No square has overflowed, and none that counts has vanished.
    is_moderate = is_between(
        length, floor / math.sqrt(edge.gap), math.sqrt(edge.largest)
    )
    if is_moderate or not x.numel():
        return length
    # In units of the largest element, which is no variable of it.
    unit = x.detach().abs().amax(_dims(x, dim), keepdim=True)
    is_zero = unit <= floor
    unit = torch.where(is_zero, 1.0, unit)
    # A constant where the vector is zero: without a slope of any order.
    inside = torch.where(is_zero, 1.0, x)
    length = torch.linalg.vector_norm(inside / unit, dim=dim, keepdim=True) * unit
    length = torch.where(is_zero, 0.0, length)
    return length if keepdim else length.squeeze(_dims(x, dim))


def normalize(x: Tensor, dim: Dim = -1, *, eps: float | None = None) -> Tensor:
    """Vectors brought to length 1; a vector of zeros stays one.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.
    dim : int, tuple of int or None, default=-1
        Dimensions that make a vector.
    eps : float or None, default=None
        Length up to which a vector counts as zero. None is that of :func:`norm`, and at
        least the largest number to the power of -1/2, 0.004 in float16: the slope is
        one over the length.

    Returns
    -------
    Tensor of shape (*)
        ``torch.nn.functional.normalize`` within 4 units in the last place for lengths
        above ``eps``. 0 with slope 0 below, where torch divides by its ``eps``.
    """
    wide, edge = widen(x)
    return narrow(_unit(_measurable(wide, dim, edge), dim, eps, edge), x.dtype)


def _unit(x: Tensor, dim: Dim, eps: float | None, edge: Edge) -> Tensor:
    """Vectors whose length is finite, over it."""
    gap = edge.largest**-0.5 if eps is None else eps
    return x / without_zero(_length(x, dim, True, edge), gap)


def var(
    x: Tensor, dim: Dim = None, *, correction: float = 1, keepdim: bool = False
) -> Tensor:
    """Variance that is 0 where there is too little to vary, and does not overflow.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.
    dim : int, tuple of int or None, default=None
        Dimensions to take together; None for all.
    correction : float, default=1
        What is subtracted from their number in the denominator.
    keepdim : bool, default=False
        Whether they stay, with length 1.

    Returns
    -------
    Tensor
        torch's within 4 units in the last place. 0 with slope 0 where there are no more
        elements than ``correction``. Deviations count up to the root of the largest
        number (1.8e19 in float32), so that their squares are finite.
    """
    wide, edge = widen(x)
    most = math.sqrt(edge.largest / max(_count(wide, dim), 1)) / 2
    deviations = within(_centered(wide, dim, edge), -most, most)
    freedom = _count(wide, dim) - correction
    dims = _dims(x, dim)
    total = deviations.square().sum(dims, keepdim=keepdim)
    return narrow(total / freedom if freedom > 0 else total * 0.0, x.dtype)


def std(
    x: Tensor, dim: Dim = None, *, correction: float = 1, keepdim: bool = False
) -> Tensor:
    """Standard deviation with a finite slope where nothing varies.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, infinities included.
    dim : int, tuple of int or None, default=None
        Dimensions to take together; None for all.
    correction : float, default=1
        What is subtracted from their number in the denominator.
    keepdim : bool, default=False
        Whether they stay, with length 1.

    Returns
    -------
    Tensor
        torch's within 4 units in the last place. 0 with slope 0 where all elements are
        equal, or no more than ``correction``.
    """
    wide, edge = widen(x)
    deviations = _centered(wide, dim, edge)
    freedom = _count(wide, dim) - correction
    share = 1 / math.sqrt(freedom) if freedom > 0 else 0.0
    return narrow(_length(deviations, dim, keepdim, edge) * share, x.dtype)


def _centered(x: Tensor, dim: Dim, edge: Edge) -> Tensor:
    """Deviations from the mean, small enough for their length to be finite."""
    # Twice as far apart as from zero, at most.
    inside = _measurable(x, dim, edge, 2.0)
    dims = _dims(x, dim)
    if not _sums_in_double(x):
        # In portions, since the sum of many large numbers overflows.
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
        Any numbers, infinities included.
    dim : int, tuple of int or None, default=-1
        Dimensions to take together; None for all.
    correction : float, default=0
        As in :func:`std`; 0 as in batch and layer normalisation.
    eps : float or None, default=None
        Standard deviation up to which nothing counts as varying. None as in
        :func:`normalize`.

    Returns
    -------
    Tensor of shape (*)
        ``(x - mean) / std``; 0 with slope 0 where nothing varies, a single element
        included.
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
        Broadcast against each other.
    dim : int, default=-1
        Dimension that makes a vector.
    eps : float or None, default=None
        As in :func:`normalize`.

    Returns
    -------
    Tensor of shape (*) without ``dim``
        In [-1, 1] up to rounding. torch's within 4 units in the last place of 1, for
        lengths above ``eps``.
    """
    first, second, dtype, edge = widen_pair(x, y)
    first, second = _measurable(first, dim, edge), _measurable(second, dim, edge)
    return narrow(_cosine(first, second, dim, eps, edge), dtype)


def _cosine(x: Tensor, y: Tensor, dim: int, eps: float | None, edge: Edge) -> Tensor:
    """Cosine of vectors whose length is finite."""
    lengths = [_length(z, dim, False, edge) for z in (x, y)]
    low = max(eps or 0.0, edge.largest**-0.25)
    if all(is_between(length, low, edge.largest**0.25) for length in lengths):
        product: Tensor = torch.linalg.vecdot(x, y, dim=dim)
        return product / (lengths[0] * lengths[1])
    return (_unit(x, dim, eps, edge) * _unit(y, dim, eps, edge)).sum(dim)


def correlation(
    x: Tensor, y: Tensor, dim: int = -1, *, eps: float | None = None
) -> Tensor:
    """Pearson's correlation, 0 where one of the two does not vary.

    Parameters
    ----------
    x, y : Tensor of shape (*), float
        Broadcast against each other.
    dim : int, default=-1
        Dimension of the observations.
    eps : float or None, default=None
        Length of the deviations up to which nothing counts as varying; see
        :func:`normalize`.

    Returns
    -------
    Tensor of shape (*) without ``dim``
        In [-1, 1] up to rounding.
    """
    first, second, dtype, edge = widen_pair(x, y)
    first, second = _centered(first, dim, edge), _centered(second, dim, edge)
    return narrow(_cosine(first, second, dim, eps, edge), dtype)


def pairwise_distance(
    x: Tensor, y: Tensor, dim: int = -1, *, keepdim: bool = False
) -> Tensor:
    """Euclidean distance between rows, with a finite slope where they coincide.

    Parameters
    ----------
    x, y : Tensor of shape (*), float
        Broadcast against each other.
    dim : int, default=-1
        Dimension that makes a vector.
    keepdim : bool, default=False
        Whether it stays, with length 1.

    Returns
    -------
    Tensor of shape (*) without ``dim``
        ``torch.linalg.vector_norm(x - y)`` within 2 units in the last place; 0 with
        slope 0 where the rows are equal. (``torch.nn.functional.pairwise_distance``
        adds 1e-6 to each difference.)
    """
    first, second, dtype, edge = widen_pair(x, y)
    most = edge.largest / 2
    difference = within(first, -most, most) - within(second, -most, most)
    return narrow(norm(difference, dim, keepdim=keepdim), dtype)
