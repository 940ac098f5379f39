"""Time two ways of doing the same thing, in turn."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Ratio", "compare", "keep_freed_memory"]


def keep_freed_memory() -> None:
    """Ask glibc not to give freed blocks back to the system.

    Otherwise whether a tensor of some megabytes costs page faults depends on what was
    freed before it, and one run of a pair may pay for both. Without glibc nothing is
    done.
    """
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**30)


class Ratio(NamedTuple):
    """Medians of what two ways took."""

    ours_s: float
    theirs_s: float

    @property
    def value(self) -> float:
        """How many times as long ours takes."""
        return self.ours_s / self.theirs_s


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], *, repeats: int = 31
) -> Ratio:
    """Medians of ``repeats`` runs of each, one after the other in turn.

    Parameters
    ----------
    ours, theirs : callable
        Without arguments; each is called three times before the clock starts.
    repeats : int, default=31
        How often each is timed.

    Returns
    -------
    Ratio
    """
    ways = (ours, theirs)
    for way in ways * 3:
        way()
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats):
        # Who goes first changes, since the first finds the caches of the second.
        order = (0, 1) if turn % 2 else (1, 0)
        for which in order:
            start = time.perf_counter()
            ways[which]()
            times[which].append(time.perf_counter() - start)
    return Ratio(statistics.median(times[0]), statistics.median(times[1]))
