"""Columns of a table, and statistics of one that cannot overflow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK_CELLS", "columns_of", "mean", "median", "midpoint"]

# Cells worked on at once: a few arrays of this many float64 stay in a core's cache.
BLOCK_CELLS = 1 << 15

# A cache line holds eight float64: fetching fewer columns at once reads them again.
_MIN_COLUMNS = 8


def columns_of(X: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The columns of a table, each contiguous, in place or copied in small batches."""
    if X.flags.f_contiguous:
        yield from X.T
        return
    width = max(_MIN_COLUMNS, BLOCK_CELLS // max(1, len(X)))
    for start in range(0, X.shape[1], width):
        yield from np.ascontiguousarray(X[:, start : start + width].T)


def midpoint(low: float, high: float) -> float:
    """Mean of two finite numbers: numpy's, and finite where the sum is not."""
    total = low + high  # Python's floats overflow without a warning
    return total / 2 if math.isfinite(total) else low / 2 + high / 2


def mean(values: NDArray[Any], n_zeros: int) -> float:
    """Mean of finite values and some zeros, in float64, within their range."""
    size = values.size + n_zeros
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    if n_zeros:
        low, high = min(low, 0.0), max(high, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(values.sum(dtype=np.float64)) / size
    if not math.isfinite(mean):
        # Halved until even the sum of as many largest values is finite.
        exponent = size.bit_length()
        mean = float(np.ldexp(values, -exponent).sum()) / size
        # Rounding may carry the mean of equal values past them, and past the largest.
        mean = min(max(mean, math.ldexp(low, -exponent)), math.ldexp(high, -exponent))
        mean = math.ldexp(mean, exponent)
    return min(max(mean, low), high)


def median(values: NDArray[Any], n_zeros: int) -> float:
    """Median of finite values, which are reordered, and some zeros."""
    n_below = int((values < 0).sum()) if n_zeros else 0

    def place(rank: int) -> int | None:
        """Where in the sorted values the one of this rank stands; None for a zero."""
        if not n_zeros or rank < n_below:
            return rank
        return None if rank < n_below + n_zeros else rank - n_zeros

    last = values.size + n_zeros - 1
    places = [place(last // 2), place((last + 1) // 2)]
    stored = [at for at in places if at is not None]
    if stored:
        values.partition(stored)
    low, high = (0.0 if at is None else float(values[at]) for at in places)
    return midpoint(low, high)
