"""Find out why a step of training is not finite, in a net of anyone's."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sknan._replay import Names, replay
from sknan._report import Cause, NonFiniteReport, Phase
from sknan._verdict import examine_step
from sknan.batching import tree_leaves, tree_map
from sknan.clipping import stable_grad_norm

__all__ = ["Cause", "NonFiniteReport", "Phase", "diagnose", "examine_step"]


def _as_tensors(data: Any, device: torch.device) -> Any:
    def as_tensor(leaf: Any) -> Any:
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    if isinstance(data, np.ndarray) or hasattr(data, "to_numpy"):
        array = np.asarray(data.to_numpy() if hasattr(data, "to_numpy") else data)
        if array.dtype == np.float64:
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
        data = torch.from_numpy(np.ascontiguousarray(array))
    return tree_map(as_tensor, data)


def _parts_of(net: Any) -> tuple[nn.Module, Any]:
    """Module and criterion of a fitted or initialized net, ours or skorch's."""
    net = getattr(net, "net_", net)
    if not hasattr(net, "module_"):
        raise TypeError(
            "diagnose takes a module, a criterion, X and y, or an initialized net, X "
            f"and y, got {type(net).__name__}. Call initialize() or fit() first."
        )
    return net.module_, net.criterion_


def diagnose(*args: Any) -> NonFiniteReport | None:
    """Run one step, forward and backward, and say what in it is not finite.

    ``diagnose(module, criterion, X, y)`` for any torch network and loss, or
    ``diagnose(net, X, y)`` for a net of sknan or skorch that has its weights. Nothing
    is changed: weights, gradients, buffers and random states are as before.

    Parameters
    ----------
    *args : module, criterion, X, y, or net, X, y
        ``X`` and ``y`` are arrays, DataFrames, tensors, or nested tuples or dicts of
        tensors; float64 arrays become float32. ``criterion`` is called with output and
        target.

    Returns
    -------
    NonFiniteReport or None
        None if loss and gradients are finite.

    Raises
    ------
    TypeError
        If the arguments are neither of the two.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sknan.diagnosis import diagnose
    >>> class Log(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc = nn.Linear(2, 1)
    ...
    ...     def forward(self, x):
    ...         return torch.log(self.fc(x).relu() * 0)
    >>> report = diagnose(Log(), nn.MSELoss(), torch.ones(3, 2), torch.ones(3, 1))
    >>> report.phase, report.cause, report.operation
    ('forward', 'activation', 'aten.log')
    """
    if len(args) == 4:
        module, criterion, X, y = args
    elif len(args) == 3:
        (module, criterion), X, y = _parts_of(args[0]), args[1], args[2]
    else:
        raise TypeError(
            "diagnose takes (module, criterion, X, y) or (net, X, y), got "
            f"{len(args)} arguments."
        )
    # A copy: what a forward pass changes in place must not be seen outside.
    module, criterion = copy.deepcopy((module, criterion))
    first = next(iter([*module.parameters(), *module.buffers()]), torch.zeros(()))
    inputs, target = _as_tensors(X, first.device), _as_tensors(y, first.device)
    states = torch.random.get_rng_state()
    n_rows = len(tree_leaves(inputs)[0])

    def run() -> tuple[Any, Tensor]:
        torch.random.set_rng_state(states)
        module.zero_grad()
        outputs = module(inputs)
        return outputs, criterion(outputs, target)

    try:
        names = Names({"module": module}, [criterion])
        finding = replay(run, names, (inputs, target), n_rows)
        outputs, loss = run()
        if bool(torch.isfinite(loss.detach()).all()):
            loss.sum().backward()  # type: ignore[no-untyped-call]
    finally:
        torch.random.set_rng_state(states)
    value = float(loss.detach().sum())
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    norm = stable_grad_norm(grads) if grads else 0.0
    if np.isfinite(value) and np.isfinite(norm):
        return None
    return examine_step(
        inputs=inputs,
        outputs=outputs,
        loss=value,
        gradient_norm=norm,
        named_parameters=module.named_parameters(),
        travelled=0.0,
        lr=0.0,
        epoch=0,
        batch=0,
        finding=finding,
    )
