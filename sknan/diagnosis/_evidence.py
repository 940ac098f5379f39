"""Everything that is known about one failed training step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sknan.diagnosis._failed_operation import FailedOperation
from sknan.diagnosis._report import Cause
from sknan.diagnosis._thresholds import is_runaway


@dataclass(frozen=True, eq=False, kw_only=True)
class StepEvidence:
    """Everything that is known about one failed training step.

    Parameters
    ----------
    inputs, outputs : Tensor, or nested tuples or dicts of Tensor
        Arguments and result of the module's forward pass.
    loss : float
        Value of the loss.
    gradient_norm : float
        Global norm of the gradients.
    named_parameters : sequence of (str, Tensor)
        Weights with their gradients.
    relative_distance : float
        Distance of the weights from the last verified snapshot, as a multiple of the
        norm of the snapshot.
    lr : float
        Learning rate in force.
    epoch, batch : int
        Position in the training, counted from 1; 0 if there is none.
    failed_operation : FailedOperation or None, default=None
        First operation that failed in a replay of the step.
    error : Exception or None, default=None
        Exception that the forward pass or the loss raised.
    is_gradient_absurd : bool, default=False
        Whether the step was refused because of the size of a finite gradient.
    amplification : str, default=""
        Description of how the network amplifies gradients with its initial weights;
        empty if it does not.
    rows, columns : tuple of int, default=()
        Rows and columns of the batch that are to blame.
    """

    inputs: Any
    outputs: Any
    loss: float
    gradient_norm: float
    named_parameters: Sequence[tuple[str, Tensor]]
    relative_distance: float
    lr: float
    epoch: int
    batch: int
    failed_operation: FailedOperation | None = None
    error: Exception | None = None
    is_gradient_absurd: bool = False
    amplification: str = ""
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient norm are finite although the step was refused."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)

    @property
    def is_runaway(self) -> bool:
        """Whether the weights have moved farther than learning explains."""
        return is_runaway(self.relative_distance)

    @property
    def cause_of_divergence(self) -> Cause:
        """Cause to blame where the weights have diverged."""
        return "gradient" if self.amplification else "learning_rate"

    @property
    def movement(self) -> str:
        """Clause on how far the weights have moved, and at which learning rate."""
        moved = (
            f"the weights have moved {self.relative_distance:.3g} times their size "
            f"since the last good ones at lr={self.lr:.3g}"
        )
        if self.amplification:
            moved += f", in a network that {self.amplification}"
        return moved
