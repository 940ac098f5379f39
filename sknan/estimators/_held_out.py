"""Predictions of the networks of an ensemble for the rows held out of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class HeldOutPredictions:
    """Predictions of each network for the rows that it was not trained on.

    Parameters
    ----------
    rows : list of ndarray of int
        Numbers of these rows, for each network.
    predicted : list of ndarray of shape (n_held_out, ...)
        Predictions for these rows, for each network.
    target : ndarray of shape (n_rows,) or (n_rows, n_targets)
        Validated targets of all rows.
    weights : ndarray of shape (n_rows,) or None
        Sample weights of all rows.
    """

    rows: list[np.ndarray]
    predicted: list[np.ndarray]
    target: np.ndarray
    weights: np.ndarray | None

    def mean(self) -> np.ndarray:
        """Return the mean prediction of each row; NaN for a row never held out."""
        first = self.predicted[0]
        counts = np.bincount(np.concatenate(self.rows), minlength=len(self.target))
        total = np.zeros((len(self.target), *first.shape[1:]))
        total[counts == 0] = np.nan
        for rows, predicted in zip(self.rows, self.predicted, strict=True):
            # Each term is divided first: a sum of values near the largest overflows.
            shares = counts[rows].reshape(-1, *[1] * (first.ndim - 1))
            total[rows] += predicted / shares
        return total.astype(first.dtype)

    def log_mean(self) -> np.ndarray:
        """Return the logarithms of mean probabilities; predictions are logarithms."""
        probabilities = replace(self, predicted=[np.exp(p) for p in self.predicted])
        tiny = np.finfo(np.float64).tiny
        logs: np.ndarray = np.log(np.maximum(probabilities.mean(), tiny))
        return logs

    def score(self, mean: np.ndarray, metric: Callable[..., float]) -> float:
        """Return the score on the rows that were held out and have a target.

        Parameters
        ----------
        mean : ndarray of shape (n_rows,), (n_rows, n_targets) or (..., n_quantiles)
            Predicted labels or numbers.
        metric : callable
            ``accuracy_score`` of scikit-learn, or a score of numbers with the same
            parameters.

        Returns
        -------
        float
            NaN if there are fewer than two such rows.
        """
        known = np.zeros(len(mean), dtype=bool)
        known[np.concatenate(self.rows)] = True
        if self.target.dtype.kind == "f":
            known &= ~np.isnan(self.target).reshape(len(mean), -1).any(axis=1)
        if known.sum() < 2:
            return float("nan")
        weights = None if self.weights is None else self.weights[known]
        return float(metric(self.target[known], mean[known], sample_weight=weights))
