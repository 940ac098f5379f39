"""Columns of a table, and statistics of one that cannot overflow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sknan.preprocessing._kernels.blocks import KnownMask, Workspace, blocks

__all__ = ["columns_of", "count_known", "mean", "means", "median", "midpoint"]

# Cells copied at once from a table in rows, and columns at least: a cache line holds
# eight float64, and fetching fewer reads it again for the others.
_MAX_CELLS = 1 << 15
_MIN_COLUMNS = 8

# Rows looked at first for values on either side of a mean.
_FEW_ROWS = 1 << 10


def columns_of(X: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The columns of a table, each contiguous, in place or copied in small batches."""
    if X.flags.f_contiguous:
        yield from X.T
        return
    width = max(_MIN_COLUMNS, _MAX_CELLS // max(1, len(X)))
    for start in range(0, X.shape[1], width):
        yield from np.ascontiguousarray(X[:, start : start + width].T)


def midpoint(low: float, high: float) -> float:
    """Mean of two finite numbers: numpy's, and finite where the sum is not."""
    total = low + high  # Python's floats overflow without a warning
    return total / 2 if math.isfinite(total) else low / 2 + high / 2


def count_known(X: NDArray[Any], known: KnownMask, *, enough: int) -> NDArray[np.int64]:
    """How many cells of each column are known; no more are sought once all have enough.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_columns), float
        The table.
    known : KnownMask
        Which cells count.
    enough : int
        ``len(X)`` for the full counts.

    Returns
    -------
    ndarray of shape (n_columns,)
        At least ``enough``, or the full count.
    """
    n_known = np.zeros(X.shape[1], dtype=np.int64)
    scratch = Workspace()
    for block in blocks(X):
        if n_known.min() >= enough:
            break
        if n_known[block.columns].min() < enough:
            mask = known(block.cells, scratch.like(block.cells, "known", np.bool_))
            n_known[block.columns] += block.count_true(mask)
    return n_known


def means(
    X: NDArray[Any], known: KnownMask
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean and number of the known values of each column; NaN where there are none.

    Summed in float64: values within a block one by one along the long rows, and the
    sums of the blocks with the rounding errors carried along, so that the error does
    not grow with the number of blocks.
    """
    n_known = np.zeros(X.shape[1], dtype=np.int64)
    total, lost = np.zeros((2, X.shape[1]))
    scratch = Workspace()
    integer = f"i{X.dtype.itemsize}"
    # What overflows is found below, by its mean.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for block in blocks(X):
            mask = known(block.cells, scratch.like(block.cells, "known", np.bool_))
            n_known[block.columns] += block.count_true(mask)
            # A copy by mask would decide cell by cell: all bits times 0 or 1 instead.
            bits = scratch.like(block.cells, "bits", integer)
            np.negative(mask.view(np.int8), out=bits)
            np.bitwise_and(bits, block.cells.view(integer), out=bits)
            kept = bits.view(X.dtype)
            part = block.per_column(np.add.reduce(kept, axis=0, dtype=np.float64))
            before = total[block.columns]
            after = before + part
            shift = after - before
            lost[block.columns] += (before - (after - shift)) + (part - shift)
            total[block.columns] = after
        found = (total + lost) / n_known
    few = X[:: max(1, len(X) // _FEW_ROWS)]
    few = np.where(known(few), few, np.nan)
    is_between = (np.fmin.reduce(few) <= found) & (found <= np.fmax.reduce(few))
    for j in np.flatnonzero(~is_between & (n_known > 0)):
        # The sum overflowed, or rounding may have carried the mean past all values.
        column = np.ascontiguousarray(X[:, j])
        found[j] = mean(column[known(column)], 0)
    found[n_known == 0] = math.nan
    return found, n_known


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
