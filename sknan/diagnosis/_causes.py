"""Rules that lead from the evidence of a failed step to its cause."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor, nn

from sknan._utils.thresholds import NARROW, OVERFLOWS_SQUARED
from sknan._utils.tree import tree_leaves
from sknan.diagnosis._culprits import nonfinite_rows
from sknan.diagnosis._evidence import (
    CRITERION,
    FailedOperation,
    NonFiniteWeight,
    Places,
    StepEvidence,
)
from sknan.diagnosis._remedies import ACTIONS, action_for, remedy_for_check
from sknan.diagnosis._report import Cause, NonFiniteReport, Phase
from sknan.diagnosis._values import nonfinite_count

# Operations whose domain has an edge. Where one fails only in the backward pass,
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


def examine_step(evidence: StepEvidence) -> NonFiniteReport:
    """Return a report on a failed step, by the first rule that applies to it.

    The first of inputs, weights, outputs, loss and gradients that is not finite gives
    the phase. If all are finite, the step was refused because its loss exploded.

    Parameters
    ----------
    evidence : StepEvidence
        Numbers and tensors of the failed step.

    Returns
    -------
    NonFiniteReport
        Operation and source are known only if a replay has found the operation.
    """
    reports = (rule(evidence) for rule in _RULES)
    report = next(report for report in reports if report is not None)
    return dataclasses.replace(report, epoch=evidence.epoch, batch=evidence.batch)


def examine_output(evidence: StepEvidence, clause: str) -> NonFiniteReport:
    """Return a report on a network whose output is not finite, or that raises.

    Parameters
    ----------
    evidence : StepEvidence
        Numbers and tensors of a forward pass in evaluation mode.
    clause : str
        What was found, as a sentence without its end.

    Returns
    -------
    NonFiniteReport
    """
    failed, of_input = evidence.failed_operation, _blame_input(evidence)
    if of_input is not None:
        return dataclasses.replace(of_input, evidence=f"{clause}. {of_input.evidence}")
    for name, parameter in evidence.named_parameters:
        if nonfinite_count(parameter.detach()):
            return NonFiniteReport(
                "forward",
                "architecture",
                f"{clause}; the weight {name!r} is not finite.",
                "Fit the network again, or check the weights that were loaded.",
                **({} if failed is None else failed.place),
            )
    if evidence.error is not None:
        return _report_on_error(evidence, f"{clause}: the network raised")
    return _refined_report(evidence, "forward", "activation", clause)


def _float_leaves(data: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in tree_leaves(data) if leaf.is_floating_point()]


def _nonfinite_columns(inputs: Any) -> tuple[int, ...]:
    """Return the columns with bad entries in the first table that has any.

    A tensor of more axes has none: whether its features lie along the second axis or
    the last one depends on the network.
    """
    for leaf in _float_leaves(inputs):
        bad = ~torch.isfinite(leaf)
        if leaf.ndim == 2 and bad.any():
            return tuple(bad.any(dim=0).nonzero().flatten().tolist())
    return ()


def _refined_report(
    evidence: StepEvidence, phase: Phase, cause: Cause, clause: str, module: str = ""
) -> NonFiniteReport:
    """Return a report whose cause and place are refined by all other evidence.

    NaN and huge numbers in the batch come before weights that have diverged, and these
    before the operation that failed.
    """
    failed, places = evidence.failed_operation, evidence.places or Places()
    if places.unusable:
        cause = "data"
        kind = "that are NaN" if places.has_nan else "of size 1e18 and more"
        clause += f"; the batch has {places.unusable} {kind}"
    elif evidence.is_runaway:
        cause = evidence.cause_of_divergence
        clause += f"; {evidence.movement}"
    elif failed is not None:
        cause = _cause_of(failed, amplifies=bool(evidence.amplification))
    place: dict[str, Any] = {"module": module}
    if failed is not None:
        phase, place = failed.phase, failed.place
        if not (evidence.is_runaway or places.unusable):
            clause += _domain_clause(failed)
    return NonFiniteReport(
        phase,
        cause,
        f"{clause}.",
        action_for(cause, failed, places),
        rows=places.rows,
        columns=places.columns,
        **place,
    )


def _divergence_report(evidence: StepEvidence, clause: str) -> NonFiniteReport:
    """Return a report on weights that have diverged."""
    cause = evidence.cause_of_divergence
    sentence = f"{clause}; {evidence.movement}."
    return NonFiniteReport("step", cause, sentence, ACTIONS[cause])


def _domain_clause(failed: FailedOperation) -> str:
    """Return a clause with the finite range of the argument, or an empty string."""
    if failed.domain is None or not all(map(isfinite, failed.domain)):
        return ""
    low, high = (bound + 0.0 for bound in failed.domain)  # -0.0 is printed as 0
    numbers = f"{low:.3g} to {high:.3g}" if low < high else f"{low:.3g}"
    return f"; {failed.operation} was given {numbers}"


def _needs_float32(failed: FailedOperation) -> bool:
    """Whether an operation has failed because of half precision.

    So has one that fails in float32 too where a constant, such as the 1e-8 that is
    added to a denominator, is 0 in its dtype.
    """
    if failed.dtype is None or failed.dtype not in NARROW:
        return False
    small = re.findall(r"\b\d[\d.]*e-\d+", "; ".join(failed.arguments))
    is_zero = torch.tensor([float(x) for x in small], dtype=failed.dtype) == 0.0
    return not failed.fails_in_float32 or bool(is_zero.any())


def _cause_of(failed: FailedOperation, *, amplifies: bool) -> Cause:
    """Return the cause to blame for an operation that failed with finite weights."""
    is_huge = failed.largest >= OVERFLOWS_SQUARED
    has_infinity = failed.domain is not None and not all(map(isfinite, failed.domain))
    if _needs_float32(failed) and not is_huge and not has_infinity:
        return "precision"
    if is_huge:
        # The operation is not at fault: its argument was too large.
        return "gradient" if amplifies or failed.phase == "backward" else "activation"
    if failed.module == CRITERION:
        return "loss"
    is_of_architecture = (
        ("linalg" in failed.name and "norm" not in failed.name)  # a decomposition
        or failed.is_in_unused_branch
        or failed.has_too_few_elements
        or failed.is_only_in_buffer
        or failed.is_of_weights
        or (failed.phase == "backward" and failed.name not in _WITH_A_DOMAIN)
    )
    return "architecture" if is_of_architecture else "activation"


def _blame_other_code(evidence: StepEvidence) -> NonFiniteReport | None:
    """Apply if a weight became non-finite between the steps of the optimizer."""
    return None if evidence.damaged is None else examine_damage(evidence.damaged)


def _blame_input(evidence: StepEvidence) -> NonFiniteReport | None:
    """Apply if the batch contains NaN or infinity."""
    n_bad = sum(map(nonfinite_count, _float_leaves(evidence.inputs)))
    if not n_bad:
        return None
    rows = nonfinite_rows(evidence.inputs, evidence.n_rows)
    columns = _nonfinite_columns(evidence.inputs)
    values = "value" if n_bad == 1 else "values"
    sentence = f"The batch contains {n_bad} non-finite input {values}."
    return NonFiniteReport(
        "input", "data", sentence, ACTIONS["data"], rows=rows, columns=columns
    )


def _blame_initial_weight(evidence: StepEvidence) -> NonFiniteReport | None:
    """Apply if a weight or buffer was not finite before the first step."""
    failed = evidence.failed_operation
    if failed is None or failed.weight is None:
        return None
    return _report_on_weight(failed.weight, failed.phase, **failed.place)


def _report_on_weight(
    weight: NonFiniteWeight, phase: Phase = "forward", **place: Any
) -> NonFiniteReport:
    is_of_loss = weight.name.startswith(f"{CRITERION}.")
    # A buffer may change in any forward pass.
    when, verb = "the first step", "Initialize it"
    if weight.kind == "buffer":
        when, verb = "the step", "Set it to finite numbers"
    return NonFiniteReport(
        phase,
        "loss" if is_of_loss else "architecture",
        f"The {weight.kind} {weight.name!r} is not finite before {when}: "
        f"{weight.n_bad} of {weight.n_entries} entries.",
        f"{verb}, or check the {weight.kind}s that were loaded.",
        **place,
    )


def examine_damage(weight: NonFiniteWeight) -> NonFiniteReport:
    """Return a report on a weight or buffer that other code has made non-finite.

    Parameters
    ----------
    weight : NonFiniteWeight
        Weight or buffer that the latest step of the optimizer had left finite.

    Returns
    -------
    NonFiniteReport
    """
    module = weight.name.rpartition(".")[0]
    is_of_loss = weight.name.startswith(f"{CRITERION}.")
    return NonFiniteReport(
        "loss" if is_of_loss else "forward",
        "loss" if is_of_loss else "architecture",
        f"The {weight.kind} {weight.name!r} is not finite: {weight.n_bad} of "
        f"{weight.n_entries} entries. The optimizer had left it finite, so that other "
        "code has changed it since.",
        f"Find the code that changes this {weight.kind} outside the optimizer: a "
        "callback, a hook, or the module or the criterion in a validation pass.",
        CRITERION if is_of_loss else module,
    )


def examine_loss(criterion: Any) -> NonFiniteReport | None:
    """Return a report on class weights that make every loss non-finite, or None.

    Parameters
    ----------
    criterion : object
        Loss that is about to be used. Only a module can have weights of classes.

    Returns
    -------
    NonFiniteReport or None
    """
    parts = criterion.modules() if isinstance(criterion, nn.Module) else ()
    for part in parts:
        for name, weight in part.named_buffers(recurse=False):
            bad = (~torch.isfinite(weight)).flatten().nonzero().flatten().tolist()
            if name in ("weight", "pos_weight") and bad:
                return NonFiniteReport(
                    "loss",
                    "loss",
                    f"{name!r} of {type(part).__name__} is not finite before the first "
                    f"step: {len(bad)} of {weight.numel()} entries, first entry "
                    f"{bad[0]}.",
                    "Set the entry to 1 for a class that does not occur.",
                    CRITERION,
                )
    return None


def _blame_weights(evidence: StepEvidence) -> NonFiniteReport | None:
    """Apply if the optimizer has made a weight non-finite, or one was never finite."""
    parameters, failed = evidence.named_parameters, evidence.failed_operation
    weights = [
        NonFiniteWeight(name, n_bad, parameter.numel())
        for name, parameter in parameters
        if (n_bad := nonfinite_count(parameter.detach()))
    ]
    if not weights:
        return None
    is_of_optimizer = evidence.is_eps_zero or (failed and failed.phase == "step")
    if evidence.relative_distance == 0.0 and not is_of_optimizer:
        # If an operation has failed without it, the weight takes no part.
        return None if failed is not None else _report_on_weight(weights[0])
    clause = (
        f"{len(weights)} of {len(parameters)} weight tensors are non-finite, first "
        f"{weights[0].name!r}"
    )
    if evidence.is_eps_zero:
        return NonFiniteReport(
            "step",
            "precision",
            f"{clause}: the optimizer has divided by 0 where the square of a gradient "
            "is 0, since its eps is 0.",
            "Give the optimizer an eps above 0, such as optimizer__eps=1e-8.",
        )
    if failed is None or failed.dtype not in NARROW:
        return _divergence_report(evidence, clause)
    return NonFiniteReport(
        "step",
        "precision",
        f"{clause}: the optimizer's {failed.operation} left the range of "
        f"{str(failed.dtype).removeprefix('torch.')}.",
        "Keep the weights in float32 (autocast computes in half precision), or give "
        "the optimizer an eps that the dtype can hold, such as 1e-4.",
        operation=failed.operation,
    )


def _blame_error(evidence: StepEvidence) -> NonFiniteReport | None:
    """Apply if the forward pass or the loss raised an exception."""
    if evidence.error is None:
        return None
    return _report_on_error(evidence, "The step raised")


def _report_on_error(evidence: StepEvidence, raised: str) -> NonFiniteReport:
    error, failed = evidence.error, evidence.failed_operation
    assert error is not None
    kind = type(error).__name__.lstrip("_")  # torch's _LinAlgError
    message = (str(error).strip().splitlines() or [""])[0].rstrip(".:")
    clause = f"{raised} {kind}: {message}"
    report = _refined_report(evidence, "forward", "architecture", clause)
    if failed is None or not failed.has_raised:
        return report
    report = dataclasses.replace(report, error=kind)
    if report.cause not in ("activation", "architecture", "loss"):
        return report  # the failed check is only the consequence
    cause, action = remedy_for_check(report.cause, failed, error, evidence.n_rows)
    return dataclasses.replace(report, cause=cause, action=action)


def _blame_output(evidence: StepEvidence) -> NonFiniteReport | None:
    """Apply if the network's output is not finite."""
    outputs = _float_leaves(evidence.outputs)
    n_bad = sum(map(nonfinite_count, outputs))
    if not n_bad:
        return None
    clause = (
        f"{n_bad} of {sum(leaf.numel() for leaf in outputs)} outputs are non-finite "
        "from finite inputs and weights"
    )
    is_narrow = any(leaf.dtype in NARROW for leaf in outputs)
    cause: Cause = "precision" if is_narrow else "activation"
    return _refined_report(evidence, "forward", cause, clause)


def _blame_loss(evidence: StepEvidence) -> NonFiniteReport | None:
    """Apply if the loss of finite outputs is not finite."""
    if isfinite(evidence.loss):
        return None
    sizes = [float(leaf.abs().max()) for leaf in _float_leaves(evidence.outputs)]
    clause = (
        f"The loss is {evidence.loss} for outputs of size up to "
        f"{max(sizes, default=nan):.3g}"
    )
    return _refined_report(evidence, "loss", "loss", clause, CRITERION)


def _blame_buffer(evidence: StepEvidence) -> NonFiniteReport | None:
    """Apply if only a running statistic is not finite."""
    failed = evidence.failed_operation
    if failed is None or not failed.is_only_in_buffer:
        return None
    clause = f"The loss is {evidence.loss:.3g}, but a running statistic is not finite"
    return _refined_report(evidence, "forward", "architecture", clause)


def _blame_gradient(evidence: StepEvidence) -> NonFiniteReport | None:
    """Apply if the gradient of a finite loss is not finite."""
    if isfinite(evidence.gradient_norm):
        return None
    parameters = evidence.named_parameters
    bad = [n for n, p in parameters if p.grad is not None and nonfinite_count(p.grad)]
    clause = (
        f"The loss is {evidence.loss:.3g} but {len(bad)} of {len(parameters)} "
        f"gradients are non-finite, first that of {bad[0]!r}"
        if bad
        else f"The gradients' norm is {evidence.gradient_norm} at a loss of "
        f"{evidence.loss:.3g}"
    )
    cause: Cause = (
        "gradient" if abs(evidence.loss) > OVERFLOWS_SQUARED else "activation"
    )
    module = bad[0].rpartition(".")[0] if bad else ""
    return _refined_report(evidence, "backward", cause, clause, module)


def _blame_absurd_gradient(evidence: StepEvidence) -> NonFiniteReport | None:
    """Apply if a finite gradient is too large for a step, near the verified weights."""
    if not evidence.is_gradient_absurd or evidence.is_runaway:
        return None
    largest, module = max(
        (float(p.grad.detach().abs().max()), n.rpartition(".")[0])
        for n, p in evidence.named_parameters
        if p.grad is not None and p.grad.numel()
    )
    clause = (
        f"The gradients' norm is {evidence.gradient_norm:.3g} at a loss of "
        f"{evidence.loss:.3g}, with entries of up to {largest:.3g}: such a step, or "
        "its square in the optimizer's running averages, would ruin the training"
    )
    return _refined_report(evidence, "backward", "gradient", clause, module)


def _blame_explosion(evidence: StepEvidence) -> NonFiniteReport:
    """Apply to every other step: everything is finite, but the loss has grown."""
    clause = f"The loss has grown to {evidence.loss:.3g} and stays there"
    return _divergence_report(evidence, clause)


# In order: the first rule that applies gives the report.
_RULES: tuple[Callable[[StepEvidence], NonFiniteReport | None], ...] = (
    _blame_other_code,
    _blame_input,
    _blame_initial_weight,
    _blame_weights,
    _blame_error,
    _blame_output,
    _blame_loss,
    _blame_buffer,
    _blame_gradient,
    _blame_absurd_gradient,
    _blame_explosion,
)
