"""Registry of the fault checks, which the decorator :func:`fault_check` fills."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sknan.testing._cases import Case
from sknan.testing._examine import examine

# Function of the name of an estimator and the estimator.
Check = Callable[[str, Any], str]

# Each check with the condition under which an estimator can meet its fault.
ALL_CHECKS: dict[Check, Callable[[Any], bool]] = {}


def _always(estimator: Any) -> bool:
    return True


def fault_check(
    applies_to: Callable[[Any], bool] = _always,
) -> Callable[[Callable[[Any], Case]], Check]:
    """Make a fault check of a function that returns the case, and register it.

    Parameters
    ----------
    applies_to : callable, default=_always
        Called with an estimator, it returns whether the check applies to it.

    Returns
    -------
    callable
        Decorator of a function that returns the case for an estimator. The check has
        the name of the function. It is called with the name of the estimator and the
        estimator, and returns ``"finite"`` or ``"refused"``.
    """

    def register(case_of: Callable[[Any], Case]) -> Check:
        @functools.wraps(case_of)
        def check(name: str, estimator: Any) -> str:
            return examine(name, estimator, case_of(estimator))

        ALL_CHECKS[check] = applies_to
        return check

    return register


def applicable_checks(estimator: Any) -> list[Check]:
    """Return the checks whose fault this estimator can meet."""
    return [check for check, applies_to in ALL_CHECKS.items() if applies_to(estimator)]
