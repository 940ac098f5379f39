"""Recovery by skipping a batch that is to blame."""

from __future__ import annotations

from typing import Any

from sknan.nets.guard._guard import BATCH_SKIPPED
from sknan.nets.recovery.protocol import Answer, Failure, Training
from sknan.nets.recovery.skip_step import skipped_step


class SkipBatch:
    """Skip a batch that fails with the last verified weights too."""

    says = BATCH_SKIPPED

    def applies(self, failure: Failure) -> bool:
        """Whether the batch is to blame, and not the weights or the learning rate."""
        return failure.guard.is_batch_to_blame(failure.report, failure.trials)

    def attempt(self, training: Training, failure: Failure, batch: Any) -> Answer:
        """Skip the batch within the budget."""
        training.guard.skip_batch(failure.report)
        return skipped_step(training, failure)
