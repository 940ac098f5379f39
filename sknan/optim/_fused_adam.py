"""Steps of torch's fused Adam and AdamW by a direct call of the kernel.

``step()`` also records a profiler event, calls hooks, groups tensors by device and
checks each option. For a small network this takes twice as long as the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

_ONE = torch.ones(())


def step_with(optimizer: torch.optim.Optimizer, closure: Callable[[], Any]) -> None:
    """Call ``optimizer.step(closure)``, or only the kernel if the result is the same.

    The kernel is called for torch's fused Adam and AdamW on a CPU, without hooks and
    rare options, from the second step on.

    Parameters
    ----------
    optimizer : Optimizer
        Optimizer of any class.
    closure : callable
        Function without arguments that computes the gradients of the parameters.
    """
    if not _has_plain_step(optimizer):
        optimizer.step(closure)
        return
    closure()
    found = [_lists_of(optimizer, group) for group in optimizer.param_groups]
    lists = [of_group for of_group in found if of_group is not None]
    if len(lists) < len(found):
        optimizer.step()
        return
    with torch.no_grad():
        for group, (*moved, counts) in zip(optimizer.param_groups, lists, strict=True):
            if counts:
                # A plain number would become a new tensor for each of the counters.
                torch._foreach_add_(counts, [_ONE] * len(counts))
                adam_kernel(group, group["lr"], moved, counts)


def adam_kernel(
    group: dict[str, Any], lr: float, lists: list[list[Tensor]], counts: list[Tensor]
) -> None:
    """Call the kernel of Adam or AdamW.

    Parameters
    ----------
    group : dict of str to object
        Parameter group of the optimizer.
    lr : float
        Learning rate of the step.
    lists : list of list of Tensor
        Weights, gradients and the two moments.
    counts : list of Tensor
        Number of the step, counted from 1, for each weight.
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


def _has_plain_step(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the step is that of torch's Adam or AdamW, without hooks."""
    return (
        type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
        # torch's schedulers replace the step, and GradScaler sets its scale.
        and not vars(optimizer).keys() & {"step", "grad_scale", "found_inf"}
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
        and not torch_optimizer._global_optimizer_pre_hooks
        and not torch_optimizer._global_optimizer_post_hooks
    )


def _lists_of(
    optimizer: torch.optim.Optimizer, group: dict[str, Any]
) -> list[list[Tensor]] | None:
    """Return weights, gradients, both moments and step counters of a group.

    The result is None if the kernel cannot be called directly.
    """
    is_usual = group["fused"] and not (group["amsgrad"] or group["capturable"])
    if not is_usual or isinstance(group["lr"], Tensor):
        return None
    parameters = [p for p in group["params"] if p.grad is not None]
    grads = [p.grad for p in parameters]
    states = [optimizer.state.get(p, {}) for p in parameters]
    is_one_kind = all(p.is_cpu and p.dtype is grads[0].dtype for p in parameters)
    if not all(states) or not is_one_kind or any(grad.is_sparse for grad in grads):
        return None
    return [
        parameters,
        grads,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [state["step"] for state in states],
    ]
