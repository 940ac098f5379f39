"""Check of the loss after a training in which no step has failed."""

from __future__ import annotations

import math
from typing import Any

from sknan._utils.thresholds import N_TRIALS
from sknan.diagnosis._remedies import ACTIONS
from sknan.diagnosis._report import NonFiniteReport
from sknan.nets._best_weights import BestWeights
from sknan.nets._guarded_step import GuardedTraining
from sknan.nets._output import unchanged_states
from sknan.nets.recovery.rate_trials import RateTrials
from sknan.optim._learning_rates import ascends


def find_fault_of_result(
    training: GuardedTraining,
) -> tuple[NonFiniteReport, bool] | None:
    """Report that the loss of a training has risen above that of a constant output.

    No later step has checked the last ones, and a short training may end before its
    losses tell. Most trainings need one evaluation of as many rows as in a batch.

    Parameters
    ----------
    training : GuardedTraining
        Training in which no step has failed, before its end.

    Returns
    -------
    tuple of (NonFiniteReport, bool) or None
        The report, and whether the training has ruined the network. If not, it may
        still be of some use.
    """
    net, guard = training.net, training.guard
    if net._own_step() is not None or not training.latest_batches:
        return None
    if ascends(net._all_optimizers()):
        return None  # it raises a score
    if training.has_changed_loss:
        return None
    trials = RateTrials(training, training.latest_batches[-1], {})
    with unchanged_states(net, training.batches), guard.weights.last.kept_numbers():
        guard.begin_step()
        loss = _loss_of_best_epoch(net)
        if loss is None:
            loss = trials.evaluation_loss()
        found = None if loss <= guard.largest_loss else trials.find_rise()
        guard.weights.last.restore_buffers()
    if found is None:
        return None
    rise, is_ruin = found
    # The first steps of Adam at a usual rate may raise the loss so far.
    if not is_ruin and training.n_steps < 2 * N_TRIALS:
        return None
    known = f", {rise.constant:.3g}," if math.isfinite(rise.constant) else ","
    # A scheduler may have lowered the last learning rate.
    rate = max(training.largest_rate, net._base_rate())
    report = NonFiniteReport(
        phase="step",
        cause="learning_rate",
        evidence=f"The loss has risen from {rise.before:.3g} before the training to "
        f"{rise.after:.3g} after it, {'far ' * is_ruin}above that of a constant output"
        f"{known} at lr={rate:.3g}.",
        action=ACTIONS["learning_rate"],
        epoch=len(net.history),
        batch=training.batch_number,
    )
    return report, is_ruin


def _loss_of_best_epoch(net: Any) -> float | None:
    """Return the lowest validation loss, if a callback returns to the best epoch."""
    returns = any(
        isinstance(callback, BestWeights) or getattr(callback, "load_best", False)
        for _, callback in net.callbacks_
    )
    losses = [row["valid_loss"] for row in net.history if "valid_loss" in row]
    return min(losses) if returns and losses else None
