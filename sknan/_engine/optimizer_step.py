"""Steps of torch's optimizers for the members of a stack.

The kernels are torch's own where there are any, with members of equal settings in one
call. They compute the step at a learning rate of 1 and without weight decay. The stack
applies these two itself, because they are the settings that a search varies.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A larger learning rate may overflow inside the optimizer, which only the guard of a
# separate training detects.
_LARGEST_RATE = 1e10

# Settings that may differ between members, besides learning rate and weight decay.
_KERNEL_SETTINGS = ("betas", "momentum", "dampening")

_SUPPORTED = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.SGD,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
)
_UNSUPPORTED_OPTIONS = (
    "amsgrad",
    "capturable",
    "centered",
    "differentiable",
    "initial_accumulator_value",
    "maximize",
)


def optimizer_key(optimizer: torch.optim.Optimizer) -> Hashable | None:
    """Return a key that is equal for optimizers that may share a stack.

    It is None for an optimizer that a stack cannot replace.
    """
    if type(optimizer) not in _SUPPORTED or len(optimizer.param_groups) != 1:
        return None
    group = optimizer.param_groups[0]
    is_supported = (
        group.get("fused", True)  # RMSprop has no such kernel
        and group.get("eps", 1.0) > 0.0
        and not any(map(group.get, _UNSUPPORTED_OPTIONS))
    )
    if not is_supported or not 0.0 < float(group["lr"]) < _LARGEST_RATE:
        return None
    per_member = ("params", "lr", "weight_decay", *_KERNEL_SETTINGS)
    options = {name: repr(v) for name, v in group.items() if name not in per_member}
    return type(optimizer), tuple(sorted(options.items()))


def kernel_key(group: dict[str, Any], n_steps: int) -> Hashable:
    """Return a key that is equal for members whose steps one call can compute."""
    settings = tuple(map(group.get, _KERNEL_SETTINGS))
    return settings if _is_adam(group) else (*settings, n_steps)


def _is_adam(group: dict[str, Any]) -> bool:
    """Whether the optimizer is Adam or AdamW, whose kernel takes many counts."""
    return "amsgrad" in group


def write_unit_steps(
    group: dict[str, Any], counts: list[Tensor], lists: list[list[Tensor]]
) -> None:
    """Compute the steps at a learning rate of 1 of members with one kernel key.

    Parameters
    ----------
    group : dict of str to object
        Parameter group of the optimizer of one of the members.
    counts : list of Tensor of shape ()
        Number of the step of each member, from 1. Only Adam's may differ.
    lists : list of list of Tensor
        Tensors for the steps, the gradients, and the two moments. The steps are
        overwritten and the moments updated; both are zero before the first step.
    """
    steps, gradients, first, second = lists
    if _is_adam(group):
        beta1, beta2 = group["betas"]
        # The kernel adds a step to x, which here holds the previous step. A decay of 1
        # at a learning rate of 1 removes it first: x - 1 * 1 * x = 0.
        torch._fused_adamw_(
            steps,
            gradients,
            first,
            second,
            [],
            counts,
            amsgrad=False,
            lr=1.0,
            beta1=beta1,
            beta2=beta2,
            weight_decay=1.0,
            eps=group["eps"],
            maximize=False,
        )
        return
    count = int(counts[0])
    if "betas" in group:
        _write_variants_of_adam(group, count, lists)
        return
    if "alpha" in group or "lr_decay" in group:
        _write_scaled_gradients(group, count, lists)
        return
    for step in steps:
        step.zero_()
    torch._fused_sgd_(
        steps,
        gradients,
        first if group["momentum"] else [],
        weight_decay=0.0,
        momentum=group["momentum"],
        lr=1.0,
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        maximize=False,
        is_first_step=count == 1,
    )


def _write_variants_of_adam(
    group: dict[str, Any], t: int, lists: list[list[Tensor]]
) -> None:
    """Compute the steps of NAdam and RAdam; parameters as above.

    Both are sums of the gradient and its mean, divided by the root of the mean square.
    """
    beta1, beta2 = group["betas"]
    root = math.sqrt(1.0 - beta2**t)
    of_gradient, of_mean, is_divided = 0.0, -1.0 / (1.0 - beta1**t), True
    if "momentum_decay" in group:
        momenta = nadam_momenta(group, t + 1)
        now, after = momenta[-2:]
        product = momenta[:-1].prod()
        of_gradient = -(1.0 - now) / (1.0 - product)
        of_mean = -after / (1.0 - product * after)
    else:
        # Length of the average of squares: the variance of RAdam is finite above 4.
        most = 2.0 / (1.0 - beta2) - 1.0
        length = most - 2.0 * t * beta2**t / (1.0 - beta2**t)
        is_divided = length > 5.0
        if is_divided:
            ratio = (length - 4.0) * (length - 2.0) * most
            of_mean *= math.sqrt(ratio / ((most - 4.0) * (most - 2.0) * length))
    eps = group["eps"] * (root if "momentum_decay" in group else 1.0)
    for step, gradient, mean, squares in zip(*lists, strict=True):
        mean.lerp_(gradient, 1.0 - beta1)
        squares.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        torch.mul(mean, of_mean, out=step).add_(gradient, alpha=of_gradient)
        if is_divided:
            step.div_(squares.sqrt().add_(eps)).mul_(root)


def nadam_momenta(group: dict[str, Any], n_steps: int) -> NDArray[np.float64]:
    """Return the momentum of NAdam in each of its first steps."""
    steps = np.arange(1, n_steps + 1)
    momenta: NDArray[np.float64] = group["betas"][0] * (
        1.0 - 0.5 * 0.96 ** (steps * group["momentum_decay"])
    )
    return momenta


def _write_scaled_gradients(
    group: dict[str, Any], count: int, lists: list[list[Tensor]]
) -> None:
    """Compute the steps of RMSprop and Adagrad; parameters as above.

    The gradient is divided by the root of the mean, or sum, of its previous squares.
    """
    for step, gradient, squares, momentum in zip(*lists, strict=True):
        weight = 1.0 - group.get("alpha", 0.0)
        squares.mul_(group.get("alpha", 1.0)).addcmul_(gradient, gradient, value=weight)
        torch.sqrt(squares, out=step).add_(group["eps"])
        torch.div(gradient, step, out=step)
        if group.get("momentum"):
            step.copy_(momentum.mul_(group["momentum"]).add_(step))
        step.mul_(-1.0 / (1.0 + (count - 1.0) * group.get("lr_decay", 0.0)))
