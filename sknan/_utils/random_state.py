"""States of torch's random generators: reading, restoring and temporary seeding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def random_states(device: Any) -> tuple[Tensor, Tensor | None]:
    """Return the states of the generators that a forward pass on a device may use."""
    on_gpu = torch.device(device).type == "cuda"
    gpu_state = torch.cuda.get_rng_state(device) if on_gpu else None
    return torch.get_rng_state(), gpu_state


def set_random_states(states: tuple[Tensor, Tensor | None], device: Any) -> None:
    """Restore the states that :func:`random_states` returned."""
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1], device)


def _gpu_index(device: str) -> int:
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


@contextlib.contextmanager
def resumed(states: tuple[Tensor, Tensor | None], device: str) -> Iterator[None]:
    """Use these generator states inside the block, then restore the caller's."""
    with seeded(0, device):
        set_random_states(states, device)
        yield


@contextlib.contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch inside the block, then restore the caller's generator states."""
    on_gpu = torch.device(device).type == "cuda"
    devices = [_gpu_index(device)] if on_gpu else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield
