"""Calibration of probabilities by one number, the temperature."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

from sknan.estimators._held_out import HeldOutPredictions

# Logarithm of the largest temperature, as in scikit-learn.
_LIMIT = 10.0


def fit_temperature(
    log_probabilities: np.ndarray, codes: np.ndarray, weights: np.ndarray | None
) -> float:
    """Return the temperature that minimizes the log-loss.

    The loss is convex in the inverse of the temperature, and its only minimum is found
    as the zero of its derivative. One further row, whose label is each class with the
    same probability, keeps it away from 0 if all labels are predicted correctly.

    Parameters
    ----------
    log_probabilities : ndarray of shape (n_rows, n_classes), float64
        Finite predictions for rows that the networks were not trained on.
    codes : ndarray of int of shape (n_rows,)
        Classes of the rows.
    weights : ndarray of shape (n_rows,) or None
        Sample weights.

    Returns
    -------
    float
        Temperature between exp(-10) and exp(10).
    """
    n_rows = len(codes)
    share = np.ones(n_rows) if weights is None else weights
    share = share / share.sum()
    logits = log_probabilities - log_probabilities.max(axis=1, keepdims=True)
    of_label = logits[np.arange(n_rows), codes]
    # The further row is divided among all rows.
    prior = 1.0 / (n_rows + 1)
    wanted = share @ ((1 - prior) * of_label + prior * logits.mean(axis=1))

    def derivative(log_inverse: float) -> float:
        scaled = np.exp(log_inverse) * logits
        scaled = np.exp(scaled - logsumexp(scaled, axis=1, keepdims=True))
        return float(share @ (scaled * logits).sum(axis=1) - wanted)

    if derivative(-_LIMIT) >= 0:  # no better than equal probabilities
        return float(np.exp(_LIMIT))
    if derivative(_LIMIT) <= 0:
        return float(np.exp(-_LIMIT))
    return float(np.exp(-brentq(derivative, -_LIMIT, _LIMIT, xtol=1e-12)))


def at_temperature(log_probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities of the classes (last axis) at a temperature."""
    scaled = log_probabilities / temperature
    probabilities: np.ndarray = np.exp(
        scaled - logsumexp(scaled, axis=-1, keepdims=True)
    )
    return probabilities


def log_mean(each: list[np.ndarray]) -> np.ndarray:
    """Return the logarithms of mean probabilities."""
    total: np.ndarray = logsumexp(np.stack(each), axis=0) - np.log(len(each))
    return total


def temperature_of(held_out: HeldOutPredictions, codes: np.ndarray) -> float:
    """Return the temperature of networks on the rows held out of each.

    Predictions are logarithms of the probabilities of the classes (last axis). The
    labels of a row share the temperature.
    """
    rows = np.concatenate(held_out.rows)
    logs, codes = np.concatenate(held_out.predicted), codes[rows]
    n_labels = codes[0].size
    weights = None
    if held_out.weights is not None:
        weights = np.repeat(held_out.weights[rows], n_labels)
    return fit_temperature(logs.reshape(-1, logs.shape[-1]), codes.reshape(-1), weights)
