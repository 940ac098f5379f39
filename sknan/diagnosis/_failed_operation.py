"""Record of an operation that made a number non-finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sknan.diagnosis._report import Phase

# Name of the criterion in the field ``module`` of a report.
CRITERION = "criterion"


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
    depends_on_batch : bool, default=True
        Whether the arguments depend on the batch.
    has_too_few_elements : bool, default=False
        Whether the operation is a statistic of fewer elements than it needs.
    is_only_in_buffer : bool, default=False
        Whether only a buffer of the module is not finite because of the operation.
    is_in_unused_branch : bool, default=False
        Whether the value was not finite either, and did not contribute to the loss.
    weight : str or None, default=None
        Name of a weight among the arguments that was not finite before the step.
    """

    phase: Phase
    module: str
    operation: str
    source: str | None
    rows: tuple[int, ...] = ()
    largest: float = 0.0
    domain: tuple[float, float] | None = None
    dtype: torch.dtype | None = None
    depends_on_batch: bool = True
    has_too_few_elements: bool = False
    is_only_in_buffer: bool = False
    is_in_unused_branch: bool = False
    weight: str | None = None

    @property
    def place(self) -> dict[str, Any]:
        """Module, operation and source, as fields of a report."""
        names = ("module", "operation", "source")
        return {name: getattr(self, name) for name in names}
