"""Result of a range test: the suggested learning rate and the curves behind it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from sknan._engine.range_test.curves import RateCurves
from sknan._engine.range_test.judge import Judgment, counted


@dataclass(frozen=True, eq=False)
class LearningRateRange:
    """Result of a range test.

    Parameters
    ----------
    suggestion : float
        Suggested learning rate.
    confidence : {"high", "medium", "low"}
        Confidence in the suggestion.
    reason : str
        Reason for the suggestion, and doubts about it.
    largest_stable : float or None
        Largest stable learning rate; None if no learning rate is stable. A learning
        rate is stable if, from each start, its loss fell at least half as far as the
        loss of the best one, and the same is true of each learning rate between the
        two, and no curve at a lower learning rate ended early.
    fastest : float or None
        Learning rate with the lowest training loss at the end; None if no learning rate
        is stable.
    rates : ndarray of shape (n_rates,)
        Tested learning rates in ascending order.
    losses : ndarray of shape (n_rates, n_seeds, n_steps), float32
        Training loss of each step. It is NaN from the step at which a curve ended
        early: its loss or gradient was not finite, or the step was refused.
    valid_losses : ndarray of shape (n_rates, n_seeds, n_checks), float32
        Loss on held-out rows; without columns if there were too few rows to hold any
        out.
    valid_steps : ndarray of shape (n_checks,)
        Number of steps before each check on held-out rows.

    Notes
    -----
    Prints as a short paragraph. ``to_frame()`` has one row for each learning rate,
    ``curves()`` one row for each step of each curve.
    """

    suggestion: float
    confidence: str
    reason: str
    largest_stable: float | None
    fastest: float | None
    rates: np.ndarray = field(repr=False)
    losses: np.ndarray = field(repr=False)
    valid_losses: np.ndarray = field(repr=False)
    valid_steps: np.ndarray = field(repr=False)

    def __str__(self) -> str:
        n_rates, n_seeds, n_steps = self.losses.shape
        lines = [
            f"Learning rate {self.suggestion:.2g}, confidence {self.confidence}. "
            f"{self.reason}",
            f"Largest stable learning rate {_shown(self.largest_stable)}, "
            f"fastest-learning {_shown(self.fastest)}.",
            f"{n_rates} learning rates from {self.rates[0]:.3g} to "
            f"{self.rates[-1]:.3g}, {counted(n_seeds, 'start')}, "
            f"{counted(n_steps, 'step')} each; {self._endings()}.",
        ]
        return "\n".join(lines)

    def _endings(self) -> str:
        ended = np.isnan(self.losses[:, :, -1])
        if not ended.any():
            return "no curve ended early"
        first = self.rates[ended.any(axis=1)][0]
        return (
            f"{counted(int(ended.sum()), 'curve')} ended early, the first at a "
            f"learning rate of {first:.3g}"
        )

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row for each learning rate.

        Returns
        -------
        DataFrame
            ``rate``; ``train_loss`` and ``valid_loss`` at the end of the test, averaged
            over the starts (NaN where a curve ended early); ``ended_at``, the number of
            the first step that failed, from 1 (missing if none failed); ``is_stable``.
        """
        ended = np.isnan(self.losses)
        first = np.where(ended.any(axis=2), ended.argmax(axis=2) + 1.0, np.inf)
        step = pd.array(
            [None if np.isinf(s) else int(s) for s in first.min(axis=1)], dtype="Int64"
        )
        judgment = Judgment.of(
            RateCurves(self.losses, self.valid_losses, self.valid_steps)
        )
        valid = judgment.valid
        return pd.DataFrame(
            {
                "rate": self.rates,
                "train_loss": _means(judgment.train),
                "valid_loss": np.nan if valid is None else _means(valid),
                "ended_at": step,
                "is_stable": judgment.is_stable,
            }
        )

    def curves(self) -> pd.DataFrame:
        """Return a table with one row for each step of each curve, up to its end.

        Returns
        -------
        DataFrame
            ``rate``; ``seed``, the number of the start, from 0; ``step``, from 1; and
            ``loss``, that of the batch before the step.
        """
        positions = np.argwhere(~np.isnan(self.losses))
        return pd.DataFrame(
            {
                "rate": self.rates[positions[:, 0]],
                "seed": positions[:, 1],
                "step": positions[:, 2] + 1,
                "loss": self.losses[tuple(positions.T)],
            }
        )


def _means(losses: np.ndarray) -> np.ndarray:
    """Return the means over the starts; NaN where a curve ended early."""
    means: np.ndarray = losses.mean(axis=1)
    return np.where(np.isfinite(means), means, np.nan)


def _shown(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.3g}"
