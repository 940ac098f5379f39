"""Result of fitting and scoring one candidate on one split."""

from __future__ import annotations

import dataclasses
import pickle
import traceback
from dataclasses import dataclass, field
from typing import Any, NoReturn

import cloudpickle

from sknan._utils.outside import is_of_signal, unless
from sknan.diagnosis._report import NonFiniteReport
from sknan.exceptions import NonFiniteTrainingError


class RemoteError:
    """Exception that was raised in a worker.

    Its traceback is kept as text, since a traceback cannot be pickled.

    Parameters
    ----------
    error : Exception
        The exception.
    trace : str or None, default=None
        Traceback as text. None takes the traceback of the exception.
    """

    def __init__(self, error: Exception, trace: str | None = None) -> None:
        self.trace = trace or "".join(traceback.format_exception(error))
        self.error = error.with_traceback(None)

    def reraise(self) -> NoReturn:
        """Raise the exception, caused by an exception that shows the traceback."""
        self.error.__cause__ = WorkerTraceback(self.trace)
        raise self.error.with_traceback(None)

    def __reduce__(self) -> Any:
        return RemoteError, (_picklable(self.error), self.trace)


class WorkerTraceback(Exception):
    """Cause of a remote error, which shows its traceback as text."""

    # A printed traceback contains the class without the name of a private module.
    __module__ = "builtins"

    def __init__(self, trace: str) -> None:
        super().__init__(f'\n"""\n{trace}"""')


def _picklable(error: Exception) -> Exception:
    """Return the error, or a RuntimeError with its message if it cannot be pickled."""
    try:
        pickle.loads(cloudpickle.dumps(error))
    except unless(is_of_signal, Exception):
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@dataclass(frozen=True)
class FitResult:
    """Result of fitting and scoring one candidate on one split.

    Parameters
    ----------
    fit_seconds : float
        Duration of the fit, or its share of the duration of a joint training.
    is_stacked : bool
        Whether the network was trained together with others.
    error : RemoteError or None
        Exception that ``fit`` raised.
    scores : list
        Score of the test part, then score of the training part if it was requested. A
        :class:`RemoteError` takes the place of a score if the scorer raised. Empty if
        ``fit`` raised.
    score_seconds : float
        Duration of scoring the test part.
    has_diverged : bool
        Whether the training failed, or the guard lowered the learning rate.
    has_failed_steps : bool
        Whether a training step failed.
    n_recoveries : int or None
        Number of failed steps that were rescued, over all networks. None if ``fit``
        raised, or if the estimator does not count them.
    diverged_at : int or None
        Epoch of the first failed step, counted from 1.
    effective_lr : float or None
        Learning rate at the end of the training, the smallest one of an ensemble.
    report : NonFiniteReport or None
        Report of the first failed step, without its capsule, which contains data.
    is_cut : bool
        Whether a time limit ended the training.
    """

    fit_seconds: float
    is_stacked: bool
    error: RemoteError | None = None
    scores: list[Any] = field(default_factory=list)
    score_seconds: float = 0.0
    has_diverged: bool = False
    has_failed_steps: bool = False
    n_recoveries: int | None = None
    diverged_at: int | None = None
    effective_lr: float | None = None
    report: NonFiniteReport | None = None
    is_cut: bool = False


def divergence_fields(net: Any, error: Exception | None) -> dict[str, Any]:
    """Return the fields of :class:`FitResult` that describe divergence."""
    if isinstance(error, NonFiniteTrainingError):
        reports = [error.report] if error.report else []
        fields: dict[str, Any] = {"has_diverged": True, "has_failed_steps": True}
    elif error is None and hasattr(net, "nonfinite_reports_"):
        reports = net.nonfinite_reports_
        fields = {"has_failed_steps": bool(reports), "n_recoveries": len(reports)}
        fields["has_diverged"] = bool(reports) and _is_rate_lowered(net)
        fields["effective_lr"] = net.effective_lr_
    else:
        return {}
    if reports:
        # The reports of an ensemble are sorted by network.
        first = min(reports, key=lambda report: report.epoch or 0)
        fields["report"] = dataclasses.replace(first, capsule=None)
        fields["diverged_at"] = first.epoch
    return fields


def _is_rate_lowered(net: Any) -> bool:
    """Return whether the guard lowered the rate of a net, or of one of an ensemble."""
    members = getattr(net, "estimators_", [net])
    return any(m.effective_lr_ < float(getattr(m, "lr_", m.lr)) for m in members)
