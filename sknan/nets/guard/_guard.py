"""The per-step watch over a training: look, refuse, roll back, slow down.

The guard knows modules and optimizers, not the loop around them, so that one guard
serves every engine. It looks before anything is clipped (clipping spreads one NaN to
every gradient), lets a finite step pass, and answers a failed one from a ladder with a
budget:

1. the weights are sound, and some rows or operations of the step are not: it is taken
   without them (by the engine, which knows batches);
2. the batch fails on the last verified weights too: it is left out;
3. it does not: those weights come back (or the first ones, if they have run far away or
   have failed before), and steps get shorter, by clipping where the network amplifies
   its gradients, else by a lower rate, found by trial;
4. the budget is spent: stop, with the report.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NoReturn, Protocol

import torch
from torch import Tensor, nn

from sknan.diagnosis._capsule import Capsule
from sknan.diagnosis._report import NonFiniteReport
from sknan.diagnosis._thresholds import NARROW, is_runaway
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets.guard._loss_watch import LossWatch
from sknan.nets.guard._snapshots import OptimizerSnapshot, Snapshot
from sknan.optim._clipping import grad_norms, stable_grad_norm
from sknan.optim._learning_rates import (
    ascends,
    hopeless_decay,
    longest_reach,
    lower_scale,
    scaled_rates,
)

__all__ = ["Guard", "Trials", "scaled_rates"]

POLICIES = ("recover", "skip", "raise")

# Weights further than this from the first ones, in multiples of their size, were flung
# there by steps that were too large, even if no step failed.
_FAR_AWAY = 10.0

# Weights of less than this multiple of the first ones' size were pulled towards zero.
_SHRUNK = 0.5

# Steps that a lower rate is tried out for.
_N_TRIAL_STEPS = 16

# What inputs in raw units may bring about.
_CAUSES_OF_RAW_INPUTS = ("learning_rate", "gradient", "activation", "loss")

# Largest norm of the gradients of a step that is taken without what was to blame in it:
# the usual choice for a net whose inputs and outputs are of size 1.
_MENDED_NORM = 1.0

# Where a network amplifies its gradients, steps are clipped to this multiple of the
# size of the weights: whatever the gradient's size, some dozen steps go a long way.
_CLIPPED_STEP = 0.03

# Lower than this no rate was ever too high: something else is wrong.
_LEAST_RATE = 1e-30

# From here on a rate overflows inside optimizers, which divide it by 1 - beta.
_LARGEST_RATE = 1e35

# A step that could reach so far may overflow; weights are looked at after it.
_OVERFLOWING_STEP = 1e20

# Plain numbers that change from step to step and do not follow from the weights.
_KEPT = (
    "lr_scale",
    "rate_caps",
    "_n_failed",
    "_n_left_out",
    "_steps_since_snapshot",
    "_first_step_ratio",
    "_size",
    "_is_proposed",
    "_has_gained",
    "_rescue_norm",
)

# Entries of a buffer up to which copying it is cheaper than a call of its own.
_SMALL = 4096


def _grouped(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The small tensors of each device together, the others alone."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        is_small = tensor.numel() <= _SMALL
        key = tensor.device if is_small else id(tensor)
        groups.setdefault(key, []).append(tensor)
    return list(groups.values())


def _total(tensors: list[Tensor]) -> Tensor:
    """Sum of all entries: not finite if one of them is not."""
    if len(tensors) == 1:
        return tensors[0].sum()
    # One copy of what is small costs less than a call for each.
    return torch.cat([t if t.ndim == 1 else t.reshape(-1) for t in tensors]).sum()


def _read(numbers: Sequence[Tensor]) -> list[float]:
    """Numbers off their device, with one wait for all of them."""
    if all(number.is_cpu for number in numbers):
        return [number.item() for number in numbers]
    like = numbers[0]
    together = torch.stack([n.reshape(()).to(like) for n in numbers])
    return list(together.tolist())


class Trials(Protocol):
    """What a guard may try out before it decides; afterwards all is as before."""

    def fails_on_last_weights(self) -> bool:
        """Whether the failed batch fails with the last verified weights too."""

    def loss_after(self, scale: float, n_steps: int) -> float:
        """Loss after some steps from them at ``scale`` times the rate; inf for none."""

    def rates_at(self, scale: float) -> list[float]:
        """What ``scale`` makes of the present rate of each parameter group."""


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
    rate_caps : list of float
        Rates, one for each parameter group, that were found to be the largest sound
        ones: no scheduler raises the rate above them. Empty at first.

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
        self.rate_caps: list[float] = []
        self.parameters: list[nn.Parameter] = []
        self._optimizers: list[torch.optim.Optimizer] = []
        self._watch = LossWatch(None)
        self._buffers: list[list[Tensor]] = []
        self._first: Snapshot | None = None
        self._snapshot: Snapshot | None = None
        self._moments = OptimizerSnapshot([])

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
        self._snapshot.take_buffers()
        self._moments = OptimizerSnapshot(self._optimizers)
        self.parameters = [
            p for module in modules for p in module.parameters() if p.requires_grad
        ]
        if not self._snapshot.is_live_finite():
            raise NonFiniteTrainingError(
                "The network holds non-finite weights before the first step. Check its "
                "initialisation, or the weights that were loaded into it."
            )
        decay = hopeless_decay(self._optimizers)
        if decay is not None:
            action = "Lower weight_decay to 0.1 or less."
            report = NonFiniteReport("step", "learning_rate", decay, action)
            raise NonFiniteTrainingError(str(report), report)
        self._buffers = _grouped(self._snapshot.float_buffers())
        self._watch = LossWatch(n_steps, self._watch.reference)
        rates = [float(g["lr"]) for o in optimizers for g in o.param_groups]
        rate = max(rates, default=0.0)
        if _LARGEST_RATE < rate < math.inf:
            self.lr_scale = min(self.lr_scale, _LARGEST_RATE / rate)
        self._n_failed = 0
        self._n_left_out = 0  # in a row
        self._steps_since_snapshot = 0
        # Length of the first step that was longer than the weights, in their size.
        self._first_step_ratio = 0.0
        self._size = self._snapshot.size() or 1.0
        self._is_proposed = False
        self._has_gained = True
        self._rescue_norm: float | None = None
        self.rate_caps = []
        # An update of these may be non-finite though gradient and rate are moderate.
        self._is_step_fragile = (
            any(p.dtype in NARROW for p in self.parameters)
            or any(not type(o).__module__.startswith("torch.") for o in optimizers)
            or any(g.get("eps") == 0.0 for o in optimizers for g in o.param_groups)
        )

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
        parameters: list[Tensor] = []
        grads: list[Tensor] = []
        for parameter in self.parameters:
            grad = parameter.grad
            if grad is not None:
                parameters.append(parameter)
                grads.append(grad)
        numbers = grad_norms(grads)
        n_norms = len(numbers)
        numbers.append(loss.detach())
        numbers += [_total(group) for group in self._buffers]
        read = _read(numbers)
        norm_value = math.hypot(*read[:n_norms])
        loss_value, *totals = read[n_norms:]
        if not math.isfinite(norm_value):
            norm_value = stable_grad_norm(grads)
        if not all(map(math.isfinite, totals)) and not self._has_finite_buffers():
            norm_value = math.nan  # the forward pass has broken the running statistics
        if not math.isfinite(loss_value):
            loss_value = loss.item()  # a float64 loss may exceed the norm's float32
        return loss_value, norm_value, parameters, grads

    def _has_finite_buffers(self) -> bool:
        """The exact answer, where a total is not finite: a sum may overflow."""
        return all(bool(torch.isfinite(b).all()) for g in self._buffers for b in g)

    def has_exploded(self, loss: float, loss_of_batch: Callable[[], float]) -> bool:
        """Whether a finite loss has left for good; see :class:`LossWatch`.

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

        def untrained_loss() -> float:
            with self.first_weights():
                return loss_of_batch()

        has_exploded = self._watch.has_exploded(loss, untrained_loss)
        return has_exploded and self._steps_since_snapshot > 0

    def is_spike(self, loss: float, norm: float) -> bool:
        """Whether a finite gradient is absurd beside those before it.

        Parameters
        ----------
        loss, norm : float
            Finite.

        Returns
        -------
        bool
        """
        return self._watch.is_spike(loss, norm)

    @contextlib.contextmanager
    def first_weights(self) -> Iterator[None]:
        """Put the weights of the start of training in place inside the block."""
        assert self._first is not None
        with self._first.swapped_in():
            yield

    def restore_first(self) -> None:
        """Go back to the weights of the start of training."""
        assert self._first is not None
        self._first.restore()

    @property
    def n_roll_backs(self) -> int:
        """How often weights have come back and steps become shorter."""
        return self._n_failed

    @contextlib.contextmanager
    def last_weights(self) -> Iterator[None]:
        """Put the last verified weights in place inside the block."""
        assert self._snapshot is not None
        with self._snapshot.swapped_in():
            yield

    @property
    def may_mend(self) -> bool:
        """Whether a failed step may be taken without what was to blame.

        Not where the weights are: once they have gone astray every batch fails.
        """
        is_astray = self._steps_since_snapshot > 0 and is_runaway(
            self.relative_distance()
        )
        return (
            self.on_nonfinite == "recover"
            and self.max_recoveries > 0
            and not is_astray
            and self.has_finite_weights()
        )

    def may_start_anew(self, report: NonFiniteReport) -> bool:
        """Whether another start of the training is a fair answer to a failed step."""
        return (
            self.on_nonfinite == "recover"
            and self.has_budget
            and report.cause in _CAUSES_OF_RAW_INPUTS
        )

    @contextlib.contextmanager
    def starting_anew(self, report: NonFiniteReport) -> Iterator[None]:
        """Go back to the first weights, and on from what the block makes of them."""
        assert self._first is not None
        assert self._snapshot is not None
        self._record(report, "Training started anew as if on standardised data.")
        self._n_failed += 1
        self._first.restore()
        yield
        self._first.take()
        self._snapshot.take()
        self._steps_since_snapshot = 0
        self._is_proposed = False
        for optimizer in self._optimizers:
            optimizer.state.clear()

    def _record(self, report: NonFiniteReport, recovery: str) -> None:
        report = dataclasses.replace(report, recovery=recovery)
        if self.reports:  # one is enough to reproduce a failure
            report = dataclasses.replace(report, capsule=None)
        self.reports.append(report)
        self._watch.forget()

    def _stop(self, report: NonFiniteReport, gave_up: str = "") -> NoReturn:
        self.reports.append(report)
        raise NonFiniteTrainingError(f"{report}{gave_up}", report)

    def needs_clip(self, report: NonFiniteReport) -> bool:
        """Whether too large a gradient is to be answered by clipping from here on."""
        return report.cause == "gradient" and self._rescue_norm is None

    def clip_norm(self, *, is_mended: bool) -> float | None:
        """Largest norm of the gradients that the guard itself allows, if it does.

        Parameters
        ----------
        is_mended : bool
            Whether the step at hand is taken without what was to blame in it.
        """
        return _MENDED_NORM if is_mended else self._rescue_norm

    def restore_buffers(self) -> None:
        """Put the buffers back as they were before the forward pass."""
        assert self._snapshot is not None
        self._snapshot.restore_buffers()

    def clear_half_written(self) -> None:
        """Forget what an optimizer has half written when its step was broken off."""
        for optimizer in self._optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.state.clear()

    def note_mended(self, report: NonFiniteReport, how: str) -> None:
        """Note a step that failed and was taken without what was to blame.

        Parameters
        ----------
        report : NonFiniteReport
            The failed step.
        how : str
            In which way it was taken.
        """
        self._record(report, f"The step was taken {how}.")

    def may_overflow(self, factor: float, norm: float) -> bool:
        """Whether the step just taken may have left weights that are not finite.

        Parameters
        ----------
        factor : float
            Of the learning rates.
        norm : float
            Norm of the clipped gradients.

        Returns
        -------
        bool
        """
        reach = longest_reach(self._optimizers) * factor
        if not self._first_step_ratio:
            fling = reach * norm / self._size
            self._first_step_ratio = fling if fling > 1.0 else 0.0
        return self._is_step_fragile or not reach * max(norm, 100.0) < _OVERFLOWING_STEP

    def begin_step(self) -> None:
        """Keep what a forward pass changes even if no step follows."""
        assert self._snapshot is not None
        self._snapshot.take_buffers()

    def step_taken(self) -> None:
        """Note that the optimizer has changed the weights."""
        self._steps_since_snapshot += 1
        self._n_left_out = 0

    @property
    def has_budget(self) -> bool:
        """Whether one more failure would be survived."""
        return self._n_failed + self._n_left_out < self.max_recoveries

    @property
    def is_last(self) -> bool:
        """Whether a failure now may end the training."""
        return self.on_nonfinite == "raise" or not self.has_budget

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
        if self._is_proposed and self._watch.is_trusted(loss):
            self._snapshot.take()
            self._moments.take()
            self._steps_since_snapshot = 0
            self._has_gained = True
        self._is_proposed = False

    def relative_distance(self) -> float:
        """Distance of the weights from the last snapshot, in multiples of its size."""
        assert self._snapshot is not None
        return self._snapshot.relative_distance()

    @property
    def has_shrunk(self) -> bool:
        """Whether the last verified weights have gone towards zero, as by decay."""
        assert self._first is not None
        assert self._snapshot is not None
        return self._snapshot.size() < _SHRUNK * self._first.size()

    def _is_snapshot_trusted(self) -> bool:
        """Whether going back to the last snapshot promises more than to start anew."""
        assert self._first is not None
        assert self._snapshot is not None
        return (
            self._has_gained
            and self._n_failed <= self.max_recoveries // 2
            and self._first.relative_distance(self._snapshot) <= _FAR_AWAY
        )

    def _growth_per_step(self, n_steps: int) -> float:
        """Movement in one step, in multiples of the weights' size, if it compounds."""
        return float((1.0 + self.relative_distance()) ** (1.0 / n_steps) - 1)

    def handle(
        self, report: NonFiniteReport, trials: Trials
    ) -> Literal["retry", "skip"]:
        """Answer a failed step.

        Parameters
        ----------
        report : NonFiniteReport
            The failed step.
        trials : Trials
            To try out other weights and rates on the batch.

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
        self._is_proposed = False
        self.clear_half_written()
        if self.on_nonfinite != "recover":
            return self._refuse(report)
        is_of_steps = report.phase == "step" or self.needs_clip(report)
        has_moved = is_of_steps or self.relative_distance() > 0.0
        is_sound = report.phase != "step" and self.may_mend
        if not has_moved or (is_sound and trials.fails_on_last_weights()):
            return self._leave_out(report)
        return self._roll_back(report, trials)

    def _refuse(self, report: NonFiniteReport) -> Literal["skip"]:
        """No step, and nothing else either."""
        assert self._snapshot is not None
        if report.phase == "step":
            self._snapshot.restore()
            self._moments.restore()
        else:
            self._snapshot.restore_nonfinite()
            # The failed forward pass has poisoned the running statistics.
            self._snapshot.restore_buffers()
        self._n_failed += 1
        if self.on_nonfinite == "raise":
            self._stop(report)
        self._check_budget(report)
        self._record(report, "The step was left out.")
        return "skip"

    def _leave_out(self, report: NonFiniteReport) -> Literal["skip"]:
        """The batch is to blame, and neither the weights nor the rate."""
        assert self._snapshot is not None
        self._snapshot.restore_buffers()
        self._n_left_out += 1
        self._check_budget(report)
        self._record(report, "The batch was left out.")
        return "skip"

    def _roll_back(self, report: NonFiniteReport, trials: Trials) -> Literal["retry"]:
        """Back to verified weights, and on with shorter steps."""
        ascending = ascends(self._optimizers)
        if ascending is not None:
            self.restore_first()
            action = "Leave out maximize, or return the score with its sign changed."
            self._stop(
                dataclasses.replace(
                    report, evidence=f"{report.evidence} {ascending}", action=action
                )
            )
        assert self._first is not None
        assert self._snapshot is not None
        self._n_failed += 1
        # An optimizer may move more than once before its first step is done.
        growth = self._growth_per_step(max(self._steps_since_snapshot, 1))
        growth = max(growth, self._first_step_ratio)
        self._first_step_ratio = 0.0
        is_trusted = self._is_snapshot_trusted()
        if not is_trusted:
            self._first.restore()
            self._snapshot.take()
        self._snapshot.restore()
        for optimizer in self._optimizers:
            optimizer.state.clear()
        self._check_budget(report)
        self._steps_since_snapshot = 0
        self._has_gained = False
        if self.needs_clip(report):
            # A step too long because the network amplifies: shorter ones will do, and
            # a lower rate would only make all of them short.
            reach = longest_reach(self._optimizers) * self.lr_scale or 1.0
            self._rescue_norm = _CLIPPED_STEP * self._snapshot.size() / reach
            change = f"gradients are clipped to norm {self._rescue_norm:.3g}"
        elif longest_reach(self._optimizers) * self.lr_scale < _LEAST_RATE:
            change = "no rate is low enough"
        else:
            scale = lower_scale(
                self.lr_scale, growth, lambda s: trials.loss_after(s, _N_TRIAL_STEPS)
            )
            change = f"the rate is lowered {self.lr_scale / scale:.3g} times"
            self.lr_scale = scale
            self.rate_caps = trials.rates_at(scale)
        back = "last verified" if is_trusted else "first"
        self._record(report, f"The {back} weights came back, and {change}.")
        return "retry"

    def _check_budget(self, report: NonFiniteReport) -> None:
        n_failed = self._n_failed + self._n_left_out
        if n_failed > self.max_recoveries:
            self._stop(
                report,
                f" Gave up after {n_failed - 1} recoveries "
                f"(max_recoveries={self.max_recoveries}).",
            )

    def state_dict(self) -> dict[str, Any]:
        """What the rest of a training depends on, for :meth:`load_state_dict`."""
        assert self._first is not None
        assert self._snapshot is not None
        return {
            **{name: getattr(self, name) for name in _KEPT},
            "reports": [
                (report.to_dict(), report.capsule and report.capsule.to_dict())
                for report in self.reports
            ],
            "watch": self._watch.state_dict(),
            "first": self._first.state_dict(),
            "snapshot": self._snapshot.state_dict(),
            "moments": self._moments.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a training that was broken off, after :meth:`begin`.

        Parameters
        ----------
        state : dict
            Of a guard over the same modules and optimizers.
        """
        assert self._first is not None
        assert self._snapshot is not None
        vars(self).update({name: state[name] for name in _KEPT})
        self.reports = [
            NonFiniteReport.from_dict(fields, capsule and Capsule(**capsule))
            for fields, capsule in state["reports"]
        ]
        self._watch.load_state_dict(state["watch"])
        self._first.load_state_dict(state["first"])
        self._snapshot.load_state_dict(state["snapshot"])
        self._moments.load_state_dict(state["moments"])

    def end(self, *, goes_back: bool = False) -> None:
        """Let go of the snapshots: a finished training keeps no second copy.

        Parameters
        ----------
        goes_back : bool, default=False
            Whether the weights in place are to give way to the last verified ones, as
            they do anyway if they are not finite.
        """
        kept = self._snapshot
        if kept is not None and (goes_back or not kept.is_live_finite()):
            kept.restore()
            self._moments.restore()
        self.__dict__.update(self._without_tensors())

    def _without_tensors(self) -> dict[str, Any]:
        return {
            "_first": None,
            "_snapshot": None,
            "_optimizers": [],
            "parameters": [],
            "_buffers": [],
            "_moments": OptimizerSnapshot([]),
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **self._without_tensors()}
