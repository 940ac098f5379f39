"""Forward and backward pass of many networks of one architecture at once.

Chains of known layers have explicit passes (:mod:`sknan._engine.chain`); any other
network uses ``torch.func`` (:mod:`sknan._engine.module_pass`).
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sknan._engine.chain import StackedChain, transposed_weights
from sknan._engine.code_state import code_state
from sknan._engine.losses import stacked_loss_of
from sknan._engine.module_key import module_key
from sknan._engine.module_pass import StackedModule
from sknan._engine.table_net import TableNet
from sknan._utils.random_state import generator_states, seeded, set_generator_states
from sknan._utils.tree import tree_map
from sknan.diagnosis._raised import result_of_trial
from sknan.nets._batching import TensorTable
from sknan.nets._chain import has_gradient_hooks, layers_of
from sknan.nets._tabular_mlp import PeriodicEmbedding

# Number of rows on which a stacked pass is compared with a separate one, and tolerances
# for loss and gradients.
_N_COMPARED = 8
_RTOL = 1e-4
_ATOL = 1e-6


class StackedPass(Protocol):
    """Forward and backward pass of all members of a stack.

    Attributes
    ----------
    gradient_parts : list of Tensor of shape (K, n_weights)
        Gradients of the parameters of a pass that does not write to the tensors given.
    """

    gradient_parts: list[Tensor]

    def prepare_target(self, target: Any, shape: torch.Size) -> Any:
        """Convert targets of rows in a tensor of shape (..., K, B) for :meth:`step`."""

    def step(self, x: Tensor, target: Any) -> tuple[NDArray[Any], Tensor]:
        """Write the gradients, and return losses (K,) and outputs (K, B, ...).

        The next call overwrites losses and outputs.
        """

    def evaluate(self, x: Tensor, target: Any) -> NDArray[Any]:
        """Return losses (K,) in evaluation mode, for targets that are not prepared."""


def pass_key(net: TableNet) -> Hashable | None:
    """Return a key that is equal for networks that a stacked pass can compute together.

    It is None for a network that cannot be stacked.
    """
    layers = chain_of(net)
    if layers is not None:
        sizes = tuple((type(layer), _sizes(layer)) for layer in layers)
        return "chain", sizes, type(net.criterion_)
    return module_key(net)


def is_stored_transposed(net: TableNet) -> list[bool]:
    """Return for each parameter whether :func:`stacked_pass` takes it transposed."""
    layers = chain_of(net)
    if layers is not None:
        return transposed_weights(layers)
    # Products are up to four times as fast if the longer axis is contiguous.
    wide = {
        id(m.weight)
        for m in net.module_.modules()
        if type(m) is nn.Linear and m.out_features > m.in_features
    }
    return [id(p) in wide for p in net.module_.parameters()]


def stacked_pass(
    nets: list[TableNet],
    generators: list[torch.Generator],
    weights: list[Tensor],
    gradients: list[Tensor],
    buffers: list[Tensor],
) -> StackedPass:
    """Return the pass of networks of one :func:`pass_key`.

    Parameters
    ----------
    nets : list of TableNet
        Net of each member.
    generators : list of Generator
        Generator of each member's random numbers.
    weights, gradients, buffers : list of Tensor
        Tensors with the members along the first axis, in the order of the parameters
        and buffers of a module. Weights and gradients are transposed where
        :func:`is_stored_transposed` says so. Gradients are written, unless the pass has
        ``gradient_parts``; a module may write to its buffers.

    Returns
    -------
    StackedPass
    """
    layers = [chain_of(net) for net in nets]
    chains = [chain for chain in layers if chain is not None]
    if len(chains) == len(layers):
        criterion = nets[0].criterion_
        return StackedChain(chains, generators, weights, criterion)
    flags = is_stored_transposed(nets[0])
    weights, gradients = (
        [
            t.mT if is_transposed else t
            for t, is_transposed in zip(ts, flags, strict=True)
        ]
        for ts in (weights, gradients)
    )
    return StackedModule(nets, generators, weights, gradients, buffers)


def chain_of(net: TableNet) -> list[nn.Module] | None:
    """Return the layers of a chain whose passes are explicit, None for other nets."""
    if stacked_loss_of(net.criterion_) is None:
        return None
    layers = layers_of(net.module_) or []
    weights = [p for layer in layers for p in layer.parameters()]
    # The passes find the weights in the order of the layers. A layer that is applied
    # twice has one gradient, and a part that is not applied is in no layer.
    is_explicit = (
        [*map(id, weights)] == [*map(id, net.module_.parameters())]
        and all(type(p) is nn.Parameter and p.requires_grad for p in weights)
        and not any(map(has_gradient_hooks, weights))
        and not any(isinstance(layer, PeriodicEmbedding) for layer in layers)
    )
    return layers if weights and is_explicit else None


def _sizes(layer: nn.Module) -> Hashable:
    if isinstance(layer, nn.Linear):
        return (*layer.weight.shape, layer.bias is not None)
    return getattr(layer, "approximate", None)


def does_stacking_agree(net: TableNet, table: TensorTable) -> bool:
    """Whether a stacked pass gives the result of a separate one, up to rounding.

    It does not if the operations depend on the values of the data, on random numbers
    other than those of a dropout layer, or on state that Python code changes, such as a
    counter. Two steps of a stack of two copies of the network are compared with those
    of the network, on a few rows each; chains of known layers need no comparison.
    """
    if chain_of(net) is not None:
        return True
    start = max(0, len(table) - _N_COMPARED)
    batches = [table.rows(slice(i, i + _N_COMPARED)) for i in (0, start)]
    generators = generator_states()

    def agrees() -> bool:
        clone = _copied(net)
        before = code_state(clone.module_, clone.criterion_)
        found = _stacked_results(clone, batches)
        expected = _separate_results(clone, batches)
        is_constant = code_state(clone.module_, clone.criterion_) == before
        is_agreed = is_constant and _are_close(found, expected)
        return is_agreed and not _skips_weights(clone)

    try:
        # None: a user's module may raise anything that vmap or a copy causes.
        agreement = result_of_trial(agrees)
    finally:
        is_random = generator_states() != generators
        if is_random:
            set_generator_states(generators)
    return bool(agreement) and not is_random


def _skips_weights(net: TableNet) -> bool:
    """Whether the optimizer leaves out weights that a stack would let decay.

    torch steps no weight without a gradient, which is one that ``forward`` does not
    use.
    """
    decays = any(group.get("weight_decay") for group in net.optimizer_.param_groups)
    weights = net.module_.parameters()
    return decays and any(p.requires_grad and p.grad is None for p in weights)


def _copied(net: TableNet) -> TableNet:
    """Return a net whose module and criterion are copies."""
    module, criterion = copy.deepcopy((net.module_.train(), net.criterion_))
    clone: TableNet = object.__new__(type(net))  # a copy would be pickled
    clone.__dict__.update({**vars(net), "module_": module, "criterion_": criterion})
    return clone


def _stacked_results(net: TableNet, batches: list[tuple[Tensor, Any]]) -> list[Tensor]:
    """Return loss, gradients and buffers of a member of a stack after some steps."""
    doubled = [
        tree_map(lambda leaf: torch.stack([leaf, leaf]), batch) for batch in batches
    ]
    tensors = [list(net.module_.parameters()), list(net.module_.buffers())]
    weights, buffers = ([torch.stack([t.detach()] * 2) for t in ts] for ts in tensors)
    flags = is_stored_transposed(net)
    weights = [
        w.mT.contiguous().mT if is_transposed else w
        for w, is_transposed in zip(weights, flags, strict=True)
    ]
    gradients = [torch.zeros_like(w) for w in weights]
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    stacked = StackedModule([net] * 2, generators, weights, gradients, buffers)
    x = doubled[0][0].clone()
    with torch.no_grad():
        for rows, target in doubled:
            losses, _ = stacked.step(x.copy_(rows), target)
    return [torch.as_tensor(losses[0]), *(t[0] for t in (*gradients, *buffers))]


def _separate_results(net: TableNet, batches: list[tuple[Tensor, Any]]) -> list[Tensor]:
    """Return loss, gradients and buffers of a network after some steps."""
    module = net.module_
    with seeded(0, "cpu"):
        for rows, target in batches:
            module.zero_grad()
            loss = net.get_loss(module(rows.clone()), target)
            loss.backward()  # type: ignore[no-untyped-call]
    gradients = [
        torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()
    ]
    return [loss.detach(), *gradients, *module.buffers()]


def _are_close(found: list[Tensor], expected: list[Tensor]) -> bool:
    # A gradient of zero, as of a bias before batch normalization, is rounding error of
    # the size of the other gradients. Buffers may be of another dtype, such as bool.
    finite = [t.double().nan_to_num(0.0, 0.0, 0.0) for t in expected if t.numel()]
    atol = _ATOL * max(float(t.abs().max()) for t in finite)
    return all(
        bool(torch.allclose(a, b, _RTOL, atol, equal_nan=True))
        for a, b in zip(found, expected, strict=True)
    )
