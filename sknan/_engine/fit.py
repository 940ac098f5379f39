"""Training of plans: in stacks, or one plan by the loop of its net."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable

import torch

from sknan._engine.grouping import plan_key
from sknan._engine.listeners import EpochBar, EpochTasks
from sknan._engine.passes import does_stacking_agree
from sknan._engine.plan import TrainingPlan
from sknan._engine.training import StackTraining
from sknan._utils.progress import advance, is_shown, progress
from sknan._utils.threads import threads_for
from sknan._utils.tree import tree_leaves
from sknan.nets._batching import TensorTable


def train(plan: TrainingPlan, tasks: EpochTasks | None = None) -> None:
    """Train the net of a plan, and show a progress bar if it is verbose.

    ``tasks`` is a further listener that is notified of each epoch.
    """
    net = plan.net
    verbose = net.verbose == 1 and not plan.is_partial
    with progress("Training", net.max_epochs, "epochs", verbose=verbose):
        # The listeners come before the callback that keeps the best epoch, because that
        # one ends the training by an exception when patience is exhausted.
        listeners = [("epoch_bar", EpochBar())] if is_shown() else []
        if tasks is not None:
            listeners.append(("epoch_tasks", tasks))
        net.callbacks_ += listeners
        try:
            end = None if plan_key(plan) is None else train_stack([plan], [0])[0]
            if end is None:
                plan.run_loop()
            else:
                end()
        finally:
            added = [callback for _, callback in listeners]
            net.callbacks_ = [c for c in net.callbacks_ if c[1] not in added]


def train_stack(
    plans: list[TrainingPlan], sources: list[Hashable]
) -> list[Callable[[], None] | None]:
    """Train the networks of several plans together.

    Parameters
    ----------
    plans : list of TrainingPlan
        Plans of one :func:`plan_key`, whose trainings have not begun.
    sources : list of hashable
        Keys that are equal for plans whose tables come from the same data. The stack
        holds equal tables once.

    Returns
    -------
    list of callable or None
        For each network, a function that ends its training: it issues the warnings and
        raises the error of the training. None if the networks cannot be stacked: the
        plans are unchanged then, and are to be run separately.
    """
    if not does_stacking_agree(plans[0].net, plans[0].table):
        return [None] * len(plans)
    tables, offsets = _distinct_tables(plans, sources)
    n_flops = 3.0 * plans[0].net.flops_per_row_ * plans[0].batch_size * len(plans)
    training = StackTraining(plans, tables, offsets)
    with torch.no_grad(), threads_for(n_flops, plans[0].num_threads):
        try:
            training.run()
        except KeyboardInterrupt:
            if len(plans) > 1:
                raise
            training.interrupt()  # as skorch's loop does
    if not training.counts_epochs:
        begun = [plan.net for plan in plans if hasattr(plan.net, "guard_")]
        recovered = sum(len(net.nonfinite_reports_) for net in begun)
        n_recoveries = 0 if training.n_reported else recovered
        advance(len(training.finished) - training.n_reported, n_recoveries)
    ends = {id(member.plan): member.conclude for member in training.finished}
    return [ends[id(plan)] for plan in plans]


def _distinct_tables(
    plans: list[TrainingPlan], sources: list[Hashable]
) -> tuple[list[TensorTable], list[int]]:
    """Return the tables without repetitions, and the row offset of each plan."""
    tables: list[TensorTable] = []
    starts: dict[Hashable, list[tuple[TensorTable, int]]] = defaultdict(list)
    offsets = []
    end = 0
    for plan, source in zip(plans, sources, strict=True):
        table = plan.table
        # Parameters such as class_weight may have changed weights or order of the rows.
        offset = next((at for t, at in starts[source] if _are_equal(t, table)), end)
        if offset == end:
            starts[source].append((table, end))
            tables.append(table)
            end += len(table)
        offsets.append(offset)
    return tables, offsets


def _are_equal(table: TensorTable, other: TensorTable) -> bool:
    leaves = [tree_leaves((t.X, t.y, t.numbers)) for t in (table, other)]
    return table is other or all(map(torch.equal, *leaves))
