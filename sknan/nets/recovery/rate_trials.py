"""Trials of weights and learning rates on the latest batches."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from sknan._utils.random_state import kept_random_states, resumed
from sknan._utils.thresholds import N_TRIALS
from sknan.nets.recovery.explain import empty_states
from sknan.nets.recovery.protocol import RefuseErrors, StepRefused
from sknan.nets.recovery.result_trials import ResultTrials
from sknan.optim._clipping import grad_norm
from sknan.optim._learning_rates import scaled_rates


class RateTrials(ResultTrials):
    """Trials that a guard runs before it decides; see :class:`SampleLosses`."""

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
