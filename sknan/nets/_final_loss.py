"""Check of the loss after a training in which no step has failed."""

from __future__ import annotations

from typing import Any

from sknan.diagnosis._remedies import ACTIONS
from sknan.diagnosis._report import NonFiniteReport
from sknan.nets._best_weights import BestWeights
from sknan.nets._guarded_step import GuardedTraining
from sknan.nets._output import unchanged_states
from sknan.nets.recovery.rate_trials import RateTrials
from sknan.optim._learning_rates import ascends


def find_fault_of_result(training: GuardedTraining) -> NonFiniteReport | None:
    """Report that a training has ruined its network, if it has.

    No later step has checked the last ones, and a short training may end before its
    losses tell. Most trainings need one evaluation of as many rows as in a batch.

    Parameters
    ----------
    training : GuardedTraining
        Training in which no step has failed, before its end.
    """
    net, guard = training.net, training.guard
    if net._own_step() is not None or not training.latest_batches:
        return None
    if ascends(net._all_optimizers()):
        return None  # it raises a score
    trials = RateTrials(training, training.latest_batches[-1], {})
    with unchanged_states(net, training.batches), guard.weights.last.kept_numbers():
        guard.begin_step()
        loss = _loss_of_best_epoch(net)
        if loss is None:
            loss = trials.evaluation_loss()
        losses = None if guard.is_trusted(loss) else trials.has_risen()
        guard.weights.last.restore_buffers()
    if losses is None:
        return None
    before, after = losses
    return NonFiniteReport(
        phase="step",
        cause="learning_rate",
        evidence=f"The loss has risen from {before:.3g} before the training to "
        f"{after:.3g} after it, far above that of a constant output, "
        f"at lr={net._base_rate():.3g}.",
        action=ACTIONS["learning_rate"],
        epoch=len(net.history),
        batch=training.batch_number,
    )


def _loss_of_best_epoch(net: Any) -> float | None:
    """Return the lowest validation loss, if a callback returns to the best epoch."""
    returns = any(
        isinstance(callback, BestWeights) or getattr(callback, "load_best", False)
        for _, callback in net.callbacks_
    )
    losses = [row["valid_loss"] for row in net.history if "valid_loss" in row]
    return min(losses) if returns and losses else None
