"""Registry of the fault checks, which the decorator :func:`fault_check` fills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sknan.testing._cases import Case
from sknan.testing._examine import examine

# Function of the name of an estimator and the estimator.
Check = Callable[[str, Any], str]

# Each check with the condition under which an estimator can meet its fault.
ALL_CHECKS: dict[Check, Callable[[Any], object]] = {}


def _always(estimator: Any) -> bool:
    return True


def add_check(
    name: str,
    case_of: Callable[[Any], Case],
    applies_to: Callable[[Any], object] = _always,
) -> Check:
    """Register a fault check.

    Parameters
    ----------
    name : str
        Name of the check.
    case_of : callable
        Function that returns the case for an estimator.
    applies_to : callable, default=_always
        Called with an estimator, it returns a true value if the check applies to it.

    Returns
    -------
    callable
        Function of the name of an estimator and the estimator that returns
        ``"finite"`` or ``"refused"``.
    """

    def check(name: str, estimator: Any) -> str:
        return examine(name, estimator, case_of(estimator))

    check.__name__ = name
    ALL_CHECKS[check] = applies_to
    return check


def fault_check(
    applies_to: Callable[[Any], object] = _always,
) -> Callable[[Callable[[Any], Case]], Check]:
    """Register a function as :func:`add_check` does, under its own name."""
    return lambda case_of: add_check(case_of.__name__, case_of, applies_to)


def applicable_checks(estimator: Any) -> list[Check]:
    """Return the checks whose fault this estimator can meet."""
    return [check for check, applies_to in ALL_CHECKS.items() if applies_to(estimator)]
