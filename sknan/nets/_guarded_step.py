"""One training of a skorch net under guard, step by step."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import Any

import torch
from skorch.dataset import unpack_data
from skorch.utils import TeeGenerator
from torch import Tensor

from sknan._utils.compiled import uncompiled
from sknan._utils.random_state import random_states
from sknan.diagnosis._report import NonFiniteReport
from sknan.diagnosis._thresholds import OVERFLOWS_SQUARED, is_runaway
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets._batching import TensorBatches, TensorTable
from sknan.nets._chain import LayerwisePass
from sknan.nets.guard._guard import Guard
from sknan.nets.recovery.explain import explain, explain_weights
from sknan.nets.recovery.finite_operations import finite_step
from sknan.nets.recovery.protocol import (
    Answer,
    Failure,
    Step,
    StepMode,
    StepRefused,
)
from sknan.nets.recovery.rate_trials import RateTrials
from sknan.nets.recovery.raw_units import Conditioning
from sknan.optim._clipping import clip_grad_norm, clip_grad_value, grad_norm
from sknan.optim._learning_rates import scaled_rates

__all__ = ["GuardedTraining"]

# Batches on which a lower rate is tried out.
_N_LATEST = 4

# Numbers that live from epoch to epoch.
_KEPT = ("n_steps", "rate", "n_clipped", "largest_norm")


class GuardedTraining:
    """What lives from the beginning of a training of a net to its end.

    The order of one step, which a test holds: watch, recover, clip, schedule, log.

    Parameters
    ----------
    net : skorch net with GuardMixin
        Initialized.
    batches : iterable of tuple
        Of the training.
    n_steps : int or None
        Its length, if known.
    is_fresh : bool
        Whether the weights are those of an initialisation, which a better one may
        replace.

    Attributes
    ----------
    n_steps : int
        Steps taken.
    rate : float or None
        Learning rate of the latest one.
    batch_number : int
        Of the batch at hand in its epoch, counted from 1.
    n_clipped : int
        Steps that were clipped.
    largest_norm : float
        Of the gradients of any step, before clipping.
    norms : list of float
        Norm of the gradients of each step of the epoch, before clipping.
    coefficients : list of float
        By what each of them was clipped; 1.0 for not at all.
    layerwise : LayerwisePass or None
        What takes the place of autograd in the steps of this epoch.
    """

    def __init__(
        self, net: Any, batches: Any, n_steps: int | None, *, is_fresh: bool
    ) -> None:
        self.net = net
        self.guard: Guard = net.guard_
        self.begin_epoch(batches, None)
        self.n_steps = 0
        self.rate: float | None = None
        self.batch_number = 1
        self.random_states: Any = None
        self.latest_batches: deque[Any] = deque(maxlen=_N_LATEST)
        self.conditioning: Conditioning | None = None
        table = getattr(batches, "dataset", None)
        has_table = is_fresh and isinstance(table, TensorTable)
        self.raw_table = table if has_table else None
        self._step_norm = self._step_loss = 0.0
        self.n_clipped = 0
        self.largest_norm = 0.0
        try:
            self.guard.begin(net._all_modules(), net._all_optimizers(), n_steps)
        except NonFiniteTrainingError as error:
            if error.report is not None:
                raise
            report = explain_weights(self, next(iter(batches)))
            raise NonFiniteTrainingError(str(report), report) from None

    def begin_epoch(self, batches: Any, layerwise: LayerwisePass | None) -> None:
        """Forget the norms of the epoch before, and look at the network anew.

        Parameters
        ----------
        batches : iterable of tuple
            Of the epoch.
        layerwise : LayerwisePass or None
            What may take the place of autograd in it.
        """
        self.batches = batches
        self.layerwise = layerwise
        self.norms: list[float] = []
        self.coefficients: list[float] = []
        self._submodules = [
            part for module in self.net._all_modules() for part in module.modules()
        ]

    @property
    def is_in_mode(self) -> bool:
        """Whether each part of the network is in training mode."""
        return all(module.training for module in self._submodules)

    def end(self, *, is_broken_off: bool) -> None:
        """Leave the net with weights that anyone may use.

        Parameters
        ----------
        is_broken_off : bool
            Whether training ended anywhere, as by Ctrl-C: the weights in place have
            been looked at by nobody, and may be half written.
        """
        goes_back = self.conditioning is not None and self.conditioning.is_inconsistent
        if self.conditioning is not None and not goes_back:
            self.conditioning.to_raw()
        if (
            is_broken_off
            and not goes_back
            and is_runaway(self.guard.relative_distance())
        ):
            batches = self.latest_batches
            goes_back = not batches or not RateTrials(self, batches[-1], {}).keep_up()
        self.guard.end(goes_back=goes_back)

    def state_dict(self) -> dict[str, Any]:
        """What the rest of the training depends on, between two epochs."""
        conditioning = self.conditioning
        return {
            **{name: getattr(self, name) for name in _KEPT},
            "latest_batches": list(self.latest_batches),
            "may_scale_data": self.raw_table is not None,
            "conditioning": conditioning and conditioning.state_dict(self.net.module_),
            "guard": self.guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a training that was broken off, before the next epoch.

        Parameters
        ----------
        state : dict
            Of a training of a twin of the net, whose weights are in place.
        """
        vars(self).update({name: state[name] for name in _KEPT})
        self.latest_batches.extend(state["latest_batches"])
        if not state["may_scale_data"]:
            self.raw_table = None
        if state["conditioning"] is not None:
            self.conditioning = Conditioning.from_state_dict(
                state["conditioning"], self.net.module_
            )
        self.guard.load_state_dict(state["guard"])

    def has_learned(self) -> bool:
        """Whether a training that was rolled back has come to anything."""
        if not self.guard.n_roll_backs or not self.latest_batches:
            return True
        return RateTrials(self, self.latest_batches[-1], {}).has_learned()

    def in_data(self, report: NonFiniteReport) -> NonFiniteReport:
        """The report with rows and columns as the caller knows them.

        Parameters
        ----------
        report : NonFiniteReport
            With those of the batch at hand.

        Returns
        -------
        NonFiniteReport
            As it is where a data loader has drawn the batch.
        """
        if not isinstance(self.batches, TensorBatches) or self.batches.latest is None:
            return report
        numbers, names = self.batches.latest, self.batches.dataset.columns
        rows = tuple(sorted(int(numbers[row]) for row in report.rows))
        columns = report.columns
        if names is not None:
            columns = tuple(str(names[int(column)]) for column in columns)
        return dataclasses.replace(report, rows=rows, rows_in="data", columns=columns)

    # -- the step --------------------------------------------------------------------

    def step(self, batch: Any, fit_params: dict[str, Any]) -> dict[str, Any]:
        """Take one step if it is finite; else recover, and try again or leave it out.

        Parameters
        ----------
        batch : tuple
            As the iterator yields it.
        fit_params : dict
            Passed to the module's ``forward``.

        Returns
        -------
        dict
            ``loss`` and ``y_pred``; with ``was_skipped`` true if no step was taken.
        """
        while True:
            try:
                return self.attempt(batch, fit_params)
            except StepRefused as refused:
                with uncompiled(self.net):  # there is nothing to see in compiled code
                    step = self._recover(refused, batch, fit_params)
                if step is not None:
                    return step

    def _recover(
        self, refused: StepRefused, batch: Any, fit_params: dict[str, Any]
    ) -> Step | None:
        """Return the result of :meth:`step`, or None to attempt the batch again."""
        explanation = explain(self, refused, batch, fit_params)
        trials = RateTrials(self, batch, fit_params)
        failure = Failure(
            self.guard, trials, refused, explanation, explanation, batch, fit_params
        )
        for recovery in self.net._recoveries:
            if recovery.applies(failure):
                answer: Answer = recovery.attempt(self, failure, batch)
                if answer is not None:
                    return None if isinstance(answer, str) else answer
        return self.guard.stop(failure.report)

    def attempt(
        self, batch: Any, fit_params: dict[str, Any], mode: StepMode = "plain"
    ) -> dict[str, Any]:
        """Take one step, or raise.

        Parameters
        ----------
        batch : tuple
        fit_params : dict
            Passed to the module's ``forward``.
        mode : {"plain", "without_rows", "finite_operations"}, default="plain"
            What is changed in a step that is repeated after a failure.

        Returns
        -------
        dict
            ``loss`` and ``y_pred``.

        Raises
        ------
        StepRefused
            If it is not to be taken, before any weight has changed, or if it has left
            weights that are not finite.
        """
        net, guard, conditioning = self.net, self.guard, self.conditioning
        accumulator = net.get_train_step_accumulator()
        guard.begin_step()
        is_repaired = mode == "finite_operations"
        single = finite_step if is_repaired else type(net).train_step_single
        layerwise = None if is_repaired or fit_params else self.layerwise
        pieces = None if layerwise is None else [layerwise.gradients]
        is_random = layerwise is None or layerwise.is_random
        if is_random or self.random_states is None:
            self.random_states = random_states(net.device)

        def step_fn() -> Tensor:
            if conditioning is not None:
                conditioning.to_raw()  # an optimizer may look more than once
            try:
                if layerwise is not None:  # which overwrites the gradients
                    step = layerwise.step(batch[0], batch[1], net.get_loss)
                else:
                    net._zero_grad_optimizer()
                    step = single(net, batch, **fit_params)
            except Exception as error:  # as a decomposition of NaN raises
                empty = {"loss": torch.tensor(math.nan), "y_pred": None}
                raise StepRefused(empty, math.nan, math.nan, error) from error
            accumulator.store_step(step)
            if net._is_heard_in_epoch_:
                net.notify(
                    "on_grad_computed",
                    named_parameters=TeeGenerator(net.get_all_learnable_params()),
                    batch=batch,
                    training=True,
                )
            self._watch_and_clip(batch, step, fit_params, mode, pieces)
            if conditioning is not None:
                conditioning.to_scaled()
            loss: Tensor = step["loss"]
            return loss

        factor = net._rate_factor()
        with scaled_rates(net._all_optimizers(), factor, guard.rate_caps):
            try:
                net._step_optimizer(step_fn)
            except RuntimeError as error:
                if "without overflow" not in str(error):
                    raise
                # A rate at the end of float32, times its correction, is beyond it.
                guard.may_overflow(factor, self._step_norm)
                raise StepRefused(
                    accumulator.get_step(), self._step_loss, self._step_norm
                ) from error
        if conditioning is not None:
            conditioning.to_raw()
        taken: dict[str, Any] = accumulator.get_step()
        if guard.may_overflow(factor, self._step_norm) and not (
            guard.has_finite_weights()
        ):
            # Refused only now, but before anyone copies what it has left.
            raise StepRefused(taken, float(taken["loss"].detach()), self._step_norm)
        self.rate = float(net.lr) * factor
        self.latest_batches.append(batch)
        guard.step_taken()
        self.n_steps += 1
        return taken

    def _watch_and_clip(
        self,
        batch: Any,
        step: dict[str, Any],
        fit_params: dict[str, Any],
        mode: StepMode,
        pieces: list[Tensor] | None,
    ) -> None:
        """Refuse a step that is not finite or has exploded; clip any other.

        Stands after the user's own callbacks, so that what they do to the gradients is
        seen too, and before our clipping, which would spread a NaN.
        """
        guard, net = self.guard, self.net
        if self.conditioning is not None:
            self.conditioning.scale_grads()
        loss, norm, parameters, grads = guard.look(step["loss"])
        rescue_norm = guard.clip_norm(is_repeated=mode != "plain")

        def loss_of_batch() -> float:
            with torch.random.fork_rng(), torch.no_grad():
                inputs, target = unpack_data(batch)
                net._set_training(True)
                outputs = net.infer(inputs, **fit_params)
                found = net.get_loss(outputs, target, X=inputs, training=True)
                return float(found.item())

        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise StepRefused(step, loss, norm)
        is_short = net.clip_norm is not None or rescue_norm is not None
        is_absurd = norm >= OVERFLOWS_SQUARED and self.raw_table is not None
        if not is_short:
            is_absurd |= norm >= OVERFLOWS_SQUARED or guard.is_spike(loss, norm)
        if is_absurd or guard.has_exploded(loss, loss_of_batch):
            raise StepRefused(step, loss, norm, is_gradient_absurd=is_absurd)
        if mode == "finite_operations" and norm == 0.0:
            raise StepRefused(step, loss, norm)  # nothing to learn is left of it
        guard.pass_step(loss)
        coefficient = self.clip(parameters, grads, norm, rescue_norm, pieces)
        self._step_norm, self._step_loss = norm * coefficient, loss
        self.norms.append(norm)
        self.coefficients.append(coefficient)
        self.n_clipped += coefficient < 1.0
        self.largest_norm = max(self.largest_norm, norm)

    def clip(
        self,
        parameters: list[Tensor],
        grads: list[Tensor],
        norm: float,
        rescue_norm: float | None,
        pieces: list[Tensor] | None = None,
    ) -> float:
        """Clip in place.

        Parameters
        ----------
        parameters, grads : list of Tensor
            Weights that have a gradient, and their gradients.
        norm : float
            Global norm of the gradients, finite.
        rescue_norm : float or None
            What the guard itself allows.
        pieces : list of Tensor or None, default=None
            The same gradients in fewer pieces, if they are so laid out.

        Returns
        -------
        float
            By what the global norm has shrunk.
        """
        net, before = self.net, norm
        if net.adaptive_clip_ is not None:
            norm *= net.adaptive_clip_(parameters, grads, norm)
        grads = pieces or grads
        if net.clip_value is not None:
            clip_grad_value(grads, net.clip_value)
            norm = float(grad_norm(grads))
        for max_norm in (net.clip_norm, rescue_norm):
            if max_norm is not None:
                norm *= clip_grad_norm(grads, max_norm, norm)
        return norm / before if before else 1.0
