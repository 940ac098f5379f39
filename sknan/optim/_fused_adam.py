"""A step of torch's fused Adam without the Python around its kernel.

Between ``step()`` and the kernel stand a profiler record, hooks, the grouping of
tensors by device and a check of each option: for a small network they take twice as
long as the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

__all__ = ["adam_kernel", "step_with"]


_ONE = torch.ones(())


def step_with(optimizer: Any, closure: Callable[[], object]) -> None:
    """``optimizer.step(closure)``, by the kernel alone where that does the same.

    It does for torch's Adam and AdamW, fused, on a CPU, without hooks and rarer
    options, from the second step on.

    Parameters
    ----------
    optimizer : Optimizer
        Any.
    closure : callable
        Without arguments; leaves the gradients with the parameters.
    """
    if not _has_plain_step(optimizer):
        optimizer.step(closure)
        return
    closure()
    lists = [_lists_of(optimizer, group) for group in optimizer.param_groups]
    if None in lists:
        optimizer.step()
        return
    for group, (*moved, counts) in zip(optimizer.param_groups, lists, strict=True):
        if counts:
            _step_group(group, moved, counts)


@torch.no_grad()
def _step_group(
    group: dict[str, Any], lists: list[list[Tensor]], counts: list[Tensor]
) -> None:
    # To a plain number it would make a tensor for each.
    torch._foreach_add_(counts, [_ONE] * len(counts))
    adam_kernel(group, group["lr"], lists, counts)


def adam_kernel(
    group: dict[str, Any], lr: float, lists: list[list[Tensor]], counts: list[Tensor]
) -> None:
    """The step of Adam or AdamW itself.

    Parameters
    ----------
    group : dict of str to object
        A parameter group of the optimizer.
    lr : float
        Learning rate of the step.
    lists : list of list of Tensor
        Weights, gradients and the two moments.
    counts : list of Tensor
        Number of the step, from 1, for each weight.
    """
    is_decoupled = group["decoupled_weight_decay"]
    kernel = torch._fused_adamw_ if is_decoupled else torch._fused_adam_
    beta1, beta2 = group["betas"]
    weights, grads, means, squares = lists
    kernel(
        weights,
        grads,
        means,
        squares,
        [],
        counts,
        amsgrad=False,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )


def _has_plain_step(optimizer: Any) -> bool:
    """Whether the step of an optimizer is that of its class, and nobody listens."""
    return (
        type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
        # A scheduler of torch's puts its own step there, GradScaler its scale.
        and not vars(optimizer).keys() & {"step", "grad_scale", "found_inf"}
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
        and not torch_optimizer._global_optimizer_pre_hooks
        and not torch_optimizer._global_optimizer_post_hooks
    )


def _lists_of(optimizer: Any, group: dict[str, Any]) -> Any:
    """What the kernel takes: weights, gradients, moments and counters of a group."""
    is_usual = group["fused"] and not (group["amsgrad"] or group["capturable"])
    if not is_usual or isinstance(group["lr"], Tensor):
        return None
    parameters = [p for p in group["params"] if p.grad is not None]
    grads = [p.grad for p in parameters]
    states = [optimizer.state.get(p) for p in parameters]
    is_one_kind = all(p.is_cpu and p.dtype is grads[0].dtype for p in parameters)
    if not all(states) or not is_one_kind or any(grad.is_sparse for grad in grads):
        return None
    return (
        parameters,
        grads,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [state["step"] for state in states],
    )
