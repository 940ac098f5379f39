"""A range test: short trainings at many rates, and what is made of them.

All rates start from the same weights and take the same batches, so that none has to be
reached by a ramp over the others, as in the usual sweep: a curve shows one rate alone,
and where it ends, the others go on.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from sknan._engine.plan import TrainingRows
from sknan._engine.range_test.curves import RateCurves, curves_at_rates, flops_per_step
from sknan._engine.range_test.judge import Judged, counted, suggested
from sknan._utils.progress import progress

__all__ = ["DEFAULT_RATES", "LearningRateRange", "range_test"]

DEFAULT_RATES = tuple(float(f"{10 ** (k / 3):.3g}") for k in range(-15, 4))

# Steps of each training: these, what the real one comes to, or what the network's size
# leaves of this number of floating-point operations (some seconds on one core).
_N_STEPS = 200
_LEAST_STEPS = 20
_LEAST_STEPS_OF_LARGE = 60
_MOST_FLOPS = 1.5e11

_LEVELS = ("low", "medium", "high")


@dataclass(frozen=True, eq=False)
class LearningRateRange:
    """What a range test has found.

    Parameters
    ----------
    suggestion : float
        Learning rate to take.
    confidence : {"high", "medium", "low"}
        How far to trust it.
    reason : str
        Why this rate, and what speaks against trusting it.
    largest_stable : float or None
        Largest rate at which, from each start, the loss fell at least half as far as at
        the best one; so it did at each rate between the two, and no curve below it has
        ended. None if no rate is stable.
    fastest : float or None
        Rate at which the training loss was lowest in the end; None as above.
    rates : ndarray of shape (n_rates,)
        Rates tried, ascending.
    losses : ndarray of shape (n_rates, n_seeds, n_steps), float32
        Training loss of each step; NaN from the step on at which a curve has ended: its
        loss or gradient was not finite, or the step was refused.
    valid_losses : ndarray of shape (n_rates, n_seeds, n_checks), float32
        Loss on held-out rows; no columns if there were too few rows to hold any out.
    valid_steps : ndarray of shape (n_checks,)
        Steps taken before each of these.

    Notes
    -----
    Prints as a short paragraph. ``to_frame()`` has one row for each rate,
    ``curves()`` one for each step of each curve.
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
            f"Largest stable rate {_shown(self.largest_stable)}, fastest-learning "
            f"{_shown(self.fastest)}.",
            f"{n_rates} rates from {self.rates[0]:.3g} to {self.rates[-1]:.3g}, "
            f"{counted(n_seeds, 'start')}, {counted(n_steps, 'step')} each; "
            f"{self._endings()}.",
        ]
        return "\n".join(lines)

    def _endings(self) -> str:
        ended = np.isnan(self.losses[:, :, -1])
        if not ended.any():
            return "no curve ended early"
        first = self.rates[ended.any(axis=1)][0]
        return (
            f"{counted(int(ended.sum()), 'curve')} ended early, the first at rate "
            f"{first:.3g}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each rate.

        Returns
        -------
        DataFrame
            ``rate``; ``train_loss`` and ``valid_loss`` at the end of the test, means
            over the starts (NaN where a curve has ended); ``ended_at``, the first step
            that failed, counted from 1 (missing if none has); ``is_stable``.
        """
        ended = np.isnan(self.losses)
        first = np.where(ended.any(axis=2), ended.argmax(axis=2) + 1.0, np.inf)
        step = pd.array(
            [None if np.isinf(s) else int(s) for s in first.min(axis=1)], dtype="Int64"
        )
        judged = Judged.of(RateCurves(self.losses, self.valid_losses, self.valid_steps))
        return pd.DataFrame(
            {
                "rate": self.rates,
                "train_loss": _means(judged.train),
                "valid_loss": np.nan if judged.valid is None else _means(judged.valid),
                "ended_at": step,
                "is_stable": judged.is_stable,
            }
        )

    def curves(self) -> pd.DataFrame:
        """One row for each step of each curve, up to where it has ended.

        Returns
        -------
        DataFrame
            ``rate``, ``seed`` (counted from 0), ``step`` (counted from 1) and ``loss``,
            that of the batch before the step.
        """
        places = np.argwhere(~np.isnan(self.losses))
        return pd.DataFrame(
            {
                "rate": self.rates[places[:, 0]],
                "seed": places[:, 1],
                "step": places[:, 2] + 1,
                "loss": self.losses[tuple(places.T)],
            }
        )


def range_test(
    estimator: Any,
    rows: TrainingRows,
    seed: int,
    *,
    rates: Any = None,
    n_seeds: int = 2,
    n_steps: int | str = "auto",
    verbose: int | bool = 0,
) -> LearningRateRange:
    """Train at each rate for a short while, and judge.

    Parameters
    ----------
    estimator : Trainable
        That has validated the rows; it is left as it is.
    rows : TrainingRows
        Of the whole table.
    seed : int
        Of the test.
    rates : array of float or None, default=None
        Ascending; None for :data:`DEFAULT_RATES`.
    n_seeds : int, default=2
        Starts.
    n_steps : int or "auto", default="auto"
        Steps of each training.
    verbose : int or bool, default=0
        Whether to show a bar.

    Returns
    -------
    LearningRateRange
    """
    tried = np.asarray(DEFAULT_RATES if rates is None else rates, dtype=np.float64)
    rng = np.random.RandomState(seed)
    seeds = [int(s) for s in rng.randint(np.iinfo(np.int32).max, size=n_seeds)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to warn of, fit will say
        if n_steps == "auto":
            n_steps = _n_steps(estimator, rows, len(tried) * n_seeds)
        n_in_all = int(n_steps) * n_seeds
        with progress("Range test", n_in_all, "steps", verbose=verbose):
            curves = curves_at_rates(estimator, rows, tried, seeds, int(n_steps))
    return _result(tried, curves, len(rows.X))


def _n_steps(estimator: Any, rows: TrainingRows, n_trainings: int) -> int:
    n_steps = _N_STEPS
    if not rows.is_partial:
        n_batches = -(-len(rows.X) // estimator.rows_per_batch(len(rows.X)))
        whole = n_batches * estimator.max_epochs
        if estimator.lr_schedule not in (None, "constant"):
            whole //= 2  # of a falling rate, so many steps at its top get as far
        n_steps = max(_LEAST_STEPS, min(n_steps, whole))
    n_flops = max(flops_per_step(estimator, rows), 1.0) * n_trainings
    most = max(_LEAST_STEPS_OF_LARGE, int(_MOST_FLOPS // n_flops))
    return min(n_steps, most)


def _result(rates: np.ndarray, curves: RateCurves, n_rows: int) -> LearningRateRange:
    judged = Judged.of(curves)
    stable = rates[judged.is_stable]
    largest = float(stable[-1]) if len(stable) else None
    fastest = None
    if largest is not None and judged.fastest is not None:
        fastest = float(rates[judged.fastest])
    suggestion, level, reason = suggested(rates, curves, judged, largest, n_rows)
    return LearningRateRange(
        suggestion=float(f"{suggestion:.2g}"),
        confidence=_LEVELS[level],
        reason=reason,
        largest_stable=largest,
        fastest=fastest,
        rates=rates,
        losses=curves.losses,
        valid_losses=curves.valid_losses,
        valid_steps=curves.valid_steps,
    )


def _means(losses: np.ndarray) -> np.ndarray:
    """Over the starts; NaN where a curve has ended."""
    means: np.ndarray = losses.mean(axis=1)
    return np.where(np.isfinite(means), means, np.nan)


def _shown(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.3g}"
