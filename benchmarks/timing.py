"""Time two ways of doing the same thing, in turn."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["Ratio", "compare", "in_turn", "keep_freed_memory", "ratio_in_turn"]


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
    times = in_turn([ours, theirs], repeats=repeats)
    return Ratio(statistics.median(times[0]), statistics.median(times[1]))


def in_turn(
    ways: Sequence[Callable[[], object]],
    *,
    repeats: int = 31,
    n_warm_ups: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of ``repeats`` runs of each way, one after the other in turn.

    Parameters
    ----------
    ways : sequence of callable
        Without arguments.
    repeats : int, default=31
        How often each is timed.
    n_warm_ups : int, default=3
        How often each is called before the clock starts.
    clock : callable, default=time.perf_counter
        Seconds; ``time.process_time`` where a percent counts and others compute too.

    Returns
    -------
    list of list of float
        The times of each way, those of one turn at the same place.
    """
    for way in [*ways] * n_warm_ups:
        way()
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats):
        # Who goes first changes, since the first finds the caches of the last.
        for place in range(len(ways)):
            which = (
                (place + turn) % len(ways) if turn % 2 else (turn - place) % len(ways)
            )
            start = clock()
            ways[which]()
            times[which].append(clock() - start)
    return times


def ratio_in_turn(ours: list[float], theirs: list[float]) -> float:
    """Median over the turns of how many times as long ours took in each.

    Less at the mercy of a machine that is shared than a ratio of medians: what slows
    one run down slows down its neighbour too.
    """
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
