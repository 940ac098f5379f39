"""Prediction of labels from the probabilities of the classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin

__all__ = ["LabelPredictionMixin"]


class LabelPredictionMixin(ClassifierMixin):
    """Methods that follow from ``predict_proba`` and ``classes_``."""

    classes_: np.ndarray
    predict_proba: Callable[[Any], np.ndarray]

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of the probabilities of the classes.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features: finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), float32
            Values of at least log(1.2e-38), the logarithm of the smallest normal
            float32.
        """
        tiny = np.finfo(np.float32).tiny
        logs: np.ndarray = np.log(np.maximum(self.predict_proba(X), tiny))
        return logs

    def predict(self, X: Any) -> np.ndarray:
        """Return the labels of the most probable classes.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features: finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples,)
            Elements of ``classes_``.
        """
        codes = self.predict_proba(X).argmax(axis=1)
        labels: np.ndarray = self.classes_[codes]
        return labels
