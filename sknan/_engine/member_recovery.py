"""Guarded training of a member of a stack, for the steps that fail in the stack.

The step is taken by the guarded training of the member's own net, with the state that
the member has in the stack. The member then continues in the stack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sknan._engine.network_state import NetworkState, read_state, write_state
from sknan._engine.rate_trials import RecoverySearch
from sknan._engine.table_net import TableNet
from sknan._utils.random_state import random_states, resumed
from sknan.diagnosis._report import NonFiniteReport
from sknan.nets._batching import TensorBatches, TensorTable
from sknan.nets._guarded_step import GuardedTraining
from sknan.nets.guard._loss_watch import LossWatch
from sknan.nets.recovery.rate_trials import RateTrials


class _MemberBatches(TensorBatches):
    """Batches of a member, for reports that name rows of the user's data."""

    numbers: Tensor | None = None

    @property
    def latest(self) -> Tensor | None:
        """Row numbers of the present batch."""
        return self.numbers


@dataclass
class FailedStep:
    """Step of a member that failed, or might have failed, in the stack.

    Parameters
    ----------
    batch : tuple of (Tensor, Tensor)
        Inputs and targets of the step.
    numbers : Tensor of int64
        Row numbers of the batch in the user's data.
    epoch, batch_number : int
        Number of the epoch, and of the batch in it, from 1.
    n_taken : int
        Number of steps that the member has taken.
    state, verified : NetworkState
        State before the step, and the last verified state.
    n_since : int
        Number of steps since the last verified state.
    is_proposed, has_improved : bool
        Whether the state is to be verified by the next step, and whether a state was
        verified since the last roll back.
    watch : LossWatch
        Watch of the member before the step.
    first_step_ratio : float
        Length of the first long step, relative to the weights.
    adaptive_clip : object
        Adaptive clipping of the member before the step, or None.
    random_state : Tensor
        State of the member's generator before the step.
    """

    batch: tuple[Any, Any]
    numbers: Tensor
    epoch: int
    batch_number: int
    n_taken: int
    state: NetworkState
    verified: NetworkState
    n_since: int
    is_proposed: bool
    has_improved: bool
    watch: LossWatch
    first_step_ratio: float
    adaptive_clip: Any
    random_state: Tensor


class MemberRecovery:
    """Guarded training of one member, which takes the steps that fail in the stack.

    Parameters
    ----------
    net : TableNet
        Net of the member, with its first weights.
    table : TensorTable
        Training rows of the member.
    n_steps : int
        Number of steps of the whole training.

    Attributes
    ----------
    training : GuardedTraining
        Training of the net.
    """

    def __init__(self, net: TableNet, table: TensorTable, n_steps: int) -> None:
        self.net = net
        self.batches = _MemberBatches(table, min(int(net.batch_size), len(table)))
        net._prepare_guard(is_new=True)
        net.schedule_.start(n_steps)
        net._has_stopped_ = False
        with torch.enable_grad():
            self.training = net._training_ = GuardedTraining(
                net, self.batches, n_steps, is_fresh=net._is_fresh_
            )

    def n_reports(self, epoch: int) -> int:
        """Return the number of reports on failed steps in an epoch."""
        return sum(report.epoch == epoch for report in self.net.guard_.reports)

    def load(self, failed: FailedStep) -> None:
        """Take over the state of the member from the stack."""
        net, training, guard = self.net, self.training, self.net.guard_
        if training.n_steps != failed.n_taken:
            guard._n_skipped_batches = 0  # steps were taken in the stack
        self.batches.numbers = failed.numbers
        training.n_steps = failed.n_taken
        training.batch_number = failed.batch_number
        if len(net.history) != failed.epoch:
            rows = [{"batches": [], "epoch": i + 1} for i in range(failed.epoch)]
            net.history_ = type(net.history)(rows)
        net.adaptive_clip_ = failed.adaptive_clip
        weights = guard.weights
        write_state(net, failed.verified)
        weights.last.take()
        weights._moments.take()
        weights.n_steps = failed.n_since
        weights.is_proposed = failed.is_proposed
        weights._has_improved = failed.has_improved
        write_state(net, failed.state)
        guard._watch = failed.watch
        guard._first_step_ratio = failed.first_step_ratio
        self.random_state = failed.random_state

    def verified(self) -> NetworkState:
        """Return the last verified state."""
        weights = self.net.guard_.weights
        present = read_state(self.net)
        weights.restore()
        verified = read_state(self.net)
        write_state(self.net, present)
        return verified

    def run(self, action: Callable[[], Any]) -> Any:
        """Call a function with gradients and with the member's random numbers."""
        with torch.enable_grad(), resumed((self.random_state, None), "cpu"):
            try:
                return action()
            finally:
                self.random_state = random_states("cpu")[0]

    def step(self, failed: FailedStep) -> RecoverySearch:
        """Return a search that takes the failed step, and recovers."""
        trials = RateTrials(self.training, failed.batch, {})
        return RecoverySearch(self, trials, self.training.search_step(trials))

    def answer_to_weights(self, failed: FailedStep) -> RecoverySearch | None:
        """Return a search that answers unusable weights, or None if they are usable.

        Parameters
        ----------
        failed : FailedStep
            Last batch of the epoch, and the state after its step.
        """
        net = self.net

        def find_fault() -> NonFiniteReport | None:
            output = net.evaluation_step((failed.batch[0], None))
            return net._find_fault_of_epoch(failed.batch, {"y_pred": output})

        report = self.run(find_fault)
        if report is None:
            return None
        trials = RateTrials(self.training, failed.batch, {})
        answer = self.training.search_answer(report, failed.batch)
        return RecoverySearch(self, trials, answer)
