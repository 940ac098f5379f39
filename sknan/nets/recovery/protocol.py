"""Types of a failed step, of a training that can recover, and of a recovery."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sknan.diagnosis._evidence import FailedOperation, StepEvidence
from sknan.diagnosis._raised import ValueErrors
from sknan.diagnosis._report import NonFiniteReport
from sknan.nets._batching import TensorTable
from sknan.nets.guard._guard import Guard
from sknan.nets.guard._trials import Trials
from sknan.nets.recovery.raw_units import Conditioning

# Loss and output of a step, as ``train_step`` returns them.
Step = dict[str, Any]

# What is changed when a failed step is taken again.
StepMode = Literal["plain", "without_rows", "finite_operations", "own_gradient"]

# Result of a recovery: a step, "retry" to attempt the whole batch again, "shorten" to
# do so after a search for a lower learning rate, or None if the next recovery must be
# tried.
Answer = Step | Literal["retry", "shorten"] | None


class StepRefused(Exception):
    """Refusal of a training step, raised in the optimizer's closure.

    No weight has changed at that point, except in a step that overflowed inside the
    optimizer.
    """

    def __init__(
        self,
        step: Step,
        loss: float,
        norm: float,
        error: Exception | None = None,
        *,
        is_gradient_absurd: bool = False,
        has_stepped: bool = False,
    ) -> None:
        super().__init__(f"loss {loss}, norm of the gradients {norm}")
        self.step = step
        self.loss = loss
        self.norm = norm
        self.error = error
        self.is_gradient_absurd = is_gradient_absurd
        self.has_stepped = has_stepped  # the optimizer has changed weights


class RefuseErrors(ValueErrors):
    """Block in which an exception that may depend on values refuses the step."""

    def __exit__(
        self, kind: Any, error: BaseException | None, place: Any
    ) -> Literal[False]:
        """Raise :class:`StepRefused`, or let any other exception pass."""
        if super().__exit__(kind, error, place):
            raise StepRefused(no_result(), math.nan, math.nan, self.error) from error
        return False


def no_result() -> Step:
    """Return the result of a step that has neither loss nor output."""
    return {"loss": torch.tensor(math.nan), "y_pred": None}


# Function of a batch and parameters of ``forward`` that takes a step whose effects the
# caller undoes. It returns the loss, or raises ``StepRefused``.
TrialLoss = Callable[[Any, dict[str, Any]], float]


class Training(Protocol):
    """Interface of a training under guard that the recoveries use.

    Attributes
    ----------
    net : skorch net with GuardMixin
        Net that is trained.
    guard : Guard
        Policy, budget and snapshots.
    norms, coefficients : list of float
        Gradient norm and clipping coefficient of each step of the epoch.
    batch_number : int
        Number of the present batch in its epoch, counted from 1.
    batches : iterable of tuple
        Batches of the epoch.
    random_states : tuple
        States of the random generators before the latest forward pass.
    latest_batches : deque
        Batches of the latest steps.
    left_out : Counter
        Number of steps that each row of the training data was left out of.
    raw_table : TensorTable or None
        Training data, as long as a restart on standardized data is possible.
    conditioning : Conditioning or None
        Coordinates in which steps are taken after such a restart.
    """

    net: Any
    guard: Guard
    norms: list[float]
    coefficients: list[float]
    batch_number: int
    batches: Any
    random_states: Any
    latest_batches: deque[Any]
    left_out: Counter[int]
    raw_table: TensorTable | None
    conditioning: Conditioning | None

    @property
    def own_trial_loss(self) -> TrialLoss | None:
        """Trial of the user's ``train_step``, if that steps several optimizers."""

    def count_clip(self, norm: float, coefficient: float) -> None:
        """Record the norm of gradients and their clipping coefficient."""

    def has_exploded(self, loss: float, batch: Any, fit_params: dict[str, Any]) -> bool:
        """Whether a loss has grown far beyond those of recent batches at first."""

    def attempt(
        self, batch: Any, fit_params: dict[str, Any], mode: StepMode = "plain"
    ) -> Step:
        """Take one step, or raise :class:`StepRefused`."""

    def clip(
        self,
        parameters: list[Tensor],
        grads: list[Tensor],
        norm: float,
        rescue_norm: float | None,
    ) -> float:
        """Clip the gradients in place."""

    def in_data(self, report: NonFiniteReport) -> NonFiniteReport:
        """Return a report with the rows and columns of the training data."""

    def rows_of_data(self, n_rows: int | None = None) -> list[Any]:
        """Return a batch of rows from all the training data, if these are known."""


@dataclass(frozen=True)
class Explanation:
    """Evidence of a refused step, the report on it, and the rows of the batch to blame.

    The rows in the report are those of the training data, if these are known.
    """

    evidence: StepEvidence
    report: NonFiniteReport
    rows: tuple[int, ...]


@dataclass
class Failure:
    """Failed step, and what the recoveries tried so far have found out about it.

    Parameters
    ----------
    guard : Guard
        Guard of the training.
    trials : Trials
        Trials of other weights and learning rates on the whole batch.
    refused : StepRefused
        First refusal of the step.
    first, latest : Explanation
        Explanations of the first refusal and of the latest attempt.
    batch : tuple
        Remaining rows of the batch.
    fit_params : dict
        Parameters of the module's ``forward``.
    n_attempts : int, default=0
        Number of repetitions of the step so far.
    is_idle : bool, default=False
        Whether the gradient was exactly 0 in a repetition with finite operations.
    has_ruined : bool, default=False
        Whether the step of the optimizer in a repetition made weights non-finite.
    """

    guard: Guard
    trials: Trials
    refused: StepRefused
    first: Explanation
    latest: Explanation
    batch: Any
    fit_params: dict[str, Any]
    n_attempts: int = 0
    is_idle: bool = False
    has_ruined: bool = False

    @property
    def report(self) -> NonFiniteReport:
        """Report on the first refusal, which the guard records."""
        return self.first.report

    @property
    def operation(self) -> FailedOperation | None:
        """Operation that failed in a replay of the latest attempt, if any did."""
        return self.latest.evidence.failed_operation

    @cached_property
    def _has_repeatable_cause(self) -> bool:
        # Cached: what counts are the weights at the first refusal.
        if self.report.phase in ("step", "input") or not self.guard.may_repeat:
            return False
        is_finite = self.first.evidence.is_finite
        return not (is_finite and self.guard.needs_clip(self.report))

    @property
    def is_repeatable(self) -> bool:
        """Whether the step may succeed with the same weights.

        It cannot if the weights or the learning rate caused the failure, if an
        operation failed that would fail for any batch, or if a repetition has ruined
        the weights.
        """
        depends_on_batch = self.operation is None or self.operation.depends_on_batch
        return self._has_repeatable_cause and depends_on_batch and not self.has_ruined

    @property
    def is_of_domain(self) -> bool:
        """Whether the rows of the batch are outside the domain of an operation.

        The weights are sound, so that a lower learning rate would be no remedy.
        """
        evidence = self.first.evidence
        failed = evidence.failed_operation
        return (
            failed is not None
            and failed.depends_on_batch
            and not failed.has_overflowed
            and not evidence.is_finite
            and self._has_repeatable_cause
        )


class Recovery(Protocol):
    """Answer to a failed step.

    Attributes
    ----------
    says : str
        Sentence that the report records.
    """

    @property
    def says(self) -> str:
        """Sentence that the report records."""

    def applies(self, failure: Failure) -> bool:
        """Whether this recovery is meant for a failure."""

    def attempt(self, training: Training, failure: Failure, batch: Any) -> Answer:
        """Try to recover.

        Parameters
        ----------
        training : Training
            Training in the state of the failure.
        failure : Failure
            Failed step.
        batch : tuple
            Whole batch of the failed step.

        Returns
        -------
        dict, "retry", "shorten" or None
            Result of ``train_step``; "retry" to attempt the whole batch again;
            "shorten" to do so after a search for a lower learning rate; None to try the
            next recovery.
        """
