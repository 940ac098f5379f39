"""Checks with a fault in the table: in cells, columns, rows or the container."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import get_tags

from sknan._utils.validation import FLOAT32_MAX, FLOAT64_MAX
from sknan.testing._cases import Case, Table, healthy_table, nearest_to_zero, with_cells
from sknan.testing._refusals import CONSTANT, FEW, INFINITE, MISSING, TOO_LARGE
from sknan.testing._registry import fault_check


def _accepts_negative(estimator: Any) -> bool:
    return not get_tags(estimator).input_tags.positive_only


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


def _at_fit(estimator: Any, words: Any, label: str, *values: float) -> Case:
    table = healthy_table(estimator)
    X, where = with_cells(table.X, values)
    return Case(f"X with {label} {where}", words, replace(table, X=X), keeps_score=True)


def _at_predict(estimator: Any, words: Any, label: str, *values: float) -> Case:
    table = healthy_table(estimator)
    X_faulty, where = with_cells(table.X_new, values)
    return Case(f"X with {label} {where}", words, table, X_faulty)


def _with_tiny_cells(estimator: Any, value: float) -> Case:
    table = healthy_table(estimator)
    # In the cells nearest to zero, the tiny value hardly changes the data.
    X, where = with_cells(table.X, [value], nearest_to_zero(table.X))
    return Case(f"X with {value:g} {where}", (), replace(table, X=X), keeps_score=True)


@fault_check()
def check_nonfinite_nan_cells_at_fit(estimator: Any) -> Case:
    return _at_fit(estimator, MISSING, "NaN", np.nan)


@fault_check()
def check_nonfinite_nan_cells_at_predict(estimator: Any) -> Case:
    return _at_predict(estimator, MISSING, "NaN", np.nan)


@fault_check()
def check_nonfinite_nan_in_dataframe(estimator: Any) -> Case:
    table = healthy_table(estimator)
    X, where = with_cells(table.X, [np.nan])
    table = replace(table, X=X).map(_as_frame)
    return Case(f"a DataFrame with NaN {where}", MISSING, table, keeps_score=True)


@fault_check()
def check_nonfinite_inf_cells_at_fit(estimator: Any) -> Case:
    return _at_fit(estimator, INFINITE, "inf", np.inf)


@fault_check()
def check_nonfinite_inf_cells_at_predict(estimator: Any) -> Case:
    return _at_predict(estimator, INFINITE, "inf", np.inf)


@fault_check(_accepts_negative)
def check_nonfinite_negative_inf_cells_at_fit(estimator: Any) -> Case:
    return _at_fit(estimator, INFINITE, "-inf", -np.inf)


@fault_check(_accepts_negative)
def check_nonfinite_negative_inf_cells_at_predict(estimator: Any) -> Case:
    return _at_predict(estimator, INFINITE, "-inf", -np.inf)


@fault_check()
def check_extreme_float32_overflow_at_fit(estimator: Any) -> Case:
    return _at_fit(estimator, TOO_LARGE, "1e200", 1e200)


@fault_check()
def check_extreme_float32_overflow_at_predict(estimator: Any) -> Case:
    return _at_predict(estimator, TOO_LARGE, "1e200", 1e200)


@fault_check()
def check_extreme_largest_float32_at_fit(estimator: Any) -> Case:
    signed = _signed(estimator, FLOAT32_MAX)
    return _at_fit(estimator, TOO_LARGE, "the largest float32", *signed)


@fault_check()
def check_extreme_largest_float32_at_predict(estimator: Any) -> Case:
    signed = _signed(estimator, FLOAT32_MAX)
    return _at_predict(estimator, TOO_LARGE, "the largest float32", *signed)


@fault_check()
def check_extreme_largest_float64_at_fit(estimator: Any) -> Case:
    signed = _signed(estimator, FLOAT64_MAX)
    return _at_fit(estimator, TOO_LARGE, "the largest float64", *signed)


@fault_check()
def check_extreme_largest_float64_at_predict(estimator: Any) -> Case:
    signed = _signed(estimator, FLOAT64_MAX)
    return _at_predict(estimator, TOO_LARGE, "the largest float64", *signed)


@fault_check()
def check_extreme_float32_subnormal_at_fit(estimator: Any) -> Case:
    return _with_tiny_cells(estimator, 1e-40)


@fault_check()
def check_extreme_float64_subnormal_at_fit(estimator: Any) -> Case:
    return _with_tiny_cells(estimator, 1e-310)


def _signed(estimator: Any, value: float) -> tuple[float, ...]:
    """Return the value with both signs, so that a difference overflows, if allowed."""
    return (value, -value) if _accepts_negative(estimator) else (value,)


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
