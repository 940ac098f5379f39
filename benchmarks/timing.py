"""Time two ways of doing the same thing, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Ratio", "compare"]


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
