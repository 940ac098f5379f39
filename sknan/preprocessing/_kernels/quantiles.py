"""Median and quantile kernels for dense tables.

A random sample of the rows gives two values that almost surely bracket each quantile.
One pass through the table counts the values outside the bracket and copies the values
inside, a few percent of the table. Only these are ranked. The result is exact: the
counts show whether a quantile is outside its bracket, and then the whole column is
ranked.

The sampling follows R. W. Floyd and R. L. Rivest (1975), Expected time bounds for
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
    blocks,
)
from sknan.preprocessing._kernels.column_means import columns_of

# Number of rows below which whole columns are ranked.
_MIN_ROWS = 1 << 14

# Half the width of a bracket, in standard deviations of the rank of the quantile in the
# sample. With 4 about one quantile in ten thousand is outside its bracket.
_DEVIATIONS = 4.0


class BracketingValues(NamedTuple):
    """Known values on both sides of each quantile of each column.

    Attributes
    ----------
    low, high : ndarray of shape (n_fractions, n_columns), float64
        Values at the rank of the quantile, rounded down and up; NaN for a column
        without known values.
    n_known : ndarray of shape (n_columns,), int
        Number of known values in each column.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n_known: NDArray[np.int64]


def quantile_rank(fraction: float, n_known: int) -> float:
    """Return the rank of a quantile, counted from 0, which need not be an integer."""
    return (n_known - 1) * fraction


def bracketing_values(
    X: NDArray[Any], fractions: Sequence[float], known: KnownMask
) -> BracketingValues:
    """Find the known values on both sides of quantiles of each column.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_columns), float
        Table with missing values.
    fractions : sequence of float
        Quantiles to find, from 0 to 1.
    known : KnownMask
        Mask of the cells with a known value.

    Returns
    -------
    BracketingValues
    """
    n_rows, n_columns = X.shape
    low, high = np.full((2, len(fractions), n_columns), math.nan)
    found = BracketingValues(low, high, np.zeros(n_columns, dtype=np.int64))
    if n_rows < _MIN_ROWS:
        for j, column in enumerate(columns_of(X)):
            _rank_whole(column[known(column)], fractions, found, j)
        return found
    candidates = _Candidates.of_table(X, fractions, known)
    for j in range(n_columns):
        if not candidates.rank(fractions, found, j):
            column = np.ascontiguousarray(X[:, j])
            _rank_whole(column[known(column)], fractions, found, j)
    return found


def _brackets_of_sample(
    X: NDArray[Any], fractions: Sequence[float], known: KnownMask
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return two values around each quantile, or infinities: (fraction, column)."""
    n_rows, n_columns = X.shape
    # With this size the sample and the candidates cost about the same.
    size = int(2 * n_rows ** (2 / 3))
    # One random row from each of `size` equal parts of the table: the sample then
    # represents sorted and periodic tables, too.
    jitter = np.random.default_rng(0).random(size)
    sample = X[((np.arange(size) + jitter) * (n_rows / size)).astype(np.intp)]
    is_known = known(sample)
    sample[~is_known] = np.inf  # sorted to the end
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
        low[q] = np.where(below >= 0, ranked[columns, below], -np.inf)
        high[q] = np.where(above < size, ranked[columns, above % size], np.inf)
    return low, high


class _Candidates(NamedTuple):
    """Values of the table inside any bracket of their column, and counts.

    Attributes
    ----------
    low, high : ndarray of shape (n_fractions, n_columns)
        Ends of the bracket of each quantile, which may be infinite.
    n_known : ndarray of shape (n_columns,)
        Number of known values.
    n_above, n_below : ndarray of shape (n_fractions, n_columns)
        Number of known values above the lower and below the upper end of a bracket.
    values : ndarray of shape (n_candidates,)
        Candidates, column after column.
    ends : ndarray of shape (n_columns + 1,)
        Index in ``values`` at which each column starts.
    """

    low: NDArray[Any]
    high: NDArray[Any]
    n_known: NDArray[np.int64]
    n_above: NDArray[np.int64]
    n_below: NDArray[np.int64]
    values: NDArray[Any]
    ends: NDArray[np.int64]

    @classmethod
    def of_table(
        cls, X: NDArray[Any], fractions: Sequence[float], known: KnownMask
    ) -> _Candidates:
        low, high = _brackets_of_sample(X, fractions, known)
        n_columns = X.shape[1]
        n_known = np.zeros(n_columns, dtype=np.int64)
        n_above, n_below = np.zeros((2, *low.shape), dtype=np.int64)
        lows, highs = (list(map(PerColumn, ends)) for ends in (low, high))
        # numpy sorts 16-bit integers in linear time.
        code = np.uint16 if n_columns <= 1 << 16 else np.intp
        codes = PerColumn(np.arange(n_columns, dtype=code))
        values, columns = [], []
        for block in blocks(X):
            cells, these = block.cells, block.columns
            is_known = known(cells)
            n_known[these] += block.count_true(is_known)
            inside = np.zeros_like(is_known)
            for q, (least, most) in enumerate(zip(lows, highs, strict=True)):
                above = (cells > least.along(block)) & is_known
                below = (cells < most.along(block)) & is_known
                n_above[q, these] += block.count_true(above)
                n_below[q, these] += block.count_true(below)
                inside |= above & below
            places = np.flatnonzero(inside)
            values.append(cells.ravel()[places])
            code_of = codes.along(block)
            # NumPy divides by a scalar faster than it computes the remainder.
            columns.append(code_of[places - places // code_of.size * code_of.size])
        of_column = np.concatenate(columns)
        n_candidates = np.bincount(of_column, minlength=n_columns)
        ends = np.concatenate([[0], np.cumsum(n_candidates)])
        del columns
        order = np.argsort(of_column, kind="stable")
        del of_column
        together = np.concatenate(values)
        del values
        return cls(low, high, n_known, n_above, n_below, together[order], ends)

    def rank(
        self, fractions: Sequence[float], found: BracketingValues, column: int
    ) -> bool:
        """Rank the candidates of a column; return whether no bracket missed a rank."""
        n_known = int(self.n_known[column])
        found.n_known[column] = n_known
        if n_known == 0:
            return True
        start, stop = self.ends[column : column + 2]
        of_column = self.values[start:stop]
        for q, fraction in enumerate(fractions):
            low, high = self.low[q, column], self.high[q, column]
            values = of_column[(of_column > low) & (of_column < high)]
            n_to_low = n_known - int(self.n_above[q, column])
            n_below = int(self.n_below[q, column])
            ranks = _ranks(fraction, n_known)
            inside = [rank - n_to_low for rank in ranks if n_to_low <= rank < n_below]
            if inside:
                values.partition(sorted({*inside}))
            for target, rank in zip((found.low, found.high), ranks, strict=True):
                if n_to_low <= rank < n_below:
                    target[q, column] = values[rank - n_to_low]
                # The ends of a bracket are values of the table, too.
                elif rank == n_to_low - 1 or n_below <= rank < n_to_low:
                    target[q, column] = low
                elif rank == n_below and high > low:
                    target[q, column] = high
                else:
                    return False
        return True


def _rank_whole(
    values: NDArray[Any],
    fractions: Sequence[float],
    found: BracketingValues,
    column: int,
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
    rank = quantile_rank(fraction, n_known)
    return math.floor(rank), math.ceil(rank)
