"""Encoder of dates and categories, which leaves columns of numbers as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.callback import CallbackSupportMixin
from sklearn.preprocessing import OneHotEncoder

from sknan._utils.callbacks import fit_as_task
from sknan._utils.warn import warn
from sknan.exceptions import ChangedColumnWarning
from sknan.preprocessing._tables.typed_column import frame_from_polars, is_polars


class CategoryEncoder(OneHotEncoder):
    """scikit-learn's ``OneHotEncoder`` with another warning about unknown categories.

    scikit-learn's encoder warns of each unknown category in each call if it has
    ``drop``. This one warns of a column of which most rows have a value, more than one,
    and none has a category of ``fit``.
    """

    def transform(self, X: pd.DataFrame) -> Any:
        """Encode a table, with a warning about columns of unknown categories."""
        # One row of unknown categories is usual.
        for j, categories in enumerate(self.categories_ if len(X) > 1 else ()):
            cells = X.iloc[:, j].dropna()
            is_filled = 2 * len(cells) > len(X) and len(cells) > 1
            if is_filled and not cells.isin(categories).any():
                warn(
                    ChangedColumnWarning(
                        f"None of the {len(cells)} values of column {X.columns[j]!r} "
                        f"is a category that fit has seen, for example "
                        f"{cells.iloc[0]!r}: they count as unknown."
                    )
                )
        return super().transform(X)

    def _transform(self, X: Any, warn_on_unknown: bool = False, **options: Any) -> Any:
        return super()._transform(X, **options)


class ColumnEncoder(CallbackSupportMixin, TransformerMixin, BaseEstimator):
    """Encoder of the columns that are not numbers.

    skrub's ``TableVectorizer`` needs some milliseconds for each column. Here it encodes
    dates and columns of many categories; others with categories are encoded together.

    Parameters
    ----------
    vectorizer : TableVectorizer
        Encoder of dates and of many categories. Its ``low_cardinality`` encodes columns
        of fewer categories than ``cardinality_threshold``.

    Attributes
    ----------
    n_features_in_ : int
        Number of columns seen in ``fit``.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the columns seen in ``fit``.
    """

    def __init__(self, vectorizer: Any) -> None:
        self.vectorizer = vectorizer

    def fit(self, X: pd.DataFrame, y: Any = None) -> ColumnEncoder:
        """Learn the categories.

        Parameters
        ----------
        X : DataFrame of shape (n_samples, n_features)
            Output of ``TableCleaner``.
        y : Ignored
            Present by convention.

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
        y : Ignored
            Present by convention.
        **params : Ignored
            Present by convention.

        Returns
        -------
        DataFrame of shape (n_samples, n_features_out)
            The columns of numbers, followed by those of few categories and the others.
        """
        X = frame_from_polars(X) if is_polars(X) else X
        self.feature_names_in_ = np.array(X.columns, dtype=object)
        self.n_features_in_ = len(self.feature_names_in_)
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
        encoded = []
        for names, encoder in self._parts:
            if encoder is not None:
                encoder.set_output(transform="pandas")
            part = X[names] if encoder is None else encoder.fit_transform(X[names], y)
            encoded.append(part)
        self._names: list[str] = []
        taken = set[str]()
        for name in (name for part in encoded for name in part):
            while name in taken:
                name += "_"
            taken.add(name)
            self._names.append(name)
        return self._joined(X, encoded)

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
        encoded = [
            X[names] if encoder is None else encoder.transform(X[names])
            for names, encoder in self._parts
        ]
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

    def _has_few(self, column: pd.Series) -> bool:
        """Return whether a column has so few categories that each has a column."""
        most = self.vectorizer.cardinality_threshold
        is_category = isinstance(column.dtype, pd.CategoricalDtype)
        return is_category and column.nunique(dropna=False) < most

    def _joined(self, X: pd.DataFrame, parts: list[pd.DataFrame]) -> pd.DataFrame:
        for part in parts:
            part.index = X.index
        joined = pd.concat(parts, axis=1)
        joined.columns = pd.Index(self._names)
        return joined
