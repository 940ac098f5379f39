"""States of torch's random generators: read, put back, seeded for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["random_states", "resumed", "seeded", "set_random_states"]


def random_states(device: Any) -> tuple[Tensor, Tensor | None]:
    """States of torch's generators that a forward pass on a device may use."""
    on_gpu = torch.device(device).type == "cuda"
    return (
        torch.get_rng_state(),
        torch.cuda.get_rng_state(device) if on_gpu else None,
    )


def set_random_states(states: tuple[Tensor, Tensor | None], device: Any) -> None:
    """Put back what :func:`random_states` has returned."""
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1], device)


def _gpu_index(device: str) -> int:
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


@contextlib.contextmanager
def resumed(states: tuple[Tensor, Tensor | None], device: str) -> Iterator[None]:
    """Go on inside the block from where torch's generators were left."""
    with seeded(0, device):
        torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state(states[1], device)
        yield


@contextlib.contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch inside the block, and give the caller's generators back after it."""
    on_gpu = torch.device(device).type == "cuda"
    devices = [_gpu_index(device)] if on_gpu else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield
