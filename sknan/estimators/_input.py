"""Validation of the features and sample weights that an estimator receives."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data
from torch import Tensor

from sknan._engine.prediction import ColumnScaling
from sknan._utils.validation import already_valid_array, check_finite, is_within
from sknan.preprocessing._stored_table import stored_chunks
from sknan.preprocessing._tables.plain_cells import name_unfit_cell, plain_cells

_IMPUTE_AS_X = (
    "Transform it as X is: a Pipeline with transform_input=['X_val'] does, with "
    "metadata routing enabled."
)


def require_target(estimator: BaseEstimator, y: Any) -> None:
    """Refuse a missing target, which may be omitted only if the chunks have it."""
    if y is None:
        raise ValueError(
            f"{type(estimator).__name__} requires y to be passed, but the target y is "
            "None."
        )


class CheckedRows(NamedTuple):
    """Features as the networks of estimators that were fitted together receive them.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features), float32
        The features.
    """

    X: np.ndarray


def network_input(estimator: Any, X: Any) -> np.ndarray:
    """Validate ``X`` as :func:`check_features` does, and convert it for the network.

    Parameters
    ----------
    estimator : StableNetClassifier or StableNetRegressor
        Estimator for which the scaling of columns is known.
    X : array-like, DataFrame or CheckedRows
        The features.

    Returns
    -------
    ndarray of shape (n_samples, n_features), float32
    """
    if isinstance(X, CheckedRows):
        return X.X
    table = X if type(X) is np.ndarray else stored_chunks(X).X
    X_raw = check_features(estimator, table, reset=False)
    X_in = as_network_input(X_raw, estimator._scaling)
    # The module may overwrite its input.
    return X_in if X_in.flags.writeable else X_in.copy()


def as_network_input(X: np.ndarray, scaling: ColumnScaling | None) -> np.ndarray:
    """Return valid features as float32, with the columns in raw units standardized.

    The array may be read-only, such as a memory map, of which no copy is made.
    """
    if scaling is not None:
        X = scaling.scaled(X)
    return np.ascontiguousarray(X, dtype=np.float32)


class _Writeable:
    """View of a read-only array that NumPy takes for a writeable one."""

    def __init__(self, X: np.ndarray) -> None:
        self.base = X  # keeps the memory alive
        interface = X.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def shared_tensor(X: np.ndarray) -> Tensor:
    """Return a tensor over the memory of an array, which must not be written to.

    torch warns of each array that is read-only, such as a memory map.
    """
    return torch.from_numpy(X if X.flags.writeable else np.asarray(_Writeable(X)))


def check_features(
    estimator: BaseEstimator,
    X: Any,
    *,
    reset: bool,
    min_samples: int = 1,
    name: str = "X",
) -> np.ndarray:
    """Validate ``X`` and refuse non-finite values.

    Parameters
    ----------
    estimator : StableNetClassifier or StableNetRegressor
        Estimator that receives ``X``. Only one with a custom module accepts more than
        two dimensions.
    X : array-like or DataFrame
        The features.
    reset : bool
        Whether to set ``n_features_in_`` and ``feature_names_in_`` from ``X``. If
        False, ``X`` is compared with them.
    min_samples : int, default=1
        Smallest number of rows that is accepted.
    name : str, default="X"
        Name of the input in messages.

    Returns
    -------
    ndarray of shape (n_samples, n_features), float64 or float32
        Integers become float64, because float32 does not resolve large ones.

    Raises
    ------
    NonFiniteDataError
        If a value is NaN, infinite or too large for float32.
    ValueError
        If ``X`` is not a table of numbers, or not the table expected.
    """
    X_in = None if reset else already_valid_array(X, estimator)
    if X_in is not None and len(X_in) >= min_samples and is_within(X_in):
        return X_in
    owner = type(estimator).__name__
    if type(X) is dict:  # a sparse matrix may be a subclass
        raise TypeError(
            f"{owner} takes one table as {name}, got a dict. For a module with several "
            "inputs use GuardedNetClassifier or GuardedNetRegressor, which pass the "
            "entries of a dict to forward by their names."
        )
    if X_in is None or len(X_in) < min_samples:
        encode = (
            f"Encode the table first: sknan.tabular_pipeline({owner}()) does, or "
            "sklearn.preprocessing.OneHotEncoder()."
        )
        with name_unfit_cell(name, X, owner, encode):
            X_in = validate_data(
                estimator,
                plain_cells(X),
                reset=reset,
                # Other dtypes, such as integers, become the first of these.
                dtype=(np.float64, np.float32),
                allow_nd=estimator.module is not None,
                # Checked below, since scikit-learn names neither column nor row.
                ensure_all_finite=False,
                ensure_min_samples=min_samples,
            )
    steps = f"make_pipeline(NaNImputer(), SafeScaler(), {owner}())"
    check_finite(
        X_in,
        name=name,
        columns=getattr(estimator, "feature_names_in_", None),
        remedy=_IMPUTE_AS_X if name != "X" else f"Impute first: {steps}.",
    )
    return X_in


def check_sample_weight(
    sample_weight: Any, n_samples: int, name: str = "sample_weight"
) -> np.ndarray | None:
    """Return the sample weights as float64, or None if there are none.

    Parameters
    ----------
    sample_weight : array-like of shape (n_samples,), float or None
        Weights of the rows.
    n_samples : int
        Number of rows.
    name : str, default="sample_weight"
        Name of the weights in messages.

    Returns
    -------
    ndarray of shape (n_samples,), float64, or None

    Raises
    ------
    NonFiniteDataError
        If a weight is not finite.
    ValueError
        If the shape is wrong, a weight is negative, or all weights are zero.
    """
    if sample_weight is None:
        return None
    if isinstance(sample_weight, numbers.Number):
        sample_weight = np.full(n_samples, sample_weight)
    cells = plain_cells(sample_weight)
    is_list = isinstance(cells, Sequence) and not isinstance(cells, (str, bytes))
    if not is_list and not hasattr(cells, "__array__"):
        raise TypeError(f"{name} must be one number per row, got {sample_weight!r}.")
    with name_unfit_cell(name, cells, "a weight", "Pass one number per row."):
        weights = np.asarray(cells, dtype=np.float64)
    if weights.shape != (n_samples,):
        raise ValueError(
            f"{name} must have shape ({n_samples},), one weight per row, got "
            f"{weights.shape}."
        )
    remedy = (
        "Divide the weights by their mean: only their ratios have an effect."
        if np.isfinite(weights).all()
        else "Give rows that must not count the weight 0."
    )
    check_finite(weights, name=name, remedy=remedy)
    if (weights < 0).any():
        row = int(np.argmax(weights < 0))
        raise ValueError(
            f"{name} must not be negative, but is {weights[row]:g} at row {row}."
        )
    if not weights.any():
        raise ValueError(f"{name} is zero for all rows: at least one row must count.")
    return weights


def scale_weights(weights: np.ndarray | None) -> np.ndarray | None:
    """Return weights of mean 1, or None if all weights are equal."""
    if weights is None:
        return None
    weights = weights / weights.mean()
    return None if (weights == weights[0]).all() else weights


def rows_that_count(
    X: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray | None,
    merges: Callable[[int], bool],
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]:
    """Return the rows that training depends on, and the position of each input row.

    A row of weight 0 must have no effect, not even on the batches: its position is -1.
    The other results are those of :func:`merge_duplicate_rows`, which merges equal rows
    if ``merges`` says so for their number.
    """
    rows = np.arange(len(X))
    positions = np.full(len(X), -1)
    # Rows that all count are not copied.
    if weights is not None and not weights.all():
        rows = np.flatnonzero(weights)
        X, y, weights = X[rows], y[rows], weights[rows]
    positions[rows] = np.arange(len(X))
    if merges(len(X)):
        X, y, weights, kept, positions[rows] = merge_duplicate_rows(X, y, weights)
        rows = rows[kept]
    return X, y, weights, rows, positions


def merge_duplicate_rows(
    X: np.ndarray, y: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]:
    """Return the distinct rows in sorted order, each with its total weight.

    The loss of a full batch does not depend on the order of the rows, and it is the
    same for a row that occurs twice and a row of weight 2. Sums of floats, however,
    depend on both, and training amplifies their rounding errors. Merged rows make the
    fitted networks bitwise identical.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Features.
    y : ndarray of shape (n_samples,) or (n_samples, n_targets)
        Floating-point targets or labels.
    weights : ndarray of shape (n_samples,) or None
        Sample weights.

    Returns
    -------
    X, y : ndarray
        The distinct rows. All rows, if fewer than two are distinct.
    weights : ndarray of float64 or None
        Total weight of each row.
    numbers : ndarray of int
        Number of the first row of each group in the input.
    positions : ndarray of int
        Position of each row of the input among the returned rows.
    """
    keys = y if y.dtype.kind == "f" else np.unique(y, return_inverse=True)[1]
    rows = np.column_stack([X.astype(np.float64), keys])
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    positions = inverse.reshape(-1)
    if len(first) < 2:
        return X, y, weights, np.arange(len(X)), np.arange(len(X))
    total = np.bincount(positions, weights=weights)
    return X[first], y[first], total.astype(np.float64), first, positions
