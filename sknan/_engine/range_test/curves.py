"""Loss curves of short trainings from one start, each at a constant learning rate."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sknan._engine.grouping import plan_key
from sknan._engine.ledger import are_refused
from sknan._engine.passes import does_stacking_agree
from sknan._engine.plan import Trainable, TrainingPlan, TrainingRows
from sknan._engine.state import Stack
from sknan._engine.training import StackTraining, StepRaised
from sknan._utils.outside import is_of_signal, unless
from sknan._utils.progress import advance, advance_to, is_shown
from sknan._utils.threads import threads_for
from sknan._utils.thresholds import N_TRIAL_ROWS, N_TRIALS
from sknan._utils.tree import tree_map
from sknan.diagnosis._raised import may_be_transient
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets._batching import TensorTable

# Share of the rows that is held out, and of a curve that is its end.
SHARE = 0.2

# Share of max_time for the curves, and as much for the trainings that confirm them. At
# least half of the time is left for the training itself.
SHARE_OF_TIME = 0.25

# Largest number of held-out rows. It bounds the time.
_MAX_HELD_OUT = 1000

# Curves and held-out rows are compared in parts. A part has at least two steps, and one
# held-out row: in smaller tables none are held out. Learning rates are compared by at
# least two.
MIN_STEPS = 2 * N_TRIALS
MIN_ROWS = round(N_TRIALS / SHARE)

# Total of floating-point operations of the curves, and of the trainings that confirm
# them: some seconds on one core.
MAX_FLOPS = 3e11

# Bytes of weights, gradients and moments in one stack. It changes no result.
_MAX_BYTES = 2**29


class TimeIsUp(Exception):
    """The time does not suffice for the curves of a range test."""


class RateCurves(NamedTuple):
    """Losses of short trainings; NaN from the first step that failed.

    Parameters
    ----------
    losses : ndarray of shape (n_rates, n_seeds, n_steps)
        Loss of each step's batch before the step.
    valid_losses : ndarray of shape (n_rates, n_seeds, n_checks)
        Loss on held-out rows; without columns if no rows are held out.
    valid_steps : ndarray of shape (n_checks,)
        Number of steps before each check on held-out rows.
    """

    losses: np.ndarray
    valid_losses: np.ndarray
    valid_steps: np.ndarray


def curves_at_rates(
    estimator: Trainable,
    rows: TrainingRows,
    rates: np.ndarray,
    seeds: list[int],
    n_steps: int,
    deadline: float = math.inf,
) -> RateCurves:
    """Train at each learning rate, from each of several starts.

    Parameters
    ----------
    estimator : Trainable
        Estimator that has validated the rows. It is not changed.
    rows : TrainingRows
        Rows of the whole table.
    rates : ndarray of shape (n_rates,)
        Constant learning rates.
    seeds : list of int
        Seeds of initial weights, rows and batches, which all learning rates share.
    n_steps : int
        Number of steps of each training.
    deadline : float
        Time by the monotonic clock at which the curves must be complete.

    Returns
    -------
    RateCurves

    Raises
    ------
    TimeIsUp
        If the curves are not complete by then.
    """
    batch_size = _batch_size(estimator, rows)
    curves = []
    checks: list[int] = []
    for seed in seeds:
        rng = np.random.RandomState(seed)
        train, valid = drawn_rows(rows, n_steps * batch_size, rng)
        create = partial(_constant_rate_plan, estimator, train, seed, n_steps)
        plan = create()
        held_out = None
        if valid is not None:
            held_out = held_out_table(estimator, valid, seed)
        trainings = _ConstantRateTrainings(
            plan, create, held_out, n_steps, seed, deadline
        )
        curves.append(trainings.run(rates))
        advance_to(n_steps * len(curves))
        checks = trainings.checks
    losses, valid_losses = (
        np.stack(parts, axis=1) for parts in zip(*curves, strict=True)
    )
    return RateCurves(losses, valid_losses, np.array(checks))


def held_out_table(estimator: Trainable, rows: TrainingRows, seed: int) -> TensorTable:
    """Return held-out rows in the form in which a network of the estimator has them."""
    return _constant_rate_plan(estimator, rows, seed, 1).table


def flops_per_step(estimator: Trainable, rows: TrainingRows) -> float:
    """Return the number of floating-point operations of one step."""
    few = _selected(rows, np.arange(min(N_TRIAL_ROWS, len(rows.X))))
    per_row: float = _constant_rate_plan(estimator, few, 0, 1).net.flops_per_row_
    return 3.0 * per_row * _batch_size(estimator, rows)


def _batch_size(estimator: Trainable, rows: TrainingRows) -> int:
    return min(estimator.rows_per_batch(len(rows.X)), len(rows.X))


def drawn_rows(
    rows: TrainingRows, n_train: int, rng: np.random.RandomState
) -> tuple[TrainingRows, TrainingRows | None]:
    """Draw at most ``n_train`` training rows, and held-out rows if there are enough."""
    n_rows, hold_out = len(rows.X), rows.hold_out
    has_enough = n_rows >= MIN_ROWS
    if hold_out is None or hold_out.is_random:
        order = rng.permutation(n_rows)
        n_valid = int(SHARE * n_rows) if has_enough else 0
        n_valid = min(n_valid, _MAX_HELD_OUT)
        train, valid = order[n_valid:], order[:n_valid]
    else:
        train, valid = (
            rng.permutation(part.numpy()) for part in rows.split(rng.randint(2**31 - 1))
        )
        valid = valid[: _MAX_HELD_OUT if has_enough else 0]
    train, valid = np.sort(train[:n_train]), np.sort(valid)
    return _selected(rows, train), _selected(rows, valid) if len(valid) else None


def _selected(rows: TrainingRows, index: np.ndarray) -> TrainingRows:
    weights = None if rows.weights is None else rows.weights[index]
    return rows._replace(
        X=rows.X[index],
        y=rows.y[index],
        weights=weights,
        numbers=rows.numbers[index],
        is_partial=False,
        hold_out=None,
    )


def _constant_rate_plan(
    estimator: Trainable, rows: TrainingRows, seed: int, n_steps: int
) -> TrainingPlan:
    """Return the plan of the estimator's training without schedule and callbacks."""
    n_batches = math.ceil(len(rows.X) / _batch_size(estimator, rows))
    trial = trial_of(
        estimator,
        seed,
        lr=1.0,
        lr_schedule=None,
        warmup=0.0,
        max_epochs=math.ceil(n_steps / n_batches),
        max_time=None,
        early_stopping=False,
    )
    plan: TrainingPlan = trial._plan(rows)
    return plan


def trial_of(estimator: Trainable, seed: int, **params: Any) -> Any:
    """Return an unfitted copy of an estimator with other parameters, for a trial."""
    trial = copy.copy(estimator)
    vars(trial).pop("_fitted", None)
    vars(trial).update(
        on_nonfinite="raise",
        callbacks=None,
        verbose=0,
        compile=False,
        warm_start=False,
        random_state=seed,
        **params,
    )
    return trial


@dataclass
class _ConstantRateTrainings:
    """Trainings at several learning rates from one start, on the same batches.

    Parameters
    ----------
    plan : TrainingPlan
        Plan of a training.
    create : callable
        Function that returns an equal plan.
    held_out : TensorTable or None
        Held-out rows.
    n_steps : int
        Number of steps of each training.
    seed : int
        Seed of the batches.
    deadline : float
        Time by the monotonic clock after which no step begins.
    """

    plan: TrainingPlan
    create: Callable[[], TrainingPlan]
    held_out: TensorTable | None
    n_steps: int
    seed: int
    deadline: float

    def __post_init__(self) -> None:
        self.checks: list[int] = []
        if self.held_out is not None:
            ends = self.n_steps * (np.arange(1, N_TRIALS + 1) / N_TRIALS)
            self.checks = sorted({0, *map(math.ceil, ends)})

    def run(self, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses of each learning rate, by step and on held-out rows."""
        n_rates = len(rates)
        self.losses = np.full((n_rates, self.n_steps), np.nan, np.float32)
        self.valid_losses = np.full((n_rates, len(self.checks)), np.nan, np.float32)
        size = self._members_per_stack()
        numbers = np.arange(n_rates)
        groups = [numbers[i : i + size] for i in range(0, n_rates, size)]
        if size == 1 or not self._run_stacks(groups, rates):
            for number in numbers:
                self._run_separately(int(number), float(rates[number]))
                advance(self.n_steps / n_rates)
        return self.losses, self.valid_losses

    def require_time(self) -> None:
        """Raise :class:`TimeIsUp` if no time is left for another step."""
        if time.monotonic() > self.deadline:
            raise TimeIsUp

    def _members_per_stack(self) -> int:
        """Return the number of networks in a stack; 1 if they cannot be stacked."""
        plan = self.plan
        if plan_key(plan) is None or not does_stacking_agree(plan.net, plan.table):
            return 1
        n_weights: int = sum(p.numel() for p in plan.net.module_.parameters())
        return max(1, _MAX_BYTES // (16 * n_weights))

    # -- in stacks -----------------------------------------------------------------

    def _run_stacks(self, groups: list[np.ndarray], rates: np.ndarray) -> bool:
        """Train in stacks; return False if a module raises, as some do for infinity."""
        net = self.plan.net
        n_flops = 3.0 * net.flops_per_row_ * self.plan.batch_size * len(groups[0])
        with torch.no_grad(), threads_for(n_flops, self.plan.num_threads):
            for numbers in groups:
                try:
                    self._run_stack(numbers, rates)
                # Such as a LinAlgError.
                except unless(is_of_signal, StepRaised, RuntimeError) as raised:
                    error = getattr(raised, "error", raised)
                    if may_be_transient(error):
                        raise error from None
                    return False
        return True

    def _run_stack(self, numbers: np.ndarray, rates: np.ndarray) -> None:
        plan, n_members, size = self.plan, len(numbers), self.plan.batch_size
        training = StackTraining([plan] * n_members, [plan.table], [0] * n_members)
        training.ledger.learning_rates.base = rates[numbers]
        training.orders = self._row_order().expand(n_members, -1)
        self._check(training.stack, numbers, 0)
        for i in range(self.n_steps):
            self.require_time()
            step = training.run_span([(i * size, (i + 1) * size)])
            is_good = ~are_refused(step.losses, step.norms)[0]
            numbers = numbers[is_good]
            self.losses[numbers, i] = step.losses[0, is_good]
            if not len(numbers):
                return
            training.keep(np.flatnonzero(is_good))
            if is_shown():
                best = min(numbers, key=self.losses[:, i].__getitem__)
                share, loss = n_members / len(rates), float(self.losses[best, i])
                advance(share, train_loss=loss, lr=rates[best])
            self._check(training.stack, numbers, i + 1)

    def _check(self, stack: Stack, numbers: np.ndarray, n_steps: int) -> None:
        """Compute the loss on held-out rows if it is due after this number of steps."""
        if self.held_out is None or n_steps not in self.checks:
            return
        rows = _repeated(self.held_out.rows(slice(None)), len(numbers))
        column = self.checks.index(n_steps)
        self.valid_losses[numbers, column] = stack.evaluate(*rows)

    def _row_order(self) -> Tensor:
        """Return the rows of all batches; a batch may span two passes over the rows."""
        generator = torch.Generator().manual_seed(self.seed)
        n_rows = len(self.plan.table)
        n_passes = math.ceil(self.n_steps * self.plan.batch_size / n_rows)
        passes = [torch.randperm(n_rows, generator=generator) for _ in range(n_passes)]
        return torch.cat(passes)

    # -- separately ----------------------------------------------------------------

    def _run_separately(self, number: int, rate: float) -> None:
        net = self.create().net  # torch.jit copies modules without their gradients
        net.set_params(lr=rate)
        self.losses[number] = self.valid_losses[number] = np.nan
        recorder = _LossRecorder(self, number)
        net.callbacks_.append(("loss_recorder", recorder))
        with contextlib.suppress(NonFiniteTrainingError):
            replace(self.plan, net=net).run_loop()


class _LossRecorder(Callback):
    """Callback that records the losses of a separate training.

    Parameters
    ----------
    trainings : _ConstantRateTrainings
        Held-out rows, the steps at which their loss is due, and the arrays to write to.
    number : int
        Position of the learning rate.
    """

    def __init__(self, trainings: _ConstantRateTrainings, number: int) -> None:
        self.losses = trainings.losses[number]
        self.valid_losses = trainings.valid_losses[number]
        self.trainings, self.n_recorded = trainings, 0

    def on_train_begin(self, net: Any, *args: Any, **kwargs: Any) -> None:
        """Record the loss of the untrained network."""
        self._check(net)

    def on_batch_end(
        self,
        net: Any,
        batch: Any = None,
        training: bool = False,
        loss: Any = None,
        **kwargs: Any,
    ) -> None:
        """Record the loss of a step."""
        self.trainings.require_time()
        if not training or self.n_recorded == len(self.losses):
            return
        self.losses[self.n_recorded] = float(loss.detach())
        self.n_recorded += 1
        self._check(net)

    def _check(self, net: Any) -> None:
        checks, held_out = self.trainings.checks, self.trainings.held_out
        if held_out is None or self.n_recorded not in checks:
            return
        # A decomposition raises where a weight is not finite. The next step fails then.
        with contextlib.suppress(LinAlgError):
            loss = evaluated_loss(net, held_out.rows(slice(None)))
            self.valid_losses[checks.index(self.n_recorded)] = loss


def evaluated_loss(net: Any, rows: tuple[Tensor, Any]) -> float:
    """Return the loss of rows in evaluation mode."""
    x, target = rows
    net._set_training(False)
    with torch.no_grad():
        # A copy, because the module may work in place.
        return float(net.get_loss(net.infer(x.clone()), target))


def _repeated(rows: Any, n_members: int) -> Any:
    """Return a contiguous copy of the rows for each member."""
    return tree_map(lambda leaf: leaf.expand(n_members, *leaf.shape).contiguous(), rows)
