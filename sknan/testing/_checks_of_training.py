"""Checks with a fault in targets, learning rates or sample weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
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
from sknan.testing._registry import add_check, fault_check

_RATES = ("lr", "learning_rate", "learning_rate_init")


def _learning_rates(estimator: Any) -> list[str]:
    """Return the names of the parameters that are learning rates."""
    return [
        name
        for name, value in estimator.get_params().items()
        if name.split("__")[-1] in _RATES and is_number(value)
    ]


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


def _with_target(label: str, words: tuple[str, ...], estimator: Any) -> Case:
    table = healthy_table(estimator)
    y = table.y.copy()
    y[[5, 40]] = float(label)
    return Case(f"y with {label} at rows 5 and 40", words, replace(table, y=y))


for _label, _words in (("NaN", MISSING), ("inf", INFINITE)):
    _case = partial(_with_target, _label, _words)
    add_check(f"check_nonfinite_{_label.lower()}_targets", _case, is_regressor)


def _with_targets_times(factor: float, estimator: Any) -> Case:
    table = healthy_table(estimator)
    table = replace(table, y=table.y * factor, y_new=table.y_new * factor)
    words = TOO_LARGE if factor > 1 else ("small", "underflow", *CONSTANT)
    return Case(f"y times {factor:g}", words, table, keeps_score=True)


for _name, _factor in (
    ("targets_of_1e30", 1e30),
    ("targets_of_1e300", 1e300),
    ("tiny_targets", 1e-300),
):
    _case = partial(_with_targets_times, _factor)
    add_check(f"check_extreme_{_name}", _case, is_regressor)


@fault_check(is_regressor)
def check_extreme_constant_targets(estimator: Any) -> Case:
    table = healthy_table(estimator)
    return Case("y of 7 only", CONSTANT, replace(table, y=np.full_like(table.y, 7.0)))


# -- learning rates and weights ------------------------------------------------------


def _with_rate(rate: float, estimator: Any) -> Case:
    params = dict.fromkeys(_learning_rates(estimator), rate)
    listed = ", ".join(f"{param}={rate:g}" for param in params)
    return Case(
        f"healthy data with {listed}",
        RATE,
        healthy_table(estimator),
        params=params,
        keeps_score=True,
    )


for _label in ("1e4", "1e30"):
    _case = partial(_with_rate, float(_label))
    add_check(f"check_extreme_learning_rate_of_{_label}", _case, _learning_rates)


def _with_weights(label: str, values: tuple[float, ...], estimator: Any) -> Case:
    """Return a case whose last value is the weight of all rows but the first."""
    table = healthy_table(estimator)
    weights = np.full(len(table.X), values[-1])
    weights[: len(values)] = values
    what = f"healthy data with {label}"
    words = WEIGHT if np.isfinite(weights).all() else (*WEIGHT, *INFINITE, *MISSING)
    return Case(what, words, table, sample_weight=weights)


_WEIGHTS: dict[str, tuple[str, tuple[float, ...]]] = {
    "nonfinite_nan_weight": ("a sample weight of NaN", (np.nan, 1.0)),
    "nonfinite_inf_weight": ("a sample weight of inf", (np.inf, 1.0)),
    "extreme_huge_weights": ("sample weights of 1e307", (1e307,)),
    "extreme_tiny_weights": ("sample weights of 1e-307", (1e-307,)),
    "extreme_unequal_weights": (
        "sample weights from 1e-300 to 1e300",
        (1e300, 1e-300, 1.0),
    ),
    "extreme_zero_weights": ("sample weights of 0 only", (0.0,)),
}
for _name, _weights in _WEIGHTS.items():
    add_check(f"check_{_name}", partial(_with_weights, *_weights), weight_parameter)
