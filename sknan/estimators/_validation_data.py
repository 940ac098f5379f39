"""Validation data and groups of rows that the user passes to ``fit``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import column_or_1d

from sknan._engine.plan import TrainingRows
from sknan._utils.outside import is_of_signal, unless
from sknan.estimators._input import (
    as_network_input,
    check_features,
    check_sample_weight,
    scale_weights,
)
from sknan.estimators._labels import (
    apply_class_weight,
    label_array,
    refuse_unusable_labels,
)
from sknan.estimators._validation_split import HoldOut
from sknan.exceptions import NonFiniteDataError
from sknan.preprocessing._stored_table import joined_rows


class FitData(NamedTuple):
    """Further arguments of ``fit`` that decide which rows are held out.

    Parameters
    ----------
    X_val, y_val, sample_weight_val : object
        Validation data, or None.
    groups : object
        Groups of the training rows, or None.
    """

    X_val: Any = None
    y_val: Any = None
    sample_weight_val: Any = None
    groups: Any = None

    def is_validated(self, early_stopping: Any, validation_split: Any) -> bool:
        """Whether there are validation data; refuse a part of them."""
        given = self._asdict()
        for name in ("X_val", "y_val", "sample_weight_val"):
            other = "y_val" if name == "X_val" else "X_val"
            if given[name] is not None and given[other] is None:
                raise ValueError(
                    f"{name} is provided, but {other} was not provided. Pass X_val and "
                    "y_val together."
                )
        if self.X_val is not None and early_stopping is False:
            raise ValueError(
                "X_val and y_val are provided, but early_stopping=False does not use "
                "them. Set early_stopping to 'auto' or True."
            )
        if self.X_val is not None and validation_split is not None:
            raise ValueError(
                "X_val and validation_split both choose the rows to validate on. Pass "
                "one of them."
            )
        return self.X_val is not None


def with_validation_rows(
    estimator: Any, rows: TrainingRows, data: FitData
) -> TrainingRows:
    """Append validation data, in the form of training, to training rows.

    Parameters
    ----------
    estimator : StableNetClassifier or StableNetRegressor
        Estimator that has validated the training rows.
    rows : TrainingRows
        Training rows.
    data : FitData
        Validation data.

    Returns
    -------
    TrainingRows
        Rows whose weights, if there are any, have mean 1 in each of the two parts.

    Raises
    ------
    NonFiniteDataError
        If a value is not finite.
    ValueError
        If the columns, the targets or the weights do not fit the training data.
    """
    try:
        X_raw = check_features(estimator, data.X_val, reset=False, name="X_val")
    except unless(is_of_signal, ValueError) as error:
        if isinstance(error, NonFiniteDataError) or str(error).startswith("X_val"):
            raise
        raise ValueError(f"X_val does not match X. {error}") from error
    if X_raw.shape[1:] != rows.X.shape[1:]:
        raise ValueError(
            f"X_val has rows of shape {X_raw.shape[1:]}, but those of X have the shape "
            f"{rows.X.shape[1:]}."
        )
    y, n_valid = estimator._as_target(data.y_val, "y_val"), len(X_raw)
    if n_valid != len(y):
        raise ValueError(f"X_val has {n_valid} rows, but y_val has {len(y)}.")
    weights = check_sample_weight(data.sample_weight_val, n_valid, "sample_weight_val")
    by_class = getattr(estimator, "class_weight", None)
    if by_class is not None and y.ndim == 1:
        labels, owner = estimator.classes_[y], type(estimator).__name__
        weights = apply_class_weight(by_class, labels, weights, owner, False)
    assert isinstance(rows.hold_out, HoldOut)
    return rows._replace(
        X=joined_rows(rows.X, as_network_input(X_raw, estimator._scaling)),
        y=np.concatenate([rows.y, y]),
        weights=_joined_weights(rows.weights, weights, len(rows.X), n_valid),
        numbers=np.concatenate([rows.numbers, np.arange(n_valid)]),
        hold_out=replace(rows.hold_out, n_valid=n_valid),
    )


def _joined_weights(
    train: np.ndarray | None, valid: np.ndarray | None, n_train: int, n_valid: int
) -> np.ndarray | None:
    """Return the weights of training rows and validation rows, each of mean 1."""
    if train is None and valid is None:
        return None
    parts = ((scale_weights(train), n_train), (scale_weights(valid), n_valid))
    return np.concatenate([np.ones(n) if w is None else w for w, n in parts])


def check_groups(groups: Any, n_samples: int) -> np.ndarray | None:
    """Return the group of each row, or None if there are no groups.

    Raises
    ------
    NonFiniteDataError
        If the group of a row is missing.
    ValueError
        If the number of groups is wrong, or they have no order.
    """
    if groups is None:
        return None
    labels: np.ndarray = column_or_1d(label_array(groups))
    if len(labels) != n_samples:
        raise ValueError(
            f"groups must have shape ({n_samples},), one group per row, got "
            f"({len(labels)},)."
        )
    remedy = "Give each row that belongs to no other a group of its own."
    refuse_unusable_labels(labels, "groups", remedy)
    return labels
