"""Training step of skorch under guard."""

from __future__ import annotations

import math
from typing import Any

from skorch.utils import TeeGenerator
from torch import Tensor

from sknan._utils.thresholds import OVERFLOWS_SQUARED
from sknan.diagnosis._raised import about_loss
from sknan.nets.recovery.finite_operations import finite_step
from sknan.nets.recovery.own_gradient import own_gradient_step
from sknan.nets.recovery.protocol import (
    RefuseErrors,
    Step,
    StepMode,
    StepRefused,
    Training,
)
from sknan.optim._learning_rates import scaled_rates

# What is done in place of skorch's ``train_step_single`` when a step is repeated.
_STEPS = {"finite_operations": finite_step, "own_gradient": own_gradient_step}


class PlainStep:
    """A step as skorch's ``train_step`` takes it, with a check before it is taken.

    Parameters
    ----------
    training : Training
        Training of the net.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self._step_norm = self._step_loss = 0.0

    def take(
        self, batch: Any, fit_params: dict[str, Any], mode: StepMode, factor: float
    ) -> Step:
        """Take one step, or raise; parameters as in ``GuardedTraining.attempt``.

        ``factor`` is that of the learning rates.
        """
        training = self.training
        net, guard, conditioning = training.net, training.guard, training.conditioning
        accumulator = net.get_train_step_accumulator()
        single = _STEPS.get(mode, type(net).train_step_single)
        n_evaluations = 0

        def step_fn() -> Tensor:
            nonlocal n_evaluations
            n_evaluations += 1
            if conditioning is not None:
                conditioning.to_raw()  # an optimizer may call this repeatedly
            with RefuseErrors():
                net._zero_grad_optimizer()
                step = single(net, batch, **fit_params)
            accumulator.store_step(step)
            net.notify(
                "on_grad_computed",
                named_parameters=TeeGenerator(net.get_all_learnable_params()),
                batch=batch,
                training=True,
            )
            self._check_and_clip(batch, step, fit_params, mode)
            if conditioning is not None:
                conditioning.to_scaled()
            loss: Tensor = step["loss"].detach()  # LBFGS of torch 2.8 warns otherwise
            return loss

        try:
            with scaled_rates(net._all_optimizers(), factor, guard.rate_caps):
                net._step_optimizer(step_fn)
        except StepRefused as refused:
            refused.has_stepped = n_evaluations > 1
            raise
        except AttributeError as error:
            if (about := about_loss(error)) is error:
                raise
            raise about from None
        except RuntimeError as error:
            if "not support sparse" in str(error):
                raise _sparse_error(net) from error
            if "without overflow" not in str(error):
                raise
            # The rate times its bias correction exceeds float32.
            guard.may_overflow(factor, self._step_norm)
            raise StepRefused(
                accumulator.get_step(),
                self._step_loss,
                self._step_norm,
                has_stepped=True,
            ) from error
        if conditioning is not None:
            conditioning.to_raw()
        taken: Step = accumulator.get_step()
        may_overflow = guard.may_overflow(factor, self._step_norm)
        if may_overflow and not guard.has_finite_weights():
            loss = float(taken["loss"].detach())
            raise StepRefused(taken, loss, self._step_norm, has_stepped=True)
        return taken

    def _check_and_clip(
        self,
        batch: Any,
        step: dict[str, Any],
        fit_params: dict[str, Any],
        mode: StepMode,
    ) -> None:
        """Refuse a step that is not finite or has exploded; clip any other.

        This runs after the user's callbacks, which may change the gradients, and before
        clipping, which would spread a NaN.
        """
        training = self.training
        net, guard, conditioning = training.net, training.guard, training.conditioning
        if conditioning is not None:
            conditioning.scale_grads()
        loss, norm, parameters, grads = guard.look(step["loss"])
        rescue_norm = guard.clip_norm(is_repeated=mode != "plain")

        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise StepRefused(step, loss, norm)

        is_short = net.clip_norm is not None or rescue_norm is not None
        is_absurd = norm >= OVERFLOWS_SQUARED and training.raw_table is not None
        if not is_short:
            is_absurd |= norm >= OVERFLOWS_SQUARED or guard.is_spike(loss, norm)
        if mode == "finite_operations" and norm == 0.0:
            raise StepRefused(step, loss, norm)  # such a step teaches nothing
        # With torch's own gradient, some rows have only the loss of the domain's edge.
        is_comparable = mode != "own_gradient"
        if is_absurd or (
            is_comparable and training.has_exploded(loss, batch, fit_params)
        ):
            raise StepRefused(step, loss, norm, is_gradient_absurd=is_absurd)
        if is_comparable:
            guard.pass_step(loss)
        coefficient = training.clip(parameters, grads, norm, rescue_norm)
        self._step_norm, self._step_loss = norm * coefficient, loss
        training.count_clip(norm, coefficient)


def _sparse_error(net: Any) -> ValueError:
    """Return an error for an optimizer that needs dense gradients."""
    grads = {name: p.grad for name, p in net.get_all_learnable_params()}
    sparse = [name for name, g in grads.items() if g is not None and g.is_sparse]
    return ValueError(
        f"The gradient of {', '.join(map(repr, sparse))} is sparse, which the "
        "optimizer does not support. Create the embedding with sparse=False."
    )
