"""Keys of trainings that may share a stack, and the sizes of their batches."""

from __future__ import annotations

from collections.abc import Hashable

from sknan._engine.callbacks import follows_epochs
from sknan._engine.learning_rates import is_schedule_valid
from sknan._engine.optimizer_step import optimizer_key
from sknan._engine.passes import pass_key
from sknan._engine.plan import TrainingPlan
from sknan._utils.tree import tree_leaves
from sknan.diagnosis._causes import examine_loss
from sknan.nets._batching import batch_bounds
from sknan.optim._learning_rates import hopeless_decay

# Number of steps up to which the learning rates of all steps are computed in advance.
_MOST_STEPS = 10**6


def plan_key(plan: TrainingPlan) -> Hashable | None:
    """Return a key that is equal for plans that may share a stack.

    It is None for a plan that must be run separately.
    """
    net, table = plan.net, plan.table
    # LBFGS, and callbacks that see batches, need the steps of the loop of the net.
    is_supported = (
        not plan.is_partial
        and not net.history  # a training that continues another one
        and net._conditioning_ is None
        and net.device == "cpu"
        and all(follows_epochs(callback) for _, callback in net.callbacks_)
        and not net.compile
    )
    key_of_step = optimizer_key(net.optimizer_) if is_supported else None
    key_of_pass = None if key_of_step is None else pass_key(net)
    if key_of_pass is None:
        return None
    n_train, n_valid = n_rows_of(plan)
    bounds = batch_bounds(n_train, net.batch_size, merge_lone_row=True)
    n_steps = len(bounds) * net.max_epochs
    if n_steps > _MOST_STEPS:
        return None
    if not is_schedule_valid(net, n_steps) or hopeless_decay([net.optimizer_]):
        return None
    if examine_loss(net.criterion_) is not None:
        return None
    return (
        key_of_pass,
        key_of_step,
        (n_train, n_valid, net.batch_size, net.max_epochs),
        tuple((leaf.dtype, leaf.shape[1:]) for leaf in tree_leaves((table.X, table.y))),
    )


def n_rows_of(plan: TrainingPlan) -> tuple[int, int]:
    """Return the numbers of training rows and held-out rows."""
    if plan.best is None:
        return len(plan.table), 0
    train, valid = plan.split(plan.split_seed)
    return len(train), len(valid)
