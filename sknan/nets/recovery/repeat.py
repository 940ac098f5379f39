"""Repetition of a failed step on the remaining rows of its batch."""

from __future__ import annotations

from sknan._utils.random_state import resumed
from sknan.nets.recovery.explain import explain
from sknan.nets.recovery.protocol import Failure, Step, StepMode, StepRefused, Training

# Number of repetitions after which no operation is repaired any more, and of omissions
# of a row from steps before torch's own gradient is tried. Of 25 random failing
# trainings, all end in the same way with 3 omissions.
MOST_REPETITIONS = 2


def repeat_step(
    training: Training, failure: Failure, mode: StepMode, recovery: str
) -> Step | None:
    """Take a failed step again, with the random states of its forward pass.

    Parameters
    ----------
    training : Training
        Training in the state of the failure.
    failure : Failure
        Failed step. If the repetition fails too, its explanation becomes the latest
        one if it has fewer rows or changes nothing.
    mode : {"plain", "without_rows", "finite_operations", "own_gradient"}
        What is changed in the step.
    recovery : str
        Sentence for the report.

    Returns
    -------
    dict or None
        Result of ``train_step``; None if the repetition failed.
    """
    failure.n_attempts += 1
    training.guard.weights.last.restore_buffers()
    training.guard.clear_half_written()
    try:
        with resumed(training.random_states, training.net.device):
            step = training.attempt(failure.batch, failure.fit_params, mode)
    except StepRefused as refused:
        training.guard.weights.last.restore_buffers()  # which forward passes change
        is_finite = training.guard.has_finite_weights()
        failure.has_ruined = refused.has_stepped and not is_finite
        if mode == "finite_operations":
            failure.is_idle = refused.norm == 0.0
        if mode in ("plain", "without_rows"):
            failure.latest = explain(
                training, refused, failure.batch, failure.fit_params
            )
        return None
    training.guard.record(failure.report, recovery)
    return step
