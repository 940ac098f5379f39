"""Training of a stack: the epochs of many networks that take their steps together."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sknan._engine.ledger import StepLedger, is_schedule_valid
from sknan._engine.member import Member
from sknan._engine.optimizer_step import optimizer_key
from sknan._engine.passes import does_stacking_agree, pass_key
from sknan._engine.plan import TrainingPlan
from sknan._engine.state import Stack
from sknan._utils.progress import advance, is_shown
from sknan._utils.threads import threads_for
from sknan._utils.tree import tree_leaves, tree_map
from sknan.nets._batching import TensorBatches, TensorTable

# Bytes of prepared targets. Batches up to this size are prepared and judged together.
_SPAN_SIZE = 2**20


def plan_key(plan: TrainingPlan) -> Hashable | None:
    """Return a key that is equal for plans that may share a stack.

    Parameters
    ----------
    plan : TrainingPlan
        Plan of a training that has not begun.

    Returns
    -------
    hashable or None
        None for a plan that must be run separately.
    """
    net, table = plan.net, plan.table
    # Callbacks, other ways of clipping and LBFGS need to see or change single steps.
    is_supported = (
        not plan.is_partial
        and net.verbose < 2
        and net.device == "cpu"
        and plan.time_limit is None
        and net.clip_value is None
        and net.adaptive_clip is None
        and not net.callbacks
        and not net.compile
        and isinstance(table.X, Tensor)
    )
    key_of_step = optimizer_key(net.optimizer_) if is_supported else None
    if key_of_step is None or len({p.dtype for p in net.module_.parameters()}) > 1:
        return None
    key_of_pass = pass_key(net, table)
    if key_of_pass is None:
        return None
    n_train, n_valid = _n_rows(plan)
    n_steps = len(_batch_bounds(n_train, net.batch_size)) * net.max_epochs
    if not is_schedule_valid(net, n_steps):
        return None
    return (
        key_of_pass,
        key_of_step,
        (n_train, n_valid, net.batch_size, net.max_epochs),
        tuple((leaf.dtype, leaf.shape[1:]) for leaf in tree_leaves((table.X, table.y))),
    )


def _n_rows(plan: TrainingPlan) -> tuple[int, int]:
    """Return the numbers of training rows and held-out rows."""
    if plan.best is None:
        return len(plan.table), 0
    train, valid = plan.split(plan.split_seed)
    return len(train), len(valid)


def _batch_bounds(n_rows: int, batch_size: int) -> list[tuple[int, int]]:
    """Return start and stop of each batch of an epoch."""
    empty = torch.zeros(n_rows)
    table = TensorTable(empty, empty)
    return TensorBatches(table, batch_size, merge_lone_row=True).bounds()


def train_stack(
    plans: list[TrainingPlan], sources: list[Hashable]
) -> list[Callable[[], None] | None]:
    """Train the networks of several plans together.

    Parameters
    ----------
    plans : list of TrainingPlan
        Plans of one :func:`plan_key`, whose trainings have not begun.
    sources : list of hashable
        Keys that are equal for plans whose tables hold the same rows. The stack holds
        these rows once.

    Returns
    -------
    list of callable or None
        For each network that is trained, a function that issues the warnings of its
        training. None if a step has failed or might have failed: the plan is unchanged
        then, and is to be run separately.
    """
    if not does_stacking_agree(plans[0].net, plans[0].table):
        return [None] * len(plans)
    tables, offsets = _distinct_tables(plans, sources)
    n_flops = 3.0 * plans[0].net.flops_per_row_ * plans[0].batch_size * len(plans)
    training = StackTraining(plans, tables, offsets)
    with (
        torch.no_grad(),
        threads_for(n_flops, plans[0].num_threads),
        # A module may raise because one member is not finite, which ends the training
        # of all. The unfinished members are then trained separately, and the member
        # that caused the exception raises it again.
        contextlib.suppress(RuntimeError),
    ):
        training.run()
    advance(len(training.finished) - training.n_reported)
    warn_by_plan = {id(member.plan): member.warn for member in training.finished}
    return [warn_by_plan.get(id(plan)) for plan in plans]


def train_as_stack(plan: TrainingPlan) -> bool:
    """Train one network as a stack of one, which has less overhead in each step.

    Parameters
    ----------
    plan : TrainingPlan
        Plan of a training that has not begun.

    Returns
    -------
    bool
        Whether the network is trained. If not, the plan is unchanged.
    """
    if plan_key(plan) is None:
        return False
    (warn,) = train_stack([plan], [0])
    if warn is None:
        return False
    warn()
    return True


def _distinct_tables(
    plans: list[TrainingPlan], sources: list[Hashable]
) -> tuple[list[TensorTable], list[int]]:
    """Return the tables without repetitions, and the row offset of each plan."""
    tables: list[TensorTable] = []
    starts: dict[Hashable, int] = {}
    offsets = []
    end = 0
    for plan, source in zip(plans, sources, strict=True):
        if source not in starts:
            starts[source] = end
            tables.append(plan.table)
            end += len(plan.table)
        offsets.append(starts[source])
    return tables, offsets


class StackTraining:
    """Epochs of a stack.

    Parameters
    ----------
    plans : list of TrainingPlan
        Plans of one :func:`plan_key`.
    tables : list of TensorTable
        Distinct tables of the plans.
    offsets : list of int
        For each plan, the number of rows that precede its table when the tables are
        joined.
    ledger : StepLedger or None, default=None
        Record of the steps; None for one with the settings of the nets.

    Attributes
    ----------
    finished : list of Member
        Members that have reached the end of their training.
    n_reported : float
        Number of trainings (the sum of fractions) that the progress bar has counted.
    """

    def __init__(
        self,
        plans: list[TrainingPlan],
        tables: list[TensorTable],
        offsets: list[int],
        ledger: StepLedger | None = None,
    ) -> None:
        X, self.y = _joined([table.rows(slice(None)) for table in tables])
        self.X = X.numpy()
        net = plans[0].net
        self.n_train, _ = _n_rows(plans[0])
        self.bounds = _batch_bounds(self.n_train, net.batch_size)
        self.n_epochs = net.max_epochs
        self.stack = Stack(
            [Member(plan, offset) for plan, offset in zip(plans, offsets, strict=True)]
        )
        n_steps = len(self.bounds) * self.n_epochs
        self.ledger = ledger or StepLedger([plan.net for plan in plans], n_steps)
        row = torch.zeros(1, 1, 1, dtype=torch.int64)
        target = self.stack.prepare_target(self._targets(row), row.shape)
        self.target_bytes = sum(leaf.nbytes for leaf in tree_leaves(target))
        # Memory for the inputs of a batch, by batch size, as tensor and as array.
        self.inputs: dict[int, tuple[Tensor, NDArray[Any]]] = {}
        self.n_steps = 0
        self.finished: list[Member] = []
        self.n_reported = 0.0

    def run(self) -> None:
        """Train all members until they end or fail."""
        self.start = time.perf_counter()
        for _ in range(self.n_epochs):
            self._train_epoch()
            if not self.stack.members:
                return
        self._finish(range(len(self.stack.members)))

    def _finish(self, numbers: Sequence[int]) -> None:
        """Finish the members at these positions."""
        seconds = time.perf_counter() - self.start
        for k in numbers:
            member = self.stack.members[k]
            clipping = self.n_steps, *self.ledger.clipping_of(k)
            member.finish(self.stack.weights_of(k), seconds, clipping)
            self.finished.append(member)

    def _train_epoch(self) -> None:
        orders = self._row_orders()
        for span in self._spans(len(orders)):
            x, output, learning_rates, kept = self.train_span(orders, span)
            if not kept:
                return
            if len(kept) < len(orders):
                orders = orders[kept]
        self._end_epoch(x, output, learning_rates)

    def _row_orders(self) -> Tensor:
        """Return the rows of an epoch in the random order of each member, (K, n_train).

        Members whose generators have the same state have the same order, which is drawn
        once. This is the case in a search over learning rates.
        """
        drawn: dict[bytes, tuple[Tensor, Tensor]] = {}
        orders = []
        for member in self.stack.members:
            state = member.generator.get_state().numpy().tobytes()
            if state in drawn:
                order, after = drawn[state]
                member.generator.set_state(after)
            else:
                order = torch.randperm(self.n_train, generator=member.generator)
                drawn[state] = order, member.generator.get_state()
            orders.append(member.train.index_select(0, order))
        return torch.stack(orders)

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

    def train_span(
        self, orders: Tensor, span: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, np.ndarray, list[int]]:
        """Make the steps of a span, and remove the members that may have failed.

        A member that fails is trained to the end of the span, and then removed with all
        its results.

        Parameters
        ----------
        orders : Tensor of shape (K, n)
            Rows of each member in the order of its batches.
        span : list of (int, int)
            Start and stop of each batch.

        Returns
        -------
        x, output : Tensor of shape (K, B, ...)
            Inputs and outputs of the last batch.
        learning_rates : ndarray of shape (K,)
            Learning rates of the last step.
        kept : list of int
            Positions of the members that remain.
        """
        stack, ledger = self.stack, self.ledger
        n_members, n_steps = len(stack.members), len(span)
        losses, norms = np.empty((2, n_steps, n_members))
        coefficients = np.ones((n_steps, n_members))
        rates = ledger.learning_rates.at(self.n_steps, n_steps)
        steps = zip(self._batches(orders, span), stack.step_factors(rates), strict=True)
        for i, ((x, target), factors) in enumerate(steps):
            losses[i], norms[i], output = stack.forward_backward(x, target)
            clipping = ledger.clip_coefficients(norms[i])
            if clipping is not None:
                coefficients[i] = clipping
                stack.clip(clipping)
            self.n_steps += 1
            stack.step(factors, self.n_steps)
        n_rows = np.array([stop - start for start, stop in span])
        may_have_failed = ledger.record(losses, norms, coefficients, n_rows)
        kept = np.flatnonzero(~may_have_failed).tolist()
        if len(kept) < n_members:
            self._keep(kept)
            return x[kept], output[kept], rates[-1][kept], kept
        return x, output, rates[-1], kept

    def _batches(
        self, orders: Tensor, span: list[tuple[int, int]]
    ) -> Iterator[tuple[Tensor, Any]]:
        """Yield inputs and targets; batches of one size share the memory of inputs."""
        sizes = [stop - start for start, stop in span]
        (first, _), n_members = span[0], len(orders)
        for size, batches in itertools.groupby(sizes):
            n_steps = len(list(batches))
            rows = orders[:, first : first + n_steps * size]
            rows = rows.view(n_members, n_steps, size).transpose(0, 1).contiguous()
            first += n_steps * size
            target = self.stack.prepare_target(self._targets(rows), rows.shape)
            if size not in self.inputs:
                array = np.empty((n_members, size, *self.X.shape[1:]), self.X.dtype)
                self.inputs[size] = torch.from_numpy(array), array
            x, array = self.inputs[size]
            for rows_of_step, target_of_step in zip(
                rows.numpy(), _unbound(target, n_steps), strict=True
            ):
                # With "raise" instead of "clip", numpy buffers the output.
                self.X.take(rows_of_step, 0, array, "clip")
                yield x, target_of_step

    def _targets(self, rows: Tensor) -> Any:
        """Return the targets of rows (..., K, B)."""
        flat = rows.flatten()
        return tree_map(
            lambda leaf: leaf.index_select(0, flat).view(*rows.shape, *leaf.shape[1:]),
            self.y,
        )

    def _end_epoch(self, x: Tensor, output: Tensor, learning_rates: np.ndarray) -> None:
        """Verify, validate and log all members; remove those that fail or end."""
        stack = self.stack
        are_collapsed = _may_be_collapsed(x, output)
        valid_losses = self._valid_losses()
        are_finite = stack.are_finite()
        rows = self.ledger.end_epoch(self.n_train, learning_rates, valid_losses)
        remaining: list[int] = []
        ended: list[int] = []
        for k, member in enumerate(stack.members):
            if not are_finite[k] or are_collapsed[k]:
                continue
            continues = member.end_epoch(rows[k], partial(stack.weights_of, k))
            (remaining if continues else ended).append(k)
        self._finish(ended)
        self._report(rows)
        if len(remaining) < len(stack.members):
            self._keep(remaining)

    def _report(self, rows: list[dict[str, Any]]) -> None:
        """Advance the progress bar by an epoch, and show the lowest training loss."""
        if not is_shown():
            return
        share = len(rows) / self.n_epochs
        self.n_reported += share
        best = min(rows, key=itemgetter("train_loss"))
        advance(share, train_loss=best["train_loss"], lr=best["lr"])

    def _keep(self, numbers: list[int]) -> None:
        """Remove all other members."""
        if not numbers:
            self.stack.members = []
            return
        self.inputs.clear()
        self.stack.keep(numbers)
        self.ledger.keep(numbers)

    def _valid_losses(self) -> list[float] | None:
        """Return the losses on held-out rows, if there are any."""
        members = self.stack.members
        if members[0].plan.best is None:
            return None
        rows = torch.stack([member.valid for member in members])
        x = torch.from_numpy(self.X[rows.numpy()])
        return self.stack.evaluate(x, self._targets(rows))


def _unbound(target: Any, n_steps: int) -> Sequence[Any]:
    """Return the targets of each step."""
    if isinstance(target, Tensor):
        return target.unbind()
    return [tree_map(itemgetter(i), target) for i in range(n_steps)]


def _joined(rows: list[tuple[Any, Any]]) -> Any:
    """Concatenate the rows of several tables."""
    leaves = iter([torch.cat(c) for c in zip(*map(tree_leaves, rows), strict=True)])
    return tree_map(lambda _: next(leaves), rows[0])


def _may_be_collapsed(x: Tensor, output: Tensor) -> list[bool]:
    """Return for each member whether it gives one output for different rows.

    The guard of a separate training then finds out whether the network has collapsed.
    """
    if output.shape[1] < 2:
        return [False] * len(output)
    are_collapsed = _has_equal_rows(output) & ~_has_equal_rows(x)
    return are_collapsed.tolist()


def _has_equal_rows(rows: Tensor) -> Tensor:
    """Whether all rows of a member are equal: (K,)."""
    return torch.eq(rows, rows[:, :1]).flatten(1).all(1)
