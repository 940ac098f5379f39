"""Amplification of gradients by a network."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from skorch.dataset import unpack_data
from torch import Tensor

from sknan._utils.random_state import kept_random_states
from sknan._utils.thresholds import FAR
from sknan._utils.tree import first_of, tree_leaves, tree_map
from sknan.diagnosis._raised import ValueErrors
from sknan.optim._clipping import grad_norm


def is_rate_absurd(net: Any) -> bool:
    """Whether the learning rate is too high for any ordinary network: above 1."""
    most = max(net.guard_.rate_caps, default=math.inf)
    return any(
        min(float(group["lr"]) * net.guard_.lr_scale, most) > 1.0
        for optimizer in net._all_optimizers()
        for group in optimizer.param_groups
    )


def amplification_of(net: Any, batch: Any, fit_params: dict[str, Any]) -> str:
    """Describe how the network amplifies gradients; return "" if it does not.

    It is to blame, and not the learning rate, if it makes gradients grow tenfold from
    output to input, or applies one weight ten times. An ordinary network shrinks them.
    """
    inputs, _ = unpack_data(batch)
    leaves = [
        leaf.detach().clone().requires_grad_() if leaf.is_floating_point() else leaf
        for leaf in tree_leaves(inputs)
    ]
    remaining = iter(leaves)
    inputs = tree_map(
        lambda leaf: next(remaining) if isinstance(leaf, Tensor) else leaf, inputs
    )
    with kept_random_states(net.device), torch.enable_grad():
        net._set_training(True)
        with ValueErrors() as caught:
            outputs = net.infer(inputs, **fit_params)
        if caught.error is not None:
            return ""
        output = first_of(outputs)
        sources = [leaf for leaf in leaves if leaf.requires_grad]
        if not sources or output.grad_fn is None:
            return ""
        n_uses = _uses_of_a_weight(output.grad_fn)
        upstream = torch.randn_like(output)
        grads = torch.autograd.grad(output, sources, upstream, allow_unused=True)
    arrived = [_of_sound_rows(g) for g in grads if g is not None]
    gain = float(grad_norm(arrived) / grad_norm([upstream])) if arrived else 0.0
    if not gain <= FAR:
        return f"amplifies gradients {gain:.3g} times from output to input"
    if n_uses >= FAR:
        return f"applies one weight {n_uses} times in a row"
    return ""


def _of_sound_rows(grad: Tensor) -> Tensor:
    """Return the gradient without the rows where it is not finite, if they are few.

    A row outside the domain of an operation says nothing about the network.
    """
    if grad.ndim == 0 or not grad.numel():
        return grad
    is_sound = grad.reshape(len(grad), -1).isfinite().all(dim=1)
    return grad[is_sound] if 2 * int(is_sound.sum()) >= len(grad) else grad


def _uses_of_a_weight(root: Any) -> int:
    """Return how often the graph of a forward pass uses its most frequent weight."""
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
