"""History entries, warnings and errors of a guarded training."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from functools import partial
from operator import mul
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch.dataset import unpack_data

from sknan._utils.random_state import kept_random_states
from sknan._utils.thresholds import MARGIN, N_TRIALS
from sknan._utils.tree import tree_map
from sknan._utils.warn import warn
from sknan.diagnosis._causes import examine_damage
from sknan.diagnosis._raised import result_of_trial
from sknan.diagnosis._report import NonFiniteReport, listed
from sknan.exceptions import DivergenceWarning, NonFiniteTrainingError
from sknan.nets._guarded_step import GuardedTraining
from sknan.nets._rates import action_on_rate
from sknan.nets.recovery.drop_rows import DropRows
from sknan.nets.recovery.explain import find_damage
from sknan.nets.recovery.own_gradient import TakeOwnGradient
from sknan.nets.recovery.repeat import MOST_REPETITIONS

# Entries that a guarded net adds to skorch's history.
GUARD_ENTRIES = ("n_recoveries", "grad_norm", "clip_share", "clip_coefficient", "lr")

# The training loss is judged if it is below minus this multiple of its first size. A
# negative log-likelihood of one number is no lower, since no float32 density is larger;
# one of large counts, or of many numbers, is.
_DEEP_FALL = math.log(np.finfo(np.float32).max)

# Outputs that are multiplied by these factors have a far lower loss if it falls without
# end, or at a divisor of 0.
_OTHER_SIZES = 1e4, 1e-4


def gradient_entries(
    grad_norm: float, coefficients: NDArray[np.float64] | None
) -> dict[str, float]:
    """Return the history entries on the gradients of an epoch.

    ``grad_norm`` is the median of the norms. Coefficients are None without clipping.
    """
    row = {"grad_norm": float(grad_norm)}
    if coefficients is not None:
        clipped = coefficients[coefficients < 1.0]
        row["clip_share"] = len(clipped) / len(coefficients)
        row["clip_coefficient"] = float(clipped.mean()) if len(clipped) else 1.0
    return row


def record_epoch(net: Any, training: GuardedTraining) -> None:
    """Write recoveries, gradient norms, clipping and learning rate into the history."""
    epoch, record = len(net.history), net.history.record
    record("n_recoveries", sum(r.epoch == epoch for r in net.guard_.reports))
    if training.norms:
        options = (net.clip_norm, net.clip_value, net.adaptive_clip)
        is_clipped = any(option is not None for option in options)
        coefficients = np.array(training.coefficients) if is_clipped else None
        # For the steps of an epoch this is faster than numpy, and equal.
        norm = statistics.median(training.norms)
        for entry in gradient_entries(norm, coefficients).items():
            record(*entry)
    if training.rate is not None:
        record("lr", training.rate)


def hide_guard_entries(callback: Any) -> None:
    """Keep the guard's entries out of what a printer or logger of skorch shows.

    A list ``keys_ignored`` that is empty or names one of the entries is left unchanged:
    the user has then chosen among them.
    """
    ignored = getattr(callback, "keys_ignored_", None)
    if not isinstance(ignored, set) or not ignored.isdisjoint(GUARD_ENTRIES):
        return
    chosen = getattr(callback, "keys_ignored", None)
    if chosen is None or len(chosen):
        ignored.update(GUARD_ENTRIES)


def collapse_report(net: Any, n_rows: int) -> NonFiniteReport:
    """Return the report on a network with one output for all rows, after an epoch."""
    rate = net._limited_rate() * net.guard_.rate_peak()
    return NonFiniteReport(
        phase="step",
        cause="learning_rate",
        evidence="The network has collapsed: it gives the same output for each of the "
        f"{n_rows} different rows of a batch, at lr={rate:.3g}.",
        action=action_on_rate(net),
        epoch=len(net.history),
        batch=net._training_.batch_number,
    )


def damage_report(net: Any) -> NonFiniteReport:
    """Return the report on weights or buffers that other code than the optimizer set.

    It is of the end of an epoch or of a validation pass.
    """
    damaged = find_damage(net)
    assert damaged is not None
    return dataclasses.replace(examine_damage(damaged), epoch=len(net.history))


def _reason(report: NonFiniteReport) -> tuple[Any, ...]:
    """Return what reports on the same failure have in common."""
    fields = report.phase, report.cause, report.module, report.operation
    return (*fields, report.source)


def _failures(reports: list[NonFiniteReport]) -> str:
    """Return a clause with the numbers of failed steps, epochs and reasons."""
    if len(reports) == 1:
        return "Training failed once"
    n_epochs = len({report.epoch for report in reports})
    reasons = set(map(_reason, reports))
    epochs = "1 epoch" if n_epochs == 1 else f"{n_epochs} epochs"
    why = "one reason" if len(reasons) == 1 else f"{len(reasons)} reasons"
    return f"Training failed in {len(reports)} steps of {epochs}, for {why},"


def _dropped_rows(reports: list[NonFiniteReport]) -> str:
    """Return sentences on the rows of the data that were left out of steps."""
    known = [r for r in reports if r.rows_in == "data"]
    dropped = [r for r in known if r.recovery == DropRows.says]
    learned = {x for r in known if r.recovery == TakeOwnGradient.says for x in r.rows}
    times = Counter(row for r in dropped for row in r.rows)
    lost = {row for row, n in times.items() if n > MOST_REPETITIONS} - learned
    if not times:
        return ""
    were = "was" if len(times) == 1 else "were"
    text = f" {listed('row', sorted(times)).capitalize()} {were} left out of steps."
    for reason in dict.fromkeys(map(_reason, dropped)):
        same = [r for r in dropped if _reason(r) == reason]
        rows = sorted(lost.intersection(row for r in same for row in r.rows))
        lost.difference_update(rows)
        if rows:
            text += f" {_lost_rows(same, rows, reports[0].action)}"
    return text


def _lost_rows(same: list[NonFiniteReport], rows: list[int], stated: str) -> str:
    """Return sentences on rows that were left out again and again for one reason.

    The action is left out if it is the one that the warning ends with.
    """
    n_rows = "1 row" if len(rows) == 1 else f"{len(rows)} rows"
    evidence = (
        f"The network cannot learn from {n_rows}, left out of more than "
        f"{MOST_REPETITIONS} steps, since torch's own gradient is of no use there "
        "either."
    )
    columns = tuple(dict.fromkeys(column for r in same for column in r.columns))
    action = "" if same[0].action == stated else same[0].action
    report = dataclasses.replace(
        same[0], evidence=evidence, action=action, rows=tuple(rows), columns=columns
    )
    return str(dataclasses.replace(report, epoch=None, batch=None)).strip()


def not_learned_error(reports: list[NonFiniteReport]) -> NonFiniteTrainingError:
    """Return the error for a rescued training that taught the network nothing."""
    return NonFiniteTrainingError(
        f"{_failures(reports)} and the rescued network has learned nothing: its loss "
        "is no better than that of the untrained network, or of a constant output. "
        f"First failure: {reports[0]}",
        reports[0],
    )


def no_step_error(reports: list[NonFiniteReport]) -> NonFiniteTrainingError:
    """Return the error for a training in which every step failed."""
    return NonFiniteTrainingError(
        f"Not a single step could be taken. First failure: {reports[0]}", reports[0]
    )


def warn_of_rescue(net: Any, reports: list[NonFiniteReport], remark: str) -> None:
    """Warn that training failed and went on, with a remark on what it has reached."""
    change = ""
    if net.guard_.lr_scale != 1.0:
        change = f"; it went on with lr={net.effective_lr_:.3g}"
        change += f" instead of lr={net.lr:.3g}"
    elif len(net.guard_.rate_caps) == 1:
        change = f"; it went on with rates of at most {net.guard_.rate_caps[0]:.3g}"
    warn(
        DivergenceWarning(
            f"{_failures(reports)} and was rescued{change}."
            f"{_dropped_rows(reports)}{remark} First failure: {reports[0]}",
            reports[0],
        ),
    )


def warn_of_interrupt(
    net: Any, n_before: int, n_epochs: int, *, has_best: bool
) -> None:
    """Warn that a training was interrupted.

    ``n_before`` epochs of its history belong to earlier trainings. The net returns to
    the weights of its best epoch, if it has one.
    """
    n_done = len(net.history) - n_before
    if n_done > 0 and "train_batch_count" not in net.history[-1]:
        n_done -= 1  # in the course of the epoch
    kept = "weights of its best epoch" if has_best else "last weights that are usable"
    warn(
        f"Training was interrupted after {n_done} of {n_epochs} epochs. The network "
        f"keeps the {kept}. Call fit again for a complete training."
    )


def warn_of_fall(net: Any, batch: Any) -> None:
    """Warn if the training loss has fallen as only one without a lower bound does."""
    losses = [row.get("train_loss", math.nan) for row in net.history or ()]
    losses = [loss for loss in losses if not math.isnan(loss)]
    if not losses or not losses[-1] < -_DEEP_FALL * max(abs(losses[0]), 1.0):
        return
    if result_of_trial(lambda: _falls_on(net, batch, losses[-1])):
        warn(
            f"The training loss has fallen from {losses[0]:.3g} to {losses[-1]:.3g} "
            f"in {len(losses)} epochs. It seems to have no lower bound, so that the "
            "network learns to lower it, whatever it predicts. Look for a divisor or a "
            "weight in the loss that may be negative, and for targets or outputs "
            "outside the range that the loss is meant for.",
        )


def _falls_on(net: Any, batch: Any, loss: float) -> bool:
    """Whether far larger or smaller outputs have a far lower loss than the last one."""
    inputs, target = unpack_data(batch)
    with kept_random_states(net.device), torch.no_grad():
        net._set_training(False)
        outputs = net.infer(inputs)
        others = [tree_map(partial(mul, size), outputs) for size in _OTHER_SIZES]
        found = [net.get_loss(o, target, X=inputs, training=False) for o in others]
    return any(float(other) < MARGIN * loss for other in found)


def warn_of_idle_clip(net: Any, n_steps: int, n_clipped: int, norm: float) -> None:
    """Warn if no step was clipped although the user set a threshold."""
    name = "clip_value" if net.clip_norm is None else "clip_norm"
    limit = getattr(net, name)
    if limit is None or n_clipped or n_steps < 2 * N_TRIALS:
        return
    warn(
        f"{name}={limit!r} never had an effect: the norm of the gradients was at most "
        f"{norm:.3g} in {n_steps} steps. Lower it to bound what is unusual here, or "
        "leave it out.",
    )
