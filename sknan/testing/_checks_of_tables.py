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
from sknan.testing._examine import examine_fit, examine_predict
from sknan.testing._refusals import CONSTANT, FEW, INFINITE, MISSING, TOO_LARGE
from sknan.testing._registry import fault_check


def _accepts_negative(estimator: Any) -> bool:
    return not get_tags(estimator).input_tags.positive_only


# -- containers ----------------------------------------------------------------------


def _as_frame(X: Any) -> pd.DataFrame:
    return pd.DataFrame(X, columns=[f"x{j}" for j in range(X.shape[1])])


@fault_check()
def check_extreme_float64_input(name: str, estimator: Any) -> str:
    table = healthy_table(estimator)
    case = Case("a healthy table of float64", (), table, keeps_score=True)
    return examine_fit(name, estimator, case)


@fault_check()
def check_extreme_float32_input(name: str, estimator: Any) -> str:
    table = healthy_table(estimator).map(lambda X: X.astype(np.float32))
    case = Case("a healthy table of float32", (), table, keeps_score=True)
    return examine_fit(name, estimator, case)


@fault_check()
def check_extreme_dataframe_input(name: str, estimator: Any) -> str:
    table = healthy_table(estimator).map(_as_frame)
    case = Case("a healthy DataFrame", (), table, keeps_score=True)
    return examine_fit(name, estimator, case)


# -- cells ---------------------------------------------------------------------------


def _at_fit(name: str, estimator: Any, words: Any, label: str, *values: float) -> str:
    table = healthy_table(estimator)
    X, where = with_cells(table.X, values)
    table = replace(table, X=X)
    case = Case(f"X with {label} {where}", words, table, keeps_score=True)
    return examine_fit(name, estimator, case)


def _at_predict(
    name: str, estimator: Any, words: Any, label: str, *values: float
) -> str:
    table = healthy_table(estimator)
    X_faulty, where = with_cells(table.X_new, values)
    case = Case(f"X with {label} {where}", words, table, X_faulty)
    return examine_predict(name, estimator, case)


def _with_tiny_cells(name: str, estimator: Any, value: float) -> str:
    table = healthy_table(estimator)
    # In the cells nearest to zero, the tiny value hardly changes the data.
    X, where = with_cells(table.X, [value], nearest_to_zero(table.X))
    table = replace(table, X=X)
    case = Case(f"X with {value:g} {where}", (), table, keeps_score=True)
    return examine_fit(name, estimator, case)


@fault_check()
def check_nonfinite_nan_cells_at_fit(name: str, estimator: Any) -> str:
    return _at_fit(name, estimator, MISSING, "NaN", np.nan)


@fault_check()
def check_nonfinite_nan_cells_at_predict(name: str, estimator: Any) -> str:
    return _at_predict(name, estimator, MISSING, "NaN", np.nan)


@fault_check()
def check_nonfinite_nan_in_dataframe(name: str, estimator: Any) -> str:
    table = healthy_table(estimator)
    X, where = with_cells(table.X, [np.nan])
    table = replace(table, X=X).map(_as_frame)
    what = f"a DataFrame with NaN {where}"
    return examine_fit(name, estimator, Case(what, MISSING, table, keeps_score=True))


@fault_check()
def check_nonfinite_inf_cells_at_fit(name: str, estimator: Any) -> str:
    return _at_fit(name, estimator, INFINITE, "inf", np.inf)


@fault_check()
def check_nonfinite_inf_cells_at_predict(name: str, estimator: Any) -> str:
    return _at_predict(name, estimator, INFINITE, "inf", np.inf)


@fault_check(_accepts_negative)
def check_nonfinite_negative_inf_cells_at_fit(name: str, estimator: Any) -> str:
    return _at_fit(name, estimator, INFINITE, "-inf", -np.inf)


@fault_check(_accepts_negative)
def check_nonfinite_negative_inf_cells_at_predict(name: str, estimator: Any) -> str:
    return _at_predict(name, estimator, INFINITE, "-inf", -np.inf)


@fault_check()
def check_extreme_float32_overflow_at_fit(name: str, estimator: Any) -> str:
    return _at_fit(name, estimator, TOO_LARGE, "1e200", 1e200)


@fault_check()
def check_extreme_float32_overflow_at_predict(name: str, estimator: Any) -> str:
    return _at_predict(name, estimator, TOO_LARGE, "1e200", 1e200)


@fault_check()
def check_extreme_largest_float32_at_fit(name: str, estimator: Any) -> str:
    signed = _signed(estimator, FLOAT32_MAX)
    return _at_fit(name, estimator, TOO_LARGE, "the largest float32", *signed)


@fault_check()
def check_extreme_largest_float32_at_predict(name: str, estimator: Any) -> str:
    signed = _signed(estimator, FLOAT32_MAX)
    return _at_predict(name, estimator, TOO_LARGE, "the largest float32", *signed)


@fault_check()
def check_extreme_largest_float64_at_fit(name: str, estimator: Any) -> str:
    signed = _signed(estimator, FLOAT64_MAX)
    return _at_fit(name, estimator, TOO_LARGE, "the largest float64", *signed)


@fault_check()
def check_extreme_largest_float64_at_predict(name: str, estimator: Any) -> str:
    signed = _signed(estimator, FLOAT64_MAX)
    return _at_predict(name, estimator, TOO_LARGE, "the largest float64", *signed)


@fault_check()
def check_extreme_float32_subnormal_at_fit(name: str, estimator: Any) -> str:
    return _with_tiny_cells(name, estimator, 1e-40)


@fault_check()
def check_extreme_float64_subnormal_at_fit(name: str, estimator: Any) -> str:
    return _with_tiny_cells(name, estimator, 1e-310)


def _signed(estimator: Any, value: float) -> tuple[float, ...]:
    """Return the value with both signs, so that a difference overflows, if allowed."""
    return (value, -value) if _accepts_negative(estimator) else (value,)


# -- columns and rows ----------------------------------------------------------------


def _with_column(estimator: Any, values: Callable[[Any], Any]) -> Table:
    return healthy_table(estimator).map(lambda X: np.column_stack([X, values(X)]))


@fault_check()
def check_nonfinite_missing_column(name: str, estimator: Any) -> str:
    table = healthy_table(estimator)
    # The column has values in the new rows.
    X = np.column_stack([table.X, np.full(len(table.X), np.nan)])
    X_new = np.column_stack([table.X_new, np.ones(len(table.X_new))])
    case = Case(
        "X with NaN in all of column 4",
        (*MISSING, "observed"),
        replace(table, X=X, X_new=X_new),
        keeps_score=True,
        has_empty_column=True,
    )
    return examine_fit(name, estimator, case)


@fault_check()
def check_extreme_constant_column(name: str, estimator: Any) -> str:
    table = _with_column(estimator, lambda X: np.full(len(X), 7.0))
    what = "X with 7 in all of column 4"
    return examine_fit(name, estimator, Case(what, CONSTANT, table, keeps_score=True))


@fault_check()
def check_extreme_subnormal_column(name: str, estimator: Any) -> str:
    table = _with_column(estimator, lambda X: 1e-310 * (np.arange(len(X)) % 7))
    what = "X with numbers up to 6e-310 in column 4"
    return examine_fit(name, estimator, Case(what, (), table, keeps_score=True))


@fault_check()
def check_extreme_duplicated_columns(name: str, estimator: Any) -> str:
    table = healthy_table(estimator).map(lambda X: np.hstack([X, X]))
    what = "X with each column twice"
    return examine_fit(name, estimator, Case(what, (), table, keeps_score=True))


@fault_check()
def check_extreme_duplicated_rows(name: str, estimator: Any) -> str:
    table = healthy_table(estimator)
    X, y = np.repeat(table.X, 3, axis=0), np.repeat(table.y, 3, axis=0)
    case = Case(
        "X with each row three times", (), replace(table, X=X, y=y), keeps_score=True
    )
    return examine_fit(name, estimator, case)


@fault_check()
def check_extreme_scales(name: str, estimator: Any) -> str:
    scales = np.array([1e-30, 1e-10, 1e10, 1e30])
    table = healthy_table(estimator).map(lambda X: X * scales)
    what = "X with columns on scales from 1e-30 to 1e30"
    return examine_fit(name, estimator, Case(what, (*TOO_LARGE, "scale"), table))


@fault_check()
def check_extreme_zero_table(name: str, estimator: Any) -> str:
    table = healthy_table(estimator)
    case = Case("X of zeros only", CONSTANT, replace(table, X=np.zeros_like(table.X)))
    return examine_fit(name, estimator, case)


@fault_check()
def check_extreme_single_column(name: str, estimator: Any) -> str:
    table = healthy_table(estimator).map(lambda X: X[:, :1])
    return examine_fit(name, estimator, Case("X with a single column", (), table))


@fault_check()
def check_extreme_single_row_at_fit(name: str, estimator: Any) -> str:
    table = healthy_table(estimator)
    table = replace(table, X=table.X[:1], y=table.y[:1])
    return examine_fit(name, estimator, Case("X with a single row", FEW, table))


@fault_check()
def check_extreme_single_row_at_predict(name: str, estimator: Any) -> str:
    table = healthy_table(estimator)
    case = Case("X with a single row", (), table, table.X_new[:1])
    return examine_predict(name, estimator, case)
