"""Short trainings from one start, each at a constant rate of its own."""

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
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sknan._engine.passes import can_be_passed
from sknan._engine.plan import TrainingPlan, TrainingRows
from sknan._engine.state import Rates, Stack
from sknan._engine.training import shape_of
from sknan._utils.progress import advance, advance_to, is_shown
from sknan._utils.threads import threads_for
from sknan._utils.tree import tree_map
from sknan.diagnosis._thresholds import OVERFLOWS_SQUARED
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets._batching import TensorTable

__all__ = ["RateCurves", "curves_at_rates", "flops_per_step"]

# Held out of the rows of a test: this share, this many at most, and none of fewer rows.
_HELD_OUT = 0.2
_MOST_HELD_OUT = 1024
_LEAST_ROWS_TO_HOLD_OUT = 50

# How often the loss on held-out rows is looked at.
_N_CHECKS = 20

# Bytes of weights, gradients and moments in one stack.
_MOST_BYTES = 2**29


class RateCurves(NamedTuple):
    """Losses of short trainings; NaN from the step on at which one has failed.

    Parameters
    ----------
    losses : ndarray of shape (n_rates, n_seeds, n_steps)
        Of each step's batch, before the step.
    valid_losses : ndarray of shape (n_rates, n_seeds, n_checks)
        On held-out rows; without any columns if there are none.
    valid_steps : ndarray of shape (n_checks,)
        Steps taken before each of these.
    """

    losses: np.ndarray
    valid_losses: np.ndarray
    valid_steps: np.ndarray


def curves_at_rates(
    estimator: Any,
    rows: TrainingRows,
    rates: np.ndarray,
    seeds: list[int],
    n_steps: int,
) -> RateCurves:
    """Train at each rate, from each of some starts.

    Parameters
    ----------
    estimator : Trainable
        That has validated the rows; it is left as it is.
    rows : TrainingRows
        Of the whole table.
    rates : ndarray of shape (n_rates,)
        Constant ones.
    seeds : list of int
        Of initial weights, rows and batches; all rates of a seed have the same.
    n_steps : int
        Steps of each training.

    Returns
    -------
    RateCurves
    """
    batch_size = min(estimator.rows_per_batch(len(rows.X)), len(rows.X))
    found = []
    steps: list[int] = []
    for seed in seeds:
        rng = np.random.RandomState(seed)
        train, valid = _drawn_rows(rows, n_steps * batch_size, rng)
        plan = _trial(estimator, train, seed, n_steps)
        held_out = None
        if valid is not None:
            held_out = _trial(estimator, valid, seed, n_steps).table
        trainings = _Trainings(plan, held_out, n_steps, seed)
        found.append(trainings.run(rates))
        advance_to(n_steps * len(found))
        steps = trainings.checks
    losses, valid_losses = (
        np.stack([own[i] for own in found], axis=1) for i in range(2)
    )
    return RateCurves(losses, valid_losses, np.array(steps))


def flops_per_step(estimator: Any, rows: TrainingRows) -> float:
    """Floating-point operations of one step.

    Parameters
    ----------
    estimator : Trainable
        That has validated the rows.
    rows : TrainingRows
        Of the whole table.

    Returns
    -------
    float
    """
    few = _some(rows, np.arange(min(32, len(rows.X))))
    per_row: float = _trial(estimator, few, 0, 1).net.flops_per_row_
    n_rows: int = min(estimator.rows_per_batch(len(rows.X)), len(rows.X))
    return 3.0 * per_row * n_rows


def _drawn_rows(
    rows: TrainingRows, n_most: int, rng: np.random.RandomState
) -> tuple[TrainingRows, TrainingRows | None]:
    """Rows to train on, and rows held out, if there are enough to tell rates apart."""
    n_rows = len(rows.X)
    order = rng.permutation(n_rows)
    n_valid = 0
    if n_rows >= _LEAST_ROWS_TO_HOLD_OUT:
        n_valid = min(int(_HELD_OUT * n_rows), _MOST_HELD_OUT)
    train = np.sort(order[n_valid : n_valid + n_most])
    if not n_valid:
        return _some(rows, train), None
    return _some(rows, train), _some(rows, np.sort(order[:n_valid]))


def _some(rows: TrainingRows, index: np.ndarray) -> TrainingRows:
    weights = None if rows.weights is None else rows.weights[index]
    return rows._replace(
        X=rows.X[index],
        y=rows.y[index],
        weights=weights,
        numbers=rows.numbers[index],
        is_partial=False,
    )


def _trial(estimator: Any, rows: TrainingRows, seed: int, n_steps: int) -> TrainingPlan:
    """A training like that of the estimator, but plain: nothing changes its rate."""
    trial = copy.copy(estimator)
    vars(trial).pop("net_", None)
    batch_size = min(estimator.rows_per_batch(len(rows.X)), len(rows.X))
    vars(trial).update(
        lr=1.0,
        lr_schedule=None,
        warmup=0.0,
        max_epochs=math.ceil(n_steps / math.ceil(len(rows.X) / batch_size)),
        early_stopping=False,
        on_nonfinite="raise",
        callbacks=None,
        verbose=0,
        compile=False,
        warm_start=False,
        random_state=seed,
    )
    plan: TrainingPlan = trial._plan(rows)
    return plan


class _Curve:
    """A slice of the stack."""

    def __init__(self, plan: TrainingPlan, number: int, rate: float) -> None:
        self.net: Any = plan.net
        self.number = number
        self.rate = rate
        self.group = self.net.optimizer_.param_groups[0]
        self.generator = torch.Generator()
        self.generator.set_state(plan.random_states[0])
        self.weights: list[Tensor] = list(self.net.module_.parameters())
        self.buffers: list[Tensor] = list(self.net.module_.buffers())

    def coefficient(self, norm: float) -> float:
        """By what the gradients are to be multiplied."""
        most = self.net.clip_norm
        return 1.0 if most is None or norm <= most else most / norm


class _Trainings:
    """Trainings at several rates from one start, on the same batches."""

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
        """Losses of each rate by step, and on held-out rows."""
        n_rates = len(rates)
        self.losses = np.full((n_rates, self.n_steps), np.nan, np.float32)
        self.valid_losses = np.full((n_rates, len(self.checks)), np.nan, np.float32)
        size = self._slices_per_stack()
        numbers = np.arange(n_rates)
        is_stacked = size > 1 and self._run_stacks(
            [numbers[i : i + size] for i in range(0, n_rates, size)], rates
        )
        if not is_stacked:
            for number in numbers:
                self._run_alone(int(number), float(rates[number]))
                advance(self.n_steps / n_rates)
        return self.losses, self.valid_losses

    def _slices_per_stack(self) -> int:
        plan = self.plan
        if shape_of(plan) is None or not can_be_passed(plan.net, plan.table):
            return 1
        n_weights: int = sum(p.numel() for p in plan.net.module_.parameters())
        return max(1, _MOST_BYTES // (16 * n_weights))

    # -- together ------------------------------------------------------------------

    def _run_stacks(self, shares: list[np.ndarray], rates: np.ndarray) -> bool:
        """Whether they could be run: a module may raise where a weight is infinite."""
        net = self.plan.net
        n_flops = 3.0 * net.flops_per_row_ * self.plan.batch_size * len(shares[0])
        with torch.no_grad(), threads_for(n_flops, self.plan.num_threads):
            for numbers in shares:
                try:
                    self._run_stack([_Curve(self.plan, n, rates[n]) for n in numbers])
                except RuntimeError:  # such as a LinAlgError
                    return False
        return True

    def _run_stack(self, curves: list[Any]) -> None:
        stack: Any = Stack(curves)
        rates = _rates_of(stack)
        self._check(stack, 0)
        for i, batch in enumerate(self._batches()):
            x, target = _repeated(batch, len(stack.slices))
            target = stack.prepared(target, x.shape[:2])
            losses, norms, _ = stack.forward_backward(x, target)
            each_loss, whole = losses.tolist(), norms.tolist()
            kept = [
                k
                for k, (loss, norm) in enumerate(zip(each_loss, whole, strict=True))
                if math.isfinite(loss) and norm < OVERFLOWS_SQUARED
            ]
            for k in kept:
                self.losses[stack.slices[k].number, i] = each_loss[k]
            if not kept:
                return
            if is_shown():
                best = min(kept, key=each_loss.__getitem__)
                share = len(curves) / len(self.losses)
                advance(share, train_loss=each_loss[best], lr=stack.slices[best].rate)
            alive = stack.slices
            coefficients = [
                its.coefficient(n) for its, n in zip(alive, whole, strict=True)
            ]
            if min(coefficients) < 1.0:
                stack.clip(np.array(coefficients))
            stack.step(rates, i + 1)
            if len(kept) < len(whole):
                stack.keep(kept)
                rates = _rates_of(stack)
            self._check(stack, i + 1)

    def _check(self, stack: Any, n_done: int) -> None:
        """Loss on the held-out rows, if it is time for it."""
        if self.held_out is None or n_done not in self.checks:
            return
        place = self.checks.index(n_done)
        rows = _repeated(self.held_out.rows(slice(None)), len(stack.slices))
        losses = stack.evaluate(*rows)
        for its, loss in zip(stack.slices, losses, strict=True):
            self.valid_losses[its.number, place] = loss

    def _batches(self) -> Iterator[Any]:
        """As many batches as steps; one pass over the rows goes on into the next."""
        table, size = self.plan.table, self.plan.batch_size
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.zeros(0, dtype=torch.int64)
        for _ in range(self.n_steps):
            if len(order) < size:
                again = torch.randperm(len(table), generator=generator)
                order = torch.cat([order, again])
            yield table.rows(order[:size])
            order = order[size:]

    # -- one by one ----------------------------------------------------------------

    def _run_alone(self, number: int, rate: float) -> None:
        net = copy.deepcopy(self.plan.net)
        net.set_params(lr=rate)
        self.losses[number] = self.valid_losses[number] = np.nan
        log = _Log(self.losses[number], self.valid_losses[number], self)
        net.callbacks_.append(("log", log))
        with contextlib.suppress(NonFiniteTrainingError):
            dataclasses.replace(self.plan, net=net).run()


class _Log(Callback):
    """Write down the losses of a training that runs by itself."""

    def __init__(
        self, losses: np.ndarray, valid_losses: np.ndarray, trainings: _Trainings
    ) -> None:
        self.losses = losses
        self.valid_losses = valid_losses
        self.trainings = trainings
        self.n_done = 0

    def on_train_begin(self, net: Any, *args: Any, **kwargs: Any) -> None:
        """Note the loss of the untrained network."""
        self._check(net)

    def on_batch_end(
        self,
        net: Any,
        batch: Any = None,
        training: bool = False,
        loss: Any = None,
        **kwargs: Any,
    ) -> None:
        """Note the loss of a step."""
        if not training or self.n_done == len(self.losses):
            return
        self.losses[self.n_done] = float(loss.detach())
        self.n_done += 1
        self._check(net)

    def _check(self, net: Any) -> None:
        checks, held_out = self.trainings.checks, self.trainings.held_out
        if held_out is None or self.n_done not in checks:
            return
        x, target = held_out.rows(slice(None))
        net._set_training(False)
        # A decomposition raises where a weight is not finite: the next step will tell.
        with torch.no_grad(), contextlib.suppress(LinAlgError):
            # A copy: the module may work in place.
            loss = float(net.get_loss(net.infer(x.clone()), target))
            self.valid_losses[checks.index(self.n_done)] = loss


def _rates_of(stack: Stack) -> Rates:
    (rates,) = stack.rates(np.array([[its.rate for its in stack.slices]]))
    return rates


def _repeated(rows: Any, n_slices: int) -> Any:
    def repeated(leaf: Tensor) -> Tensor:
        return leaf.expand(n_slices, *leaf.shape).contiguous()

    return tree_map(repeated, rows)
