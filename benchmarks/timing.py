"""Timing of several implementations of one task, in turn."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

__all__ = [
    "Ratio",
    "compare",
    "in_a_process",
    "in_turn",
    "keep_freed_memory",
    "ratio_in_turn",
]


def keep_freed_memory() -> None:
    """Tell glibc not to return freed memory blocks to the operating system.

    Otherwise, the page faults of a tensor of some megabytes depend on the blocks that
    were freed before, and one run of a pair may pay for both. Without glibc, the
    function does nothing.
    """
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**30)


class Ratio(NamedTuple):
    """Median times of an implementation of sknan and of a peer, in seconds."""

    ours_s: float
    peer_s: float

    @property
    def value(self) -> float:
        """Time of sknan divided by the time of the peer."""
        return self.ours_s / self.peer_s


def compare(
    function: Callable[[], object], peer: Callable[[], object], *, repeats: int = 31
) -> Ratio:
    """Return the median times of a function and a peer, which are timed in turn.

    Parameters
    ----------
    function, peer : callable
        Functions without arguments. Each is called three times before timing starts.
    repeats : int, default=31
        Number of timed calls of each.

    Returns
    -------
    Ratio
    """
    times = in_turn([function, peer], repeats=repeats)
    return Ratio(statistics.median(times[0]), statistics.median(times[1]))


def in_turn(
    functions: Sequence[Callable[[], object]],
    *,
    repeats: int = 31,
    n_warm_ups: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Return the times of ``repeats`` calls of each function, called in turn.

    Parameters
    ----------
    functions : sequence of callable
        Functions without arguments.
    repeats : int, default=31
        Number of timed calls of each function.
    n_warm_ups : int, default=3
        Number of calls of each function before timing starts.
    clock : callable, default=time.perf_counter
        Clock that returns seconds. ``time.process_time`` is more exact on a machine
        that other processes use.

    Returns
    -------
    list of list of float
        Times of each function in seconds, in the order of the turns.
    """
    for function in [*functions] * n_warm_ups:
        function()
    times: list[list[float]] = [[] for _ in functions]
    n = len(functions)
    for turn in range(repeats):
        # The order changes from turn to turn, because each function finds the caches
        # that the previous one has filled.
        for position in range(n):
            i = (position + turn) % n if turn % 2 else (turn - position) % n
            start = clock()
            functions[i]()
            times[i].append(clock() - start)
    return times


def ratio_in_turn(times: list[float], peer_times: list[float]) -> float:
    """Return the median over the turns of the ratio of two times.

    On a shared machine this is more exact than a ratio of medians, because a
    disturbance affects both runs of a turn.
    """
    return statistics.median(a / b for a, b in zip(times, peer_times, strict=True))


def in_a_process(module: str, function: str, *arguments: Any) -> dict[str, float]:
    """Run a function of a module in a new process on one thread."""
    code = (
        f"import json, torch; import {module} as module; "
        "torch.set_num_threads(1); "
        f"print(json.dumps(module.{function}(*{arguments!r})))"
    )
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    result: dict[str, float] = json.loads(finished.stdout)
    return result
