"""First and last verified weights of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sknan._utils.thresholds import MARGIN, is_runaway
from sknan.nets.guard._snapshots import OptimizerSnapshot, Snapshot

# Numbers that change during training and that the weights do not determine.
_SAVED = ("n_steps", "largest_rates", "first_norm", "is_proposed", "_has_improved")


class VerifiedWeights:
    """Snapshots of the first and the last verified weights of a training.

    Weights are verified when the loss and the gradient of the next batch are finite
    with them.

    Parameters
    ----------
    modules : sequence of nn.Module
        Networks, and criteria that have weights.
    optimizers : sequence of Optimizer
        Optimizers whose moments belong to the weights.

    Attributes
    ----------
    first, last : Snapshot
        Weights from the start of training, and the last verified ones.
    n_steps : int
        Number of steps since the last snapshot.
    largest_rates : list of float
        Largest learning rate of each parameter group in these steps.
    first_norm : float
        Norm of the first weights; 1.0 if there are none.
    is_proposed : bool
        Whether the present weights wait to be verified by the next batch.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self.first = Snapshot(modules)
        self.last = Snapshot(modules)
        self.last.take_buffers()
        self._moments = OptimizerSnapshot(optimizers)
        self._count_from_here()
        self.first_norm = self.last.size() or 1.0
        self.is_proposed = False
        self._has_improved = True

    def _count_from_here(self) -> None:
        self.n_steps = 0
        self.largest_rates: list[float] = []

    def count_step(self, rates: list[float]) -> None:
        """Count a step with these learning rates of the parameter groups."""
        self.n_steps += 1
        if len(rates) != len(self.largest_rates):
            self.largest_rates = rates
        elif rates != self.largest_rates:
            self.largest_rates = [*map(max, rates, self.largest_rates)]

    def growth_per_step(self) -> float:
        """Return the relative movement of one step, assuming that it compounds."""
        # An optimizer may move more than once before its first step is done.
        n_steps = max(self.n_steps, 1)
        return float((1.0 + self.last.relative_distance()) ** (1.0 / n_steps) - 1)

    @property
    def has_shrunk(self) -> bool:
        """Whether the last verified weights have shrunk, for example by decay."""
        return MARGIN * self.last.size() < self.first.size()

    @property
    def is_last_trusted(self) -> bool:
        """Whether the last snapshot is a better place to go on from than the first."""
        distance = self.first.relative_distance(self.last)
        return self._has_improved and not is_runaway(distance)

    def accept(self) -> None:
        """Take a snapshot of the present weights and moments, which are verified."""
        self.last.take()
        self._moments.take()
        self._count_from_here()
        self._has_improved = True

    def restore(self) -> None:
        """Restore the last verified weights and moments."""
        self.last.restore()
        self._moments.restore()
        self.n_steps = 0

    def restore_nonfinite(self) -> None:
        """Restore tensors that are not finite, and the buffers of the forward pass."""
        self.last.restore_nonfinite()
        self.last.restore_buffers()

    def roll_back(self, *, to_first: bool) -> None:
        """Restore the last verified weights, or the first ones in their place."""
        if to_first:
            self.first.restore()
            self.last.take()
        self.last.restore()
        self._count_from_here()
        self._has_improved = False

    def start_here(self) -> None:
        """Make the present weights the first ones of the training."""
        self.first.take()
        self.last.take()
        self._count_from_here()
        self.is_proposed = False

    def state_dict(self) -> dict[str, Any]:
        """Return everything that :meth:`load_state_dict` needs."""
        return {
            **{name: getattr(self, name) for name in _SAVED},
            "first": self.first.state_dict(),
            "last": self.last.state_dict(),
            "moments": self._moments.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the state of the same modules and optimizers."""
        vars(self).update({name: state[name] for name in _SAVED})
        self.first.load_state_dict(state["first"])
        self.last.load_state_dict(state["last"])
        self._moments.load_state_dict(state["moments"])
