"""One training of many networks whose weights lie in one tensor, slice by slice."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sknan._progress import advance, is_shown
from sknan._stack_ledger import StepLedger, has_sound_schedule
from sknan._stacked_pass import can_be_passed, kind_of_pass, stacked_pass
from sknan._stacked_step import kind_of_step, numbers_of, step_alike
from sknan._threads import threads_for
from sknan._training_plan import TrainingPlan
from sknan.batching import TensorBatches, TensorTable, tree_leaves, tree_map

__all__ = ["Stack", "shape_of", "train_stack"]

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
    if step is None:
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


# -- slices ----------------------------------------------------------------------------


class _Slice:
    """What one training of the stack has for itself."""

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
        net.history_ = type(net.history)()
        for entry in self.history:
            net.history.new_epoch()
            net.history.record("epoch", len(net.history))
            for name, value in entry.items():
                net.history.record(name, value)
            net.history.record("dur", seconds / len(self.history))
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


class Stack:
    """Weights, gradients and moments of the slices that are still trained.

    Each is a list of blocks, one for each weight, with the slices along the first axis.
    """

    def __init__(self, slices: list[_Slice]) -> None:
        weights = _blocks([its.weights for its in slices])
        parts = [weights, *([torch.zeros_like(w) for w in weights] for _ in range(3))]
        parts.append(_blocks([its.buffers for its in slices]))
        self._take(slices, parts)

    def _take(self, slices: list[_Slice], parts: list[list[Tensor]]) -> None:
        self.slices = slices
        self._parts = parts
        self._lists: dict[tuple[int, ...], list[list[Tensor]]] = {}
        self.weights, self.gradients, _, _, self.buffers = parts
        self._numbers = [numbers_of(its.group) for its in slices]
        self.passes = stacked_pass(
            [its.net for its in slices],
            [its.generator for its in slices],
            self.weights,
            self.gradients,
            self.buffers,
        )

    def keep(self, numbers: Sequence[int]) -> None:
        """Let all other slices go."""
        index = torch.tensor(numbers)
        parts = [
            [block.index_select(0, index) for block in blocks] for blocks in self._parts
        ]
        self._take([self.slices[k] for k in numbers], parts)

    def weights_of(self, k: int) -> list[Tensor]:
        """A copy of the weights and buffers of one slice."""
        return [block[k].clone() for block in (*self.weights, *self.buffers)]

    def norms(self) -> list[Tensor]:
        """2-norm of each gradient of each slice."""
        return [
            torch.linalg.vector_norm(block.flatten(1), dim=1)
            for block in self.gradients
        ]

    def clip(self, coefficients: np.ndarray) -> None:
        """Multiply the gradients of each slice by a number of its own."""
        if (coefficients == 1.0).all():
            return
        factors = torch.from_numpy(coefficients).to(self.weights[0].dtype)
        for block in self.gradients:
            block.mul_(factors.view(-1, *[1] * (block.ndim - 1)))

    def step(self, rates: list[float], n_steps: int) -> None:
        """One step of the optimizer, at a rate for each slice."""
        alike: dict[Hashable, list[int]] = {}
        for k, key in enumerate(zip(rates, self._numbers, strict=True)):
            alike.setdefault(key, []).append(k)
        for numbers in alike.values():
            first = numbers[0]
            lists = self._lists_of(tuple(numbers))
            step_alike(self.slices[first].group, rates[first], n_steps, lists)

    def _lists_of(self, numbers: tuple[int, ...]) -> list[list[Tensor]]:
        """Weights, gradients and moments of some slices, one tensor each."""
        if numbers not in self._lists:
            self._lists[numbers] = [
                [block[k] for k in numbers for block in blocks]
                for blocks in self._parts[:4]
            ]
        return self._lists[numbers]

    def are_finite(self) -> list[bool]:
        """Whether the weights, and the buffers, of each slice are finite."""
        floats = [b for b in self.buffers if b.is_floating_point()]
        sums = [block.flatten(1).sum(1) for block in (*self.weights, *floats)]
        finite: list[bool] = torch.isfinite(torch.stack(sums)).all(0).tolist()
        return finite


def _blocks(tensors: list[list[Tensor]]) -> list[Tensor]:
    """Tensors of each slice, stacked with those of the others."""
    columns = zip(*tensors, strict=True)
    return [torch.stack([t.detach() for t in column]) for column in columns]


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
    with torch.no_grad(), threads_for(n_flops, plans[0].num_threads):
        run.train()
    advance(len(run.done) - run.n_reported)
    done = {id(its.plan): its.warn for its in run.done}
    return [done.get(id(plan)) for plan in plans]


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


class _Run:
    """The epochs of a stack."""

    def __init__(
        self,
        plans: list[TrainingPlan],
        tables: list[TensorTable],
        offsets: list[int],
    ) -> None:
        self.rows = _joined([table.rows(slice(None)) for table in tables])
        net = plans[0].net
        n_train = len(tables[0])
        if plans[0].best is not None:
            n_train = len(plans[0].split(plans[0].split_seed)[0])
        self.bounds = _bounds(n_train, net.batch_size)
        self.n_epochs = net.max_epochs
        n_steps = len(self.bounds) * self.n_epochs
        self.stack = Stack(
            [_Slice(plan, offset) for plan, offset in zip(plans, offsets, strict=True)]
        )
        self.ledger = StepLedger([plan.net for plan in plans], n_steps)
        self.n_train = n_train
        self.n_steps = 0
        self.done: list[_Slice] = []
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
        stack, ledger = self.stack, self.ledger
        orders = torch.stack(
            [
                its.train[torch.randperm(self.n_train, generator=its.generator)]
                for its in stack.slices
            ]
        )
        rates: list[float] = []
        x = output = torch.zeros(0)
        for start, stop in self.bounds:
            rows = orders[:, start:stop]
            x, target = self._rows(rows)
            losses, output = stack.passes.step(x, target)
            each_loss, *norms = torch.stack([losses, *stack.norms()]).tolist()
            numbers = np.array(each_loss), np.array(list(map(math.hypot, *norms)))
            is_refused = ledger.refused(*numbers)
            if is_refused.any():
                kept = np.flatnonzero(~is_refused).tolist()
                self._keep(kept)
                if not kept:
                    return
                orders, output, x = orders[kept], output[kept], x[kept]
                numbers = numbers[0][kept], numbers[1][kept]
            stack.clip(ledger.take(*numbers, stop - start))
            rates = ledger.rates(self.n_steps)
            self.n_steps += 1
            stack.step(rates, self.n_steps)
        self._end_epoch(x, output, rates)

    def _rows(self, rows: Tensor) -> tuple[Tensor, Any]:
        """Inputs and targets of rows (K, B)."""
        flat = rows.reshape(-1)
        x, target = tree_map(
            lambda leaf: leaf.index_select(0, flat).view(*rows.shape, *leaf.shape[1:]),
            self.rows,
        )
        return x, target

    def _end_epoch(self, x: Tensor, output: Tensor, rates: list[float]) -> None:
        """Verify, validate, log, and let go what fails or is at its end."""
        stack = self.stack
        valid_losses = self._valid_losses()
        are_finite = stack.are_finite()
        entries = self.ledger.end_epoch(self.n_train, rates, valid_losses)
        remaining: list[int] = []
        ended: list[int] = []
        for k, its in enumerate(stack.slices):
            if not are_finite[k] or _might_be_collapsed(x[k], output[k]):
                continue
            its.history.append(entries[k])
            goes_on = its.keeps(lambda k=k: stack.weights_of(k))  # type: ignore[misc]
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
        self.stack.keep(numbers)
        self.ledger.keep(numbers)

    def _valid_losses(self) -> list[float] | None:
        slices = self.stack.slices
        if slices[0].plan.best is None:
            return None
        rows = torch.stack([its.valid for its in slices])
        x, target = self._rows(rows)
        losses: list[float] = self.stack.passes.evaluate(x, target).tolist()
        return losses


def _joined(rows: list[tuple[Any, Any]]) -> Any:
    """Rows of several tables, one after the other."""
    leaves = iter([torch.cat(c) for c in zip(*map(tree_leaves, rows), strict=True)])
    return tree_map(lambda _: next(leaves), rows[0])


def _might_be_collapsed(x: Tensor, output: Tensor) -> bool:
    """Whether the guard would look closer: one answer for all rows of a batch."""
    is_constant = len(output) > 1 and bool(torch.eq(output, output[:1]).all())
    return is_constant and not bool(torch.eq(x, x[:1]).all())
