"""Training of a skorch net under guard."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Generator, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from sknan._utils.compiled import uncompiled
from sknan._utils.random_state import random_states
from sknan._utils.thresholds import N_TRIALS, is_runaway
from sknan.diagnosis._causes import examine_loss
from sknan.diagnosis._report import NonFiniteReport
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets._batching import TensorBatches, TensorTable
from sknan.nets._own_step import OwnStep
from sknan.nets._plain_step import PlainStep
from sknan.nets._rates import refuse_invalid_rates
from sknan.nets._weight_average import WeightAverage
from sknan.nets.guard._guard import Guard
from sknan.nets.recovery.explain import explain, explain_weights
from sknan.nets.recovery.explain_output import in_data
from sknan.nets.recovery.own_gradient import TakeOwnGradient
from sknan.nets.recovery.protocol import (
    Answer,
    Failure,
    Step,
    StepMode,
    StepRefused,
    TrialLoss,
)
from sknan.nets.recovery.rate_trials import RateTrials
from sknan.nets.recovery.raw_units import Conditioning
from sknan.nets.recovery.repair_operations import RepairOperations
from sknan.nets.recovery.restart import RestartOnStandardizedData
from sknan.nets.recovery.skip_step import SkipStep
from sknan.optim._clipping import (
    clip_grad_norm,
    clip_grad_value,
    grad_norm,
    lowered_norm,
)
from sknan.optim._learning_rates import run_search, scaled_rates

# Number of recent batches on which a lower learning rate is tried: each of them and the
# one that failed is used for two of the steps. Of 140 trainings at learning rates that
# are far too high, 113, 115 and 115 end well with 1, 4 and 9.
_N_LATEST = N_TRIALS // 2 - 1

# Numbers that a resumed training needs.
_SAVED = ("n_steps", "rate", "largest_rate", "n_clipped", "largest_norm")


class GuardedTraining:
    """State of one training of a net, and its steps.

    The order of one step is: check, recover, clip, schedule, log.

    Parameters
    ----------
    net : skorch net with GuardMixin
        Initialized net.
    batches : iterable of tuple
        Batches of the first epoch.
    n_steps : int or None
        Number of steps of the training, if known.
    is_fresh : bool
        Whether the weights come from an initialization, so that training may restart.

    Attributes
    ----------
    n_steps : int
        Number of steps taken.
    rate : float or None
        Learning rate of the latest step.
    largest_rate : float
        Largest learning rate of any step, before the factors of schedule and guard.
    batch_number : int
        Number of the present batch in its epoch, counted from 1.
    valid_batches : iterable of tuple or None
        Batches of the latest validation.
    has_warned_of_validation : bool
        Whether a warning has named validation rows whose output is not finite.
    random_states : tuple or None
        States of the random generators before the latest forward pass.
    latest_batches : deque
        Batches of the latest steps.
    left_out : Counter
        Number of steps that each row of the training data was left out of.
    raw_table : TensorTable or None
        Training data, as long as a restart on standardized data is possible.
    conditioning : Conditioning or None
        Coordinates in which steps are taken after such a restart.
    n_clipped : int
        Number of steps that were clipped.
    largest_norm : float
        Largest gradient norm of any step, before clipping.
    norms : list of float
        Gradient norm of each step of the epoch, before clipping.
    coefficients : list of float
        Clipping coefficient of each step of the epoch; 1.0 for no clipping.
    """

    def __init__(
        self, net: Any, batches: Any, n_steps: int | None, *, is_fresh: bool
    ) -> None:
        self.net = net
        self.guard: Guard = net.guard_
        self.average: WeightAverage | None = net._average_
        self.begin_epoch(batches)
        self.n_steps = 0
        self.rate: float | None = None
        self.largest_rate = 0.0
        self.batch_number = 1
        self.valid_batches: Any = None
        self.has_warned_of_validation = False
        self.random_states: Any = None
        self.latest_batches: deque[Any] = deque(maxlen=_N_LATEST)
        self.left_out: Counter[int] = Counter()
        self.conditioning: Conditioning | None = None
        if net._conditioning_ is not None:
            self.conditioning = Conditioning.from_state_dict(
                net._conditioning_, net.module_
            )
        table = getattr(batches, "dataset", None)
        train_step = net._own_train_step()
        self.own_step = train_step and OwnStep(self, train_step)
        self._plain_step = PlainStep(self)
        has_table = is_fresh and isinstance(table, TensorTable) and not train_step
        self.raw_table = table if has_table else None
        self.n_clipped = 0
        self.largest_norm = 0.0
        reports = (examine_loss(getattr(net, f"{name}_")) for name in net._criteria)
        fault = next(filter(None, reports), None)
        if fault is not None:
            raise NonFiniteTrainingError(str(fault), fault)
        try:
            modules = net._all_modules()
            if self.average is not None:
                modules.append(self.average.state)
            self.guard.begin(modules, net._all_optimizers(), n_steps)
        except NonFiniteTrainingError as error:
            if error.report is not None:
                raise
            report = explain_weights(self, next(iter(batches)))
            raise NonFiniteTrainingError(str(report), report) from None

    def begin_epoch(self, batches: Any) -> None:
        """Clear the statistics of the previous epoch, and hide the average."""
        self.batches = batches
        self.norms: list[float] = []
        self.coefficients: list[float] = []
        if self.average is not None:
            self.average.hide()

    def end(self, *, is_interrupted: bool) -> None:
        """End the training with usable weights in place.

        The present weights of a training that was interrupted, for example by Ctrl-C,
        have not been checked and may be incompletely written.
        """
        if self.average is not None:
            self.average.hide()
        goes_back = self.conditioning is not None and self.conditioning.is_inconsistent
        if self.conditioning is not None and not goes_back:
            self.conditioning.to_raw()
            self.net._conditioning_ = self.conditioning.state_dict(self.net.module_)
        # A second call finds no snapshot if Ctrl-C came after the first one.
        may_go_back = is_interrupted and not goes_back and self.guard.has_begun
        if may_go_back and is_runaway(self.guard.relative_distance()):
            is_known = bool(self.latest_batches)
            goes_back = not (is_known and self._trials().is_as_good_as_last())
        self.guard.end(goes_back=goes_back)
        self.show_average()

    def show_average(self) -> None:
        """Put the average of the weights, if there is one, into the modules."""
        if self.average is not None:
            self.average.show()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed training needs, between two epochs."""
        conditioning = self.conditioning
        return {
            **{name: getattr(self, name) for name in _SAVED},
            "latest_batches": list(self.latest_batches),
            "left_out": dict(self.left_out),
            "may_scale_data": self.raw_table is not None,
            "conditioning": conditioning and conditioning.state_dict(self.net.module_),
            "guard": self.guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume an interrupted training, whose weights are in place already."""
        vars(self).update({name: state[name] for name in _SAVED})
        self.latest_batches.extend(state["latest_batches"])
        self.left_out.update(state["left_out"])
        if not state["may_scale_data"]:
            self.raw_table = None
        if state["conditioning"] is not None:
            self.conditioning = Conditioning.from_state_dict(
                state["conditioning"], self.net.module_
            )
            if self.conditioning is None:
                raise ValueError("training['conditioning'] is of another network")
        self.guard.load_state_dict(state["guard"])

    @property
    def own_trial_loss(self) -> TrialLoss | None:
        """Trial of the user's ``train_step``, if that steps several optimizers."""
        own = self.own_step
        return own.trial_loss if own is not None and own.is_adversarial else None

    def has_learned(self, *, is_new: bool) -> bool:
        """Whether a rescued network is better than at first, or than a constant.

        Rows that were left out, and operations that were repaired, leave less doubt
        than a roll back: the loss on the other rows must then not be far above that of
        a constant output. If the network is new, it must be better than any constant
        output too. More is not asked of one that had been trained before.
        """
        guard, own_step = self.guard, self.own_step
        is_adversarial = own_step is not None and own_step.is_adversarial
        if is_adversarial or not (guard.reports and self.latest_batches):
            return True
        if self.has_changed_loss:
            return True
        is_new &= guard.on_nonfinite == "recover"
        recoveries = Counter(report.recovery for report in guard.reports)
        is_repaired = 2 * recoveries[RepairOperations.says] > self.n_steps
        with self._unchanged_buffers():
            trials = self._trials()
            is_doubtful = recoveries.keys() & {TakeOwnGradient.says, SkipStep.says}
            if guard.n_roll_backs or is_doubtful:
                return trials.has_learned(is_new=is_new)
            return not is_new or not trials.is_far_worse_than_constant(
                is_doubtful=is_repaired
            )

    @property
    def has_changed_loss(self) -> bool:
        """Whether buffers of the loss, such as a running mean, make it another one.

        Its values cannot be compared with those of the first weights then.
        """
        criteria = [getattr(self.net, f"{name}_") for name in self.net._criteria]
        states = [b for criterion in criteria for b in criterion.buffers()]
        return self.guard.weights.first.differs_in(states)

    def returns_to_verified(self) -> bool:
        """Restore the last verified weights; return whether they have learned."""
        guard = self.guard
        if guard.on_nonfinite != "recover" or not guard.has_budget:
            return False
        guard.weights.restore()
        with self._unchanged_buffers():
            return self._trials().has_learned(is_new=True)

    def what_is_left(self) -> str:
        """Return a sentence on a loss above that of a constant output, if it is."""
        if self.own_step is not None or not self.latest_batches:
            return ""
        with self._unchanged_buffers():
            found = self._trials().compare_with_constant()
        if found is None or not found.is_above:
            return ""
        return (
            f" Its loss of {found.reached:.3g} on training rows is still above that of "
            f"a constant output, {found.constant:.3g}."
        )

    @contextlib.contextmanager
    def _unchanged_buffers(self) -> Iterator[None]:
        """Restore buffers, such as those of batch normalization, after the block."""
        self.guard.begin_step()
        try:
            yield
        finally:
            self.guard.weights.last.restore_buffers()

    def were_trained(self) -> bool:
        """Whether the first weights were passed in and had been trained before."""
        is_given = isinstance(self.net.module, torch.nn.Module)
        return is_given and bool(self.latest_batches) and self._trials().were_trained()

    def has_exploded(self, loss: float, batch: Any, fit_params: dict[str, Any]) -> bool:
        """Whether a loss has grown far beyond those of recent batches at first.

        It is then far above that of a constant output too.
        """
        trials = RateTrials(self, batch, fit_params)
        return self.guard.has_exploded(loss, trials.largest_loss)

    def _trials(self) -> RateTrials:
        return RateTrials(self, self.latest_batches[-1], {})

    def in_data(self, report: NonFiniteReport) -> NonFiniteReport:
        """Return a report with the rows and columns of the training data.

        It is the report itself if a data loader has drawn the batch.
        """
        if not isinstance(self.batches, TensorBatches) or self.batches.latest is None:
            return report
        return in_data(report, self.batches.latest, self.batches.dataset.columns)

    def rows_of_data(self, n_rows: int | None = None) -> list[Any]:
        """Return a batch of evenly spaced training rows; none with a data loader.

        A number of rows leaves out a minority that has failed in half of the epochs.
        None means as many as in a batch, of all rows.
        """
        if not isinstance(self.batches, TensorBatches):
            return []
        table = self.batches.dataset
        index = torch.arange(len(table))
        if n_rows is not None:
            reports = [r for r in self.guard.reports if r.rows_in == "data"]
            times = Counter(row for report in reports for row in report.rows)
            n_epochs = len(self.net.history)
            bad = [row for row, n in times.items() if 2 * n >= n_epochs]
            if 2 * len(bad) <= len(table):
                index = index[~torch.isin(table.numbers, torch.tensor(bad).long())]
        n_chosen = min(n_rows or self.batches.batch_size, len(index))
        chosen = torch.linspace(0, len(index) - 1, n_chosen).round().long()
        return [table.rows(index[chosen])] if n_chosen else []

    # -- the step --------------------------------------------------------------------

    def step(self, batch: Any, fit_params: dict[str, Any]) -> Step:
        """Take one step, and recover if it fails.

        The result has ``loss`` and ``y_pred``, and ``was_skipped`` = True if no step
        was taken.
        """
        trials = RateTrials(self, batch, fit_params)
        return run_search(self.search_step(trials), trials.losses_after)

    def search_step(
        self, trials: RateTrials
    ) -> Generator[list[float], list[float], Step]:
        """Take one step as :meth:`step` does, with trials of learning rates outside.

        It yields factors of the learning rate to try after a roll back.
        """
        batch, fit_params = trials.batch, trials.fit_params
        refuse_invalid_rates(self.net, self.batch_number)
        while True:
            try:
                return self.attempt(batch, fit_params)
            except StepRefused as refused:
                with uncompiled(self.net):  # compiled code cannot be replayed
                    answer = self._recover(refused, trials)
            if answer == "shorten":
                yield from self.guard.shorten_steps(trials)
            elif not isinstance(answer, str):
                return answer

    def search_answer(
        self, report: NonFiniteReport, batch: Any
    ) -> Generator[list[float], list[float], None]:
        """Answer unusable weights after an epoch, with trials of rates outside.

        It yields factors of the learning rate to try after a roll back.
        """
        if self.guard.on_nonfinite == "recover" and not self.guard.has_finite_weights():
            self.guard.restore_weights(report)
            return
        may_restart = self.guard.may_restart(report)
        restart = RestartOnStandardizedData().restart
        if not may_restart or restart(self, report, batch, {}) is None:
            trials = RateTrials(self, batch, {})
            yield from self.guard.search_answer(report, trials)

    def _recover(
        self, refused: StepRefused, trials: RateTrials
    ) -> Step | Literal["retry", "shorten"]:
        """Return the answer of the first recovery that has one."""
        batch, fit_params = trials.batch, trials.fit_params
        explanation = explain(self, refused, batch, fit_params)
        failure = Failure(
            self.guard, trials, refused, explanation, explanation, batch, fit_params
        )
        for recovery in self.net._recoveries:
            if recovery.applies(failure):
                answer: Answer = recovery.attempt(self, failure, batch)
                if answer is not None:
                    return answer
        return self.guard.stop(failure.report)

    def attempt(
        self, batch: Any, fit_params: dict[str, Any], mode: StepMode = "plain"
    ) -> Step:
        """Take one step, or raise.

        Parameters
        ----------
        batch : tuple
            Inputs and targets.
        fit_params : dict
            Parameters of the module's ``forward``.
        mode : {"plain", "without_rows", "finite_operations", "own_gradient"}
            What is changed in a step that is repeated after a failure.

        Returns
        -------
        dict
            ``loss`` and ``y_pred``.

        Raises
        ------
        StepRefused
            If the step fails. No weight has changed, unless the step has made weights
            non-finite.
        """
        net, guard = self.net, self.guard
        guard.begin_step()
        self.random_states = random_states(net.device)
        factor = net._rate_factor()
        taken: Step
        if self.own_step is None:
            taken = self._plain_step.take(batch, fit_params, mode, factor)
        else:
            with scaled_rates(net._all_optimizers(), factor, guard.rate_caps):
                taken = self.own_step.take(batch, fit_params, mode)
        self.rate = net._step_rate()
        self.largest_rate = max(self.largest_rate, net._base_rate())
        self.latest_batches.append(batch)
        guard.step_taken()
        self.n_steps += 1
        if self.average is not None:
            self.average.update(net.ema_decay)
        return taken

    def count_clip(self, norm: float, coefficient: float) -> None:
        """Record the norm of gradients and their clipping coefficient."""
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
    ) -> float:
        """Clip gradients in place; return their norm, divided by the norm before."""
        net, before = self.net, norm
        if net.adaptive_clip_ is not None:
            norm *= net.adaptive_clip_(parameters, grads, norm)
        if net.clip_value is not None:
            clip_grad_value(grads, net.clip_value)
            norm = float(lowered_norm(norm, float(grad_norm(grads))))
        for max_norm in (net.clip_norm, rescue_norm):
            if max_norm is not None:
                norm *= clip_grad_norm(grads, max_norm, norm)
        return norm / before if before else 1.0
