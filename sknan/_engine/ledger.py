"""What the slices of a stack note of each step, side by side.

In a small network a step is short, and a few lines of Python for each slice would take
longer than its numbers do.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sknan.diagnosis._thresholds import OVERFLOWS_SQUARED
from sknan.nets.guard._loss_watch import LossWatches
from sknan.optim._schedules import LearningRateSchedule

__all__ = ["StepLedger", "has_sound_schedule"]

Floats = NDArray[np.float64]


_HUGE = float(np.finfo(np.float64).max)


class StepLedger:
    """Losses, gradient norms, clip coefficients and rates of the slices' steps.

    Parameters
    ----------
    nets : sequence of TableNet
        The network of each slice.
    n_steps : int
        Steps of the whole training.
    """

    def __init__(self, nets: Sequence[Any], n_steps: int) -> None:
        clips = [net.clip_norm for net in nets]
        # Numbers, so that the quotient of two of them is one.
        self.clips = np.array([_HUGE if c is None else float(c) for c in clips])
        self.is_clipped = np.array([clip is not None for clip in clips])
        self.watches = LossWatches(n_steps, len(nets))
        self._rates = _Rates(nets, n_steps)
        self.n_clipped = np.zeros(len(nets), dtype=np.int64)
        self.largest_norm = np.zeros(len(nets))
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget the steps of the epoch before."""
        self.total_loss = np.zeros(len(self.clips))
        self.norms: list[Floats] = []
        self.coefficients: list[Floats] = []

    def keep(self, numbers: Sequence[int]) -> None:
        """Let all other slices go."""
        index = np.asarray(numbers)
        self.clips, self.is_clipped = self.clips[index], self.is_clipped[index]
        self.watches.keep(index)
        self._rates.keep(numbers)
        self.n_clipped = self.n_clipped[index]
        self.largest_norm = self.largest_norm[index]
        self.total_loss = self.total_loss[index]
        self.norms = [norms[:, index] for norms in self.norms]
        self.coefficients = [rows[:, index] for rows in self.coefficients]

    def rates(self, first: int, n_steps: int) -> Floats:
        """Rates of some steps from a first one on: (n_steps, n_slices)."""
        return self._rates.at(first, n_steps)

    def coefficients_of(self, norms: Floats) -> Floats | None:
        """By what the gradients of a step are multiplied; None if by nothing."""
        if not np.count_nonzero(norms > self.clips):  # quicker than any()
            return None
        coefficients: Floats = self.clips / np.maximum(norms, self.clips)
        return coefficients

    def take(
        self,
        losses: Floats,
        norms: Floats,
        coefficients: Floats,
        n_rows: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Note some steps.

        Parameters
        ----------
        losses, norms, coefficients : ndarray of shape (n_steps, n_slices)
            Of each step.
        n_rows : ndarray of shape (n_steps,)
            In the batch of each step.

        Returns
        -------
        ndarray of shape (n_slices,)
            Of which slices the guard would refuse a step, or might.
        """
        is_bad: Any = ~(np.isfinite(losses) & (norms < OVERFLOWS_SQUARED))
        if not self.is_clipped.all():
            is_bad |= self.watches.is_spike(losses, norms) & ~self.is_clipped
        is_bad |= self.watches.may_have_exploded(losses)
        self.n_clipped += (coefficients < 1.0).sum(0)
        # Not by a product of matrices: that of one slice may round as others do.
        self.total_loss += (n_rows[:, None] * losses).sum(0)
        np.maximum(self.largest_norm, norms.max(0), out=self.largest_norm)
        self.norms.append(norms)
        self.coefficients.append(coefficients)
        refused: NDArray[np.bool_] = is_bad.any(0)
        return refused

    def clipping_of(self, k: int) -> dict[str, Any]:
        """How often a slice has been clipped, and its largest norm."""
        return {
            "n_clipped": int(self.n_clipped[k]),
            "largest_norm": float(self.largest_norm[k]),
        }

    def end_epoch(
        self, n_rows: int, rates: Floats, valid_losses: list[float] | None
    ) -> list[dict[str, Any]]:
        """What each net itself would write into its history at the end of an epoch."""
        norms = np.concatenate(self.norms)
        coefficients = np.concatenate(self.coefficients)
        usual_norms = np.median(norms, axis=0)
        entries = []
        for k, rate in enumerate(rates.tolist()):
            entry: dict[str, Any] = {
                "train_batch_count": len(norms),
                "train_loss": float(self.total_loss[k] / n_rows),
                "n_recoveries": 0,
                "grad_norm": float(usual_norms[k]),
            }
            if self.is_clipped[k]:
                own = coefficients[:, k]
                clipped = own[own < 1.0]
                entry["clip_share"] = len(clipped) / len(own)
                entry["clip_coefficient"] = (
                    float(clipped.mean()) if len(clipped) else 1.0
                )
            entry["lr"] = rate
            monitored = entry["train_loss"]
            if valid_losses is not None:
                monitored = valid_losses[k]
                entry |= {"valid_batch_count": 1, "valid_loss": monitored}
            self._rates.update(k, monitored)
            entries.append(entry)
        self.begin_epoch()
        return entries


def has_sound_schedule(net: Any, n_steps: int) -> bool:
    """Whether no step of a training can fail for a schedule of the user's own."""
    if not callable(net.lr_schedule):
        return True  # by name
    schedule = LearningRateSchedule(net.lr_schedule, net.warmup)
    schedule.start(n_steps)
    try:
        _factors(schedule)
    except Exception:  # told when this training is run by itself
        return False
    return True


def _factors(schedule: LearningRateSchedule) -> Floats:
    """Factor of each step of the training."""
    return np.array([schedule.factor(step) for step in range(schedule.total_steps)])


class _Rates:
    """The rates of all steps: schedules that are alike are worked out once.

    Parameters
    ----------
    nets : sequence of TableNet
        The network of each slice.
    n_steps : int
        Steps of the whole training.
    """

    def __init__(self, nets: Sequence[Any], n_steps: int) -> None:
        groups = [net.optimizer_.param_groups[0] for net in nets]
        self.lrs = np.array([float(group["lr"]) for group in groups])
        self.listening: dict[int, LearningRateSchedule] = {}
        places: dict[Hashable, int] = {}
        factors: list[Floats] = []
        which = []
        for k, net in enumerate(nets):
            named = net.lr_schedule
            key = (named if isinstance(named, str) else id(named), repr(net.warmup))
            if key not in places:
                schedule = LearningRateSchedule(named, net.warmup)
                schedule.start(n_steps)
                if schedule.is_listening:
                    self.listening[k] = schedule
                    key = (k, "")
                places[key] = len(factors)
                factors.append(_factors(schedule))
            which.append(places[key])
        self.factors = np.array(factors)
        self.which = np.array(which)

    def keep(self, numbers: Sequence[int]) -> None:
        """Let all other slices go."""
        index = np.asarray(numbers)
        self.lrs, self.which = self.lrs[index], self.which[index]
        listening = self.listening
        self.listening = {
            new: listening[old] for new, old in enumerate(numbers) if old in listening
        }

    def at(self, first: int, n_steps: int) -> Floats:
        """Rates of some steps: (n_steps, n_slices)."""
        rates: Floats = self.lrs * self.factors[self.which, first : first + n_steps].T
        for k, schedule in self.listening.items():
            factors = [schedule.factor(first + i) for i in range(n_steps)]
            rates[:, k] = self.lrs[k] * np.array(factors)
        return rates

    def update(self, k: int, monitored: float) -> None:
        """Tell a slice's schedule the loss of an epoch."""
        if k in self.listening:
            self.listening[k].update(monitored)
