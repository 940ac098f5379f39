"""Restriction of tensors to a domain with finite function values and gradients.

The functions of this package compute in a dtype that is wide enough (``widen``,
``narrow``), limit their arguments (``within``, ``without_zero``), and set an exact
value where the limited argument just misses it (``snapped``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Edge(NamedTuple):
    """Limits of a dtype."""

    largest: float
    # Smaller numbers count as zero. This is the smallest normal number, whose
    # reciprocal is finite. float16 is computed in float32, where all of its subnormal
    # numbers are normal.
    tiny: float
    # Distance from 1 to the next smaller number.
    gap: float


EDGES = {
    dtype: Edge(
        torch.finfo(dtype).max, torch.finfo(dtype).tiny, torch.finfo(dtype).eps / 2
    )
    for dtype in (torch.bfloat16, torch.float32, torch.float64)
}
EDGES[torch.float16] = Edge(65504.0, 2.0**-25, 2.0**-11)

_NARROW = (torch.float16, torch.bfloat16)


def widen(x: Tensor) -> tuple[Tensor, Edge]:
    """Return the tensor in its computation dtype, and the limits of its own dtype."""
    if not x.is_floating_point():
        x = x.to(torch.get_default_dtype())
    edge = EDGES[x.dtype]
    return (x.float() if x.dtype in _NARROW else x), edge


def widen_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, torch.dtype, Edge]:
    """Return two tensors broadcast and widened, their common dtype and its limits."""
    shape = torch.broadcast_shapes(x.shape, y.shape)  # type: ignore[no-untyped-call]
    dtype = torch.promote_types(x.dtype, y.dtype)
    first, edge = widen(x.to(dtype).expand(shape))
    second, _ = widen(y.to(dtype).expand(shape))
    return first, second, dtype, edge


def narrow(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a result in the dtype of the argument, limited to its range."""
    if dtype not in _NARROW:
        return y
    largest = EDGES[dtype].largest
    return F.hardtanh(y, -largest, largest).to(dtype)


def can_read_values(x: Tensor) -> bool:
    """Whether Python code may branch on the values of a tensor.

    It may not while the code is compiled or traced. On a GPU it should not, because
    reading a value waits for all queued kernels.
    """
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return not is_traced and x.device.type == "cpu"


def is_between(x: Tensor, low: float, high: float) -> bool:
    """Whether every element is known to lie strictly between the bounds.

    False if an element is NaN, or if the values cannot be read, as under ``vmap``.
    """
    if not can_read_values(x):
        return False
    if not x.numel():
        return True
    x = x.detach()
    try:
        return (low == -math.inf or float(x.amin()) > low) and (
            high == math.inf or float(x.amax()) < high
        )
    except RuntimeError:  # raised by vmap and by fake tensors
        return False


def within(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp to two bounds, with gradient 0 at and beyond them; NaN stays NaN."""
    return x if is_between(x, low, high) else F.hardtanh(x, low, high)


def snapped(y: Tensor, at: float, to: float) -> Tensor:
    """Replace elements not above ``at`` by ``to``, with gradient 0; NaN stays NaN."""
    return y if is_between(y, at, math.inf) else F.threshold(y, at, to)


def without_zero(x: Tensor, gap: float) -> Tensor:
    """Replace elements of absolute value up to ``gap`` by infinity, with gradient 0."""
    size = x.detach().abs()
    return (
        x if is_between(size, gap, math.inf) else torch.where(size <= gap, math.inf, x)
    )


def just_above(value: float) -> float:
    """Return a slightly larger number that a rounded ``value`` does not exceed."""
    return value * (1 + 1e-6)
