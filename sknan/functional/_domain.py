"""How a tensor is kept inside the domain of a function: the mechanism of `functional`.

Computed in a dtype that is wide enough (`widen`, `narrow`), inside bounds (`within`),
with an exact limit where there is one (`snapped`, `without_zero`).

Ground floor: imports nothing from sknan.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "EDGES",
    "Edge",
    "above",
    "can_look",
    "is_between",
    "narrow",
    "snapped",
    "widen",
    "widen_pair",
    "within",
    "without_zero",
]


class Edge(NamedTuple):
    """Where a dtype ends."""

    largest: float
    # Below it a number counts as zero: the smallest normal one, whose reciprocal is
    # finite. float16 is computed in float32, where all of its subnormals are normal.
    tiny: float
    # Distance from 1 to the next number below.
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
    """The tensor in the dtype that is computed in, and where its own dtype ends."""
    if not x.is_floating_point():
        x = x.to(torch.get_default_dtype())
    edge = EDGES[x.dtype]
    return (x.float() if x.dtype in _NARROW else x), edge


def widen_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, torch.dtype, Edge]:
    """Both in shape and dtype of their sum, widened; that dtype; where it ends."""
    shape = torch.broadcast_shapes(x.shape, y.shape)  # type: ignore[no-untyped-call]
    dtype = torch.promote_types(x.dtype, y.dtype)
    first, edge = widen(x.to(dtype).expand(shape))
    second, _ = widen(y.to(dtype).expand(shape))
    return first, second, dtype, edge


def narrow(y: Tensor, dtype: torch.dtype) -> Tensor:
    """The result in the dtype of the argument, within its range."""
    if dtype not in _NARROW:
        return y
    largest = EDGES[dtype].largest
    return F.hardtanh(y, -largest, largest).to(dtype)


def can_look(x: Tensor) -> bool:
    """Whether the program may depend on the numbers in a tensor.

    Not while compiling or tracing, and better not on a GPU, which would have to finish
    its queue first.
    """
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return not is_traced and x.device.type == "cpu"


def is_between(x: Tensor, low: float, high: float) -> bool:
    """Whether every element is seen to be between the bounds, NaN being nowhere.

    False where one cannot look, under ``vmap`` too.
    """
    if not can_look(x):
        return False
    if not x.numel():
        return True
    x = x.detach()
    try:
        return (low == -math.inf or float(x.amin()) > low) and (
            high == math.inf or float(x.amax()) < high
        )
    except RuntimeError:  # what vmap and fake tensors answer to a look at one number
        return False


def within(x: Tensor, low: float, high: float) -> Tensor:
    """``x`` between two bounds; slope 0 at and beyond them; NaN stays."""
    return x if is_between(x, low, high) else F.hardtanh(x, low, high)


def snapped(y: Tensor, at: float, to: float) -> Tensor:
    """``y``, and ``to`` with slope 0 wherever ``y`` is not above ``at``; NaN stays."""
    return y if is_between(y, at, math.inf) else F.threshold(y, at, to)


def without_zero(x: Tensor, gap: float) -> Tensor:
    """``x``, infinite and with slope 0 where it is no larger than ``gap`` in size."""
    size = x.detach().abs()
    return (
        x if is_between(size, gap, math.inf) else torch.where(size <= gap, math.inf, x)
    )


def above(value: float) -> float:
    """A number just above, so that rounding does not lift the value past it."""
    return value * (1 + 1e-6)
