"""Imputation of missing, infinite and overflowing values."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from types import MethodType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike, NDArray
from scipy import sparse
from sklearn.base import clone
from sklearn.callback import CallbackSupportMixin
from sklearn.impute import SimpleImputer
from sklearn.utils.validation import check_is_fitted, validate_data

from sknan._utils.callbacks import fit_as_task
from sknan._utils.encoding import EncodedStateMixin
from sknan._utils.pickling import VersionedPickleMixin
from sknan._utils.validation import did_you_mean, is_one_of
from sknan.preprocessing._chunks import ChunkwiseMixin
from sknan.preprocessing._imputer_base import (
    ImputerBase,
    is_float_array,
    kept_values,
)
from sknan.preprocessing._kernels.quantile_sketch import (
    QuantileSketch,
    warn_of_new_start,
)

STRATEGIES = ("auto", "mean", "median", "zero", "most_frequent", "constant")

# Strategies that `partial_fit` does not support, and callables.
_NOT_STREAMED = ("most_frequent",)


class UnavailableMethodError(AttributeError, ValueError):
    """A method that does not exist under the parameters of the object.

    As an AttributeError it makes ``hasattr(imputer, "partial_fit")`` false, which
    scikit-learn and Dask check. As a ValueError it reports a wrong parameter.
    """


class _StreamedOnly:
    """Decorator for a method that exists only under strategies that can be streamed.

    scikit-learn's ``available_if`` would replace the reason by an AttributeError that
    is no ValueError.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__func__ = function
        update_wrapper(self, function)  # type: ignore[arg-type]

    def __get__(self, imputer: NaNImputer | None, owner: type) -> Callable[..., Any]:
        """Return the method of an imputer, or the function of the class."""
        if imputer is None:
            return self.__func__
        if callable(imputer.strategy) or is_one_of(imputer.strategy, _NOT_STREAMED):
            raise UnavailableMethodError(
                f"partial_fit cannot learn strategy={imputer.strategy!r}: the values "
                "of all chunks would have to be kept. Pass strategy='mean', 'median', "
                "'zero' or 'constant', or give fit the whole table, as a memory map if "
                "it does not fit into memory."
            )
        return MethodType(self.__func__, imputer)


class NaNImputer(
    ChunkwiseMixin,
    VersionedPickleMixin,
    EncodedStateMixin,
    ImputerBase,
    CallbackSupportMixin,
):
    r"""Imputer of missing, infinite and overflowing values, column by column.

    The parameters and the behavior are those of :class:`~sklearn.impute.SimpleImputer`.
    In addition, infinities and numbers too large for the output count as missing,
    statistics do not overflow, zero is a strategy, and the dtype of the output can be
    chosen. Booleans become 0.0 and 1.0. Dates and durations stay what they are under
    ``"most_frequent"``, ``"constant"`` and ``"median"``, and are refused by the other
    strategies.

    Parameters
    ----------
    missing_values : int, float, str, np.nan, None or pandas.NA, default=np.nan
        Marker of missing values. NaN, None and ``pandas.NA`` mean the same: all of
        these, NaT, masked cells and infinities count as missing. With any other marker,
        all of these are refused.

    strategy : str or callable, default="auto"
        Statistic of each column that is filled in:

        - ``"auto"``: the median of a dense column, the mean of a sparse column (whose
          median is nearly always 0).
        - ``"mean"``, ``"median"``: the mean or median of the known values of the
          column; numbers only, or under ``"median"`` dates, of two dates in the middle
          the first.
        - ``"zero"``: 0; numbers only.
        - ``"most_frequent"``: the most frequent known value, the smallest on ties;
          numbers or text.
        - ``"constant"``: ``fill_value``; numbers, text or dates.
        - A callable, which gets the known values of a column as a 1d array of numbers
          and returns one finite number.

    fill_value : str or number, default=None
        Value that ``strategy="constant"`` fills in. None means 0 for numbers and
        ``"missing_value"`` for text. Dates and durations need one of their kind.

    copy : bool, default=True
        If False, the table is filled in place where possible: if it is a writeable
        array of floats that has the dtype of the output, and no column is dropped.

    add_indicator : bool, default=False
        If True, one column is appended for each column with missing values in ``fit``.
        It is 1 where a value was missing, infinite or too large.

    keep_empty_features : bool, default=False
        If True, a column with no known value in ``fit`` is kept and filled with 0, or
        with ``fill_value`` under ``strategy="constant"``. Otherwise it is dropped.

    dtype : {"float16", "float32", "float64"}, numpy dtype or None, default=None
        Dtype of the output. Numbers beyond the range of this dtype count as missing.
        With None the dtype is that of :class:`~sklearn.impute.SimpleImputer`: floats
        keep their dtype, and other numbers become float64, except that they keep their
        dtype under ``"most_frequent"`` and ``"constant"``.

    Attributes
    ----------
    statistics_ : ndarray of shape (n_features,)
        Value that is filled into each column; NaN for columns that are dropped. The
        dtype is float64 for mean, median, zero and callables.

    indicator_ : MissingIndicator or None
        Indicator of missing values; None if ``add_indicator=False``.

    n_missing_ : ndarray of shape (n_features,)
        Number of missing cells of each column seen during ``fit``.

    n_samples_seen_ : int
        Number of rows seen during ``fit`` and :meth:`partial_fit`.

    n_features_in_ : int
        Number of columns seen during ``fit``.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of the columns seen during ``fit``, if all of them are strings.

    See Also
    --------
    SafeScaler : Scales the imputed table and bounds outliers.
    sklearn.impute.SimpleImputer : Refuses infinities; its statistics can overflow.

    Notes
    -----
    The mean of :math:`x_1, \ldots, x_n` is :math:`2^k \sum_i (2^{-k} x_i) / n`, summed
    in float64, with :math:`k = 0` unless the sum could overflow. The median of an even
    number of values is :math:`(a + b) / 2` of the two middle values, or
    :math:`a / 2 + b / 2` where the sum overflows. If a statistic learned from float64
    is too large for a narrower dtype given to ``transform``, the largest number of that
    dtype is filled in.

    In sparse input the entries that are not stored are zeros, not missing values.

    Dense tables, including memory maps, are read in blocks. In addition to the table,
    ``fit`` needs about a megabyte of memory. For the median it also needs a sample of
    :math:`2 n^{2/3}` of the :math:`n` rows and the values close to the middle of each
    column: together a tenth of a table of half a million rows, and less of a longer
    one. ``transform`` needs the memory of its output. For a table that does not fit
    into memory, pass a memory map to ``fit`` or chunks to :meth:`partial_fit`, and pass
    one chunk at a time to :meth:`transform`.

    Examples
    --------
    The prices of eggs and milk in London, Venice and Prague:

    >>> import numpy as np
    >>> from sknan.preprocessing import NaNImputer
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

    # `fit` checks `strategy`, which has more values here, and the new parameters.
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

    @fit_as_task
    def fit(self, X: Any, y: Any = None) -> NaNImputer:
        """Learn the statistic of each column.

        Parameters
        ----------
        X : array-like, DataFrame, sparse matrix or chunks, (n_samples, n_features)
            Table with missing values. Of chunks, which
            :func:`~sknan.preprocessing.iter_chunks` gives, all rows are used as in
            :meth:`partial_fit`, or a sample under strategies that lack this method.

        y : Ignored
            Present by convention.

        Returns
        -------
        NaNImputer
            The fitted imputer itself.

        Raises
        ------
        ValueError
            If a parameter is invalid, if ``X`` contains text under a numeric strategy,
            or if the fill value or a result of the callable is too large for the
            output.
        """
        strategy = self.strategy
        if not (callable(strategy) or is_one_of(strategy, STRATEGIES)):
            known = ", ".join(repr(name) for name in STRATEGIES)
            is_name = isinstance(strategy, str)
            hint = did_you_mean(strategy, STRATEGIES) if is_name else ""
            raise ValueError(
                f"The 'strategy' parameter of NaNImputer must be one of {known} or a "
                f"callable. Got {strategy!r} instead.{hint}"
            )
        self._running = self._sketch = None
        super().fit(X, y)
        # `transform` compares the dtype of its input with the dtype given to `fit`.
        self._fill_dtype = self._fit_dtype
        return self

    def transform(self, X: Any) -> Any:
        """Fill the missing values of a table.

        Parameters
        ----------
        X : array-like, DataFrame or sparse matrix of shape (n_samples, n_features)
            Table with missing values.

        Returns
        -------
        ndarray or sparse matrix of shape (n_samples, n_features_out)
            The filled table, followed by the indicator columns if
            ``add_indicator=True``. It is a DataFrame after ``set_output``, and sparse
            if ``X`` is sparse.
        """
        if not hasattr(self, "statistics_"):
            check_is_fitted(self)
        X_in = self._validate_input(X, in_fit=False)
        if is_float_array(X_in):
            if not self.add_indicator:
                return self._filled(X_in)
            missing = ~self._known()(X_in)
            filled = self._filled(X_in)
        else:
            missing = self._missing(X_in)
            filled = self._filled_in_place(self._cast(X_in, X), missing)
        return self._concatenate_indicator(filled, self._transform_indicator(missing))

    @_StreamedOnly
    def partial_fit(self, X: Any, y: Any = None) -> NaNImputer:
        """Learn from one more chunk of a table that does not fit into memory.

        This method does not exist for ``"most_frequent"`` and callables, which need the
        values of all chunks at once. For them :meth:`fit` can read a memory map in
        blocks; see the Notes of the class.

        Parameters
        ----------
        X : array-like, DataFrame or sparse matrix of shape (n_samples, n_features)
            Chunk with the same columns as the chunks before.

        y : Ignored
            Present by convention.

        Returns
        -------
        NaNImputer
            The imputer itself, fitted to all chunks so far and to the table of the last
            call of :meth:`fit`, if there was one. Medians cannot continue from it.

        Raises
        ------
        ValueError
            If the strategy is another one (then ``hasattr(imputer, "partial_fit")`` is
            false), if the columns differ from those before, if text follows numbers, or
            if a chunk is sparse and a median is learned.

        Warns
        -----
        UserWarning
            If medians were learned by :meth:`fit`: they are then those of the chunks.

        Notes
        -----
        For the first chunk the mean is that of :meth:`fit`. With more chunks the mean
        may differ from the mean of the whole table in the last digits, since the
        float64 mean of each chunk is rounded by a few units in the last place of its
        largest values. The means of the chunks are combined exactly, so that more
        chunks do not increase the error. Medians are those of
        :meth:`SafeScaler.partial_fit`, whose error is stated in the Notes of
        :class:`SafeScaler`, of values that are rounded to ``dtype`` if it is given.
        """
        is_first = not hasattr(self, "statistics_")
        if not is_first and self._learns_medians() and self._sketch is None:
            warn_of_new_start()
        self._add(X, is_first=is_first)
        return self._finish()

    def _learns_from_chunks(self) -> bool:
        return hasattr(self, "partial_fit")

    def _learns_medians(self) -> bool:
        is_auto = self.strategy == "auto" and self._running is None
        return is_auto or self.strategy == "median"

    def _add(self, X: Any, *, is_first: bool) -> None:
        """Include a chunk in all statistics but medians, which `_finish` sets."""
        if is_first:
            self.fit(X)
        if self._learns_medians():
            self._add_to_sketch(X)
        elif not is_first:
            self._add_chunk(X)

    def _finish(self) -> NaNImputer:
        """Learn from the chunks included so far."""
        if self._sketch is not None:
            found = self._sketch.quantiles([0.5])
            self.statistics_ = self._column_statistics().medians(found)
            self._set_missing(self.n_samples_seen_ - found.n_known)
        return self

    def _sketch_of_output(self) -> QuantileSketch | None:
        if self._sketch is None:
            return None
        dtype = self._output_dtype() or self._fit_dtype
        kept = np.flatnonzero(self._kept())
        _, values = kept_values(self.statistics_, self._kept(), dtype)
        flagged = self._fitted_indicator().features_ if self.add_indicator else kept[:0]
        return self._sketch.filled(kept, values, flagged, self.n_missing_)

    def _add_chunk(self, X: Any) -> None:
        validate_data(self, X, reset=False, skip_check_array=True)
        chunk = clone(self).fit(X)
        if (self._fit_dtype.kind == "O") != (chunk._fit_dtype.kind == "O"):
            raise ValueError(
                f"A chunk of dtype {chunk._fit_dtype} came after one of "
                f"{self._fit_dtype}. Pass all chunks as numbers, or all as objects."
            )
        if self.strategy in ("auto", "mean"):
            self._add_means(chunk)
        else:
            unknown = np.asarray(pd.isna(self.statistics_))
            self.statistics_ = np.where(unknown, chunk.statistics_, self.statistics_)
        self.n_samples_seen_ += chunk.n_samples_seen_
        self._set_missing(self.n_missing_ + chunk.n_missing_)

    def _set_missing(self, n_missing: NDArray[np.int64]) -> None:
        self.n_missing_ = n_missing
        if self.add_indicator:
            self._fitted_indicator().features_ = np.flatnonzero(n_missing)

    def _add_to_sketch(self, X: Any) -> None:
        X_in = self._validate_input(X, in_fit=False)
        if X_in.dtype.kind == "O":
            raise ValueError(
                "partial_fit learns medians of numbers, and dates were passed. Pass "
                "the whole table to fit, or convert the dates to numbers."
            )
        if sparse.issparse(X_in):
            raise ValueError(
                "partial_fit learns medians from dense chunks, and a sparse one was "
                "passed. Pass chunk.toarray(), or strategy='mean'."
            )
        if self._sketch is None:
            self._sketch = QuantileSketch(self.n_features_in_, self._output_dtype())
            self.n_samples_seen_ = 0
        self._sketch.add(X_in, self._known())
        self.n_samples_seen_ += len(X_in)

    def inverse_transform(self, X: Any) -> NDArray[Any]:
        """Restore the missing values that the indicator columns mark.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features_out)
            Result of :meth:`transform`, including the indicator columns.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            The table before imputation. Infinite and too large values become missing
            values, and so do the columns that were dropped. Filled values stay in
            columns without an indicator.

        Raises
        ------
        ValueError
            If ``add_indicator=False``, or if the number of columns differs from that of
            the result of :meth:`transform`.
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
        n_filled, flagged = int(kept.sum()), self._fitted_indicator().features_
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

    def _add_means(self, chunk: NaNImputer) -> None:
        if self._running is None or chunk._running is None:
            raise ValueError(
                "The imputer was fitted under another strategy, from which no mean can "
                "be continued. Call fit first, or start from clone(imputer)."
            )
        self._running.add(chunk._running)
        self.statistics_ = self._learned(self._running)
