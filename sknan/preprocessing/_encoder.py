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
        for j, categories in enumerate(self.categories_):
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

    skrub's ``TableVectorizer`` needs about a millisecond for each column, also for
    numbers, which it does not change.

    Parameters
    ----------
    vectorizer : TableVectorizer
        Encoder of dates and categories.

    Attributes
    ----------
    vectorizer_ : TableVectorizer or None
        The fitted encoder; None if all columns are numbers.
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
            The columns of numbers, followed by those of dates and categories.
        """
        X = frame_from_polars(X) if is_polars(X) else X
        self.feature_names_in_ = np.array(X.columns, dtype=object)
        self.n_features_in_ = len(self.feature_names_in_)
        numeric = np.array([dtype.kind == "f" for dtype in X.dtypes], dtype=bool)
        self._numbers = self.feature_names_in_[numeric].tolist()
        self._others = self.feature_names_in_[~numeric].tolist()
        self._names = list(self._numbers)
        self.vectorizer_ = None
        if not self._others:
            return X
        self.vectorizer_ = clone(self.vectorizer)
        encoded = self.vectorizer_.fit_transform(X[self._others], y)
        for name in encoded.columns:
            while name in self._names:
                name += "_"
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
        if self.vectorizer_ is None:
            return X
        return self._joined(X, self.vectorizer_.transform(X[self._others]))

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

    def _joined(self, X: pd.DataFrame, encoded: pd.DataFrame) -> pd.DataFrame:
        encoded.index = X.index
        joined = pd.concat([X[self._numbers], encoded], axis=1)
        joined.columns = pd.Index(self._names)
        return joined
