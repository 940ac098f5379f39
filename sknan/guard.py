"""The per-step watch over a training: look, refuse, roll back, slow down.

The guard knows modules and optimizers, not the loop around them, so that one guard
serves every engine. It looks before anything is clipped (clipping spreads one NaN to
every gradient), lets a finite step pass, and answers a failed one from a ladder with a
budget:

1. weights have moved since the last verified snapshot: go back to it (or to the first
   weights, if it has run far away from them or has failed before), clear the
   optimizer's moments, and lower the learning rate;
2. they have not: the rate is not to blame, so the batch is left out;
3. the budget is spent: stop, with the report.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sknan.clipping import grad_norm, stable_grad_norm
from sknan.diagnosis import NonFiniteReport
from sknan.exceptions import NonFiniteTrainingError
from sknan.snapshots import Snapshot

__all__ = ["Guard", "scaled_rates"]

POLICIES = ("recover", "skip", "raise")

# A loss counts as exploded when it exceeds the untrained one by this factor ...
_EXPLOSION = 10.0
# ... for this many steps on end (fewer in a short training): a spike passes.
_PATIENCE = 16

# Weights are only kept while the loss is below this multiple of the untrained one.
_TRUSTED = 2.0

# Weights further than this from the first ones, in multiples of their size, were flung
# there by steps that were too large, even if no step failed.
_FAR_AWAY = 10.0

# Largest factor by which one roll-back lowers the rate.
_BACKOFF = 0.1


@contextlib.contextmanager
def scaled_rates(
    optimizers: Sequence[torch.optim.Optimizer], factor: float
) -> Iterator[None]:
    """Multiply every learning rate by ``factor`` inside the block.

    Schedule and back-off only ever act through this: the optimizer keeps the rate that
    the user gave, so that neither a user's own scheduler nor ``set_params(lr=...)`` has
    anything to undo.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        Whose parameter groups are changed.
    factor : float
        1.0 changes nothing.
    """
    if factor == 1.0:
        yield
        return
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = [group["lr"] for group in groups]
    try:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor
        yield
    finally:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate


class Guard:
    """Decide for each step whether it may be taken, and what follows if not.

    Parameters
    ----------
    on_nonfinite : {"recover", "skip", "raise"}, default="recover"
        What a failed step leads to: the ladder above, leaving out the batch, or
        :class:`~sknan.exceptions.NonFiniteTrainingError` at once.
    max_recoveries : int, default=10
        Failed steps that one training may survive; one more raises.

    Attributes
    ----------
    reports : list of NonFiniteReport
        Every failed step, in order.
    lr_scale : float
        Product of all reductions of the learning rate; 1.0 at first.

    Raises
    ------
    ValueError
        If ``on_nonfinite`` is unknown or ``max_recoveries`` is not a number >= 0.
    """

    def __init__(self, on_nonfinite: str = "recover", max_recoveries: int = 10) -> None:
        n_allowed: Any = max_recoveries
        if on_nonfinite not in POLICIES:
            raise ValueError(
                f"on_nonfinite must be one of {', '.join(map(repr, POLICIES))}, got "
                f"{on_nonfinite!r}."
            )
        if (
            isinstance(n_allowed, bool)
            or not isinstance(n_allowed, numbers.Integral)
            or n_allowed < 0
        ):
            raise ValueError(
                f"max_recoveries must be an integer of at least 0, got "
                f"{max_recoveries!r}."
            )
        self.on_nonfinite = on_nonfinite
        self.max_recoveries = max_recoveries
        self.reports: list[NonFiniteReport] = []
        self.lr_scale = 1.0
        self.parameters: list[nn.Parameter] = []
        self._optimizers: list[torch.optim.Optimizer] = []
        self._reference = -math.inf
        self._first: Snapshot | None = None
        self._snapshot: Snapshot | None = None

    def begin(
        self,
        modules: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        n_steps: int | None = None,
    ) -> None:
        """Start watching a training, from weights that must be finite.

        Parameters
        ----------
        modules : sequence of nn.Module
            The networks, and criteria that have weights.
        optimizers : sequence of Optimizer
            Their optimizers.
        n_steps : int or None, default=None
            Length of the training, if known: a short one is judged sooner.

        Raises
        ------
        NonFiniteTrainingError
            If a weight is not finite to begin with.
        """
        self._optimizers = list(optimizers)
        self._first = Snapshot(modules)
        self._snapshot = Snapshot(modules)
        self.parameters = [
            p for module in modules for p in module.parameters() if p.requires_grad
        ]
        if not self._snapshot.is_live_finite():
            raise NonFiniteTrainingError(
                "The network holds non-finite weights before the first step. Check its "
                "initialisation, or the weights that were loaded into it."
            )
        self._n_failed = 0
        self._n_blamed = 0
        self._steps_since_snapshot = 0
        self._is_proposed = False
        self._has_gained = True
        self._scale_before_last_failure = self.lr_scale
        patience = _PATIENCE if n_steps is None else min(_PATIENCE, n_steps // 8)
        self._recent: deque[float] = deque(maxlen=max(patience, 3))
        self._first_loss_pending = True

    @property
    def has_begun(self) -> bool:
        """Whether a training is being watched."""
        return self._snapshot is not None

    def look(self, loss: Tensor) -> tuple[float, float, list[Tensor], list[Tensor]]:
        """Read the loss and the norm of the gradients, with one host read for both.

        Parameters
        ----------
        loss : Tensor of shape ()
            After ``backward``.

        Returns
        -------
        loss, norm : float
            The norm is that of finite gradients even where their squares overflow; NaN
            or inf means that an entry is.
        parameters, grads : list of Tensor
            The weights that have a gradient, and their gradients.
        """
        parameters: list[Tensor] = [p for p in self.parameters if p.grad is not None]
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = grad_norm(grads)
        pair = torch.stack([loss.detach().reshape(()).to(norm), norm])
        loss_value, norm_value = pair.tolist()
        if not math.isfinite(norm_value):
            norm_value = stable_grad_norm(grads)
        if not math.isfinite(loss_value):
            loss_value = loss.item()  # a float64 loss may exceed the norm's float32
        return loss_value, norm_value, parameters, grads

    def has_exploded(self, loss: float, loss_of_batch: Callable[[], float]) -> bool:
        """Whether a finite loss has left for good.

        Suspicion: each of the last steps' losses exceeds that of the untrained network
        tenfold. Proof: so does this batch's loss exceed what the untrained weights give
        on this very batch; otherwise the data are larger here, and the reference is
        raised.

        Parameters
        ----------
        loss : float
            Finite loss of the step at hand.
        loss_of_batch : callable
            Computes the loss of the same batch; called with the first weights in place,
            and only on suspicion.

        Returns
        -------
        bool
        """
        if self._first_loss_pending:
            self._reference = max(self._reference, loss)
            self._first_loss_pending = False
        self._recent.append(loss)
        is_suspect = len(self._recent) == self._recent.maxlen and self._exceeds(
            min(self._recent), self._reference
        )
        if not is_suspect or self._steps_since_snapshot == 0:
            return False
        with self.first_weights():
            before = loss_of_batch()
        if math.isfinite(before) and self._exceeds(loss, before):
            return True
        self._reference = max(self._reference, min(self._recent))
        return False

    @staticmethod
    def _exceeds(loss: float, reference: float, factor: float = _EXPLOSION) -> bool:
        # Measured from the reference, so that it also holds for negative losses.
        return loss - reference > (factor - 1.0) * max(abs(reference), 1e-6)

    @contextlib.contextmanager
    def first_weights(self) -> Iterator[None]:
        """Put the weights of the start of training in place inside the block."""
        assert self._first is not None
        with self._first.swapped_in():
            yield

    def begin_step(self) -> None:
        """Keep what a forward pass changes even if no step follows."""
        assert self._snapshot is not None
        self._snapshot.take_buffers()

    def step_taken(self) -> None:
        """Note that the optimizer has changed the weights."""
        self._steps_since_snapshot += 1

    @property
    def has_budget(self) -> bool:
        """Whether one more failure would be survived."""
        return self._n_failed < self.max_recoveries

    def has_finite_weights(self) -> bool:
        """Whether weights, and the buffers that were finite at first, are finite."""
        assert self._snapshot is not None
        return self._snapshot.is_live_finite()

    def propose_weights(self) -> None:
        """Make the present weights the ones to go back to, once they are verified.

        They are so when the next batch has a finite loss and gradient with them.
        """
        self._is_proposed = True

    def pass_step(self, loss: float) -> None:
        """Note that a batch is fine: its loss and gradient with the present weights.

        Parameters
        ----------
        loss : float
            Finite. Weights whose loss is far above the untrained one may be on their
            way out, and are not kept.
        """
        assert self._snapshot is not None
        if self._is_proposed and not self._exceeds(loss, self._reference, _TRUSTED):
            self._snapshot.take()
            self._steps_since_snapshot = 0
            self._has_gained = True
        self._is_proposed = False

    def travelled(self) -> float:
        """Distance of the weights from the last snapshot, in multiples of its size."""
        assert self._snapshot is not None
        return self._snapshot.travelled()

    def _is_snapshot_trusted(self) -> bool:
        """Whether going back to the last snapshot promises more than to start anew."""
        assert self._first is not None
        assert self._snapshot is not None
        return (
            self._has_gained
            and self._n_blamed <= self.max_recoveries // 2
            and self._first.travelled(self._snapshot) <= _FAR_AWAY
        )

    def _growth_per_step(self, n_steps: int) -> float:
        """Movement in one step, in multiples of the weights' size, if it compounds."""
        return float((1.0 + self.travelled()) ** (1.0 / n_steps) - 1)

    def handle(self, report: NonFiniteReport) -> Literal["retry", "skip"]:
        """Answer a failed step.

        Parameters
        ----------
        report : NonFiniteReport
            The failed step.

        Returns
        -------
        {"retry", "skip"}
            Whether the batch is worth another attempt.

        Raises
        ------
        NonFiniteTrainingError
            If the policy is ``"raise"`` or the budget is spent.
        """
        assert self._snapshot is not None
        self.reports.append(report)
        self._n_failed += 1
        self._recent.clear()
        self._is_proposed = False
        n_steps = self._steps_since_snapshot
        if not n_steps and self.travelled() > 0.0:
            n_steps = (
                1  # an optimizer that moves more than once before its step is done
            )
        growth = self._growth_per_step(n_steps) if n_steps else 0.0
        for optimizer in self._optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.state.clear()  # left half written by the broken-off step
        if self.on_nonfinite == "recover" or report.phase == "step":
            if n_steps and not self._is_snapshot_trusted():
                assert self._first is not None
                self._first.restore()
                self._snapshot.take()
            self._snapshot.restore()
        else:
            self._snapshot.restore_nonfinite()
        if not n_steps or (report.phase != "step" and self.on_nonfinite != "recover"):
            # The weights stay, but the failed forward pass has poisoned the running
            # statistics.
            self._snapshot.restore_buffers()
        if self.on_nonfinite == "raise":
            raise NonFiniteTrainingError(str(report), report)
        if self._n_failed > self.max_recoveries:
            raise NonFiniteTrainingError(
                f"{report} Gave up after {self._n_failed - 1} recoveries "
                f"(max_recoveries={self.max_recoveries}).",
                report,
            )
        if self.on_nonfinite == "skip":
            return "skip"
        self._steps_since_snapshot = 0
        if not n_steps:
            # The verified weights fail on this batch too: it is to blame, and neither
            # they nor the rate, whose cut is undone.
            self.lr_scale = self._scale_before_last_failure
            self._n_blamed -= not self._has_gained
            self._has_gained = True
            return "skip"
        self._has_gained = False
        self._n_blamed += 1
        self._scale_before_last_failure = self.lr_scale
        # A rate that in one step moves the weights by k times their size is about k
        # times too high: one roll-back brings even lr=1e30 down to earth.
        self.lr_scale *= min(_BACKOFF, 1.0 / growth) if growth else _BACKOFF
        for optimizer in self._optimizers:
            optimizer.state.clear()
        return "retry"

    def end(self) -> None:
        """Let go of the snapshot: a finished training keeps no second copy."""
        if self._snapshot is not None and not self._snapshot.is_live_finite():
            self._snapshot.restore()  # the training was broken off between two looks
        self.__dict__.update(self._without_tensors())

    def _without_tensors(self) -> dict[str, Any]:
        return {
            "_first": None,
            "_snapshot": None,
            "_optimizers": [],
            "parameters": [],
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **self._without_tensors()}
