"""Loss curves of short trainings from one start, each at a constant learning rate."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from skorch.callbacks import Callback
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sknan._engine.member import StackMember
from sknan._engine.passes import does_stacking_agree
from sknan._engine.plan import Trainable, TrainingPlan, TrainingRows
from sknan._engine.state import Stack, StepFactors
from sknan._engine.training import plan_key
from sknan._utils.progress import advance, advance_to, is_shown
from sknan._utils.threads import threads_for
from sknan._utils.tree import tree_map
from sknan.diagnosis._thresholds import OVERFLOWS_SQUARED
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets._batching import TensorTable

# Share of the rows that is held out, the largest number of held-out rows, and the
# number of rows below which none are held out.
_HELD_OUT_SHARE = 0.2
_MAX_HELD_OUT = 1024
_MIN_ROWS_TO_HOLD_OUT = 50

# Number of times that the loss on held-out rows is computed after the start.
_N_CHECKS = 20

# Bytes of weights, gradients and moments in one stack.
_MAX_BYTES = 2**29


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

    Returns
    -------
    RateCurves
    """
    batch_size = _batch_size(estimator, rows)
    curves = []
    checks: list[int] = []
    for seed in seeds:
        rng = np.random.RandomState(seed)
        train, valid = _drawn_rows(rows, n_steps * batch_size, rng)
        plan = _constant_rate_plan(estimator, train, seed, n_steps)
        held_out = None
        if valid is not None:
            held_out = _constant_rate_plan(estimator, valid, seed, n_steps).table
        trainings = _ConstantRateTrainings(plan, held_out, n_steps, seed)
        curves.append(trainings.run(rates))
        advance_to(n_steps * len(curves))
        checks = trainings.checks
    losses, valid_losses = (
        np.stack(parts, axis=1) for parts in zip(*curves, strict=True)
    )
    return RateCurves(losses, valid_losses, np.array(checks))


def flops_per_step(estimator: Trainable, rows: TrainingRows) -> float:
    """Return the number of floating-point operations of one step.

    Parameters
    ----------
    estimator : Trainable
        Estimator that has validated the rows. It is not changed.
    rows : TrainingRows
        Rows of the whole table.

    Returns
    -------
    float
    """
    few = _selected(rows, np.arange(min(32, len(rows.X))))
    per_row: float = _constant_rate_plan(estimator, few, 0, 1).net.flops_per_row_
    return 3.0 * per_row * _batch_size(estimator, rows)


def _batch_size(estimator: Trainable, rows: TrainingRows) -> int:
    return min(estimator.rows_per_batch(len(rows.X)), len(rows.X))


def _drawn_rows(
    rows: TrainingRows, n_train: int, rng: np.random.RandomState
) -> tuple[TrainingRows, TrainingRows | None]:
    """Draw at most ``n_train`` training rows, and held-out rows if there are enough."""
    n_rows = len(rows.X)
    order = rng.permutation(n_rows)
    n_valid = 0
    if n_rows >= _MIN_ROWS_TO_HOLD_OUT:
        n_valid = min(int(_HELD_OUT_SHARE * n_rows), _MAX_HELD_OUT)
    train = np.sort(order[n_valid : n_valid + n_train])
    if not n_valid:
        return _selected(rows, train), None
    return _selected(rows, train), _selected(rows, np.sort(order[:n_valid]))


def _selected(rows: TrainingRows, index: np.ndarray) -> TrainingRows:
    weights = None if rows.weights is None else rows.weights[index]
    return rows._replace(
        X=rows.X[index],
        y=rows.y[index],
        weights=weights,
        numbers=rows.numbers[index],
        is_partial=False,
    )


def _constant_rate_plan(
    estimator: Trainable, rows: TrainingRows, seed: int, n_steps: int
) -> TrainingPlan:
    """Return the plan of the estimator's training without schedule and callbacks."""
    n_batches = math.ceil(len(rows.X) / _batch_size(estimator, rows))
    trial = copy.copy(estimator)
    vars(trial).pop("net_", None)
    vars(trial).update(
        lr=1.0,
        lr_schedule=None,
        warmup=0.0,
        max_epochs=math.ceil(n_steps / n_batches),
        early_stopping=False,
        on_nonfinite="raise",
        callbacks=None,
        verbose=0,
        compile=False,
        warm_start=False,
        random_state=seed,
    )
    return trial._plan(rows)


class _RateMember(StackMember):
    """Member of a stack that is trained at a constant learning rate.

    Parameters
    ----------
    plan : TrainingPlan
        Plan that all members share.
    number : int
        Position of the learning rate.
    rate : float
        Learning rate.
    """

    def __init__(self, plan: TrainingPlan, number: int, rate: float) -> None:
        super().__init__(plan)
        self.number = number
        self.rate = rate

    def clip_coefficient(self, norm: float) -> float:
        """Return the factor that brings a gradient to the norm limit."""
        limit = self.net.clip_norm
        return 1.0 if limit is None or norm <= limit else limit / norm


class _ConstantRateTrainings:
    """Trainings at several learning rates from one start, on the same batches.

    Parameters
    ----------
    plan : TrainingPlan
        Plan of a training.
    held_out : TensorTable or None
        Held-out rows.
    n_steps : int
        Number of steps of each training.
    seed : int
        Seed of the batches.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        held_out: TensorTable | None,
        n_steps: int,
        seed: int,
    ) -> None:
        self.plan = plan
        self.held_out = held_out
        self.n_steps = n_steps
        self.seed = seed
        self.checks = []
        if held_out is not None:
            shares = np.arange(1, _N_CHECKS + 1) / _N_CHECKS
            self.checks = sorted({0, *(math.ceil(n_steps * share) for share in shares)})

    def run(self, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses of each learning rate, by step and on held-out rows."""
        n_rates = len(rates)
        self.losses = np.full((n_rates, self.n_steps), np.nan, np.float32)
        self.valid_losses = np.full((n_rates, len(self.checks)), np.nan, np.float32)
        size = self._members_per_stack()
        numbers = np.arange(n_rates)
        is_stacked = size > 1 and self._run_stacks(
            [numbers[i : i + size] for i in range(0, n_rates, size)], rates
        )
        if not is_stacked:
            for number in numbers:
                self._run_separately(int(number), float(rates[number]))
                advance(self.n_steps / n_rates)
        return self.losses, self.valid_losses

    def _members_per_stack(self) -> int:
        """Return the number of networks in a stack; 1 if they cannot be stacked."""
        plan = self.plan
        if plan_key(plan) is None or not does_stacking_agree(plan.net, plan.table):
            return 1
        n_weights: int = sum(p.numel() for p in plan.net.module_.parameters())
        return max(1, _MAX_BYTES // (16 * n_weights))

    # -- in stacks -----------------------------------------------------------------

    def _run_stacks(self, groups: list[np.ndarray], rates: np.ndarray) -> bool:
        """Train in stacks; False if a module raises, as for an infinite weight."""
        net = self.plan.net
        n_flops = 3.0 * net.flops_per_row_ * self.plan.batch_size * len(groups[0])
        with torch.no_grad(), threads_for(n_flops, self.plan.num_threads):
            for numbers in groups:
                members = [_RateMember(self.plan, n, rates[n]) for n in numbers]
                try:
                    self._run_stack(members)
                except RuntimeError:  # such as a LinAlgError
                    return False
        return True

    def _run_stack(self, members: list[_RateMember]) -> None:
        stack = Stack(members)
        factors = _step_factors(stack)
        self._check(stack, 0)
        for i, batch in enumerate(self._batches()):
            x, target = _repeated(batch, len(stack.members))
            target = stack.prepare_target(target, x.shape[:2])
            loss_array, norm_array, _ = stack.forward_backward(x, target)
            losses, norms = loss_array.tolist(), norm_array.tolist()
            kept = [
                k
                for k, (loss, norm) in enumerate(zip(losses, norms, strict=True))
                if math.isfinite(loss) and norm < OVERFLOWS_SQUARED
            ]
            for k in kept:
                self.losses[stack.members[k].number, i] = losses[k]
            if not kept:
                return
            if is_shown():
                best = min(kept, key=losses.__getitem__)
                share = len(members) / len(self.losses)
                advance(share, train_loss=losses[best], lr=stack.members[best].rate)
            coefficients = [
                member.clip_coefficient(norm)
                for member, norm in zip(stack.members, norms, strict=True)
            ]
            if min(coefficients) < 1.0:
                stack.clip(np.array(coefficients))
            stack.step(factors, i + 1)
            if len(kept) < len(norms):
                stack.keep(kept)
                factors = _step_factors(stack)
            self._check(stack, i + 1)

    def _check(self, stack: Stack[_RateMember], n_steps: int) -> None:
        """Compute the loss on held-out rows if it is due after this number of steps."""
        if self.held_out is None or n_steps not in self.checks:
            return
        column = self.checks.index(n_steps)
        rows = _repeated(self.held_out.rows(slice(None)), len(stack.members))
        losses = stack.evaluate(*rows)
        for member, loss in zip(stack.members, losses, strict=True):
            self.valid_losses[member.number, column] = loss

    def _batches(self) -> Iterator[Any]:
        """Yield one batch for each step; a batch may span two passes over the rows."""
        table, size = self.plan.table, self.plan.batch_size
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.zeros(0, dtype=torch.int64)
        for _ in range(self.n_steps):
            if len(order) < size:
                next_pass = torch.randperm(len(table), generator=generator)
                order = torch.cat([order, next_pass])
            yield table.rows(order[:size])
            order = order[size:]

    # -- separately ----------------------------------------------------------------

    def _run_separately(self, number: int, rate: float) -> None:
        net = copy.deepcopy(self.plan.net)
        net.set_params(lr=rate)
        self.losses[number] = self.valid_losses[number] = np.nan
        recorder = _LossRecorder(self.losses[number], self.valid_losses[number], self)
        net.callbacks_.append(("loss_recorder", recorder))
        with contextlib.suppress(NonFiniteTrainingError):
            dataclasses.replace(self.plan, net=net).run()


class _LossRecorder(Callback):
    """Callback that records the losses of a separate training.

    Parameters
    ----------
    losses : ndarray of shape (n_steps,)
        Array to write the loss of each step to.
    valid_losses : ndarray of shape (n_checks,)
        Array to write the losses on held-out rows to.
    trainings : _ConstantRateTrainings
        Held-out rows, and the steps at which their loss is due.
    """

    def __init__(
        self,
        losses: np.ndarray,
        valid_losses: np.ndarray,
        trainings: _ConstantRateTrainings,
    ) -> None:
        self.losses = losses
        self.valid_losses = valid_losses
        self.trainings = trainings
        self.n_recorded = 0

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
        if not training or self.n_recorded == len(self.losses):
            return
        self.losses[self.n_recorded] = float(loss.detach())
        self.n_recorded += 1
        self._check(net)

    def _check(self, net: Any) -> None:
        checks, held_out = self.trainings.checks, self.trainings.held_out
        if held_out is None or self.n_recorded not in checks:
            return
        x, target = held_out.rows(slice(None))
        net._set_training(False)
        # A decomposition raises where a weight is not finite. The next step fails then.
        with torch.no_grad(), contextlib.suppress(LinAlgError):
            # A copy, because the module may work in place.
            loss = float(net.get_loss(net.infer(x.clone()), target))
            self.valid_losses[checks.index(self.n_recorded)] = loss


def _step_factors(stack: Stack[_RateMember]) -> StepFactors:
    rates = np.array([[member.rate for member in stack.members]])
    (factors,) = stack.step_factors(rates)
    return factors


def _repeated(rows: Any, n_members: int) -> Any:
    """Return a contiguous copy of the rows for each member."""
    return tree_map(lambda leaf: leaf.expand(n_members, *leaf.shape).contiguous(), rows)
