"""Answer to a failed step under the policies "skip" and "raise"."""

from __future__ import annotations

from typing import Any

from sknan.nets.guard._guard import STEP_SKIPPED
from sknan.nets.recovery.protocol import Answer, Failure, Step, Training


def skipped_step(training: Training, failure: Failure) -> Step:
    """Clear the gradients and return the failed step, marked as skipped."""
    training.net._zero_grad_optimizer()
    return {**failure.refused.step, "was_skipped": True}


class SkipStep:
    """Skip the step, or raise, if the user wants no recovery."""

    says = STEP_SKIPPED

    def applies(self, failure: Failure) -> bool:
        """Whether ``on_nonfinite`` is "skip" or "raise"."""
        return failure.guard.on_nonfinite != "recover"

    def attempt(self, training: Training, failure: Failure, batch: Any) -> Answer:
        """Skip the step within the budget, or raise."""
        training.guard.skip_step(failure.report)
        return skipped_step(training, failure)
