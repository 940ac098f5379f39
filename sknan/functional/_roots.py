"""Roots, powers and quotients; angles and lengths of plane vectors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sknan.functional._domain import (
    Edge,
    apart,
    edge_of,
    elementwise,
    is_between,
    narrow,
    repaired,
    scale_for,
    widen,
    widen_pair,
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
        Bitwise equal to ``torch.sqrt`` for positive numbers; 0 with gradient 0 at and
        below zero. Infinity gives the root of the largest number, with gradient 0.

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
    edge = edge_of(x)
    return elementwise(
        torch.sqrt,
        lambda x: 0.5 / torch.sqrt(x),
        x,
        sound=(edge.tiny, edge.largest),
        domain=(0.0, edge.largest),
    )


def rsqrt(x: Tensor) -> Tensor:
    """Reciprocal of the square root, with finite value and gradient at zero.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.rsqrt`` for positive numbers. The gradient overflows
        below 1.3e-26 in float32, where it is 0. Zero and negative numbers count as the
        smallest number. Infinity gives 0.
    """
    edge = edge_of(x)
    return elementwise(
        torch.rsqrt,
        lambda x: 0.5 * torch.rsqrt(x).pow(3),
        x,
        sound=(edge.largest**-0.5, math.inf),
        domain=(edge.smallest, math.inf),
        values=(0.0, edge.smallest**-0.5),
    )


def reciprocal(x: Tensor) -> Tensor:
    """Reciprocal that is 0 for zero.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.reciprocal`` except at zero, where it is 0 with
        gradient 0: the middle between the limits from both sides. The gradient
        overflows below 5.4e-20 in float32, where it is 0.
    """
    wide, edge = widen(x)
    size = wide.detach().abs()
    if is_between(size, edge.largest**-0.5, math.inf):
        return narrow(torch.reciprocal(wide), x.dtype)

    def repair(x: Tensor) -> Tensor:
        nearest = torch.where(x == 0, math.inf, x.detach())
        return repaired(torch.reciprocal, lambda x: [1.0 / x / x], [x], [nearest])

    is_sound = size > edge.largest**-0.5
    return narrow(apart(torch.reciprocal, repair, [wide], is_sound), x.dtype)


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
        Largest absolute value of a denominator that counts as zero; None is 0.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to torch's quotient where the denominator does not count as zero;
        0 with gradient 0 where it does. A quotient that overflows is the largest
        number, with gradient 0.

    Notes
    -----
    The derivative with respect to the denominator, numerator / denominator**2, may
    overflow where the quotient does not. It is 0 there.

    Examples
    --------
    >>> import torch
    >>> from sknan.functional import divide
    >>> divide(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([4.0, 0.0, 0.0]))
    tensor([0.2500, 0.0000, 0.0000])
    """
    upper, lower, dtype, edge = widen_pair(numerator, denominator)
    gap = 0.0 if eps is None else eps
    size = lower.detach().abs()
    most = edge.largest**0.25
    least = max(gap, 1 / most)
    if is_between(size, least, most) and is_between(upper, -most, most):
        return narrow(upper / lower, dtype)

    def repair(x: Tensor, y: Tensor) -> Tensor:
        nearest = [
            x.detach().clamp(-edge.largest, edge.largest),
            torch.where(y.detach().abs() <= gap, math.inf, y.detach()),
        ]
        return repaired(
            torch.divide, lambda x, y: (1.0 / y, x / y / y), [x, y], nearest
        )

    is_sound = (size > least) & (size < most) & (upper.detach().abs() < most)
    return narrow(apart(torch.divide, repair, [upper, lower], is_sound), dtype)


def power(x: Tensor, exponent: Tensor | float) -> Tensor:
    """Power that is finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers. Negative ones count as 0 unless the exponent is an integer.
    exponent : float or Tensor
        Finite exponent, or exponents that are broadcast against ``x``.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.pow`` where the power is finite. A power that overflows
        is the largest number, with gradient 0. 0 to a negative power is 0 if the
        exponent is an odd integer, else the power of the smallest number. NaN stays
        NaN, even to the power of 0.

    Raises
    ------
    ValueError
        If the exponent is a number that is not finite.

    Examples
    --------
    >>> import torch
    >>> from sknan.functional import power
    >>> power(torch.tensor([-8.0, 0.0, 4.0]), 0.5)
    tensor([0., 0., 2.])
    >>> power(torch.tensor(2.0), torch.tensor([1.0, 3.0]))
    tensor([2., 8.])
    """
    if not isinstance(exponent, Tensor):
        return _fixed_power(x, exponent)
    base, p, dtype, edge = widen_pair(x, exponent)
    nearest = [_nearest_base(base.detach(), p.detach(), edge), p.detach()]
    return narrow(repaired(torch.pow, _slopes_of_power, [base, p], nearest), dtype)


def _fixed_power(x: Tensor, p: float) -> Tensor:
    if not math.isfinite(p):
        raise ValueError(f"exponent must be finite, got {p!r}.")
    wide, edge = widen(x)
    # Both x**p and p * x**(p - 1) are finite up to this number.
    most = math.exp((math.log(edge.largest) - math.log1p(abs(p))) / (abs(p) + 1))
    low = -most if float(p).is_integer() else 0.0
    size = wide.detach().abs()
    if is_between(size, 1 / most, most) and is_between(wide, low, most):
        return narrow(torch.pow(wide, p), x.dtype)

    def repair(x: Tensor) -> Tensor:
        exponents = torch.full_like(x, p)
        return repaired(
            lambda x: torch.pow(x, p),
            lambda x: _slopes_of_power(x, exponents)[:1],
            [x],
            [_nearest_base(x.detach(), exponents, edge)],
        )

    is_sound = (size > 1 / most) & (size < most) & (wide.detach() > low)
    return narrow(apart(lambda x: torch.pow(x, p), repair, [wide], is_sound), x.dtype)


def _nearest_base(x: Tensor, p: Tensor, edge: Edge) -> Tensor:
    """Return the numbers nearest to ``x`` whose power is defined."""
    is_integer = p == p.trunc()
    # 0 is the middle between the limits of an odd negative power from both sides.
    is_odd_pole = (x == 0) & (p < 0) & (p.remainder(2.0) == 1)
    x = torch.where(is_odd_pole, math.inf, x)
    least = torch.where(p < 0, edge.smallest, 0.0).to(x.dtype)
    return torch.where(is_integer, x, torch.maximum(x, least))


def _slopes_of_power(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    by_base = torch.where(p == 0, 0.0, p * torch.pow(x, p - 1.0))
    by_exponent = torch.where((x == 0) & (p >= 0), 0.0, torch.pow(x, p) * torch.log(x))
    return by_base, by_exponent


def atanh(x: Tensor) -> Tensor:
    """Inverse hyperbolic tangent that is finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.atanh`` between -1 and 1. Elsewhere the value of the
        nearest number between, 8.7 in float32, with gradient 0.
    """
    most = 1.0 - edge_of(x).gap
    return elementwise(
        torch.atanh,
        lambda x: torch.reciprocal(1.0 - x.square()),
        x,
        sound=(-most, most),
        domain=(-most, most),
    )


def asin(x: Tensor) -> Tensor:
    """Inverse sine with a finite gradient at -1 and 1.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.asin`` between -1 and 1. Elsewhere -pi/2 or pi/2, with
        gradient 0.
    """
    return _arc(torch.asin, x)


def acos(x: Tensor) -> Tensor:
    """Inverse cosine with a finite gradient at -1 and 1.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.acos`` between -1 and 1. Elsewhere pi or 0, with
        gradient 0.
    """
    return _arc(torch.acos, x)


def _arc(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Inverse sine or cosine."""
    return elementwise(
        function,
        lambda x: torch.rsqrt(1.0 - x.square()),
        x,
        sound=(-1.0, 1.0),
        domain=(-1.0, 1.0),
    )


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
        Angle in [-pi, pi], within 2 units in the last place of ``torch.atan2``. The
        gradient is that of exact squares, which neither overflow nor underflow, and 0
        at the origin.
    """
    upper, lower, dtype, edge = widen_pair(y, x)
    pair = [upper, lower]
    scale = scale_for(_largest_size(*pair))
    if scale is None:
        return narrow(torch.atan2(upper, lower), dtype)

    def repair(y: Tensor, x: Tensor) -> Tensor:
        nearest = [z.detach().clamp(-edge.largest, edge.largest) for z in (y, x)]
        scale = scale_for(_largest_size(*nearest))
        factor = torch.ones_like(nearest[0]) if scale is None else scale

        def derivatives(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            square = (y * factor).square() + (x * factor).square()
            return x * factor / square * factor, y * factor / square * factor

        # The angle does not change if both are multiplied by the same number.
        return repaired(
            lambda y, x: torch.atan2(y * factor, x * factor),
            derivatives,
            [y, x],
            nearest,
        )

    return narrow(apart(torch.atan2, repair, pair, scale == 1), dtype)


def _largest_size(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.detach().abs(), y.detach().abs())


def hypot(x: Tensor, y: Tensor) -> Tensor:
    """Length of the vector (x, y), with a finite gradient at the origin.

    Parameters
    ----------
    x, y : Tensor of shape (*), float
        Coordinates, broadcast against each other. Infinities count as the largest
        number.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.hypot``; 0 with gradient 0 at the origin. A length that
        overflows is the largest number, with gradient 0.
    """
    first, second, dtype, edge = widen_pair(x, y)
    length = torch.hypot(first, second)
    if is_between(length, edge.tiny, edge.largest):
        return narrow(length, dtype)

    def derivatives(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        length = torch.hypot(x, y)
        return x / length, y / length

    def repair(x: Tensor, y: Tensor) -> Tensor:
        nearest = [z.detach().clamp(-edge.largest, edge.largest) for z in (x, y)]
        return repaired(torch.hypot, derivatives, [x, y], nearest)

    length = length.detach()
    is_sound = (length > edge.tiny) & (length < edge.largest)
    return narrow(apart(torch.hypot, repair, [first, second], is_sound), dtype)
