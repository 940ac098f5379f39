"""Steps of torch's fused optimizers for the slices of a stack.

By torch's own kernels, slices of equal numbers in one call. Rates and decays are left
to the stack: they are what a search varies.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from sknan.optim._fused_adam import adam_kernel

__all__ = [
    "group_of_step",
    "is_decay_decoupled",
    "kind_of_step",
    "numbers_of",
    "step_alike",
]

# A larger rate may overflow inside the optimizer, which the guard then looks for.
_LARGEST_RATE = 1e10

# What each slice may have for itself beside its rate and its decay.
_NUMBERS = ("betas", "momentum", "dampening")

_KINDS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_UNUSUAL = ("amsgrad", "maximize", "capturable", "differentiable")


def kind_of_step(optimizer: Any) -> Hashable | None:
    """What optimizers of one stack have in common; None for one that goes alone.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        That has not made a step.

    Returns
    -------
    hashable or None
    """
    if type(optimizer) not in _KINDS or len(optimizer.param_groups) != 1:
        return None
    group = optimizer.param_groups[0]
    is_usual = group["fused"] and not any(group.get(name) for name in _UNUSUAL)
    if not is_usual or not 0.0 < float(group["lr"]) < _LARGEST_RATE:
        return None
    own = ("params", "lr", "weight_decay", *_NUMBERS)
    options = {name: repr(v) for name, v in group.items() if name not in own}
    return type(optimizer), tuple(sorted(options.items()))


def numbers_of(group: dict[str, Any]) -> Hashable:
    """Equal for slices that may share a step.

    Parameters
    ----------
    group : dict of str to object
        The parameter group of a slice's optimizer.

    Returns
    -------
    hashable
    """
    return tuple(group.get(name) for name in _NUMBERS)


def is_decay_decoupled(group: dict[str, Any]) -> bool:
    """Whether an optimizer shrinks the weights themselves, as AdamW does.

    Parameters
    ----------
    group : dict of str to object
        Its parameter group.

    Returns
    -------
    bool
    """
    return bool(group.get("decoupled_weight_decay"))


def group_of_step(group: dict[str, Any]) -> dict[str, Any]:
    """The group by which :func:`step_alike` leaves a step instead of weights.

    Parameters
    ----------
    group : dict of str to object
        The parameter group of an optimizer.

    Returns
    -------
    dict of str to object
    """
    if "betas" in group:
        # At a rate of one the kernel forgets the step before: x - 1 * 1 * x.
        return group | {"weight_decay": 1.0, "decoupled_weight_decay": True}
    return group | {"weight_decay": 0.0}


def step_alike(group: dict[str, Any], count: Tensor, lists: list[list[Tensor]]) -> None:
    """One step, at a rate of one, of slices of equal numbers.

    Parameters
    ----------
    group : dict of str to object
        :func:`group_of_step` of any of them.
    count : Tensor of shape ()
        Number of this step, from 1.
    lists : list of list of Tensor
        Places for the steps, gradients, and two moments; zero before the first step.
    """
    steps, gradients, first, _ = lists
    if "betas" in group:
        adam_kernel(group, 1.0, lists, [count] * len(steps))
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
        is_first_step=bool(count == 1),
    )
