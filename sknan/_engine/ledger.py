"""Record of the steps of a stack: losses, gradient norms, clipping, learning rates.

All members are recorded side by side in arrays. A step of a small network is so short
that a few lines of Python for each member would take longer than the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sknan._engine.clipping import HUGE, Clipping
from sknan._engine.learning_rates import LearningRates
from sknan._engine.table_net import TableNet
from sknan._utils.member_arrays import MemberArrays
from sknan._utils.thresholds import OVERFLOWS_SQUARED
from sknan.nets._guarded_step import GuardedTraining
from sknan.nets._records import gradient_entries
from sknan.nets.guard._loss_watch import LossWatches
from sknan.optim._learning_rates import momentum_of

Floats = NDArray[np.float64]


class StepLedger(MemberArrays):
    """Losses, gradient norms, clip coefficients and learning rates of all members.

    Parameters
    ----------
    nets : sequence of TableNet
        Net of each member.
    n_steps : int
        Number of steps of the whole training.
    first_norms : ndarray of shape (n_members,), default=1.0
        Norms of the weights before the first step.

    Attributes
    ----------
    learning_rates : LearningRates
        Learning rates of all steps.
    clipping : Clipping
        Limits of the gradients.
    watches : LossWatches
        Comparison of losses and gradient norms with earlier ones.
    is_constant : ndarray of shape (n_members,), bool
        Whether the latest batch has one output for different rows.
    first_step_ratio : ndarray of shape (n_members,)
        Length of the first step that was longer than the norm of the weights, divided
        by that norm; 0 if there was none.
    """

    _arrays = (
        "losses",
        "norms",
        "coefficients",
        "n_taken",
        "n_clipped",
        "largest_norm",
        "first_step_ratio",
        "is_constant",
        "_reach",
    )

    def __init__(
        self, nets: Sequence[TableNet], n_steps: int, first_norms: Any = 1.0
    ) -> None:
        n_members = len(nets)
        self.clipping = Clipping(nets)
        self.watches = LossWatches(n_steps, n_members)
        self.learning_rates = LearningRates(nets, n_steps)
        self.n_taken = np.zeros(n_members, dtype=np.int64)
        self.n_clipped = np.zeros(n_members, dtype=np.int64)
        self.largest_norm = np.zeros(n_members)
        self.first_step_ratio = np.zeros(n_members)
        momenta = np.array([momentum_of(n.optimizer_.param_groups[0]) for n in nets])
        # Reach of a step at a learning rate of 1, relative to the weights.
        self._reach = 1.0 / ((1.0 - momenta) * first_norms)
        self.is_constant = np.zeros(n_members, dtype=bool)
        self.begin_epoch(0)

    def begin_epoch(self, n_batches: int) -> None:
        """Discard the record of the previous epoch, and make room for this one."""
        shape = (n_batches, len(self.n_taken))
        # NaN where no step was taken.
        self.losses, self.norms, self.coefficients = np.full((3, *shape), np.nan)

    def select(self, index: NDArray[np.int64]) -> StepLedger:
        """Return a copy for some of the members."""
        selected = super().select(index)
        selected.clipping = self.clipping.select(index)
        selected.watches = self.watches.select(index)
        selected.learning_rates = self.learning_rates.select(index)
        return selected

    def put(self, index: NDArray[np.int64], other: StepLedger) -> None:
        """Overwrite the entries of some members."""
        super().put(index, other)
        self.clipping.put(index, other.clipping)
        self.watches.put(index, other.watches)
        self.learning_rates.put(index, other.learning_rates)

    def find_suspects(self, losses: Floats, norms: Floats) -> NDArray[np.bool_]:
        """Return which members the guard would, or might, refuse a step of.

        Losses and norms have the shape (n_steps, n_members).
        """
        is_bad = are_refused(losses, norms)
        is_clipped = self.clipping.limits < HUGE
        if not is_clipped.all():
            is_bad |= self.watches.is_spike(losses, norms) & ~is_clipped
        is_bad |= self.watches.may_have_exploded(losses)
        suspects: NDArray[np.bool_] = is_bad.any(0)
        return suspects

    def record(
        self,
        first: int,
        losses: Floats,
        norms: Floats,
        coefficients: Floats,
        rates: Floats,
    ) -> None:
        """Record consecutive steps of an epoch.

        Parameters
        ----------
        first : int
            Number of the first step in the epoch, from 0.
        losses, norms, coefficients, rates : ndarray of shape (n_steps, n_members)
            Loss, gradient norm, clip coefficient and learning rate of each step; the
            first three are NaN where no step was taken.
        """
        stop = first + len(losses)
        self.losses[first:stop] = losses
        self.norms[first:stop] = norms
        self.coefficients[first:stop] = coefficients
        self.n_taken += (~np.isnan(norms)).sum(0)
        self.n_clipped += (coefficients < 1.0).sum(0)
        self.largest_norm = np.fmax(self.largest_norm, np.fmax.reduce(norms))
        latest = self.learning_rates.latest
        self.learning_rates.latest = np.where(np.isnan(norms[-1]), latest, rates[-1])
        if not self.first_step_ratio.all():
            ratios = rates * norms * coefficients * self._reach
            is_long = ratios > 1.0
            found = ratios[is_long.argmax(0), np.arange(len(self.n_taken))]
            is_new = is_long.any(0) & (self.first_step_ratio == 0.0)
            self.first_step_ratio = np.where(is_new, found, self.first_step_ratio)

    def record_recovered(
        self, k: int, i: int, training: GuardedTraining, step: dict[str, Any]
    ) -> None:
        """Record step ``i`` of the epoch of member ``k``, which its guard has taken."""
        if step.get("was_skipped"):
            return
        self.losses[i, k] = float(step["loss"].detach())
        self.norms[i, k] = training.norms[-1]
        self.coefficients[i, k] = training.coefficients[-1]
        self.n_clipped[k] += training.coefficients[-1] < 1.0
        self.largest_norm[k] = max(self.largest_norm[k], training.norms[-1])
        rate = training.rate or 0.0
        self.learning_rates.latest[k] = min(rate, self.learning_rates.cap[k])

    def resume(self, k: int, training: GuardedTraining, n_batches: int) -> None:
        """Continue a member with the limits of the guard that has recovered it.

        ``n_batches`` counts those whose steps were skipped too.
        """
        guard, rates = training.guard, self.learning_rates
        self.watches.set_watch(k, guard._watch)
        self.first_step_ratio[k] = guard._first_step_ratio
        self.n_taken[k] = training.n_steps
        rates.scale[k] = guard.lr_scale
        rates.cap[k] = min(guard.rate_caps, default=math.inf)
        rates.lag[k] = n_batches - training.n_steps
        self.clipping.clippers[k] = training.net.adaptive_clip_
        norm = guard.clip_norm(is_repeated=False)
        if norm is not None:
            self.clipping.limits[k] = min(norm, self.clipping.limits[k])

    def clipping_of(self, k: int) -> tuple[int, int, float]:
        """Return the numbers of steps and clipped steps, and the largest norm."""
        counts = int(self.n_taken[k]), int(self.n_clipped[k])
        return (*counts, float(self.largest_norm[k]))

    def end_epoch(
        self, n_rows: NDArray[np.int64], valid_losses: list[float] | None
    ) -> list[dict[str, Any]]:
        """Return the history row of each member, as its net itself would write it.

        Parameters
        ----------
        n_rows : ndarray of shape (n_batches,)
            Number of rows in the batch of each step.
        valid_losses : list of float or None
            Loss of each member on held-out rows; None if no rows are held out.

        Returns
        -------
        list of dict
        """
        is_taken = ~np.isnan(self.losses)
        weights = n_rows[:, None] * is_taken
        # numpy's sums could round differently for one member than for many.
        terms = np.where(is_taken, weights * self.losses, 0.0)
        totals, n_used = np.add.accumulate(terms)[-1], weights.sum(0)
        last_rates = self.learning_rates.latest
        medians = np.median(self.norms, axis=0)  # NaN where a step was not taken
        rows = []
        for k in range(len(self.n_taken)):
            taken = is_taken[:, k]
            row: dict[str, Any] = {
                "train_batch_count": len(n_rows),
                "train_loss": float(totals[k] / n_used[k]) if n_used[k] else math.nan,
                "n_recoveries": 0,
            }
            if taken.any():
                is_whole = bool(taken.all())
                median = medians[k] if is_whole else np.median(self.norms[taken, k])
                is_used = self.clipping.is_used[k]
                clipped = self.coefficients[taken, k] if is_used else None
                row |= gradient_entries(median, clipped)
            if not math.isnan(last_rates[k]):
                row["lr"] = float(last_rates[k])
            monitored = row["train_loss"]
            if valid_losses is not None:
                monitored = valid_losses[k]
                row |= {"valid_batch_count": 1, "valid_loss": monitored}
            self.learning_rates.update(k, monitored)
            rows.append(row)
        return rows


def are_refused(losses: Floats, norms: Floats) -> Any:
    """Return where a loss is not finite or a gradient norm is too large."""
    return ~(np.isfinite(losses) & (norms < OVERFLOWS_SQUARED))
