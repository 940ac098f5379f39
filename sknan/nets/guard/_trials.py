"""Protocol of the trials that a guard runs before it answers a failed step."""

from __future__ import annotations

from typing import Protocol


class Trials(Protocol):
    """Trials that a guard runs before it decides; they leave the training unchanged."""

    def fails_on_last_weights(self) -> bool:
        """Whether the failed batch also fails with the last verified weights."""

    def has_last_learned(self) -> bool:
        """Whether the last verified weights are better than a constant output."""

    def losses_after(self, scales: list[float]) -> list[float]:
        """Return the losses after some steps from the last verified weights.

        Each scale is a factor of the learning rate. A failed step gives inf.
        """

    def rates_at(self, scale: float) -> list[float]:
        """Return ``scale`` times the present learning rate of each parameter group."""

    def is_rate_raised(self) -> bool:
        """Whether a scheduler or callback has raised the learning rate above ``lr``."""
