"""Learning rates of all steps of many networks."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from sknan._engine.table_net import TableNet
from sknan._utils.member_arrays import MemberArrays
from sknan.diagnosis._raised import result_of_trial
from sknan.optim._learning_rate_schedule import LearningRateSchedule

Floats = NDArray[np.float64]


def is_schedule_valid(net: TableNet, n_steps: int) -> bool:
    """Whether a schedule gives a valid factor for each step, as those by name do."""
    if not callable(net.lr_schedule):
        return True
    schedule = LearningRateSchedule(net.lr_schedule, net.warmup)
    schedule.start(n_steps)
    return result_of_trial(lambda: _factors(schedule)) is not None


def _factors(schedule: LearningRateSchedule) -> Floats:
    """Return the factor of each step of the training."""
    return np.array([schedule.factor(step) for step in range(schedule.total_steps)])


class LearningRates(MemberArrays):
    """Learning rates of all steps, with equal schedules computed once.

    Parameters
    ----------
    nets : sequence of TableNet
        Net of each member.
    n_steps : int
        Number of steps of the whole training.

    Attributes
    ----------
    base : ndarray of shape (n_members,)
        Learning rates that the user has set.
    scale, cap : ndarray of shape (n_members,)
        Factor and upper limit, by which a guard has lowered the learning rates.
    lag : ndarray of shape (n_members,)
        Number of skipped steps. A schedule depends on the steps that were taken.
    latest : ndarray of shape (n_members,)
        Learning rate of the last step that was taken; NaN before the first.
    """

    _arrays = ("base", "scale", "cap", "lag", "latest", "which")

    def __init__(self, nets: Sequence[TableNet], n_steps: int) -> None:
        groups = [net.optimizer_.param_groups[0] for net in nets]
        self.base = np.array([float(group["lr"]) for group in groups])
        self.scale = np.ones(len(nets))
        self.cap = np.full(len(nets), math.inf)
        self.lag = np.zeros(len(nets), dtype=np.int64)
        self.latest = np.full(len(nets), math.nan)
        # Schedules that depend on losses or on time, by position of the member.
        self.adaptive: dict[int, LearningRateSchedule] = {}
        row_numbers: dict[Hashable, int] = {}
        factors: list[Floats] = []
        self.schedules: list[LearningRateSchedule] = []
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
                self.schedules.append(schedule)
            which.append(row_numbers[key])
        self.factors = np.array(factors)
        self.which = np.array(which)

    def select(self, index: NDArray[np.int64]) -> LearningRates:
        """Return a copy for some of the members, with the same schedules."""
        selected = super().select(index)
        selected.adaptive = {
            new: self.adaptive[old]
            for new, old in enumerate(index.tolist())
            if old in self.adaptive
        }
        return selected

    def at(self, first: int, n_steps: int) -> Floats:
        """Return the learning rates of consecutive steps, (n_steps, n_members)."""
        steps = first + np.arange(n_steps)[:, None] - self.lag
        factors = self.factors[self.which, steps]
        for k, schedule in self.adaptive.items():
            factors[:, k] = [schedule.factor(step) for step in steps[:, k].tolist()]
        rates: Floats = np.minimum(self.base * self.scale * factors, self.cap)
        return rates

    def plan_rest(self, k: int, step: int, n_steps: int) -> None:
        """Run through the rest of the schedule of a member in so many steps."""
        schedule = self.schedules[self.which[k]]
        if k not in self.adaptive and step + n_steps < schedule.total_steps:
            self.adaptive[k] = copy.copy(schedule)
        if k in self.adaptive:
            self.adaptive[k].plan_rest(step, n_steps)

    def update(self, k: int, monitored: float) -> None:
        """Update the schedule of a member by the loss of an epoch."""
        if k in self.adaptive:
            self.adaptive[k].update(monitored)
