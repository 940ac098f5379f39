"""States of random generators: reading, restoring and temporary seeding.

torch's generators belong to the whole process. Blocks that change their states for a
while therefore take turns among threads: a draw of another thread would change what a
block draws, and a restored state would repeat the draws of another block.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

_turn = threading.RLock()


def _forget_turn() -> None:
    """Replace the lock in a forked process, in which no thread would release it."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_turn)


def random_generator(owner: str, random_state: Any) -> np.random.RandomState:
    """Return the generator of a parameter ``random_state``, or refuse its value.

    Parameters
    ----------
    owner : str
        Name of the class or function that has the parameter.
    random_state : object
        Value of the parameter.

    Raises
    ------
    ValueError
        If scikit-learn cannot make a generator of the value.
    """
    try:
        generator: np.random.RandomState = check_random_state(random_state)
    except ValueError:
        raise ValueError(
            f"The 'random_state' parameter of {owner} must be an integer from 0 to "
            f"2**32 - 1, a numpy.random.RandomState or None, got {random_state!r}."
        ) from None
    return generator


def random_states(device: Any) -> tuple[Tensor, Tensor | None]:
    """Return the states of the generators that a forward pass on a device may use."""
    on_gpu = torch.device(device or "cpu").type == "cuda"
    gpu_state = torch.cuda.get_rng_state(device) if on_gpu else None
    return torch.get_rng_state(), gpu_state


def set_random_states(states: tuple[Tensor, Tensor | None], device: Any) -> None:
    """Restore the states that :func:`random_states` returned."""
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1], device)


@contextlib.contextmanager
def kept_random_states(device: Any = "cpu") -> Iterator[None]:
    """Restore the generator states of the device after the block."""
    with _turn:
        states = random_states(device)
        try:
            yield
        finally:
            set_random_states(states, device)


def generator_states() -> tuple[Any, ...]:
    """Return the states of the global generators of Python and numpy, to compare."""
    of_numpy: Any = np.random.get_state()  # noqa: NPY002
    name, keys, *rest = of_numpy
    return random.getstate(), (name, keys.tobytes(), *rest)


def set_generator_states(states: tuple[Any, ...]) -> None:
    """Restore the states that :func:`generator_states` returned."""
    python, (name, keys, *rest) = states
    random.setstate(python)
    of_numpy = (name, np.frombuffer(keys, np.uint32), *rest)
    np.random.set_state(of_numpy)  # noqa: NPY002


@contextlib.contextmanager
def resumed(states: tuple[Tensor, Tensor | None], device: Any) -> Iterator[None]:
    """Use these generator states inside the block, then restore the caller's."""
    with kept_random_states(device):
        set_random_states(states, device)
        yield


@contextlib.contextmanager
def seeded(seed: int, device: Any) -> Iterator[None]:
    """Seed torch inside the block, then restore the caller's generator states."""
    with kept_random_states(device):
        torch.default_generator.manual_seed(seed)
        if torch.device(device or "cpu").type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
