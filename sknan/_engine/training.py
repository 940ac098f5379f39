"""One training of many networks, whose steps are taken together."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sknan._engine.ledger import StepLedger, has_sound_schedule
from sknan._engine.member import Slice
from sknan._engine.optimizer_step import kind_of_step
from sknan._engine.passes import can_be_passed, kind_of_pass
from sknan._engine.plan import TrainingPlan
from sknan._engine.state import Stack
from sknan._utils.progress import advance, is_shown
from sknan._utils.threads import threads_for
from sknan._utils.tree import tree_leaves, tree_map
from sknan.nets._batching import TensorBatches, TensorTable

__all__ = ["shape_of", "train_as_stack", "train_stack"]

# -- which trainings may lie in one stack ----------------------------------------------


def shape_of(plan: TrainingPlan) -> Hashable | None:
    """What trainings of one stack have in common; None for one that goes alone.

    Parameters
    ----------
    plan : TrainingPlan
        Prepared, and not begun.

    Returns
    -------
    hashable or None
    """
    net, table = plan.net, plan.table
    # Whoever is to see or shape single steps needs them.
    is_usual = (
        not plan.is_partial
        and net.verbose < 2
        and net.device == "cpu"
        and net.clip_value is None
        and net.adaptive_clip is None
        and not net.callbacks
        and not net.compile
        and isinstance(table.X, Tensor)
    )
    step = kind_of_step(net.optimizer_) if is_usual else None
    if step is None or len({p.dtype for p in net.module_.parameters()}) > 1:
        return None
    kind = kind_of_pass(net, table)
    if kind is None:
        return None
    n_train, n_valid = len(table), 0
    if plan.best is not None:
        train, valid = plan.split(plan.split_seed)
        n_train, n_valid = len(train), len(valid)
    n_steps = len(_bounds(n_train, net.batch_size)) * net.max_epochs
    if not has_sound_schedule(net, n_steps):
        return None
    return (
        kind,
        step,
        (n_train, n_valid, net.batch_size, net.max_epochs),
        tuple((leaf.dtype, leaf.shape[1:]) for leaf in tree_leaves((table.X, table.y))),
    )


def _bounds(n_rows: int, batch_size: int) -> list[tuple[int, int]]:
    """First and last row of each batch of an epoch."""
    nothing = torch.zeros(n_rows)
    table = TensorTable(nothing, nothing)
    return TensorBatches(table, batch_size, merge_lone_row=True).bounds()


# -- the training ----------------------------------------------------------------------


def train_stack(
    plans: list[TrainingPlan], sources: list[Hashable]
) -> list[Callable[[], None] | None]:
    """Train networks of one :func:`shape_of` together.

    Parameters
    ----------
    plans : list of TrainingPlan
        Prepared, and not begun.
    sources : list of hashable
        Equal for plans whose tables hold the same rows, which are then kept once.

    Returns
    -------
    list of callable or None
        For each that is trained, what shows the warnings of its training. None if a
        step of it has failed or might have: its plan is as it was, to be run by itself.
    """
    if not can_be_passed(plans[0].net, plans[0].table):
        return [None] * len(plans)
    tables, offsets = _distinct_tables(plans, sources)
    n_flops = 3.0 * plans[0].net.flops_per_row_ * plans[0].batch_size * len(plans)
    run = _Run(plans, tables, offsets)
    with (
        torch.no_grad(),
        threads_for(n_flops, plans[0].num_threads),
        # A module may raise where one slice is not finite, and so end all. Those that
        # are not done are trained one by one then, and the one to blame raises again.
        contextlib.suppress(RuntimeError),
    ):
        run.train()
    advance(len(run.done) - run.n_reported)
    done = {id(its.plan): its.warn for its in run.done}
    return [done.get(id(plan)) for plan in plans]


def train_as_stack(plan: TrainingPlan) -> bool:
    """Train a network as a stack of one, which takes its steps with less ado.

    Parameters
    ----------
    plan : TrainingPlan
        Prepared, and not begun.

    Returns
    -------
    bool
        Whether it is trained; if not, it is as it was.
    """
    if shape_of(plan) is None:
        return False
    (show_warnings,) = train_stack([plan], [0])
    if show_warnings is None:
        return False
    show_warnings()
    return True


def _distinct_tables(
    plans: list[TrainingPlan], sources: list[Hashable]
) -> tuple[list[TensorTable], list[int]]:
    """Tables without those that come again, and where the rows of each plan begin."""
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


# Bytes of the targets that are prepared at a time.
_SPAN = 2**20


class _Run:
    """The epochs of a stack."""

    def __init__(
        self,
        plans: list[TrainingPlan],
        tables: list[TensorTable],
        offsets: list[int],
    ) -> None:
        X, self.y = _joined([table.rows(slice(None)) for table in tables])
        self.X = X.numpy()
        net = plans[0].net
        n_train = len(tables[0])
        if plans[0].best is not None:
            n_train = len(plans[0].split(plans[0].split_seed)[0])
        self.bounds = _bounds(n_train, net.batch_size)
        self.n_epochs = net.max_epochs
        n_steps = len(self.bounds) * self.n_epochs
        self.stack = Stack(
            [Slice(plan, offset) for plan, offset in zip(plans, offsets, strict=True)]
        )
        self.ledger = StepLedger([plan.net for plan in plans], n_steps)
        self.n_train = n_train
        row = torch.zeros(1, 1, 1, dtype=torch.int64)
        target = self.stack.prepared(self._targets(row), row.shape)
        self.target_bytes = sum(leaf.nbytes for leaf in tree_leaves(target))
        self.places: dict[int, tuple[Tensor, NDArray[Any]]] = {}
        self.n_steps = 0
        self.done: list[Slice] = []
        self.n_reported = 0.0

    def train(self) -> None:
        """Train all slices to their end."""
        self.start = time.perf_counter()
        for _ in range(self.n_epochs):
            self._train_epoch()
            if not self.stack.slices:
                return
        self._let_go(range(len(self.stack.slices)))

    def _let_go(self, numbers: Sequence[int]) -> None:
        """Slices that are at their end."""
        seconds = time.perf_counter() - self.start
        for k in numbers:
            its = self.stack.slices[k]
            clipping = {"n_steps": self.n_steps, **self.ledger.clipping_of(k)}
            its.finish(self.stack.weights_of(k), seconds, clipping)
            self.done.append(its)

    def _train_epoch(self) -> None:
        orders = self._orders()
        for span in self._spans(len(orders)):
            x, output, rates, kept = self._train_span(orders, span)
            if not kept:
                return
            if len(kept) < len(orders):
                orders = orders[kept]
        self._end_epoch(x, output, rates)

    def _orders(self) -> Tensor:
        """Rows of an epoch, (K, n_train), in the order that each slice draws.

        Slices whose generators are in one state, as in a search of rates, draw once.
        """
        drawn: dict[bytes, tuple[Tensor, Tensor]] = {}
        orders = []
        for its in self.stack.slices:
            state = its.generator.get_state().numpy().tobytes()
            if state in drawn:
                order, after = drawn[state]
                its.generator.set_state(after)
            else:
                order = torch.randperm(self.n_train, generator=its.generator)
                drawn[state] = order, its.generator.get_state()
            orders.append(its.train.index_select(0, order))
        return torch.stack(orders)

    def _spans(self, n_slices: int) -> list[list[tuple[int, int]]]:
        """Batches whose targets are prepared, and that are judged, together."""
        n_bytes = n_slices * self.target_bytes
        spans: list[list[tuple[int, int]]] = []
        for start, stop in self.bounds:
            if spans and (stop - spans[-1][0][0]) * n_bytes <= _SPAN:
                spans[-1].append((start, stop))
            else:
                spans.append([(start, stop)])
        return spans

    def _train_span(
        self, orders: Tensor, span: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, np.ndarray, list[int]]:
        """Some steps; the last of them, and the slices that are left.

        A slice that the guard would have stopped goes on to the end of the span:
        nobody sees what becomes of it.
        """
        stack, ledger = self.stack, self.ledger
        n_slices, n_steps = len(stack.slices), len(span)
        losses, norms = np.empty((2, n_steps, n_slices))
        coefficients = np.ones((n_steps, n_slices))
        rates = ledger.rates(self.n_steps, n_steps)
        steps = zip(self._batches(orders, span), stack.rates(rates), strict=True)
        for i, ((x, target), own_rates) in enumerate(steps):
            losses[i], norms[i], output = stack.forward_backward(x, target)
            clipping = ledger.coefficients_of(norms[i])
            if clipping is not None:
                coefficients[i] = clipping
                stack.clip(clipping)
            self.n_steps += 1
            stack.step(own_rates, self.n_steps)
        n_rows = np.array([stop - start for start, stop in span])
        is_refused = ledger.take(losses, norms, coefficients, n_rows)
        kept = np.flatnonzero(~is_refused).tolist()
        if len(kept) < n_slices:
            self._keep(kept)
            return x[kept], output[kept], rates[-1][kept], kept
        return x, output, rates[-1], kept

    def _batches(
        self, orders: Tensor, span: list[tuple[int, int]]
    ) -> Iterator[tuple[Tensor, Any]]:
        """Inputs, in memory that the next batch of that size takes, and targets."""
        sizes = [stop - start for start, stop in span]
        (first, _), n_slices = span[0], len(orders)
        for size, alike in itertools.groupby(sizes):
            n_steps = len(list(alike))
            rows = orders[:, first : first + n_steps * size]
            rows = rows.view(n_slices, n_steps, size).transpose(0, 1).contiguous()
            first += n_steps * size
            target = self.stack.prepared(self._targets(rows), rows.shape)
            if size not in self.places:
                place = np.empty((n_slices, size, *self.X.shape[1:]), self.X.dtype)
                self.places[size] = torch.from_numpy(place), place
            x, place = self.places[size]
            for own_rows, own_target in zip(
                rows.numpy(), _unbound(target, n_steps), strict=True
            ):
                self.X.take(own_rows, 0, place, "clip")  # "raise" takes a detour
                yield x, own_target

    def _targets(self, rows: Tensor) -> Any:
        """Targets of rows (..., K, B)."""
        flat = rows.flatten()
        return tree_map(
            lambda leaf: leaf.index_select(0, flat).view(*rows.shape, *leaf.shape[1:]),
            self.y,
        )

    def _end_epoch(self, x: Tensor, output: Tensor, rates: np.ndarray) -> None:
        """Verify, validate, log, and let go what fails or is at its end."""
        stack = self.stack
        are_collapsed = _might_be_collapsed(x, output)
        valid_losses = self._valid_losses()
        are_finite = stack.are_finite()
        entries = self.ledger.end_epoch(self.n_train, rates, valid_losses)
        remaining: list[int] = []
        ended: list[int] = []
        for k, its in enumerate(stack.slices):
            if not are_finite[k] or are_collapsed[k]:
                continue
            its.history.append(entries[k])
            goes_on = its.keeps(lambda k=k: stack.weights_of(k))
            (remaining if goes_on else ended).append(k)
        self._let_go(ended)
        self._report(entries)
        if len(remaining) < len(stack.slices):
            self._keep(remaining)

    def _report(self, entries: list[dict[str, Any]]) -> None:
        """Show how many trainings an epoch makes up, and the best of them."""
        if not is_shown():
            return
        share = len(entries) / self.n_epochs
        self.n_reported += share
        best = min(entries, key=lambda entry: entry["train_loss"])
        advance(share, train_loss=best["train_loss"], lr=best["lr"])

    def _keep(self, numbers: list[int]) -> None:
        """Let all other slices go."""
        if not numbers:
            self.stack.slices = []
            return
        self.places.clear()
        self.stack.keep(numbers)
        self.ledger.keep(numbers)

    def _valid_losses(self) -> list[float] | None:
        slices = self.stack.slices
        if slices[0].plan.best is None:
            return None
        rows = torch.stack([its.valid for its in slices])
        x = torch.from_numpy(self.X[rows.numpy()])
        return self.stack.evaluate(x, self._targets(rows))


def _unbound(target: Any, n_steps: int) -> Sequence[Any]:
    """Targets of each step."""
    if isinstance(target, Tensor):
        return target.unbind()
    return [tree_map(itemgetter(i), target) for i in range(n_steps)]


def _joined(rows: list[tuple[Any, Any]]) -> Any:
    """Rows of several tables, one after the other."""
    leaves = iter([torch.cat(c) for c in zip(*map(tree_leaves, rows), strict=True)])
    return tree_map(lambda _: next(leaves), rows[0])


def _might_be_collapsed(x: Tensor, output: Tensor) -> list[bool]:
    """Of which slices the guard would look closer: one answer for all rows."""
    if output.shape[1] < 2:
        return [False] * len(output)
    found = _is_alike(output) & ~_is_alike(x)
    are_collapsed: list[bool] = found.tolist()
    return are_collapsed


def _is_alike(rows: Tensor) -> Tensor:
    """Whether all rows of a slice are the same: (K,)."""
    return torch.eq(rows, rows[:, :1]).flatten(1).all(1)
