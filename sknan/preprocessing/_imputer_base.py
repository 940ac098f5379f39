"""Base class of NaNImputer: overrides of the private methods of SimpleImputer."""

from __future__ import annotations

import contextlib
import math
import numbers
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike, NDArray
from scipy import sparse
from sklearn import config_context
from sklearn.impute import SimpleImputer
from sklearn.utils import Tags
from sklearn.utils.validation import validate_data

from sknan._utils.validation import FLOAT64_MAX, already_valid_array, first_text_cell
from sknan.preprocessing._column_statistics import ColumnStatistics, refuse_containers
from sknan.preprocessing._kernels.blocks import KnownMask, fill
from sknan.preprocessing._kernels.column_means import RunningMeans

# Strategies that also fill text. scikit-learn's code finds their statistics.
_ANY_KIND = ("most_frequent", "constant")

_DTYPES = ("float16", "float32", "float64")

# Dtypes that are not converted. Other tables are converted to float64.
_TABLE_DTYPES = tuple(map(np.dtype, ("float64", "float32", "float16")))


class ImputerBase(SimpleImputer):
    """Validation, statistics and filling of NaNImputer."""

    dtype: DTypeLike | None
    statistics_: NDArray[Any]
    _running: RunningMeans | None

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
        """Return whether NaN marks missing values."""
        marker = self.missing_values
        is_nan = isinstance(marker, numbers.Real) and math.isnan(marker)
        return is_nan or marker is pd.NA

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
        is_numeric = self.strategy not in _ANY_KIND
        if is_numeric and not in_fit and self._takes_nan():
            table = already_valid_array(X, self, _TABLE_DTYPES)
            if table is not None:
                return table
        validate = self._validate_numbers if is_numeric else super()._validate_input
        try:
            # Non-finite cells are missing, unless there is another marker.
            with config_context(assume_finite=self._takes_nan() or None):
                X_in = validate(X, in_fit=in_fit)
        except ValueError as error:
            raise ValueError(self._explain(error, X)) from None
        if is_float_array(X_in) and (is_numeric or not in_fit):
            return X_in
        return self._mark_unfit_cells(X_in, in_fit)

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

    def _validate_numbers(self, X: Any, in_fit: bool) -> Any:
        """Validate a table as SimpleImputer does, without copying a dense table."""
        is_sparse = sparse.issparse(X)
        try:
            X_in = validate_data(
                self,
                X,
                reset=in_fit,
                accept_sparse="csc",
                dtype=_TABLE_DTYPES,
                force_writeable=True if is_sparse and not in_fit else None,
                ensure_all_finite="allow-nan" if self._takes_nan() else True,
                copy=self.copy and is_sparse,
            )
        except ValueError as error:
            if "could not convert" not in str(error):
                raise
            raise ValueError(
                f"Cannot use {self.strategy} strategy with non-numeric data:\n{error}"
            ) from None
        if in_fit:
            self._fit_dtype = X_in.dtype
        marker = self.missing_values
        if not (self._takes_nan() or isinstance(marker, numbers.Real)):
            raise ValueError(
                "'X' and 'missing_values' types are expected to be both numerical. Got "
                f"X.dtype={X_in.dtype} and  type(missing_values)={type(marker)}."
            )
        if is_sparse and marker == 0:
            raise ValueError(
                "Imputation not possible when missing_values == 0 and input is sparse. "
                "Provide a dense array instead."
            )
        return X_in

    def _explain(self, error: ValueError, X: Any) -> str:
        message = str(error)
        if "could not convert" not in message:
            return message
        place = first_text_cell(X, getattr(X, "columns", None)) or "text"
        return (
            f"{message}. X contains {place}. Encode text first, for example with "
            "skrub.TableVectorizer(), or pass strategy='most_frequent'."
        )

    def _dense_fit(self, X: NDArray[Any], strategy: Any, *rest: Any) -> NDArray[Any]:
        if strategy in _ANY_KIND:
            if strategy == "most_frequent":
                refuse_containers(X, getattr(self, "feature_names_in_", None))
            return np.asarray(super()._dense_fit(X, strategy, *rest))
        self._fit_indicator(~self._known()(X) if self.add_indicator else None)
        return self._learned(self._column_statistics().of_dense(X))

    def _sparse_fit(self, X: Any, strategy: Any, *rest: Any) -> NDArray[Any]:
        if strategy in _ANY_KIND:
            return np.asarray(super()._sparse_fit(X, strategy, *rest))
        missing = self._missing(X)
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

    def _filled(self, X: NDArray[Any], kept: NDArray[np.bool_]) -> NDArray[Any]:
        """Return the kept columns of a dense table of floats, filled."""
        dtype = self._output_dtype() or X.dtype
        # With these strategies SimpleImputer's validation has made a copy, if needed.
        in_place = not self.copy or self.strategy in _ANY_KIND
        values = self.statistics_
        if not kept.all():
            X, values, in_place = X[:, kept], values[kept], True
        values = _rounded(values, X.dtype).astype(dtype, copy=False)
        if X.dtype == dtype:
            out = X if in_place and X.flags.writeable else np.array(X, order="K")
        else:
            with np.errstate(over="ignore"):  # numbers that overflow are replaced below
                out = X.astype(dtype, order="K", subok=False)
        # The copy was just written, so reading it is faster than reading the original.
        fill(out if X.dtype == dtype else X, values, self._known(), out)
        return out

    def _filled_in_place(
        self, X: Any, missing: NDArray[np.bool_], kept: NDArray[np.bool_]
    ) -> Any:
        """Fill the kept columns of a sparse matrix, or of objects or integers."""
        values = self.statistics_
        if not kept.all():
            X, values, missing = X[:, kept], values[kept], missing[:, kept]
        values = _rounded(values, X.dtype)
        if sparse.issparse(X):
            # Selecting columns of a sparse mask may have removed its explicit zeros.
            missing = self._missing(X.data)
            columns = np.repeat(np.arange(X.shape[1]), np.diff(X.indptr))
            X.data[missing] = values[columns[missing]]
        else:
            np.copyto(X, values, where=missing)
        return X

    def _cast(self, filled: Any, X: Any) -> Any:
        """Convert the filled table to the dtype of the output."""
        dtype = self._output_dtype()
        if dtype is None:
            return filled
        try:
            return filled.astype(dtype, copy=False)
        except ValueError as error:
            place = first_text_cell(X, getattr(X, "columns", None)) or "text"
            raise ValueError(
                f"dtype={self.dtype!r} needs numbers, and X contains {place}: {error}. "
                "Encode text first, for example with skrub.TableVectorizer(), or "
                "leave dtype=None."
            ) from None

    def __sklearn_tags__(self) -> Tags:
        # SimpleImputer's method imports pandas in each call, and a pipeline calls it
        # twice in a prediction, which may be for one row.
        tags = super(SimpleImputer, self).__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = self._takes_nan()
        preserved = ["float64", "float32"] if self.dtype is None else []
        tags.transformer_tags.preserves_dtype = preserved
        return tags


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
    return isinstance(cell, numbers.Real) and abs(float(cell)) > largest


def _rounded(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert fill values to the dtype of a table, without an overflow."""
    if dtype.kind == "f" and values.dtype.kind == "f" and dtype != values.dtype:
        largest = float(np.finfo(dtype).max)
        values = np.minimum(np.maximum(values, -largest), largest)
    return values.astype(dtype, copy=False)
