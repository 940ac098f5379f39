"""Explanation of a failed step of a skorch net."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from skorch.dataset import get_len, unpack_data
from torch import Tensor

from sknan._utils.random_state import kept_random_states, random_states, resumed
from sknan._utils.thresholds import NARROW, OVERFLOWS_SQUARED
from sknan._utils.tree import tree_leaves
from sknan.diagnosis._causes import examine_step
from sknan.diagnosis._culprits import Trials, places_to_blame
from sknan.diagnosis._evidence import (
    FailedOperation,
    NonFiniteWeight,
    Places,
    StepEvidence,
)
from sknan.diagnosis._raised import about_dtype, about_loss
from sknan.diagnosis._replay import ModuleNames, replay, trace_operations
from sknan.diagnosis._report import NonFiniteReport, capture
from sknan.diagnosis._value_trials import (
    depends_on_values,
    harmless,
    harmless_outputs,
    rows_that_raise,
)
from sknan.diagnosis._values import nonfinite_count, storage_key
from sknan.nets._rates import action_on_rate, largest_step_rate
from sknan.nets.recovery.amplification import amplification_of, is_rate_absurd
from sknan.nets.recovery.finite_operations import RepairedOperations
from sknan.nets.recovery.protocol import Explanation, StepRefused, Training
from sknan.nets.recovery.step_loss import loss_of


@contextlib.contextmanager
def empty_states(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Use optimizers without moments inside the block."""
    states = [optimizer.state for optimizer in optimizers]
    for optimizer in optimizers:
        optimizer.state = type(optimizer.state)(dict)
    try:
        yield
    finally:
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.state = state


def explain(
    training: Training, refused: StepRefused, batch: Any, fit_params: dict[str, Any]
) -> Explanation:
    """Replay a failed step and judge it.

    Parameters
    ----------
    training : Training
        Training in the state of the failure, which does not change.
    refused : StepRefused
        Refusal of the step.
    batch : tuple
        Batch on which the step failed.
    fit_params : dict
        Parameters of the module's ``forward``.

    Returns
    -------
    Explanation

    Raises
    ------
    Exception
        The exception of the step, if no non-finite number explains it.
    """
    net, guard = training.net, training.guard
    guard.weights.last.restore_buffers()
    damaged = None if refused.has_stepped else find_damage(net)
    evidence = StepEvidence(
        inputs=unpack_data(batch)[0],
        outputs=refused.step.get("y_pred"),
        loss=refused.loss,
        gradient_norm=refused.norm,
        named_parameters=list(net.get_all_learnable_params()),
        relative_distance=0.0 if damaged else guard.relative_distance(),
        lr=largest_step_rate(net),
        epoch=len(net.history or ()),
        batch=training.batch_number,
        error=refused.error,
        is_gradient_absurd=refused.is_gradient_absurd,
        damaged=damaged,
    )
    # The replay overwrites the gradients, which the report needs.
    grads = [p.grad for _, p in evidence.named_parameters]
    failed: FailedOperation | None = None
    amplification = ""
    is_eps_zero = refused.has_stepped and _is_eps_zero(net)
    if not guard.has_finite_weights():
        if refused.has_stepped and any(p.dtype in NARROW for p in guard.parameters):
            with guard.last_weights():
                failed = _find_in_optimizer(net, batch, fit_params)
    elif not evidence.is_finite:
        failed = _find_operation(training, batch, fit_params)
        is_of_program = failed is None or (
            failed.has_raised and not _depends_on_values(training, batch, fit_params)
        )
        if refused.error is not None and is_of_program:
            inputs = evidence.inputs
            error = about_loss(refused.error)
            raise about_dtype(error, inputs, guard.parameters) from None
    is_huge = failed is not None and failed.largest >= OVERFLOWS_SQUARED
    if (evidence.is_runaway or is_huge) and not is_rate_absurd(net):
        with guard.first_weights():
            amplification = amplification_of(net, batch, fit_params)
    places = Places()
    guard.weights.last.restore_buffers()
    if failed is not None and failed.has_raised and not failed.rows:
        rows = rows_that_raise(_runner(training, fit_params), unpack_data(batch))
        failed = dataclasses.replace(failed, rows=rows)
    is_of_data = failed is not None and failed.phase != "step"
    if refused.is_gradient_absurd or is_of_data:
        places = _places(net, evidence.outputs, failed, batch, fit_params)
    guard.weights.last.restore_buffers()
    for (_, parameter), grad in zip(evidence.named_parameters, grads, strict=True):
        parameter.grad = grad
    evidence = dataclasses.replace(
        evidence,
        failed_operation=failed,
        is_eps_zero=is_eps_zero,
        amplification=amplification,
        places=places,
    )
    report = examine_step(evidence)
    if report.cause == "learning_rate":
        report = dataclasses.replace(report, action=action_on_rate(net))
    rows, report = report.rows, training.in_data(report)
    if not guard.reports or guard.is_last:
        names = [*net._modules, *net._criteria]
        capsule = capture(
            {name: getattr(net, f"{name}_") for name in names},
            unpack_data(batch),
            training.random_states[0],
            net.get_params(deep=False),
        )
        report = dataclasses.replace(report, capsule=capsule)
    return Explanation(evidence, report, rows)


def find_damage(net: Any) -> NonFiniteWeight | None:
    """Return the first weight or buffer that is not finite between two steps.

    The optimizer is not to blame: it is checked after each step that may overflow.

    Parameters
    ----------
    net : skorch net with GuardMixin
        Net in training.

    Returns
    -------
    NonFiniteWeight or None
    """
    tensors = net.guard_.nonfinite_tensors()
    if not tensors:
        return None
    modules = {name: getattr(net, f"{name}_") for name in net._modules}
    names = ModuleNames(modules, [getattr(net, f"{name}_") for name in net._criteria])
    # The average of the weights is no part of a module.
    known = map(names.nonfinite_weights.get, map(storage_key, tensors))
    n_bad, n_entries = nonfinite_count(tensors[0]), tensors[0].numel()
    return next(filter(None, known), NonFiniteWeight("average", n_bad, n_entries))


def explain_weights(training: Training, batch: Any) -> NonFiniteReport:
    """Report which weight is not finite before training, and where it is used first.

    Parameters
    ----------
    training : Training
        Training that is about to begin.
    batch : tuple
        Any batch.

    Returns
    -------
    NonFiniteReport
    """
    net = training.net
    training.random_states = random_states(net.device)
    evidence = StepEvidence(
        inputs=(),
        outputs=(),
        loss=math.nan,
        gradient_norm=math.nan,
        named_parameters=list(net.get_all_learnable_params()),
        lr=float(net.lr),
        failed_operation=_find_operation(training, batch, {}),
    )
    return examine_step(evidence)


def _find_operation(
    training: Training, batch: Any, fit_params: Any
) -> FailedOperation | None:
    """Replay the failed step, forward and backward, and observe its operations."""
    net = training.net
    inputs, target = unpack_data(batch)
    modules = {name: getattr(net, f"{name}_") for name in net._modules}
    criteria = [getattr(net, f"{name}_") for name in net._criteria]

    def run() -> tuple[Any, Tensor]:
        return loss_of(net, batch, fit_params)

    net.guard_.weights.last.restore_buffers()
    net._zero_grad_optimizer()
    with resumed(training.random_states, net.device):
        names = ModuleNames(modules, criteria)
        failed = replay(run, names, (inputs, target), get_len(inputs))
    net._zero_grad_optimizer()
    return failed


def _depends_on_values(training: Training, batch: Any, fit_params: Any) -> bool:
    """Whether a step that raises passes with other rows, targets, outputs or weights.

    It may also pass with finite operations: some weights, such as zeros, make an
    operation fail for any rows. An exception that is raised in any case is an error of
    the program.
    """
    net, guard = training.net, training.guard
    run, (inputs, target) = _runner(training, fit_params), unpack_data(batch)

    def with_harmless_outputs() -> None:
        with torch.enable_grad():
            outputs = harmless_outputs(net.infer(inputs, **fit_params))
            loss = net.get_loss(outputs, harmless(target), X=inputs, training=True)
            loss.backward()

    def with_first_weights() -> None:
        with guard.first_weights():
            run(batch)

    def with_finite_operations() -> None:
        with RepairedOperations():
            run(batch)

    trials: list[Callable[[], Any]] = [
        with_harmless_outputs,
        with_first_weights,
        with_finite_operations,
    ]
    shapes = _shapes(batch)
    earlier = [b for b in training.latest_batches if _shapes(b) == shapes]
    trials += [partial(run, other) for other in earlier]
    return depends_on_values(run, (inputs, target), trials)


def _shapes(batch: Any) -> list[torch.Size]:
    return [leaf.shape for leaf in tree_leaves(batch)]


def _runner(training: Training, fit_params: Any) -> Callable[[Any], None]:
    """Return a function that runs a step without a check, and leaves no gradients."""
    net = training.net

    def run(batch: Any) -> None:
        net.guard_.weights.last.restore_buffers()
        try:
            with resumed(training.random_states, net.device), torch.enable_grad():
                _, loss = loss_of(net, batch, fit_params)
                loss.backward()  # type: ignore[no-untyped-call]
        finally:
            net._zero_grad_optimizer()

    return run


def _is_eps_zero(net: Any) -> bool:
    """Whether an optimizer without ``eps`` has made a weight NaN: it divides 0 by 0."""
    return any(
        bool((~torch.isfinite(p.detach()) & (p.grad.square() == 0)).any())
        for optimizer in net._all_optimizers()
        for group in optimizer.param_groups
        if group.get("eps") == 0
        for p in group["params"]
        if p.grad is not None and not p.grad.is_sparse
    )


def _find_in_optimizer(net: Any, batch: Any, fit_params: Any) -> FailedOperation | None:
    """Return the operation of an optimizer that makes a weight non-finite in one step.

    The step starts from the present weights, which it changes, with empty state.
    """
    optimizers = net._all_optimizers()
    with kept_random_states(net.device):
        net._zero_grad_optimizer()
        _, loss = loss_of(net, batch, fit_params)
        loss.backward()  # type: ignore[no-untyped-call]

    def run() -> None:
        for optimizer in optimizers:
            optimizer.step()

    try:
        with empty_states(optimizers):
            return trace_operations(run)
    finally:
        net._zero_grad_optimizer()


def _places(
    net: Any,
    outputs: Any,
    failed: FailedOperation | None,
    batch: Any,
    fit_params: Any,
) -> Places:
    """Return the rows and columns to blame."""

    def forward_alone(inputs: Any) -> Any:
        net._set_training(False)  # batch statistics would mix the rows
        try:
            return net.infer(inputs, **fit_params)
        finally:
            net._set_training(True)

    def loss(outputs: Any, target: Any, inputs: Any) -> Tensor:
        result: Tensor = net.get_loss(outputs, target, X=inputs, training=True)
        return result

    net._set_training(True)
    trials = Trials(
        "backward" if failed is None else failed.phase,
        forward_alone,
        loss,
        [p for _, p in net.get_all_learnable_params()],
    )
    return places_to_blame(failed, unpack_data(batch), outputs, trials)
