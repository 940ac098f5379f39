"""Record of the steps of a stack: losses, gradient norms, clipping, learning rates.

All members are recorded side by side in arrays. A step of a small network is so short
that a few lines of Python for each member would take longer than the step.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sknan._engine.table_net import TableNet
from sknan.diagnosis._thresholds import OVERFLOWS_SQUARED
from sknan.nets._records import gradient_entries
from sknan.nets.guard._loss_watch import LossWatches
from sknan.optim._learning_rate_schedule import LearningRateSchedule

Floats = NDArray[np.float64]

_HUGE = float(np.finfo(np.float64).max)


class StepLedger:
    """Losses, gradient norms, clip coefficients and learning rates of all members.

    Parameters
    ----------
    nets : sequence of TableNet
        Net of each member.
    n_steps : int
        Number of steps of the whole training.

    Attributes
    ----------
    learning_rates : LearningRates
        Learning rates of all steps.
    """

    def __init__(self, nets: Sequence[TableNet], n_steps: int) -> None:
        clips = [net.clip_norm for net in nets]
        # A finite number where there is no clipping: inf / inf would be NaN.
        self.clips = np.array([_HUGE if c is None else float(c) for c in clips])
        self.is_clipped = np.array([clip is not None for clip in clips])
        self.watches = LossWatches(n_steps, len(nets))
        self.learning_rates = LearningRates(nets, n_steps)
        self.n_clipped = np.zeros(len(nets), dtype=np.int64)
        self.largest_norm = np.zeros(len(nets))
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Discard the record of the previous epoch."""
        self.total_loss = np.zeros(len(self.clips))
        self.norms: list[Floats] = []
        self.coefficients: list[Floats] = []

    def keep(self, numbers: Sequence[int]) -> None:
        """Remove all other members.

        Parameters
        ----------
        numbers : sequence of int
            Positions of the members that remain.
        """
        index = np.asarray(numbers)
        self.clips, self.is_clipped = self.clips[index], self.is_clipped[index]
        self.watches.keep(index)
        self.learning_rates.keep(numbers)
        self.n_clipped = self.n_clipped[index]
        self.largest_norm = self.largest_norm[index]
        self.total_loss = self.total_loss[index]
        self.norms = [norms[:, index] for norms in self.norms]
        self.coefficients = [rows[:, index] for rows in self.coefficients]

    def clip_coefficients(self, norms: Floats) -> Floats | None:
        """Return the factors that bring gradients to their norm limits.

        Parameters
        ----------
        norms : ndarray of shape (n_members,)
            Gradient norms of a step.

        Returns
        -------
        ndarray of shape (n_members,) or None
            None if no norm exceeds its limit.
        """
        if not np.count_nonzero(norms > self.clips):  # faster than any()
            return None
        coefficients: Floats = self.clips / np.maximum(norms, self.clips)
        return coefficients

    def record(
        self,
        losses: Floats,
        norms: Floats,
        coefficients: Floats,
        n_rows: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Record consecutive steps, and find the members that may have failed.

        Parameters
        ----------
        losses, norms, coefficients : ndarray of shape (n_steps, n_members)
            Loss, gradient norm and clip coefficient of each step.
        n_rows : ndarray of shape (n_steps,)
            Number of rows in the batch of each step.

        Returns
        -------
        ndarray of shape (n_members,)
            Whether the guard would, or might, refuse a step of the member.
        """
        is_bad = are_refused(losses, norms)
        if not self.is_clipped.all():
            is_bad |= self.watches.is_spike(losses, norms) & ~self.is_clipped
        is_bad |= self.watches.may_have_exploded(losses)
        self.n_clipped += (coefficients < 1.0).sum(0)
        # A matrix product could round differently for one member than for many.
        self.total_loss += (n_rows[:, None] * losses).sum(0)
        np.maximum(self.largest_norm, norms.max(0), out=self.largest_norm)
        self.norms.append(norms)
        self.coefficients.append(coefficients)
        may_have_failed: NDArray[np.bool_] = is_bad.any(0)
        return may_have_failed

    def clipping_of(self, k: int) -> tuple[int, float]:
        """Return the number of clipped steps and the largest gradient norm of a member.

        Parameters
        ----------
        k : int
            Position of the member.

        Returns
        -------
        n_clipped : int
            Number of clipped steps.
        largest_norm : float
            Largest gradient norm.
        """
        return int(self.n_clipped[k]), float(self.largest_norm[k])

    def end_epoch(
        self, n_rows: int, learning_rates: Floats, valid_losses: list[float] | None
    ) -> list[dict[str, Any]]:
        """Return the history row of each member, as its net itself would write it.

        Parameters
        ----------
        n_rows : int
            Number of training rows.
        learning_rates : ndarray of shape (n_members,)
            Learning rates of the last step.
        valid_losses : list of float or None
            Loss of each member on held-out rows; None if no rows are held out.

        Returns
        -------
        list of dict
        """
        norms = np.concatenate(self.norms)
        coefficients = np.concatenate(self.coefficients)
        median_norms = np.median(norms, axis=0)
        rows = []
        for k, learning_rate in enumerate(learning_rates.tolist()):
            row: dict[str, Any] = {
                "train_batch_count": len(norms),
                "train_loss": float(self.total_loss[k] / n_rows),
                "n_recoveries": 0,
                **gradient_entries(
                    median_norms[k], coefficients[:, k] if self.is_clipped[k] else None
                ),
                "lr": learning_rate,
            }
            monitored = row["train_loss"]
            if valid_losses is not None:
                monitored = valid_losses[k]
                row |= {"valid_batch_count": 1, "valid_loss": monitored}
            self.learning_rates.update(k, monitored)
            rows.append(row)
        self.begin_epoch()
        return rows


def are_refused(losses: Floats, norms: Floats) -> Any:
    """Return where a loss is not finite or a gradient norm is too large.

    Parameters
    ----------
    losses, norms : ndarray of float
        Losses and gradient norms.

    Returns
    -------
    ndarray of bool
    """
    return ~(np.isfinite(losses) & (norms < OVERFLOWS_SQUARED))


def is_schedule_valid(net: TableNet, n_steps: int) -> bool:
    """Whether a user's schedule gives a valid factor for each step of a training.

    Parameters
    ----------
    net : TableNet
        Net with the schedule.
    n_steps : int
        Number of steps of the training.

    Returns
    -------
    bool
        True for the schedules that are chosen by name.
    """
    if not callable(net.lr_schedule):
        return True
    schedule = LearningRateSchedule(net.lr_schedule, net.warmup)
    schedule.start(n_steps)
    try:
        _factors(schedule)
    except Exception:  # the separate training raises it again
        return False
    return True


def _factors(schedule: LearningRateSchedule) -> Floats:
    """Return the factor of each step of the training."""
    return np.array([schedule.factor(step) for step in range(schedule.total_steps)])


class LearningRates:
    """Learning rates of all steps, with equal schedules computed once.

    Parameters
    ----------
    nets : sequence of TableNet
        Net of each member.
    n_steps : int
        Number of steps of the whole training.
    """

    def __init__(self, nets: Sequence[TableNet], n_steps: int) -> None:
        groups = [net.optimizer_.param_groups[0] for net in nets]
        self.base = np.array([float(group["lr"]) for group in groups])
        # Schedules that depend on the losses, by position of the member.
        self.adaptive: dict[int, LearningRateSchedule] = {}
        row_numbers: dict[Hashable, int] = {}
        factors: list[Floats] = []
        which = []
        for k, net in enumerate(nets):
            named = net.lr_schedule
            key = (named if isinstance(named, str) else id(named), repr(net.warmup))
            if key not in row_numbers:
                schedule = LearningRateSchedule(named, net.warmup)
                schedule.start(n_steps)
                if schedule.is_listening:
                    self.adaptive[k] = schedule
                    key = (k, "")
                row_numbers[key] = len(factors)
                factors.append(_factors(schedule))
            which.append(row_numbers[key])
        self.factors = np.array(factors)
        self.which = np.array(which)

    def keep(self, numbers: Sequence[int]) -> None:
        """Remove all other members."""
        index = np.asarray(numbers)
        self.base, self.which = self.base[index], self.which[index]
        before = self.adaptive
        self.adaptive = {
            new: before[old] for new, old in enumerate(numbers) if old in before
        }

    def at(self, first: int, n_steps: int) -> Floats:
        """Return the learning rates of consecutive steps, (n_steps, n_members)."""
        rates: Floats = self.base * self.factors[self.which, first : first + n_steps].T
        for k, schedule in self.adaptive.items():
            factors = [schedule.factor(first + i) for i in range(n_steps)]
            rates[:, k] = self.base[k] * np.array(factors)
        return rates

    def update(self, k: int, monitored: float) -> None:
        """Update the schedule of a member by the loss of an epoch."""
        if k in self.adaptive:
            self.adaptive[k].update(monitored)
