"""Medians and quantiles of the columns of a dense table, without sorting it.

A sample of the rows tells between which two values each quantile lies, almost surely.
One pass through the table counts what is below and keeps what is between, some
hundredths of it, and only that is ranked. What is found is exact: the counts tell if
the sample misled, and then that column is ranked as a whole.

The sampling is that of R. W. Floyd and R. L. Rivest (1975), Expected time bounds for
selection, Communications of the ACM 18(3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sknan.preprocessing._kernels.blocks import (
    KnownMask,
    PerColumn,
    Workspace,
    blocks,
    where,
)
from sknan.preprocessing._kernels.column_means import columns_of

__all__ = ["Neighbours", "bracketing_values", "place"]

# Tables of fewer rows are ranked as a whole.
_MIN_ROWS = 1 << 14

# Standard deviations of a sample's rank between a quantile and the ends of what is
# kept: a sample misleads once in some ten thousand times.
_DEVIATIONS = 4.0


class Neighbours(NamedTuple):
    """The known values next to each quantile of each column; NaN where none is known.

    Attributes
    ----------
    low, high : ndarray of shape (n_fractions, n_columns), float64
        The values whose ranks are those of the quantile, rounded down and up.
    n_known : ndarray of shape (n_columns,), int
        Number of known values.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n_known: NDArray[np.int64]


def place(fraction: float, n_known: int) -> float:
    """The rank of a quantile, counted from 0, between those of two values."""
    return (n_known - 1) * fraction


def bracketing_values(
    X: NDArray[Any], fractions: Sequence[float], known: KnownMask
) -> Neighbours:
    """Find the known values next to quantiles of each column.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_columns), float
        The table.
    fractions : sequence of float
        Which quantiles, from 0 to 1.
    known : KnownMask
        Which cells count.

    Returns
    -------
    Neighbours
    """
    n_rows, n_columns = X.shape
    low, high = np.full((2, len(fractions), n_columns), math.nan)
    found = Neighbours(low, high, np.zeros(n_columns, dtype=np.int64))
    if n_rows < _MIN_ROWS:
        for j, column in enumerate(columns_of(X)):
            _rank_whole(column[known(column)], fractions, found, j)
        return found
    brackets = _Brackets.of_sample(X, fractions, known)
    kept = _Kept.between(brackets, X, known)
    for j in range(n_columns):
        if not _rank_kept(kept, brackets, fractions, found, j):
            column = np.ascontiguousarray(X[:, j])
            _rank_whole(column[known(column)], fractions, found, j)
    return found


class _Brackets(NamedTuple):
    """Values of the table around each quantile, or infinities; (fraction, column)."""

    low: NDArray[Any]
    high: NDArray[Any]

    @classmethod
    def of_sample(
        cls, X: NDArray[Any], fractions: Sequence[float], known: KnownMask
    ) -> _Brackets:
        n_rows, n_columns = X.shape
        # The sample and what is kept between its values then cost about the same.
        size = int(2 * n_rows ** (2 / 3))
        # One row from each part of the table: ordered tables are met well, and ones
        # that repeat at even distances too.
        jitter = np.random.default_rng(0).random(size)
        sample = X[((np.arange(size) + jitter) * (n_rows / size)).astype(np.intp)]
        is_known = known(sample)
        sample[~is_known] = np.nan  # is sorted to the end
        ranked = np.ascontiguousarray(sample.T)
        ranked.sort(axis=1)
        n_known = is_known.sum(axis=0)
        columns = np.arange(n_columns)
        low, high = np.empty((2, len(fractions), n_columns), dtype=X.dtype)
        for q, fraction in enumerate(fractions):
            deviation = np.sqrt(n_known * fraction * (1 - fraction))
            center, margin = (n_known - 1) * fraction, _DEVIATIONS * deviation + 1
            below = np.floor(center - margin).astype(np.intp)
            above = np.ceil(center + margin).astype(np.intp)
            is_inside = above < n_known
            low[q] = np.where(below >= 0, ranked[columns, below], -np.inf)
            above = np.where(is_inside, above, 0)
            high[q] = np.where(is_inside, ranked[columns, above], np.inf)
        return cls(low, high)


class _Kept(NamedTuple):
    """What one pass through the table counts and keeps."""

    n_known: NDArray[np.int64]
    n_above: NDArray[np.int64]  # of known values above `low`: (fraction, column)
    n_below: NDArray[np.int64]  # of known values below `high`
    values: NDArray[Any]  # those inside any bracket, column after column
    ends: NDArray[np.int64]  # where those of a column start, and the next one's

    @classmethod
    def between(cls, brackets: _Brackets, X: NDArray[Any], known: KnownMask) -> _Kept:
        n_columns = X.shape[1]
        n_known = np.zeros(n_columns, dtype=np.int64)
        n_above, n_below = np.zeros((2, *brackets.low.shape), dtype=np.int64)
        lows, highs = (list(map(PerColumn, ends)) for ends in brackets)
        # Small integers are sorted in time proportional to their number.
        code = np.uint16 if n_columns <= 1 << 16 else np.intp
        codes = PerColumn(np.arange(n_columns, dtype=code))
        values, columns, scratch = [], [], Workspace()
        for block in blocks(X):
            cells, at = block.cells, block.columns
            is_known, above, below, inside = (
                scratch.like(cells, name, np.bool_)
                for name in ("known", "above", "below", "inside")
            )
            n_known[at] += block.count_true(known(cells, is_known))
            inside[...] = False
            for q, (low, high) in enumerate(zip(lows, highs, strict=True)):
                np.greater(cells, low.along(block), out=above)
                np.less(cells, high.along(block), out=below)
                above &= is_known
                below &= is_known
                n_above[q, at] += block.count_true(above)
                n_below[q, at] += block.count_true(below)
                inside |= np.logical_and(above, below, out=above)
            places = where(inside)
            values.append(cells.reshape(-1)[places])
            columns.append(np.broadcast_to(codes.at(block, places), places.shape))
        of_column = np.concatenate(columns)
        n_kept = np.bincount(of_column, minlength=n_columns)
        ends = np.concatenate([[0], np.cumsum(n_kept)])
        del columns
        order = np.argsort(of_column, kind="stable")
        del of_column
        together = np.concatenate(values)
        del values
        return cls(n_known, n_above, n_below, together[order], ends)


def _rank_kept(
    kept: _Kept,
    brackets: _Brackets,
    fractions: Sequence[float],
    found: Neighbours,
    column: int,
) -> bool:
    """Rank what was kept of a column; False if not all that is sought is there."""
    n_known = int(kept.n_known[column])
    found.n_known[column] = n_known
    if n_known == 0:
        return True
    candidates = kept.values[kept.ends[column] : kept.ends[column + 1]]
    for q, fraction in enumerate(fractions):
        low, high = brackets.low[q, column], brackets.high[q, column]
        values = candidates[(candidates > low) & (candidates < high)]
        n_to_low = n_known - int(kept.n_above[q, column])
        n_below = int(kept.n_below[q, column])
        ranks = _ranks(fraction, n_known)
        inside = [rank - n_to_low for rank in ranks if n_to_low <= rank < n_below]
        if inside:
            values.partition(sorted({*inside}))
        for target, rank in zip((found.low, found.high), ranks, strict=True):
            if n_to_low <= rank < n_below:
                target[q, column] = values[rank - n_to_low]
            # The ends are values of the table: the last one up to `low` is `low`.
            elif rank == n_to_low - 1 or n_below <= rank < n_to_low:
                target[q, column] = low
            elif rank == n_below and high > low:
                target[q, column] = high
            else:
                return False
    return True


def _rank_whole(
    values: NDArray[Any], fractions: Sequence[float], found: Neighbours, column: int
) -> None:
    """Rank all known values of a column, which are reordered."""
    n_known = found.n_known[column] = values.size
    if n_known == 0:
        return
    ranks = [_ranks(fraction, n_known) for fraction in fractions]
    values.partition(sorted({rank for pair in ranks for rank in pair}))
    for q, (low, high) in enumerate(ranks):
        found.low[q, column], found.high[q, column] = values[low], values[high]


def _ranks(fraction: float, n_known: int) -> tuple[int, int]:
    at = place(fraction, n_known)
    return math.floor(at), math.ceil(at)
