"""A training of an estimator's net, prepared but not begun.

Between the two a search can take many of them together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from sknan._engine.listeners import EpochBar, EpochTasks
from sknan._engine.table_net import TableNet
from sknan._utils.progress import is_shown, progress
from sknan._utils.random_state import resumed
from sknan._utils.threads import threads_for
from sknan.diagnosis._report import NonFiniteReport
from sknan.nets._batching import TensorTable
from sknan.nets._best_weights import BestWeights

__all__ = ["Trainable", "TrainingPlan", "TrainingRows", "trained_by"]


class TrainingRows(NamedTuple):
    """Rows that an estimator has validated, as its net is trained on them.

    Parameters
    ----------
    X : ndarray of shape (n_samples, ...), float32
        Inputs.
    y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        Class codes, or targets in the units of training.
    weights : ndarray of shape (n_samples,) or None
        Positive.
    n_outputs : int
        Width that the output should have.
    is_partial : bool
        Whether they are for one epoch at a constant rate, without early stopping.
    numbers : ndarray of shape (n_samples,)
        Which rows of the caller's data these are.
    """

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None
    n_outputs: int
    is_partial: bool
    numbers: np.ndarray


# Who trains a plan, if it can; if not, or if there is nobody, the plan runs by itself.
_trainer: ContextVar[Callable[[TrainingPlan], bool] | None] = ContextVar(
    "trainer", default=None
)


@contextlib.contextmanager
def trained_by(trainer: Callable[[TrainingPlan], bool]) -> Iterator[None]:
    """Let somebody else train what is fitted inside the block.

    Parameters
    ----------
    trainer : callable
        Trains a plan and returns True, or leaves it as it was and returns False.
    """
    token = _trainer.set(trainer)
    try:
        yield
    finally:
        _trainer.reset(token)


@dataclass
class TrainingPlan:
    """A training of an estimator's net: all is prepared, and nothing begun.

    Parameters
    ----------
    net : TableNet
        Initialized, or trained before.
    table : TensorTable
        Rows and targets as the net takes them.
    best : BestWeights or None
        What keeps the best epoch on rows that are held out, if that is wanted.
    split : callable
        Indices of the rows to train on and of those held out, by a seed.
    split_seed : int
        That seed.
    random_states : tuple
        Of torch's generators, where initialization has left them.
    num_threads : int or "auto"
        Threads to train with.
    is_partial : bool
        One epoch at a constant rate, without early stopping.
    """

    net: TableNet
    table: TensorTable
    best: BestWeights | None
    split: Callable[[int], tuple[Tensor, Tensor]]
    split_seed: int
    random_states: tuple[Tensor, Tensor | None]
    num_threads: int | str
    is_partial: bool

    @property
    def batch_size(self) -> int:
        """Rows in a full batch."""
        return min(int(self.net.batch_size), len(self.table))

    def _parted(self, seed: int) -> tuple[TensorTable, TensorTable]:
        """The rows to train on, which need no copy, and those that are held out."""
        train, valid = self.split(seed)
        return self.table.view(train), self.table.subset(valid)

    def run(self, tasks: EpochTasks | None = None) -> None:
        """Train the net by itself, and show a bar if it is verbose.

        Parameters
        ----------
        tasks : EpochTasks or None, default=None
            Who else is to hear of each epoch.
        """
        net = self.net
        verbose = net.verbose == 1 and not self.is_partial
        with progress("Training", net.max_epochs, "epochs", verbose=verbose):
            # Before the best epoch, which ends the training once there is no better.
            listeners = [("epoch_bar", EpochBar())] if is_shown() else []
            if tasks is not None:
                listeners.append(("epoch_tasks", tasks))
            trainer = None if listeners else _trainer.get()
            if trainer is not None and trainer(self):
                return
            net.callbacks_ += listeners
            try:
                self._run()
            finally:
                mine = [callback for _, callback in listeners]
                net.callbacks_ = [c for c in net.callbacks_ if c[1] not in mine]

    def _run(self) -> None:
        net, best = self.net, self.best
        n_flops = 3.0 * net.flops_per_row_ * self.batch_size
        try:
            if best is not None:
                net._split_seed_ = self.split_seed  # a backup may bring another one
                net.train_split = lambda _: self._parted(net._split_seed_)
                net.callbacks_.append(("best_weights", best.initialize()))
            with (
                resumed(self.random_states, net.device),
                threads_for(n_flops, self.num_threads),
            ):
                if self.is_partial:
                    net.set_params(lr_schedule=None, warmup=0.0, max_epochs=1)
                    net.partial_fit(self.table)
                else:
                    net.fit(self.table)
        finally:
            net.train_split = None  # it holds rows
            net.callbacks_ = [c for c in net.callbacks_ if c[1] is not best]


class Trainable(Protocol):
    """Contract between an estimator and the engine that trains its network.

    ``_fit`` is the whole of ``fit``. To train the networks of several estimators
    together, the engine calls its parts instead: ``_check_parameters``,
    ``_training_rows`` and ``_plan``, then trains the plans, then ``_finish``.
    """

    nonfinite_reports_: list[NonFiniteReport]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters of the estimator by name, as in scikit-learn."""

    def rows_per_batch(self, n_rows: int) -> int:
        """Batch size for a table of ``n_rows`` rows."""

    def _check_parameters(self) -> None:
        """Raise ``ValueError`` or ``TypeError`` for the first invalid parameter."""

    def _training_rows(self, X: Any, y: Any, **params: Any) -> TrainingRows:
        """Validate the data and bring it into the form of training."""

    def _plan(
        self, rows: TrainingRows, fold: Any = None, like: TrainingPlan | None = None
    ) -> TrainingPlan:
        """Build the network and everything else that the training needs."""

    def _finish(self, plan: TrainingPlan) -> None:
        """Check the trained network and set the fitted attributes."""

    def _fit(self, X: Any, y: Any, **params: Any) -> None:
        """Run all of ``fit``."""
