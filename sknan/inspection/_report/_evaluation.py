"""Targets and predictions of the rows that a report was given."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from sknan._engine.prediction import levels_of
from sknan._utils.validation import FLOAT64_MAX, check_finite
from sknan.exceptions import NonFiniteDataError
from sknan.inspection._audit._formatting import quantity
from sknan.nets._curves import last_of, networks_of, skorch_net_of
from sknan.preprocessing._tables.plain_cells import plain_cells

Numbers = NDArray[np.float64]
Row = tuple[str, ...]

# Largest number of classes or targets that are listed.
MAX_GROUPS = 10


class Evaluation(NamedTuple):
    """Targets and predictions of rows.

    Attributes
    ----------
    target : ndarray of shape (n_samples, n_targets)
        Labels or numbers.
    predicted : ndarray of shape (n_samples, n_targets[, n_levels])
        Predictions.
    names : list of str
        Names of the classes, of the labels per row, or of the targets.
    probabilities : ndarray of shape (n_samples, n_classes) or None
        Probabilities of the classes; None for numbers.
    is_class : ndarray of bool of shape (n_samples, n_classes)
        Whether the row has each class.
    is_predicted : ndarray of bool of shape (n_samples, n_classes)
        Whether each class is predicted.
    levels : ndarray of shape (n_levels,) or None
        Quantiles that are predicted.
    """

    target: NDArray[Any]
    predicted: NDArray[Any]
    names: list[str]
    probabilities: Numbers | None = None
    is_class: NDArray[np.bool_] = np.zeros(0, dtype=bool)
    is_predicted: NDArray[np.bool_] = np.zeros(0, dtype=bool)
    levels: NDArray[np.float64] | None = None

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Whether all labels of each row are predicted."""
        return np.asarray((self.target == self.predicted).all(axis=1))

    @property
    def is_multilabel(self) -> bool:
        """Whether a row may have several labels."""
        return self.probabilities is not None and self.target.shape[1] > 1

    @property
    def unseen(self) -> NDArray[np.bool_]:
        """Whether the label of each row is one that ``fit`` has not seen."""
        if self.probabilities is None or self.is_multilabel:
            return np.zeros(len(self.target), dtype=bool)
        return np.asarray(~self.is_class.any(axis=1))

    @property
    def is_scored(self) -> bool:
        """Whether the score of the model is defined on these rows."""
        if self.probabilities is not None:
            return True
        return len(self.target) > 1 and bool((np.ptp(self.target, axis=0) > 0).all())


def names_of_columns(y: Any, n: int, kind: str) -> list[str]:
    """Return the names of the columns of ``y``, or numbers if it has none."""
    columns = list(getattr(y, "columns", ()))
    return list(map(str, columns)) or [f"{kind} {i}" for i in range(n)]


# Names that pandas gives to cells that are numbers.
_NUMBERS = ("boolean", "integer", "floating", "mixed-integer-float")


def target_of(estimator: Any, X: Any, y: Any) -> NDArray[Any]:
    """Return the target as an array with a column for each target or label.

    Raises
    ------
    NonFiniteDataError
        If a value is missing or not finite.
    ValueError
        If ``y`` has not one value for each row and each target of the model.
    """
    last = last_of(estimator)
    network = next(iter(networks_of(estimator).values()))
    names, remedy = getattr(y, "columns", None), "Remove these rows from X and y."
    y = y.toarray() if sparse.issparse(y) else y
    if hasattr(last, "classes_"):
        is_pandas = isinstance(y, (pd.Series, pd.DataFrame))
        found = np.asarray(y if is_pandas else plain_cells(y))
        if (missing := pd.isna(found)).any():
            row = int(np.argwhere(missing)[0, 0])
            raise NonFiniteDataError(
                f"y contains {quantity(int(missing.sum()), 'missing label')}, first at "
                f"row {row}. {remedy}"
            )
        is_multilabel = getattr(network, "_is_multilabel", False)
        if not is_multilabel:
            _refuse_other_types(found, last.classes_)
        n_columns = len(last.classes_) if is_multilabel else 1
    else:
        found = np.asarray(plain_cells(y)).astype(np.float64)
        check_finite(found, name="y", remedy=remedy, columns=names, limit=FLOAT64_MAX)
        n_columns = math.prod(getattr(network, "_target_shape", found.shape[1:]))
    n_rows = len(found)
    if hasattr(X, "shape") or hasattr(X, "__len__"):
        n_rows = X.shape[0] if hasattr(X, "shape") else len(X)
    if len(found) != n_rows:
        raise ValueError(
            f"X has {quantity(n_rows, 'row')}, and y has {len(found)}. Pass one target "
            "for each row."
        )
    found = found.reshape(n_rows, -1)
    if found.shape[1] != n_columns:
        raise ValueError(
            f"y has {quantity(found.shape[1], 'column')}, but the model was fitted on "
            f"{n_columns}. Pass the target of fit for the rows of X."
        )
    return found


def _refuse_other_types(labels: NDArray[Any], classes: NDArray[Any]) -> None:
    """Raise ``ValueError`` if one of labels and classes are numbers, the other text."""
    kinds = _kind_of(labels), _kind_of(classes)
    if kinds in (("numbers", "text"), ("text", "numbers")):
        raise ValueError(
            f"y contains {kinds[0]}, first {labels.flat[0]} at row 0, but the labels "
            f"of fit are {kinds[1]}, first {classes[0]}. Pass labels of the type of "
            "fit."
        )


def _kind_of(labels: NDArray[Any]) -> str:
    """Return ``"numbers"``, ``"text"`` or pandas' name for other labels."""
    kind: str = pd.api.types.infer_dtype(labels.ravel())
    if kind in _NUMBERS:
        return "numbers"
    return "text" if kind == "string" else kind


def evaluate(estimator: Any, X: Any, y: Any) -> Evaluation:
    """Predict rows with a fitted model."""
    target = target_of(estimator, X, y)
    predicted = np.asarray(estimator.predict(X))
    classes = getattr(last_of(estimator), "classes_", None)
    if classes is not None:
        p = np.asarray(estimator.predict_proba(X), dtype=np.float64)
        names, predicted = list(map(str, classes)), predicted.reshape(target.shape)
        present: Any = np.asarray(classes)
        if target.shape[1] > 1:
            names, present = names_of_columns(y, target.shape[1], "label"), 1
        pair = target == present, predicted == present
        return Evaluation(target, predicted, names, p, *pair)
    levels = quantiles_of(estimator)
    shape = target.shape if levels is None else (*target.shape, len(levels))
    predicted = predicted.astype(np.float64).reshape(shape)
    names = names_of_columns(y, target.shape[1], "target")
    return Evaluation(target, predicted, names, levels=levels)


def quantiles_of(estimator: Any) -> NDArray[np.float64] | None:
    """Return the quantiles that a regressor predicts, or None."""
    net = skorch_net_of(next(iter(networks_of(estimator).values())))
    levels = levels_of(net.criterion_)
    return None if levels is None else np.atleast_1d(np.asarray(levels, np.float64))
