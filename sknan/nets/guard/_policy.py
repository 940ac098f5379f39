"""What a guard does about a failed step, within a budget, and its record of reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import nn

from sknan._utils.thresholds import is_runaway
from sknan._utils.validation import is_integer, is_one_of
from sknan.diagnosis._report import NonFiniteReport
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets.guard._step_checks import StepChecks

POLICIES = ("recover", "skip", "raise")

# Causes of a failure that inputs in raw units may have.
_CAUSES_OF_RAW_INPUTS = ("learning_rate", "gradient", "activation", "loss")


class Policy(StepChecks):
    """Policy and budget of the answers to failed steps, and the reports on them.

    Parameters
    ----------
    on_nonfinite : {"recover", "skip", "raise"}
        Answer to a failed step.
    max_recoveries : int
        Maximum number of roll-backs and consecutive skipped batches in one training.

    Attributes
    ----------
    reports : list of NonFiniteReport
        Reports on all failed steps, in order.

    Raises
    ------
    ValueError
        If ``on_nonfinite`` is unknown or ``max_recoveries`` is not a number >= 0.
    """

    def __init__(self, on_nonfinite: str, max_recoveries: int) -> None:
        if not is_one_of(on_nonfinite, POLICIES):
            raise ValueError(
                f"on_nonfinite must be one of {', '.join(map(repr, POLICIES))}, got "
                f"{on_nonfinite!r}."
            )
        if not is_integer(max_recoveries) or max_recoveries < 0:
            raise ValueError(
                f"max_recoveries must be an integer of at least 0, got "
                f"{max_recoveries!r}."
            )
        super().__init__()
        self.on_nonfinite = on_nonfinite
        self.max_recoveries = max_recoveries
        self.reports: list[NonFiniteReport] = []

    def begin(
        self,
        modules: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        n_steps: int | None = None,
    ) -> None:
        """Start to guard a training with a whole budget; see :class:`StepChecks`."""
        super().begin(modules, optimizers, n_steps)
        self._n_failed = 0
        self._n_skipped_batches = 0  # consecutive ones

    def step_taken(self) -> None:
        """Record that the optimizer has changed the weights."""
        super().step_taken()
        self._n_skipped_batches = 0

    @property
    def n_roll_backs(self) -> int:
        """Number of roll backs and restarts."""
        return self._n_failed

    @property
    def has_budget(self) -> bool:
        """Whether the budget allows one more failure."""
        return self._n_failed + self._n_skipped_batches < self.max_recoveries

    @property
    def may_go_back(self) -> bool:
        """Whether a roll back is a fair answer to a network that has collapsed.

        Weights that shrink to zero, by weight decay, have not diverged.
        """
        may_recover = self.on_nonfinite == "recover" and self.has_budget
        return may_recover and not self.weights.has_shrunk

    @property
    def is_last(self) -> bool:
        """Whether a failure now may end the training."""
        return self.on_nonfinite == "raise" or not self.has_budget

    @property
    def may_repeat(self) -> bool:
        """Whether a failed step may be repeated with the present weights.

        This is not so if the weights have diverged: every batch would fail.
        """
        has_diverged = self.weights.n_steps > 0 and is_runaway(self.relative_distance())
        return (
            self.on_nonfinite == "recover"
            and self.max_recoveries > 0
            and not has_diverged
            and self.has_finite_weights()
        )

    def may_restart(self, report: NonFiniteReport) -> bool:
        """Whether a restart of the training may answer a failed step."""
        return (
            self.on_nonfinite == "recover"
            and self.has_budget
            and report.cause in _CAUSES_OF_RAW_INPUTS
        )

    def record(self, report: NonFiniteReport, recovery: str) -> None:
        """Append a report on a failed step, with the recovery from it.

        Parameters
        ----------
        report : NonFiniteReport
            Report on the failed step.
        recovery : str
            Sentence that describes the recovery.
        """
        report = dataclasses.replace(report, recovery=recovery)
        if self.reports:  # one capsule is enough to reproduce a failure
            report = dataclasses.replace(report, capsule=None)
        self.reports.append(report)
        self._watch.forget()

    def stop(self, report: NonFiniteReport, gave_up: str = "") -> NoReturn:
        """Append a report and raise it.

        Parameters
        ----------
        report : NonFiniteReport
            Report on the failed step.
        gave_up : str, default=""
            Sentence that follows the report in the message.

        Raises
        ------
        NonFiniteTrainingError
            Always.
        """
        self.reports.append(report)
        raise NonFiniteTrainingError(f"{report}{gave_up}", report)

    def _check_budget(self, report: NonFiniteReport) -> None:
        n_failed = self._n_failed + self._n_skipped_batches
        if n_failed > self.max_recoveries:
            self.stop(
                report,
                f" Gave up after {n_failed - 1} recoveries "
                f"(max_recoveries={self.max_recoveries}).",
            )
