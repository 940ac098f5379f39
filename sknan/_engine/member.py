"""Member of a stack: the rows, history, best epoch and result of one training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from skorch.callbacks import EpochTimer
from torch import Tensor, nn

from sknan._engine.member_recovery import MemberRecovery
from sknan._engine.network_state import (
    NetworkState,
    read_state,
    write_state,
    write_tensors,
)
from sknan._engine.plan import RestOfTraining, TrainingPlan
from sknan._engine.table_net import is_best
from sknan._utils.outside import (
    end_other_fits,
    is_announced_stop,
    is_of_signal,
    is_orderly_stop,
    unless,
)
from sknan._utils.random_state import kept_random_states, resumed
from sknan.nets._records import warn_of_fall, warn_of_interrupt
from sknan.nets.recovery.raw_units import Conditioning


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
        Generator of its random numbers. Members that draw the same numbers share it.
    dropout_rates : tuple of float
        Probabilities of its dropout layers.
    train, valid : Tensor of int64
        Training rows and held-out rows in the joined tables.
    recovery : MemberRecovery or None
        Recovery from failed steps; None before the first one.
    error : Exception or None
        Exception that has ended the training.
    rest : RestOfTraining or None
        What the loop of its net is to do, after a listener changed more than numbers.
    is_stopped : bool
        Whether a listener has ended the training.
    is_interrupted : bool
        Whether Ctrl-C has ended the training.
    is_unannounced : bool
        Whether a callback of the user's has ended it.
    """

    def __init__(self, plan: TrainingPlan, offset: int) -> None:
        self.plan = plan
        self.net = plan.net
        self.offset = offset
        self.group: dict[str, Any] = plan.net.optimizer_.param_groups[0]
        self.set_random_state(plan.random_states[0])
        self.dropout_rates = tuple(
            m.p for m in plan.net.module_.modules() if isinstance(m, nn.Dropout)
        )
        rows = torch.arange(len(plan.table)), torch.zeros(0, dtype=torch.int64)
        if plan.best is not None:
            plan.best.initialize()
            self.net._split_seed_ = plan.split_seed
            plan.add_score()
            rows = plan.split(plan.split_seed)
        self.train, self.valid = rows[0] + offset, rows[1] + offset
        self.history: list[dict[str, Any]] = []
        listeners = [callback for _, callback in self.net.callbacks_]
        self.is_followed = any(type(c) is not EpochTimer for c in listeners)
        self.first_state: NetworkState | None = None
        self.best_weights: list[Tensor] | None = None
        self.recovery: MemberRecovery | None = None
        self.error: Exception | None = None
        self.rest: RestOfTraining | None = None
        self.is_stopped = False
        self.is_interrupted = False
        self.is_unannounced = False

    def set_random_state(self, state: Tensor) -> None:
        """Draw from a generator of its own, in this state."""
        self.generator = torch.Generator()
        self.generator.set_state(state)

    @property
    def conditioning(self) -> Conditioning | None:
        """Coordinates in which its steps are taken."""
        return None if self.recovery is None else self.recovery.training.conditioning

    @contextlib.contextmanager
    def has_state(self, state: NetworkState) -> Iterator[None]:
        """Set the state of the net inside the block, then restore it."""
        before = read_state(self.net)
        write_state(self.net, state)
        try:
            yield
        finally:
            write_state(self.net, before)

    def valid_loss(self, state: NetworkState, batch: tuple[Tensor, Any]) -> float:
        """Return the loss on held-out rows that the net itself computes.

        An exception becomes the error of the member.
        """
        with self.has_state(state):
            try:
                return float(self.net.validation_step(batch)["loss"])
            except unless(is_of_signal, Exception) as error:
                self.error = error
        return math.nan

    # -- listeners -----------------------------------------------------------------

    def begin(self) -> None:
        """Start the clock, and prepare the net for its listeners."""
        if self.plan.time_limit is not None:
            self.plan.time_limit.initialize()
        if self.is_followed:
            self.net._prepare_guard(is_new=True)
            self.first_state = read_state(self.net)

    def notify(self, method_name: str, state: NetworkState | None = None) -> None:
        """Notify the listeners, which may draw random numbers.

        They find the state in the net, which None leaves as it is.
        """
        table = self.plan.table
        kwargs: dict[str, Any] = {"X": table, "y": None}
        if "epoch" in method_name:
            train, valid = self.train - self.offset, self.valid - self.offset
            kwargs = {"dataset_train": table.view(train), "dataset_valid": None}
            if len(valid):
                kwargs["dataset_valid"] = table.view(valid)
        if state is not None:
            write_state(self.net, state)
        if self.net._average_ is not None:
            self.net._average_.show()
        try:
            with kept_random_states():
                self.net.notify(method_name, **kwargs)
        except KeyboardInterrupt as interrupt:
            if method_name != "on_epoch_end":
                raise
            self.is_stopped = True
            self.is_interrupted = not is_orderly_stop(interrupt)
            self.is_unannounced = not is_announced_stop(interrupt)
        except unless(is_of_signal, Exception) as error:
            self.error = error

    def recovery_of(self, n_steps: int) -> MemberRecovery:
        """Return the recovery from failed steps, which the first call creates."""
        if self.recovery is None:
            if self.first_state is not None:
                write_state(self.net, self.first_state)
            table = self.plan.table.view(self.train - self.offset)
            self.recovery = MemberRecovery(self.net, table, n_steps)
        return self.recovery

    def log_epoch(self, row: dict[str, Any]) -> None:
        """Add a row to the history."""
        for name in row.keys() & {"train_loss", "valid_loss"}:
            row[f"{name}_best"] = is_best(self.history, name, row[name])
        self.history.append(row)
        if self.recovery is not None:
            row["n_recoveries"] = self.recovery.n_reports(len(self.history))
        if self.is_followed:
            for name, value in row.items():
                self.net.history.record(name, value)
            self.net.history.new_batch()  # skorch's Checkpoint reads the last batch

    def end_epoch(self, weights: Callable[[], list[Tensor]], n_members: int) -> bool:
        """Keep the weights of the epoch if they are the best; return whether to go on.

        A member does not go on in the stack if a listener, patience or time ends its
        training, or if the loop of its net is to end it.
        """
        limit, best = self.plan.time_limit, self.plan.best
        is_ending = self.is_stopped or self.error is not None
        if limit is not None:
            is_ending |= not limit.allows_epoch(n_members)
        if best is not None and self.error is None:
            row = self.net.history[-1] if self.is_followed else self.history[-1]
            # An epoch that was interrupted before its score is never the best.
            score = row.get(best.monitor, math.nan)
            is_best, continues = best.update(len(self.history), score)
            if is_best:
                self.best_weights = weights()
            is_ending |= not continues
        is_ending |= len(self.history) >= self.net.max_epochs
        if is_ending:
            self.rest = None
        return not is_ending and self.rest is None

    def finish(
        self, state: NetworkState, seconds: float, clipping: tuple[int, int, float]
    ) -> None:
        """Take over the last state and the history.

        ``clipping`` has the numbers of steps and of clipped steps, and the largest
        norm.
        """
        net, recovery = self.net, self.recovery
        if self.rest is not None:
            return
        if recovery is None:
            net._prepare_guard(is_new=True)
        else:
            training = recovery.training
            training.n_steps, training.n_clipped, training.largest_norm = clipping
        if not self.is_followed:
            dur = seconds / max(len(self.history), 1)
            net.history_ = type(net.history)(
                {"batches": [{}], "epoch": epoch, **row, "dur": dur}
                for epoch, row in enumerate(self.history, start=1)
            )
        if not self.plan.keeps_moments:
            state = state._replace(n_steps=0)
        write_state(net, state)
        if net._average_ is not None:
            net._average_.show()
        self.clipping = clipping

    def conclude(self) -> None:
        """Bring the net into the state that its separate training would leave.

        Raises
        ------
        Exception
            If the training has failed.

        Warns
        -----
        DivergenceWarning, UserWarning
            As at the end of a separate training.
        """
        if self.error is not None:
            raise self.error
        if self.rest is not None:
            self._train_in_loop(self.rest)
            return
        if self.recovery is None:
            warn_of_fall(self.net, self.plan.table[: self.plan.batch_size])
            self.net._warn_of_idle_clip(*self.clipping)
        else:
            with resumed((self.generator.get_state(), None), "cpu"):
                self.net._end_training(0, is_interrupted=self.is_interrupted)
        self.net._is_untrained_ = False
        if self.is_followed:
            self.notify("on_train_end")
            if self.error is not None:
                raise self.error
        if self.best_weights is not None:
            write_tensors(self.net, self.best_weights)
        if self.is_interrupted:
            end_other_fits()
        if self.is_interrupted or self.is_unannounced:
            has_best = self.best_weights is not None
            n_epochs = self.net.max_epochs
            warn_of_interrupt(self.net, 0, n_epochs, has_best=has_best)

    def _train_in_loop(self, rest: RestOfTraining) -> None:
        """Continue the training by the loop of the net."""
        plan, best = self.plan, self.plan.best
        plan.random_states = self.generator.get_state(), None
        if best is not None:
            present = read_state(self.net)
            best.keep_weights_of(self.net)
            if self.best_weights is not None:
                write_tensors(self.net, self.best_weights)
                best.keep_weights_of(self.net)
                write_state(self.net, present)
        plan.run_loop(rest)
