"""Trials of weights and learning rates on the latest batches."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skorch.dataset import get_len, unpack_data
from torch import Tensor

from sknan._utils.compiled import uncompiled
from sknan._utils.random_state import kept_random_states, resumed
from sknan._utils.thresholds import (
    MARGIN,
    N_ERRORS,
    N_TRIAL_ROWS,
    N_TRIALS,
    SMALL,
    is_far_above,
)
from sknan.diagnosis._culprits import (
    by_bisection,
    nonfinite_rows,
    sliced,
    without_rows,
)
from sknan.diagnosis._raised import result_of_trial
from sknan.losses._registry import closed_form_of
from sknan.nets.guard._loss_watch import is_trusted
from sknan.nets.recovery.collapse import varies
from sknan.nets.recovery.constant_output import lowest_constant_loss
from sknan.nets.recovery.explain import empty_states
from sknan.nets.recovery.finite_operations import RepairedOperations
from sknan.nets.recovery.protocol import RefuseErrors, StepRefused, Training
from sknan.nets.recovery.step_loss import loss_of
from sknan.optim._clipping import grad_norm
from sknan.optim._learning_rates import scaled_rates


class Rise(NamedTuple):
    """Losses before and after a training, and that of a constant output."""

    before: float
    after: float
    constant: float


class Comparison(NamedTuple):
    """Loss of a network beside that of a constant output, with its standard error.

    The error is NaN if the constant is not known, and ``constant`` is then the loss of
    the first weights, or NaN.
    """

    reached: float
    constant: float
    error: float

    @property
    def is_above(self) -> bool:
        """Whether the loss is higher, by two standard errors."""
        return self.reached - N_ERRORS * self.error > self.constant

    @property
    def is_below(self) -> bool:
        """Whether the loss is lower by a real margin."""
        return not self.reached > self.constant - SMALL * abs(self.constant)

    @property
    def is_far_above(self) -> bool:
        """Whether the loss is far higher."""
        return math.isinf(self.reached) or bool(
            is_far_above(self.reached, self.constant)
        )


class RateTrials:
    """Trials that a guard runs before it decides; they leave the training unchanged.

    Parameters
    ----------
    training : Training
        Training of a net.
    batch : tuple
        Batch on which the step failed.
    fit_params : dict
        Parameters of the module's ``forward``.
    """

    def __init__(
        self, training: Training, batch: Any, fit_params: dict[str, Any]
    ) -> None:
        self.training = training
        self.net = training.net
        self.batch = batch
        self.fit_params = fit_params

    def fails_on_last_weights(self) -> bool:
        """Whether the batch fails with the last verified weights too."""
        net, states = self.net, self.training.random_states
        own_loss, norm = self.training.own_trial_loss, 0.0
        with (
            net.guard_.last_weights(),
            resumed(states, net.device),
            empty_states(net._all_optimizers()),
        ):
            try:
                if own_loss is not None:
                    own_loss(self.batch, self.fit_params)
                else:
                    _, norm = self._backward(self.batch)
            except StepRefused:
                return True
            finally:
                net._zero_grad_optimizer()
        return math.isnan(norm)

    def has_last_learned(self) -> bool:
        """Whether the last verified weights are better than any constant output.

        A network that has collapsed had perhaps lost most units before.
        """
        with self.net.guard_.last_weights():
            return self.has_learned(is_new=True)

    def losses_after(self, scales: list[float]) -> list[float]:
        """Return the mean losses of some steps at lower rates on the latest batches.

        The steps start from the last verified weights, with empty optimizer state.

        Parameters
        ----------
        scales : list of float
            Factors of the learning rate.

        Returns
        -------
        list of float
            Mean losses before the steps; inf if a step fails. Losses after all steps
            would favor rates that are far too high: their first steps ruin the weights,
            and the next ones learn few batches by heart, up to a loss of 0.
        """
        return [self._loss_after(scale) for scale in scales]

    def _loss_after(self, scale: float) -> float:
        net, batches = self.net, self.batches
        optimizers = net._all_optimizers()
        factor = scale * net._schedule_factor()
        clipper = net.adaptive_clip_
        net.adaptive_clip_ = copy.deepcopy(clipper)  # which remembers gradient norms
        try:
            with (
                net.guard_.last_weights(),
                kept_random_states(net.device),
                empty_states(optimizers),
                scaled_rates(optimizers, factor, net.guard_.rate_caps),
            ):
                losses = [
                    self._take_step(batches[i % len(batches)]) for i in range(N_TRIALS)
                ]
        except StepRefused:
            return math.inf
        finally:
            net.adaptive_clip_ = clipper
            net._zero_grad_optimizer()
        mean = sum(losses) / len(losses)
        return mean if math.isfinite(mean) else math.inf

    @property
    def batches(self) -> list[Any]:
        """Latest batches of the training, and the failed one."""
        latest = [b for b in self.training.latest_batches if b is not self.batch]
        return [*latest, self.batch]

    def largest_loss(self) -> float:
        """Return the largest finite loss of a sample of the data; NaN if there is none.

        The sample is the recent batches and, if the training rows are known, a batch
        of rows from the whole table, which may be sorted. The loss of a constant output
        counts too: weights that were passed in may be so good that ten times their loss
        is still good. If all rows have the same target, the loss has no scale: it is 0.
        """
        results = []
        with kept_random_states(self.net.device), torch.no_grad():
            for batch in self.sample:
                with contextlib.suppress(StepRefused):
                    results.append((batch, *self._kept_result(batch)))
        pairs = [(unpack_data(batch)[1], output) for batch, output, _ in results]
        if pairs and all(_are_compared(*pair) for pair in pairs):
            targets = torch.cat([target for target, _ in pairs])
            if not varies(targets):
                return 0.0
        losses = [loss for _, _, loss in results]
        with contextlib.suppress(StepRefused):
            batches, outputs = [b for b, _, _ in results], [o for _, o, _ in results]
            losses.append(lowest_constant_loss(self.net, batches, [outputs]))
        return max(filter(math.isfinite, losses), default=math.nan)

    def were_trained(self) -> bool:
        """Whether the first weights have at most half the loss of any constant output.

        The weights of a module that was passed in may have been trained before.
        """
        sample = self.sample
        try:
            first, outputs = self._first_results(sample)
            constant = self._lowest_constant(sample, outputs)
        except StepRefused:
            return False
        is_known = math.isfinite(constant)
        return is_known and constant - first >= (1.0 - 1.0 / MARGIN) * abs(constant)

    def has_learned(self, *, is_new: bool) -> bool:
        """Whether the present weights have a lower loss than the first ones.

        The losses are those of a sample of the training rows.

        Parameters
        ----------
        is_new : bool
            Whether the loss must be clearly lower than that of any constant output too.
        """
        sample = self.sample
        try:
            reached, outputs = self._repaired_results(sample)
        except StepRefused:
            return True  # nothing to compare with
        first, first_outputs = self._first_results(sample)
        if reached >= first:
            return False
        if not is_new or not math.isfinite(reached):
            return True
        constant = self._lowest_constant(sample, outputs, first_outputs)
        if constant == math.inf and not isinstance(self.net.module, torch.nn.Module):
            constant = first  # all that is known; one passed in may be good already
        return Comparison(reached, constant, math.nan).is_below

    def find_rise(self) -> tuple[Rise, bool] | None:
        """Return the rise of the loss to more than that of a constant output.

        An untrained loss of exactly 0 gives no scale.

        Returns
        -------
        tuple of (Rise, bool) or None
            The losses, and whether the last one is far above that of a constant output
            and more than twice the first one. None if the loss has not risen, or by no
            more than what chance gives.
        """
        sample = [self._few_rows()]
        try:
            after = self._results(sample)[0]
            before = self._first_results(sample)[0]
        except StepRefused:
            return None
        after = math.inf if math.isnan(after) else after
        if not math.isfinite(before) or before == 0.0 or after <= before:
            return None
        found = self.compare_with_constant(has_risen=True)
        if found is None:
            return None
        rise = Rise(before, after, found.constant)
        if found.is_far_above and not is_trusted(after, before):
            return rise, True
        has_risen = after - before > N_ERRORS * found.error
        return (rise, False) if found.is_above and has_risen else None

    def is_far_worse_than_constant(self, *, is_doubtful: bool) -> bool:
        """Whether the loss is far above that of a constant output.

        Two standard errors above it are enough, unless the loss has been falling: it
        may be high yet.

        Parameters
        ----------
        is_doubtful : bool
            Whether it must be clearly lower, unless it has been falling.
        """
        found = self.compare_with_constant()
        if found is None:
            return False
        if found.is_far_above or self._may_fall(found.reached):
            return found.is_far_above
        return found.is_above or (is_doubtful and not found.is_below)

    def compare_with_constant(self, *, has_risen: bool = False) -> Comparison | None:
        """Return the loss of training rows, and that of a constant output.

        The rows are training rows that seldom failed and whose loss is finite, with
        repaired operations if it is not for most of them. There is no comparison if
        there are none, if all have the same target, or if the loss relates rows, such
        as a triplet loss: equal outputs are no baseline for it.

        Parameters
        ----------
        has_risen : bool, default=False
            Whether the loss is known to be higher than that of the first weights. If
            the loss of most rows is no longer finite, it is far above then. If that of
            a constant output is not known, that of the first weights takes its place.
        """
        if self.net._own_step() is not None:
            return None
        batches = self.training.rows_of_data(N_TRIAL_ROWS) or self.batches[-1:]
        if not has_risen and self._fail_mostly(batches):
            with uncompiled(self.net), RepairedOperations():  # as in predictions
                return self._compare(batches, has_risen=False)
        return self._compare(batches, has_risen=has_risen)

    def _fail_mostly(self, batches: list[Any]) -> bool:
        """Whether the output or loss of most rows is not finite."""
        try:
            with kept_random_states(self.net.device), torch.no_grad():
                sound = map(self._sound_rows, batches)
                n_sound: int = sum(get_len(inputs) for inputs, _ in sound)
        except StepRefused:  # for some rows, the network raises
            return False
        n_rows: int = sum(get_len(inputs) for inputs, _ in batches)
        return 2 * n_sound < n_rows

    def _compare(self, batches: list[Any], *, has_risen: bool) -> Comparison | None:
        try:
            with kept_random_states(self.net.device), torch.no_grad():
                if has_risen:
                    with self.net.guard_.first_weights():
                        batches, _ = self._comparable_rows(batches)
                    n_rows = sum(get_len(b[0]) for b in batches)
                    batches = [self._sound_rows(b) for b in batches]
                    if 2 * sum(get_len(b[0]) for b in batches) < n_rows:
                        return Comparison(math.inf, math.nan, math.nan)
                    errors = self._errors(batches)
                else:
                    batches, errors = self._comparable_rows(batches)
            reached, outputs = self._results(batches) if batches else (math.nan, [])
        except StepRefused:
            return None
        if not math.isfinite(reached):  # a mean of finite losses may overflow
            is_far = has_risen and bool(batches)
            return Comparison(math.inf, math.nan, math.nan) if is_far else None
        first, first_outputs = self._first_results(batches)
        constant = self._lowest_constant(batches, outputs, first_outputs)
        if has_risen and constant == math.inf:  # of several outputs, for example
            return Comparison(reached, first, math.nan)
        error = max(filter(math.isfinite, errors), default=0.0)
        return Comparison(reached, constant, error)

    def _comparable_rows(self, batches: list[Any]) -> tuple[list[Any], list[float]]:
        """Return rows for which equal outputs are a baseline, or none, and errors."""
        batches = [b for b in map(self._sound_rows, batches) if varies(b[1])]
        errors = self._errors(batches)
        return (batches, errors) if all(map(math.isfinite, errors)) else ([], [])

    def _errors(self, batches: list[Any]) -> list[float]:
        return [_Rows(self.net, b, self.fit_params).error() for b in batches]

    def _may_fall(self, reached: float) -> bool:
        """Whether the loss has been falling to the end, so that it may be high yet.

        Unknown if rows that always fail make up the losses of the epochs.
        """
        history = self.net.history or ()
        losses = [row.get("train_loss", math.nan) for row in history]
        losses = [loss for loss in losses if not math.isnan(loss)]
        lowest = min(losses, default=0.0)
        return (
            not losses
            or losses[-1] <= lowest + SMALL * abs(lowest)
            or is_far_above(losses[-1], reached)
        )

    def _sound_rows(self, batch: Any) -> Any:
        """Return the rows of a batch whose output and loss are finite."""
        rows = _Rows(self.net, batch, self.fit_params)

        def is_sound(part: slice) -> bool:
            outputs = sliced(rows.outputs, part, rows.n_rows)
            if nonfinite_rows(outputs, part.stop - part.start):
                return False
            try:
                return bool(torch.isfinite(rows.loss(part)).all())
            except StepRefused:
                return False

        return without_rows(
            (rows.inputs, rows.target), by_bisection(is_sound, rows.n_rows), rows.n_rows
        )

    def _lowest_constant(self, batches: list[Any], *outputs: list[Any]) -> float:
        """Return the loss of the best constant output; inf if it is not known."""
        lowest = lowest_constant_loss(self.net, batches, list(filter(None, outputs)))
        return lowest if math.isfinite(lowest) else math.inf

    def _first_results(self, batches: list[Any]) -> tuple[float, list[Any]]:
        """Return the mean loss and the outputs of the first weights."""
        with contextlib.suppress(StepRefused), self.net.guard_.first_weights():
            return self._repaired_results(batches)
        return math.inf, []

    def evaluation_loss(self) -> float:
        """Return the loss of some training rows in evaluation mode.

        Inf if it is not finite, and -inf if it cannot be computed.
        """
        net = self.net
        inputs, target = unpack_data(self._few_rows())

        def run() -> float:
            with kept_random_states(net.device), torch.no_grad():
                net._set_training(False)
                outputs = net.infer(inputs, **self.fit_params)
                loss = float(net.get_loss(outputs, target, X=inputs, training=False))
            return loss if math.isfinite(loss) else math.inf

        loss = result_of_trial(run)
        # None: forward may have parameters that are not known here.
        return -math.inf if loss is None else loss

    def _repaired_results(self, batches: list[Any]) -> tuple[float, list[Any]]:
        """Return mean loss and outputs, by repaired operations where needed."""
        loss: float = math.nan
        outputs: list[Any] = []
        with contextlib.suppress(StepRefused):
            loss, outputs = self._results(batches)
        if not math.isfinite(loss):
            with RepairedOperations():
                loss, outputs = self._results(batches)
        return loss, outputs

    @property
    def sample(self) -> list[Any]:
        """Recent batches and, if they are known, rows from all the training data."""
        return [*self.batches, *self.training.rows_of_data()]

    def _few_rows(self) -> Any:
        """Return at most as many rows as in a batch, of all if they are known."""
        n_rows = min(get_len(unpack_data(self.batch)[0]), N_TRIAL_ROWS)
        return (self.training.rows_of_data(n_rows) or self.batches)[-1]

    def is_as_good_as_last(self) -> bool:
        """Whether the loss is no higher than with the last verified weights."""
        guard = self.net.guard_
        guard.begin_step()
        try:
            reached, _ = self._results(self.batches)
            with guard.last_weights():
                return reached <= self._results(self.batches)[0]
        except StepRefused:
            return False
        finally:
            guard.weights.last.restore_buffers()

    def _results(self, batches: list[Any]) -> tuple[float, list[Any]]:
        """Return the mean loss of batches, and their outputs."""
        losses, outputs = [], []
        with kept_random_states(self.net.device), torch.no_grad():
            for batch in batches:
                output, loss = self._kept_result(batch)
                losses.append(loss)
                outputs.append(output)
        return sum(losses) / len(losses), outputs

    def rates_at(self, scale: float) -> list[float]:
        """Return ``scale`` times the present learning rate of each parameter group."""
        factor = scale * self.net._schedule_factor()
        return [
            float(group["lr"]) * factor
            for optimizer in self.net._all_optimizers()
            for group in optimizer.param_groups
        ]

    def is_rate_raised(self) -> bool:
        """Whether a scheduler or callback has raised the learning rate above ``lr``."""
        raised: bool = self.net._is_rate_raised()
        return raised

    def _take_step(self, batch: Any) -> float:
        """Take a step, and return its loss before the step."""
        net, conditioning = self.net, self.training.conditioning
        if self.training.own_trial_loss is not None:
            return self.training.own_trial_loss(batch, self.fit_params)
        losses: list[Tensor] = []

        def step_fn() -> Tensor:
            loss, norm = self._backward(batch)
            loss = loss.detach()  # LBFGS of torch 2.8 warns otherwise
            losses.append(loss)
            if not math.isfinite(norm):
                raise StepRefused({}, float(loss), norm)
            parameters = [p for p in net.guard_.parameters if p.grad is not None]
            grads = [p.grad for p in parameters]
            rescue_norm = net.guard_.clip_norm(is_repeated=False)
            self.training.clip(parameters, grads, norm, rescue_norm)
            if conditioning is not None:
                conditioning.to_scaled()
            return loss

        try:
            net._step_optimizer(step_fn)
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            raise StepRefused({}, math.nan, math.nan) from error
        finally:
            if conditioning is not None:
                conditioning.to_raw()
        return float(losses[0])

    def _result(self, batch: Any) -> tuple[Any, Tensor]:
        """Return outputs and loss of a batch."""
        with RefuseErrors():
            return loss_of(self.net, batch, self.fit_params)

    def _kept_result(self, batch: Any) -> tuple[Any, float]:
        """Return outputs and loss of a batch, which other weights do not change.

        An output may be a view of a weight.
        """
        output, loss = self._result(batch)
        is_tensor = isinstance(output, Tensor)
        return output.detach().clone() if is_tensor else output, float(loss)

    def _backward(self, batch: Any) -> tuple[Tensor, float]:
        net = self.net
        net._zero_grad_optimizer()
        _, loss = self._result(batch)
        if not bool(torch.isfinite(loss.detach()).all()):
            raise StepRefused({}, float(loss.detach()), math.nan)
        with RefuseErrors():
            loss.backward()  # type: ignore[no-untyped-call]
        if self.training.conditioning is not None:
            self.training.conditioning.scale_grads()
        grads = [p.grad for p in net.guard_.parameters if p.grad is not None]
        return loss, float(grad_norm(grads))


class _Rows:
    """Rows of a batch with their outputs, from which losses of parts are computed."""

    def __init__(self, net: Any, batch: Any, fit_params: dict[str, Any]) -> None:
        self.net = net
        self.inputs, self.target = unpack_data(batch)
        self.n_rows = get_len(self.inputs)
        with RefuseErrors():
            self.outputs = net.infer(self.inputs, **fit_params)

    def loss(self, part: slice) -> Tensor:
        """Return the loss of some rows, or raise ``StepRefused``."""
        x, y, out = (
            sliced(data, part, self.n_rows)
            for data in (self.inputs, self.target, self.outputs)
        )
        with RefuseErrors():
            loss: Tensor = self.net.get_loss(out, y, X=x, training=True)
        return loss

    def _losses_together(self) -> NDArray[np.float64] | None:
        """Return the loss of each row in one call, or None for an unusual loss."""
        criterion: Any = getattr(self.net, "criterion_", None)
        if closed_form_of(criterion) is None:
            return None
        criterion.reduction = "none"
        try:
            losses = self.loss(slice(0, self.n_rows)).detach()
        except StepRefused:  # of a loss of the user's own, which needs a number
            return None
        finally:
            criterion.reduction = "mean"
        if losses.ndim == 0 or len(losses) != self.n_rows:
            return None
        return losses.double().reshape(self.n_rows, -1).mean(1).cpu().numpy()

    @np.errstate(over="ignore", invalid="ignore")
    def error(self) -> float:
        """Return the standard error of the loss of all rows.

        It is NaN if a loss is not finite, or if the loss is neither a weighted mean nor
        the sum of those of rows.
        """
        n = self.n_rows
        whole = float(self.loss(slice(0, n)))
        each = self._losses_together()
        if each is None:
            each = np.array([float(self.loss(slice(i, i + 1))) for i in range(n)])
        rounding = np.abs(each).max() * torch.finfo(torch.float32).eps ** 0.5
        for factor in (1.0, n):
            if each.min() - rounding <= whole / factor <= each.max() + rounding:
                return float(factor * each.std() / math.sqrt(n))
        return math.nan


def _are_compared(target: Any, output: Any) -> bool:
    """Return whether a loss seems to compare each output with a target."""
    are_tensors = isinstance(target, Tensor) and isinstance(output, Tensor)
    return (
        are_tensors and target.is_floating_point() and target.numel() == output.numel()
    )
