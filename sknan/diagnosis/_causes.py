"""From the evidence of a failed step to its cause, and to what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sknan._utils.tree import tree_leaves
from sknan.diagnosis._replay import CRITERION, FailedOperation
from sknan.diagnosis._report import Cause, NonFiniteReport, Phase

__all__ = ["HUGE", "NARROW", "OVERFLOWS_SQUARED", "examine_step", "is_runaway"]

_ACTIONS: dict[Cause, str] = {
    "data": (
        "Clean and impute the inputs first: "
        "make_pipeline(NaNImputer(), SafeScaler(), net)."
    ),
    "learning_rate": "Lower lr, or add warmup=0.05, and clip_norm=1.0 if it is off.",
    "gradient": (
        "Clip the gradients with clip_norm=1.0, scale inputs and targets, and choose "
        "an initialisation or a cell that does not amplify."
    ),
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

# What of ours stands in for an operation.
_OURS = {
    "log": "log",
    "log1p": "log1p",
    "log2": "log",
    "log10": "log",
    "exp": "exp",
    "expm1": "expm1",
    "cosh": "softplus",
    "sqrt": "sqrt",
    "rsqrt": "rsqrt",
    "div": "divide",
    "reciprocal": "reciprocal",
    "pow": "power",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "logsumexp": "logsumexp",
    "linalg_vector_norm": "norm",
    "norm": "norm",
    "std": "std",
    "var": "var",
    "hypot": "hypot",
    "atan2": "atan2",
    "atanh": "atanh",
    "asin": "asin",
    "acos": "acos",
    "logit": "logit",
    "log_sigmoid": "log_sigmoid",
    "softplus": "softplus",
}
# And for a loss, by the operation that breaks in it when it is written out.
_LOSSES = {
    "log": (
        "losses.CrossEntropyLoss or BCEWithLogitsLoss on logits, or "
        "losses.GaussianNLLLoss for a variance"
    ),
    "exp": "losses.PoissonNLLLoss",
    "cosh": "losses.LogCoshLoss",
    "log1p": "losses.MSLELoss",
    "sqrt": "losses.RMSELoss",
    "div": "losses.MAPELoss, or functional.divide",
    "pow": "losses.FocalLoss, or functional.power",
    "nll_loss_forward": "losses.CrossEntropyLoss, which gives 0 for a batch of none",
    "mse_loss": "losses.HuberLoss",
}

# Operations with an edge to their domain: where one fails in the backward pass only,
# its argument was at the edge, not beyond.
_WITH_A_DOMAIN = (
    "acos",
    "asin",
    "atanh",
    "erfinv",
    "exp",
    "log",
    "log10",
    "log1p",
    "log2",
    "logit",
)

# Above this size a float32 loss comes from numbers whose squares are about to overflow.
HUGE = 1e15

# A forward pass in one of these overflows or rounds to 0 long before float32 would.
NARROW = (torch.float16, torch.bfloat16)

# Gradients from here on have squares near the end of float32, which an optimizer may
# keep as inf.
OVERFLOWS_SQUARED = 1e18

# Weights that have moved by more than their own size since the last verified snapshot
# did not get there by learning.
_RUNAWAY = 1.0


def is_runaway(relative_distance: float) -> bool:
    """Whether the weights have gone where no learning leads."""
    return not relative_distance <= _RUNAWAY


def _nonfinite_count(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum())


def _float_leaves(data: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in tree_leaves(data) if leaf.is_floating_point()]


def _places_where(inputs: Any, is_bad: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows and columns of the first two-dimensional input that is bad somewhere."""
    for leaf in _float_leaves(inputs):
        bad = is_bad(leaf)
        if leaf.ndim == 2 and bad.any():
            rows = bad.any(dim=1).nonzero().flatten().tolist()
            columns = bad.any(dim=0).nonzero().flatten().tolist()
            return tuple(rows), tuple(columns)
    return (), ()


def _is_absurd(leaf: Tensor) -> Tensor:
    return leaf.abs() >= HUGE


def _action(
    cause: Cause, finding: FailedOperation | None, *, has_columns: bool = False
) -> str:
    """What to do, with the name of what stands in for the operation."""
    name = finding.operation.removeprefix("aten.") if finding else ""
    name = name.rstrip("_")  # in place or not
    if has_columns and cause == "activation" and name in _OURS:
        return (
            f"Clean these columns, or use sknan.functional.{_OURS[name]}, whose value "
            "and gradient stay finite."
        )
    if cause == "loss" and name in _LOSSES:
        return f"Use sknan.{_LOSSES[name]}."
    if cause in ("activation", "architecture", "loss") and name in _OURS:
        return (
            f"Use sknan.functional.{_OURS[name]}, whose value and gradient stay finite."
        )
    if cause == "architecture" and finding is not None and not finding.is_of_batch:
        return "Choose another initialisation, or sknan.functional.normalize."
    return _ACTIONS[cause]


def _cause_of(finding: FailedOperation, *, amplifies: bool) -> Cause:
    """What is to blame for an operation that failed on sound weights."""
    in_criterion = finding.module == CRITERION
    if finding.dtype in NARROW and finding.largest < HUGE:
        return "precision"
    if finding.largest >= HUGE:
        # Sound as an operation: what went into it was too large.
        return "gradient" if amplifies or finding.phase == "backward" else "activation"
    if in_criterion:
        return "loss"
    name = finding.operation.removeprefix("aten.")
    is_decomposition = "linalg" in name and "norm" not in name
    is_odd = (
        finding.is_of_dead_branch
        or finding.is_of_too_few
        or finding.is_of_buffer
        or not finding.is_of_batch
    )
    if is_decomposition or is_odd:
        return "architecture"
    if finding.phase == "backward" and name not in _WITH_A_DOMAIN:
        return "architecture"
    return "activation"


def examine_step(
    *,
    inputs: Any,
    outputs: Any,
    loss: float,
    gradient_norm: float,
    named_parameters: Iterable[tuple[str, Tensor]],
    relative_distance: float,
    lr: float,
    epoch: int,
    batch: int,
    finding: FailedOperation | None = None,
    error: Exception | None = None,
    is_gradient_absurd: bool = False,
    amplifies: str = "",
    rows: tuple[int, ...] = (),
    columns: tuple[int, ...] = (),
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
    relative_distance : float
        Distance of the weights from the last verified snapshot, as a multiple of their
        size there.
    lr : float
        Learning rate in force.
    epoch, batch : int
        Position, counted from 1.
    finding : FailedOperation or None, default=None
        What a replay has found.
    error : Exception or None, default=None
        What the forward pass or the loss has raised.
    is_gradient_absurd : bool, default=False
        Whether the step was refused for the size of a finite gradient.
    amplifies : str, default=""
        How the network with the weights of the start amplifies gradients, in words, if
        it does.
    rows, columns : tuple of int, default=()
        Found to blame, within the batch.

    Returns
    -------
    NonFiniteReport
        Without operation and source unless a replay has found them.
    """
    named_parameters = list(named_parameters)
    at: dict[str, Any] = {"epoch": epoch, "batch": batch}
    moved = (
        f"the weights have moved {relative_distance:.3g} times their size since the "
        f"last good ones at lr={lr:.3g}"
    )
    if amplifies:
        moved += f", in a network that {amplifies}"
    runaway = is_runaway(relative_distance)

    bad_inputs = sum(_nonfinite_count(leaf) for leaf in _float_leaves(inputs))
    if bad_inputs:
        rows, columns = _places_where(inputs, lambda leaf: ~torch.isfinite(leaf))
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

    def report(
        phase: Phase, cause: Cause, evidence: str, module: str = ""
    ) -> NonFiniteReport:
        absurd_rows, absurd_columns = _places_where(inputs, _is_absurd)
        if absurd_rows:
            cause = "data"
            evidence += "; the batch holds inputs of size 1e15 and more"
        elif runaway:
            cause = "gradient" if amplifies else "learning_rate"
            evidence += f"; {moved}"
        elif finding is not None:
            cause = _cause_of(finding, amplifies=bool(amplifies))
        if finding is not None and finding.domain is not None and not runaway:
            low, high = (bound + 0.0 for bound in finding.domain)  # 0 has no sign
            if math.isfinite(low) and math.isfinite(high):
                numbers = f"{low:.3g} to {high:.3g}" if low < high else f"{low:.3g}"
                evidence += f"; {finding.operation} was given {numbers}"
        if finding is not None:
            phase, module = finding.phase, finding.module  # type: ignore[assignment]
        return NonFiniteReport(
            phase,
            cause,
            f"{evidence}.",
            _action(cause, finding, has_columns=bool(columns) and not absurd_rows),
            module=module,
            operation=finding.operation if finding else None,
            source=finding.source if finding else None,
            rows=absurd_rows or rows,
            columns=absurd_columns or columns,
            **at,
        )

    if finding is not None and finding.weight is not None:
        named = [p for n, p in named_parameters if n.endswith(finding.weight)]
        n_bad = sum(_nonfinite_count(p.detach()) for p in named)
        counts = f"{n_bad} of {sum(p.numel() for p in named)}"
        return NonFiniteReport(
            "forward",
            "architecture",
            f"The weight {finding.weight!r} is not finite before the first step: "
            f"{counts} entries.",
            "Initialise it, or check the weights that were loaded.",
            module=finding.module,
            operation=finding.operation,
            source=finding.source,
            **at,
        )

    bad_weights = [n for n, p in named_parameters if _nonfinite_count(p.detach())]
    if bad_weights:
        evidence = (
            f"{len(bad_weights)} of {len(named_parameters)} weight tensors are "
            f"non-finite, first {bad_weights[0]!r}"
        )
        if finding is not None and finding.dtype in NARROW:
            return NonFiniteReport(
                "step",
                "precision",
                f"{evidence}: the optimizer's {finding.operation} left the range of "
                f"{str(finding.dtype).removeprefix('torch.')}.",
                "Keep the weights in float32 (autocast computes in half precision), or "
                "give the optimizer an eps that the dtype can hold, such as 1e-4.",
                operation=finding.operation,
                **at,
            )
        cause: Cause = "gradient" if amplifies else "learning_rate"
        return NonFiniteReport(
            "step", cause, f"{evidence}; {moved}.", _ACTIONS[cause], **at
        )

    if error is not None:
        said = str(error).strip().splitlines() or [""]
        evidence = f"It raised {type(error).__name__}: {said[0].rstrip('.')}"
        return report("forward", "architecture", evidence)

    leaves = _float_leaves(outputs)
    bad_outputs = sum(_nonfinite_count(leaf) for leaf in leaves)
    if bad_outputs:
        total = sum(leaf.numel() for leaf in leaves)
        evidence = (
            f"{bad_outputs} of {total} outputs are non-finite from finite inputs and "
            "weights"
        )
        is_narrow = any(leaf.dtype in NARROW for leaf in leaves)
        return report("forward", "precision" if is_narrow else "activation", evidence)

    if not math.isfinite(loss):
        largest = max((float(leaf.abs().max()) for leaf in leaves), default=math.nan)
        evidence = f"The loss is {loss} for outputs of size up to {largest:.3g}"
        return report("loss", "loss", evidence, module=CRITERION)

    if finding is not None and finding.is_of_buffer:
        evidence = f"The loss is {loss:.3g}, but a running statistic is not finite"
        return report("forward", "architecture", evidence)

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
        cause = "gradient" if abs(loss) > HUGE else "activation"
        module = bad[0].rpartition(".")[0] if bad else ""
        return report("backward", cause, evidence, module=module)

    if is_gradient_absurd and not runaway:
        largest, module = max(
            (float(p.grad.detach().abs().max()), n.rpartition(".")[0])
            for n, p in named_parameters
            if p.grad is not None and p.grad.numel()
        )
        evidence = (
            f"The gradients' norm is {gradient_norm:.3g} at a loss of {loss:.3g}, with "
            f"entries of up to {largest:.3g}: a step along it, or what an optimizer "
            "keeps of its square, would do lasting damage."
        )
        action = _ACTIONS["gradient"]
        return NonFiniteReport(
            "backward", "gradient", evidence, action, module=module, **at
        )

    cause = "gradient" if amplifies else "learning_rate"
    evidence = f"The loss has grown to {loss:.3g} and stays there; {moved}."
    return NonFiniteReport("step", cause, evidence, _ACTIONS[cause], **at)
