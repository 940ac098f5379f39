"""Fault injection for any scikit-learn estimator."""

from sknan.testing._check_finite_estimator import (
    check_finite_estimator,
    finite_estimator_checks,
    parametrize_with_finite_checks,
)

__all__ = [
    "check_finite_estimator",
    "finite_estimator_checks",
    "parametrize_with_finite_checks",
]
