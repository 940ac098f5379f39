"""Replay of a training step under observation, to find the operation that failed."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sknan.diagnosis._backward import first_failed_node
from sknan.diagnosis._failed_operation import FailedOperation
from sknan.diagnosis._forward import OperationTracer, tracked_modules
from sknan.diagnosis._module_names import ModuleNames
from sknan.diagnosis._values import all_finite, nonempty_floats


def replay(
    run: Callable[[], tuple[Any, Tensor]], names: ModuleNames, batch: Any, n_rows: int
) -> FailedOperation | None:
    """Run a step again, and return the first operation that failed in it.

    Parameters
    ----------
    run : callable
        Function that computes outputs and loss of the batch, from the same random state
        as the first time.
    names : ModuleNames
        Paths of the modules.
    batch : Tensor, or nested tuples or dicts of Tensor
        Tensors that ``run`` reads.
    n_rows : int
        Number of rows in the batch.

    Returns
    -------
    FailedOperation or None
        None if no operation is found, or the gradients are finite this time.
    """
    tracer = OperationTracer(n_rows, batch, sys._getframe(), names.nonfinite_weights)
    with torch.enable_grad(), tracked_modules(names, tracer):
        try:
            with tracer:
                outputs, loss = run()
        except Exception:  # the operations until then are all the evidence there is
            return tracer.failed_decomposition or tracer.first_failed()
        if not bool(torch.isfinite(loss.detach()).all()):
            return tracer.origin_of(loss)
        for output in nonempty_floats(outputs):  # a stable loss may ignore a NaN
            if tracer.origin_of(output) is not None and not all_finite(output):
                return tracer.origin_of(output)
        for buffer in names.buffers:
            failed = tracer.origin_of(buffer)
            if failed is not None and not all_finite(buffer):
                return dataclasses.replace(failed, is_only_in_buffer=True)
        return first_failed_node(loss, tracer)


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
