"""Which check is for which kind of estimator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sklearn.base import is_classifier, is_regressor
from sklearn.utils import get_tags

from sknan.testing._checks_of_tables import (
    check_extreme_constant_column,
    check_extreme_dataframe_input,
    check_extreme_duplicated_columns,
    check_extreme_duplicated_rows,
    check_extreme_float32_input,
    check_extreme_float32_overflow_at_fit,
    check_extreme_float32_overflow_at_predict,
    check_extreme_float32_subnormal_at_fit,
    check_extreme_float64_input,
    check_extreme_float64_subnormal_at_fit,
    check_extreme_largest_float32_at_fit,
    check_extreme_largest_float32_at_predict,
    check_extreme_largest_float64_at_fit,
    check_extreme_largest_float64_at_predict,
    check_extreme_scales,
    check_extreme_single_column,
    check_extreme_single_row_at_fit,
    check_extreme_single_row_at_predict,
    check_extreme_subnormal_column,
    check_extreme_zero_table,
    check_nonfinite_inf_cells_at_fit,
    check_nonfinite_inf_cells_at_predict,
    check_nonfinite_missing_column,
    check_nonfinite_nan_cells_at_fit,
    check_nonfinite_nan_cells_at_predict,
    check_nonfinite_nan_in_dataframe,
    check_nonfinite_negative_inf_cells_at_fit,
    check_nonfinite_negative_inf_cells_at_predict,
)
from sknan.testing._checks_of_training import (
    check_extreme_constant_targets,
    check_extreme_huge_weights,
    check_extreme_learning_rate_of_1e4,
    check_extreme_learning_rate_of_1e30,
    check_extreme_one_class,
    check_extreme_one_row_per_class,
    check_extreme_targets_of_1e30,
    check_extreme_targets_of_1e300,
    check_extreme_tiny_targets,
    check_extreme_tiny_weights,
    check_extreme_unequal_weights,
    check_extreme_zero_weights,
    check_nonfinite_inf_targets,
    check_nonfinite_inf_weight,
    check_nonfinite_nan_targets,
    check_nonfinite_nan_weight,
    rates_of,
)
from sknan.testing._examine import weight_parameter

__all__ = ["ALL_CHECKS", "Check", "applicable_checks"]

Check = Callable[[str, Any], str]

_FOR_ALL: tuple[Check, ...] = (
    check_extreme_float64_input,
    check_extreme_float32_input,
    check_extreme_dataframe_input,
    check_nonfinite_nan_cells_at_fit,
    check_nonfinite_nan_cells_at_predict,
    check_nonfinite_nan_in_dataframe,
    check_nonfinite_missing_column,
    check_nonfinite_inf_cells_at_fit,
    check_nonfinite_inf_cells_at_predict,
    check_extreme_float32_overflow_at_fit,
    check_extreme_float32_overflow_at_predict,
    check_extreme_largest_float32_at_fit,
    check_extreme_largest_float32_at_predict,
    check_extreme_largest_float64_at_fit,
    check_extreme_largest_float64_at_predict,
    check_extreme_float32_subnormal_at_fit,
    check_extreme_float64_subnormal_at_fit,
    check_extreme_subnormal_column,
    check_extreme_constant_column,
    check_extreme_zero_table,
    check_extreme_duplicated_columns,
    check_extreme_duplicated_rows,
    check_extreme_scales,
    check_extreme_single_column,
    check_extreme_single_row_at_fit,
    check_extreme_single_row_at_predict,
)
_FOR_SIGNED: tuple[Check, ...] = (
    check_nonfinite_negative_inf_cells_at_fit,
    check_nonfinite_negative_inf_cells_at_predict,
)
_FOR_CLASSIFIERS: tuple[Check, ...] = (
    check_extreme_one_class,
    check_extreme_one_row_per_class,
)
_FOR_REGRESSORS: tuple[Check, ...] = (
    check_nonfinite_nan_targets,
    check_nonfinite_inf_targets,
    check_extreme_targets_of_1e30,
    check_extreme_targets_of_1e300,
    check_extreme_tiny_targets,
    check_extreme_constant_targets,
)
_FOR_RATES: tuple[Check, ...] = (
    check_extreme_learning_rate_of_1e4,
    check_extreme_learning_rate_of_1e30,
)
_FOR_WEIGHTS: tuple[Check, ...] = (
    check_nonfinite_nan_weight,
    check_nonfinite_inf_weight,
    check_extreme_huge_weights,
    check_extreme_tiny_weights,
    check_extreme_unequal_weights,
    check_extreme_zero_weights,
)

ALL_CHECKS = (
    _FOR_ALL
    + _FOR_SIGNED
    + _FOR_CLASSIFIERS
    + _FOR_REGRESSORS
    + _FOR_RATES
    + _FOR_WEIGHTS
)


def applicable_checks(estimator: Any) -> Iterator[Check]:
    """The checks whose fault this kind of estimator can meet."""
    yield from _FOR_ALL
    if not get_tags(estimator).input_tags.positive_only:
        yield from _FOR_SIGNED
    if is_classifier(estimator):
        yield from _FOR_CLASSIFIERS
    if is_regressor(estimator):
        yield from _FOR_REGRESSORS
    if rates_of(estimator):
        yield from _FOR_RATES
    if weight_parameter(estimator) is not None:
        yield from _FOR_WEIGHTS
