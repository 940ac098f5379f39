"""Errors and warnings of sknan.

::

    SknanError
    ├── NonFiniteDataError      (a ValueError)          X or y, before training
    └── NonFiniteTrainingError  (a FloatingPointError)  loss, gradient, weight, output
    DivergenceWarning           (a ConvergenceWarning)  training was recovered
    ChangedColumnWarning        (a UserWarning)         not the values of fit

A message states what was found, where, and what to do.
"""

from __future__ import annotations

from typing import Any

from sklearn.exceptions import ConvergenceWarning

__all__ = [
    "ChangedColumnWarning",
    "DivergenceWarning",
    "NonFiniteDataError",
    "NonFiniteTrainingError",
    "SknanError",
]


class SknanError(Exception):
    """Base class of the errors that sknan defines."""


class NonFiniteDataError(SknanError, ValueError):
    """Error for values in ``X`` or ``y`` from which no finite network can learn.

    These are NaN, infinities, values beyond float32, values beside which float32 loses
    all others, and targets for which the loss is undefined or has no lower bound. It is
    raised before training starts.
    """


class NonFiniteTrainingError(SknanError, FloatingPointError):
    """Error for a non-finite loss, gradient, weight or output without recovery.

    Parameters
    ----------
    message : str
        Text that states what was found, where, and what to do.
    report : NonFiniteReport or None, default=None
        Report on the failed step: phase, cause, place and remedy.

    Attributes
    ----------
    report : NonFiniteReport or None
        Report on the failed step.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception.__reduce__ pickles only the message, so that an error from a worker
        # process would lose its report.
        return type(self), (str(self), self.report)


class ChangedColumnWarning(UserWarning):
    """Warning for a column that cannot be read as the column of the same name in fit.

    ``warnings.simplefilter("error", ChangedColumnWarning)`` makes an error of it.
    """


class DivergenceWarning(ConvergenceWarning):
    """Warning for a training that became non-finite or diverged, and was recovered.

    Parameters
    ----------
    message : str
        Text that states what was found, where, and what was done.
    report : NonFiniteReport or None, default=None
        Report on the first failed step.

    Attributes
    ----------
    report : NonFiniteReport or None
        Report on the first failed step.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.report)
