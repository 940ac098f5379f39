"""Training steps that a net class of the user's own defines, under guard.

A ``train_step`` of the user's own may take several steps of optimizers, or none. The
guard checks and clips the gradients before each of them, and checks loss, gradients and
weights at the end. A step that fails leaves the weights as they were before it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from skorch import NeuralNet
from torch import Tensor

from sknan._utils.random_state import resumed
from sknan.diagnosis._backward import CapturedBackward, sanitized_backward
from sknan.nets.guard._readings import read_numbers
from sknan.nets.guard._snapshots import OptimizerSnapshot, Snapshot
from sknan.nets.recovery.finite_operations import RepairedOperations
from sknan.nets.recovery.protocol import (
    RefuseErrors,
    Step,
    StepMode,
    StepRefused,
    Training,
    no_result,
)
from sknan.nets.recovery.step_loss import loss_of
from sknan.optim._clipping import grad_norms, stable_grad_norm

TrainStep = Callable[..., Step]


def owner_behind(mixin: type, cls: type, name: str) -> type:
    """Return the class from which a guarded net inherits a method of its skorch net."""
    bases = cls.__mro__[cls.__mro__.index(mixin) + 1 :]
    others = (base for base in bases if not base.__module__.startswith("sknan."))
    return next(base for base in others if name in vars(base))


def refuse_order_of_bases(mixin: type, cls: type) -> None:
    """Raise ``TypeError`` for a class whose skorch net hides the methods of a mixin."""
    order = cls.__mro__
    if NeuralNet in order[: order.index(mixin)]:
        bases = sorted(cls.__bases__, key=lambda base: not issubclass(base, mixin))
        names = ", ".join(base.__name__ for base in bases)
        raise TypeError(
            f"{cls.__name__} would train without guard, because its skorch net "
            f"precedes {mixin.__name__} in the list of base classes. Write "
            f"class {cls.__name__}({names})."
        )


def refuse_missing_net(mixin: type, cls: type) -> None:
    """Raise ``TypeError`` for a class with a mixin, but without a skorch net."""
    if not issubclass(cls, NeuralNet):
        name = "Net" if cls is mixin else cls.__name__
        bases = [base.__name__ for base in cls.__bases__ if issubclass(base, mixin)]
        raise TypeError(
            f"{cls.__name__} has no skorch net to guard. Write "
            f"class {name}({', '.join(bases or [mixin.__name__])}, "
            "NeuralNetClassifier), or with another net of skorch."
        )


def has_own_method(cls: type, name: str) -> bool:
    """Whether a class of the user's own defines a method of a skorch net."""
    owners = (base for base in cls.__mro__ if name in vars(base))
    known = ("skorch", "sknan")
    return any(base.__module__.partition(".")[0] not in known for base in owners)


def refuse_own_loop(mixin: type, net: Any) -> None:
    """Raise ``TypeError`` for a class whose own loop over batches is never called."""
    owner = owner_behind(mixin, type(net), "run_single_epoch")
    if owner is not NeuralNet:
        raise TypeError(
            f"run_single_epoch of {owner.__name__} would never be called, because a "
            "guarded net has one of its own. Move what it adds to train_step, "
            "validation_step or a callback."
        )


class OwnStep:
    """The ``train_step`` of the user, whose steps of optimizers are guarded.

    Parameters
    ----------
    training : Training
        Training of the net.
    train_step : callable
        The user's method.

    Attributes
    ----------
    is_adversarial : bool
        Whether it trains several losses, none of which needs to fall.
    """

    def __init__(self, training: Training, train_step: TrainStep) -> None:
        self.training = training
        self.train_step = train_step
        net = training.net
        self._optimizers = net._all_optimizers()
        self.is_adversarial = len(self._optimizers) > 1
        modules = net._all_modules()
        self._parameters = [p for module in modules for p in module.parameters()]
        self._weights = Snapshot(modules)
        self._moments = OptimizerSnapshot(self._optimizers)
        self._grads: list[Tensor | None] | None = None  # before a step that failed

    def take(self, batch: Any, fit_params: dict[str, Any], mode: StepMode) -> Step:
        """Take one step, or raise; parameters as in ``GuardedTraining.attempt``."""
        if self._grads is not None:  # those of a step that failed are worthless
            # So are those of earlier batches, if their weights were rolled back.
            is_rolled_back = self._weights.relative_distance() != 0.0
            for parameter, grad in zip(self._parameters, self._grads, strict=True):
                parameter.grad = None if is_rolled_back else grad
        self._grads = [
            p.grad if p.grad is None else p.grad.clone() for p in self._parameters
        ]
        self._weights.take()
        self._moments.take()
        try:
            step = self._run(batch, fit_params, mode)
            loss, norm, *_ = self.training.guard.look(torch.as_tensor(step["loss"]))
            is_finite = math.isfinite(loss) and math.isfinite(norm)
            if self.training.guard.has_finite_weights() and not (
                is_finite and self._is_accepted(loss, batch, fit_params)
            ):
                raise StepRefused(step, loss, norm)
        except StepRefused as refused:
            self._restore()
            if refused.error is None and refused.step["y_pred"] is None:
                raise self._with_outputs(batch, fit_params) from None
            raise
        except Exception:
            self._restore()
            raise
        if not self.training.guard.has_finite_weights():
            raise StepRefused(step, loss, norm, has_stepped=True)
        self.training.guard.pass_step(loss)
        self._grads = None
        return step

    def _is_accepted(self, loss: float, batch: Any, fit_params: dict[str, Any]) -> bool:
        """Whether a loss that is to fall has not exploded."""
        has_exploded = self.training.has_exploded
        return self.is_adversarial or not has_exploded(loss, batch, fit_params)

    def _with_outputs(self, batch: Any, fit_params: dict[str, Any]) -> StepRefused:
        """Return the refusal of a step with its outputs and its loss."""
        net = self.training.net
        with resumed(self.training.random_states, net.device):
            outputs, loss = loss_of(net, batch, fit_params)
        step = {"loss": loss.detach(), "y_pred": outputs}
        return StepRefused(step, float(loss.detach()), math.nan)

    def _restore(self) -> None:
        self._weights.restore()
        self._moments.restore()

    def trial_loss(self, batch: Any, fit_params: dict[str, Any]) -> float:
        """Take a step whose effects the caller undoes; return its loss, or raise."""
        step = self._run(batch, fit_params, "plain", is_trial=True)
        loss = float(torch.as_tensor(step["loss"]).detach())
        if not (math.isfinite(loss) and self.training.guard.has_finite_weights()):
            raise StepRefused(step, loss, math.nan)
        return loss

    def _run(
        self,
        batch: Any,
        fit_params: dict[str, Any],
        mode: StepMode,
        *,
        is_trial: bool = False,
    ) -> Step:
        """Call the user's method, and check each step of an optimizer in it."""
        training = self.training
        max_norm = training.guard.clip_norm(is_repeated=mode != "plain")

        def check(parameters: list[Tensor]) -> None:
            grads = [p.grad for p in parameters if p.grad is not None]
            norm = math.hypot(*read_numbers(grad_norms(grads))) if grads else 0.0
            if not math.isfinite(norm):
                norm = stable_grad_norm(grads)
            if not math.isfinite(norm):
                raise StepRefused(no_result(), math.nan, norm)
            coefficient = training.clip(parameters, grads, norm, max_norm)
            if not is_trial:
                training.count_clip(norm, coefficient)

        with contextlib.ExitStack() as stack:
            if mode == "finite_operations":
                stack.enter_context(RepairedOperations())
                stack.enter_context(CapturedBackward(sanitized_backward))
            stack.enter_context(self._checked_steps(check))
            stack.enter_context(RefuseErrors())
            return self.train_step(batch, **fit_params)

    @contextlib.contextmanager
    def _checked_steps(self, check: Callable[[list[Tensor]], None]) -> Iterator[None]:
        """Call a function before each step of an optimizer inside the block.

        An optimizer that is given a closure is checked after each call of the closure.
        """

        def before_step(optimizer: Any, args: Any, kwargs: Any) -> Any:
            def check_grads() -> None:
                weights = [p for g in optimizer.param_groups for p in g["params"]]
                check([p for p in weights if p.grad is not None])

            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            if closure is None:
                check_grads()
                return None

            def checked_closure() -> Any:
                loss = closure()
                check_grads()
                return loss

            return args[:1], {"closure": checked_closure}

        handles = [o.register_step_pre_hook(before_step) for o in self._optimizers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
