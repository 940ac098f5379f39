"""Number of torch threads for a given amount of work.

Threads synchronize after each operation. For an operation of some microseconds this
costs more than a second thread saves. If another program occupies the second core, each
synchronization waits for it, and a step can take ten times as long on two threads as on
one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Each thread beyond the first needs this many floating-point operations per step.
_PER_THREAD = 5e8

_PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm)


class FlopCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the floating-point operations of products and convolutions in the block.

    Attributes
    ----------
    n_flops : int
        Number of operations so far; a multiplication and its addition count as two.
    """

    def __init__(self) -> None:
        # Recent CUDA builds of torch import triton with it, which takes half a second.
        from torch.utils.flop_counter import flop_registry

        super().__init__()  # type: ignore[no-untyped-call]
        self.n_flops = 0
        self._formulas = flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in _PRODUCTS:  # torch's formula takes as long as a small network
            self.n_flops += 2 * result.numel() * args[-1].shape[0]
        elif packet in self._formulas:
            self.n_flops += self._formulas[packet](*args, **kwargs, out_val=result)
        return result


# torch starts a new thread with the number that was set last in any thread. While a
# block has changed the number, this is not the caller's.
_lock = threading.Lock()
_n_blocks = 0
_number_outside = 1
_nested = threading.local()
_is_forked = False


def _after_fork() -> None:
    """Note that torch's other threads do not exist in this process."""
    global _is_forked, _lock, _n_blocks
    _is_forked, _lock, _n_blocks = True, threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def threads_for(n_flops: float, num_threads: int | str = "auto") -> Iterator[None]:
    """Set the number of torch threads inside the block, and restore it afterwards.

    A process that was forked uses one thread: torch would wait for threads that exist
    in its parent only.

    Parameters
    ----------
    n_flops : float
        Number of floating-point operations in one unit of work, such as a training
        step.
    num_threads : int or "auto", default="auto"
        Number of threads. ``"auto"`` chooses it by ``n_flops`` alone, up to the number
        that torch is set to use, so that repeated trainings are bitwise identical.
    """
    global _n_blocks, _number_outside
    if keeps_threads(n_flops, num_threads):
        yield  # Nothing to restore. The rest takes as long as a small layer.
        return
    is_nested = getattr(_nested, "is_set", False)
    with _lock:
        present = before = torch.get_num_threads()
        if not is_nested:
            if not _n_blocks:
                _number_outside = present
            before = _number_outside
            _n_blocks += 1
    try:
        _nested.is_set = True
        wanted = _wanted(n_flops, num_threads, before)
        if wanted != present:
            torch.set_num_threads(wanted)
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
        if not is_nested:
            _nested.is_set = False
            with _lock:
                _n_blocks = max(0, _n_blocks - 1)


def keeps_threads(n_flops: float, num_threads: int | str = "auto") -> bool:
    """Whether :func:`threads_for` would change nothing, which costs less to test."""
    if _n_blocks or getattr(_nested, "is_set", False):
        return False
    present = torch.get_num_threads()
    return _wanted(n_flops, num_threads, present) == present


def _wanted(n_flops: float, num_threads: int | str, most: int) -> int:
    if _is_forked:
        return 1
    if num_threads == "auto":
        return min(most, 1 + int(n_flops / _PER_THREAD))
    return int(num_threads)


def is_forked() -> bool:
    """Whether this process was forked from one that had imported the module."""
    return _is_forked
