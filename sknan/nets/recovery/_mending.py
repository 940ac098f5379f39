"""A failed step of a skorch net: find out why, and take what can be taken of it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from skorch.dataset import get_len, unpack_data
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sknan._utils.random_state import random_states, set_random_states
from sknan._utils.stacklevel import stacklevel_of_caller
from sknan._utils.tree import tree_leaves, tree_map
from sknan.diagnosis._capsule import capture
from sknan.diagnosis._causes import examine_step
from sknan.diagnosis._culprits import (
    nonfinite_rows,
    places_to_blame,
    rows_by_bisection,
    sliced,
    without_rows,
)
from sknan.diagnosis._evidence import StepEvidence
from sknan.diagnosis._failed_operation import FailedOperation
from sknan.diagnosis._module_names import ModuleNames
from sknan.diagnosis._replay import replay, trace_operations
from sknan.diagnosis._report import NonFiniteReport
from sknan.diagnosis._thresholds import HUGE, NARROW
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets.recovery.finite_operations import RepairedOperations
from sknan.optim._clipping import grad_norm
from sknan.optim._learning_rates import scaled_rates

__all__ = [
    "Failure",
    "StepRefused",
    "Trials",
    "explain",
    "explain_weights",
    "mend",
    "output_repaired",
    "rows_without_output",
    "without_output",
]

# A network that makes gradients grow by more than this from output to input, or applies
# a weight this often, is blamed before the rate is: an ordinary one shrinks them.
_AMPLIFIES = 2.0
_RECURS = 5

# How often one step is tried with less of its batch.
_MENDINGS = 3

# Batch normalisation needs two rows.
_FEWEST_ROWS = 2


class StepRefused(Exception):
    """Raised inside the optimizer's closure, so that no weight is touched."""

    def __init__(
        self,
        step: dict[str, Any],
        loss: float,
        norm: float,
        error: Exception | None = None,
        *,
        is_gradient_absurd: bool = False,
    ) -> None:
        super().__init__(f"loss {loss}, norm of the gradients {norm}")
        self.step = step
        self.loss = loss
        self.norm = norm
        self.error = error
        self.is_gradient_absurd = is_gradient_absurd


@dataclass(frozen=True)
class Failure:
    """Evidence of a refused step, the report on it, and the rows of the batch to blame.

    The rows in the report are those of the training data, if these are known.
    """

    evidence: StepEvidence
    report: NonFiniteReport
    rows: tuple[int, ...]


# -- random states -------------------------------------------------------------------


@contextlib.contextmanager
def _with_random_states(training: Any) -> Iterator[None]:
    """Put the states of the failed forward pass in place, and the present ones back."""
    device = training.net.device
    present = random_states(device)
    set_random_states(training.random_states, device)
    try:
        yield
    finally:
        set_random_states(present, device)


# -- finding out ---------------------------------------------------------------------


def _loss_of(net: Any, inputs: Any, target: Any, fit_params: Any) -> tuple[Any, Tensor]:
    net._set_training(True)
    outputs = net.infer(inputs, **fit_params)
    return outputs, net.get_loss(outputs, target, X=inputs, training=True)


def explain(
    training: Any, refused: StepRefused, batch: Any, fit_params: dict[str, Any]
) -> Failure:
    """Find what broke a step, and judge it.

    Parameters
    ----------
    training : GuardedTraining
        In the state of the failure; left in it.
    refused : StepRefused
        What its training step raised.
    batch : tuple
        That failed.
    fit_params : dict
        Passed to the module.

    Returns
    -------
    Failure
    """
    net, guard = training.net, training.guard
    guard.restore_buffers()
    evidence = StepEvidence(
        inputs=unpack_data(batch)[0],
        outputs=refused.step.get("y_pred"),
        loss=refused.loss,
        gradient_norm=refused.norm,
        named_parameters=list(net.get_all_learnable_params()),
        relative_distance=guard.relative_distance(),
        lr=net.effective_lr_,
        epoch=len(net.history or ()),
        batch=training.batch_number,
        error=refused.error,
        is_gradient_absurd=refused.is_gradient_absurd,
    )
    # The replay overwrites the gradients, which the report needs.
    grads = [p.grad for _, p in evidence.named_parameters]
    failed: FailedOperation | None = None
    amplification = ""
    if not guard.has_finite_weights():
        if any(p.dtype in NARROW for p in guard.parameters):
            with guard.last_weights():
                failed = _find_in_optimizer(net, batch, fit_params)
    elif not evidence.is_finite:
        failed = _find_operation(training, batch, fit_params)
        if refused.error is not None and failed is None:
            raise refused.error  # nothing to do with numbers
    is_huge = failed is not None and failed.largest >= HUGE
    if (evidence.is_runaway or is_huge) and not _is_rate_absurd(net):
        with guard.first_weights():
            amplification = _amplification_of(net, batch, fit_params)
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    guard.restore_buffers()
    if failed is not None and failed.phase != "step":
        rows, columns = _places(net, evidence.outputs, failed, batch, fit_params)
    guard.restore_buffers()
    for (_, parameter), grad in zip(evidence.named_parameters, grads, strict=True):
        parameter.grad = grad
    evidence = dataclasses.replace(
        evidence,
        failed_operation=failed,
        amplification=amplification,
        rows=rows,
        columns=columns,
    )
    report = examine_step(evidence)
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
    return Failure(evidence, report, rows)


def explain_weights(training: Any, batch: Any) -> NonFiniteReport:
    """Say which weight is not finite before training, and where it is used first.

    Parameters
    ----------
    training : GuardedTraining
    batch : tuple
        Any.

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
        relative_distance=0.0,
        lr=float(net.lr),
        epoch=0,
        batch=0,
        failed_operation=_find_operation(training, batch, {}),
    )
    return examine_step(evidence)


def _modules_of(net: Any) -> tuple[dict[str, Any], list[Any]]:
    modules = {name: getattr(net, f"{name}_") for name in net._modules}
    return modules, [getattr(net, f"{name}_") for name in net._criteria]


def _find_operation(
    training: Any, batch: Any, fit_params: Any
) -> FailedOperation | None:
    """Run the failed step again, forward and backward, under observation."""
    net = training.net
    inputs, target = unpack_data(batch)

    def run() -> tuple[Any, Tensor]:
        return _loss_of(net, inputs, target, fit_params)

    net.guard_.restore_buffers()
    net._zero_grad_optimizer()
    with _with_random_states(training):
        failed = replay(
            run, ModuleNames(*_modules_of(net)), (inputs, target), get_len(inputs)
        )
    net._zero_grad_optimizer()
    return failed


def _find_in_optimizer(net: Any, batch: Any, fit_params: Any) -> FailedOperation | None:
    """The operation of an optimizer that makes a weight non-finite in one step.

    Of an optimizer without a past, from the weights in place; those are put back.
    """
    inputs, target = unpack_data(batch)
    optimizers = net._all_optimizers()
    parameters = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    kept = [p.detach().clone() for p in parameters]
    states = [optimizer.state for optimizer in optimizers]
    try:
        with torch.random.fork_rng():
            net._zero_grad_optimizer()
            _, loss = _loss_of(net, inputs, target, fit_params)
            loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.state = type(optimizer.state)(dict)

        def run() -> None:
            for optimizer in optimizers:
                optimizer.step()

        return trace_operations(run)
    finally:
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.state = state
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
        net._zero_grad_optimizer()


def _is_rate_absurd(net: Any) -> bool:
    """Whether the rate is beyond what any ordinary network learns at."""
    limit = {torch.optim.SGD: 1.0, torch.optim.LBFGS: 2.0}
    return any(
        float(group["lr"]) * net.guard_.lr_scale > limit.get(type(optimizer), 0.1)
        for optimizer in net._all_optimizers()
        for group in optimizer.param_groups
    )


def _amplification_of(net: Any, batch: Any, fit_params: dict[str, Any]) -> str:
    """How the network makes gradients grow on their way down, in words; "" if not."""
    inputs, _ = unpack_data(batch)
    leaves = [
        leaf.detach().clone().requires_grad_() if leaf.is_floating_point() else leaf
        for leaf in tree_leaves(inputs)
    ]
    remaining = iter(leaves)
    inputs = tree_map(
        lambda leaf: next(remaining) if isinstance(leaf, Tensor) else leaf, inputs
    )
    with torch.random.fork_rng(), torch.enable_grad():
        net._set_training(True)
        try:
            outputs = net.infer(inputs, **fit_params)
        except LinAlgError:
            return ""
        output = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        sources = [leaf for leaf in leaves if leaf.requires_grad]
        if not sources or output.grad_fn is None:
            return ""
        n_uses = _uses_of_a_weight(output.grad_fn)
        upstream = torch.randn_like(output)
        grads = torch.autograd.grad(output, sources, upstream, allow_unused=True)
    arrived = [g for g in grads if g is not None]
    gain = float(grad_norm(arrived) / grad_norm([upstream])) if arrived else 0.0
    if not gain <= _AMPLIFIES:
        return f"amplifies gradients {gain:.3g} times from output to input"
    if n_uses >= _RECURS:
        return f"applies one weight {n_uses} times in a row"
    return ""


def _uses_of_a_weight(root: Any) -> int:
    """How often the graph of a forward pass uses the weight that it uses most."""
    n_uses: Counter[Any] = Counter()
    stack, seen = [root], {root}
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is None:
                continue
            n_uses[node] += 1
            if node not in seen:
                seen.add(node)
                stack.append(node)
    return max((n_uses[node] for node in seen if hasattr(node, "variable")), default=0)


def _places(
    net: Any,
    outputs: Any,
    failed: FailedOperation,
    batch: Any,
    fit_params: Any,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows to blame, and columns of the first of them."""

    def forward_alone(inputs: Any) -> Any:
        net._set_training(False)  # so that one row does not spoil the others
        try:
            return net.infer(inputs, **fit_params)
        finally:
            net._set_training(True)

    net._set_training(True)
    return places_to_blame(
        failed.phase,
        failed.rows,
        unpack_data(batch),
        outputs,
        forward_alone,
        lambda outputs, target, inputs: net.get_loss(
            outputs, target, X=inputs, training=True
        ),
    )


# -- going on ------------------------------------------------------------------------


def mend(
    training: Any, failure: Failure, batch: Any, fit_params: dict[str, Any]
) -> dict[str, Any] | None:
    """Take a step that failed on sound weights without what was to blame.

    Without the rows, if they are a minority; else, or if that fails too, with the
    operations repaired and the gradient clipped.

    Parameters
    ----------
    training : GuardedTraining
    failure : Failure
    batch : tuple
    fit_params : dict
        Passed to the module.

    Returns
    -------
    dict or None
        As of ``train_step``; None if no such step can be taken.
    """
    guard, first = training.guard, failure.report
    if first.phase in ("step", "input") or not guard.may_mend:
        return None
    if failure.evidence.is_finite and guard.needs_clip(first):
        return None
    has_passed = failure.evidence.failed_operation is None
    for _ in range(_MENDINGS):
        failed = failure.evidence.failed_operation
        if failed is not None and not failed.is_of_batch:
            return None  # no batch would fare better
        n_rows = get_len(unpack_data(batch)[0])
        n_left = n_rows - len(failure.rows)
        is_minority = 0 < len(failure.rows) <= n_rows // 2 and n_left >= _FEWEST_ROWS
        mends: str | None = "operations"
        how = "with its operations repaired, clipped to norm 1"
        if has_passed:
            mends, how = None, "again, and was finite"
        elif is_minority and failure.report.phase != "backward":
            batch = without_rows(batch, failure.rows, n_rows)
            mends, how = "rows", "without the rows to blame, clipped to norm 1"
        guard.restore_buffers()
        guard.clear_half_written()
        try:
            with _with_random_states(training):
                step: dict[str, Any] = training.attempt(batch, fit_params, mends)
        except StepRefused as again:
            if mends == "operations":
                return None
            has_passed = False
            failure = explain(training, again, batch, fit_params)
            continue
        guard.note_mended(first, how)
        return step
    return None


class Trials:
    """What the guard may try out before it decides; of the weights none moves.

    Parameters
    ----------
    training : GuardedTraining
    batch : tuple
        That failed.
    fit_params : dict
        Passed to the module.
    """

    def __init__(self, training: Any, batch: Any, fit_params: dict[str, Any]) -> None:
        self.training = training
        self.net = training.net
        self.batch = batch
        self.fit_params = fit_params

    def fails_on_last_weights(self) -> bool:
        """Whether the batch fails with the last verified weights too."""
        net = self.net
        with net.guard_.last_weights(), _with_random_states(self.training):
            try:
                _, norm = self._backward(self.batch)
            except StepRefused:
                return True
            finally:
                net._zero_grad_optimizer()
        return math.isnan(norm)

    def loss_after(self, scale: float, n_steps: int) -> float:
        """Loss of the latest batches after some steps at a lower rate.

        Parameters
        ----------
        scale : float
            Factor of the learning rate.
        n_steps : int
            From the weights in place, with an optimizer without a past.

        Returns
        -------
        float
            inf if a step fails.
        """
        net, batches = self.net, [*self.training.latest_batches, self.batch]
        optimizers = net._all_optimizers()
        states = [optimizer.state for optimizer in optimizers]
        try:
            with net.guard_.last_weights(), torch.random.fork_rng():
                for optimizer in optimizers:
                    optimizer.state = type(optimizer.state)(dict)
                factor = scale * net._schedule_factor()
                with scaled_rates(optimizers, factor, net.guard_.rate_caps):
                    for i in range(n_steps):
                        self._take_step(batches[i % len(batches)])
                with torch.no_grad():
                    losses = [float(self._loss(b)[1]) for b in batches]
        except StepRefused:
            return math.inf
        finally:
            for optimizer, state in zip(optimizers, states, strict=True):
                optimizer.state = state
            net._zero_grad_optimizer()
        mean = sum(losses) / len(losses)
        return mean if math.isfinite(mean) else math.inf

    def has_learned(self) -> bool:
        """Whether the weights in place do better than the first ones did."""
        try:
            reached = self._mean_loss()
            with self.net.guard_.first_weights():
                return not reached >= self._mean_loss()
        except StepRefused:
            return True  # nothing to compare with

    def keep_up(self) -> bool:
        """Whether the weights in place do no worse than the last verified ones."""
        guard = self.net.guard_
        guard.begin_step()
        try:
            reached = self._mean_loss()
            with guard.last_weights():
                return reached <= self._mean_loss()
        except StepRefused:
            return False
        finally:
            guard.restore_buffers()

    def _mean_loss(self) -> float:
        batches = [*self.training.latest_batches, self.batch]
        with torch.random.fork_rng(), torch.no_grad():
            losses = [float(self._loss(batch)[1]) for batch in batches]
        return sum(losses) / len(losses)

    def rates_at(self, scale: float) -> list[float]:
        """What ``scale`` makes of the present rate of each parameter group."""
        factor = scale * self.net._schedule_factor()
        return [
            float(group["lr"]) * factor
            for optimizer in self.net._all_optimizers()
            for group in optimizer.param_groups
        ]

    def _take_step(self, batch: Any) -> None:
        net, conditioning = self.net, self.training.conditioning

        def step_fn() -> Tensor:
            loss, norm = self._backward(batch)
            if not math.isfinite(norm):
                raise StepRefused({}, float(loss.detach()), norm)
            parameters = [p for p in net.guard_.parameters if p.grad is not None]
            grads = [p.grad for p in parameters]
            rescue_norm = net.guard_.clip_norm(is_mended=False)
            self.training.clip(parameters, grads, norm, rescue_norm)
            if conditioning is not None:
                conditioning.to_scaled()
            return loss

        try:
            net._step_optimizer(step_fn)
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            raise StepRefused({}, math.nan, math.nan) from error
        finally:
            if conditioning is not None:
                conditioning.to_raw()

    def _loss(self, batch: Any) -> tuple[Any, Tensor]:
        inputs, target = unpack_data(batch)
        try:
            return _loss_of(self.net, inputs, target, self.fit_params)
        except Exception as error:  # as a decomposition of NaN raises
            raise StepRefused({}, math.nan, math.nan, error) from error

    def _backward(self, batch: Any) -> tuple[Tensor, float]:
        net = self.net
        net._zero_grad_optimizer()
        _, loss = self._loss(batch)
        if not bool(torch.isfinite(loss.detach()).all()):
            raise StepRefused({}, float(loss.detach()), math.nan)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.training.conditioning is not None:
            self.training.conditioning.scale_grads()
        grads = [p.grad for p in net.guard_.parameters if p.grad is not None]
        return loss, float(grad_norm(grads))


def output_repaired(net: Any, inputs: Any, outputs: Any) -> Any:
    """Outputs with those rows computed anew that are not finite for finite inputs.

    Parameters
    ----------
    net : skorch net
        In evaluation mode.
    inputs, outputs : nested Tensor
        Of one batch.

    Returns
    -------
    object
        ``outputs`` themselves where nothing can be done; else nested as they are.

    Warns
    -----
    UserWarning
        Counting the rows, if there are any.
    """
    n_rows = get_len(inputs)
    rows = nonfinite_rows(outputs, n_rows)
    if not rows or nonfinite_rows(inputs, n_rows):
        return outputs
    at = torch.tensor(rows)
    with torch.no_grad(), RepairedOperations():
        anew = net.infer(sliced(inputs, at, n_rows))
    found = [leaf for leaf in tree_leaves(anew) if leaf.is_floating_point()]
    # What was cut to the range of its dtype, and went through, is no output.
    if any(not bool((leaf.abs() < HUGE).all()) for leaf in found):
        return outputs
    warnings.warn(
        f"The network's output was not finite for {len(rows)} of {n_rows} rows, first "
        f"row {rows[0]} of the batch, although their input is; they were computed "
        "again with each operation kept inside its domain. "
        "sknan.diagnosis.diagnose(net, X, y) names the operation.",
        UserWarning,
        stacklevel=stacklevel_of_caller(),
    )
    repaired = iter(tree_leaves(anew))

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        new = next(repaired)
        if not leaf.ndim or len(leaf) != n_rows:
            return leaf
        return leaf.index_copy(0, at.to(leaf.device), new.to(leaf.dtype))

    return tree_map(put, outputs)


def rows_without_output(net: Any, batch: Any) -> tuple[int, ...]:
    """Rows for which a network raises, such as a decomposition of theirs.

    Parameters
    ----------
    net : skorch net
        In evaluation mode.
    batch : tuple

    Returns
    -------
    tuple of int
    """
    inputs, _ = unpack_data(batch)
    n_rows = get_len(inputs)

    def has_output(part: slice) -> bool:
        try:
            net.infer(sliced(inputs, part, n_rows))
        except LinAlgError:
            return False
        return True

    with torch.no_grad():
        return rows_by_bisection(has_output, n_rows)


def without_output(net: Any, batch: Any, error: Exception) -> NonFiniteTrainingError:
    """The error that says for which rows a network has no output.

    Parameters
    ----------
    net : skorch net
        In evaluation mode.
    batch : tuple
        For which it has raised.
    error : Exception
        What it has raised.

    Returns
    -------
    NonFiniteTrainingError
    """
    n_rows = get_len(unpack_data(batch)[0])
    rows = rows_without_output(net, batch)
    first = f", first row {rows[0]} of the batch" if rows else ""
    return NonFiniteTrainingError(
        f"The network has no output for {len(rows) or n_rows} of {n_rows} rows{first}: "
        f"{str(error).splitlines()[0]} Keep the matrix away from the edge, for example "
        "by adding a small multiple of the identity."
    )
