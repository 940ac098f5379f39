"""Inverse trigonometric functions, angle and length of plane vectors."""

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
