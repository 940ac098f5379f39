"""Checks of single training steps: loss, gradients, running statistics, weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sknan._utils.thresholds import NARROW, OVERFLOWS_SQUARED
from sknan.diagnosis._report import NonFiniteReport
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets.guard._loss_watch import LossWatch
from sknan.nets.guard._readings import read_numbers
from sknan.nets.guard._weights import VerifiedWeights
from sknan.optim._clipping import grad_norms, stable_grad_norm
from sknan.optim._learning_rates import hopeless_decay, longest_reach


def _without_tensors() -> dict[str, Any]:
    return {"_weights": None, "_optimizers": [], "parameters": [], "_buffers": []}


class StepChecks:
    """Checks of the steps of one training, and the snapshots that belong to them.

    Attributes
    ----------
    parameters : list of nn.Parameter
        Trained parameters.
    """

    parameters: list[nn.Parameter]
    _weights: VerifiedWeights | None
    _optimizers: list[torch.optim.Optimizer]
    _buffers: list[Tensor]

    def __init__(self) -> None:
        self._watch = LossWatch(None)
        self._forget_tensors()

    def begin(
        self,
        modules: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        n_steps: int | None = None,
    ) -> None:
        """Start to guard a training, from weights that must be finite.

        Parameters
        ----------
        modules : sequence of nn.Module
            Networks, and criteria that have weights.
        optimizers : sequence of Optimizer
            Optimizers of these modules.
        n_steps : int or None, default=None
            Number of steps of the training, if known. In a short training an explosion
            of the loss is recognized sooner.

        Raises
        ------
        NonFiniteTrainingError
            If a weight is not finite, or if weight decay alone makes the weights
            explode.
        ValueError
            If no parameter is to be trained.
        """
        self._optimizers = list(optimizers)
        self._weights = VerifiedWeights(modules, self._optimizers)
        self.parameters = [
            p for module in modules for p in module.parameters() if p.requires_grad
        ]
        if not self.parameters:
            raise ValueError(
                "The network has nothing to train: none of its parameters requires a "
                "gradient. Call requires_grad_() on those that are to be trained, or "
                "leave out the callback that freezes them."
            )
        if not self._weights.last.is_live_finite():
            raise NonFiniteTrainingError(
                "The network contains non-finite weights before the first step. Check "
                "its initialization, or the weights that were loaded into it."
            )
        decay = hopeless_decay(self._optimizers)
        if decay is not None:
            action = "Lower weight_decay to 0.1 or less."
            report = NonFiniteReport("step", "learning_rate", decay, action)
            raise NonFiniteTrainingError(str(report), report)
        self._buffers = self._weights.last.float_buffers()
        self._watch = LossWatch(n_steps, self._watch.reference)
        # Length of the first step that was longer than the norm of the weights,
        # divided by that norm.
        self._first_step_ratio = 0.0
        # Such an update may be non-finite although gradient and rate are moderate.
        self._is_step_fragile = (
            any(p.dtype in NARROW for p in self.parameters)
            or any(not type(o).__module__.startswith("torch.") for o in optimizers)
            or any(
                g.get("eps") == 0.0 or g.get("centered")  # a variance may round below 0
                for o in optimizers
                for g in o.param_groups
            )
        )

    @property
    def has_begun(self) -> bool:
        """Whether a training is being guarded."""
        return self._weights is not None

    @property
    def weights(self) -> VerifiedWeights:
        """Snapshots of the training that is being guarded."""
        assert self._weights is not None
        return self._weights

    # -- the check of a step ---------------------------------------------------------

    def look(self, loss: Tensor) -> tuple[float, float, list[Tensor], list[Tensor]]:
        """Read the loss and the norm of the gradients, with one host read for both.

        Parameters
        ----------
        loss : Tensor of shape ()
            Loss of the step, after ``backward``.

        Returns
        -------
        loss, norm : float
            Loss and gradient norm. The norm is finite wherever the gradients are, even
            if their squares overflow. A running statistic that is not finite makes the
            norm NaN.
        parameters, grads : list of Tensor
            Weights that have a gradient, and their gradients.
        """
        parameters: list[Tensor] = []
        grads: list[Tensor] = []
        for parameter in self.parameters:
            grad = parameter.grad
            if grad is not None:
                parameters.append(parameter)
                grads.append(grad)
        # One call for gradients and buffers costs less than two.
        numbers = [*grad_norms([*grads, *self._buffers]), loss.detach()]
        *norms, loss_value = read_numbers(numbers)
        norm_value = math.hypot(*norms[: len(grads)])
        buffer_norms = norms[len(grads) :]
        if not math.isfinite(norm_value):
            norm_value = stable_grad_norm(grads)
        if not (all(map(math.isfinite, buffer_norms)) or self._has_finite_buffers()):
            norm_value = math.nan
        if not math.isfinite(loss_value):
            loss_value = loss.item()  # a float64 loss may exceed the norm's float32
        return loss_value, norm_value, parameters, grads

    def _has_finite_buffers(self) -> bool:
        """Whether all buffers are finite; their norm may overflow although they are."""
        return all(bool(torch.isfinite(b).all()) for b in self._buffers)

    def has_exploded(self, loss: float, loss_of_batch: Callable[[], float]) -> bool:
        """Whether a finite loss has diverged; see :class:`LossWatch`.

        Parameters
        ----------
        loss : float
            Finite loss of the present step.
        loss_of_batch : callable
            Function that computes the loss of the same batch. It is called only on
            suspicion, with the first weights in place.

        Returns
        -------
        bool
        """

        def untrained_loss() -> float:
            with self.first_weights():
                return loss_of_batch()

        has_exploded = self._watch.has_exploded(loss, untrained_loss)
        return has_exploded and self.weights.n_steps > 0

    def is_spike(self, loss: float, norm: float) -> bool:
        """Whether a finite gradient is absurdly large compared with the previous ones.

        Parameters
        ----------
        loss, norm : float
            Finite loss and gradient norm of the present step.

        Returns
        -------
        bool
        """
        return self._watch.is_spike(loss, norm)

    @property
    def largest_loss(self) -> float:
        """Loss of the untrained network, raised where the data are larger."""
        return self._watch.reference

    @largest_loss.setter
    def largest_loss(self, loss: float) -> None:
        self._watch.reference = loss

    def is_trusted(self, loss: float) -> bool:
        """Whether a loss is not far above that of the untrained network."""
        return self._watch.is_trusted(loss)

    def begin_step(self) -> None:
        """Copy what a forward pass changes even if no step follows."""
        self.weights.last.take_buffers()

    def pass_step(self, loss: float) -> None:
        """Accept a batch whose loss and gradient are finite with the present weights.

        Proposed weights become the last verified ones, unless the loss is far above
        that of the untrained network: they may be diverging.

        Parameters
        ----------
        loss : float
            Finite loss of the batch.
        """
        if self.weights.is_proposed and self.is_trusted(loss):
            self.weights.accept()
        self.weights.is_proposed = False

    def step_taken(self) -> None:
        """Record that the optimizer has changed the weights."""
        groups = chain.from_iterable(o.param_groups for o in self._optimizers)
        self.weights.count_step([float(group["lr"]) for group in groups])

    def may_overflow(self, factor: float, norm: float) -> bool:
        """Whether the step just taken may have left weights that are not finite.

        Parameters
        ----------
        factor : float
            Factor of the learning rates.
        norm : float
            Norm of the clipped gradients.

        Returns
        -------
        bool
        """
        reach = longest_reach(self._optimizers) * factor
        if not self._first_step_ratio:
            ratio = reach * norm / self.weights.first_norm
            self._first_step_ratio = ratio if ratio > 1.0 else 0.0
        # A step that could be that long may overflow; the weights are checked after it.
        is_short = reach * max(norm, 1.0) < OVERFLOWS_SQUARED
        return self._is_step_fragile or not is_short

    # -- weights ---------------------------------------------------------------------

    def propose_weights(self) -> None:
        """Propose the present weights as the ones to roll back to.

        They are verified if the loss and gradient of the next batch are finite.
        """
        self.weights.is_proposed = True

    def first_weights(self) -> contextlib.AbstractContextManager[None]:
        """Use the weights from the start of training inside the block."""
        return self.weights.first.swapped_in()

    def last_weights(self) -> contextlib.AbstractContextManager[None]:
        """Use the last verified weights inside the block."""
        return self.weights.last.swapped_in()

    def has_finite_weights(self) -> bool:
        """Whether weights, and the buffers that were finite at first, are finite."""
        return self.weights.last.is_live_finite()

    def nonfinite_tensors(self) -> list[Tensor]:
        """Return the weights, and buffers that were finite at first, that are not."""
        return self.weights.last.nonfinite_tensors()

    def relative_distance(self) -> float:
        """Return the distance from the last snapshot, in multiples of its norm."""
        return self.weights.last.relative_distance()

    def clear_half_written(self) -> None:
        """Clear optimizer state that an interrupted step leaves inconsistent."""
        for optimizer in self._optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.state.clear()

    # -- saving ----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that :meth:`load_state_dict` needs."""
        return {
            "first_step_ratio": self._first_step_ratio,
            "watch": self._watch.state_dict(),
            "weights": self.weights.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume an interrupted training, after :meth:`begin`.

        Parameters
        ----------
        state : dict
            State of the checks of the same modules and optimizers.
        """
        self._first_step_ratio = state["first_step_ratio"]
        self._watch.load_state_dict(state["watch"])
        self.weights.load_state_dict(state["weights"])

    def _forget_tensors(self) -> None:
        vars(self).update(_without_tensors())

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), **_without_tensors()}
