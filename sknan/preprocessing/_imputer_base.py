"""Base class of NaNImputer: overrides of the private methods of SimpleImputer."""

from __future__ import annotations

import contextlib
import math
import numbers
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike, NDArray
from scipy import sparse
from sklearn import config_context
from sklearn.impute import SimpleImputer
from sklearn.utils import Tags
from sklearn.utils.validation import validate_data

from sknan._utils.tags import tags_of, transformer_tags
from sknan._utils.validation import FLOAT64_MAX, already_valid_array
from sknan._utils.warn import warn
from sknan.preprocessing._column_statistics import (
    ColumnStatistics,
    check_objects,
    check_zones,
    medians_of_objects,
)
from sknan.preprocessing._kernels.blocks import KnownMask, fill
from sknan.preprocessing._kernels.column_means import RunningMeans
from sknan.preprocessing._kernels.quantile_sketch import QuantileSketch
from sknan.preprocessing._sources import distinct
from sknan.preprocessing._tables.plain_cells import (
    ENCODE,
    has_dates,
    name_marker,
    name_unfit_cell,
    plain_cells,
)

# Strategies that also fill text. scikit-learn's code finds their statistics.
_ANY_KIND = ("most_frequent", "constant")

_DTYPES = ("float16", "float32", "float64")

# Dtypes that are not converted. Other tables are converted to float64.
_TABLE_DTYPES = tuple(map(np.dtype, ("float64", "float32", "float16")))


class ImputerBase(SimpleImputer):
    """Validation, statistics and filling of NaNImputer."""

    dtype: DTypeLike | None
    statistics_: NDArray[Any]
    _fit_dtype: np.dtype[Any]
    _running: RunningMeans | None
    _sketch: QuantileSketch | None

    def _output_dtype(self) -> np.dtype[Any] | None:
        if self.dtype is None:
            return None
        with contextlib.suppress(TypeError):
            dtype = np.dtype(self.dtype)
            if dtype.name in _DTYPES:
                return dtype
        known = ", ".join(repr(name) for name in _DTYPES)
        raise ValueError(
            f"The 'dtype' parameter of NaNImputer must be one of {known} or None. "
            f"Got {self.dtype!r} instead."
        )

    def _largest(self) -> float:
        """Return the largest number that does not count as missing."""
        dtype = self._output_dtype()
        return FLOAT64_MAX if dtype is None else float(np.finfo(dtype).max)

    def _takes_nan(self) -> bool:
        """Return whether NaN and every other usual marker mean a missing value."""
        marker = self.missing_values
        is_nan = isinstance(marker, (float, np.floating)) and math.isnan(marker)
        return is_nan or marker is None or marker is pd.NA

    def _marker(self) -> Any:
        """Return the marker of missing values that scikit-learn's code recognizes."""
        return np.nan if self._takes_nan() else self.missing_values

    def _known(self) -> KnownMask:
        return KnownMask(self._marker(), self._largest())

    def _missing(self, X: Any) -> Any:
        """Return a bool array or CSC matrix, true where a cell equals the marker."""
        if sparse.issparse(X):
            mask = self._missing(X.data)
            return type(X)((mask, X.indices.copy(), X.indptr.copy()), shape=X.shape)
        if self._takes_nan():
            return np.asarray(pd.isna(X))
        return np.asarray(self.missing_values == X)

    def _kept(self) -> NDArray[np.bool_]:
        """Return the mask of the columns that are not dropped."""
        statistics: NDArray[Any] = self.statistics_
        isna = np.isnan if statistics.dtype.kind == "f" else pd.isna
        return ~np.asarray(isna(statistics))

    def _validate_input(self, X: Any, in_fit: bool) -> Any:
        """Validate a table and mark its missing cells.

        Returns
        -------
        ndarray or CSC matrix of shape (n_samples, n_features)
            Every missing cell contains the marker, except in a dense table of floats.
        """
        is_numeric = self._fills_numbers(X, in_fit)
        if is_numeric and not in_fit and self._takes_nan():
            table = already_valid_array(X, self, _TABLE_DTYPES)
            if table is not None:
                return table
        owner = f"NaNImputer(strategy={self.strategy!r})"
        remedy = f"{ENCODE}, or pass strategy='most_frequent'"
        # Non-finite cells are missing, unless there is another marker.
        with (
            name_unfit_cell("X", X, owner, f"{remedy}.", f"{remedy} or 'median'."),
            name_marker(self.missing_values),
            config_context(assume_finite=self._takes_nan() or None),
            np.errstate(invalid="ignore"),  # of a sum of inf and -inf
        ):
            X_in = self._validated(plain_cells(X), is_numeric, in_fit)
        self._check_marker(X_in)
        if self.strategy == "constant":
            self._check_fill_value(X_in.dtype, in_fit)
        if is_float_array(X_in) and (is_numeric or not in_fit):
            return X_in
        return self._mark_unfit_cells(X_in, in_fit)

    def _fills_numbers(self, X: Any, in_fit: bool) -> bool:
        """Return whether the table is converted to numbers."""
        if self.strategy in _ANY_KIND:
            return False
        if not in_fit:
            return self._fit_dtype.kind != "O"
        return self.strategy != "median" or not has_dates(X)

    def _validated(self, X: Any, is_numeric: bool, in_fit: bool) -> Any:
        """Validate a table as SimpleImputer does, without copying a dense table."""
        is_filled_in_place = sparse.issparse(X) or not is_numeric
        dtype: Any = _TABLE_DTYPES
        if not is_numeric:
            # SimpleImputer refuses booleans and NumPy's text.
            dtype = {"b": np.float64, "U": object, "S": object}.get(_kind_of(X))
            if not in_fit and self._fit_dtype.kind == "O":
                dtype = object
        X_in = validate_data(
            self,
            X,
            reset=in_fit,
            accept_sparse="csc",
            dtype=dtype,
            force_writeable=True if is_filled_in_place and not in_fit else None,
            ensure_all_finite="allow-nan" if self._takes_nan() else True,
            copy=self.copy and is_filled_in_place,
        )
        if sparse.issparse(X_in) and self._output_dtype() == np.float16:
            raise ValueError(
                "X is sparse, but SciPy has no sparse arrays of float16. Pass "
                "dtype='float32', or X.toarray()."
            )
        if in_fit:
            self._fit_dtype = X_in.dtype
        return X_in

    def _check_marker(self, X: Any) -> None:
        marker = self.missing_values
        if X.dtype.kind != "O" and not (
            self._takes_nan() or isinstance(marker, numbers.Real)
        ):
            raise ValueError(
                "'X' and 'missing_values' types are expected to be both numerical. Got "
                f"X.dtype={X.dtype} and  type(missing_values)={type(marker)}."
            )
        if sparse.issparse(X) and marker == 0:
            raise ValueError(
                "Imputation not possible when missing_values == 0 and input is sparse. "
                "Provide a dense array instead."
            )

    def _check_fill_value(self, table_dtype: np.dtype[Any], in_fit: bool) -> None:
        value = self.fill_value
        if value is None and table_dtype.kind == "O":
            value = "missing_value"  # scikit-learn's default
        given = np.min_scalar_type(value) if in_fit else self._fill_dtype
        if value is not None and not np.can_cast(given, table_dtype, "same_kind"):
            raise ValueError(
                f"fill_value={value!r} cannot be cast to the input data that is "
                f"{table_dtype!r}. Pass a value of the same kind as the table."
            )
        dtype = self._output_dtype() or table_dtype
        is_number = isinstance(value, numbers.Real)
        is_checked = (
            is_number
            or value is pd.NA
            or value is pd.NaT
            or np.ndim(value) > 0
            or dtype.kind == "f"
        )
        if (
            in_fit
            and value is not None
            and is_checked
            and not (is_number and _is_within(value, dtype))
        ):
            raise ValueError(
                f"fill_value must be finite and fit the output's dtype, {dtype}, got "
                f"{value!r}."
            )

    def _mark_unfit_cells(self, X: Any, in_fit: bool) -> Any:
        dtype = self._output_dtype()
        if dtype is not None and X.dtype.kind in "iu":
            X = X.astype(np.float64)
        largest = self._largest()
        unfit = _unfit_cells(_entries(X), largest, everything=self._takes_nan())
        if unfit.any():
            if in_fit:  # only `transform` may overwrite the table of the caller
                X = X.copy()
            _entries(X)[unfit] = self._marker()
        return X

    def _dense_fit(
        self, X: NDArray[Any], strategy: Any, marker: Any, fill_value: Any
    ) -> NDArray[Any]:
        self.n_samples_seen_ = len(X)
        names = getattr(self, "feature_names_in_", None)
        if strategy in _ANY_KIND:
            self.n_missing_ = self._missing(X).sum(axis=0)
            check_objects(X, names, fill_value if strategy == "constant" else None)
            # SimpleImputer rounds integers to float64.
            is_counted = strategy == "most_frequent" and X.dtype.kind in "iu"
            if is_counted and not _fit_float64(X):
                X = X.astype(object)
            found = super()._dense_fit(X, strategy, self._marker(), fill_value)
            return np.asarray(found)
        if X.dtype.kind == "O":
            check_objects(X, names)
            missing = self._missing(X)
            self.n_missing_ = missing.sum(axis=0)
            self._fit_indicator(missing)
            return medians_of_objects(X, ~missing, self._empty(), names)
        self._fit_indicator(~self._known()(X) if self.add_indicator else None)
        found, n_known = self._column_statistics().of_dense(X)
        self.n_missing_ = len(X) - n_known
        return self._learned(found)

    def _fitted_indicator(self) -> Any:
        if self.indicator_ is None:
            raise ValueError(
                "add_indicator was False when NaNImputer was fitted. Fit it again."
            )
        return self.indicator_

    def _transform_indicator(self, X: Any) -> Any:
        if self.add_indicator:
            self._fitted_indicator()
        return super()._transform_indicator(X)

    def _concatenate_indicator_feature_names_out(
        self, names: NDArray[Any], input_features: Any
    ) -> NDArray[Any]:
        """Return the names of filled columns and indicators, none of them twice."""
        if not self.add_indicator:
            return names
        indicators = self._fitted_indicator().get_feature_names_out(input_features)
        return np.array([*names, *distinct(indicators, names)], dtype=object)

    def _sparse_fit(
        self, X: Any, strategy: Any, marker: Any, fill_value: Any
    ) -> NDArray[Any]:
        missing = self._missing(X)
        self.n_samples_seen_ = X.shape[0]
        self.n_missing_ = np.asarray(missing.sum(axis=0)).reshape(-1)
        if strategy in _ANY_KIND:
            found = super()._sparse_fit(X, strategy, self._marker(), fill_value)
            return np.asarray(found)
        known = ~missing.data
        self._fit_indicator(missing)  # removes the entries that are False
        return self._learned(self._column_statistics().of_sparse(X, known))

    def _column_statistics(self) -> ColumnStatistics:
        names = getattr(self, "feature_names_in_", None)
        return ColumnStatistics(self.strategy, self._known(), self._empty(), names)

    def _empty(self) -> float:
        """Return the statistic of a column without known values."""
        return 0.0 if self.keep_empty_features else math.nan

    def _learned(self, found: NDArray[Any] | RunningMeans) -> NDArray[Any]:
        """Return statistics as an array, and store means for `partial_fit`."""
        if not isinstance(found, RunningMeans):
            return found
        self._running = found
        return np.where(found.counts > 0, found.means, self._empty())

    def _fill_values(self, dtype: np.dtype[Any]) -> tuple[Any, NDArray[Any]]:
        """Return the mask of the kept columns, None for all, and their fill values."""
        statistics = self.statistics_
        if statistics.dtype == np.float64:
            kept, values = _fill_values(statistics.tobytes(), dtype)
        else:
            kept, values = kept_values(statistics, self._kept(), dtype)
        if kept is not None:
            self._warn_of_dropped(~kept)
        return kept, values

    def _warn_of_dropped(self, dropped: NDArray[np.bool_]) -> None:
        names = getattr(self, "feature_names_in_", None)
        columns = np.flatnonzero(dropped) if names is None else names[dropped]
        warn(
            f"Skipping features without any observed values: {columns}. At least one "
            f"non-missing value is needed for imputation with strategy="
            f"{self.strategy!r}. keep_empty_features=True keeps them, filled with 0.",
        )

    def _filled(self, X: NDArray[Any]) -> NDArray[Any]:
        """Return the kept columns of a dense table of floats, filled."""
        dtype = self._output_dtype() or X.dtype
        # With these strategies SimpleImputer's validation has made a copy, if needed.
        in_place = not self.copy or self.strategy in _ANY_KIND
        kept, values = self._fill_values(dtype)
        if kept is not None:
            X, in_place = X[:, kept], True
        if X.dtype == dtype:
            is_out = in_place and X.flags.writeable
            out = X if is_out else np.empty_like(X, subok=False)
        else:
            with np.errstate(over="ignore"):  # numbers that overflow are replaced below
                out = X.astype(dtype, order="K", subok=False)
        fill(X, values, self._known(), out)
        return out

    def _filled_in_place(self, X: Any, missing: NDArray[np.bool_]) -> Any:
        """Fill the kept columns of a sparse matrix, or of objects or integers."""
        kept, values = self._fill_values(X.dtype)
        if kept is not None:
            X, missing = X[:, kept], missing[:, kept]
        if sparse.issparse(X):
            # Selecting columns of a sparse mask may have removed its explicit zeros.
            missing = self._missing(X.data)
            columns = np.repeat(np.arange(X.shape[1]), np.diff(X.indptr))
            X.data[missing] = values[columns[missing]]
        else:
            filled = np.flatnonzero(missing.any(axis=0))
            names = self.get_feature_names_out()
            check_zones(X[:, filled], names[filled], values[filled].tolist())
            np.copyto(X, values, where=missing)
        return X

    def _cast(self, filled: Any, X: Any) -> Any:
        """Convert the filled table to the dtype of the output."""
        dtype = self._output_dtype()
        if dtype is None:
            return filled
        remedy = f"{ENCODE}, or leave dtype=None."
        with name_unfit_cell("X", X, f"NaNImputer(dtype={self.dtype!r})", remedy):
            return filled.astype(dtype, copy=False)

    def __sklearn_tags__(self) -> Tags:
        return tags_of(
            self, transformer_tags, True, self._takes_nan(), self.dtype is None
        )


def _entries(X: Any) -> NDArray[Any]:
    """Return the cells of a dense table, or the stored entries of a sparse one."""
    return np.asarray(X.data) if sparse.issparse(X) else X


def is_float_array(X: Any) -> bool:
    """Return whether ``X`` is a dense array of floats."""
    return isinstance(X, np.ndarray) and X.dtype.kind == "f"


def _unfit_cells(
    cells: NDArray[Any], largest: float, *, everything: bool
) -> NDArray[np.bool_]:
    """Return the mask of the numbers that are too large.

    Parameters
    ----------
    cells : ndarray
        Cells of any dtype.
    largest : float
        Largest number of the dtype of the output.
    everything : bool
        Whether all markers of missing values in a table of objects count as unfit, too:
        None, NaN, ``pandas.NA`` and NaT.

    Returns
    -------
    ndarray of bool
    """
    if cells.dtype.kind == "O":
        exceeds = np.frompyfunc(_exceeds, 2, 1)
        with np.errstate(invalid="ignore"):  # a comparison with NaN is false
            unfit = np.asarray(exceeds(cells, largest), dtype=bool)
        return unfit | np.asarray(pd.isna(cells)) if everything else unfit
    if cells.dtype.kind != "f":
        return np.zeros(1, dtype=bool)
    # Compared in the dtype of the cells, in which a larger limit would be infinite.
    largest = min(largest, float(np.finfo(cells.dtype).max))
    return np.asarray(np.abs(cells) > cells.dtype.type(largest))


def _exceeds(cell: Any, largest: float) -> bool:
    # abs(float(cell)) would fail for integers beyond float64.
    is_number = isinstance(cell, numbers.Real)
    return is_number and bool(cell > largest or cell < -largest)


def _kind_of(X: Any) -> str:
    """Return the kind of the dtype of a table, or "" if it has several or none."""
    dtypes = X.dtypes if isinstance(X, pd.DataFrame) else [getattr(X, "dtype", None)]
    kinds = {getattr(dtype, "kind", "") for dtype in dtypes}
    return kinds.pop() if len(kinds) == 1 else ""


def _fit_float64(X: NDArray[Any]) -> bool:
    """Return whether float64 represents all integers up to those of a table."""
    return bool(X.min() >= -(2**53) and X.max() <= 2**53)


def _range_of(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return the smallest and the largest number of a dtype; of float64 for objects."""
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    largest = float(np.finfo(dtype if dtype.kind == "f" else np.float64).max)
    return -largest, largest


def _is_within(value: Any, dtype: np.dtype[Any]) -> bool:
    low, high = _range_of(dtype)
    return not pd.isna(value) and bool(low <= value <= high)


def kept_values(
    statistics: NDArray[Any], kept: NDArray[np.bool_], dtype: np.dtype[Any]
) -> tuple[NDArray[np.bool_] | None, NDArray[Any]]:
    """Return the mask of kept columns, None for all, and their values in a dtype."""
    if kept.all():
        return None, _rounded(statistics, dtype)
    return kept, _rounded(statistics[kept], dtype)


@lru_cache(maxsize=16)
def _fill_values(
    statistics: bytes, dtype: np.dtype[Any]
) -> tuple[NDArray[np.bool_] | None, NDArray[Any]]:
    """Return :func:`kept_values` of the bytes of float64, for predictions of a row."""
    values = np.frombuffer(statistics)
    return kept_values(values, ~np.isnan(values), dtype)


def _rounded(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert fill values to the dtype of a table, without an overflow."""
    if dtype.kind not in "fiu" or values.dtype == dtype:
        return values.astype(dtype, copy=False)
    low, high = _range_of(dtype)
    if values.dtype.kind == "f" and dtype.kind == "f":
        values = np.minimum(np.maximum(values, low), high)
        return values.astype(dtype)
    return np.array([min(max(value, low), high) for value in values.tolist()], dtype)
