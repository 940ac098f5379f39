"""What an output must be: finite, one row per row, and what its method promises."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier, is_regressor
from sklearn.utils import get_tags

from sknan.testing._cases import Case
from sknan.testing._refusals import FaultError, advice

__all__ = ["check_output", "check_untouched", "in_words"]

# What two outputs of float32 arithmetic in batches of different rows may differ by.
_ROUNDING = 1e-4


def in_words(values: NDArray[Any], bad: NDArray[np.bool_]) -> str:
    """Such as ``"2 NaN and 1 inf values of 8"``."""
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
    """One row per row, finite, and what the method promises."""
    if len(output) != len(X):
        raise FaultError(
            f"{label} gives {len(output)} rows for {len(X)} rows: {rows}.", "wrong"
        )
    if output.dtype.kind == "O":
        with contextlib.suppress(TypeError, ValueError):
            output = output.astype(np.float64)
    if output.dtype.kind == "f":
        bad = ~np.isfinite(output)
        if method == "transform" and get_tags(model).input_tags.allow_nan:
            bad &= ~_may_pass(np.asarray(X, dtype=np.float64), output)
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            answer = ""
            if method == "predict_proba" and hasattr(model, "predict"):
                answer = f", which predict calls {np.asarray(model.predict(X))[row]}"
            raise FaultError(
                f"{label} gives {in_words(output, bad)} for {rows}, first at row {row} "
                f"of the output{answer}. {advice(case.words)}",
                "silent NaN",
            )
    if method == "predict_proba":
        n_classes = len(np.unique(case.table.y)) if is_classifier(model) else 1
        _check_probabilities(label, output, n_classes, rows)
    if method == "predict" and is_classifier(model):
        unknown = ~np.isin(output, case.table.y)
        if unknown.any():
            raise FaultError(
                f"{label} gives {output[unknown][0]} for {rows}, which is no class of "
                "y. Answer with labels of y.",
                "wrong",
            )
    if method == "predict" and is_regressor(model) and output.dtype.kind != "f":
        raise FaultError(
            f"{label} gives dtype {output.dtype} for {rows}. Answer with floats.",
            "wrong",
        )


def _may_pass(X: NDArray[Any], output: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a transformer that takes NaN may pass on what is not finite.

    Cell by cell if it gives one column per column, otherwise in the whole row.
    """
    holes: NDArray[np.bool_] = ~np.isfinite(X)
    if X.shape == output.shape:
        return holes
    per_row = holes.any(axis=1).reshape(-1, *[1] * (output.ndim - 1))
    return np.broadcast_to(per_row, output.shape)


def _check_probabilities(
    label: str, output: NDArray[Any], n_classes: int, rows: str
) -> None:
    if output.ndim != 2 or output.shape[1] < n_classes:
        raise FaultError(
            f"{label} gives shape {output.shape} for {rows}, but y has {n_classes} "
            "classes. Give a column per class.",
            "wrong",
        )
    sums = output.sum(axis=1)
    bad = (np.abs(sums - 1) > _ROUNDING) | (output < 0).any(axis=1)
    if bad.any():
        row = int(bad.argmax())
        shown = ", ".join(f"{value:.3g}" for value in output[row])
        raise FaultError(
            f"{label} gives [{shown}] at row {row} of {rows}. Probabilities lie in "
            "[0, 1] and sum to 1.",
            "wrong",
        )


def check_untouched(
    label: str,
    before: NDArray[Any],
    after: NDArray[Any],
    untouched: NDArray[np.bool_],
    what: str,
) -> None:
    """Hold the rows without a fault against what they got without their neighbours."""
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
            f"{label} answers differently at {int(changed.sum())} rows that are whole, "
            f"first row {row}, because of {what}. A row's answer must not depend on "
            "its neighbours.",
            "wrong",
        )
