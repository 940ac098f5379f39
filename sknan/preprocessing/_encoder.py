"""Encoder of dates and categories, which leaves columns of numbers as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.callback import CallbackSupportMixin
from sklearn.preprocessing import OneHotEncoder

from sknan._utils.callbacks import fit_as_task
from sknan._utils.encoding import EncodedStateMixin
from sknan.preprocessing._chunks import ChunkwiseMixin
from sknan.preprocessing._single_values import single_values
from sknan.preprocessing._sources import distinct, sources_of
from sknan.preprocessing._tables.cell_texts import text_of
from sknan.preprocessing._tables.float32_offset import offset_of
from sknan.preprocessing._tables.typed_column import frame_from_polars, is_polars

# Place of categories without an output column.
_NO_PLACE = -1


class CategoryEncoder(OneHotEncoder):
    """scikit-learn's ``OneHotEncoder``, with a faster ``transform`` of categories.

    The result is that of ``handle_unknown="ignore"``, without the warning of each
    unknown category in each call. `TableCleaner` warns of columns without known ones.
    """

    def fit(self, X: pd.DataFrame, y: Any = None) -> CategoryEncoder:
        """Learn the categories, and the output column of each."""
        super().fit(X, y)
        self._places: list[dict[Any, int]] = []
        self._missing_places: list[int] = []
        start = 0
        for j, categories in enumerate(self.categories_):
            dropped = None if self.drop_idx_ is None else self.drop_idx_[j]
            kept = [c for i, c in enumerate(categories) if i != dropped]
            places = {category: start + i for i, category in enumerate(kept)}
            missing = [p for category, p in places.items() if category != category]
            self._missing_places.append(missing[0] if missing else _NO_PLACE)
            self._places.append(places)
            start += len(kept)
        self._n_outputs = start
        return self

    def transform(self, X: pd.DataFrame) -> Any:
        """Encode a table of categories."""
        return self.encode([column.array for _, column in X.items()], len(X))

    def encode(self, columns: list[Any], n_rows: int) -> NDArray[Any]:
        """Encode the columns of a table of categories."""
        # The last column is for categories that have none.
        encoded = np.zeros((n_rows, self._n_outputs + 1), dtype=self.dtype)
        rows = np.arange(n_rows)
        all_columns = zip(columns, self._places, self._missing_places, strict=True)
        for cells, places, missing in all_columns:
            if not isinstance(cells, pd.Categorical):
                cells = pd.Categorical(cells)
            if n_rows == 1:
                code = cells.codes[0]
                place = missing
                if code >= 0:  # otherwise there may be no categories
                    place = places.get(cells.categories[code], _NO_PLACE)
                encoded[0, place] = 1
                continue
            known = [places.get(c, _NO_PLACE) for c in cells.categories]
            place = np.array([*known, missing])[cells.codes]
            encoded[rows, place] = 1
        return encoded[:, :-1]


class ColumnEncoder(
    ChunkwiseMixin,
    EncodedStateMixin,
    CallbackSupportMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Encoder of categories and dates, and of single values of numbers.

    skrub's ``TableVectorizer`` needs some milliseconds for each column. Here it encodes
    dates and columns of many categories; others with categories are encoded together.
    From numbers that float32 cannot separate, such as seconds of a Unix time, their
    median is subtracted, because the steps after this one compute in float32.

    A network is smooth in its inputs. Values of numbers at which the target differs
    from that of close values, such as a common amount, become columns of 0 and 1. The
    target only decides which ones: no cell is computed from it.

    Parameters
    ----------
    vectorizer : TableVectorizer
        Encoder of dates and of many categories. Its ``low_cardinality`` encodes columns
        of fewer categories than ``cardinality_threshold``.
    single_values : bool, default=True
        Whether to add columns for single values of numbers. Without ``y`` in ``fit``
        there are none.

    Attributes
    ----------
    n_features_in_ : int
        Number of columns seen in ``fit``.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the columns seen in ``fit``.
    """

    def __init__(self, vectorizer: Any, *, single_values: bool = True) -> None:
        self.vectorizer = vectorizer
        self.single_values = single_values

    def fit(self, X: pd.DataFrame, y: Any = None) -> ColumnEncoder:
        """Learn the categories.

        Parameters
        ----------
        X : DataFrame of shape (n_samples, n_features)
            Output of ``TableCleaner``.
        y : array-like of shape (n_samples,) or (n_samples, n_targets), default=None
            Targets, by which the single values of numbers are found.

        Returns
        -------
        ColumnEncoder
            The fitted encoder itself.
        """
        self.fit_transform(X, y)
        return self

    @fit_as_task
    def fit_transform(self, X: pd.DataFrame, y: Any = None, **params: Any) -> Any:
        """Learn the categories and encode the table.

        Parameters
        ----------
        X : DataFrame of shape (n_samples, n_features)
            Output of ``TableCleaner``.
        y : array-like of shape (n_samples,) or (n_samples, n_targets), default=None
            Targets, by which the single values of numbers are found.
        **params : Ignored
            Present by convention.

        Returns
        -------
        DataFrame of shape (n_samples, n_features_out)
            The columns of numbers, followed by those of few categories, the others, and
            single values.
        """
        X = frame_from_polars(X) if is_polars(X) else X
        self.feature_names_in_ = np.array(X.columns, dtype=object)
        self.n_features_in_ = len(self.feature_names_in_)
        self._columns = X.columns
        low = self.vectorizer.low_cardinality
        numbers, few, rest = list[Any](), list[Any](), list[Any]()
        for name, dtype in X.dtypes.items():
            if dtype.kind == "f":
                numbers.append(name)
            elif hasattr(low, "fit") and self._has_few(X[name]):
                few.append(name)
            else:
                rest.append(name)
        parts = [(numbers, None), (few, low), (rest, self.vectorizer)]
        self._parts = [
            (names, None if encoder is None else clone(encoder))
            for names, encoder in parts
            if names
        ]
        offsets = np.array([offset_of(X[name].to_numpy()) for name in numbers])
        self._offsets = offsets if offsets.any() else None
        encoded = []
        found: list[str] = []
        for names, encoder in self._parts:
            if not (encoder is None or isinstance(encoder, CategoryEncoder)):
                encoder.set_output(transform="pandas")
            part = X[names]
            encoded.append(
                self._centered(part)
                if encoder is None
                else encoder.fit_transform(part, y)
            )
            outputs = names if encoder is None else encoder.get_feature_names_out()
            found += map(str, outputs)  # of NumPy in skrub, which pandas 2 keeps
        self._names = distinct(found)
        self._single_values: list[tuple[int, float]] = []
        table = self._joined(X, encoded)
        if self.single_values and numbers and y is not None:
            pairs = single_values(table.to_numpy(), len(numbers), y)
            self._single_values = pairs
            found += [
                f"{numbers[j]}_{text_of(offsets[j] + value)}" for j, value in pairs
            ]
            self._names = distinct(found)
        if not self._single_values:
            return table
        return self._joined(X, [table, self._indicators(table)])

    def transform(self, X: pd.DataFrame) -> pd.DataFrame:
        """Encode a table as in ``fit``.

        Parameters
        ----------
        X : DataFrame of shape (n_samples, n_features)
            Output of ``TableCleaner``.

        Returns
        -------
        DataFrame of shape (n_samples, n_features_out)
        """
        X = frame_from_polars(X) if is_polars(X) else X
        if not X.columns.equals(self._columns):
            X = X[self._columns]
        encoded = []
        for names, encoder in self._parts:
            if isinstance(encoder, CategoryEncoder):
                columns = [X[name].array for name in names]
                encoded.append(encoder.encode(columns, len(X)))
                continue
            # A selection by names takes several times as long.
            part = X.iloc[:, self._columns.get_indexer_for(names)]
            encoded.append(
                self._centered(part) if encoder is None else encoder.transform(part)
            )
        if self._single_values:
            encoded.append(self._indicators(encoded[0]))
        return self._joined(X, encoded)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Return the names of the encoded columns.

        Parameters
        ----------
        input_features : Ignored
            Present by convention.

        Returns
        -------
        ndarray of str
        """
        return np.array(self._names, dtype=object)

    @property
    def output_to_input_(self) -> dict[str, str]:
        """Column of the table for each encoded column."""
        found: list[str] = []
        for names, encoder in self._parts:
            found += [names[first] for first, *_ in sources_of(encoder, names).inputs]
        found += [self._parts[0][0][j] for j, _ in self._single_values]
        return dict(zip(self._names, found, strict=True))

    def _has_few(self, column: pd.Series) -> bool:
        """Return whether a column has so few categories that each has a column."""
        most = self.vectorizer.cardinality_threshold
        is_category = isinstance(column.dtype, pd.CategoricalDtype)
        return is_category and column.nunique(dropna=False) < most

    def _centered(self, numbers: pd.DataFrame) -> pd.DataFrame:
        return numbers if self._offsets is None else numbers - self._offsets

    def _indicators(self, numbers: pd.DataFrame) -> NDArray[np.float32]:
        """Return a column for each single value of the centered numbers."""
        columns, values = zip(*self._single_values, strict=True)
        with np.errstate(over="ignore"):  # beyond float32, no number is a single value
            cells = numbers.to_numpy()[:, columns].astype(np.float32)
        is_equal = cells == np.array(values, np.float32)
        indicators: NDArray[np.float32] = is_equal.astype(np.float32)
        return indicators

    def _joined(self, X: pd.DataFrame, parts: list[Any]) -> pd.DataFrame:
        if len(parts) == 1 and isinstance(parts[0], pd.DataFrame):
            return parts[0].set_axis(self._names, axis=1)
        # One array: pandas would join a table of one row column by column.
        cells = np.concatenate([np.asarray(part) for part in parts], axis=1)
        return pd.DataFrame(cells, X.index, self._names, copy=False)
