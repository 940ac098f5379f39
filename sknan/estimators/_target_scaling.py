"""Standardization of regression targets without overflow."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sknan._engine.prediction import ColumnScaling
from sknan.losses._bounded import unbounded
from sknan.losses._traits import predictions
from sknan.preprocessing._tables.plain_cells import plain_cells

# float32 has 24 bits of mantissa.
_LARGEST_EXACT_INTEGER = 2**24

# Steps of float64 by which sums of the same numbers in another order may differ.
_ROUNDING = 8

_LARGEST = {dtype: np.finfo(dtype).max for dtype in (np.float32, np.float64)}


def prediction_dtype(y: Any) -> type[np.floating[Any]]:
    """Return float32 if it can represent the targets passed to ``fit``, else float64.

    It does for floats of at most 32 bits and for integers that are exact in float32.
    """
    values = np.asarray(plain_cells(y))
    if values.dtype.kind in "iub":
        is_exact = np.abs(values.astype(np.float64)).max() <= _LARGEST_EXACT_INTEGER
        return np.float32 if is_exact else np.float64
    return np.float32 if values.dtype in (np.float16, np.float32) else np.float64


def mean_and_scale(
    values: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean and standard deviation of each column.

    Parameters
    ----------
    values : ndarray of shape (n_samples,) or (n_samples, n_targets)
        Finite numbers, or NaN for those that do not count.
    weights : ndarray of shape (n_samples,) or None
        Sample weights.

    Returns
    -------
    mean, scale : ndarray of shape () or (n_targets,), float64
        The scale of a column is 0 if it is constant but for rounding.
    """
    wide = values.astype(np.float64)
    known = ~np.isnan(wide)
    if not known.all():
        found = [
            mean_and_scale(
                column[rows] if rows.any() else np.zeros(1),
                weights[rows] if weights is not None and rows.any() else None,
            )
            for column, rows in zip(
                wide.reshape(len(wide), -1).T,
                known.reshape(len(wide), -1).T,
                strict=True,
            )
        ]
        mean, scale = np.array(found).T.reshape(2, *wide.shape[1:])
        return mean, scale
    mean, scale = _moments(wide, weights)
    is_close = scale <= 1e-14 * np.abs(mean)
    if is_close.any():
        # The rounding of such a mean is not small beside the spread.
        if weights is not None:
            wide, weights = wide[weights > 0], weights[weights > 0]
        low, high = wide.min(axis=0), wide.max(axis=0)
        offset, spread = _moments(np.where(is_close, wide - low, 0.0), weights)
        is_rounding = high - low <= _ROUNDING * np.spacing(np.abs(low))
        mean = np.where(is_close, low + offset, mean)
        scale = np.where(is_close, np.where(is_rounding, 0.0, spread), scale)
    return mean, scale


def _moments(
    wide: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    # In units of the largest value no intermediate result overflows.
    unit = np.maximum(np.abs(wide).max(axis=0), np.finfo(np.float64).tiny)
    mean = np.average(wide / unit, axis=0, weights=weights)
    variance = np.average((wide / unit - mean) ** 2, axis=0, weights=weights)
    return mean * unit, np.sqrt(variance) * unit


def joint_moments(
    first: tuple[np.ndarray, np.ndarray, int],
    second: tuple[np.ndarray, np.ndarray, int],
    *,
    scaled: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of two groups of rows together.

    Parameters
    ----------
    first, second : tuple of (ndarray, ndarray, int)
        Mean, standard deviation and number of rows of each group.
    scaled : bool, default=False
        Whether the targets are only scaled: the scale is then a mean, that of their
        absolute values.

    References
    ----------
    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979, equation 2.1.
    """
    (mean, scale, n), (other_mean, other_scale, n_others) = first, second
    share, rest = n_others / (n + n_others), n / (n + n_others)
    if scaled:
        return mean, rest * scale + share * other_scale
    # Differences of halves, and hypot instead of squares, do not overflow.
    half = other_mean / 2 - mean / 2
    within = np.hypot(math.sqrt(rest) * scale, math.sqrt(share) * other_scale)
    between = 2 * math.sqrt(share * rest) * half
    return rest * mean + share * other_mean, np.hypot(within, between)


def standardize(values: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return ``(values - mean) / scale`` as float32; the scale 0 counts as 1."""
    return ColumnScaling(mean, np.where(scale > 0, scale, 1.0)).scaled(values)


@dataclass(frozen=True)
class NumberCoding:
    """Conversion between numbers and standardized targets.

    Parameters
    ----------
    mean, scale : ndarray of shape () or (n_targets,)
        Mean and standard deviation of each target.
    shape : tuple of int
        Shape of the targets of a row.
    dtype : type
        Type of the predictions.
    """

    mean: np.ndarray
    scale: np.ndarray
    shape: tuple[int, ...]
    dtype: type[np.floating[Any]]
    classes: None = None

    def decode(self, target: Tensor) -> np.ndarray:
        """Return targets or predictions in the units of ``y``."""
        several = target.shape[2:]  # such as the quantiles of each target
        values: np.ndarray = target.numpy(force=True).astype(np.float64)
        values = values.reshape(-1, *self.shape, *several)
        scale, mean = self.scale, self.mean
        if several:
            ones = (1,) * len(several)
            scale, mean = (z.reshape(z.shape + ones) for z in (scale, mean))
        with np.errstate(over="ignore"):  # an overflow is clipped below
            values = values * scale + mean
        limit = _LARGEST[self.dtype]
        # numpy.clip takes twice as long for a few values.
        values = np.minimum(np.maximum(values, -limit), limit)
        return values.astype(self.dtype, copy=False)

    def responses(
        self, criterion: nn.Module, output: Tensor, *, in_logits: bool = False
    ) -> Tensor:
        """Return the predicted numbers as a tensor, (n_samples, n_outputs)."""
        found = predictions(unbounded(criterion), output).double()
        found = found.reshape(len(found), self.mean.size, -1)
        scale, mean = (
            torch.from_numpy(z).to(found.device).reshape(-1, 1)
            for z in (self.scale, self.mean)
        )
        return (found * scale + mean).flatten(1)

    def probabilities(self, criterion: nn.Module, output: Tensor) -> np.ndarray:
        """Raise an error, because numbers have no probabilities."""
        raise AttributeError("A regressor has no predict_proba.")

    def predict(self, criterion: nn.Module, output: Tensor) -> np.ndarray:
        """Return the predicted numbers."""
        return self.decode(predictions(unbounded(criterion), output))

    def deviations(self, criterion: nn.Module, output: Tensor) -> np.ndarray:
        """Return the standard deviations that a loss has taught the network."""
        scaled = unbounded(criterion).predict_std(output)
        return replace(self, mean=np.zeros_like(self.mean)).decode(scaled)
