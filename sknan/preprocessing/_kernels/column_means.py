"""Means and medians of columns that cannot overflow, also chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sknan._utils.threads import threads_for
from sknan.preprocessing._kernels.blocks import (
    Block,
    KnownMask,
    blocks,
    zero_outside,
)

# Number of cells that are copied at once from a table in C order, and minimum number of
# columns. A cache line has room for eight float64: copying fewer columns at once would
# read it again for the others.
_MAX_CELLS = 1 << 15
_MIN_COLUMNS = 8

# Number of rows in the sample that is searched for values on both sides of a mean.
_FEW_ROWS = 1 << 10


def columns_of(X: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Iterate over the columns of a table as contiguous views or copies."""
    if X.flags.f_contiguous:
        yield from X.T
        return
    width = max(_MIN_COLUMNS, _MAX_CELLS // max(1, len(X)))
    for start in range(0, X.shape[1], width):
        yield from np.ascontiguousarray(X[:, start : start + width].T)


def midpoint(low: float, high: float) -> float:
    """Return the mean of two finite numbers, finite even if their sum is not."""
    total = low + high  # Python's floats overflow without a warning
    return total / 2 if math.isfinite(total) else low / 2 + high / 2


def means(
    X: NDArray[Any], known: KnownMask
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return mean and number of the known values of each column.

    The sums are computed in float64. The sums of the blocks are added by compensated
    summation, so that the error does not grow with the number of blocks. The mean of a
    column without known values is NaN.
    """
    n_known = np.zeros(X.shape[1], dtype=np.int64)
    total, compensation = np.zeros((2, X.shape[1]))
    # Sums that overflow are recognized below by their mean.
    unstable = np.errstate(over="ignore", invalid="ignore", divide="ignore")
    with unstable, threads_for(0.0, 1):
        for block in blocks(X):
            mask = known(block.cells)
            n_known[block.columns] += block.count_true(mask)
            part = _sums(block, mask, known)
            before = total[block.columns]
            after = before + part
            shift = after - before
            error = (before - (after - shift)) + (part - shift)
            compensation[block.columns] += error
            total[block.columns] = after
        found = (total + compensation) / n_known
    few = X[:: max(1, len(X) // _FEW_ROWS)]
    few = np.where(known(few), few, np.nan)
    is_between = (np.fmin.reduce(few) <= found) & (found <= np.fmax.reduce(few))
    for j in np.flatnonzero(~is_between & (n_known > 0)):
        # The sum overflowed, or rounding may have put the mean outside the range of
        # the values.
        column = np.ascontiguousarray(X[:, j])
        found[j] = mean(column[known(column)], 0)
    found[n_known == 0] = math.nan
    return found, n_known


def _sums(
    block: Block, mask: NDArray[np.bool_], known: KnownMask
) -> NDArray[np.float64]:
    """Return the sum of the known values of each column of a block, in float64."""
    if known.is_isfinite(block.cells.dtype):
        # torch warns of arrays that must not be written.
        cells = torch.from_numpy(block.parts(np.require(block.cells, requirements="W")))
        sums = block.by_column(torch.nansum(cells, 0, dtype=torch.float64).numpy())
        if np.isfinite(sums).all():  # there are no infinities
            return sums
    kept = block.parts(zero_outside(mask, block.cells))
    return block.by_column(np.add.reduce(kept, dtype=np.float64))


def mean(values: NDArray[Any], n_zeros: int) -> float:
    """Return the mean of finite values and some zeros, within their range, or NaN."""
    size = values.size + n_zeros
    if size == 0:
        return math.nan
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    if n_zeros:
        low, high = min(low, 0.0), max(high, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(values.sum(dtype=np.float64)) / size
    if not math.isfinite(mean):
        # Scaled so that even the sum of as many largest values is finite.
        exponent = size.bit_length()
        mean = float(np.ldexp(values, -exponent).sum()) / size
        # Rounding may put the mean of equal values above the largest float64.
        mean = min(max(mean, math.ldexp(low, -exponent)), math.ldexp(high, -exponent))
        mean = math.ldexp(mean, exponent)
    return min(max(mean, low), high)


def median(values: NDArray[Any], n_zeros: int) -> float:
    """Return the median of finite values, which are reordered, and some zeros."""
    n_below = int((values < 0).sum()) if n_zeros else 0

    def at(rank: int) -> float:
        if n_below <= rank < n_below + n_zeros:
            return 0.0
        return value_at(values, rank if rank < n_below else rank - n_zeros)

    last = values.size + n_zeros - 1
    return midpoint(at(last // 2), at((last + 1) // 2))


def value_at(values: NDArray[Any], rank: int) -> float:
    """Return the value at a rank of an array, which is reordered."""
    # numpy selects one rank ten times as fast as two at once.
    values.partition(rank)
    return float(values[rank])


class RunningMeans:
    """Means of the columns over all chunks seen so far.

    The totals are fractions, so that adding a chunk neither rounds nor overflows, and
    the order of the chunks does not matter. Each mean is between the smallest and the
    largest mean of the chunks, and so within the range of the values.

    Parameters
    ----------
    means : ndarray of shape (n_columns,)
        Means of the first chunk. The mean of a column without a value is ignored.
    counts : ndarray of shape (n_columns,)
        Number of values in each column of the first chunk.
    """

    def __init__(self, means: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        self.means, self.counts = means, counts
        self._totals: list[Fraction] | None = None

    def add(self, chunk: RunningMeans) -> None:
        """Include the values of one more chunk."""
        if self._totals is None:
            self._totals = list(map(_total, self.means.tolist(), self.counts.tolist()))
        self.means, self.counts = self.means.copy(), self.counts + chunk.counts
        for j in np.flatnonzero(chunk.counts):
            self._totals[j] += _total(float(chunk.means[j]), int(chunk.counts[j]))
            self.means[j] = float(self._totals[j] / int(self.counts[j]))


def _total(mean: float, count: int) -> Fraction:
    return count * Fraction(mean) if count else Fraction()
