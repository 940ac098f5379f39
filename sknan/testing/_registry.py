"""Registry of the fault checks, which the decorator :func:`fault_check` fills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Check = Callable[[str, Any], str]

# Each check with the condition under which an estimator can meet its fault.
ALL_CHECKS: dict[Check, Callable[[Any], bool]] = {}


def _always(estimator: Any) -> bool:
    return True


def fault_check(
    applies_to: Callable[[Any], bool] = _always,
) -> Callable[[Check], Check]:
    """Register the decorated function as a fault check.

    Parameters
    ----------
    applies_to : callable, default=_always
        Called with an estimator, it returns whether the check applies to it.

    Returns
    -------
    callable
        Decorator that returns the check unchanged. A check is called with the name of
        the estimator and the estimator, and returns ``"finite"`` or ``"refused"``.
    """

    def register(check: Check) -> Check:
        ALL_CHECKS[check] = applies_to
        return check

    return register


def applicable_checks(estimator: Any) -> list[Check]:
    """Return the checks whose fault this estimator can meet."""
    return [check for check, applies_to in ALL_CHECKS.items() if applies_to(estimator)]
