"""Guard of the steps of a training: check, refuse, roll back, stop.

The guard works with modules and optimizers and does not depend on a training loop, so
that every engine and any loop in plain torch can use it. It checks a step before
clipping, because clipping spreads one NaN to every gradient. Its answers to a failed
step share one budget:

1. Under ``on_nonfinite="skip"`` or ``"raise"`` the step is skipped, or training stops.
2. A batch that fails with the last verified weights too is skipped.
3. Otherwise the last verified weights are restored (or the first ones, if the last ones
   are far away or have failed before) and the steps get shorter: by clipping if the
   network amplifies its gradients, else by a lower learning rate, found by trial.
4. If the budget is spent, training stops with a report.

The package :mod:`sknan.nets.recovery` has further answers, which need the batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn

from sknan._utils.thresholds import MARGIN, N_TRIALS, SMALL
from sknan.diagnosis._report import Capsule, NonFiniteReport
from sknan.nets.guard._policy import Policy
from sknan.nets.guard._trials import Trials
from sknan.optim._learning_rates import (
    ascends,
    growing_momentum,
    longest_reach,
    lower_scale,
    run_search,
    unseen_reach,
)

# Sentences that the report records.
STEP_SKIPPED = "The step was left out."
BATCH_SKIPPED = "The batch was left out."
RESTORED = "The last verified weights were restored."
BUFFERS_RESTORED = "The buffers from before the validation pass were restored."
BATCH_IDLE = "The batch was left out, since there is nothing left to learn from it."
ROLLED_BACK = "The {weights} weights were restored, and {change}."

# Largest gradient norm of a step that is repeated without the rows or operations that
# failed: the usual choice for a network whose inputs and outputs have size 1. With 0.1,
# 140 trainings at learning rates that are far too high end in the same way.
_REPEATED_NORM = 1.0

# A learning rate above this may overflow in optimizers that divide it by 1 - beta.
_LARGEST_RATE = torch.finfo(torch.float32).max * torch.finfo(torch.float32).eps

# Numbers that change during training and that the weights do not determine.
_SAVED = (
    "lr_scale",
    "rate_caps",
    "_n_failed",
    "_n_skipped_batches",
    "_rescue_norm",
)


class Guard(Policy):
    """Policy that decides whether a step is taken and how a failed one is answered.

    Parameters
    ----------
    on_nonfinite : {"recover", "skip", "raise"}, default="recover"
        Answer to a failed step: recover, skip the batch, or raise
        :class:`~sknan.exceptions.NonFiniteTrainingError` at once.
    max_recoveries : int, default=10
        Maximum number of roll-backs and consecutive skipped batches in one training;
        one more raises an error. Steps that are taken without the rows to blame, or
        with repaired operations, do not count. 0 allows no recovery at all.

    Attributes
    ----------
    reports : list of NonFiniteReport
        Reports on all failed steps, in order.
    lr_scale : float
        Product of all reductions of the learning rate; 1.0 at first.
    rate_caps : list of float
        Largest learning rate of each parameter group that was found to be sound. No
        scheduler raises the learning rate above it. Empty at first.
    parameters : list of nn.Parameter
        Trained parameters.

    Raises
    ------
    ValueError
        If ``on_nonfinite`` is unknown or ``max_recoveries`` is not a number >= 0.
    """

    def __init__(self, on_nonfinite: str = "recover", max_recoveries: int = 10) -> None:
        super().__init__(on_nonfinite, max_recoveries)
        self.lr_scale = 1.0
        self.rate_caps: list[float] = []

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
        """
        super().begin(modules, optimizers, n_steps)
        rates = [float(g["lr"]) for o in optimizers for g in o.param_groups]
        rate = max(rates, default=0.0)
        if _LARGEST_RATE < rate < math.inf:
            self.lr_scale = min(self.lr_scale, _LARGEST_RATE / rate)
        self._n_steps = n_steps
        self._rescue_norm: float | None = None
        self.rate_caps = []

    def clip_norm(self, *, is_repeated: bool) -> float | None:
        """Return the largest gradient norm that the guard itself allows, or None.

        Parameters
        ----------
        is_repeated : bool
            Whether the step is repeated without the rows or operations that failed.
        """
        if not is_repeated:
            return self._rescue_norm
        # L-BFGS learns curvature from differences of gradients, and bounds its steps.
        has_lbfgs = any(isinstance(o, torch.optim.LBFGS) for o in self._optimizers)
        return None if has_lbfgs else _REPEATED_NORM

    def needs_clip(self, report: NonFiniteReport) -> bool:
        """Whether the answer to a failed step is to clip from now on."""
        return report.cause == "gradient" and self._rescue_norm is None

    def is_batch_to_blame(self, report: NonFiniteReport, trials: Trials) -> bool:
        """Whether the batch caused a failure, not the weights or the learning rate."""
        is_of_steps = report.phase == "step" or self.needs_clip(report)
        has_moved = is_of_steps or self.relative_distance() > 0.0
        is_sound = report.phase != "step" and self.may_repeat
        return not has_moved or (
            is_sound and (report.cause == "data" or trials.fails_on_last_weights())
        )

    # -- answers to a failed step ----------------------------------------------------

    def handle(
        self, report: NonFiniteReport, trials: Trials
    ) -> Literal["retry", "skip"]:
        """Answer a failed step of a training loop in plain torch.

        Parameters
        ----------
        report : NonFiniteReport
            Report on the failed step.
        trials : Trials
            Trials of other weights and learning rates on the batch.

        Returns
        -------
        {"retry", "skip"}
            Whether to attempt the batch again or to skip it.

        Raises
        ------
        NonFiniteTrainingError
            If the policy is ``"raise"`` or the budget is spent.
        """
        search = self.search_answer(report, trials)
        return run_search(search, lambda scales: trials.losses_after(scales))

    def search_answer(
        self, report: NonFiniteReport, trials: Trials
    ) -> Generator[list[float], list[float], Literal["retry", "skip"]]:
        """Answer a failed step as :meth:`handle`, but yield the factors to be tried."""
        if self.on_nonfinite != "recover":
            self.skip_step(report)
            return "skip"
        if self.is_batch_to_blame(report, trials):
            self.skip_batch(report)
            return "skip"
        self.roll_back(report, is_last_useful=trials.has_last_learned())
        yield from self.shorten_steps(trials)
        return "retry"

    def _withdraw_step(self) -> None:
        self.weights.is_proposed = False
        self.clear_half_written()

    def skip_step(self, report: NonFiniteReport) -> None:
        """Take no step, under the policies ``"skip"`` and ``"raise"``."""
        self._withdraw_step()
        if report.phase == "step":
            self.weights.restore()
        else:
            self.weights.restore_nonfinite()
        self._n_skipped_batches += 1
        if self.on_nonfinite == "raise":
            self.stop(report)
        self._check_budget(report)
        self.record(report, STEP_SKIPPED)

    def skip_batch(self, report: NonFiniteReport) -> None:
        """Skip a batch that is to blame, and change nothing else."""
        self._withdraw_step()
        self._undo_repetition()
        self._n_skipped_batches += 1
        self._check_budget(report)
        self.record(report, BATCH_SKIPPED)

    def pass_batch(self, report: NonFiniteReport) -> None:
        """Take no step for a batch whose gradient is 0 where it is defined."""
        self._withdraw_step()
        self._undo_repetition()
        self.record(report, BATCH_IDLE)

    def _undo_repetition(self) -> None:
        """Restore buffers, and weights that a repetition of the step has ruined."""
        self.weights.last.restore_buffers()
        if not self.has_finite_weights():
            self.weights.restore()

    def restore_weights(self, report: NonFiniteReport) -> None:
        """Restore the last verified weights, and change nothing else."""
        self._withdraw_step()
        self._n_failed += 1
        self.weights.restore()
        self._check_budget(report)
        self.record(report, RESTORED)

    def restore_buffers(self, report: NonFiniteReport) -> None:
        """Restore buffers that a validation pass has made non-finite."""
        self.weights.last.restore_buffers()
        if self.has_finite_weights():  # else the next step restores the weights
            if self.on_nonfinite == "raise":
                self.stop(report)
            self.record(report, BUFFERS_RESTORED)

    @contextlib.contextmanager
    def restart(self, report: NonFiniteReport, recovery: str) -> Iterator[None]:
        """Restore the first weights and restart from what the block makes of them.

        Parameters
        ----------
        report : NonFiniteReport
            Report on the failed step.
        recovery : str
            Sentence that describes the recovery.
        """
        self.record(report, recovery)
        self._n_failed += 1
        self.weights.first.restore()
        yield
        self.weights.start_here()
        self._clear_moments()

    def withdraw_training(self) -> None:
        """Restore the first weights, and clear the moments of the later ones."""
        self.weights.first.restore()
        self._clear_moments()

    def _clear_moments(self) -> None:
        for optimizer in self._optimizers:
            optimizer.state.clear()

    def roll_back(
        self, report: NonFiniteReport, *, is_last_useful: bool = True
    ) -> None:
        """Restore verified weights; :meth:`shorten_steps` must follow.

        Parameters
        ----------
        report : NonFiniteReport
            Report on the failed step.
        is_last_useful : bool, default=True
            Whether the last verified weights may be a better place to go on from than
            the first.
        """
        self._withdraw_step()
        ascending = ascends(self._optimizers)
        fault = ascending or growing_momentum(self._optimizers)
        if fault is not None:  # at a lower rate it ruins the weights some steps later
            self.weights.first.restore()
            evidence = f"{report.evidence} {fault}"
            action = (
                "Leave out maximize, or return the score with its sign changed."
                if ascending
                else "Lower momentum to below 1, such as 0.9."
            )
            self.stop(dataclasses.replace(report, evidence=evidence, action=action))
        self._n_failed += 1
        growth = max(self.weights.growth_per_step(), self._first_step_ratio)
        peak = self.rate_peak()
        self._first_step_ratio = 0.0
        has_failed_often = self._n_failed > self.max_recoveries // 2
        is_trusted = is_last_useful and not has_failed_often
        is_trusted &= self.weights.is_last_trusted
        self.weights.roll_back(to_first=not is_trusted)
        self._clear_moments()
        self._check_budget(report)
        weights = "last verified" if is_trusted else "first"
        self._rolled_back = report, growth, peak, weights

    def shorten_steps(
        self, trials: Trials
    ) -> Generator[list[float], list[float], None]:
        """Clip from now on, or lower the learning rate, after a roll back.

        Parameters
        ----------
        trials : Trials
            Trials on the batch that failed.

        Yields
        ------
        list of float
            Factors of the learning rate to try; see :func:`run_search`.
        """
        report, growth, peak, weights = self._rolled_back
        factor = self._factor_in_force(trials)
        reach = longest_reach(self._optimizers) * factor
        if self.needs_clip(report):
            # The step was too long because the network amplifies its gradients. A
            # lower rate would shorten all steps, and clipping shortens only these.
            # Some dozen steps still go far, whatever the size of the gradient.
            size = self.weights.last.size()
            self._rescue_norm = SMALL * size / (reach or 1.0)
            change = f"gradients are now clipped to norm {self._rescue_norm:.3g}"
        elif reach < torch.finfo(torch.float32).tiny:
            self.stop(report, " No learning rate is low enough.")
        else:
            scale = yield from lower_scale(factor * peak, growth)
            scale /= unseen_reach(self._optimizers, N_TRIALS, self._n_steps)
            is_over = peak >= MARGIN
            if is_over:  # the present rate has not failed
                scale = max(scale, factor)
            change = f"the learning rate was divided by {factor * peak / scale:.3g}"
            # Lower rates may follow a raised one by themselves.
            if not (is_over or trials.is_rate_raised()):
                self.lr_scale = scale
            self.rate_caps = trials.rates_at(scale)
        self.record(report, ROLLED_BACK.format(weights=weights, change=change))

    def rate_peak(self) -> float:
        """Return the largest learning rate since the last snapshot, over the present.

        A failure is found some steps after the rate that has caused it. The result is
        at least 1.0.
        """
        groups = [group for o in self._optimizers for group in o.param_groups]
        rates, peaks = [float(g["lr"]) for g in groups], self.weights.largest_rates
        if len(self.rate_caps) == len(rates) and self.lr_scale > 0.0:
            limits = [cap / self.lr_scale for cap in self.rate_caps]
            rates, peaks = [*map(min, rates, limits)], [*map(min, peaks, limits)]
        rate, peak = max(rates, default=0.0), max(peaks, default=0.0)
        return peak / rate if 0.0 < rate < peak else 1.0

    def _factor_in_force(self, trials: Trials) -> float:
        """Return the factor of the learning rates, with regard to their limits."""
        rates = trials.rates_at(self.lr_scale)
        if len(rates) != len(self.rate_caps):
            return self.lr_scale
        shares = [c / r for r, c in zip(rates, self.rate_caps, strict=True) if r > 0.0]
        return self.lr_scale * min(1.0, max(shares, default=1.0))

    # -- saving and ending -----------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that :meth:`load_state_dict` needs."""
        return {
            **{name: getattr(self, name) for name in _SAVED},
            "reports": [
                (report.to_dict(), report.capsule and report.capsule.to_dict())
                for report in self.reports
            ],
            **super().state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume an interrupted training, after :meth:`begin`.

        Parameters
        ----------
        state : dict
            State of a guard of the same modules and optimizers.
        """
        vars(self).update({name: state[name] for name in _SAVED})
        sizes = [self.lr_scale, *self.rate_caps, self._rescue_norm]
        if not all(s is None or 0.0 <= s < math.inf for s in sizes):
            raise ValueError(f"{sizes} are no learning rates and norms of a guard")
        self.reports = [
            NonFiniteReport.from_dict(fields, capsule and Capsule(**capsule))
            for fields, capsule in state["reports"]
        ]
        super().load_state_dict(state)

    def end(self, *, goes_back: bool = False) -> None:
        """Release the snapshots: a finished training keeps no second copy.

        Parameters
        ----------
        goes_back : bool, default=False
            Whether to restore the last verified weights. Weights that are not finite
            are replaced in any case.
        """
        if self.has_begun and (goes_back or not self.has_finite_weights()):
            self.weights.restore()
        self._forget_tensors()
