"""The errors and warnings that sknan raises.

::

    SknanError
    ├── NonFiniteDataError      (a ValueError)          X or y, before training
    └── NonFiniteTrainingError  (a FloatingPointError)  loss, gradient, weight, output
    DivergenceWarning           (a ConvergenceWarning)  training was rescued

Every message says what was found, where, and what to do.
"""

from __future__ import annotations

from typing import Any

from sklearn.exceptions import ConvergenceWarning

__all__ = [
    "DivergenceWarning",
    "NonFiniteDataError",
    "NonFiniteTrainingError",
    "SknanError",
]


class SknanError(Exception):
    """Base class of the errors that sknan defines."""


class NonFiniteDataError(SknanError, ValueError):
    """``X`` or ``y`` holds NaN, infinities or values that overflow float32.

    Raised before any training, so that no work is lost.
    """


class NonFiniteTrainingError(SknanError, FloatingPointError):
    """A loss, gradient, weight or output went non-finite and could not be rescued.

    Parameters
    ----------
    message : str
        What was found, where, and what to do.
    report : NonFiniteReport or None, default=None
        The failed step: phase, cause, place and remedy.

    Attributes
    ----------
    report : NonFiniteReport or None
        As given.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception.__reduce__ passes only the message: a worker process would lose the
        # report on the way home.
        return type(self), (str(self), self.report)


class DivergenceWarning(ConvergenceWarning):
    """Training went non-finite or exploded, and was rescued.

    Parameters
    ----------
    message : str
        What was found, where, and what was done.
    report : NonFiniteReport or None, default=None
        The first failed step.

    Attributes
    ----------
    report : NonFiniteReport or None
        As given.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.report)
