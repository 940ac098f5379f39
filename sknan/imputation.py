"""Missing, infinite and overflowing cells filled in: NaNImputer."""

from __future__ import annotations

import contextlib
import itertools
import math
import numbers
import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike, NDArray
from scipy import sparse
from sklearn import config_context
from sklearn.impute import SimpleImputer
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from sknan._caller import stacklevel_of_caller
from sknan._checks import FLOAT64_MAX, column_name, did_you_mean, first_text_cell
from sknan._columns import columns_of, mean, median
from sknan._pickling import VersionedPickleMixin

__all__ = ["NaNImputer"]

_STRATEGIES = ("auto", "mean", "median", "zero", "most_frequent", "constant")

# These two also fill text: scikit-learn's own code finds their statistics.
_ANY_KIND = ("most_frequent", "constant")

_DTYPES = ("float16", "float32", "float64")


class NaNImputer(VersionedPickleMixin, SimpleImputer):
    r"""Fill missing, infinite and overflowing values column by column.

    :class:`~sklearn.impute.SimpleImputer` with the same parameters and behaviour, and
    more: infinities and numbers too large for the output count as missing, statistics
    do not overflow, zero is a strategy, and the output's dtype can be chosen.

    Parameters
    ----------
    missing_values : int, float, str, np.nan, None or pandas.NA, default=np.nan
        What marks a missing value. With NaN or ``pandas.NA`` infinities count as
        missing too; with any other marker they are refused, as NaN is.

    strategy : str or callable, default="auto"
        What is filled in: one of

        - ``"auto"``: the median; of sparse columns, whose median is nearly always 0,
          the mean.
        - ``"mean"``, ``"median"``: of the column's known values; numbers only.
        - ``"zero"``: 0; numbers only.
        - ``"most_frequent"``: the most frequent known value, the smallest on ties;
          numbers or text.
        - ``"constant"``: ``fill_value``; numbers or text.
        - a callable, which is given the known values of a column as a 1d array of
          numbers and returns one finite number.

    fill_value : str or number, default=None
        What ``strategy="constant"`` fills in. None is 0 for numbers and
        ``"missing_value"`` for text.

    copy : bool, default=True
        If False, impute in place where possible: an array of floats that can be written
        to and has the output's dtype, no column dropped.

    add_indicator : bool, default=False
        If True, one column is appended for each column with missing values in ``fit``:
        1 where a value was missing, infinite or too large.

    keep_empty_features : bool, default=False
        If True, a column with no known value in ``fit`` is kept and filled with 0 (with
        ``fill_value`` under ``strategy="constant"``); otherwise it is dropped.

    dtype : {"float16", "float32", "float64"}, numpy dtype or None, default=None
        Dtype of the output. Numbers beyond its largest count as missing. None keeps
        what :class:`~sklearn.impute.SimpleImputer` gives: the dtype of floats, float64
        for other numbers (under ``"most_frequent"`` and ``"constant"`` their own).

    Attributes
    ----------
    statistics_ : ndarray of shape (n_features,)
        What is filled into each column; NaN for columns that are dropped. float64 for
        mean, median, zero and callables.

    indicator_ : MissingIndicator or None
        The indicator; None if ``add_indicator=False``.

    n_features_in_ : int
        Number of columns seen during ``fit``.

    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns seen during ``fit``, if all of them are strings.

    See Also
    --------
    SafeScaler : Scales what was imputed, however far its outliers lie.
    sklearn.impute.SimpleImputer : Refuses infinities; its statistics can overflow.

    Notes
    -----
    The mean of :math:`x_1, \dots, x_n` is :math:`2^k \sum_i (2^{-k} x_i) / n`, summed
    in float64, with :math:`k = 0` unless the sum could overflow. The median of an even
    number of values is :math:`(a + b) / 2` of the two in the middle, or
    :math:`a / 2 + b / 2` where the sum overflows. A statistic learnt from float64 that
    is too large for narrower floats given to ``transform`` becomes their largest.

    In sparse input the entries that are not stored are zeros, not missing values.

    Examples
    --------
    The prices of eggs and milk in London, Venice and Prague:

    >>> import numpy as np
    >>> from sknan.imputation import NaNImputer
    >>> prices = np.array([[2.5, 7.9], [np.nan, 8.9], [4.6, np.inf]])
    >>> NaNImputer(strategy="mean").fit_transform(prices)
    array([[2.5 , 7.9 ],
           [3.55, 8.9 ],
           [4.6 , 8.4 ]])
    >>> NaNImputer(strategy="zero", add_indicator=True).fit_transform(prices)
    array([[2.5, 7.9, 0. , 0. ],
           [0. , 8.9, 1. , 0. ],
           [4.6, 0. , 0. , 1. ]])
    >>> NaNImputer(dtype="float32").fit_transform([[1.0], [1e39], [3.0], [8.0]])
    array([[1.],
           [3.],
           [3.],
           [8.]], dtype=float32)
    """

    # The rules of the parameters that are new, or take more here, are checked in `fit`.
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        name: rule
        for name, rule in SimpleImputer._parameter_constraints.items()
        if name != "strategy"
    }

    def __init__(
        self,
        *,
        missing_values: Any = np.nan,
        strategy: str | Callable[[NDArray[Any]], Any] = "auto",
        fill_value: Any = None,
        copy: bool = True,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(
            missing_values=missing_values,
            strategy=strategy,
            fill_value=fill_value,
            copy=copy,
            add_indicator=add_indicator,
            keep_empty_features=keep_empty_features,
        )
        self.dtype = dtype

    def fit(self, X: Any, y: Any = None) -> NaNImputer:
        """Learn what is filled into each column.

        Parameters
        ----------
        X : array-like, DataFrame or sparse matrix of shape (n_samples, n_features)
            The table with its holes.

        y : Ignored
            Present by convention.

        Returns
        -------
        NaNImputer
            The fitted imputer itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, a numeric strategy meets text, or a
            fill value or a callable's result is too large for the output.
        """
        strategy = self.strategy
        if not (callable(strategy) or strategy in _STRATEGIES):
            known = ", ".join(repr(name) for name in _STRATEGIES)
            is_name = isinstance(strategy, str)
            hint = did_you_mean(strategy, _STRATEGIES) if is_name else ""
            raise ValueError(
                f"The 'strategy' parameter of NaNImputer must be one of {known} or a "
                f"callable. Got {strategy!r} instead.{hint}"
            )
        self._check_fill_value()
        super().fit(X, y)
        # The kind of what was given, against which `transform` holds its input.
        self._fill_dtype = self._fit_dtype
        return self

    def transform(self, X: Any) -> Any:
        """Fill the table.

        Parameters
        ----------
        X : array-like, DataFrame or sparse matrix of shape (n_samples, n_features)
            The table with its holes.

        Returns
        -------
        ndarray or sparse matrix of shape (n_samples, n_features_out)
            The filled table, then the indicator columns if asked for; a DataFrame after
            ``set_output``. Sparse if ``X`` is.
        """
        check_is_fitted(self)
        X_in = self._validate_input(X, in_fit=False)
        missing = self._missing(X_in)
        kept = self._kept()
        fill = self.statistics_
        if kept.all():
            holes = missing
        else:
            self._warn_of_dropped(~kept)
            X_in, fill, holes = X_in[:, kept], fill[kept], missing[:, kept]
        fill = _rounded(fill, X_in.dtype)
        if sparse.issparse(X_in):
            # The mask of a selection of columns may have lost its explicit zeros.
            gone = self._missing(X_in.data)
            columns = np.repeat(np.arange(X_in.shape[1]), np.diff(X_in.indptr))
            X_in.data[gone] = fill[columns[gone]]
        else:
            np.copyto(X_in, fill, where=holes)
        X_in = self._cast(X_in, X)
        return self._concatenate_indicator(X_in, self._transform_indicator(missing))

    def inverse_transform(self, X: Any) -> NDArray[Any]:
        """Put the marker of missing values back where the indicator columns say.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features_out)
            What :meth:`transform` gave, indicator columns included.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            The table before imputation. What was infinite or too large comes back as
            missing, and so do the columns that were dropped. What was filled in a
            column without an indicator stays filled.

        Raises
        ------
        ValueError
            If there are no indicators, or not as many columns as :meth:`transform`
            gives.
        """
        check_is_fitted(self)
        if not self.add_indicator:
            raise ValueError(
                "'inverse_transform' works only when 'NaNImputer' is instantiated with "
                f"'add_indicator=True'. Got 'add_indicator={self.add_indicator}' "
                "instead."
            )
        X_in = X.toarray() if sparse.issparse(X) else np.asarray(X)
        kept = self._kept()
        n_filled, flagged = int(kept.sum()), self.indicator_.features_
        if X_in.ndim != 2 or X_in.shape[1] != n_filled + len(flagged):
            raise ValueError(
                f"X has shape {X_in.shape}, but NaNImputer gives {n_filled} filled and "
                f"{len(flagged)} indicator columns. Pass what transform returned."
            )
        marker = self._marker()
        # Integers have no NaN.
        dtype = np.result_type(X_in.dtype, np.min_scalar_type(marker))
        original = np.full((len(X_in), len(kept)), marker, dtype=dtype)
        original[:, kept] = X_in[:, :n_filled]
        missing = np.zeros(original.shape, dtype=bool)
        missing[:, flagged] = X_in[:, n_filled:].astype(bool)
        original[missing] = marker
        return original

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

    def _takes_nan(self) -> bool:
        marker = self.missing_values
        is_nan = isinstance(marker, numbers.Real) and math.isnan(marker)
        return is_nan or marker is pd.NA

    def _marker(self) -> Any:
        """What a missing cell is set to, so that scikit-learn's code sees it."""
        return np.nan if self._takes_nan() else self.missing_values

    def _kept(self) -> NDArray[np.bool_]:
        """The columns that are not dropped."""
        return ~np.asarray(pd.isna(self.statistics_))

    def _missing(self, X: Any) -> Any:
        """Where the marker stands: an array or CSC matrix of bool."""
        if sparse.issparse(X):
            mask = self._missing(X.data)
            return type(X)((mask, X.indices.copy(), X.indptr.copy()), shape=X.shape)
        if self._takes_nan():
            return np.asarray(pd.isna(X))
        return np.asarray(self.missing_values == X)

    def _validate_input(self, X: Any, in_fit: bool) -> Any:
        """``X`` as the array or CSC matrix the strategy works on, every hole marked."""
        try:
            # What is not finite is a hole, unless something else marks the holes.
            with config_context(assume_finite=self._takes_nan() or None):
                X_in = super()._validate_input(X, in_fit=in_fit)
        except ValueError as error:
            raise ValueError(self._explain(error, X)) from None
        dtype = self._output_dtype()
        if dtype is not None and X_in.dtype.kind in "iu":
            X_in = X_in.astype(np.float64)
        cells = X_in.data if sparse.issparse(X_in) else X_in
        unfit = _unfit_cells(cells, dtype, everything=self._takes_nan())
        if unfit.any():
            if in_fit:  # only `transform` may write to the caller's table
                X_in = X_in.copy()
                cells = X_in.data if sparse.issparse(X_in) else X_in
            cells[unfit] = self._marker()
        return X_in

    def _explain(self, error: ValueError, X: Any) -> str:
        message = str(error)
        if "could not convert" not in message:
            return message
        place = first_text_cell(X, getattr(X, "columns", None)) or "text"
        return (
            f"{message}. X holds {place}. Encode text first, for example with "
            "skrub.TableVectorizer(), or pass strategy='most_frequent'."
        )

    def _dense_fit(
        self, X: NDArray[Any], strategy: Any, missing_values: Any, fill_value: Any
    ) -> NDArray[Any]:
        if strategy in _ANY_KIND:
            if strategy == "most_frequent":
                _refuse_containers(X, getattr(self, "feature_names_in_", None))
            statistics: NDArray[Any] = super()._dense_fit(
                X, strategy, missing_values, fill_value
            )
            return statistics
        missing = self._missing(X)
        self._fit_indicator(missing)
        columns = zip(columns_of(X), columns_of(missing), strict=True)
        strategy = "median" if strategy == "auto" else strategy
        known = ((column[~gone], 0) for column, gone in columns)
        return self._statistics(known, strategy)

    def _sparse_fit(
        self, X: Any, strategy: Any, missing_values: Any, fill_value: Any
    ) -> NDArray[Any]:
        if strategy in _ANY_KIND:
            statistics: NDArray[Any] = super()._sparse_fit(
                X, strategy, missing_values, fill_value
            )
            return statistics
        missing = self._missing(X)
        known = ~missing.data
        self._fit_indicator(missing)  # drops the entries that are False
        n_zeros = X.shape[0] - np.diff(X.indptr)
        parts = [slice(*ends) for ends in itertools.pairwise(X.indptr)]
        columns = (
            (X.data[part][known[part]], int(n))
            for part, n in zip(parts, n_zeros, strict=True)
        )
        return self._statistics(columns, "mean" if strategy == "auto" else strategy)

    def _statistics(
        self, columns: Iterable[tuple[NDArray[Any], int]], strategy: Any
    ) -> NDArray[np.float64]:
        """What is filled into each column.

        Given are its known values, to be reordered, and how many zeros it has besides.
        """
        empty = 0.0 if self.keep_empty_features else math.nan
        found = [
            self._statistic(values, n_zeros, strategy, index)
            if values.size + n_zeros
            else empty
            for index, (values, n_zeros) in enumerate(columns)
        ]
        return np.array(found, dtype=np.float64)

    def _statistic(
        self, values: NDArray[Any], n_zeros: int, strategy: Any, index: int
    ) -> float:
        if strategy == "zero":
            return 0.0
        if strategy == "mean":
            return mean(values, n_zeros)
        if strategy == "median":
            return median(values, n_zeros)
        zeros = np.zeros(n_zeros, dtype=values.dtype)
        value = float(strategy(np.append(values, zeros)))
        if not abs(value) <= self._largest():
            names = getattr(self, "feature_names_in_", None)
            raise ValueError(
                f"strategy {strategy!r} returned {value!r} for column "
                f"{column_name(index, names)}. It must return a finite number that "
                "fits the output's dtype."
            )
        return value

    def _largest(self) -> float:
        dtype = self._output_dtype()
        return FLOAT64_MAX if dtype is None else float(np.finfo(dtype).max)

    def _check_fill_value(self) -> None:
        value = self.fill_value
        if self.strategy != "constant" or not isinstance(value, numbers.Real):
            return
        if not abs(float(value)) <= self._largest():
            raise ValueError(
                f"fill_value must be finite and fit the output's dtype, got {value!r}."
            )

    def _warn_of_dropped(self, dropped: NDArray[np.bool_]) -> None:
        names = getattr(self, "feature_names_in_", None)
        columns = np.flatnonzero(dropped) if names is None else names[dropped]
        warnings.warn(
            f"Skipping features without any observed values: {columns}. At least one "
            f"non-missing value is needed for imputation with strategy="
            f"{self.strategy!r}. keep_empty_features=True keeps them, filled with 0.",
            stacklevel=stacklevel_of_caller(),
        )

    def _cast(self, filled: Any, X: Any) -> Any:
        """The filled table in the output's dtype."""
        dtype = self._output_dtype()
        if dtype is None:
            return filled
        try:
            return filled.astype(dtype, copy=False)
        except ValueError as error:
            place = first_text_cell(X, getattr(X, "columns", None)) or "text"
            raise ValueError(
                f"dtype={self.dtype!r} needs numbers, and X holds {place}: {error}. "
                "Encode text first, for example with skrub.TableVectorizer(), or "
                "leave dtype=None."
            ) from None

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        if self.dtype is None:
            tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        else:
            tags.transformer_tags.preserves_dtype = []
        return tags


def _refuse_containers(X: NDArray[Any], names: Any) -> None:
    """Refuse cells that cannot be counted, such as lists and dicts."""
    if X.dtype.kind != "O":
        return
    for i, j in np.ndindex(*X.shape):
        if not isinstance(X[i, j], Hashable):
            raise TypeError(
                f"X holds a {type(X[i, j]).__name__} at row {i}, column "
                f"{column_name(j, names)}: to be counted, the argument must be a "
                "string or a number."
            )


def _unfit_cells(
    cells: NDArray[Any], dtype: np.dtype[Any] | None, *, everything: bool
) -> NDArray[np.bool_]:
    """Where a number is too large for ``dtype``; if ``everything``, or is not finite.

    In a table of objects ``None``, ``pandas.NA`` and NaT are not finite either.
    """
    if cells.dtype.kind == "O":
        largest = FLOAT64_MAX if dtype is None else float(np.finfo(dtype).max)
        exceeds = np.frompyfunc(_exceeds, 2, 1)
        with np.errstate(invalid="ignore"):  # NaN exceeds nothing
            unfit = np.asarray(exceeds(cells, largest), dtype=bool)
        return unfit | np.asarray(pd.isna(cells)) if everything else unfit
    if cells.dtype.kind != "f":
        return np.zeros(1, dtype=bool)
    # Compared in its own dtype: a wider limit would be infinite there, and no number
    # is beyond infinity.
    largest = float(np.finfo(cells.dtype).max)
    if dtype is not None:
        largest = min(largest, float(np.finfo(dtype).max))
    return np.asarray(np.abs(cells) > cells.dtype.type(largest))


def _exceeds(cell: Any, largest: float) -> bool:
    return isinstance(cell, numbers.Real) and abs(float(cell)) > largest


def _rounded(fill: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The statistics in the table's dtype, none of them overflowing it."""
    if dtype.kind == "f" and fill.dtype.kind == "f":
        largest = float(np.finfo(dtype).max)
        fill = np.clip(fill, -largest, largest)
    return fill.astype(dtype)
