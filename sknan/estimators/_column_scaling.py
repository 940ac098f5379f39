"""Standardization of the columns of ``X`` that are in raw units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sknan._engine.prediction import ColumnScaling
from sknan._utils.validation import column_name, places
from sknan._utils.warn import warn
from sknan.estimators._target_scaling import mean_and_scale
from sknan.exceptions import NonFiniteDataError

# A column whose mean or standard deviation is at least this large is in raw units. The
# default network learns as well with one column of size 300 as without, and is worse
# than a constant with one of size 1000; several columns add up.
_RAW = 10.0

# Columns from this size on are reported where they cannot be standardized.
_LOST = 1000.0

# Largest number of columns that a message lists.
_MOST_LISTED = 8

# Share of the values of a column up to which they are outliers.
_FEW = 0.1

# Remedy for targets that are outliers.
DROP_OUTLIERS = "Correct these targets, or remove these rows from X and y."


def raw_columns(X: np.ndarray, weights: np.ndarray | None) -> ColumnScaling | None:
    """Return the scaling of the columns in raw units, or None if there are none.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Finite features, in the dtype of the user. More dimensions give None.
    weights : ndarray of shape (n_samples,) or None
        Positive sample weights.
    """
    if X.ndim != 2:
        return None
    size = np.maximum(X.max(axis=0), -X.min(axis=0))
    large = np.flatnonzero(size >= _RAW)
    means, scales = np.zeros(X.shape[1]), np.ones(X.shape[1])
    if len(large):
        mean, scale = mean_and_scale(X[:, large], weights)
        # The values that a constant column will have later are unknown.
        scale = np.where(scale > 0, scale, np.abs(mean))
        is_raw = np.maximum(np.abs(mean), scale) >= _RAW
        means[large[is_raw]], scales[large[is_raw]] = mean[is_raw], scale[is_raw]
    return ColumnScaling(means, scales) if means.any() or (scales != 1).any() else None


def warn_of_raw_columns(scaling: ColumnScaling, names: Sequence[Any] | None) -> None:
    """Warn that large columns reach a module that was passed in, as they are."""
    size = np.maximum(np.abs(scaling.mean), scaling.scale)
    lost = [column_name(j, names) for j in np.flatnonzero(size >= _LOST).tolist()]
    if lost:
        more = ", ..." if len(lost) > _MOST_LISTED else ""
        warn(
            f"Columns of X are in raw units: {', '.join(lost[:_MOST_LISTED])}{more}. A "
            "linear layer learns nothing from values that large. They are not "
            "standardized, because the weights of a module that was passed in may be "
            "made for these units: pass its class, or standardize X, for example with "
            "SafeScaler()."
        )


def refuse_outliers(
    values: np.ndarray,
    numbers: np.ndarray,
    *,
    name: str,
    remedy: str,
    columns: Sequence[Any] | None = None,
) -> None:
    """Raise an error for a few values beside which float32 loses all the others.

    Parameters
    ----------
    values : ndarray of shape (n_samples,) or (n_samples, n_columns)
        Finite values.
    numbers : ndarray of shape (n_samples,)
        Row numbers in the data of the user.
    name, remedy, columns
        See :func:`~sknan._utils.validation.check_finite`.

    Raises
    ------
    NonFiniteDataError
        If at most a tenth of the values of a column are so large that the differences
        between the others are below the resolution of float32.
    """
    halves = values / 2
    deviation = np.abs(halves - np.median(halves, axis=0)).astype(np.float64)
    is_large = deviation > np.finfo(np.float32).eps * deviation.max(axis=0)
    is_rest_lost = ((deviation > 0) & ~is_large).any(axis=0)
    bad = is_large & is_rest_lost & (is_large.mean(axis=0) <= _FEW)
    if bad.any():
        in_data = np.zeros((numbers.max() + 1, *bad.shape[1:]), dtype=bool)
        in_data[numbers] = bad
        raise NonFiniteDataError(
            f"{name} contains values so large that float32 cannot distinguish the "
            f"others{places(in_data, columns)}. {remedy}"
        )
