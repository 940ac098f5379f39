"""Keys of modules and criteria that compute the same function of weights and data."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import nn

from sknan._engine.code_state import code_state
from sknan._engine.table_net import TableNet
from sknan.nets._chain import has_gradient_hooks, has_hooks


def module_key(net: TableNet) -> Hashable | None:
    """Return a key that is equal for nets of the same function of weights and data.

    It is None for a net that cannot be stacked.
    """
    module, criterion = net.module_, net.criterion_
    tensors = [*module.named_parameters(), *module.named_buffers()]
    is_supported = (
        isinstance(criterion, nn.Module)
        and not any(True for _ in criterion.parameters())
        and all(t.is_cpu for _, t in tensors)
        and any(t.requires_grad for _, t in tensors)
        # A stack has one tensor for the weights of all layers. Norms of half-precision
        # gradients overflow.
        and {p.dtype for p in module.parameters()} in ({torch.float32}, {torch.float64})
        and not any(map(_needs_own_calls, module.modules()))
    )
    if not is_supported:
        return None
    weights = (dict(part._buffers) for part in criterion.modules())  # of classes
    return (
        tuple((name, t.shape, t.dtype, t.requires_grad) for name, t in tensors),
        code_state(module, criterion, *weights),
    )


def _needs_own_calls(part: nn.Module) -> bool:
    """Whether torch must call a part itself: for hooks, and for recurrent kernels.

    A stack neither calls hooks in each step nor has a fast kernel for recurrent layers.
    torch cannot copy the weights of a part that it has compiled.
    """
    return (
        isinstance(part, (nn.RNNBase, torch.jit.ScriptModule))
        or has_hooks(part)
        or any(map(has_gradient_hooks, part.parameters(recurse=False)))
    )
