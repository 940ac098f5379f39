"""Checks with a fault in the table: in cells, columns, rows or the container."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.utils import get_tags

from sknan._utils.validation import FLOAT32_MAX, FLOAT64_MAX
from sknan.testing._cases import Case, Table, healthy_table, nearest_to_zero, with_cells
from sknan.testing._refusals import CONSTANT, FEW, INFINITE, MISSING, TOO_LARGE
from sknan.testing._registry import add_check, fault_check

# -- containers ----------------------------------------------------------------------


def _as_frame(X: Any) -> pd.DataFrame:
    return pd.DataFrame(X, columns=[f"x{j}" for j in range(X.shape[1])])


@fault_check()
def check_extreme_float64_input(estimator: Any) -> Case:
    what = "a healthy table of float64"
    return Case(what, (), healthy_table(estimator), keeps_score=True)


@fault_check()
def check_extreme_float32_input(estimator: Any) -> Case:
    table = healthy_table(estimator).map(lambda X: X.astype(np.float32))
    return Case("a healthy table of float32", (), table, keeps_score=True)


@fault_check()
def check_extreme_dataframe_input(estimator: Any) -> Case:
    table = healthy_table(estimator).map(_as_frame)
    return Case("a healthy DataFrame", (), table, keeps_score=True)


# -- cells ---------------------------------------------------------------------------


class _Fault(NamedTuple):
    words: tuple[str, ...]
    label: str
    values: tuple[float, ...]


_FAULTS = {
    "nonfinite_nan_cells": _Fault(MISSING, "NaN", (np.nan,)),
    "nonfinite_inf_cells": _Fault(INFINITE, "inf", (np.inf,)),
    "nonfinite_negative_inf_cells": _Fault(INFINITE, "-inf", (-np.inf,)),
    "extreme_float32_overflow": _Fault(TOO_LARGE, "1e200", (1e200,)),
    # With both signs, so that a difference overflows.
    "extreme_largest_float32": _Fault(
        TOO_LARGE, "the largest float32", (FLOAT32_MAX, -FLOAT32_MAX)
    ),
    "extreme_largest_float64": _Fault(
        TOO_LARGE, "the largest float64", (FLOAT64_MAX, -FLOAT64_MAX)
    ),
}


def _accepted_values(fault: _Fault, estimator: Any) -> list[float]:
    is_positive = get_tags(estimator).input_tags.positive_only
    return [v for v in fault.values if not (is_positive and v < 0)]


def _at_fit(fault: _Fault, estimator: Any) -> Case:
    table = healthy_table(estimator)
    X, where = with_cells(table.X, _accepted_values(fault, estimator))
    what = f"X with {fault.label} {where}"
    return Case(what, fault.words, replace(table, X=X), keeps_score=True)


def _at_predict(fault: _Fault, estimator: Any) -> Case:
    table = healthy_table(estimator)
    X_faulty, where = with_cells(table.X_new, _accepted_values(fault, estimator))
    return Case(f"X with {fault.label} {where}", fault.words, table, X_faulty)


for _name, _fault in _FAULTS.items():
    for _when, _case_of in (("fit", _at_fit), ("predict", _at_predict)):
        add_check(
            f"check_{_name}_at_{_when}",
            partial(_case_of, _fault),
            partial(_accepted_values, _fault),
        )


@fault_check()
def check_nonfinite_nan_in_dataframe(estimator: Any) -> Case:
    table = healthy_table(estimator)
    X, where = with_cells(table.X, [np.nan])
    table = replace(table, X=X).map(_as_frame)
    return Case(f"a DataFrame with NaN {where}", MISSING, table, keeps_score=True)


def _with_tiny_cells(value: float, estimator: Any) -> Case:
    table = healthy_table(estimator)
    # In the cells nearest to zero, the tiny value hardly changes the data.
    X, where = with_cells(table.X, [value], nearest_to_zero(table.X))
    return Case(f"X with {value:g} {where}", (), replace(table, X=X), keeps_score=True)


for _name, _value in (("float32", 1e-40), ("float64", 1e-310)):
    _case = partial(_with_tiny_cells, _value)
    add_check(f"check_extreme_{_name}_subnormal_at_fit", _case)


# -- columns and rows ----------------------------------------------------------------


def _with_column(estimator: Any, values: Callable[[Any], Any]) -> Table:
    return healthy_table(estimator).map(lambda X: np.column_stack([X, values(X)]))


@fault_check()
def check_nonfinite_missing_column(estimator: Any) -> Case:
    table = healthy_table(estimator)
    # The column has values in the new rows.
    X = np.column_stack([table.X, np.full(len(table.X), np.nan)])
    X_new = np.column_stack([table.X_new, np.ones(len(table.X_new))])
    return Case(
        "X with NaN in all of column 4",
        (*MISSING, "observed"),
        replace(table, X=X, X_new=X_new),
        keeps_score=True,
        has_empty_column=True,
    )


@fault_check()
def check_extreme_constant_column(estimator: Any) -> Case:
    table = _with_column(estimator, lambda X: np.full(len(X), 7.0))
    return Case("X with 7 in all of column 4", CONSTANT, table, keeps_score=True)


@fault_check()
def check_extreme_subnormal_column(estimator: Any) -> Case:
    table = _with_column(estimator, lambda X: 1e-310 * (np.arange(len(X)) % 7))
    return Case("X with numbers up to 6e-310 in column 4", (), table, keeps_score=True)


@fault_check()
def check_extreme_duplicated_columns(estimator: Any) -> Case:
    table = healthy_table(estimator).map(lambda X: np.hstack([X, X]))
    return Case("X with each column twice", (), table, keeps_score=True)


@fault_check()
def check_extreme_duplicated_rows(estimator: Any) -> Case:
    table = healthy_table(estimator)
    X, y = np.repeat(table.X, 3, axis=0), np.repeat(table.y, 3, axis=0)
    return Case(
        "X with each row three times", (), replace(table, X=X, y=y), keeps_score=True
    )


@fault_check()
def check_extreme_scales(estimator: Any) -> Case:
    scales = np.array([1e-30, 1e-10, 1e10, 1e30])
    table = healthy_table(estimator).map(lambda X: X * scales)
    what = "X with columns on scales from 1e-30 to 1e30"
    return Case(what, (*TOO_LARGE, "scale"), table)


@fault_check()
def check_extreme_zero_table(estimator: Any) -> Case:
    table = healthy_table(estimator)
    return Case("X of zeros only", CONSTANT, replace(table, X=np.zeros_like(table.X)))


@fault_check()
def check_extreme_single_column(estimator: Any) -> Case:
    table = healthy_table(estimator).map(lambda X: X[:, :1])
    return Case("X with a single column", (), table)


@fault_check()
def check_extreme_single_row_at_fit(estimator: Any) -> Case:
    table = healthy_table(estimator)
    table = replace(table, X=table.X[:1], y=table.y[:1])
    return Case("X with a single row", FEW, table)


@fault_check()
def check_extreme_single_row_at_predict(estimator: Any) -> Case:
    table = healthy_table(estimator)
    return Case("X with a single row", (), table, table.X_new[:1])
