"""Training plan of one estimator, and the contract between estimators and the engine.

An estimator prepares a training and the engine runs it. Because the two are separate,
a search can collect the plans of many estimators and train their networks together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sknan._engine.listeners import SupportsCallbacks
from sknan._engine.scoring import ValidationScore
from sknan._engine.table_net import TableNet
from sknan._utils.outside import end_other_fits
from sknan._utils.random_state import resumed
from sknan._utils.threads import threads_for
from sknan.diagnosis._report import NonFiniteReport
from sknan.nets._batching import TensorTable
from sknan.nets._best_weights import BestWeights
from sknan.nets._time_limit import TimeLimit
from sknan.optim._learning_rate_schedule import LearningRateSchedule


class HoldOut(Protocol):
    """Choice of the rows that are held out of a training."""

    @property
    def n_valid(self) -> int:
        """Number of rows at the end that the user passed for validation."""

    @property
    def is_random(self) -> bool:
        """Whether each row may be held out, whatever the others are."""

    def of_part(self) -> HoldOut:
        """Return a random choice for a part of the rows."""

    def with_fold(self, fold: Any) -> HoldOut:
        """Return the choice for one of several networks; None for a single one."""

    def split(self, y: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
        """Return the numbers of the training and of the held-out rows."""


class TrainingRows(NamedTuple):
    """Validated rows in the form in which a network is trained on them.

    Parameters
    ----------
    X : ndarray of shape (n_samples, ...), float32
        Inputs.
    y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        Class codes, or targets in the units of training.
    weights : ndarray of shape (n_samples,) or None
        Positive sample weights.
    n_outputs : int
        Number of outputs that the network needs.
    is_partial : bool
        Whether the rows are for ``partial_fit``: one epoch at a constant learning rate,
        without early stopping.
    numbers : ndarray of shape (n_samples,)
        Row numbers in the data that the user passed.
    positions : ndarray of int of shape (n_rows_passed,)
        Position of each row that the user passed among these rows, where equal rows may
        have been merged; -1 for a row of weight 0.
    hold_out : HoldOut or None, default=None
        Choice of the rows to hold out. None for rows that are all trained on.
    """

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None
    n_outputs: int
    is_partial: bool
    numbers: np.ndarray
    positions: np.ndarray
    hold_out: HoldOut | None = None

    @property
    def n_train(self) -> int:
        """Number of rows without those that the user passed for validation."""
        return len(self.X) - (0 if self.hold_out is None else self.hold_out.n_valid)

    def split(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return the numbers of the training and of the held-out rows."""
        if self.hold_out is None:
            return torch.arange(len(self.X)), torch.zeros(0, dtype=torch.int64)
        return self.hold_out.split(self.y, seed)


class Trainable(SupportsCallbacks, Protocol):
    """Contract between an estimator and the engine that trains its network.

    ``_fit`` is all of ``fit``. To train the networks of several estimators together,
    the engine calls the parts of ``_fit`` instead: for each estimator
    ``_check_parameters``, ``_training_rows`` and ``_plan``; then it trains the networks
    of all plans; then, for each estimator, ``_finish``.

    Attributes
    ----------
    lr_schedule : str, callable or None
        Learning rate schedule. The range test runs fewer steps where the training has
        one, because it is at its highest learning rate for only part of the time.
    max_time : float or None
        Time limit of the training in seconds.
    nonfinite_reports_ : list of NonFiniteReport
        Failed steps of the training, set by ``_finish``.
    """

    lr_schedule: Any
    max_time: float | None
    nonfinite_reports_: list[NonFiniteReport]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters of the estimator by name, as in scikit-learn.

        Estimators of one class can be trained together if their parameters differ only
        in numbers that a stack keeps for each member (learning rate, ...).
        """

    def rows_per_batch(self, n_rows: int) -> int:
        """Return the batch size for a table of so many rows, held-out ones included."""

    def most_epochs(self, n_rows: int) -> int:
        """Return the maximum number of epochs for a table of so many rows."""

    def _check_parameters(self) -> None:
        """Raise an error that names the first invalid parameter, if there is one."""

    def _training_rows(self, X: Any, y: Any, **fit_params: Any) -> TrainingRows:
        """Validate the arguments of ``fit``, and convert them for the training.

        This sets the attributes that describe the data (``n_features_in_``, ...). For
        other estimators of the same kind on the same rows, the engine copies these
        attributes instead of calling this method again.
        """

    def _plan(
        self,
        rows: TrainingRows,
        fold: Any = None,
        table_of: TrainingPlan | None = None,
    ) -> TrainingPlan:
        """Build the network and everything else that the training needs.

        Parameters
        ----------
        rows : TrainingRows
            Rows to train on.
        fold : ValidationFold or None, default=None
            Rows to hold out for early stopping, instead of a random split.
        table_of : TrainingPlan or None, default=None
            Plan for the same rows and the same kind of module. The new plan shares its
            table, and the module is not called to find the shape of its output.

        Returns
        -------
        TrainingPlan
        """

    def _finish(self, plan: TrainingPlan) -> None:
        """Check the trained network, and set the fitted attributes.

        Raises
        ------
        NonFiniteTrainingError
            If the outputs for the training rows are not finite.
        """

    def _fit(self, X: Any, y: Any, **fit_params: Any) -> None:
        """Run all of ``fit``."""


@dataclass
class RestOfTraining:
    """State from which the loop of a net continues a training of a stack.

    Parameters
    ----------
    n_epochs_done : int
        Number of epochs that the stack has trained.
    state : dict of str to object or None
        State of the guarded training; None before its first step.
    schedule : LearningRateSchedule or None
        Schedule that depends on the losses or the time of the epochs.
    """

    n_epochs_done: int
    state: dict[str, Any] | None
    schedule: LearningRateSchedule | None

    def restore_training(self, net: TableNet) -> None:
        """Restore the state of the training, before its first step in the loop."""
        net._backup_ = None
        if self.state is not None and net._training_ is not None:
            net._training_.load_state_dict(self.state)
        if self.schedule is not None:
            net.schedule_ = self.schedule

    def run(self, net: TableNet, table: TensorTable) -> None:
        """Train the remaining epochs."""
        net._backup_ = self
        if net._average_ is not None:
            net._average_.show()
        with contextlib.suppress(KeyboardInterrupt):  # ends a training in skorch
            net.fit_loop(table, _routing_method="partial_fit")
        net.notify("on_train_end", X=table, y=None)
        if net._has_stopped_:
            end_other_fits()


@dataclass
class TrainingPlan:
    """Prepared training of an estimator's net.

    Parameters
    ----------
    net : TableNet
        Net that is initialized, or has been trained before.
    table : TensorTable
        Rows and targets as tensors.
    best : BestWeights or None
        Callback that keeps the weights of the best epoch on held-out rows; None without
        early stopping.
    score : ValidationScore or None
        Callback that records the score by which ``best`` chooses; None for the loss.
    time_limit : TimeLimit or None
        Callback that ends the training when its time is used up.
    split : callable
        Function of a seed that returns the indices of the training rows and of the
        held-out rows.
    split_seed : int
        Seed to call ``split`` with.
    random_states : tuple
        States of torch's generators (CPU, GPU) after the initialization of the net.
    num_threads : int or "auto"
        Number of threads to train with.
    is_partial : bool
        Whether to train for one epoch at a constant learning rate, without early
        stopping.
    keeps_moments : bool
        Whether the moments of the optimizer are kept for a continued training.
    positions : ndarray of int or None
        :attr:`TrainingRows.positions` for one of several networks; None for a single
        network.
    """

    net: TableNet
    table: TensorTable
    best: BestWeights | None
    score: ValidationScore | None
    time_limit: TimeLimit | None
    split: Callable[[int], tuple[Tensor, Tensor]]
    split_seed: int
    random_states: tuple[Tensor, Tensor | None]
    num_threads: int | str
    is_partial: bool
    keeps_moments: bool
    positions: np.ndarray | None

    @property
    def batch_size(self) -> int:
        """Number of rows in a full batch."""
        return min(int(self.net.batch_size), len(self.table))

    def held_out(self) -> np.ndarray | None:
        """Return the numbers of the rows passed that the net was not trained on.

        All rows that were merged with a held-out row are among them. Rows of weight 0
        are not. None without early stopping, and for a single network.
        """
        if self.positions is None or self.best is None:
            return None
        train, _ = self.split(self.net._split_seed_)
        is_trained = np.zeros(len(self.table) + 1, dtype=bool)
        is_trained[-1] = True  # at the position of rows of weight 0
        is_trained[train.numpy()] = True
        return np.flatnonzero(~is_trained[self.positions])

    def add_score(self) -> None:
        """Let the net record the score, before other callbacks read it."""
        if self.score is not None:
            self.net.callbacks_.insert(0, (self.score.monitor, self.score))

    def _split_table(self, seed: int) -> tuple[TensorTable, TensorTable]:
        """Return the training rows as a view and the held-out rows as a copy."""
        train, valid = self.split(seed)
        return self.table.view(train), self.table.subset(valid)

    def run_loop(self, rest: RestOfTraining | None = None) -> None:
        """Train the net by its own loop.

        Parameters
        ----------
        rest : RestOfTraining or None, default=None
            Rest of a training that has begun in a stack.
        """
        net, best = self.net, self.best
        n_flops = 3.0 * net.flops_per_row_ * self.batch_size
        try:
            if best is not None:
                net._split_seed_ = self.split_seed  # restoring a backup may change it
                net.train_split = lambda _: self._split_table(net._split_seed_)
                if rest is None:
                    best.initialize()
                    self.add_score()
                net.callbacks_.append(("best_weights", best))
            if self.time_limit is not None:
                net.callbacks_.append(("time_limit", self.time_limit))
            with (
                resumed(self.random_states, net.device),
                threads_for(n_flops, self.num_threads),
            ):
                if rest is not None:
                    rest.run(net, self.table)
                elif self.is_partial:
                    net.set_params(lr_schedule=None, warmup=0.0, max_epochs=1)
                    net.partial_fit(self.table)
                else:
                    net.fit(self.table)
        finally:
            net.train_split = None  # the closure holds the training rows
            added = (best, self.time_limit, self.score)
            net.callbacks_ = [c for c in net.callbacks_ if c[1] not in added]
