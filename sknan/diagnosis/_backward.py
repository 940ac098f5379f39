"""Detection and removal of non-finite numbers in a backward pass.

A hook on each node of the autograd graph receives the gradients of its outputs and of
its inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from sknan.diagnosis._evidence import CRITERION, FailedOperation
from sknan.diagnosis._forward import ActiveModule, GraphNode, OperationTracer
from sknan.diagnosis._values import all_finite, are_all_finite, bad_rows, largest


@contextlib.contextmanager
def _hooked_nodes(
    loss: Tensor,
    hook: Callable[[Any, tuple[Any, ...], tuple[Any, ...]], Any],
    before: Callable[[Any, tuple[Any, ...]], None] | None = None,
) -> Iterator[None]:
    """Call a hook for each node below a loss in its backward pass.

    The hook receives the node, the gradients that the node has computed, and those that
    it was given. It may return other gradients in place of the computed ones. Another
    hook, which changes nothing, is called before the node with those that it is given.
    """
    seen: set[Any] = set()
    stack: list[Any] = [loss.grad_fn]
    handles = []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)

        def node_hook(computed: Any, given: Any, node: Any = node) -> Any:
            return hook(node, computed, given)

        handles.append(node.register_hook(node_hook))
        if before is not None:
            handles.append(node.register_prehook(partial(before, node)))
        stack.extend(following for following, _ in node.next_functions)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sanitized_backward(loss: Tensor) -> None:
    """Run backward, and replace entries that an operation makes non-finite by 0.

    Parameters
    ----------
    loss : Tensor of shape ()
        Finite loss.
    """

    def clean(node: Any, computed: Any, given: Any) -> Any:
        if are_all_finite(computed):
            return None
        return tuple(
            g if g is None else torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0)
            for g in computed
        )

    with _hooked_nodes(loss, clean):
        # Tensor.backward would leave a torch function mode. A checkpoint in the forward
        # pass is computed again in the backward pass, and needs the same mode.
        Variable._execution_engine.run_backward(
            (loss,),
            (torch.ones_like(loss),),
            False,
            False,
            (),
            allow_unreachable=True,
            accumulate_grad=True,
        )


class CapturedBackward(TorchFunctionMode):
    """Mode that passes each loss whose ``backward`` is called to a function instead.

    Parameters
    ----------
    function : callable
        Function of a loss.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the operation, unless it is ``backward``."""
        if func is Tensor.backward:
            return self.function(args[0])
        return func(*args, **kwargs or {})


class _FoundFailure(Exception):
    """Exception that ends a backward pass once the failed operation is known."""

    def __init__(self, failed: FailedOperation) -> None:
        super().__init__()
        self.failed = failed


def _number_of(node: Any) -> int:
    return int(node._sequence_nr()) if hasattr(node, "_sequence_nr") else -1


def _weight_of(node: Any) -> Any:
    """Return the weight to whose gradient a node adds; None for other nodes."""
    return getattr(node, "variable", None)


def first_failed_node(
    loss: Tensor, tracer: OperationTracer, owners: dict[int, str]
) -> FailedOperation | None:
    """Differentiate, and return the first operation whose gradient is not finite.

    It is an operation of the forward pass, or one in a hook of a gradient, or the sum
    of the gradients of several uses of a tensor.

    Parameters
    ----------
    loss : Tensor of shape ()
        Finite loss.
    tracer : OperationTracer
        Tracer of the forward pass that led to the loss.
    owners : dict of int to str
        Path of the module of each weight, by identity of the weight.

    Returns
    -------
    FailedOperation or None
        None if all gradients are finite, or nothing in the graph is trained.
    """
    between = OperationTracer(tracer.n_rows, (), sys._getframe(), {})
    unknown = GraphNode("", ActiveModule(CRITERION), None, None, ())
    latest = unknown

    @_disable_current_modes()  # the checks are no part of the backward pass
    def judge_given(node: Any, given: Any) -> None:
        if not are_all_finite(given):
            raise _FoundFailure(failed_between(node))

    @_disable_current_modes()
    def judge(node: Any, computed: Any, given: Any) -> None:
        nonlocal latest
        weight = _weight_of(node)
        if not are_all_finite(computed if weight is None else (weight.grad,)):
            if weight is None and node.name() != "BackwardHookFunctionBackward":
                raise _FoundFailure(failed_at(node, computed, given))
            raise _FoundFailure(failed_between(node))  # these nodes compute nothing
        latest = tracer.nodes.get(_number_of(node), latest)

    def failed_at(node: Any, computed: Any, given: Any) -> FailedOperation:
        """Return the operation of a node, or what made its argument non-finite."""
        number = _number_of(node)
        traced = tracer.nodes.get(number, unknown)
        fault = tracer.failed_at(traced.argument_origin)
        if fault is not None:
            return fault  # the value was finite in spite of it, for example tanh(inf)
        bad = next(g for g in computed if g is not None and not all_finite(g))
        return FailedOperation(
            phase="backward",
            module=traced.module.path,
            operation=traced.operation_of(node),
            source=traced.source,
            rows=bad_rows(~torch.isfinite(bad), tracer.n_rows),
            largest=largest(g for g in given if g is not None),
            dtype=bad.dtype,
            is_in_unused_branch=number in tracer.nonfinite_nodes,
            arguments=tuple(made.describe() for made in traced.arguments),
            layer=traced.module.layer,
        )

    def failed_between(node: Any) -> FailedOperation:
        """Return the operation that changed a gradient between two nodes."""
        weight = _weight_of(node)
        traced = tracer.nodes.get(_number_of(node), unknown)
        path = traced.module.path if weight is None else owners.get(id(weight), "")
        failed = between.first_failed() or FailedOperation("backward", path, "", None)
        return dataclasses.replace(
            failed,
            phase="backward",
            module=path,
            # The sum of several gradients belongs to no line.
            source=failed.source or (latest.source if failed.operation else None),
            rows=failed.rows if weight is None else (),
            domain=None,
            depends_on_batch=True,
            is_in_hook=failed.source is not None or not failed.operation,
        )

    if loss.grad_fn is None:
        return None
    with _hooked_nodes(loss, judge, judge_given), between:
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except _FoundFailure as found:
            return found.failed
    return None
