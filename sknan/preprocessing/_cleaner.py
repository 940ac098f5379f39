"""The step that reads any table into columns of numbers, categories and dates."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.callback import CallbackSupportMixin
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from sknan._utils.callbacks import fit_as_task
from sknan._utils.pickling import VersionedPickleMixin
from sknan.preprocessing._tables.column_schema import LearntColumn, learn_columns
from sknan.preprocessing._tables.lazy_table import LazyTable, read_table
from sknan.preprocessing._tables.typed_column import TypedColumn

__all__ = ["CategoryEncoder", "TableCleaner", "check_sentinels"]

_LISTS = (list, tuple, set, frozenset, np.ndarray)


class CategoryEncoder(OneHotEncoder):
    """scikit-learn's ``OneHotEncoder``, to which a level it has not seen is no news.

    Of a column with ``drop`` it warns at each such level, in each call.
    """

    def transform(self, X: Any) -> Any:
        """Codes of the levels: all zeros for one that ``fit`` has not seen."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found unknown categories")
            return super().transform(X)


class TableCleaner(
    VersionedPickleMixin, CallbackSupportMixin, TransformerMixin, BaseEstimator
):
    """Read any table into a DataFrame of float64, dates and categories of text.

    What each column is, and which of its values stand for "missing", is learnt in
    ``fit``; ``transform`` finds the columns by their names and brings each to the type
    it had. Infinities, numbers beyond float32 and sentinels become missing. Columns
    without any value are dropped.

    Parameters
    ----------
    sentinels : "auto", None, sequence or mapping, default="auto"
        Values that stand for "missing". ``"auto"`` takes those that
        :func:`~sknan.inspection.table_sentinels` suspects, those among numbers that
        came as text too, and in ``transform`` signs and words for missing that
        ``fit`` has not seen. A sequence counts for all columns, a mapping gives
        the values of each column by its name. None leaves all values as they are.

    Attributes
    ----------
    kinds_ : dict of str to str
        What each column that is kept was read as, in order: ``"numbers"``, ``"dates"``,
        ``"categories"`` or ``"numbers and words"``. The last is text of which nine in
        ten are numbers, and makes two columns: ``x`` of the numbers, and ``x_word`` of
        the others.
    sentinels_ : dict of str to list
        The values that count as missing, of the columns that have any.
    dropped_ : list of str
        Columns without any value in ``fit``.
    n_features_in_ : int
        Number of columns seen in ``fit``.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, if the table has names.
    """

    def __init__(self, *, sentinels: Any = "auto") -> None:
        self.sentinels = sentinels

    def fit(self, X: Any, y: Any = None) -> TableCleaner:
        """Learn what each column is.

        Parameters
        ----------
        X : DataFrame, array or list of rows, (n_samples, n_features)
            The table.
        y : Ignored
            Present by convention.

        Returns
        -------
        TableCleaner
            The fitted cleaner itself.

        Raises
        ------
        ValueError
            If the table is empty, two columns share a name, a cell is a container or a
            complex number, or no column holds any value.
        """
        self.fit_transform(X, y)
        return self

    @fit_as_task
    def fit_transform(self, X: Any, y: Any = None, **params: Any) -> pd.DataFrame:
        """Learn what each column is, and read the table.

        Parameters
        ----------
        X : DataFrame, array or list of rows, (n_samples, n_features)
            The table.
        y : Ignored
            Present by convention.
        **params : Ignored
            Present by convention.

        Returns
        -------
        DataFrame of shape (n_samples, n_features_out)
        """
        table = _read(X)
        self._learn_names(table)
        columns = [_checked(table.read(j), name) for j, name in enumerate(self._names)]
        learnt = learn_columns(columns, self._names, self._given_sentinels())
        self.sentinels_ = {its.name: its.sentinels for its in learnt if its.sentinels}
        self._learnt: list[LearntColumn] = []
        self.dropped_: list[str] = []
        read = []
        for its, column in zip(learnt, columns, strict=True):
            cells = its.read(column)
            if all(some.isna().all() for some in cells):
                self.dropped_.append(its.name)
            else:
                self._learnt.append(its)
                read += cells
        self.kinds_: dict[str, str] = {its.name: its.kind for its in self._learnt}
        if not read:
            raise ValueError(
                f"None of the {table.n_columns} columns holds a value that is not "
                "missing. Pass at least one column with known values."
            )
        return self._framed(read, X)

    def transform(self, X: Any) -> pd.DataFrame:
        """Read a table as the one in ``fit`` was read.

        Parameters
        ----------
        X : DataFrame, array or list of rows, (n_samples, n_features)
            The table; columns in any order if they have names.

        Returns
        -------
        DataFrame of shape (n_samples, n_features_out)

        Raises
        ------
        ValueError
            If a column is missing or new.
        """
        check_is_fitted(self, "kinds_")
        table = _read(X)
        places = self._places(table)
        read: list[pd.Series] = []
        for its in self._learnt:
            read += its.read(_checked(table.read(places[its.name]), its.name))
        return self._framed(read, X)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Names of the columns that are kept, and of those of words among numbers.

        Parameters
        ----------
        input_features : Ignored
            Present by convention.

        Returns
        -------
        ndarray of str
        """
        check_is_fitted(self, "kinds_")
        names = list(self.kinds_)
        taken = set(self._names)
        for place, (name, kind) in reversed(list(enumerate(self.kinds_.items()))):
            if kind == "numbers and words":
                beside = f"{name}_word"
                while beside in taken:
                    beside += "_"
                names.insert(place + 1, beside)
        return np.array(names, dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _learn_names(self, table: LazyTable) -> None:
        self.n_features_in_ = table.n_columns
        self._has_names = table.labels is not None
        self._names = _names_of(table)
        if self._has_names:
            self.feature_names_in_ = np.array(self._names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _places(self, table: LazyTable) -> dict[str, int]:
        """Where each column of ``fit`` stands in another table."""
        names = _names_of(table)
        if self._has_names and table.labels is not None:
            places = {name: j for j, name in enumerate(names)}
            lacking = [repr(name) for name in self._names if name not in places]
            new = [repr(name) for name in names if name not in set(self._names)]
            if lacking:
                raise ValueError(
                    f"X lacks {_some(lacking)} seen in fit. Pass every column that fit "
                    "was given; one whose values are unknown may be all missing."
                )
            if new:
                raise ValueError(
                    f"X has {_some(new)} not seen in fit. Leave out what fit was not "
                    "given."
                )
            return places
        if table.n_columns != self.n_features_in_:
            raise ValueError(
                f"X has {table.n_columns} features, but {type(self).__name__} is "
                f"expecting {self.n_features_in_} features as input."
            )
        return {name: j for j, name in enumerate(self._names)}

    def _given_sentinels(self) -> list[list[Any]] | None:
        """The sentinels of each column; None if they are to be found."""
        sentinels = check_sentinels(self.sentinels, type(self).__name__)
        if isinstance(sentinels, str):
            return None
        if not isinstance(sentinels, Mapping):
            return [list(sentinels or ()) for _ in self._names]
        named = {str(name): list(values) for name, values in sentinels.items()}
        unknown = [repr(name) for name in named if name not in self._names]
        if unknown:
            raise ValueError(
                f"sentinels names {_some(unknown)} not in X. Name columns of X."
            )
        return [named.get(name, []) for name in self._names]

    def _framed(self, columns: list[pd.Series], X: Any) -> pd.DataFrame:
        """Columns side by side, row by row those of ``X``, whose index they get."""
        names = self.get_feature_names_out()
        # Of text skrub would make dates, numbers and missing cells by rules of its own.
        named = {
            name: cells.astype("category") if cells.dtype == object else cells
            for name, cells in zip(names, columns, strict=True)
        }
        # Given to the constructor, the index would look rows up by label.
        frame = pd.DataFrame(named)
        if isinstance(X, pd.DataFrame):
            frame.index = X.index
        return frame


def check_sentinels(sentinels: Any, owner: str) -> Any:
    """What is given as sentinels, if it is of a form that is known.

    Parameters
    ----------
    sentinels : object
        The parameter.
    owner : str
        Whose it is.

    Returns
    -------
    object
        The same.

    Raises
    ------
    ValueError
        If it is neither "auto", None, a list of values nor a dict of such lists.
    """
    lists = sentinels.values() if isinstance(sentinels, Mapping) else [sentinels]
    is_name = sentinels is None or (isinstance(sentinels, str) and sentinels == "auto")
    if not is_name and not all(isinstance(some, _LISTS) for some in lists):
        raise ValueError(
            f"The 'sentinels' parameter of {owner} must be 'auto', None, a list of "
            f"values or a dict of such lists. Got {sentinels!r} instead."
        )
    return sentinels


def _read(X: Any) -> LazyTable:
    if sparse.issparse(X):
        raise TypeError(
            "tabular_pipeline reads dense tables, and sparse data was passed. Pass "
            "X.toarray()."
        )
    table = read_table(X, "tabular_pipeline")
    if not table.n_rows or not table.n_columns:
        lacking = "feature" if table.n_rows else "sample"
        raise ValueError(
            f"Found a table with 0 {lacking}(s) (shape=({table.n_rows}, "
            f"{table.n_columns})) while a minimum of 1 is required. Pass a table with "
            "at least one row and one column."
        )
    return table


def _names_of(table: LazyTable) -> list[str]:
    labels = table.labels
    if labels is None:
        return [f"x{j}" for j in range(table.n_columns)]
    names = [str(label) for label in labels]
    twice = [repr(name) for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"X has more than one column of the name {', '.join(twice[:3])}. Name "
            "every column by a string of its own."
        )
    return names


def _checked(column: TypedColumn, name: str) -> TypedColumn:
    if column.holds == "nested":
        raise ValueError(
            f"Column {name!r} holds lists, dicts or arrays. Unpack them into columns "
            "of their own."
        )
    if column.holds == "complex":
        raise ValueError(
            f"Complex data not supported: column {name!r} holds complex numbers. Split "
            "it into real and imaginary part."
        )
    return column


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{'column' if len(names) == 1 else 'columns'} {shown}"
