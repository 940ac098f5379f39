"""Recovery by a roll back to verified weights and shorter steps."""

from __future__ import annotations

from typing import Any

from sknan.nets.guard._guard import ROLLED_BACK
from sknan.nets.recovery.protocol import Answer, Failure, Training


class RollBack:
    """Restore verified weights, and clip or lower the learning rate from then on."""

    says = ROLLED_BACK

    def applies(self, failure: Failure) -> bool:
        """Whether this recovery is meant for a failure: it is the last resort."""
        return True

    def attempt(self, training: Training, failure: Failure, batch: Any) -> Answer:
        """Roll back within the budget; the training then shortens its steps."""
        training.guard.roll_back(failure.report)
        return "shorten"
