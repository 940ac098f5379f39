"""What must be left of a score: no model may silently collapse to a constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import is_classifier, is_regressor

from sknan.testing._cases import Case, Table
from sknan.testing._refusals import FaultError

__all__ = ["check_columns", "check_score"]

# Gives a model fitted without the fault, and its table; called only where needed.
Healthy = Callable[[], tuple[Any, Table]]

# Of what an estimator gains over a constant answer, a fault in few cells may cost half.
_SHARE_TO_KEEP = 0.5

# Below this gain there is nothing to lose that is worth the name.
_SMALLEST_GAIN = 0.2


def _score(model: Any, table: Table) -> tuple[float, float]:
    """Score on the healthy rows, and that of the best constant answer."""
    y, found = table.y_new, np.asarray(model.predict(table.X_new)).reshape(-1)
    y = y.reshape(-1)
    if is_classifier(model):
        return float(np.mean(found == y)), float(np.bincount(y).max() / len(y))
    largest = np.abs(y).max()
    errors = np.square((found - y) / largest).sum()
    return float(1 - errors / np.square((y - y.mean()) / largest).sum()), 0.0


def check_score(name: str, model: Any, case: Case, healthy: Healthy) -> None:
    if not (is_classifier(model) or is_regressor(model)):
        return
    score, constant = _score(model, case.table)
    # Half-way to a perfect score is enough, whatever it is without the fault.
    if score >= constant + _SHARE_TO_KEEP * (1 - constant):
        return
    usual, _ = _score(*healthy())
    least = constant + _SHARE_TO_KEEP * (usual - constant)
    if usual - constant >= _SMALLEST_GAIN and score < least:
        kind = "accuracy" if is_classifier(model) else "R2"
        raise FaultError(
            f"{name}, fitted on {case.what}, reaches {kind} {score:.3g} on healthy "
            f"rows; without the fault it is {usual:.3g}, for a constant answer "
            f"{constant:.3g}. Refuse such input, or keep at least half of what is "
            f"gained over the constant: {least:.3g}.",
            "wrong",
        )


def _n_varying(model: Any, X: Any) -> int:
    output = model.transform(X)
    output = output.toarray() if sparse.issparse(output) else np.asarray(output)
    return int((output != output[:1]).any(axis=0).sum())


def check_columns(name: str, model: Any, case: Case, healthy: Healthy) -> None:
    """See that a transformer still tells healthy rows apart, in as many columns."""
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
            "input, or go on telling healthy rows apart.",
            "wrong",
        )
