"""Evidence on a failed training step: failed operation, sizes, rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sknan._utils.thresholds import NARROW, OVERFLOWS_SQUARED, is_runaway
from sknan._utils.tree import tree_leaves
from sknan.diagnosis._report import Cause, Phase

# Name of the criterion in the field ``module`` of a report.
CRITERION = "criterion"


class NonFiniteWeight(NamedTuple):
    """A weight or buffer that is not finite, and how many of its entries are not."""

    name: str
    n_bad: int
    n_entries: int
    kind: Literal["weight", "buffer"] = "weight"
    is_mask: bool = False  # a buffer in which all these entries are minus infinity


# Operations that return memory whose numbers are not written yet.
UNWRITTEN = (
    *("empty", "empty_like", "empty_permuted", "empty_strided"),
    *("new_empty", "new_empty_strided", "resize"),
)

# Operations that are defined for all numbers and overflow at moderate ones.
_GROWING = ("cosh", "cumprod", "exp", "exp2", "expm1", "prod", "sinh")


@dataclass(frozen=True)
class FailedOperation:
    """An operation that made a number non-finite in a training step.

    Parameters
    ----------
    phase : {"forward", "loss", "backward", "step"}
        Part of the step in which the operation ran.
    module : str
        Dotted path of the module that called the operation.
    operation : str
        ATen name of the operation, or name of the user's own autograd function.
    source : str or None
        ``file:line`` in the user's code.
    rows : tuple of int, default=()
        Rows of the batch for which the result is not finite.
    largest : float, default=0.0
        Size of the largest finite number among the arguments.
    domain : (float, float) or None, default=None
        Least and largest number of the last argument, such as a denominator.
    dtype : torch.dtype or None, default=None
        Dtype of the result.
    fails_in_float32 : bool, default=False
        Whether the operation fails in float32 as it does in half precision.
    depends_on_batch : bool, default=True
        Whether the arguments depend on the batch.
    divides_by_zero_weight : bool, default=False
        Whether a denominator that is 0 depends on trained weights alone.
    has_too_few_elements : bool, default=False
        Whether the operation is a statistic of fewer elements than it needs.
    is_only_in_buffer : bool, default=False
        Whether only a buffer of the module is not finite because of the operation.
    is_in_unused_branch : bool, default=False
        Whether the value was not finite either, and did not contribute to the loss.
    weight : NonFiniteWeight or None, default=None
        Weight or buffer among the arguments that was not finite before the step.
    arguments : tuple of str, default=()
        Origin of each argument, such as ``"sum(pow(input))"``.
    used_by : tuple of str, default=()
        Operations that used the result in the forward pass, in order, with the origin
        of their arguments.
    layer : str, default=""
        Class of the innermost module, if it is a layer or a loss of torch.
    has_raised : bool, default=False
        Whether the operation has raised an exception.
    is_in_hook : bool, default=False
        Whether a hook has changed a finite gradient by the operation, which is empty if
        the hook has used no operation of torch.
    """

    phase: Phase
    module: str
    operation: str
    source: str | None
    rows: tuple[int, ...] = ()
    largest: float = 0.0
    domain: tuple[float, float] | None = None
    dtype: torch.dtype | None = None
    fails_in_float32: bool = False
    depends_on_batch: bool = True
    divides_by_zero_weight: bool = False
    has_too_few_elements: bool = False
    is_only_in_buffer: bool = False
    is_in_unused_branch: bool = False
    weight: NonFiniteWeight | None = None
    arguments: tuple[str, ...] = ()
    used_by: tuple[str, ...] = ()
    layer: str = ""
    has_raised: bool = False
    is_in_hook: bool = False

    @property
    def name(self) -> str:
        """Name of the operation without namespace and mark of an in-place one."""
        return self.operation.removeprefix("aten.").rstrip("_")

    @property
    def is_of_weights(self) -> bool:
        """Whether the operation fails for all rows, because of the weights."""
        return self.divides_by_zero_weight or not self.depends_on_batch

    @property
    def has_overflowed(self) -> bool:
        """Whether the result was too large for its dtype.

        Other operations that fail were given a number outside their domain.
        """
        is_narrow = self.dtype in NARROW and not self.fails_in_float32
        is_huge = self.largest >= OVERFLOWS_SQUARED
        return is_huge or is_narrow or self.name in _GROWING

    @property
    def place(self) -> dict[str, Any]:
        """Module, operation and source, as fields of a report."""
        names = ("module", "operation", "source")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Places:
    """Rows and columns of a batch that are to blame.

    Parameters
    ----------
    rows, columns : tuple of int, default=()
        Numbers of the rows and columns.
    unusable : {"inputs", "targets", None}, default=None
        Part of the batch with numbers that are NaN or too large, so that the step is
        finite with usual ones.
    has_nan : bool, default=False
        Whether NaN is among these numbers.
    """

    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    unusable: Literal["inputs", "targets"] | None = None
    has_nan: bool = False


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
    relative_distance : float, default=0.0
        Distance of the weights from the last verified snapshot, as a multiple of the
        norm of the snapshot.
    lr : float, default=0.0
        Learning rate in force.
    epoch, batch : int, default=0
        Position in the training, counted from 1; 0 if there is none.
    failed_operation : FailedOperation or None, default=None
        First operation that failed in a replay of the step.
    error : Exception or None, default=None
        Exception that the forward pass or the loss raised.
    is_gradient_absurd : bool, default=False
        Whether the step was refused because of the size of a finite gradient.
    is_eps_zero : bool, default=False
        Whether the optimizer has divided 0 by 0, because its ``eps`` is 0.
    amplification : str, default=""
        Description of how the network amplifies gradients with its initial weights;
        empty if it does not.
    places : Places or None, default=None
        Rows and columns of the batch that are to blame.
    damaged : NonFiniteWeight or None, default=None
        First weight or buffer that is not finite although the optimizer has left it so.
    """

    inputs: Any
    outputs: Any
    loss: float
    gradient_norm: float
    named_parameters: Sequence[tuple[str, Tensor]]
    relative_distance: float = 0.0
    lr: float = 0.0
    epoch: int = 0
    batch: int = 0
    failed_operation: FailedOperation | None = None
    error: Exception | None = None
    is_gradient_absurd: bool = False
    is_eps_zero: bool = False
    amplification: str = ""
    places: Places | None = None
    damaged: NonFiniteWeight | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows in the batch; 0 if it is unknown."""
        return next((len(x) for x in tree_leaves(self.inputs) if x.ndim), 0)

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
