"""Roots, powers and quotients; angles and lengths of plane vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sknan.functional._domain import (
    Edge,
    is_between,
    just_above,
    narrow,
    snapped,
    widen,
    widen_pair,
    within,
    without_zero,
)


def sqrt(x: Tensor) -> Tensor:
    """Square root with a finite gradient at zero.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.sqrt`` above the smallest normal number; 0 with
        gradient 0 at and below it. Infinity gives the root of the largest number, with
        gradient 0.

    Notes
    -----
    ``torch.where(x > 0, torch.sqrt(x), 0)`` has the right value at 0 and a gradient of
    NaN: both branches are differentiated, and the branch that is not selected
    contributes ``0 * inf``.

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
    return narrow(snapped(root, just_above(math.sqrt(edge.tiny)), 0.0), x.dtype)


def rsqrt(x: Tensor) -> Tensor:
    """Reciprocal of the square root, with finite value and gradient at zero.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.rsqrt`` above the largest number to the power of -2/3
        (2.1e-26 in float32), below which the gradient overflows. At and below that edge
        the value at the edge, with gradient 0. Infinity gives 0.
    """
    wide, edge = widen(x)
    low = max(edge.tiny, just_above(edge.largest ** (-2 / 3)))
    return narrow(torch.rsqrt(within(wide, low, math.inf)), x.dtype)


def reciprocal(x: Tensor) -> Tensor:
    """Reciprocal that is 0 for zero.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.reciprocal`` for absolute values above the largest
        number to the power of -1/2 (5.4e-20 in float32), below which the gradient
        overflows. 0 with gradient 0 below: the middle between the limits from both
        sides.
    """
    wide, edge = widen(x)
    return narrow(torch.reciprocal(without_zero(wide, edge.largest**-0.5)), x.dtype)


def divide(
    numerator: Tensor, denominator: Tensor, *, eps: float | None = None
) -> Tensor:
    """Quotient that is 0 where the denominator is zero.

    Parameters
    ----------
    numerator : Tensor of shape (*), float
        Any numbers, including infinities.
    denominator : Tensor of shape (*), float
        Any numbers, broadcast against the numerator.
    eps : float or None, default=None
        Largest absolute value of a denominator that counts as zero. None is the largest
        number to the power of -1/4: 2.3e-10 in float32, 0.06 in float16.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to torch's quotient where the denominator does not count as zero
        and the absolute value of the numerator is below the largest number to the power
        of 1/2 (1.8e19 in float32). Larger numerators count as that number, with
        gradient 0. The quotient is 0 with gradient 0 where the denominator counts as
        zero.

    Notes
    -----
    The gradient with respect to the denominator, numerator / denominator**2, is finite
    with these limits and not without them.

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
        Any numbers. Negative ones count as 0 unless the exponent is an integer.
    exponent : float
        Finite exponent.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.pow`` where the power and its gradient are finite.
        Elsewhere the value at that edge, with gradient 0. 0 to a positive power is 0.
        0 to a negative power is 0 if the exponent is an odd integer, else the value at
        the edge. NaN stays NaN, even to the power of 0.

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
        y = snapped(y, just_above(low**exponent), 0.0)
    return narrow(y, x.dtype)


def _range_of_power(p: float, edge: Edge) -> tuple[float, float]:
    """Return the positive range in which ``x**p`` and its derivative are finite."""
    low, high = edge.tiny, edge.largest
    ends = []
    if p != 0:
        ends.append((math.log(edge.largest)) / p)
    if p not in (0, 1):
        # torch computes x**(p - 1) first and then multiplies by p.
        ends.append((math.log(edge.largest) - max(math.log(abs(p)), 0.0)) / (p - 1))
    for end, is_upper in zip(ends, (p > 0, p > 1), strict=False):
        # Rounded into the range: an error in the exponent grows with its size.
        if is_upper:
            high = min(high, math.exp(min(end * (1 - 1e-6), math.log(edge.largest))))
        else:
            low = max(low, math.exp(end * (1 - 1e-6)))
    return low, high


def atanh(x: Tensor) -> Tensor:
    """Inverse hyperbolic tangent that is finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.atanh`` strictly between the numbers next to -1 and 1.
        Elsewhere the value at that edge, 8.7 in float32, with gradient 0.
    """
    wide, edge = widen(x)
    most = 1.0 - edge.gap
    return narrow(torch.atanh(within(wide, -most, most)), x.dtype)


def asin(x: Tensor) -> Tensor:
    """Inverse sine with a finite gradient at -1 and 1.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.asin`` strictly between the numbers next to -1 and 1.
        Elsewhere -pi/2 or pi/2, with gradient 0.
    """
    wide, edge = widen(x)
    inner, rest = _inside_unit_interval(wide, edge)
    return narrow(torch.asin(inner) + rest, x.dtype)


def acos(x: Tensor) -> Tensor:
    """Inverse cosine with a finite gradient at -1 and 1.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.acos`` strictly between the numbers next to -1 and 1.
        Elsewhere pi or 0, with gradient 0.
    """
    wide, edge = widen(x)
    inner, rest = _inside_unit_interval(wide, edge)
    return narrow(torch.acos(inner) - rest, x.dtype)


def _inside_unit_interval(x: Tensor, edge: Edge) -> tuple[Tensor, Tensor | float]:
    """Return ``x`` moved into (-1, 1), and the part of the arcsine that is lost."""
    most = 1.0 - edge.gap
    lacking = math.pi / 2 - math.asin(most)
    inner = within(x, -most, most)
    if inner is x:
        return x, 0.0
    steps = F.softshrink(F.hardtanh(x.detach()), most)  # -gap, 0 or gap
    return inner, steps * (lacking / edge.gap)


def atan2(y: Tensor, x: Tensor) -> Tensor:
    """Angle of the point (x, y), with a finite gradient at the origin.

    Parameters
    ----------
    y, x : Tensor of shape (*), float
        Coordinates, broadcast against each other. Infinities count as the largest
        number.

    Returns
    -------
    Tensor of shape (*)
        Angle in [-pi, pi], within 2 units in the last place of ``torch.atan2``. A point
        counts as the origin if neither coordinate is larger in absolute value than the
        largest number to the power of -1/2. The value there is torch's and the gradient
        is 0.
    """
    upper, lower, dtype, edge = widen_pair(y, x)
    upper = within(upper, -edge.largest, edge.largest)
    lower = within(lower, -edge.largest, edge.largest)
    size = torch.maximum(upper.abs(), lower.abs()).detach()
    if is_between(size, edge.largest**-0.5, edge.largest**0.5 / 2):
        return narrow(torch.atan2(upper, lower), dtype)
    # The angle does not change if both coordinates are divided by the same number. The
    # sum of their squares then neither overflows nor underflows.
    scale = torch.reciprocal(without_zero(size, edge.largest**-0.5))
    at_origin = scale == 0
    # At the origin the angle is that of the signs alone, without a gradient.
    upper = torch.where(at_origin, upper.detach(), upper * scale)
    lower = torch.where(at_origin, lower.detach().sign() + (lower == 0), lower * scale)
    return narrow(torch.atan2(upper, lower), dtype)


def hypot(x: Tensor, y: Tensor) -> Tensor:
    """Length of the vector (x, y), with a finite gradient at the origin.

    Parameters
    ----------
    x, y : Tensor of shape (*), float
        Coordinates, broadcast against each other. Their absolute values count up to 0.7
        times the largest number.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.hypot`` for lengths above the root of twice the
        smallest normal number (1.5e-19 in float32). 0 with gradient 0 for smaller ones.
    """
    first, second, dtype, edge = widen_pair(x, y)
    most = 0.7 * edge.largest
    least = math.sqrt(edge.tiny)
    length = torch.hypot(first, second)
    if is_between(length, just_above(least * math.sqrt(2)), most):
        return narrow(length, dtype)
    first, second = within(first, -most, most), within(second, -most, most)
    is_origin = (first.abs() <= least) & (second.abs() <= least)
    length = torch.hypot(torch.where(is_origin, least, first), second)
    return narrow(snapped(length, just_above(least * math.sqrt(2)), 0.0), dtype)
