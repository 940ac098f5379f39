"""As many of torch's threads as a piece of work is worth.

Threads meet after each operation. Where that takes microseconds it costs more than the
second thread saves, and where another program holds the second core, each meeting waits
until the system gives it back: a step can take ten times as long on two threads as on
one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["FlopCount", "threads_for"]

# Floating-point operations in one step from which on each further thread gets as many.
_PER_THREAD = 5e8


_PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm)


class FlopCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the floating-point operations of products and convolutions in the block.

    Attributes
    ----------
    n_flops : int
        Two for each multiplication with its addition.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in _PRODUCTS:  # torch's way of counting takes as long as a network
            self.n_flops += 2 * result.numel() * args[-1].shape[0]
        elif packet in flop_registry:
            count = flop_registry[packet]
            self.n_flops += count(*args, **kwargs, out_val=result)
        return result


@contextlib.contextmanager
def threads_for(n_flops: float, num_threads: int | str = "auto") -> Iterator[None]:
    """Let torch use so many threads inside the block, and as many as before after it.

    Parameters
    ----------
    n_flops : float
        Floating-point operations between two things that cannot be shared out, such as
        those of a training step.
    num_threads : int or "auto", default="auto"
        ``"auto"`` is as many as the work is worth, and no more than torch is set to
        use. It follows from the size of the work alone, so that a training gives the
        same bits whenever it is repeated.
    """
    before = torch.get_num_threads()
    wanted = (
        min(before, 1 + int(n_flops / _PER_THREAD))
        if num_threads == "auto"
        else int(num_threads)
    )
    if wanted == before:
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
