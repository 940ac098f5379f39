"""Checks with a fault in targets, learning rates or sample weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import is_classifier, is_regressor

from sknan._utils.validation import is_number
from sknan.testing._cases import Case, healthy_table
from sknan.testing._examine import weight_parameter
from sknan.testing._refusals import (
    CONSTANT,
    FEW,
    INFINITE,
    MISSING,
    RATE,
    TOO_LARGE,
    WEIGHT,
)
from sknan.testing._registry import fault_check

_RATES = ("lr", "learning_rate", "learning_rate_init")


def _learning_rates(estimator: Any) -> list[str]:
    """Return the names of the parameters that are learning rates."""
    return [
        name
        for name, value in estimator.get_params().items()
        if name.split("__")[-1] in _RATES and is_number(value)
    ]


def _has_learning_rate(estimator: Any) -> bool:
    return bool(_learning_rates(estimator))


def _accepts_weights(estimator: Any) -> bool:
    return weight_parameter(estimator) is not None


# -- targets -------------------------------------------------------------------------


@fault_check(is_classifier)
def check_extreme_one_class(estimator: Any) -> Case:
    table = healthy_table(estimator)
    return Case("y of one class", FEW, replace(table, y=np.ones_like(table.y)))


@fault_check(is_classifier)
def check_extreme_one_row_per_class(estimator: Any) -> Case:
    table = healthy_table(estimator)
    table = replace(table, X=table.X[:2], y=table.y[:2])
    return Case("two classes of one row each", FEW, table)


def _with_target(
    estimator: Any, what: str, words: tuple[str, ...], value: float
) -> Case:
    table = healthy_table(estimator)
    y = table.y.copy()
    y[[5, 40]] = value
    return Case(what, words, replace(table, y=y))


def _with_targets_times(estimator: Any, factor: float) -> Case:
    table = healthy_table(estimator)
    table = replace(table, y=table.y * factor, y_new=table.y_new * factor)
    words = TOO_LARGE if factor > 1 else ("small", "underflow", *CONSTANT)
    return Case(f"y times {factor:g}", words, table, keeps_score=True)


@fault_check(is_regressor)
def check_nonfinite_nan_targets(estimator: Any) -> Case:
    return _with_target(estimator, "y with NaN at rows 5 and 40", MISSING, np.nan)


@fault_check(is_regressor)
def check_nonfinite_inf_targets(estimator: Any) -> Case:
    what = "y with inf at rows 5 and 40"
    return _with_target(estimator, what, INFINITE, np.inf)


@fault_check(is_regressor)
def check_extreme_targets_of_1e30(estimator: Any) -> Case:
    return _with_targets_times(estimator, 1e30)


@fault_check(is_regressor)
def check_extreme_targets_of_1e300(estimator: Any) -> Case:
    return _with_targets_times(estimator, 1e300)


@fault_check(is_regressor)
def check_extreme_tiny_targets(estimator: Any) -> Case:
    return _with_targets_times(estimator, 1e-300)


@fault_check(is_regressor)
def check_extreme_constant_targets(estimator: Any) -> Case:
    table = healthy_table(estimator)
    return Case("y of 7 only", CONSTANT, replace(table, y=np.full_like(table.y, 7.0)))


# -- learning rates and weights ------------------------------------------------------


def _with_rate(estimator: Any, rate: float) -> Case:
    params = dict.fromkeys(_learning_rates(estimator), rate)
    listed = ", ".join(f"{param}={rate:g}" for param in params)
    return Case(
        f"healthy data with {listed}",
        RATE,
        healthy_table(estimator),
        params=params,
        keeps_score=True,
    )


@fault_check(_has_learning_rate)
def check_extreme_learning_rate_of_1e4(estimator: Any) -> Case:
    return _with_rate(estimator, 1e4)


@fault_check(_has_learning_rate)
def check_extreme_learning_rate_of_1e30(estimator: Any) -> Case:
    return _with_rate(estimator, 1e30)


def _with_weights(estimator: Any, label: str, common: float, *first: float) -> Case:
    table = healthy_table(estimator)
    weights = np.full(len(table.X), common)
    weights[: len(first)] = first
    what = f"healthy data with {label}"
    words = WEIGHT if np.isfinite(weights).all() else (*WEIGHT, *INFINITE, *MISSING)
    return Case(what, words, table, sample_weight=weights)


@fault_check(_accepts_weights)
def check_nonfinite_nan_weight(estimator: Any) -> Case:
    return _with_weights(estimator, "a sample weight of NaN", 1.0, np.nan)


@fault_check(_accepts_weights)
def check_nonfinite_inf_weight(estimator: Any) -> Case:
    return _with_weights(estimator, "a sample weight of inf", 1.0, np.inf)


@fault_check(_accepts_weights)
def check_extreme_huge_weights(estimator: Any) -> Case:
    return _with_weights(estimator, "sample weights of 1e307", 1e307)


@fault_check(_accepts_weights)
def check_extreme_tiny_weights(estimator: Any) -> Case:
    return _with_weights(estimator, "sample weights of 1e-307", 1e-307)


@fault_check(_accepts_weights)
def check_extreme_unequal_weights(estimator: Any) -> Case:
    label = "sample weights from 1e-300 to 1e300"
    return _with_weights(estimator, label, 1.0, 1e300, 1e-300)


@fault_check(_accepts_weights)
def check_extreme_zero_weights(estimator: Any) -> Case:
    return _with_weights(estimator, "sample weights of 0 only", 0.0)
