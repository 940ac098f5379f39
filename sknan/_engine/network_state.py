"""State of one network and its optimizer, as plain tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sknan._engine.optimizer_step import nadam_momenta
from sknan._engine.table_net import TableNet


class NetworkState(NamedTuple):
    """Weights, buffers and moments of one network.

    Parameters
    ----------
    weights, buffers : list of Tensor
        Parameters and buffers of the module.
    moments : list of list of Tensor
        For each moment of the optimizer, one tensor per parameter.
    n_steps : int
        Number of steps in the moments; 0 if there are none.
    averages : list of Tensor
        Averages of the weights, and of the buffers that have one; empty if there are
        none.
    n_averaged : int
        Number of steps in the averages.
    """

    weights: list[Tensor]
    buffers: list[Tensor]
    moments: list[list[Tensor]]
    n_steps: int
    averages: list[Tensor]
    n_averaged: int


# Names of the moments in the state of an optimizer.
_MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.Adam: ("exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.NAdam: ("exp_avg", "exp_avg_sq"),
    torch.optim.RAdam: ("exp_avg", "exp_avg_sq"),
    torch.optim.SGD: (),
    torch.optim.RMSprop: ("square_avg",),
    torch.optim.Adagrad: ("sum",),
}


def _moment_names(net: TableNet) -> tuple[str, ...]:
    has_momentum = net.optimizer_.param_groups[0].get("momentum")
    names = _MOMENTS[type(net.optimizer_)]
    return (*names, "momentum_buffer") if has_momentum else names


def read_state(net: TableNet) -> NetworkState:
    """Return a copy of the state of a net and its optimizer."""
    parameters = list(net.module_.parameters())
    states = [net.optimizer_.state.get(p, {}) for p in parameters]
    names = _moment_names(net)
    kept = [[state.get(name) for state in states] for name in names]
    has_moments = any(moment is not None for column in kept for moment in column)
    # SGD does not count its steps.
    counts = [int(state.get("step", 1)) for state in states if state]
    moments = [
        [
            torch.zeros_like(p) if moment is None else moment.clone()
            for p, moment in zip(parameters, column, strict=True)
        ]
        for column in [*kept, *([[None] * len(parameters)] * 2)][:2]
    ]
    average = net._average_
    return NetworkState(
        [p.detach().clone() for p in parameters],
        [b.clone() for b in net.module_.buffers()],
        moments,
        max(counts) if has_moments else 0,
        [] if average is None else [t.detach().clone() for t in average.averages],
        0 if average is None else average.n_averaged,
    )


@torch.no_grad()
def write_state(net: TableNet, state: NetworkState) -> None:
    """Set the state of a net and its optimizer to a copy."""
    write_tensors(net, [*state.weights, *state.buffers])
    if net._average_ is not None:
        net._average_.load(state.averages, state.n_averaged)
    states = net.optimizer_.state
    states.clear()
    names = _moment_names(net)
    if not names or not (state.n_steps or "sum" in names):  # Adagrad begins with zeros
        return
    for i, parameter in enumerate(net.module_.parameters()):
        if not parameter.requires_grad:
            continue
        # In the memory layout of the parameter, which the fused optimizers assume.
        kept = {name: torch.zeros_like(parameter) for name in names}
        if state.n_steps:
            for name, moment in zip(names, state.moments, strict=False):
                kept[name].copy_(moment[i])
        if _MOMENTS[type(net.optimizer_)]:  # SGD does not count its steps
            kept = {"step": torch.tensor(float(state.n_steps)), **kept}
        if isinstance(net.optimizer_, torch.optim.NAdam):
            momenta = nadam_momenta(net.optimizer_.param_groups[0], state.n_steps)
            kept["mu_product"] = torch.tensor(float(momenta.prod()))
        states[parameter] = kept


@torch.no_grad()
def write_tensors(net: TableNet, values: list[Tensor]) -> None:
    """Copy values to the parameters of a net, then to its buffers."""
    module = net.module_
    tensors = [*module.parameters(), *module.buffers()]
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
