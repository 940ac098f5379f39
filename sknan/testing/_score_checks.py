"""Checks that a model does not silently collapse to a constant prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import is_classifier, is_regressor

from sknan.testing._cases import Case, Table
from sknan.testing._refusals import FaultError

# Function that returns a model fitted without the fault, and its table.
Healthy = Callable[[], tuple[Any, Table]]

# Share of the gain over a constant prediction that must remain after a fault.
_SHARE_TO_KEEP = 0.5

# Smaller gains over a constant prediction are not checked.
_SMALLEST_GAIN = 0.2


def _score(model: Any, table: Table) -> tuple[float, float]:
    """Return the score on healthy rows, and that of the best constant prediction."""
    y, predicted = table.y_new, np.asarray(model.predict(table.X_new)).reshape(-1)
    y = y.reshape(-1)
    if is_classifier(model):
        return float(np.mean(predicted == y)), float(np.bincount(y).max() / len(y))
    largest = np.abs(y).max()
    errors = np.square((predicted - y) / largest).sum()
    return float(1 - errors / np.square((y - y.mean()) / largest).sum()), 0.0


def check_score(name: str, model: Any, case: Case, healthy: Healthy) -> None:
    if not (is_classifier(model) or is_regressor(model)):
        return
    score, constant = _score(model, case.table)
    # Half of the way to a perfect score is enough for any estimator.
    if score >= constant + _SHARE_TO_KEEP * (1 - constant):
        return
    usual, _ = _score(*healthy())
    least = constant + _SHARE_TO_KEEP * (usual - constant)
    if usual - constant >= _SMALLEST_GAIN and score < least:
        kind = "accuracy" if is_classifier(model) else "R2"
        raise FaultError(
            f"{name}, fitted on {case.what}, reaches {kind} {score:.3g} on healthy "
            f"rows; without the fault it is {usual:.3g}, for a constant "
            f"prediction {constant:.3g}. Refuse such input, or keep at least half of "
            f"the gain over the constant: {least:.3g}.",
            "wrong",
        )


def _n_varying(model: Any, X: Any) -> int:
    output = model.transform(X)
    output = output.toarray() if sparse.issparse(output) else np.asarray(output)
    return int((output != output[:1]).any(axis=0).sum())


def check_columns(name: str, model: Any, case: Case, healthy: Healthy) -> None:
    """Check that a transformer still distinguishes healthy rows in as many columns."""
    if not hasattr(model, "transform"):
        return
    X = case.table.X_new
    n_varying = _n_varying(model, X)
    if n_varying >= X.shape[1]:
        return
    untouched, table = healthy()
    least = _n_varying(untouched, table.X_new)
    if n_varying < least:
        raise FaultError(
            f"{name}.transform, fitted on {case.what}, gives {n_varying} columns that "
            f"vary among healthy rows; without the fault it gives {least}. Refuse such "
            "input, or keep healthy rows distinct.",
            "wrong",
        )
