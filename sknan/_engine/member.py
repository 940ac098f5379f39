"""One of the trainings that take their steps together: its rows, epochs and end."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sknan._engine.plan import TrainingPlan

__all__ = ["Slice"]


class Slice:
    """What one training of a stack has for itself.

    Parameters
    ----------
    plan : TrainingPlan
        Prepared, and not begun.
    offset : int
        Where its rows begin among those of the stack.
    """

    def __init__(self, plan: TrainingPlan, offset: int) -> None:
        net = plan.net
        self.plan = plan
        self.net: Any = net
        self.group = net.optimizer_.param_groups[0]
        self.generator = torch.Generator()
        self.generator.set_state(plan.random_states[0])
        rows = torch.arange(len(plan.table)), torch.zeros(0, dtype=torch.int64)
        if plan.best is not None:
            net._split_seed_ = plan.split_seed
            rows = plan.split(plan.split_seed)
        self.train, self.valid = rows[0] + offset, rows[1] + offset
        self.history: list[dict[str, Any]] = []
        self.best_loss, self.best_epoch, self.last_gain = math.inf, 0, 0
        self.best_weights: list[Tensor] | None = None

    @property
    def weights(self) -> list[Tensor]:
        return list(self.net.module_.parameters())

    @property
    def buffers(self) -> list[Tensor]:
        return list(self.net.module_.buffers())

    def keeps(self, weights: Callable[[], list[Tensor]]) -> bool:
        """Keep the epoch's weights if they are the best; whether patience is left."""
        best = self.plan.best
        if best is None:
            return True
        epoch, loss = len(self.history), self.history[-1]["valid_loss"]
        if math.isfinite(loss) and loss <= self.best_loss:
            if loss < self.best_loss:
                self.last_gain = epoch
            self.best_loss, self.best_epoch = loss, epoch
            self.best_weights = weights()
        return epoch - self.last_gain < best.patience

    def finish(
        self, weights: list[Tensor], seconds: float, clipping: dict[str, Any]
    ) -> None:
        """Leave the net as its own training would have left it."""
        net, best = self.net, self.plan.best
        net._prepare_guard(is_new=True)
        dur = seconds / max(len(self.history), 1)
        net.history_ = type(net.history)(
            {"batches": [], "epoch": epoch, **entry, "dur": dur}
            for epoch, entry in enumerate(self.history, start=1)
        )
        if best is not None:
            best.initialize()
            best.best_epoch_ = self.best_epoch or None
            best.best_score_ = self.best_loss
        with torch.no_grad():
            kept = self.best_weights or weights
            for tensor, value in zip([*self.weights, *self.buffers], kept, strict=True):
                tensor.copy_(value)
        self.clipping = clipping

    def warn(self) -> None:
        """Say what the net itself would have said at the end."""
        training: Any = SimpleNamespace(**self.clipping)
        if self.net._is_clip_idle(training):
            self.net._warn_of_idle_clip(training)
