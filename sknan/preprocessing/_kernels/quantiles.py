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
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sknan.preprocessing._kernels.blocks import (
    Block,
    KnownMask,
    PerColumn,
    blocks,
    fill_outside,
    places_of,
)
from sknan.preprocessing._kernels.column_means import columns_of, value_at

# Number of rows below which whole columns are ranked.
_MIN_ROWS = 1 << 14

# Half the width of a bracket, in standard deviations of the rank of the quantile in the
# sample. With 3 at most one quantile in 370 is outside its bracket: to rank its column
# takes less time than the values in wider brackets.
_DEVIATIONS = 3.0


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
    low, high = np.full((2, len(fractions), X.shape[1]), math.nan)
    found = BracketingValues(low, high, np.zeros(X.shape[1], dtype=np.int64))
    if len(X) < _MIN_ROWS:
        for j, column in enumerate(columns_of(X)):
            values = column[known(column)]
            found.n_known[j] = values.size
            for q, rank, target in _targets(found, fractions, j):
                target[q, j] = value_at(values, rank)
        return found
    brackets = _filled_brackets(X, fractions, known, found.n_known)
    for j in range(X.shape[1]):
        for q, rank, target in _targets(found, fractions, j):
            value = brackets[q].find(rank, j, found.n_known[j])
            if value is None:
                column = np.ascontiguousarray(X[:, j])
                value = value_at(column[known(column)], rank)
            target[q, j] = value
    return found


def _targets(
    found: BracketingValues, fractions: Sequence[float], column: int
) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
    """Iterate over the ranks to find in a column: index of the quantile, rank, array.

    A column without known values has no ranks.
    """
    n_known = int(found.n_known[column])
    for q, fraction in enumerate(fractions if n_known else ()):
        rank = quantile_rank(fraction, n_known)
        yield q, math.floor(rank), found.low
        yield q, math.ceil(rank), found.high


def _ends_of_sample(
    X: NDArray[Any], fractions: Sequence[float], known: KnownMask
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return two values around each quantile, or infinities: (fraction, column)."""
    n_rows, n_columns = X.shape
    # With this size the sample and the candidates cost about the same.
    size = int(2 * n_rows ** (2 / 3))
    # One random row from each of `size` equal parts of the table: the sample then
    # represents sorted and periodic tables, too.
    jitter = np.random.default_rng(0).random(size)
    rows = ((np.arange(size) + jitter) * (n_rows / size)).astype(np.intp)
    # `take` is faster, but copies tables of another layout.
    sample = X.take(rows, axis=0) if X.flags.c_contiguous else X[rows]
    is_known = known(sample)
    nan = np.full(n_columns, math.nan, dtype=X.dtype)
    fill_outside(is_known, sample, nan, sample)  # NaN is sorted to the end
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
        high[q] = np.where(above < n_known, ranked[columns, above % size], np.inf)
    return low, high


def _filled_brackets(
    X: NDArray[Any],
    fractions: Sequence[float],
    known: KnownMask,
    n_known: NDArray[np.int64],
) -> list[_Bracket]:
    """Return the bracket of each quantile, and add to the numbers of known values."""
    low, high = _ends_of_sample(X, fractions, known)
    brackets = list(map(_Bracket, low, high))
    # numpy sorts small integers in linear time.
    codes = PerColumn(np.arange(X.shape[1], dtype=np.min_scalar_type(X.shape[1])))
    for block in blocks(X):
        is_known = known(block.cells)
        n_known[block.columns] += block.count_true(is_known)
        for bracket in brackets:
            bracket.add(block, is_known, codes)
    for bracket in brackets:
        bracket.group(n_known)
    return brackets


class _Bracket:
    """Counts of the known values around two ends, and the values between them.

    Parameters
    ----------
    low, high : ndarray of shape (n_columns,)
        Ends of the bracket of each column, which may be infinite.
    """

    def __init__(self, low: NDArray[Any], high: NDArray[Any]) -> None:
        self._low, self._high = low, high
        self._lows, self._highs = PerColumn(low), PerColumn(high)
        self._n_above, self._n_below = np.zeros((2, low.size), dtype=np.int64)
        # Values between the ends, block by block until `group`, then by column.
        self._values: list[NDArray[Any]] = []
        self._columns: list[NDArray[Any]] = []

    def add(self, block: Block, is_known: NDArray[np.bool_], codes: PerColumn) -> None:
        """Include the known cells of a block, with the numbers of their columns."""
        cells, these = block.cells, block.columns
        inside = cells > self._lows.along(block)
        inside &= is_known
        self._n_above[these] += block.count_true(inside)
        below = cells < self._highs.along(block)
        below &= is_known
        self._n_below[these] += block.count_true(below)
        inside &= below
        places = places_of(inside)
        self._values.append(cells.ravel()[places])
        code_of = codes.along(block)
        # NumPy divides by a scalar faster than it computes the remainder.
        self._columns.append(code_of[places - places // code_of.size * code_of.size])

    def group(self, n_known: NDArray[np.int64]) -> None:
        """Bring the values of each column together."""
        order = np.argsort(np.concatenate(self._columns), kind="stable")
        self._columns.clear()
        # Equal ends leave out the values that are equal to them.
        n_inside = np.maximum(self._n_above + self._n_below - n_known, 0)
        together = np.concatenate(self._values)[order]
        self._values = np.split(together, np.cumsum(n_inside)[:-1])

    def find(self, rank: int, column: int, n_known: int) -> float | None:
        """Return the value at a rank of a column, None if the bracket misses it."""
        low, high = self._low[column], self._high[column]
        n_to_low, n_below = n_known - self._n_above[column], self._n_below[column]
        if n_to_low <= rank < n_below:
            return value_at(self._values[column], rank - n_to_low)
        # The ends of a bracket are values of the table, too.
        if rank == n_to_low - 1 or n_below <= rank < n_to_low:
            return float(low)
        return float(high) if rank == n_below and high > low else None
