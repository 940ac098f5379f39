"""Training of a stack: the epochs of many networks that take their steps together."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sknan._engine.following import notify_listeners
from sknan._engine.recovery import (
    add_latest_batches,
    judge_results,
    recover_steps,
    recover_weights,
)
from sknan._engine.stack_state import StackSnapshot, StackState
from sknan._engine.table_net import rows_per_evaluation
from sknan._utils.outside import is_of_memory, is_of_signal, unless
from sknan._utils.progress import advance, is_shown
from sknan._utils.tree import tree_map
from sknan.diagnosis._raised import may_be_transient

# Bytes of prepared targets. Batches up to this size are prepared and judged together.
_SPAN_SIZE = 2**20


class StepRaised(Exception):
    """Failure of a step of a stack because a module raised an exception."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class StepRecord(NamedTuple):
    """Numbers of consecutive steps, as arrays of shape (n_steps, n_members).

    Parameters
    ----------
    losses, norms, coefficients, rates : ndarray
        Loss, gradient norm, clip coefficient and learning rate of each step; the first
        three are NaN where no step was taken.
    """

    losses: NDArray[np.float64]
    norms: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    rates: NDArray[np.float64]


class StackTraining(StackState):
    """Epochs of a stack; the parameters are those of :class:`StackState`."""

    def run(self) -> None:
        """Train all members until they end or fail."""
        self.start = time.perf_counter()
        for member in self.members:
            member.begin()
        notify_listeners(self, "on_train_begin")
        for _ in range(self.n_epochs):
            notify_listeners(self, "on_epoch_begin")
            if self.members:
                self._train_epoch()
            if not self.members:
                return
        self._finish(range(len(self.members)))

    def interrupt(self) -> None:
        """Finish all members with their last verified weights."""
        self.stack.rows = self.verified.rows
        for member in self.members:
            member.is_interrupted = True
        self._finish(range(len(self.members)))

    def _finish(self, numbers: Sequence[int]) -> None:
        """Finish the members at these positions."""
        seconds = time.perf_counter() - self.start
        judge_results(self, numbers)
        for k in numbers:
            member = self.members[k]
            add_latest_batches(self, k, len(self.bounds))
            clipping = self.ledger.clipping_of(k)
            member.finish(self.stack.state_of(k), seconds, clipping)
            self.finished.append(member)

    def _train_epoch(self) -> None:
        self.previous_orders, self.orders = self.orders, self._row_orders()
        self.ledger.begin_epoch(len(self.bounds))
        first = 0
        for span in self._spans(len(self.members)):
            self._train_span(first, span)
            if not self.members:
                return
            first += len(span)
        self._end_epoch()

    def _row_orders(self) -> Tensor:
        """Return the rows of an epoch in the random order of each member, (K, n_train).

        Members that draw the same numbers share a generator, and draw once. This is the
        case in a search over learning rates.
        """
        generators: dict[Hashable, torch.Generator] = {}
        drawn: dict[torch.Generator, Tensor] = {}
        for member in self.members:
            state = member.generator.get_state().numpy().tobytes()
            key = state, member.dropout_rates
            member.generator = generators.setdefault(key, member.generator)
        self.stack.use_generators()
        for generator in generators.values():
            drawn[generator] = torch.randperm(self.n_train, generator=generator)
        return torch.stack(
            [m.train.index_select(0, drawn[m.generator]) for m in self.members]
        )

    def _spans(self, n_members: int) -> list[list[tuple[int, int]]]:
        """Return spans: consecutive batches that are prepared, and judged, together."""
        n_bytes = n_members * self.target_bytes
        spans: list[list[tuple[int, int]]] = []
        for start, stop in self.bounds:
            if spans and (stop - spans[-1][0][0]) * n_bytes <= _SPAN_SIZE:
                spans[-1].append((start, stop))
            else:
                spans.append([(start, stop)])
        return spans

    # -- steps ---------------------------------------------------------------------

    def _train_span(self, first: int, span: list[tuple[int, int]]) -> None:
        """Make the steps of a span; members that may have failed make them again.

        ``first`` is the number of the first batch of the span in its epoch.
        """
        before = self.snapshot()
        error = None
        try:
            record = self.run_span(span)
        except StepRaised as raised:
            error = raised.error
            if self._is_ended_by(error):
                return
            suspects = np.arange(len(self.members))
        else:
            suspects = self._judge(before, first, record)
        if len(suspects):
            has_failed = self._train_subset(suspects, before, first, span)
            if error is not None and not has_failed:
                self._end_by(error)
            self.resume()

    def _is_ended_by(self, error: Exception) -> bool:
        """End a single member if a repetition of its step could hide the error."""
        if len(self.members) > 1 or not may_be_transient(error):
            return False
        self.members[0].error = error
        self.resume()
        return True

    def _end_by(self, error: Exception) -> None:
        """End all members by an error from outside, which no repetition raises."""
        if not is_of_memory(error):  # to which a stack may have led
            for member in self.members:
                member.error = member.error or error

    def run_span(self, span: list[tuple[int, int]]) -> StepRecord:
        """Make the steps of a span, without checks.

        Raises
        ------
        StepRaised
            If a module raises.
        """
        stack, clipping = self.stack, self.ledger.clipping
        losses, norms, coefficients = np.ones((3, len(span), len(self.members)))
        rates = self.ledger.learning_rates.at(self.n_steps, len(span))
        steps = zip(self._batches(span), stack.step_factors(rates), strict=True)
        with np.errstate(invalid="ignore", over="ignore"):
            for i, ((x, target), factors) in enumerate(steps):
                try:
                    losses[i], norms[i], output = stack.forward_backward(x, target)
                except unless(is_of_signal, Exception) as error:
                    raise StepRaised(error) from error
                clipped = clipping.apply(stack, norms[i])
                if clipped is not None:
                    coefficients[i] = clipped
                stack.step(factors)
                self.n_steps += 1
        self.ledger.is_constant = has_one_output(x, output)
        return StepRecord(losses, norms, coefficients, rates)

    def _judge(
        self, before: StackSnapshot, first: int, record: StepRecord
    ) -> NDArray[np.int64]:
        """Record the steps of a span, and return the members that may have failed."""
        ledger = self.ledger
        with np.errstate(invalid="ignore", over="ignore"):
            are_suspect = ledger.find_suspects(record.losses, record.norms)
            if not before.n_steps:
                are_suspect |= ~before.rows.are_finite()
            for numbers in record[:3]:
                numbers[:, are_suspect] = np.nan
            ledger.record(first, *record)
            are_trusted = ledger.watches.are_trusted(record.losses[0])
        self.verified.steps_taken(before.rows, len(record.losses), are_trusted)
        return np.flatnonzero(are_suspect)

    def _train_subset(
        self,
        index: NDArray[np.int64],
        before: StackSnapshot,
        first: int,
        span: list[tuple[int, int]],
    ) -> bool:
        """Make the steps of a span again for some members, with a check of each step.

        Return whether a step has failed. ``before`` is the state of all members before
        the span.
        """
        subset = copy.copy(self)
        subset.members = members = [self.members[k] for k in index]
        for k, member in zip(index, members, strict=True):
            member.set_random_state(before.random_states[k])
        subset.stack = self.stack.subset(index, before.rows)
        subset.ledger = before.ledger.select(index)
        subset.verified = before.verified.select(index)
        subset.orders = self.orders[index]
        subset.previous_orders = self.previous_orders[index]
        subset.inputs, subset.finished = {}, []
        subset.n_steps = before.n_steps
        has_failed = subset._train_carefully(first, span)
        self.n_steps = before.n_steps + len(span)
        has_ended = np.array([member.error is not None for member in members])
        kept = index[~has_ended]
        if len(kept):
            self.stack.rows.put(kept, subset.stack.rows)
            self.ledger.put(kept, subset.ledger)
            self.verified.put(kept, subset.verified)
        return has_failed

    def _train_carefully(self, first: int, span: list[tuple[int, int]]) -> bool:
        """Make the steps of a span, and recover the members that fail in each step.

        If a module raises, the members are divided until it is known which one it is.
        Return whether a step has failed.
        """
        has_failed = False
        for i, bounds in enumerate(span, start=first):
            before = self.snapshot()
            try:
                record = self.run_span([bounds])
            except StepRaised as raised:
                if len(self.members) > 1:
                    halves = np.array_split(np.arange(len(self.members)), 2)
                    rest = span[i - first :]
                    if not sum(self._train_subset(k, before, i, rest) for k in halves):
                        self._end_by(raised.error)
                    self.resume()
                    return True
                if self._is_ended_by(raised.error):
                    return True
                self.n_steps = before.n_steps + 1
                record = StepRecord(*np.full((4, 1, 1), np.nan))
            suspects = self._judge(before, i, record)
            if len(suspects):
                has_failed = True
                recover_steps(self, suspects, before, i)
                self.resume()
            if not self.members:
                break
        return has_failed

    def _batches(self, span: list[tuple[int, int]]) -> Iterator[tuple[Tensor, Any]]:
        """Yield inputs and targets; batches of one size share the memory of inputs."""
        orders = self.orders
        sizes = [stop - start for start, stop in span]
        (first, _), n_members = span[0], len(orders)
        for size, batches in itertools.groupby(sizes):
            n_steps = len(list(batches))
            rows = orders[:, first : first + n_steps * size]
            rows = rows.view(n_members, n_steps, size).transpose(0, 1).contiguous()
            first += n_steps * size
            target = self.stack.prepare_target(self.targets(rows), rows.shape)
            if size not in self.inputs:
                first_row = torch.from_numpy(self.X[:1])
                x = first_row.new_empty(n_members, size, *self.X.shape[1:])
                self.inputs[size] = x, x.numpy()
            x, array = self.inputs[size]
            for rows_of_step, target_of_step in zip(
                rows.numpy(), _unbound(target, n_steps), strict=True
            ):
                # With "raise" instead of "clip", numpy buffers the output.
                self.X.take(rows_of_step, 0, array, "clip")
                yield x, target_of_step

    # -- epochs --------------------------------------------------------------------

    def _end_epoch(self) -> None:
        """Verify, validate and log all members; remove those that fail or end."""
        self.verified.is_proposed[:] = True
        is_doubtful = self.ledger.is_constant | ~self.stack.rows.are_finite()
        if is_doubtful.any():
            recover_weights(self, np.flatnonzero(is_doubtful))
            self.resume()
            if not self.members:
                return
        n_rows = np.array([stop - start for start, stop in self.bounds])
        valid_losses = self._valid_losses()
        if not self.members:
            return
        rows = self.ledger.end_epoch(n_rows, valid_losses)
        n_members = len(self.members)
        for member, row in zip(self.members, rows, strict=True):
            member.log_epoch(row)
        notify_listeners(self, "on_epoch_end")
        with self.stack.averaged():
            continues = [
                member.end_epoch(partial(self.stack.weights_of, k), n_members)
                for k, member in enumerate(self.members)
            ]
        self._follow_time()
        self._finish(np.flatnonzero(~np.array(continues)).tolist())
        if not self.counts_epochs:
            self._report(rows)
        self.keep(np.flatnonzero(continues))

    def _follow_time(self) -> None:
        """Plan the schedules of members with a time limit for the epochs left."""
        for k, member in enumerate(self.members):
            limit = member.plan.time_limit
            if limit is not None:
                n_steps = limit.n_epochs_left_ * len(self.bounds)
                taken = int(self.ledger.n_taken[k])
                self.ledger.learning_rates.plan_rest(k, taken, n_steps)

    def _report(self, rows: list[dict[str, Any]]) -> None:
        """Advance the progress bar by an epoch, and show the lowest training loss."""
        if not is_shown():
            return
        share = len(rows) / self.n_epochs
        self.n_reported += share
        n_recoveries = sum(row["n_recoveries"] for row in rows)
        best = min(rows, key=itemgetter("train_loss"))
        advance(share, n_recoveries, train_loss=best["train_loss"], lr=best["lr"])

    def _valid_losses(self) -> list[float] | None:
        """Return the losses on held-out rows, if there are any."""
        if self.members[0].plan.best is None:
            return None
        rows = torch.stack([member.valid for member in self.members])
        net = self.members[0].plan.net
        n_rows = rows_per_evaluation(net.batch_size, self.X)
        parts = torch.split(rows, n_rows, dim=1)
        shares = [part.shape[1] for part in parts]
        try:
            with self.stack.averaged():
                found = [
                    self.stack.evaluate(self.inputs_of(part), self.targets(part))
                    for part in parts
                ]
            means: list[float] = np.average(found, axis=0, weights=shares).tolist()
            return means
        except unless(is_of_signal, Exception) as error:  # of the user's module
            if self._is_ended_by(error):
                return None
            with self.stack.averaged():
                states = map(self.stack.state_of, range(len(self.members)))
                separate = [
                    [member.valid_loss(state, self.batch_of(p[k])) for p in parts]
                    for k, (member, state) in enumerate(
                        zip(self.members, states, strict=True)
                    )
                ]
            losses = np.average(separate, axis=1, weights=shares).tolist()
        has_ended = [member.error is not None for member in self.members]
        self.keep(np.flatnonzero(~np.array(has_ended)))
        return [x for x, ended in zip(losses, has_ended, strict=True) if not ended]


def _unbound(target: Any, n_steps: int) -> Sequence[Any]:
    """Return the targets of each step."""
    if isinstance(target, Tensor):
        return target.unbind()
    return [tree_map(itemgetter(i), target) for i in range(n_steps)]


def has_one_output(x: Tensor, output: Tensor) -> NDArray[np.bool_]:
    """Return for each member whether it gives one output for different rows.

    Inputs and outputs have the shape (n_members, n_rows, ...). The guard of the member
    then finds out whether the network has collapsed.
    """
    if output.shape[1] < 2:
        return np.zeros(len(output), dtype=bool)
    is_constant: NDArray[np.bool_] = (
        _has_equal_rows(output) & ~_has_equal_rows(x)
    ).numpy()
    return is_constant


def _has_equal_rows(rows: Tensor) -> Tensor:
    """Whether all rows of a member are equal: (K,)."""
    return torch.eq(rows, rows[:, :1]).flatten(1).all(1)
