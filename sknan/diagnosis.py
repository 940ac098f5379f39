"""What is known of a failed step, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sknan.batching import tree_map

__all__ = ["Cause", "NonFiniteReport", "Phase", "examine_step"]

Phase = Literal["input", "forward", "loss", "backward", "step"]
Cause = Literal[
    "data",
    "learning_rate",
    "gradient",
    "activation",
    "loss",
    "architecture",
    "precision",
]

_ACTIONS: dict[Cause, str] = {
    "data": (
        "Clean and impute the inputs first: "
        "make_pipeline(NaNImputer(), SafeScaler(), net)."
    ),
    "learning_rate": "Lower lr, or add warmup and clip_norm=1.0.",
    "gradient": "Clip the gradients with clip_norm=1.0, and scale the targets.",
    "activation": (
        "Look in the module's forward for log, sqrt, division, exp, norm or a softmax "
        "over nothing, and keep its argument inside the domain."
    ),
    "loss": (
        "Choose a loss that works on logits or in log space, such as "
        "criterion='cross_entropy' or 'huber'."
    ),
    "architecture": "Rewrite the operation so that its value and gradient stay finite.",
    "precision": "Use a wider dtype, such as float32.",
}

# Above this size a float32 loss comes from numbers whose squares are about to overflow.
_HUGE = 1e15

# A forward pass in one of these overflows or rounds to 0 long before float32 would.
_NARROW = (torch.float16, torch.bfloat16)

# Weights that have moved by more than their own size since the last verified snapshot
# did not get there by learning.
_RUNAWAY = 1.0


@dataclass(frozen=True)
class NonFiniteReport:
    """One step of training that went non-finite or exploded.

    Parameters
    ----------
    phase : {"input", "forward", "loss", "backward", "step"}
        Where in the step the first non-finite value appeared; ``"step"`` means that the
        weights themselves ran away.
    cause : {"data", "learning_rate", "gradient", "activation", "loss", \
"architecture", "precision"}
        What is to blame, judged from the evidence.
    evidence : str
        One sentence with the numbers.
    action : str
        One sentence: what to change.
    module : str, default=""
        Dotted path inside the user's module, ``""`` for the module itself and
        ``"criterion"`` for the loss.
    operation : str or None, default=None
        ATen name of the operation, where it is known.
    source : str or None, default=None
        ``file:line`` in the user's code, where it is known.
    epoch, batch : int or None, default=None
        Position in the training, counted from 1.
    rows : tuple of int, default=()
        Rows to blame, counted from 0 within the batch.
    columns : tuple of int or str, default=()
        Columns to blame.

    Examples
    --------
    >>> from sknan.diagnosis import NonFiniteReport
    >>> print(NonFiniteReport("loss", "loss", "The loss is inf.", "Bound it.", epoch=2))
    Non-finite loss at epoch 2. The loss is inf. Bound it.
    """

    phase: Phase
    cause: Cause
    evidence: str
    action: str
    module: str = ""
    operation: str | None = None
    source: str | None = None
    epoch: int | None = None
    batch: int | None = None
    rows: tuple[int, ...] = ()
    columns: tuple[int | str, ...] = ()

    @property
    def place(self) -> str:
        """Epoch and batch in words, such as ``"epoch 1, batch 3"``."""
        parts = [("epoch", self.epoch), ("batch", self.batch)]
        return ", ".join(f"{name} {value}" for name, value in parts if value)

    def __str__(self) -> str:
        what = {
            "input": "Non-finite input",
            "forward": "Non-finite output",
            "loss": "Non-finite loss",
            "backward": "Non-finite gradient",
            "step": "Training diverged",
        }[self.phase]
        where = f" in {self.module!r}" if self.module else ""
        when = f" at {self.place}" if self.place else ""
        return f"{what}{where}{when}. {self.evidence} {self.action}"


def _nonfinite_count(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum())


def _float_leaves(data: Any) -> list[Tensor]:
    leaves: list[Tensor] = []

    def collect(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            leaves.append(leaf.detach())
        return leaf

    tree_map(collect, data)
    return leaves


def _places_of_bad_input(inputs: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows and columns of the first two-dimensional input that is not finite."""
    for leaf in _float_leaves(inputs):
        bad = ~torch.isfinite(leaf)
        if leaf.ndim == 2 and bad.any():
            rows = bad.any(dim=1).nonzero().flatten().tolist()
            columns = bad.any(dim=0).nonzero().flatten().tolist()
            return tuple(rows), tuple(columns)
    return (), ()


def examine_step(
    *,
    inputs: Any,
    outputs: Any,
    loss: float,
    gradient_norm: float,
    named_parameters: Iterable[tuple[str, Tensor]],
    travelled: float,
    lr: float,
    epoch: int,
    batch: int,
) -> NonFiniteReport:
    """Judge a failed step by what is at hand once it has failed.

    The first of inputs, weights, outputs, loss and gradients that is not finite gives
    the phase. Where all are finite the step was refused because its loss exploded.

    Parameters
    ----------
    inputs, outputs : Tensor, or nested tuples or dicts of Tensor
        What the module was given and what it returned.
    loss : float
        Value of the loss.
    gradient_norm : float
        Global norm of the gradients.
    named_parameters : iterable of (str, Tensor)
        Weights with their gradients.
    travelled : float
        Distance of the weights from the last verified snapshot, as a multiple of their
        size there.
    lr : float
        Learning rate in force.
    epoch, batch : int
        Position, counted from 1.

    Returns
    -------
    NonFiniteReport
        Without operation and source, which only a replay can find.
    """
    named_parameters = list(named_parameters)
    at: dict[str, Any] = {"epoch": epoch, "batch": batch}
    moved = (
        f"the weights have moved {travelled:.3g} times their size since the last good "
        f"ones at lr={lr:.3g}"
    )
    runaway = not travelled <= _RUNAWAY

    bad_inputs = sum(_nonfinite_count(leaf) for leaf in _float_leaves(inputs))
    if bad_inputs:
        rows, columns = _places_of_bad_input(inputs)
        values = "value" if bad_inputs == 1 else "values"
        evidence = f"The batch holds {bad_inputs} non-finite input {values}."
        return NonFiniteReport(
            "input",
            "data",
            evidence,
            _ACTIONS["data"],
            rows=rows,
            columns=columns,
            **at,
        )

    bad_weights = [n for n, p in named_parameters if _nonfinite_count(p.detach())]
    if bad_weights:
        evidence = (
            f"{len(bad_weights)} of {len(named_parameters)} weight tensors are "
            f"non-finite, first {bad_weights[0]!r}; {moved}."
        )
        action = _ACTIONS["learning_rate"]
        return NonFiniteReport("step", "learning_rate", evidence, action, **at)

    def report(
        phase: Phase, cause: Cause, evidence: str, module: str = ""
    ) -> NonFiniteReport:
        if runaway:
            cause = "learning_rate"
            evidence += f"; {moved}"
        return NonFiniteReport(
            phase, cause, f"{evidence}.", _ACTIONS[cause], module=module, **at
        )

    leaves = _float_leaves(outputs)
    bad_outputs = sum(_nonfinite_count(leaf) for leaf in leaves)
    if bad_outputs:
        total = sum(leaf.numel() for leaf in leaves)
        evidence = (
            f"{bad_outputs} of {total} outputs are non-finite from finite inputs and "
            "weights"
        )
        is_narrow = any(leaf.dtype in _NARROW for leaf in leaves)
        return report("forward", "precision" if is_narrow else "activation", evidence)

    if not math.isfinite(loss):
        largest = max((float(leaf.abs().max()) for leaf in leaves), default=math.nan)
        evidence = f"The loss is {loss} for outputs of size up to {largest:.3g}"
        return report("loss", "loss", evidence, module="criterion")

    if not math.isfinite(gradient_norm):
        bad = [
            name
            for name, p in named_parameters
            if p.grad is not None and _nonfinite_count(p.grad)
        ]
        evidence = (
            f"The loss is {loss:.3g} but {len(bad)} of {len(named_parameters)} "
            f"gradients are non-finite, first that of {bad[0]!r}"
            if bad
            else f"The gradients' norm is {gradient_norm} at a loss of {loss:.3g}"
        )
        cause: Cause = "gradient" if abs(loss) > _HUGE else "activation"
        module = bad[0].rpartition(".")[0] if bad else ""
        return report("backward", cause, evidence, module=module)

    evidence = f"The loss has grown to {loss:.3g} and stays there; {moved}."
    action = _ACTIONS["learning_rate"]
    return NonFiniteReport("step", "learning_rate", evidence, action, **at)
