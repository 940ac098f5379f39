"""Comparison of the suggestion of a range test with the usual learning rate.

The curves of a range test are short and at constant learning rates. They favor high
learning rates, and their noise moves the suggestion. It replaces the usual learning
rate only if whole trainings, with the estimator's own schedule, confirm it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sknan._engine.fit import train_stack
from sknan._engine.grouping import plan_key
from sknan._engine.plan import Trainable, TrainingPlan, TrainingRows
from sknan._engine.range_test.curves import (
    MAX_FLOPS,
    MIN_ROWS,
    SHARE_OF_TIME,
    drawn_rows,
    evaluated_loss,
    flops_per_step,
    held_out_table,
    trial_of,
)
from sknan._engine.range_test.judge import TOO_FEW, USUAL_RATE, counted
from sknan._engine.range_test.learning_rate_range import LearningRateRange
from sknan._utils.outside import unless
from sknan._utils.thresholds import FAR, MARGIN, N_ERRORS, N_TRIALS
from sknan.diagnosis._raised import may_be_transient

# Loss of a training that fails.
_FAILED = float(np.finfo(np.float32).max)


_NO_TIME = (
    "max_time is too short for trainings that confirm another learning rate. The "
    "suggestion is the default."
)


def compared_with_usual(
    estimator: Trainable,
    rows: TrainingRows,
    found: LearningRateRange,
    seeds: list[int],
    *,
    has_time: bool = True,
) -> LearningRateRange:
    """Return the result with the default rate, unless the suggestion is clearly better.

    A learning rate is clearly better if its loss on held-out rows is lower from each
    start, and on average by more than two standard errors over parts of the rows.

    Parameters
    ----------
    estimator : Trainable
        Estimator that has validated the rows. It is not changed.
    rows : TrainingRows
        Rows of the whole table.
    found : LearningRateRange
        Result of a range test.
    seeds : list of int
        Seeds of initial weights, rows and batches.
    has_time : bool, default=True
        Whether there is time for the trainings.

    Returns
    -------
    LearningRateRange
    """
    # Where no learning rate is stable, the batches may only be noisy.
    limit = (found.largest_stable or math.inf) / MARGIN
    is_usual_tested = found.rates[0] <= USUAL_RATE <= min(limit, found.rates[-1])
    if not (found.valid_losses.size and is_usual_tested):
        return found
    if found.suggestion == USUAL_RATE:
        return found
    if len(rows.X) < 2 * MIN_ROWS:
        if found.largest_stable is None:
            return found
        reason = f"{counted(len(rows.X), 'row')} {TOO_FEW}"
        return replace(found, suggestion=USUAL_RATE, confidence="low", reason=reason)
    if not has_time:
        return replace(found, suggestion=USUAL_RATE, confidence="low", reason=_NO_TIME)
    # The best learning rate of a whole training is often below that of its first steps:
    # on 90 synthetic tasks, R2 or accuracy is 0.022 below that of the best of 13
    # learning rates, and 0.021 below it with the second one.
    others = [found.suggestion, float(f"{found.suggestion / FAR**0.5:.2g}")]
    rates = [USUAL_RATE, *others]
    losses = np.stack([_losses(estimator, rows, rates, seed) for seed in seeds], 1)
    gains = losses[0] - losses[1:]
    means = gains.mean(axis=(1, 2))
    errors = gains.std(axis=(1, 2)) / math.sqrt(gains[0].size)
    is_better = (gains.mean(axis=2) > 0).all(axis=1) & (means > N_ERRORS * errors)
    usual, *ends = losses.mean(axis=(1, 2))
    if not is_better.any():
        reason = (
            "No other learning rate gives a loss on held-out rows that is lower, by "
            f"more than its noise, than that of the default, {usual:.3g}."
        )
        return replace(found, suggestion=USUAL_RATE, reason=reason)
    best = int(np.where(is_better, means, -np.inf).argmax())
    reason = (
        f"A training with it has a loss on held-out rows of {ends[best]:.3g}, against "
        f"{usual:.3g} with the default, {USUAL_RATE:g}."
    )
    return replace(found, suggestion=others[best], reason=reason)


def _losses(
    estimator: Trainable, rows: TrainingRows, rates: list[float], seed: int
) -> NDArray[np.float64]:
    """Return the losses of trainings on parts of the held-out rows, (n_rates, n)."""
    n_rows, rng = len(rows.X), np.random.RandomState(seed)
    train, valid = drawn_rows(rows, n_rows, rng)
    assert valid is not None
    if rows.hold_out is not None:  # early stopping needs rows of its own
        train = train._replace(hold_out=rows.hold_out.of_part())
    held_out = held_out_table(estimator, valid, seed)
    n_batches = -(-len(train.X) // estimator.rows_per_batch(n_rows))
    n_flops = flops_per_step(estimator, rows) * n_batches * len(rates)
    max_time = estimator.max_time
    n_epochs = min(estimator.most_epochs(n_rows), int(MAX_FLOPS // n_flops))
    trial = trial_of(
        estimator,
        seed,
        batch_size=estimator.rows_per_batch(n_rows),
        max_epochs=max(1, n_epochs),
        # The trainings with all learning rates, from two starts, share the time.
        max_time=max_time and SHARE_OF_TIME * max_time / (2 * len(rates)),
    )
    plans: list[TrainingPlan] = []
    for rate in rates:
        vars(trial)["lr"] = rate
        plans.append(trial._plan(train))
    ends: list[Any] = [None] * len(plans)
    if plan_key(plans[0]) is not None:
        ends = train_stack(plans, [0] * len(plans))
    index = np.array_split(np.arange(len(held_out)), N_TRIALS)
    parts = [held_out.rows(torch.from_numpy(part)) for part in index]
    losses = np.full((len(rates), N_TRIALS), _FAILED)
    for k, (plan, end) in enumerate(zip(plans, ends, strict=True)):
        try:
            plan.run_loop() if end is None else end()
            losses[k] = [evaluated_loss(plan.net, part) for part in parts]
        except unless(may_be_transient, Exception):  # failed, or a module raises
            pass
    return losses
