"""Refusal of invalid learning rates, with the place that they come from."""

from __future__ import annotations

import math
from typing import Any, NoReturn

from sknan._utils.outside import is_of_signal, unless
from sknan.diagnosis._remedies import ACTIONS
from sknan.diagnosis._report import NonFiniteReport
from sknan.exceptions import NonFiniteTrainingError
from sknan.optim._learning_rates import scaled_rates

# A scheduler that computes each rate from the previous one may round a rate of 0 to a
# negative number, of at most this multiple of the parameter lr.
_ROUNDING = 1e-6

_ACTION = "Set a finite learning rate of at least 0."


def refuse_invalid_rates(net: Any, batch_number: int) -> None:
    """Refuse learning rates of the next step that are NaN, infinite or negative.

    Raises
    ------
    NonFiniteTrainingError
        If a learning rate, or the factor by the schedule, is invalid. The message names
        what has set it.
    """
    least = -_ROUNDING * abs(float(net.lr))
    for optimizer in net._all_optimizers():
        for group in optimizer.param_groups:
            rate = float(group["lr"])
            if not least <= rate < math.inf:
                name = type(optimizer).__name__
                found = f"The learning rate of {name} is {rate:.3g}{_origin(net, rate)}"
                _refuse(net, batch_number, found)
    try:
        net._schedule_factor()
    except unless(is_of_signal, ArithmeticError, TypeError, ValueError) as error:
        lines = str(error).splitlines() or [""]
        _refuse(net, batch_number, f"lr_schedule fails: {lines[0].rstrip('.')}", error)


def largest_step_rate(net: Any) -> float:
    """Return the largest rate of any weight since the weights were verified."""
    optimizers, caps = net._all_optimizers(), net.guard_.rate_caps
    with scaled_rates(optimizers, net._rate_factor(), caps):
        rate = _largest_rate(net)
    peak: float = net.guard_.rate_peak()
    return rate * peak


def action_on_rate(net: Any) -> str:
    """Return what to do about a learning rate that is too high, wherever it is set."""
    peak = net.guard_.rate_peak()
    rate = _largest_rate(net) * peak
    if rate <= float(net.lr):
        return ACTIONS["learning_rate"]
    origin = _origin(net, rate, is_present=peak == 1.0)
    return f"Lower the learning rate of {rate:.3g}{origin}."


def _largest_rate(net: Any) -> float:
    groups = [g for optimizer in net._all_optimizers() for g in optimizer.param_groups]
    return max((float(group["lr"]) for group in groups), default=float(net.lr))


def _refuse(
    net: Any, batch_number: int, found: str, error: Exception | None = None
) -> NoReturn:
    epoch = len(net.history or ())
    report = NonFiniteReport(
        "step", "learning_rate", f"{found}.", _ACTION, epoch=epoch, batch=batch_number
    )
    net.guard_.reports.append(report)
    message = f"{found}, at {report.place}. {_ACTION}"
    raise NonFiniteTrainingError(message, report) from error


def _origin(net: Any, rate: float, *, is_present: bool = True) -> str:
    """Return a clause on what has set a learning rate, now or some steps ago."""
    if str(rate) == str(float(net.lr)):  # NaN is not equal to itself
        return ", which is the parameter lr"
    for name, value in vars(net).items():
        if name.endswith("__lr") and str(rate) == str(value):
            return f", which is the parameter {name}"
        patterns = value if name.endswith("__param_groups") else ()
        for pattern, options in patterns or ():
            if str(rate) == str(float(options.get("lr", net.lr))):
                return f", set for {pattern!r} in {name}"
    others = []
    for name, callback in net.callbacks_:
        kind = type(callback)
        scheduler = getattr(callback, "lr_scheduler_", None)
        if scheduler is not None:
            policy = type(scheduler).__name__
            if not is_present:
                others.append(f"{name!r} ({policy})")
                continue
            try:
                if any(str(rate) == str(float(r)) for r in scheduler.get_last_lr()):
                    return f", set by {policy} in the callback {name!r}"
            except unless(is_of_signal, Exception):  # a scheduler of the user's own
                pass
        if not kind.__module__.startswith(("skorch.", "sknan.")):
            others.append(f"{name!r} ({kind.__name__})")
    if others:
        which = "the callback" if len(others) == 1 else "one of the callbacks"
        return f", set by {which} {', '.join(others)}"
    return ", set in optimizer.param_groups by a scheduler or by your own code"
