"""Examination of an estimator that meets a fault in ``fit`` or at predict time.

The contract is that the estimator refuses the fault by name or stays finite.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone, is_regressor
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from sknan._utils.outside import is_of_signal, unless
from sknan.testing._cases import Case, Table, healthy_table
from sknan.testing._learned_arrays import learned_arrays
from sknan.testing._output_checks import (
    as_dense,
    check_columns,
    check_output,
    check_score,
    check_untouched,
    in_words,
)
from sknan.testing._refusals import FaultError, advice, judge

FINITE, REFUSED = "finite", "refused"

_METHODS = ("predict", "predict_proba", "decision_function", "transform")


def weight_parameter(estimator: Any) -> str | None:
    """Return the name of the sample weights in ``fit``, or None if it has none."""
    if isinstance(estimator, Pipeline):
        step, last = estimator.steps[-1]
        name = None if last == "passthrough" else weight_parameter(last)
        return name and f"{step}__{name}"
    return "sample_weight" if has_fit_parameter(estimator, "sample_weight") else None


def examine(name: str, estimator: Any, case: Case) -> str:
    """Check that an estimator refuses the fault of a case by name or stays finite.

    Returns
    -------
    str
        ``"finite"`` or ``"refused"``.

    Raises
    ------
    FaultError
        If the estimator breaks the contract.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        if case.X_faulty is None:
            return _examine_fit(name, estimator, case)
        return _examine_predict(name, estimator, case)


def _examine_fit(name: str, estimator: Any, case: Case) -> str:
    """Fit on data with a fault, then check fitted attributes, outputs and score."""
    table = case.table
    model = clone(estimator).set_params(**case.params)
    try:
        _fit(model, table, case.sample_weight)
    except unless(is_of_signal, Exception) as error:
        judge(error, f"{name}.fit, given {case.what},", case.words)
        return REFUSED
    _check_state(name, model, estimator, case)
    outcomes = []
    for X, rows in ((table.X_new, "healthy rows"), (table.X, "the training rows")):
        for method in _methods(model):
            label = f"{name}.{method}, fitted on {case.what},"
            output = _call(model, method, X, f"{label} and given {rows},", case.words)
            outcomes.append(REFUSED if output is None else FINITE)
            if output is not None:
                check_output(label, method, model, X, output, rows, case)
    if outcomes and FINITE not in outcomes:
        return REFUSED
    if case.keeps_score:

        def healthy() -> tuple[Any, Table]:
            table = healthy_table(estimator)
            return _fit_healthy(name, estimator, table), table

        check_score(name, model, case, healthy)
        check_columns(name, model, case, healthy)
    return FINITE


def _examine_predict(name: str, estimator: Any, case: Case) -> str:
    """Fit on healthy rows, then predict for new rows with a fault."""
    X_new, X_faulty = case.table.X_new, case.X_faulty
    untouched = (np.asarray(X_new[: len(X_faulty)]) == X_faulty).all(axis=1)
    outcomes = []
    model = _fit_healthy(name, estimator, case.table)
    for method in _methods(model):
        label = f"{name}.{method}, fitted on healthy data,"
        before = _call(model, method, X_new, f"{label} and given whole rows,", ())
        given = f"{label} and given {case.what},"
        after = _call(model, method, X_faulty, given, case.words)
        outcomes.append(REFUSED if after is None else FINITE)
        if before is not None and after is not None:
            check_output(label, method, model, X_faulty, after, case.what, case)
            check_untouched(label, before[: len(after)], after, untouched, case.what)
    return FINITE if FINITE in outcomes or not outcomes else REFUSED


def _methods(model: Any) -> list[str]:
    # The predict_proba of skorch's regressor does not return probabilities.
    methods = ("predict", "transform") if is_regressor(model) else _METHODS
    return [method for method in methods if hasattr(model, method)]


def _call(
    model: Any, method: str, X: Any, label: str, words: tuple[str, ...]
) -> NDArray[Any] | None:
    """Return the output of a method, or None if it refuses the fault by name."""
    try:
        output = getattr(model, method)(X)
    except unless(is_of_signal, Exception) as error:
        judge(error, label, words)
        return None
    return as_dense(output)


def _fit(model: Any, table: Table, sample_weight: Any = None) -> Any:
    seeds = [p for p in model.get_params() if p.split("__")[-1] == "random_state"]
    model.set_params(**dict.fromkeys(seeds, 0))
    if sample_weight is None:
        return model.fit(table.X, table.y)
    weights = {str(weight_parameter(model)): sample_weight}
    return model.fit(table.X, table.y, **weights)


def _fit_healthy(name: str, estimator: Any, table: Table) -> Any:
    model = clone(estimator)
    try:
        _fit(model, table)
    except unless(is_of_signal, Exception) as error:
        judge(error, f"{name}.fit, given healthy data,", ())
    return model


def _nonfinite_state(model: Any, case: Case) -> dict[str, str]:
    arrays = learned_arrays(model, has_empty_column=case.has_empty_column)
    return {
        path: in_words(values, bad)
        for path, values in arrays
        if (bad := ~np.isfinite(values)).any()
    }


def _check_state(name: str, model: Any, estimator: Any, case: Case) -> None:
    found = _nonfinite_state(model, case)
    if not found:
        return
    # A value that is infinite on healthy data too, such as the edge of a bin, is
    # infinite by design.
    healthy = _fit_healthy(name, estimator, healthy_table(estimator))
    by_design = _nonfinite_state(healthy, case)
    for path, values in found.items():
        if path not in by_design:
            raise FaultError(
                f"{name}, fitted on {case.what}, contains {values} in {path}. "
                f"{advice(case.words)}",
                "silent NaN",
            )
