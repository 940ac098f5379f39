"""Methods of a regressor that may predict several quantiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sknan._engine.prediction import levels_of, regression_score
from sknan._utils.tags import regressor_tags, tags_of
from sknan._utils.validation import FLOAT64_MAX, check_finite, drop_rows
from sknan.estimators._input import require_target
from sknan.preprocessing._stored_table import stored_chunks
from sknan.preprocessing._tables.plain_cells import plain_cells


class QuantilePredictionMixin(RegressorMixin):
    """Quantiles, and a score that fits their number."""

    predict: Callable[..., Any]

    @property
    def _criterion(self) -> nn.Module:
        """Loss that the network was trained with."""
        raise NotImplementedError

    def __sklearn_tags__(self) -> Tags:
        return tags_of(self, regressor_tags)

    def predict_quantiles(self, X: Any) -> np.ndarray:
        """Return the quantiles of the criterion ``"quantile"``, in the units of ``y``.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features: finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples, n_quantiles) or (n_samples, n_targets, n_quantiles)
            In the order of ``criterion__quantile``, which is ascending.

        Raises
        ------
        AttributeError
            If the criterion is another one.
        """
        check_is_fitted(self)
        levels = levels_of(self._criterion)
        if levels is None:
            raise AttributeError(
                f"{type(self).__name__} predicts quantiles only with "
                "criterion='quantile', criterion__quantile=[0.05, 0.5, 0.95]."
            )
        predicted: np.ndarray = self.predict(X)
        return predicted if np.ndim(levels) else predicted[..., None]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the R2 score, or the mean D2 pinball score of several quantiles.

        Parameters
        ----------
        X : array-like, DataFrame or chunks of shape (n_samples, n_features)
            Features: finite numbers within float32.
        y : array-like of shape (n_samples,) or (n_samples, n_targets), default=None
            Targets, as in ``fit``.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Non-negative weights of the rows.

        Returns
        -------
        float
            At most 1. It is 0 for a constant prediction of the mean (R2), or of the
            quantiles of ``y`` (D2).
        """
        X, y, _ = stored_chunks(X, y)
        require_target(self, y)
        y = plain_cells(y)
        values = np.asarray(y)
        if values.dtype.kind == "f":
            remedy = drop_rows("y", "scored")
            check_finite(values, name="y", remedy=remedy, limit=FLOAT64_MAX)
        return regression_score(self._criterion, y, self.predict(X), sample_weight)
