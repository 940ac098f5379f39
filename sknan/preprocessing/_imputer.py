"""Missing, infinite and overflowing cells filled in: NaNImputer."""

from __future__ import annotations

import contextlib
import itertools
import math
import numbers
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike, NDArray
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.callback import CallbackSupportMixin
from sklearn.impute import SimpleImputer
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from sknan._utils.callbacks import fit_as_task
from sknan._utils.pickling import VersionedPickleMixin
from sknan._utils.stacklevel import stacklevel_of_caller
from sknan._utils.validation import (
    FLOAT64_MAX,
    already_valid_array,
    column_name,
    did_you_mean,
    first_text_cell,
)
from sknan.preprocessing._conditional_method import AvailableUnless
from sknan.preprocessing._kernels.blocks import KnownMask, fill
from sknan.preprocessing._kernels.column_means import (
    columns_of,
    count_known,
    mean,
    means,
    median,
    midpoint,
)
from sknan.preprocessing._kernels.quantiles import bracketing_values
from sknan.preprocessing._kernels.running_means import RunningMeans

__all__ = ["NaNImputer"]

STRATEGIES = ("auto", "mean", "median", "zero", "most_frequent", "constant")

# These two also fill text: scikit-learn's own code finds their statistics.
_ANY_KIND = ("most_frequent", "constant")

_DTYPES = ("float16", "float32", "float64")

# Tables of these are worked on as they are; others become the first.
_TABLE_DTYPES = tuple(map(np.dtype, ("float64", "float32", "float16")))

# What partial_fit learns.
_STREAMED = ("mean", "zero", "constant")


def _cannot_stream(imputer: NaNImputer) -> str:
    if imputer.strategy in _STREAMED:
        return ""
    return (
        f"partial_fit cannot learn strategy={imputer.strategy!r}: the values of all "
        "chunks would have to be kept. Pass strategy='mean', 'zero' or 'constant', or "
        "give fit the whole table, as a memory map if it does not fit into memory."
    )


class NaNImputer(VersionedPickleMixin, SimpleImputer, CallbackSupportMixin):
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

    feature_names_in_ : ndarray of shape (n_features,)
        Names of the columns seen during ``fit``, if all of them are strings.

    See Also
    --------
    SafeScaler : Scales what was imputed, however far its outliers lie.
    sklearn.impute.SimpleImputer : Refuses infinities; its statistics can overflow.

    Notes
    -----
    The mean of :math:`x_1, \ldots, x_n` is :math:`2^k \sum_i (2^{-k} x_i) / n`, summed
    in float64, with :math:`k = 0` unless the sum could overflow. The median of an even
    number of values is :math:`(a + b) / 2` of the two in the middle, or
    :math:`a / 2 + b / 2` where the sum overflows. A statistic learnt from float64 that
    is too large for narrower floats given to ``transform`` becomes their largest.

    In sparse input the entries that are not stored are zeros, not missing values.

    Dense tables are read in blocks, memory maps too. Beside the table ``fit`` needs
    about a megabyte, and for the median a sample of :math:`2 n^{2/3}` of the :math:`n`
    rows and what lies close to the middle of each column, together a tenth of a table
    of half a million rows and less of longer ones; ``transform`` needs its output. Of a
    table that does not fit into memory give ``fit`` a memory map, or
    :meth:`partial_fit` chunks, and :meth:`transform` one chunk at a time.

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

    # The rules of the parameters that are new, or take more here, are checked in `fit`.
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        name: rule
        for name, rule in SimpleImputer._parameter_constraints.items()
        if name != "strategy"
    }

    statistics_: NDArray[Any]

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
        if not (callable(strategy) or strategy in STRATEGIES):
            known = ", ".join(repr(name) for name in STRATEGIES)
            is_name = isinstance(strategy, str)
            hint = did_you_mean(strategy, STRATEGIES) if is_name else ""
            raise ValueError(
                f"The 'strategy' parameter of NaNImputer must be one of {known} or a "
                f"callable. Got {strategy!r} instead.{hint}"
            )
        self._check_fill_value()
        self._running: RunningMeans | None = None
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
        if not hasattr(self, "statistics_"):
            check_is_fitted(self)
        X_in = self._validate_input(X, in_fit=False)
        kept = self._kept()
        if not kept.all():
            self._warn_of_dropped(~kept)
        if _is_table_of_floats(X_in):
            missing = ~self._known()(X_in) if self.add_indicator else None
            filled = self._filled(X_in, kept)
        else:
            missing = self._missing(X_in)
            filled = self._cast(self._filled_in_place(X_in, missing, kept), X)
        return self._concatenate_indicator(filled, self._transform_indicator(missing))

    @AvailableUnless(_cannot_stream)
    def partial_fit(self, X: Any, y: Any = None) -> NaNImputer:
        """Learn from one more chunk of a table that does not fit into memory.

        Only under ``strategy`` ``"mean"``, ``"zero"`` and ``"constant"``. A median, a
        most frequent value and a callable cannot be had without keeping what all chunks
        hold; but :meth:`fit` reads a memory map in blocks, see Notes.

        Parameters
        ----------
        X : array-like, DataFrame or sparse matrix of shape (n_samples, n_features)
            The chunk, with the columns of those before it.

        y : Ignored
            Present by convention.

        Returns
        -------
        NaNImputer
            The imputer itself, fitted to all chunks since it was made or last given to
            :meth:`fit`, that table included.

        Raises
        ------
        ValueError
            Under another strategy (then ``hasattr(imputer, "partial_fit")`` is false),
            for other columns than before, or for text after numbers.

        Notes
        -----
        The first chunk alone gives what :meth:`fit` gives. With more of them the mean
        may differ from that of the whole table in the last digits: the float64 means of
        the chunks are rounded, by a few units of their largest values' last place.
        They are put together exactly, so that more chunks bring no more error.
        """
        if not hasattr(self, "statistics_"):
            return self.fit(X, y)
        validate_data(self, X, reset=False, skip_check_array=True)
        chunk = clone(self).fit(X)
        if (self._fit_dtype.kind == "O") != (chunk._fit_dtype.kind == "O"):
            raise ValueError(
                f"A chunk of dtype {chunk._fit_dtype} came after one of "
                f"{self._fit_dtype}. Bring all chunks to one kind, numbers or objects."
            )
        if self.strategy == "mean":
            self._add_means(chunk)
        else:
            unknown = np.asarray(pd.isna(self.statistics_))
            self.statistics_ = np.where(unknown, chunk.statistics_, self.statistics_)
        if self.add_indicator:
            flagged = (self.indicator_.features_, chunk.indicator_.features_)
            self.indicator_.features_ = np.union1d(*flagged)
        return self

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
        statistics: NDArray[Any] = self.statistics_
        isna = np.isnan if statistics.dtype.kind == "f" else pd.isna
        return ~np.asarray(isna(statistics))

    def _missing(self, X: Any) -> Any:
        """Where the marker stands: an array or CSC matrix of bool."""
        if sparse.issparse(X):
            mask = self._missing(X.data)
            return type(X)((mask, X.indices.copy(), X.indptr.copy()), shape=X.shape)
        if self._takes_nan():
            return np.asarray(pd.isna(X))
        return np.asarray(self.missing_values == X)

    def _validate_input(self, X: Any, in_fit: bool) -> Any:
        """``X`` as the array or CSC matrix the strategy works on.

        Every hole is marked, but in a dense table of floats.
        """
        is_numeric = self.strategy not in _ANY_KIND
        if is_numeric and not in_fit and self._takes_nan():
            table = already_valid_array(X, self, _TABLE_DTYPES)
            if table is not None:
                return table
        validate = self._validate_numbers if is_numeric else super()._validate_input
        try:
            # What is not finite is a hole, unless something else marks the holes.
            with config_context(assume_finite=self._takes_nan() or None):
                X_in = validate(X, in_fit=in_fit)
        except ValueError as error:
            raise ValueError(self._explain(error, X)) from None
        dtype = self._output_dtype()
        if _is_table_of_floats(X_in) and (is_numeric or not in_fit):
            return X_in
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

    def _validate_numbers(self, X: Any, in_fit: bool) -> Any:
        """As `SimpleImputer` does, but for a copy of what is dense."""
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

    def _known(self) -> KnownMask:
        marker = math.nan if self._takes_nan() else self.missing_values
        return KnownMask(marker, self._largest())

    def _filled(self, X: NDArray[Any], kept: NDArray[np.bool_]) -> NDArray[Any]:
        """A dense table of floats, filled in a copy or in place."""
        dtype = self._output_dtype() or X.dtype
        # What `SimpleImputer` validates is a copy already, if one was wanted.
        may_write = not self.copy or self.strategy in _ANY_KIND
        values = self.statistics_
        if not kept.all():
            X, values, may_write = X[:, kept], values[kept], True
        values = _rounded(values, X.dtype).astype(dtype, copy=False)
        if X.dtype == dtype:
            out = X if may_write and X.flags.writeable else np.array(X, order="K")
        else:
            with np.errstate(over="ignore"):  # what overflows is to be replaced
                out = X.astype(dtype, order="K", subok=False)
        # The copy is nearer at hand than what it is a copy of.
        fill(out if X.dtype == dtype else X, values, self._known(), out)
        return out

    def _filled_in_place(self, X: Any, missing: Any, kept: NDArray[np.bool_]) -> Any:
        """A sparse matrix, or a table of objects or integers, filled."""
        values = self.statistics_
        if not kept.all():
            X, values, missing = X[:, kept], values[kept], missing[:, kept]
        values = _rounded(values, X.dtype)
        if sparse.issparse(X):
            # The mask of a selection of columns may have lost its explicit zeros.
            gone = self._missing(X.data)
            columns = np.repeat(np.arange(X.shape[1]), np.diff(X.indptr))
            X.data[gone] = values[columns[gone]]
        else:
            np.copyto(X, values, where=missing)
        return X

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
        known = self._known()
        self._fit_indicator(~known(X) if self.add_indicator else None)
        if strategy == "zero":
            is_empty = count_known(X, known, enough=1) == 0
            statistics = np.where(is_empty, self._of_empty(), 0.0)
        elif strategy == "mean":
            statistics = self._means(*means(X, known))
        elif strategy in ("auto", "median"):
            near = bracketing_values(X, [0.5], known)
            pairs = zip(near.low[0].tolist(), near.high[0].tolist(), strict=True)
            statistics = np.array([midpoint(low, high) for low, high in pairs])
            statistics[near.n_known == 0] = self._of_empty()
        else:
            columns = enumerate(columns_of(X))
            statistics = np.array(
                [self._called(column[known(column)], j) for j, column in columns]
            )
        return statistics

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
        if strategy in ("auto", "mean"):
            found = [
                (mean(values, n) if values.size + n else math.nan, values.size + n)
                for values, n in columns
            ]
            return self._means(*map(np.array, zip(*found, strict=True)))
        return np.array(list(self._of_sparse_columns(columns, strategy)))

    def _of_sparse_columns(
        self, columns: Iterator[tuple[NDArray[Any], int]], strategy: Any
    ) -> Iterator[float]:
        """What is filled into each column of so many values and zeros."""
        for index, (values, n_zeros) in enumerate(columns):
            if values.size + n_zeros == 0:
                yield self._of_empty()
            elif strategy == "zero":
                yield 0.0
            elif strategy == "median":
                yield median(values, n_zeros)
            else:
                zeros = np.zeros(n_zeros, dtype=values.dtype)
                yield self._called(np.append(values, zeros), index)

    def _of_empty(self) -> float:
        """What is filled into a column without a known value."""
        return 0.0 if self.keep_empty_features else math.nan

    def _means(
        self, found: NDArray[np.float64], counts: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Means so found, remembered for `partial_fit`."""
        self._running = RunningMeans(found, counts)
        return self._filling_means(self._running)

    def _filling_means(self, running: RunningMeans) -> NDArray[np.float64]:
        return np.where(running.counts > 0, running.means, self._of_empty())

    def _add_means(self, chunk: NaNImputer) -> None:
        if self._running is None or chunk._running is None:
            raise ValueError(
                "The imputer was fitted under another strategy, from which no mean can "
                "be continued. Call fit first, or start from clone(imputer)."
            )
        self._running.add(chunk._running)
        self.statistics_ = self._filling_means(self._running)

    def _called(self, values: NDArray[Any], index: int) -> float:
        """What the callable strategy finds for a column."""
        if values.size == 0:
            return self._of_empty()
        value = float(self.strategy(values))
        if not abs(value) <= self._largest():
            names = getattr(self, "feature_names_in_", None)
            raise ValueError(
                f"strategy {self.strategy!r} returned {value!r} for column "
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
        # Those of SimpleImputer import pandas each time, and a pipeline asks for them
        # twice in a prediction, which may be of one row.
        tags = super(SimpleImputer, self).__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = self._takes_nan()
        if self.dtype is None:
            tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        else:
            tags.transformer_tags.preserves_dtype = []
        return tags


def _is_table_of_floats(X: Any) -> bool:
    return isinstance(X, np.ndarray) and X.dtype.kind == "f"


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
    if dtype.kind == "f" and fill.dtype.kind == "f" and dtype != fill.dtype:
        largest = float(np.finfo(dtype).max)
        fill = np.minimum(np.maximum(fill, -largest), largest)
    return fill.astype(dtype, copy=False)
