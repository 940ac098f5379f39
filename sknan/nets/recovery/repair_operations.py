"""Recovery by keeping every operation of a step inside its domain."""

from __future__ import annotations

from typing import Any

from sknan.nets.recovery.protocol import Answer, Failure, Training
from sknan.nets.recovery.repeat import MOST_REPETITIONS, repeat_step


class RepairOperations:
    """Repeat a step with operations and gradients that are finite."""

    says = "The step was taken with its operations repaired."

    def applies(self, failure: Failure) -> bool:
        """Whether the step may succeed and has not been repeated too often."""
        return failure.is_repeatable and failure.n_attempts < MOST_REPETITIONS

    def attempt(self, training: Training, failure: Failure, batch: Any) -> Answer:
        """Repeat the step with finite operations."""
        return repeat_step(training, failure, "finite_operations", self.says)
