"""The step that reads any table into columns of numbers, categories and dates."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from skrub import ToDatetime

from sknan._checks import FLOAT32_MAX
from sknan._column_reader import Column
from sknan._pickling import VersionedPickleMixin
from sknan._sentinels import is_word_for_missing, table_sentinels
from sknan._table_reader import Table, read_table

__all__ = ["LevelEncoder", "TableCleaner"]

# A column of text is one of numbers if so many of its known cells are.
_MOST = 0.9


class LevelEncoder(OneHotEncoder):
    """scikit-learn's ``OneHotEncoder``, to which a level it has not seen is no news.

    Of a column with ``drop`` it warns at each such level, in each call.
    """

    def transform(self, X: Any) -> Any:
        """Codes of the levels: all zeros for one that ``fit`` has not seen."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found unknown categories")
            return super().transform(X)


class TableCleaner(VersionedPickleMixin, TransformerMixin, BaseEstimator):
    """Read any table into a DataFrame of float64, strings and dates.

    What each column is, and which of its values stand for "missing", is learnt in
    ``fit``; ``transform`` finds the columns by their names and brings each to the type
    it had. Infinities, numbers beyond float32 and sentinels become missing. Columns
    without any value are dropped.

    Parameters
    ----------
    sentinels : "auto", None, sequence or mapping, default="auto"
        Values that stand for "missing". ``"auto"`` takes those that
        :func:`~sknan.audit.table_sentinels` suspects, and signs and words such as
        ``"?"``; a sequence counts for all columns, a mapping gives the values of each
        column by its name. None leaves all values as they are.

    Attributes
    ----------
    kinds_ : dict of str to {"numbers", "dates", "categories"}
        What each column that is kept was read as, in order.
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
        table = read_table(X)
        if not table.n_rows or not table.n_columns:
            raise ValueError(
                f"The table has {table.n_rows} rows and {table.n_columns} columns: "
                "found array with 0 sample(s) or 0 feature(s) while a minimum of 1 is "
                "required. Pass a table with at least one row and one column."
            )
        self._learn_names(table)
        columns = [_checked(table.read(j), name) for j, name in enumerate(self._names)]
        found = self._sentinels_of(X)
        self.kinds_: dict[str, str] = {}
        self.sentinels_ = {n: v for n, v in zip(self._names, found, strict=True) if v}
        self._parsers: dict[str, ToDatetime] = {}
        for name, column in zip(self._names, columns, strict=True):
            self.kinds_[name] = self._kind_of(name, column)
        read = {n: self._read(n, c) for n, c in zip(self._names, columns, strict=True)}
        self.dropped_ = [name for name, cells in read.items() if cells.isna().all()]
        for name in self.dropped_:
            del self.kinds_[name]
        if not self.kinds_:
            raise ValueError(
                f"None of the {table.n_columns} columns holds a value that is not "
                "missing. Pass at least one column with known values."
            )
        return _framed({name: read[name] for name in self.kinds_}, X)

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
        table = read_table(X)
        places = self._places(table)
        read = {
            name: self._read(name, _checked(table.read(places[name]), name))
            for name in self.kinds_
        }
        return _framed(read, X)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Names of the columns that are kept.

        Parameters
        ----------
        input_features : Ignored
            Present by convention.

        Returns
        -------
        ndarray of str
        """
        check_is_fitted(self, "kinds_")
        return np.array(list(self.kinds_), dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags

    def _learn_names(self, table: Table) -> None:
        self.n_features_in_ = table.n_columns
        self._has_names = table.labels is not None
        self._names = _names_of(table)
        if self._has_names:
            self.feature_names_in_ = np.array(self._names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _places(self, table: Table) -> dict[str, int]:
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

    def _sentinels_of(self, X: Any) -> list[list[Any]]:
        sentinels = self.sentinels
        if sentinels is None:
            return [[] for _ in self._names]
        if isinstance(sentinels, str):
            if sentinels != "auto":
                raise ValueError(
                    "The 'sentinels' parameter of TableCleaner must be 'auto', None, a "
                    f"list of values or a dict of such lists. Got {sentinels!r} "
                    "instead."
                )
            return table_sentinels(X)
        if isinstance(sentinels, Mapping):
            named = {str(name): list(values) for name, values in sentinels.items()}
            unknown = [repr(name) for name in named if name not in self._names]
            if unknown:
                raise ValueError(
                    f"sentinels names {_some(unknown)} not in X. Name columns of X."
                )
            return [named.get(name, []) for name in self._names]
        return [list(sentinels) for _ in self._names]

    def _kind_of(self, name: str, column: Column) -> str:
        if column.holds in ("numbers", "flags", "durations", "nothing"):
            return "numbers"
        if column.holds == "dates":
            return "dates"
        if column.holds == "text":
            known = self._as_text(name, column).dropna()
            is_number = pd.to_numeric(known, errors="coerce").notna()
            if len(known) and is_number.mean() >= _MOST:
                return "numbers"
            parser = ToDatetime()
            try:
                parser.fit_transform(known.rename(name))
            except (ValueError, OverflowError):
                return "categories"
            self._parsers[name] = parser
            return "dates"
        return "categories"

    def _read(self, name: str, column: Column) -> pd.Series:
        """The cells of a column as what the column was in ``fit``."""
        kind = self.kinds_[name]
        if kind == "numbers":
            return self._as_numbers(name, column)
        if kind == "dates":
            return self._as_dates(name, column)
        return self._as_text(name, column)

    def _as_numbers(self, name: str, column: Column) -> pd.Series:
        cells = column.cells
        if column.holds in ("numbers", "flags"):
            numbers = np.array(cells, dtype=np.float64)
        elif column.holds == "durations":
            seconds = pd.Series(pd.to_timedelta(cells)).dt.total_seconds()
            numbers = np.array(seconds, dtype=np.float64)
        elif column.holds == "dates":
            numbers = np.full(len(cells), np.nan)
        else:
            text = self._as_text(name, column)
            parsed = pd.to_numeric(text, errors="coerce")
            numbers = np.array(parsed.to_numpy(dtype=np.float64, na_value=np.nan))
        for sentinel in self.sentinels_.get(name, ()):
            if isinstance(sentinel, (int, float, np.number)):
                numbers[numbers == float(sentinel)] = np.nan
        # What becomes infinite in float32 is as unknown as what is infinite.
        numbers[~(np.abs(numbers) <= FLOAT32_MAX)] = np.nan
        return pd.Series(numbers, name=name)

    def _as_dates(self, name: str, column: Column) -> pd.Series:
        if column.holds == "dates":
            dates = pd.Series(column.cells, name=name)
        elif column.holds in ("text", "categories") and name in self._parsers:
            text = self._as_text(name, column)
            dates = self._parsers[name].transform(text)
        else:
            dates = pd.Series(pd.NaT, index=range(len(column.cells)), name=name)
        if getattr(dates.dtype, "tz", None) is not None:
            dates = dates.dt.tz_convert("UTC").dt.tz_localize(None)
        dates = dates.astype("datetime64[us]").reset_index(drop=True)
        gone = [v for v in self.sentinels_.get(name, ()) if isinstance(v, pd.Timestamp)]
        return dates.mask(dates.isin(gone)) if gone else dates

    def _as_text(self, name: str, column: Column) -> pd.Series:
        cells = column.cells
        cells = list(cells.astype(object) if isinstance(cells, pd.Series) else cells)
        gone = self.sentinels_.get(name, ())
        gone_words = {v.strip() for v in gone if isinstance(v, str)}
        words_go = isinstance(self.sentinels, str)
        texts = np.empty(len(cells), dtype=object)
        for i, cell in enumerate(cells):
            text = None if _is_missing(cell) else _text_of(cell)
            is_gone = text is None or text in gone_words or text == ""
            if is_gone or (words_go and not gone_words and _is_sign(text)):
                texts[i] = np.nan
            else:
                texts[i] = text
        return pd.Series(texts, name=name, dtype=object)


def _names_of(table: Table) -> list[str]:
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


def _checked(column: Column, name: str) -> Column:
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


def _is_missing(cell: Any) -> bool:
    return bool(cell is None or cell is pd.NA or cell is pd.NaT or cell != cell)


def _is_sign(text: str | None) -> bool:
    """Whether text is a sign such as "?", which is missing even once."""
    return text == "?" and is_word_for_missing(text)


def _text_of(cell: Any) -> str:
    """A level by one name, be it read as 3, 3.0 or "3"."""
    if isinstance(cell, (float, np.floating)) and float(cell).is_integer():
        return str(int(cell))
    return str(cell).strip()


def _framed(columns: dict[str, pd.Series], X: Any) -> pd.DataFrame:
    """Columns side by side, row by row those of ``X``, whose index they get."""
    # Given to the constructor, the index would look rows up by label.
    frame = pd.DataFrame(columns)
    if isinstance(X, pd.DataFrame):
        frame.index = X.index
    return frame
