"""Recovery by skipping a batch that is to blame."""

from __future__ import annotations

from typing import Any

from sknan.nets.guard._guard import BATCH_SKIPPED
from sknan.nets.recovery.protocol import Answer, Failure, Training
from sknan.nets.recovery.skip_step import skipped_step


class SkipBatch:
    """Skip a batch that is to blame, and not the weights or the learning rate.

    It fails with the last verified weights too, or it is outside the domain of an
    operation, which it would be at any learning rate.
    """

    says = BATCH_SKIPPED

    def applies(self, failure: Failure) -> bool:
        """Whether the batch is to blame, and not the weights or the learning rate."""
        return failure.is_of_domain or failure.guard.is_batch_to_blame(
            failure.report, failure.trials
        )

    def attempt(self, training: Training, failure: Failure, batch: Any) -> Answer:
        """Skip the batch within the budget, or at no cost if it teaches nothing."""
        if not (failure.is_idle and failure.is_of_domain):
            training.guard.skip_batch(failure.report)
        else:
            training.guard.pass_batch(failure.report)
        return skipped_step(training, failure)
