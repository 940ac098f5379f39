"""Recovery from weights that other code than the optimizer has made non-finite."""

from __future__ import annotations

from typing import Any

from sknan.nets.guard._guard import RESTORED
from sknan.nets.recovery.protocol import Answer, Failure, Training


class RestoreWeights:
    """Restore verified weights that a callback, for example, has damaged.

    The learning rate is not to blame, and remains as it is.
    """

    says = RESTORED

    def applies(self, failure: Failure) -> bool:
        """Whether weights became non-finite between the steps of the optimizer."""
        return failure.first.evidence.damaged is not None

    def attempt(self, training: Training, failure: Failure, batch: Any) -> Answer:
        """Restore the weights within the budget, and attempt the batch again."""
        training.guard.restore_weights(failure.report)
        return "retry"
