"""Statistics of columns with which NaNImputer fills missing values."""

from __future__ import annotations

import datetime
import itertools
import statistics
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sknan._utils.validation import column_name
from sknan.preprocessing._kernels import column_means
from sknan.preprocessing._kernels.blocks import KnownMask
from sknan.preprocessing._kernels.column_means import RunningMeans
from sknan.preprocessing._kernels.quantiles import BracketingValues, bracketing_values
from sknan.preprocessing._tables.plain_cells import kind_of
from sknan.preprocessing._tables.typed_column import (
    is_container,
    is_missing,
    is_opaque,
)

_TIMES = ("dates", "durations")

Statistics = NDArray[Any] | RunningMeans


class ColumnStatistics(NamedTuple):
    """Statistics of the numeric columns of a table.

    The methods return means as `RunningMeans`, to which further chunks can be added,
    and every other statistic as an array of shape (n_columns,).

    Attributes
    ----------
    strategy : str or callable
        ``"auto"``, ``"mean"``, ``"median"``, ``"zero"``, or a function of the known
        values of a column.
    known : KnownMask
        Mask of the cells with a known value.
    empty : float
        Statistic of a column without known values.
    names : sequence or None
        Names of the columns, for messages.
    """

    strategy: str | Callable[[NDArray[Any]], Any]
    known: KnownMask
    empty: float
    names: Sequence[Any] | None

    def of_dense(self, X: NDArray[Any]) -> tuple[Statistics, NDArray[np.int64]]:
        """Return statistics and numbers of known values of a dense table of floats."""
        if self.strategy == "mean":
            means = RunningMeans(*column_means.means(X, self.known))
            return means, means.counts
        if self.strategy in ("auto", "median"):
            found = bracketing_values(X, [0.5], self.known)
            return self.medians(found), found.n_known
        if self.strategy == "zero":
            _, n_known = column_means.means(X, self.known)
            return np.where(n_known > 0, 0.0, self.empty), n_known
        results, n_known = [], np.zeros(X.shape[1], dtype=np.int64)
        for j, column in enumerate(column_means.columns_of(X)):
            values = column[self.known(column)]
            n_known[j] = len(values)
            results.append(self._called(values, j))
        return np.array(results), n_known

    def medians(self, found: BracketingValues) -> NDArray[np.float64]:
        """Return the medians between the values on both sides of them."""
        ends = found.low[0].tolist(), found.high[0].tolist()
        medians = np.array(list(map(column_means.midpoint, *ends)))
        medians[found.n_known == 0] = self.empty
        return medians

    def of_sparse(self, X: Any, known: NDArray[np.bool_]) -> Statistics:
        """Return the statistics of a CSC matrix with a mask of its known entries."""
        columns = (
            (X.data[start:stop][known[start:stop]], X.shape[0] - (stop - start))
            for start, stop in itertools.pairwise(X.indptr.tolist())
        )
        if self.strategy in ("auto", "mean"):
            found = [
                (column_means.mean(cells, n), cells.size + n) for cells, n in columns
            ]
            return RunningMeans(*map(np.array, zip(*found, strict=True)))
        return np.array(
            [self._of_sparse_column(*column, j) for j, column in enumerate(columns)]
        )

    def _of_sparse_column(
        self, values: NDArray[Any], n_zeros: int, index: int
    ) -> float:
        if values.size + n_zeros == 0:
            return self.empty
        if self.strategy == "zero":
            return 0.0
        if self.strategy == "median":
            return column_means.median(values, n_zeros)
        zeros = np.zeros(n_zeros, dtype=values.dtype)
        return self._called(np.append(values, zeros), index)

    def _called(self, values: NDArray[Any], index: int) -> float:
        """Return the result of a callable strategy for one column."""
        if values.size == 0:
            return self.empty
        value = float(self.strategy(values))  # type: ignore[operator]
        if not abs(value) <= self.known.limit:
            raise ValueError(
                f"strategy {self.strategy!r} returned {value!r} for column "
                f"{column_name(index, self.names)}. It must return a finite number "
                "that fits the output's dtype."
            )
        return value


def medians_of_objects(
    X: NDArray[Any],
    known: NDArray[np.bool_],
    empty: float,
    names: Sequence[Any] | None,
) -> NDArray[Any]:
    """Return the medians of columns of numbers, dates or durations.

    Of an even number of dates or durations, the median is the lower one of the two in
    the middle, because there may be no date between them.

    Parameters
    ----------
    X : ndarray of object of shape (n_samples, n_features)
        Table.
    known : ndarray of bool of the same shape
        Whether a cell is not missing.
    empty : float
        Statistic of a column without known values.
    names : sequence or None
        Names of the columns, for messages.

    Raises
    ------
    ValueError
        If the values of a column have no median.
    """
    found = np.full(X.shape[1], empty, dtype=object)
    for j, column in enumerate(X.T):
        cells = column[known[:, j]].tolist()
        kinds = {
            kind_of(cell) for cell in {type(cell): cell for cell in cells}.values()
        }
        try:
            if "text" in kinds:
                raise TypeError("it contains text")
            if kinds == {None}:
                numbers = np.array(cells, dtype=np.float64)
                found[j] = column_means.median(numbers, 0)
            elif cells:
                found[j] = statistics.median_low(cells)
        except TypeError as error:
            raise ValueError(
                f"Column {column_name(j, names)} of X has no median: {error}. Convert "
                "its values to one type, numbers or dates, or pass "
                "strategy='most_frequent'."
            ) from None
    return found


def check_objects(
    X: NDArray[Any], names: Sequence[Any] | None, fill_value: Any = None
) -> None:
    """Refuse objects that are no values, and dates that another kind would fill.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Table that is filled with the most frequent values or with a constant.
    names : sequence or None
        Names of the columns, for messages.
    fill_value : object, default=None
        The constant. None if the values of each column are filled in.

    Raises
    ------
    TypeError
        If a cell is a container, or an object without a text of its own.
    ValueError
        If dates or durations would be filled with another kind of value, or only some
        dates of a column have a time zone.
    """
    if X.dtype.kind != "O":
        return
    check_zones(X, names)
    for j, column in enumerate(X.T):
        cells = column.tolist()
        for cls in dict.fromkeys(map(type, cells)):
            of_class = [(i, c) for i, c in enumerate(cells) if type(c) is cls]
            known = (
                pair for pair in of_class if cls is not float or pair[1] == pair[1]
            )
            i, cell = next(known, of_class[0])
            place = f"at row {i}, column {column_name(j, names)}"
            if is_container(cell) or not isinstance(cell, Hashable) or is_opaque(cell):
                raise TypeError(
                    f"X contains an object of type {cls.__name__} {place}, but the "
                    "argument must be a string, a number or a date. Convert it, or "
                    "leave the column out."
                )
            kind, of_fill = kind_of(cell), kind_of(fill_value)
            is_time = kind in _TIMES or of_fill in _TIMES
            is_filled = fill_value is not None and not is_missing(cell)
            if is_time and is_filled and of_fill != kind:
                raise ValueError(
                    f"X contains {kind or 'numbers'}, first {cell} {place}, but "
                    f"fill_value={fill_value!r} is of another kind. Pass a "
                    "fill_value of this kind, or fill the column with "
                    "strategy='most_frequent'."
                )


def check_zones(
    X: NDArray[Any], names: Sequence[Any] | None, values: Sequence[Any] = ()
) -> None:
    """Refuse columns with and without time zones, which have no order.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Table.
    names : sequence or None
        Names of the columns, for messages.
    values : sequence, default=()
        Values that fill the columns.

    Raises
    ------
    ValueError
        If only some dates of a column, or only its fill value, have a time zone.
    """
    for j, column in enumerate(X.T if X.dtype.kind == "O" else ()):
        cells = [*values[j : j + 1], *column.tolist()]
        dates = [c for c in cells if isinstance(c, datetime.date) and not is_missing(c)]
        zoned = {
            getattr(date, "tzinfo", None) is not None: date for date in dates[::-1]
        }
        if len(zoned) == 2:
            raise ValueError(
                f"Column {column_name(j, names)} of X would have dates with a time "
                f"zone, such as {zoned[True]}, beside dates without one, such as "
                f"{zoned[False]}. Pass pandas.to_datetime(column, utc=True) to fit and "
                "to transform; a fill_value needs a time zone, too."
            )
