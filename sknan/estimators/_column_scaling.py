"""Standardization of the columns of ``X`` that are in raw units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from sknan._engine.prediction import ColumnScaling
from sknan._utils.outliers import check_outliers
from sknan._utils.random_state import seeded
from sknan._utils.validation import listed_columns
from sknan._utils.warn import warn
from sknan.estimators._target_scaling import mean_and_scale
from sknan.nets._tabular_mlp import TabularMLP
from sknan.nets.recovery.raw_units import RAW, feeds_linear_layers, is_overwhelmed

# All columns of a table whose values are smaller than this are in raw units. A single
# one may be noise, such as a last principal component.
_TINY = 1e-3

# Number of rows that are compared at once.
_BLOCK_ROWS = 1 << 14

# Number of rows for the trial of a custom module.
_TRIAL_ROWS = 32

# What outliers do to a column that is standardized.
_SQUASH = (
    "They dominate the standard deviation, so that the network hardly distinguishes "
    "the other values."
)

# What they do to targets in the units of an earlier fit.
_OUTWEIGH = "They outweigh the other targets in the loss."

# Fewer targets than this are compared with numbers of this multiple of the earlier
# standard deviation too. A stream may drift by some standard deviations.
_FEW_ROWS = 20
_USUAL = 1e3


def numeric_columns(X: np.ndarray) -> tuple[int, ...]:
    """Return the numbers of the columns with more than two distinct values."""
    low, high = X.min(axis=0), X.max(axis=0)
    is_numeric = np.zeros(X.shape[1:], dtype=bool)
    # Masks of the whole table may not fit into memory.
    for start in range(0, len(X), _BLOCK_ROWS):
        rows = X[start : start + _BLOCK_ROWS]
        is_numeric |= ((low != rows) & (high != rows)).any(axis=0)
        if is_numeric.all():
            break
    return tuple(np.flatnonzero(is_numeric).tolist())


def raw_columns(X: np.ndarray, weights: np.ndarray | None) -> ColumnScaling | None:
    """Return the scaling of the columns in raw units, or None if there are none.

    Features are finite, in the dtype of the user. More than two dimensions give None.
    """
    if X.ndim != 2:
        return None
    size = np.maximum(X.max(axis=0), -X.min(axis=0))
    is_tiny = size.max() < _TINY
    chosen = np.flatnonzero(size > 0) if is_tiny else np.flatnonzero(size >= RAW)
    means, scales = np.zeros(X.shape[1]), np.ones(X.shape[1])
    if len(chosen):
        mean, scale = mean_and_scale(X[:, chosen], weights)
        # The values that a constant column will have later are unknown.
        scale = np.where(scale > 0, scale, np.abs(mean))
        is_raw = is_tiny | (np.maximum(np.abs(mean), scale) >= RAW)
        means[chosen[is_raw]], scales[chosen[is_raw]] = mean[is_raw], scale[is_raw]
    return ColumnScaling(means, scales) if (scales != 1).any() else None


def scaling_for(
    module: tuple[Any, dict[str, Any]],
    X: np.ndarray,
    weights: np.ndarray | None,
    numbers: np.ndarray,
    names: Sequence[Any] | None,
    owner: str,
) -> ColumnScaling | None:
    """Return the scaling of columns in raw units, if the module may receive it.

    A custom module may if it passes its input to linear layers only. Any other one may
    depend on the units, for example by a logarithm, and so may the weights of a module
    that was passed in.

    Parameters
    ----------
    module : (type, nn.Module or callable, dict)
        Module or its factory, and the arguments of the factory.
    X, weights
        See :func:`raw_columns`.
    numbers : ndarray of shape (n_samples,)
        Row numbers in the data of the user.
    names : sequence of str or None
        Names of the columns.
    owner : str
        Class name of the estimator.

    Raises
    ------
    NonFiniteDataError
        See :func:`~sknan._utils.outliers.check_outliers`.
    """
    scaling = raw_columns(X, weights)
    if scaling is None:
        return None
    factory, params = module
    is_passed_in = isinstance(factory, nn.Module)
    if factory is not TabularMLP:
        with seeded(0, "cpu"):
            built = factory if is_passed_in else factory(**params)
            rows = torch.from_numpy(scaling.scaled(X[:_TRIAL_ROWS]))
            is_linear = isinstance(built, TabularMLP) or feeds_linear_layers(
                built, rows
            )
            rows = torch.from_numpy(X[:_TRIAL_ROWS].astype(np.float32))
            is_raw = is_passed_in or not is_linear
            if is_raw and is_overwhelmed(built, rows):
                _warn_of_raw_columns(scaling, names, is_linear=is_linear)
        if is_raw:
            return None
    check_outliers(
        np.where(scaling.scale == 1, 0.0, X),
        numbers,
        name="X",
        effect=_SQUASH,
        remedy=f"Bound them: make_pipeline(SafeScaler(), {owner}()).",
        columns=names,
    )
    return scaling


def _warn_of_raw_columns(
    scaling: ColumnScaling, names: Sequence[Any] | None, *, is_linear: bool
) -> None:
    """Warn that large columns reach a custom module as they are."""
    size = np.maximum(np.abs(scaling.mean), scaling.scale)
    large = np.flatnonzero(size >= RAW).tolist()
    listed = listed_columns(large, names)
    reason = (
        "the weights of a module that was passed in may be made for these units: pass "
        "its class, or standardize X"
        if is_linear
        else "the module uses its input elsewhere than in linear layers: standardize X"
    )
    warn(
        f"Columns of X are in raw units: {listed}. The outputs of the untrained "
        "network are far too large for it to learn. The columns are not standardized, "
        f"because {reason}, for example with SafeScaler()."
    )


def check_targets(
    target: np.ndarray,
    numbers: np.ndarray,
    kept: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    is_new: bool = True,
) -> None:
    """Refuse or warn of outliers in targets.

    Parameters
    ----------
    target : ndarray of shape (n_samples,) or (n_samples, n_targets)
        Finite targets.
    numbers : ndarray of shape (n_samples,)
        Row numbers in the data of the user.
    kept : tuple of ndarray or None, default=None
        Mean and standard deviation of earlier targets, with which a few rows are
        compared. None compares the rows with each other only.
    is_new : bool, default=True
        Whether these targets are standardized by their own standard deviation.

    Raises
    ------
    NonFiniteDataError
        See :func:`~sknan._utils.outliers.check_outliers`.
    """
    if kept is not None and len(target) < _FEW_ROWS:
        signs = np.resize([1.0, -1.0], (_FEW_ROWS, *(1,) * (target.ndim - 1)))
        with np.errstate(over="ignore"):
            usual = kept[0] + signs * (_USUAL * kept[1])
        usual = np.nan_to_num(usual)  # inf becomes the largest number
        later = numbers.max() + 1 + np.arange(_FEW_ROWS)
        target, numbers = np.concatenate([target, usual]), np.r_[numbers, later]
    check_outliers(
        target,
        numbers,
        name="y",
        effect=_SQUASH if is_new else _OUTWEIGH,
        remedy="Correct these targets, remove their rows from X and y, or predict the "
        "logarithm.",
    )
