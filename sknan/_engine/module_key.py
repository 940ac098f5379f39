"""Keys of modules and criteria that compute the same function of weights and data."""

from __future__ import annotations

import types
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sknan._engine.table_net import TableNet

# Attributes of every module that do not tell what it computes.
_STATE = frozenset(k for k in vars(nn.Module()) if not k.endswith("hooks"))

# Values whose text tells them apart, and values that are equal only to themselves.
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_SINGLE = (type, types.FunctionType, types.BuiltinFunctionType, nn.Module)


def module_key(net: TableNet) -> Hashable | None:
    """Return a key that is equal for nets of the same function of weights and data.

    Parameters
    ----------
    net : TableNet
        Initialized net.

    Returns
    -------
    hashable or None
        None for a net that cannot be stacked.
    """
    module, criterion = net.module_, net.criterion_
    tensors = [*module.named_parameters(), *module.named_buffers()]
    is_supported = (
        isinstance(criterion, nn.Module)
        and not any(True for _ in criterion.parameters())
        and all(p.requires_grad and p.is_cpu for p in module.parameters())
        and bool(tensors)
        and not isinstance(module, torch.jit.ScriptModule)
        and not any(map(_needs_own_calls, module.modules()))
    )
    if not is_supported:
        return None
    try:
        return (
            tuple((name, t.shape, t.dtype) for name, t in tensors),
            tuple((name, part_key(part)) for name, part in module.named_modules()),
            tuple((part_key(p), _exact(p._buffers)) for p in criterion.modules()),
        )
    except RecursionError:  # an object that refers to itself
        return None


def _needs_own_calls(part: nn.Module) -> bool:
    """Whether torch must call a part itself: for hooks, and for recurrent kernels.

    A stack neither calls the hooks of a gradient nor has a fast kernel for recurrent
    layers.
    """
    parameters = part.parameters(recurse=False)
    return isinstance(part, nn.RNNBase) or any(
        p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)
        for p in parameters
    )


def part_key(part: nn.Module) -> Hashable:
    """Return a key of the class, the hooks, and attributes that are not registered."""
    attributes = {k: v for k, v in vars(part).items() if k not in _STATE}
    for name in vars(nn.Module()).keys() - _STATE:
        attributes[name] = list(attributes[name].values())
    if type(part) is nn.Dropout:  # each member has its own probability
        attributes["p"] = part.p > 0.0
    return type(part), _exact(attributes)


def _exact(value: Any) -> Hashable:
    """Return a key that is equal only for values that nothing tells apart."""
    if isinstance(value, _PLAIN):
        return type(value), repr(value)
    if isinstance(value, _SINGLE):
        return id(value)
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return type(value), tuple((_exact(k), _exact(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_exact, value))
    try:
        created, *state = value.__reduce_ex__(2)
    except Exception:  # an object that cannot be copied
        return id(value)
    return created, tuple(
        _exact(list(s) if hasattr(s, "__next__") else s) for s in state
    )
