"""Numbers of a step, such as loss and norms, read with one device transfer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def read_numbers(numbers: Sequence[Tensor]) -> list[float]:
    """Transfer scalar tensors to the host, with one wait for all of them."""
    if all(number.is_cpu for number in numbers):
        return [number.item() for number in numbers]
    first = numbers[0]
    stacked = torch.stack([n.reshape(()).to(first) for n in numbers])
    return list(stacked.tolist())
