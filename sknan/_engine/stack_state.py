"""State of the training of a stack: members, data, tensors and record of the steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sknan._engine.grouping import n_rows_of
from sknan._engine.ledger import StepLedger
from sknan._engine.listeners import EpochBar
from sknan._engine.member import Member
from sknan._engine.plan import TrainingPlan
from sknan._engine.stack_rows import StackRows
from sknan._engine.state import Stack
from sknan._engine.verified import VerifiedStates
from sknan._utils.tree import tree_leaves, tree_map
from sknan.nets._batching import TensorTable, batch_bounds


class StackSnapshot(NamedTuple):
    """State of a stack before some of its steps.

    Parameters
    ----------
    rows : StackRows
        Weights, moments and buffers.
    ledger : StepLedger
        Record of the steps before.
    verified : VerifiedStates
        Verified states.
    random_states : list of Tensor
        State of each member's generator.
    n_steps : int
        Number of batches before.
    """

    rows: StackRows
    ledger: StepLedger
    verified: VerifiedStates
    random_states: list[Tensor]
    n_steps: int


class StackState:
    """Members of a stack with their data, their tensors and the record of their steps.

    Parameters
    ----------
    plans : list of TrainingPlan
        Plans of one :func:`plan_key`.
    tables : list of TensorTable
        Distinct tables of the plans.
    offsets : list of int
        For each plan, the number of rows that precede its table when the tables are
        joined.

    Attributes
    ----------
    members : list of Member
        Members that are still trained.
    finished : list of Member
        Members that have reached the end of their training, or failed.
    counts_epochs : bool
        Whether the progress bar counts epochs, which a listener does, and not
        trainings.
    n_reported : float
        Number of trainings (the sum of fractions) that the progress bar has counted.
    """

    def __init__(
        self,
        plans: list[TrainingPlan],
        tables: list[TensorTable],
        offsets: list[int],
    ) -> None:
        X, self.y = _joined([table.rows(slice(None)) for table in tables])
        self.X = X.numpy()
        net = plans[0].net
        self.n_train, _ = n_rows_of(plans[0])
        self.bounds = batch_bounds(self.n_train, net.batch_size, merge_lone_row=True)
        self.n_epochs = net.max_epochs
        self.members = [
            Member(plan, offset) for plan, offset in zip(plans, offsets, strict=True)
        ]
        self.stack = Stack(self.members)
        self.total_steps = len(self.bounds) * self.n_epochs
        nets = [plan.net for plan in plans]
        self.ledger = StepLedger(nets, self.total_steps, self.stack.sizes())
        self.verified = VerifiedStates(self.stack)
        row = torch.zeros(1, 1, 1, dtype=torch.int64)
        target = self.stack.prepare_target(self.targets(row), row.shape)
        self.target_bytes = sum(leaf.nbytes for leaf in tree_leaves(target))
        # Memory for the inputs of a batch, by batch size, as tensor and as array.
        self.inputs: dict[int, tuple[Tensor, NDArray[Any]]] = {}
        self.n_steps = 0
        self.orders = self.previous_orders = torch.zeros(len(plans), 0)
        self.finished: list[Member] = []
        self.counts_epochs = any(
            isinstance(callback, EpochBar) for _, callback in net.callbacks_
        )
        self.n_reported = 0.0

    def snapshot(self) -> StackSnapshot:
        """Return a copy of the state of the training."""
        index = np.arange(len(self.members))
        return StackSnapshot(
            self.stack.rows.clone(),
            self.ledger.select(index),
            self.verified.copy(),
            [member.generator.get_state() for member in self.members],
            self.n_steps,
        )

    def batch_of(self, rows: Tensor) -> tuple[Tensor, Any]:
        """Return inputs and targets of rows of one member, by their numbers."""
        return self.inputs_of(rows), self.targets(rows)

    def inputs_of(self, rows: Tensor) -> Tensor:
        """Return the inputs of rows (..., K, B), in memory that torch has aligned."""
        chosen = torch.from_numpy(self.X).index_select(0, rows.flatten())
        return chosen.view(*rows.shape, *chosen.shape[1:])

    def targets(self, rows: Tensor) -> Any:
        """Return the targets of rows (..., K, B)."""
        flat = rows.flatten()
        return tree_map(
            lambda leaf: leaf.index_select(0, flat).view(*rows.shape, *leaf.shape[1:]),
            self.y,
        )

    def resume(self) -> None:
        """Continue after recoveries, without the members that have failed."""
        self.stack.prepare_steps()
        self.keep(np.flatnonzero([member.error is None for member in self.members]))

    def keep(self, index: NDArray[np.int64]) -> None:
        """Remove all members but those at ``index``; those that failed are finished."""
        if len(index) == len(self.members):
            return
        self.finished += [m for m in self.members if m.error is not None]
        self.members = [self.members[k] for k in index]
        if not self.members:
            return
        self.inputs.clear()
        self.stack = self.stack.subset(index)
        self.ledger = self.ledger.select(index)
        self.verified = self.verified.select(index)
        self.orders = self.orders[index]
        if len(self.previous_orders):
            self.previous_orders = self.previous_orders[index]


def _joined(rows: list[tuple[Any, Any]]) -> Any:
    """Concatenate the rows of several tables; return those of one, which is no copy."""
    if len(rows) == 1:
        return rows[0]
    leaves = iter([torch.cat(c) for c in zip(*map(tree_leaves, rows), strict=True)])
    return tree_map(lambda _: next(leaves), rows[0])
