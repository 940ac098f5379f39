"""Replay of a training step under observation, to find the operation that failed."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from sknan.diagnosis._backward import first_failed_node
from sknan.diagnosis._evidence import CRITERION, FailedOperation, NonFiniteWeight
from sknan.diagnosis._forward import ActiveModule, OperationTracer
from sknan.diagnosis._raised import ValueErrors, failed_check, is_raised_by_user
from sknan.diagnosis._values import (
    all_finite,
    nonempty_floats,
    nonfinite_count,
    storage_key,
)


class ModuleNames:
    """Paths of the modules of a net, its buffers, and what is not finite in them.

    Parameters
    ----------
    modules : dict of str to object
        Networks by name. Paths in the network ``"module"`` have no prefix. Objects that
        are not modules are ignored.
    criteria : iterable of object
        Loss functions. All parts of a loss that is a module are the criterion.
    """

    def __init__(self, modules: dict[str, Any], criteria: Iterable[Any]) -> None:
        self.paths: dict[int, str] = {}  # by identity of the module
        self.owners: dict[int, str] = {}  # path of its module, by identity of a weight
        self.buffers: list[Tensor] = []
        # By key of the storage.
        self.nonfinite_weights: dict[int, NonFiniteWeight] = {}
        for name, module in modules.items():
            if isinstance(module, nn.Module):
                self._add_network(module, "" if name == "module" else name)
        for criterion in criteria:
            if isinstance(criterion, nn.Module):
                for part in criterion.modules():
                    self.paths[id(part)] = CRITERION
                self.owners |= {id(p): CRITERION for p in criterion.parameters()}
                self._add_weights(criterion, CRITERION)

    def _add_network(self, module: nn.Module, prefix: str) -> None:
        for path, part in module.named_modules(prefix=prefix):
            self.paths.setdefault(id(part), path)
        for path, weight in module.named_parameters(prefix=prefix):
            self.owners.setdefault(id(weight), path.rpartition(".")[0])
        self.buffers += module.buffers()
        self._add_weights(module, prefix)

    def _add_weights(self, module: nn.Module, prefix: str) -> None:
        """Add the weights and buffers of a module that are not finite."""
        for path, weight in module.named_parameters(prefix=prefix):
            n_bad = nonfinite_count(weight.detach())
            if n_bad:
                found = NonFiniteWeight(path, n_bad, weight.numel())
                self.nonfinite_weights[storage_key(weight)] = found
        for path, buffer in module.named_buffers(prefix=prefix):
            n_bad = nonfinite_count(buffer)
            if n_bad:
                is_mask = int(buffer.isneginf().sum()) == n_bad
                found = NonFiniteWeight(path, n_bad, buffer.numel(), "buffer", is_mask)
                self.nonfinite_weights[storage_key(buffer)] = found


@contextlib.contextmanager
def _tracked_modules(names: ModuleNames, tracer: OperationTracer) -> Iterator[None]:
    """Update the tracer's stack of modules when a forward pass begins or ends.

    The hooks of a module run in the name of the module.

    Parameters
    ----------
    names : ModuleNames
        Paths of the modules. A module without a path counts as part of its caller.
    tracer : OperationTracer
        Tracer whose stack of modules is updated.
    """
    handles: dict[nn.Module, Any] = {}

    def enter(module: nn.Module, inputs: Any) -> None:
        # The global hook runs before those of the module. ScriptModule refuses more.
        is_hooked = module._forward_hooks and not isinstance(module, ScriptModule)
        if is_hooked and module not in handles:
            handles[module] = module.register_forward_hook(leave)
        kind = type(module)
        is_of_torch = kind.__module__.startswith("torch.nn.")
        path = names.paths.get(id(module), tracer.module.path)
        layer = kind.__name__ if is_of_torch else ""
        tracer.module_stack.append(ActiveModule(path, layer))

    def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
        if tracer.module_stack:
            tracer.module_stack.pop()

    def leave_without_hooks(module: nn.Module, inputs: Any, outputs: Any) -> None:
        if module not in handles:
            leave(module, inputs, outputs)

    before = nn.modules.module.register_module_forward_pre_hook(enter)
    after = nn.modules.module.register_module_forward_hook(leave_without_hooks)
    try:
        yield
    finally:
        for handle in (before, after, *handles.values()):
            handle.remove()


def replay(
    run: Callable[[], tuple[Any, Tensor]],
    names: ModuleNames,
    batch: tuple[Any, ...],
    n_rows: int,
    *,
    has_grad: bool = True,
) -> FailedOperation | None:
    """Run a step again, and return the first operation that failed in it.

    Parameters
    ----------
    run : callable
        Function that computes outputs and loss of the batch, from the same random state
        as the first time.
    names : ModuleNames
        Paths of the modules.
    batch : tuple
        Inputs and target that ``run`` reads; each may be nested.
    n_rows : int
        Number of rows in the batch.
    has_grad : bool, default=True
        Whether gradients are recorded. Without them layers of torch in evaluation mode
        may take a faster path of other operations.

    Returns
    -------
    FailedOperation or None
        None if no operation is found, the gradients are finite this time, or the user's
        code raises an exception on purpose.
    """
    tracer = OperationTracer(n_rows, batch, sys._getframe(), names.nonfinite_weights)
    with torch.set_grad_enabled(has_grad), _tracked_modules(names, tracer):
        with ValueErrors() as caught:
            with tracer:
                outputs, loss = run()
            return _failed_in(outputs, loss, tracer, names)
        assert caught.error is not None
        return _raised_in(caught.error, tracer)


def _failed_in(
    outputs: Any, loss: Tensor, tracer: OperationTracer, names: ModuleNames
) -> FailedOperation | None:
    """Return the operation that failed in a step that raised no exception."""
    if not bool(torch.isfinite(loss.detach()).all()):
        return tracer.origin_of(loss)
    for output in nonempty_floats(outputs):  # a stable loss may ignore a NaN
        if not (tracer.is_asked_for(output) or all_finite(output)):
            return tracer.origin_of(output)
    for buffer in names.buffers:
        failed = tracer.origin_of(buffer)
        if failed is not None and not all_finite(buffer):
            was_bad = names.nonfinite_weights.get(storage_key(buffer))
            return dataclasses.replace(
                failed, is_only_in_buffer=True, weight=was_bad or failed.weight
            )
    return first_failed_node(loss, tracer, names.owners)


def _raised_in(error: Exception, tracer: OperationTracer) -> FailedOperation | None:
    """Return what is to blame for an exception; None if the user's code intends it."""
    origin, raised = tracer.first_failed(), None
    if not is_raised_by_user(error):
        raised = failed_check(error, tracer.module.path)
        if tracer.raised is not None and str(tracer.raised[0]) == str(error):
            raised = dataclasses.replace(tracer.raised[1], source=raised.source)
            if origin is not None and origin.operation == raised.operation:
                return raised
    return origin or raised


def trace_operations(run: Callable[[], Any]) -> FailedOperation | None:
    """Run any code, and return the first operation that makes a number non-finite.

    Parameters
    ----------
    run : callable
        Function without arguments, such as an optimizer's ``step``.

    Returns
    -------
    FailedOperation or None
    """
    tracer = OperationTracer(-1, (), sys._getframe(), {})
    with tracer:
        run()
    return tracer.first_failed()
