"""Dropout whose masks cost a fraction of those of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DrawMask = Callable[[Tensor, float, torch.Generator | None], None]

# Probabilities that multiples of 1/65536 represent well, and whose scale is small in
# float16.
_LEAST, _MOST = 2**-10, 1.0 - 2**-10


class Dropout(nn.Dropout):
    """Dropout that draws 16 random bits for each unit.

    The masks of :class:`torch.nn.Dropout` are drawn on the CPU from 53 bits for each
    unit, which took 6 times as long, and 15 to 20 % of the training of the default
    ensembles. The probability is rounded to a multiple of 1/65536. Probabilities next
    to 0 and 1, other devices, compilers and transforms have the masks of torch.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Set units to zero at random in training mode, and scale the others."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.dropout(input, self.p, self.training)
        if not self.training or self.p == 0.0:
            return input
        if not _LEAST <= self.p <= _MOST or not _is_plain(input):
            return F.dropout(input, self.p)
        mask = torch.empty(input.shape, dtype=input.dtype)
        draw_from_bits(mask, self.p, None)
        return input * mask


def _is_plain(x: Tensor) -> bool:
    """Whether operations on a tensor run now, on the CPU, and as they are written."""
    return (
        x.is_cpu
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


# Layers of dropout whose masks a stack draws.
DROPOUTS = (nn.Dropout, Dropout)


def is_dropout(value: object) -> TypeGuard[nn.Dropout]:
    """Whether a value is a layer of dropout whose masks a stack draws."""
    return type(value) in DROPOUTS


def draw_function_of(layer: nn.Module) -> DrawMask:
    """Return the function that draws the masks of a layer as the layer does."""
    return draw_from_bits if type(layer) is Dropout else draw_as_torch


def draw_from_bits(mask: Tensor, p: float, generator: torch.Generator | None) -> None:
    """Draw the mask of :class:`Dropout` into contiguous memory.

    Entries that are not zero have such a value that the mean is 1. None as the
    generator stands for that of torch.
    """
    if not _LEAST <= p <= _MOST:
        draw_as_torch(mask, p, generator)
        return
    n = mask.numel()
    words = torch.empty(-(-n // 4), dtype=torch.int64)
    words.random_(-(2**63), None, generator=generator)
    n_zeros = round(p * 2**16)
    numbers = words.view(torch.int16)[:n].view(mask.shape)
    torch.ge(numbers, n_zeros - 2**15, out=mask)
    mask.mul_(2**16 / (2**16 - n_zeros))


def draw_as_torch(mask: Tensor, p: float, generator: torch.Generator | None) -> None:
    """Draw the mask of :class:`torch.nn.Dropout`; see :func:`draw_from_bits`."""
    mask.bernoulli_(1.0 - p, generator=generator).div_(1.0 - p)
