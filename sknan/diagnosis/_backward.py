"""Detection and removal of non-finite numbers in a backward pass.

A hook on each node of the autograd graph receives the gradients of its outputs and of
its inputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.overrides import TorchFunctionMode

from sknan.diagnosis._evidence import CRITERION, FailedOperation
from sknan.diagnosis._forward import ActiveModule, GraphNode, OperationTracer
from sknan.diagnosis._operations import operation_of
from sknan.diagnosis._values import all_finite, are_all_finite, bad_rows, largest


@contextlib.contextmanager
def _hooked_nodes(
    loss: Tensor, hook: Callable[[Any, tuple[Any, ...], tuple[Any, ...]], Any]
) -> Iterator[None]:
    """Call a hook for each node below a loss in its backward pass.

    The hook receives the node, the gradients that the node has computed, and those that
    it was given. It may return other gradients in place of the computed ones.
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


def first_failed_node(loss: Tensor, tracer: OperationTracer) -> FailedOperation | None:
    """Differentiate, and return the first operation whose gradient is not finite.

    Parameters
    ----------
    loss : Tensor of shape ()
        Finite loss.
    tracer : OperationTracer
        Tracer of the forward pass that led to the loss.

    Returns
    -------
    FailedOperation or None
        None if all gradients are finite, or nothing in the graph is trained.
    """

    def judge(node: Any, computed: Any, given: Any) -> None:
        if are_all_finite(computed) or not are_all_finite(given):
            return
        number = int(node._sequence_nr()) if hasattr(node, "_sequence_nr") else -1
        traced = tracer.nodes.get(number)
        fault = tracer.failed_at(traced.argument_origin) if traced else None
        if fault is not None:
            # The value was finite in spite of it, for example tanh(inf).
            raise _FoundFailure(fault)
        bad = next(g for g in computed if g is not None and not all_finite(g))
        if traced is None:
            traced = GraphNode("", ActiveModule(CRITERION), None, None, ())
        raise _FoundFailure(
            FailedOperation(
                phase="backward",
                module=traced.module.path,
                operation=operation_of(node, traced.operation),
                source=traced.source,
                rows=bad_rows(~torch.isfinite(bad), tracer.n_rows),
                largest=largest(g for g in given if g is not None),
                dtype=bad.dtype,
                is_in_unused_branch=number in tracer.nonfinite_nodes,
                arguments=tuple(made.describe() for made in traced.arguments),
                layer=traced.module.layer,
            )
        )

    if loss.grad_fn is None:
        return None
    with _hooked_nodes(loss, judge):
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except _FoundFailure as found:
            return found.failed
    return None
