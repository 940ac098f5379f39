"""Transformer that reads any table into columns of numbers, dates and categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.callback import CallbackSupportMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from sknan._utils.callbacks import fit_as_task
from sknan._utils.encoding import EncodedStateMixin
from sknan._utils.pickling import VersionedPickleMixin
from sknan.preprocessing._chunks import ChunkwiseMixin
from sknan.preprocessing._tables.column_schema import (
    ColumnSchema,
    learn_schemas,
    remove_infinities,
    warn_of_changes,
)
from sknan.preprocessing._tables.lazy_table import LazyTable, read_table
from sknan.preprocessing._tables.typed_column import TypedColumn, is_opaque

# In tables of at most this many rows, known categories are looked up cell by cell.
_FEW_ROWS = 16

# At most this many columns of numbers are joined with the others one by one, which
# keeps their order. pandas takes some microseconds for each.
_FEW_COLUMNS = 100

_LISTS = (list, tuple, set, frozenset, np.ndarray)


class TableCleaner(
    ChunkwiseMixin,
    VersionedPickleMixin,
    EncodedStateMixin,
    CallbackSupportMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Converter of any table to a DataFrame of float64, dates and categories of text.

    ``fit`` learns the type of each column and which of its values mean a missing value.
    ``transform`` finds the columns by their names and converts each to the type learned
    in ``fit``. Infinities, numbers beyond the range of float32 and sentinels become
    missing. Columns without any value are dropped.

    Parameters
    ----------
    sentinels : "auto", None, sequence or mapping, default="auto"
        Values that mean a missing value. ``"auto"`` selects the values that
        :func:`~sknan.inspection.table_sentinels` suspects, also among numbers given as
        text. Signs and words for missing values that appear only in ``transform`` then
        count as missing, too. A sequence applies to all columns; a mapping gives
        the values of each column by its name. None leaves all values as they are.

    Attributes
    ----------
    kinds_ : dict of str to str
        Type of each column that is kept, in order: ``"numbers"``, ``"dates"``,
        ``"categories"`` or ``"numbers and words"``. The last one is text of which at
        least nine in ten values are numbers. It gives two columns: ``x`` with the
        numbers, and ``x_word`` with the other values. Numbers may be written with one
        unit and one decimal separator, such as ``"$1,200"`` or ``"3,5 kg"``. Dates may
        be text of which at least nine in ten values are dates; the other values count
        as missing.
    sentinels_ : dict of str to list
        Values that count as missing, for each column that has any.
    dropped_ : list of str
        Names of the columns without any value in ``fit``.
    n_missing_ : dict of str to int
        Number of missing cells of each column in ``fit``, sentinels included.
    n_samples_seen_ : int
        Number of rows of the table in ``fit``.
    n_features_in_ : int
        Number of columns seen in ``fit``.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the columns seen in ``fit``, if the table has names.
    """

    def __init__(self, *, sentinels: Any = "auto") -> None:
        self.sentinels = sentinels

    def fit(self, X: Any, y: Any = None) -> TableCleaner:
        """Learn the type and the sentinels of each column.

        Parameters
        ----------
        X : DataFrame, array, list of rows or chunks, (n_samples, n_features)
            The table. Of chunks, which :func:`~sknan.preprocessing.iter_chunks` gives,
            a sample of the rows is used.
        y : Ignored
            Present by convention; the name of a column of chunks is left out.

        Returns
        -------
        TableCleaner
            The fitted cleaner itself.

        Raises
        ------
        ValueError
            If the table is empty, two columns share a name, a cell is a container, a
            complex number or an object without a text, or no column holds any value.
        """
        self.fit_transform(X, y)
        return self

    @fit_as_task
    def fit_transform(self, X: Any, y: Any = None, **params: Any) -> pd.DataFrame:
        """Learn the type and the sentinels of each column, and convert the table.

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
        schemas = learn_schemas(columns, self._names, self._given_sentinels())
        self.sentinels_ = {
            schema.name: schema.sentinels for schema in schemas if schema.sentinels
        }
        self._schemas: list[ColumnSchema] = []
        self.dropped_: list[str] = []
        converted = []
        self.n_missing_: dict[str, int] = {}
        self.n_samples_seen_ = table.n_rows
        for schema, column in zip(schemas, columns, strict=True):
            parts = schema.read(column)
            schema.learn_cells(column)
            is_missing = np.logical_and.reduce([part.isna() for part in parts])
            self.n_missing_[schema.name] = int(is_missing.sum())
            if is_missing.all():
                self.dropped_.append(schema.name)
            else:
                self._schemas.append(schema)
                converted += parts
        self.kinds_: dict[str, str] = {s.name: s.kind for s in self._schemas}
        if not converted:
            raise ValueError(
                f"None of the {table.n_columns} columns holds a value that is not "
                "missing. Pass at least one column with known values."
            )
        return self._to_frame(converted, X)

    def transform(self, X: Any) -> pd.DataFrame:
        """Convert a table in the same way as the table in ``fit``.

        Parameters
        ----------
        X : DataFrame, array or list of rows, (n_samples, n_features)
            The table. If the columns have names, they may be in any order.

        Returns
        -------
        DataFrame of shape (n_samples, n_features_out)

        Raises
        ------
        ValueError
            If a column of ``fit`` is missing, or a column is new.

        Warns
        -----
        ChangedColumnWarning
            If values of a column cannot be read as in ``fit``, none is a category of
            ``fit``, or only one of the two tables has a time zone.
        """
        check_is_fitted(self, "kinds_")
        table = _read(X)
        positions = self._positions(table)
        block, known = self._read_plain(table, positions)
        converted: list[Any] = []
        changes: list[str] = []
        for schema in self._schemas:
            if schema.name in block:
                continue
            if schema.name in known:
                converted.append(known[schema.name])
                continue
            column = _checked(table.read(positions[schema.name]), schema.name)
            parts = schema.read(column)
            converted += parts
            changes += filter(None, [schema.change(column, parts)])
        warn_of_changes(changes)
        return self._to_frame(converted, X, block)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Return the names of the columns that ``transform`` gives.

        Parameters
        ----------
        input_features : Ignored
            Present by convention.

        Returns
        -------
        ndarray of str
        """
        check_is_fitted(self, "kinds_")
        return np.array(list(self.output_to_input_), dtype=object)

    @property
    def output_to_input_(self) -> dict[str, str]:
        """Column of the table for each column that ``transform`` gives."""
        found = {}
        for name, kind in self.kinds_.items():
            found[name] = name
            if kind == "numbers and words":
                word_name = f"{name}_word"
                while word_name in self._names:
                    word_name += "_"
                found[word_name] = name
        return found

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

    def _positions(self, table: LazyTable) -> dict[str, int]:
        """Return the position in another table of each column of ``fit``."""
        names = _names_of(table)
        if self._has_names and table.labels is not None:
            positions = {name: j for j, name in enumerate(names)}
            lacking = [repr(name) for name in self._names if name not in positions]
            known = set(self._names)
            new = [repr(name) for name in names if name not in known]
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
            return positions
        if table.n_columns != self.n_features_in_:
            raise ValueError(
                f"X has {table.n_columns} features, but {type(self).__name__} is "
                f"expecting {self.n_features_in_} features as input."
            )
        return {name: j for j, name in enumerate(self._names)}

    def _given_sentinels(self) -> list[list[Any]] | None:
        """Return the sentinels given for each column, or None for ``"auto"``."""
        sentinels = check_sentinels(self.sentinels, type(self).__name__)
        if isinstance(sentinels, str):
            return None
        if not isinstance(sentinels, Mapping):
            return [[] if sentinels is None else [*sentinels] for _ in self._names]
        named = {str(name): list(values) for name, values in sentinels.items()}
        unknown = [repr(name) for name in named if name not in self._names]
        if unknown:
            raise ValueError(
                f"sentinels names {_some(unknown)} not in X. Name columns of X."
            )
        return [named.get(name, []) for name in self._names]

    def _read_plain(
        self, table: LazyTable, positions: dict[str, int]
    ) -> tuple[pd.DataFrame, dict[str, pd.Categorical]]:
        """Return the columns that need no conversion, all of which are read at once.

        They are the numbers, and in a few rows the categories that ``fit`` has seen.
        """
        is_plain = table.plain_numbers()
        numbers = [
            schema
            for schema in self._schemas
            if schema.kind == "numbers" and is_plain[positions[schema.name]]
        ]
        names = [schema.name for schema in numbers]
        few = table.n_rows <= _FEW_ROWS
        categories = [schema for schema in self._schemas if schema.known and few]
        wanted = [positions[schema.name] for schema in (*numbers, *categories)]
        cells = table.objects(wanted) if categories else None
        known: dict[str, pd.Categorical] = {}
        if cells is None:
            block = table.block(wanted[: len(names)])
        else:
            block = cells[:, : len(names)].astype(np.float64)
            for schema, column in zip(categories, cells.T[len(names) :], strict=True):
                found = schema.read_known(column)
                if found is not None:
                    known[schema.name] = found
        for j, schema in enumerate(numbers):
            if schema.sentinels:
                schema.remove_sentinels(block[:, j])
        remove_infinities(block)
        return pd.DataFrame(block, columns=names), known

    def _to_frame(
        self, columns: list[Any], X: Any, block: pd.DataFrame | None = None
    ) -> pd.DataFrame:
        """Return the columns as a DataFrame, with the index of ``X`` if it has one."""
        names = self.get_feature_names_out().tolist()
        in_block = set() if block is None else set(block.columns)
        others = [name for name in names if name not in in_block]
        # skrub would parse text again and make dates, numbers and missing values of it.
        named = {
            name: cells.astype("category") if cells.dtype == object else cells
            for name, cells in zip(others, columns, strict=True)
        }
        # An index given to the constructor would select rows by their labels.
        if block is not None and not named:
            frame = block
        elif block is not None and len(in_block) <= _FEW_COLUMNS:
            named |= dict(zip(block.columns, block.to_numpy().T, strict=True))
            frame = pd.DataFrame({name: named[name] for name in names})
        else:
            frame = pd.concat([block, pd.DataFrame(named)], axis=1)
            frame = frame.iloc[:, frame.columns.get_indexer_for(names)]
        if isinstance(X, pd.DataFrame):
            frame.index = X.index
        return frame


def check_sentinels(sentinels: Any, owner: str) -> Any:
    """Check the type of the parameter ``sentinels`` and return the parameter.

    Parameters
    ----------
    sentinels : object
        Value of the parameter.
    owner : str
        Name of the estimator or function with this parameter, for the message.

    Returns
    -------
    object
        ``sentinels``, unchanged.

    Raises
    ------
    ValueError
        If the value is not "auto", None, a list of values or a dict of such lists.
    """
    lists = sentinels.values() if isinstance(sentinels, Mapping) else [sentinels]
    is_name = sentinels is None or (isinstance(sentinels, str) and sentinels == "auto")
    if not is_name and not all(isinstance(values, _LISTS) for values in lists):
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
            f"Column {name!r} contains lists, dicts or arrays. Unpack them into "
            "columns of their own."
        )
    if column.holds == "complex":
        raise ValueError(
            f"Complex data not supported: column {name!r} contains complex numbers. "
            "Split it into real and imaginary part."
        )
    if column.holds == "opaque":
        row, cell = next((i, c) for i, c in enumerate(column.cells) if is_opaque(c))
        raise ValueError(
            f"Column {name!r} contains objects without a text form (__str__), first "
            f"{cell} at row {row}. Convert them to numbers or text, or leave the "
            "column out."
        )
    return column


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{'column' if len(names) == 1 else 'columns'} {shown}"
