"""Quantiles of a table that arrives in chunks, with bounded memory and error.

Some rows are collected and reduced to points of equal weight for each column. Two
reductions of as many rows are merged to one, like the carries of a binary counter.
The points are taken at a random offset, so that the errors of the reductions have
mean zero and partly cancel.

This is section 3 of P. K. Agarwal, G. Cormode, Z. Huang, J. M. Phillips, Z. Wei and
K. Yi (2013), Mergeable summaries, ACM Transactions on Database Systems 38(4), with
weights that depend on the number of known values of each column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sknan._utils.warn import warn
from sknan.preprocessing._kernels.blocks import KnownMask, fill_outside
from sknan.preprocessing._kernels.quantiles import BracketingValues, bracketing_values

# Number of points of each column in a reduction.
N_POINTS = 1 << 11

# Number of cells that are collected for a reduction, in at least twice as many rows as
# there are points.
_BUFFER_CELLS = 1 << 20


class _Reduction(NamedTuple):
    """Points of equal weight that stand for the known values of each column.

    Attributes
    ----------
    points : ndarray of shape (n_columns, n_points)
        Points in ascending order; NaN for a column without known values.
    counts : ndarray of shape (n_columns,)
        Number of known values.
    smallest, largest : ndarray of shape (n_columns,)
        Range of the known values.
    """

    points: NDArray[Any]
    counts: NDArray[np.int64]
    smallest: NDArray[Any]
    largest: NDArray[Any]


class QuantileSketch:
    """Known values of the columns of a table, reduced to few points.

    The rank of a quantile differs from the exact rank by at most
    ``(1 + log2(n_rows / n_collected)) / N_POINTS`` of the number of known values, with
    ``n_collected`` rows in a reduction. Up to ``n_collected`` rows it is exact.

    Parameters
    ----------
    n_columns : int
        Number of columns.
    dtype : dtype or None, default=None
        Dtype to which the values are rounded. None keeps that of each chunk.

    Attributes
    ----------
    n_known, smallest, largest : ndarray of shape (n_columns,)
        Number and range of the known values, at the last call of `quantiles`.
    """

    def __init__(self, n_columns: int, dtype: np.dtype[Any] | None = None) -> None:
        self.n_collected = max(2 * N_POINTS, _BUFFER_CELLS // max(1, n_columns))
        self.n_known = np.zeros(n_columns, dtype=np.int64)
        self.smallest, self.largest = np.full((2, n_columns), math.nan)
        self._dtype = dtype
        # Rows that are not reduced yet, transposed.
        self._parts: list[NDArray[Any]] = []
        self._n_rows = 0
        self._levels: list[_Reduction | None] = []
        self._n_reductions = 0

    def add(self, X: NDArray[Any], known: KnownMask) -> None:
        """Include the rows of a chunk.

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_columns), float
            Chunk with missing values.
        known : KnownMask
            Mask of the cells with a known value, which are finite in the dtype of the
            sketch.
        """
        start = 0
        while start < len(X):
            stop = start + self.n_collected - self._n_rows
            columns = np.ascontiguousarray(X[start:stop].T)
            is_known = known(columns)
            with np.errstate(over="ignore"):  # of unknown cells
                part = columns.astype(self._dtype or X.dtype, subok=False)
            if not is_known.all():
                fill_outside(is_known, part, np.full(1, math.nan, part.dtype), part)
            self._parts.append(part)
            self._n_rows += part.shape[1]
            if self._n_rows == self.n_collected:
                self._carry(self._reduced_rows())
                self._parts, self._n_rows = [], 0
            start = stop

    def quantiles(self, fractions: Sequence[float]) -> BracketingValues:
        """Return the known values on both sides of quantiles of each column.

        Parameters
        ----------
        fractions : sequence of float
            Quantiles to find, from 0 to 1.

        Returns
        -------
        BracketingValues
            Both sides are equal if the quantiles are approximate.
        """
        if not self._levels:
            columns = np.concatenate(self._parts, axis=1)
            exact = bracketing_values(columns.T, fractions, KnownMask())
            self.n_known = exact.n_known
            self.smallest = np.fmin.reduce(columns, axis=1)
            self.largest = np.fmax.reduce(columns, axis=1)
            return exact
        parts = [level for level in self._levels if level is not None]
        if self._n_rows:
            parts.append(self._reduced_rows())
        _, self.n_known, self.smallest, self.largest = _together(parts)
        ranks = np.multiply.outer(self.n_known, np.asarray(fractions))
        found = _at_ranks(parts, ranks).T.astype(np.float64)
        for q, fraction in enumerate(fractions):
            if fraction in (0, 1):
                found[q] = self.largest if fraction else self.smallest
        return BracketingValues(found, found, self.n_known)

    def filled(
        self,
        kept: NDArray[np.intp],
        values: NDArray[Any],
        flagged: NDArray[np.intp],
        n_missing: NDArray[np.int64],
    ) -> QuantileSketch:
        """Return the sketch of the table after it is imputed.

        Parameters
        ----------
        kept : ndarray of int
            Columns that are kept.
        values : ndarray
            Value for the missing cells of each kept column, in the dtype of the output.
        flagged : ndarray of int
            Columns that give an indicator column.
        n_missing : ndarray of shape (n_columns,)
            Number of missing cells.

        Returns
        -------
        QuantileSketch
            Of the kept columns, and of the indicator columns after them.
        """
        found = QuantileSketch(len(kept) + len(flagged))

        def outputs(filled: NDArray[Any], indicators: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([filled.astype(values.dtype), indicators])

        if not self._levels:
            columns = np.concatenate(self._parts, axis=1)
            is_missing = np.isnan(columns)
            imputed = np.where(is_missing[kept], values[:, None], columns[kept])
            found._parts = [outputs(imputed, is_missing[flagged])]
            return found
        parts = [level for level in self._levels if level is not None]
        if self._n_rows:
            parts.append(self._reduced_rows())
        of_output = np.concatenate([kept, flagged])
        for points, counts, smallest, largest in parts:
            zeros = np.where(counts[flagged] > 0, 0.0, math.nan)
            known = _Reduction(
                outputs(points[kept], np.zeros((len(flagged), N_POINTS))),
                counts[of_output],
                outputs(smallest[kept], zeros),
                outputs(largest[kept], zeros),
            )
            found._levels.append(known)
        missing = outputs(values, np.ones(len(flagged)))
        points = np.repeat(missing[:, None], N_POINTS, axis=1)
        n_cells = n_missing[of_output]
        found._levels.append(_Reduction(points, n_cells, missing, missing))
        return found

    def _carry(self, reduction: _Reduction) -> None:
        """Store a reduction, and merge it with others of as many rows."""
        for i, level in enumerate(self._levels):
            if level is None:
                self._levels[i] = reduction
                return
            both = _together([level, reduction])
            points = _at_ranks([level, reduction], self._ranks(both.counts))
            reduction = both._replace(points=points)
            self._levels[i] = None
        self._levels.append(reduction)

    def _reduced_rows(self) -> _Reduction:
        columns = np.concatenate(self._parts, axis=1)
        columns.sort(axis=1)  # NaN is sorted to the end
        nan = columns.dtype.type(math.nan)
        counts = np.array([column.searchsorted(nan) for column in columns])
        places = self._ranks(counts).astype(np.intp)
        points = np.take_along_axis(columns, places, axis=1)
        last = columns[np.arange(len(columns)), counts - 1]
        return _Reduction(points, counts, columns[:, 0].copy(), last)

    def _ranks(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return equidistant ranks in each column, below the number of its values."""
        self._n_reductions += 1
        offset = np.random.default_rng(self._n_reductions).random()
        ranks = np.multiply.outer(counts, (np.arange(N_POINTS) + offset) / N_POINTS)
        return np.asarray(ranks)


def warn_of_new_start() -> None:
    """Warn that ``partial_fit`` forgets the table given to ``fit``."""
    warn(
        "partial_fit begins anew, because fit keeps nothing that it could continue. To "
        "learn from all chunks, pass each of them to partial_fit."
    )


def _together(parts: Sequence[_Reduction]) -> _Reduction:
    """Return the counts and ranges of several reductions together, without points."""
    _, counts, smallest, largest = zip(*parts, strict=True)
    return _Reduction(
        np.empty(0),
        np.sum(counts, axis=0),
        np.fmin.reduce(smallest),
        np.fmax.reduce(largest),
    )


def _at_ranks(parts: Sequence[_Reduction], ranks: NDArray[np.float64]) -> NDArray[Any]:
    """Return the values at ranks of each column of several reductions together."""
    points = np.concatenate([part.points for part in parts], axis=1)
    order = np.argsort(points, axis=1, kind="stable")  # merges the parts
    points = np.take_along_axis(points, order, axis=1)
    weights = np.repeat([part.counts / N_POINTS for part in parts], N_POINTS, axis=0).T
    ends = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    last = np.maximum(np.isfinite(points).sum(axis=1), 1) - 1
    places = [
        np.minimum(np.searchsorted(of_column, these, side="right"), most)
        for of_column, these, most in zip(ends, ranks, last, strict=True)
    ]
    return np.take_along_axis(points, np.array(places), axis=1)
