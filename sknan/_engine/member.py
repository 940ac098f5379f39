"""Member of a stack: the rows, history, best epoch and result of one training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sknan._engine.plan import TrainingPlan


class Member:
    """One training in a stack: its rows, history, best epoch and result.

    Parameters
    ----------
    plan : TrainingPlan
        Plan of the training, which has not begun.
    offset : int
        Number of rows that precede its table in the joined tables of the stack.

    Attributes
    ----------
    net : TableNet
        Initialized net.
    group : dict of str to object
        Parameter group of its optimizer.
    generator : Generator
        Generator of its random numbers.
    """

    def __init__(self, plan: TrainingPlan, offset: int) -> None:
        self.plan = plan
        self.net = plan.net
        self.group: dict[str, Any] = plan.net.optimizer_.param_groups[0]
        self.generator = torch.Generator()
        self.generator.set_state(plan.random_states[0])
        rows = torch.arange(len(plan.table)), torch.zeros(0, dtype=torch.int64)
        if plan.best is not None:
            plan.best.initialize()
            self.net._split_seed_ = plan.split_seed
            rows = plan.split(plan.split_seed)
        self.train, self.valid = rows[0] + offset, rows[1] + offset
        self.history: list[dict[str, Any]] = []
        self.best_weights: list[Tensor] | None = None

    @property
    def weights(self) -> list[Tensor]:
        """Parameters of the module."""
        return list(self.net.module_.parameters())

    @property
    def buffers(self) -> list[Tensor]:
        """Buffers of the module."""
        return list(self.net.module_.buffers())

    def end_epoch(
        self, row: dict[str, Any], weights: Callable[[], list[Tensor]]
    ) -> bool:
        """Add an epoch to the history, and keep its weights if they are the best.

        Parameters
        ----------
        row : dict of str to object
            Row of the epoch in the history.
        weights : callable
            Function that returns a copy of the present weights and buffers.

        Returns
        -------
        bool
            Whether the training continues: False when patience is exhausted.
        """
        self.history.append(row)
        best = self.plan.best
        if best is None:
            return True
        is_best, continues = best.update(len(self.history), row["valid_loss"])
        if is_best:
            self.best_weights = weights()
        return continues

    def finish(
        self, weights: list[Tensor], seconds: float, clipping: tuple[int, int, float]
    ) -> None:
        """Bring the net into the state that its separate training would leave.

        Parameters
        ----------
        weights : list of Tensor
            Last weights and buffers, which are used if there is no best epoch.
        seconds : float
            Time since the start of the stack.
        clipping : tuple of (int, int, float)
            Number of steps, number of clipped steps, and largest gradient norm.
        """
        net = self.net
        net._prepare_guard(is_new=True)
        dur = seconds / max(len(self.history), 1)
        net.history_ = type(net.history)(
            {"batches": [], "epoch": epoch, **row, "dur": dur}
            for epoch, row in enumerate(self.history, start=1)
        )
        with torch.no_grad():
            kept = self.best_weights or weights
            for tensor, value in zip([*self.weights, *self.buffers], kept, strict=True):
                tensor.copy_(value)
        self.clipping = clipping

    def warn(self) -> None:
        """Issue the warnings that the net itself issues at the end of a training."""
        self.net._warn_of_idle_clip(*self.clipping)
