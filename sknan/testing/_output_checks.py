"""Checks of outputs and scores.

An output must be finite and valid for its method, and have one row per input row. A
model must not silently collapse to a constant prediction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import is_classifier, is_regressor
from sklearn.utils import get_tags

from sknan.testing._cases import Case, Table
from sknan.testing._refusals import FaultError, advice

# Tolerance between outputs for the same row in batches with different other rows, in
# float32 arithmetic.
_ROUNDING = 1e-4

# Function that returns a model fitted without the fault, and its table.
Healthy = Callable[[], tuple[Any, Table]]

# Share of the gain over a constant prediction that must remain after a fault.
_SHARE_TO_KEEP = 0.5

# Smaller gains over a constant prediction are not checked.
_SMALLEST_GAIN = 0.2


def as_dense(output: Any) -> NDArray[Any]:
    """Return an output as a dense array."""
    return output.toarray() if sparse.issparse(output) else np.asarray(output)


def in_words(values: NDArray[Any], bad: NDArray[np.bool_]) -> str:
    """Return a phrase such as ``"2 NaN and 1 inf values of 8"``."""
    n_nan = int((np.isnan(values) & bad).sum())
    n_inf = int(bad.sum()) - n_nan
    kinds = [f"{n} {kind}" for n, kind in ((n_nan, "NaN"), (n_inf, "inf")) if n]
    noun = "value" if n_nan + n_inf == 1 else "values"
    return f"{' and '.join(kinds)} {noun} of {values.size}"


def check_output(
    label: str,
    method: str,
    model: Any,
    X: Any,
    output: NDArray[Any],
    rows: str,
    case: Case,
) -> None:
    """Check the number of rows, finiteness, and the rules of the method."""
    if len(output) != len(X):
        raise FaultError(f"{label} gives {len(output)} rows for {len(X)} rows: {rows}.")
    if output.dtype.kind == "O":
        with contextlib.suppress(TypeError, ValueError):
            output = output.astype(np.float64)
    if output.dtype.kind == "f":
        bad = ~np.isfinite(output)
        if method == "transform" and get_tags(model).input_tags.allow_nan:
            bad &= ~_may_propagate(np.asarray(X, dtype=np.float64), output)
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            predicted = ""
            if method == "predict_proba" and hasattr(model, "predict"):
                predicted = f", which predict calls {np.asarray(model.predict(X))[row]}"
            raise FaultError(
                f"{label} gives {in_words(output, bad)} for {rows}, first at row {row} "
                f"of the output{predicted}. {advice(case.words)}",
                "silent NaN",
            )
    if method == "predict_proba":
        n_classes = len(np.unique(case.table.y)) if is_classifier(model) else 1
        _check_probabilities(label, output, n_classes, rows)
    if method == "predict" and is_classifier(model):
        unknown = ~np.isin(output, case.table.y)
        if unknown.any():
            raise FaultError(
                f"{label} gives {output[unknown][0]} for {rows}, which is not a class "
                "of y. Predict labels of y."
            )
    if method == "predict" and is_regressor(model) and output.dtype.kind != "f":
        raise FaultError(
            f"{label} gives dtype {output.dtype} for {rows}. Predict floats."
        )


def _may_propagate(X: NDArray[Any], output: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask of the outputs that a transformer with NaN may leave non-finite.

    The mask is per cell if the output has the shape of the input, else per row.
    """
    nonfinite: NDArray[np.bool_] = ~np.isfinite(X)
    if X.shape == output.shape:
        return nonfinite
    per_row = nonfinite.any(axis=1).reshape(-1, *[1] * (output.ndim - 1))
    return np.broadcast_to(per_row, output.shape)


def _check_probabilities(
    label: str, output: NDArray[Any], n_classes: int, rows: str
) -> None:
    if output.ndim != 2 or output.shape[1] < n_classes:
        raise FaultError(
            f"{label} gives shape {output.shape} for {rows}, but y has {n_classes} "
            "classes. Give a column per class."
        )
    sums = output.sum(axis=1)
    bad = (np.abs(sums - 1) > _ROUNDING) | (output < 0).any(axis=1)
    if bad.any():
        row = int(bad.argmax())
        shown = ", ".join(f"{value:.3g}" for value in output[row])
        raise FaultError(
            f"{label} gives [{shown}] at row {row} of {rows}. Probabilities lie in "
            "[0, 1] and sum to 1."
        )


def check_untouched(
    label: str,
    before: NDArray[Any],
    after: NDArray[Any],
    untouched: NDArray[np.bool_],
    what: str,
) -> None:
    """Check that rows without a fault have the same output as without faulty rows."""
    before, after = before[untouched], after[untouched]
    if before.dtype.kind == "f":
        largest = np.abs(before).max(initial=0.0)
        is_equal = np.isclose(before, after, rtol=_ROUNDING, atol=_ROUNDING * largest)
    else:
        is_equal = before == after
    changed = ~is_equal.reshape(len(is_equal), -1).all(axis=1)
    if changed.any():
        row = int(np.flatnonzero(untouched)[changed.argmax()])
        raise FaultError(
            f"{label} returns another output for {int(changed.sum())} rows without a "
            f"fault, first row {row}, because of {what}. The output for a row must not "
            "depend on other rows."
        )


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
            f"the gain over the constant: {least:.3g}."
        )


def _n_varying(model: Any, X: Any) -> int:
    output = as_dense(model.transform(X))
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
            "input, or keep healthy rows distinct."
        )
