"""Range test: short trainings at many learning rates, and the judgment of their curves.

Every learning rate starts from the same weights and takes the same batches. The usual
sweep instead raises the learning rate in the course of one training, so that the loss
at one learning rate depends on all lower ones. Here a curve shows the effect of one
learning rate alone, and where it ends early, the others continue.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sknan._engine.plan import Trainable, TrainingRows
from sknan._engine.range_test.curves import (
    MAX_FLOPS,
    MIN_STEPS,
    SHARE_OF_TIME,
    RateCurves,
    TimeIsUp,
    curves_at_rates,
    flops_per_step,
)
from sknan._engine.range_test.judge import Judgment, suggest
from sknan._engine.range_test.learning_rate_range import LearningRateRange
from sknan._engine.range_test.trial import compared_with_usual
from sknan._utils.progress import progress
from sknan._utils.warn import recorded_warnings

DEFAULT_RATES = tuple(float(f"{10 ** (k / 3):.3g}") for k in range(-15, 4))

# Number of steps of each training, unless the real training has fewer, or all trainings
# would exceed the total of floating-point operations.
# On 90 synthetic tasks, R2 or accuracy is 0.021 below that of the best of 13 learning
# rates, and 0.022 and 0.021 below it with 100 and 400 steps.
_N_STEPS = 200

_LEVELS = ("low", "medium", "high")


def range_test(
    estimator: Trainable,
    rows: TrainingRows,
    seed: int,
    *,
    rates: ArrayLike | None = None,
    n_seeds: int = 2,
    n_steps: int | str = "auto",
    verbose: int | bool = 0,
    max_time: float | None = None,
) -> LearningRateRange:
    """Train for a short time at each learning rate, and suggest one.

    The suggestion differs from the usual learning rate only if whole trainings confirm
    that it is better.

    Parameters
    ----------
    estimator : Trainable
        Estimator that has validated the rows. It is not changed.
    rows : TrainingRows
        Rows of the whole table.
    seed : int
        Seed of the test.
    rates : array-like of float or None, default=None
        Learning rates in ascending order; None for :data:`DEFAULT_RATES`.
    n_seeds : int, default=2
        Number of starts (initial weights and batches) at each learning rate.
    n_steps : int or "auto", default="auto"
        Number of steps of each training.
    verbose : int or bool, default=0
        Whether to show a progress bar.
    max_time : float or None, default=None
        Number of seconds for the training with the learning rate and for the test,
        which takes fewer steps where its half of the time does not suffice. None means
        no limit.

    Returns
    -------
    LearningRateRange

    Raises
    ------
    TimeIsUp
        If the time does not even suffice for the fewest steps.
    """
    seconds = math.inf if max_time is None else SHARE_OF_TIME * max_time
    deadline, has_time = time.monotonic() + 2.0 * seconds, True
    tested = np.asarray(DEFAULT_RATES if rates is None else rates, dtype=np.float64)
    rng = np.random.RandomState(seed)
    seeds = [int(s) for s in rng.randint(np.iinfo(np.int32).max, size=n_seeds)]
    with recorded_warnings():  # dropped: the real training issues its own
        if n_steps == "auto":
            n_steps = _n_steps(estimator, rows, len(tested) * n_seeds)
        curves_of = partial(curves_at_rates, estimator, rows, tested, deadline=deadline)
        if max_time is not None:
            step_seconds = _step_seconds(curves_of, seeds[0])
            left = deadline - time.monotonic()
            if left < n_seeds * MIN_STEPS * step_seconds:
                raise TimeIsUp
            n_in_time = max(MIN_STEPS, (left - seconds) / (n_seeds * step_seconds))
            n_steps = int(min(int(n_steps), n_in_time))
        total = int(n_steps) * n_seeds
        with progress("Range test", total, "steps", verbose=verbose):
            curves = curves_of(seeds, int(n_steps))
        if max_time is not None:
            n_batches = -(-len(rows.X) // estimator.rows_per_batch(len(rows.X)))
            # A training takes one epoch or more.
            left = deadline - time.monotonic()
            has_time = n_seeds * n_batches * step_seconds <= left
        found = _result(tested, curves, len(rows.X))
        with progress("", 0, "", verbose=False):  # the fits count in no bar
            return compared_with_usual(estimator, rows, found, seeds, has_time=has_time)


def _step_seconds(curves_of: Any, seed: int) -> float:
    """Return the time of a step at all learning rates, with its share of the start."""
    start = time.monotonic()
    with progress("", 0, "", verbose=False):
        curves_of([seed], MIN_STEPS)
    # A step may be shorter than the clock's resolution.
    return max(time.monotonic() - start, 1e-9) / MIN_STEPS


def _n_steps(estimator: Trainable, rows: TrainingRows, n_trainings: int) -> int:
    n_steps = _N_STEPS
    if not rows.is_partial:
        n_batches = -(-len(rows.X) // estimator.rows_per_batch(len(rows.X)))
        real = n_batches * estimator.most_epochs(len(rows.X))
        if estimator.lr_schedule not in (None, "constant"):
            # A falling learning rate gets as far as half the steps at its maximum.
            real //= 2
        n_steps = min(n_steps, real)
    n_flops = max(flops_per_step(estimator, rows), 1.0) * n_trainings
    return max(MIN_STEPS, min(n_steps, int(MAX_FLOPS // n_flops)))


def _result(rates: np.ndarray, curves: RateCurves, n_rows: int) -> LearningRateRange:
    judgment = Judgment.of(curves)
    stable = rates[judgment.is_stable]
    largest = float(stable[-1]) if len(stable) else None
    fastest = None
    if largest is not None and judgment.fastest is not None:
        fastest = float(rates[judgment.fastest])
    suggestion, level, reason = suggest(rates, curves, judgment, largest, n_rows)
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
