"""Recovery by taking the same step again."""

from __future__ import annotations

from typing import Any

from sknan.nets.recovery.protocol import Answer, Failure, Training
from sknan.nets.recovery.repeat import repeat_step


class Retry:
    """Repeat a step that was finite when it was replayed."""

    says = "The step was taken again, and was finite."

    def applies(self, failure: Failure) -> bool:
        """Whether the replay of the step was finite, and no row is to blame."""
        has_cause = failure.operation is not None or failure.latest.rows
        return failure.is_repeatable and not has_cause

    def attempt(self, training: Training, failure: Failure, batch: Any) -> Answer:
        """Repeat the step unchanged."""
        return repeat_step(training, failure, "plain", self.says)
