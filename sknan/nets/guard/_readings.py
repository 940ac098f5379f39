"""Loss, gradient norm and buffer sums of a step, read with one device transfer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Number of entries of a buffer up to which copying is cheaper than a separate kernel.
_SMALL = 4096


def group_small(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group the small tensors of each device; a large tensor is a group of one."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        is_small = tensor.numel() <= _SMALL
        key = tensor.device if is_small else id(tensor)
        groups.setdefault(key, []).append(tensor)
    return list(groups.values())


def total(tensors: list[Tensor]) -> Tensor:
    """Return the sum of all entries, which is non-finite if one of them is."""
    if len(tensors) == 1:
        return tensors[0].sum()
    # One copy of small tensors costs less than a kernel for each.
    return torch.cat([t if t.ndim == 1 else t.reshape(-1) for t in tensors]).sum()


def read_numbers(numbers: Sequence[Tensor]) -> list[float]:
    """Transfer scalar tensors to the host, with one wait for all of them."""
    if all(number.is_cpu for number in numbers):
        return [number.item() for number in numbers]
    first = numbers[0]
    stacked = torch.stack([n.reshape(()).to(first) for n in numbers])
    return list(stacked.tolist())
