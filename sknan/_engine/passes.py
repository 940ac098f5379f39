"""Forward and backward pass of many networks of one architecture at once.

Chains of known layers have explicit passes (:mod:`sknan._engine.chain`); any other
network uses ``torch.func``.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from sknan._engine.chain import StackedChain, transposed_weights
from sknan._engine.losses import stacked_loss_of
from sknan._engine.table_net import TableNet
from sknan._utils.random_state import kept_random_states, seeded
from sknan._utils.tree import tree_map
from sknan.nets._batching import TensorTable
from sknan.nets._chain import known_layers, layers_of
from sknan.nets._tabular_mlp import PeriodicEmbedding

# Number of rows on which a stacked pass is compared with a separate one, and tolerances
# for loss and gradients.
_N_COMPARED = 8
_RTOL = 1e-4
_ATOL = 1e-6


class StackedPass(Protocol):
    """Forward and backward pass of all members of a stack."""

    def prepare_target(self, target: Any, shape: torch.Size) -> Any:
        """Convert targets of rows in a tensor of shape (..., K, B) for :meth:`step`."""

    def step(self, x: Tensor, target: Any) -> tuple[NDArray[Any], Tensor]:
        """Write the gradients, and return losses (K,) and outputs (K, B, ...).

        The next call overwrites losses and outputs.
        """

    def evaluate(self, x: Tensor, target: Any) -> NDArray[Any]:
        """Return losses (K,) in evaluation mode, for targets that are not prepared."""


def pass_key(net: TableNet, table: TensorTable) -> Hashable | None:
    """Return a key that is equal for networks that a stacked pass can compute together.

    Parameters
    ----------
    net : TableNet
        Initialized net.
    table : TensorTable
        Rows that the net is trained on.

    Returns
    -------
    hashable or None
        None for a network that cannot be stacked.
    """
    layers = _chain_for_table(net, table)
    if layers is not None:
        sizes = tuple((type(layer), _sizes(layer)) for layer in layers)
        return "chain", sizes, type(net.criterion_)
    return _module_key(net)


def is_stored_transposed(net: TableNet) -> list[bool]:
    """Return for each weight whether :func:`stacked_pass` takes it transposed.

    Parameters
    ----------
    net : TableNet
        Net with a :func:`pass_key`.

    Returns
    -------
    list of bool
        One entry for each parameter of the module, in their order.
    """
    layers = _chain_of(net)
    if layers is not None:
        return transposed_weights(layers)
    return [False for _ in net.module_.parameters()]


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
        :func:`is_stored_transposed` says so. Gradients are written; a module may write
        to its buffers.

    Returns
    -------
    StackedPass
    """
    layers = [_chain_of(net) for net in nets]
    chains = [chain for chain in layers if chain is not None]
    if len(chains) == len(layers):
        criterion = nets[0].criterion_
        return StackedChain(chains, generators, weights, gradients, criterion)
    return _StackedModule(nets, generators, weights, gradients, buffers)


def _chain_of(net: TableNet) -> list[nn.Module] | None:
    """Return the layers of a chain whose passes are explicit."""
    has_loss = stacked_loss_of(net.criterion_) is not None
    return layers_of(net.module_) if has_loss else None


def _chain_for_table(net: TableNet, table: TensorTable) -> list[nn.Module] | None:
    """Return the layers of a chain whose passes are explicit for a table."""
    loss = stacked_loss_of(net.criterion_)
    if loss is None or not isinstance(table.y, Tensor) or not loss.accepts(table.y):
        return None
    return known_layers(net.module_, net.criterion_, table.X)


def _sizes(layer: nn.Module) -> Hashable:
    if isinstance(layer, nn.Linear):
        return (*layer.weight.shape, layer.bias is not None)
    if isinstance(layer, PeriodicEmbedding):
        return (*layer.weight.shape, *layer.columns.tolist())
    return getattr(layer, "approximate", None)


# -- networks that are no chain of known layers ----------------------------------------


class _MaskedDropout(nn.Module):
    """Dropout by a given mask, which is drawn from the generator of each member."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Any = None

    def forward(self, x: Tensor) -> Any:
        return x * self.mask if self.training else x


def _dropouts_of(module: nn.Module) -> list[tuple[str, nn.Dropout]]:
    found = [(n, m) for n, m in module.named_modules() if type(m) is nn.Dropout]
    return [(name, m) for name, m in found if m.p > 0.0]


def _mask_shapes(net: TableNet, x: Tensor) -> list[tuple[str, torch.Size]] | None:
    """Return the dropout layers in the order of their calls, with their input shapes.

    None if a dropout layer is called twice or not at all.
    """
    module = copy.deepcopy(net.module_).train()
    called: list[tuple[str, torch.Size]] = []
    dropouts = _dropouts_of(module)
    for name, layer in dropouts:
        layer.register_forward_pre_hook(
            lambda _, args, name=name: called.append((name, args[0].shape))
        )
    with kept_random_states():
        module(x)
    is_once = len(called) == len(dropouts) == len(dict(called))
    return called if is_once else None


def _module_key(net: TableNet) -> Hashable | None:
    module, criterion = net.module_, net.criterion_
    tensors = [*module.named_parameters(), *module.named_buffers()]
    is_supported = (
        isinstance(criterion, nn.Module)
        and not any(True for _ in criterion.parameters())
        and all(p.requires_grad and p.is_cpu for p in module.parameters())
        and bool(tensors)
        and not isinstance(module, torch.jit.ScriptModule)
    )
    if not is_supported:
        return None
    options = {k: repr(v) for k, v in vars(criterion).items() if k[:1] != "_"}
    buffers = [b.tolist() for b in criterion.buffers()]
    return (
        type(module),
        repr(module),
        repr(sorted(net.get_params_for("module").items())),
        tuple((name, t.shape, t.dtype) for name, t in tensors),
        (type(criterion), repr(sorted(options.items())), repr(buffers)),
    )


def does_stacking_agree(net: TableNet, table: TensorTable) -> bool:
    """Whether a stacked pass gives the result of a separate one, up to rounding.

    It does not if the operations depend on the values of the data, or on random numbers
    other than those of a dropout layer. A stack of two copies of the network is
    compared with the network on a few rows; chains of known layers need no comparison.

    Parameters
    ----------
    net : TableNet
        Net with a :func:`pass_key`.
    table : TensorTable
        Rows that the net is trained on.

    Returns
    -------
    bool
    """
    if _chain_for_table(net, table) is not None:
        return True
    x, target = table.rows(slice(0, _N_COMPARED))
    doubled = tree_map(lambda leaf: torch.stack([leaf, leaf]), (x, target))
    clone = copy.copy(net)
    clone.__dict__["module_"] = copy.deepcopy(net.module_).train()
    tensors = [list(clone.module_.parameters()), list(clone.module_.buffers())]
    weights, buffers = ([torch.stack([t.detach()] * 2) for t in ts] for ts in tensors)
    gradients = [torch.empty_like(w) for w in weights]
    generators = [torch.Generator() for _ in range(2)]
    for generator in generators:
        generator.manual_seed(0)
    try:
        stacked = _StackedModule([clone] * 2, generators, weights, gradients, buffers)
        with torch.no_grad():
            losses, _ = stacked.step(*doubled)
        with seeded(0, "cpu"):
            outputs = clone.module_(x.clone())
            loss = clone.get_loss(outputs, target)
            loss.backward()  # type: ignore[no-untyped-call]
    except Exception:  # a user's module may raise anything that vmap causes
        return False
    pairs = [(torch.as_tensor(losses[0]), loss.detach())]
    pairs += [
        (gradient[0], p.grad if p.grad is not None else torch.zeros_like(p))
        for gradient, p in zip(gradients, clone.module_.parameters(), strict=True)
    ]
    return all(
        bool(torch.allclose(stacked, separate, rtol=_RTOL, atol=_ATOL))
        for stacked, separate in pairs
    )


class _StackedModule:
    """Passes of any module that ``torch.func`` supports, for all members.

    Parameters
    ----------
    nets, generators, weights, gradients, buffers
        As in :func:`stacked_pass`.
    """

    def __init__(
        self,
        nets: list[TableNet],
        generators: list[torch.Generator],
        weights: list[Tensor],
        gradients: list[Tensor],
        buffers: list[Tensor],
    ) -> None:
        net = nets[0]
        self.nets = nets
        self.generators = generators
        self.get_loss = net.get_loss
        self.module = copy.deepcopy(net.module_)
        names = [name for name, _ in self.module.named_parameters()]
        self.weights = dict(zip(names, weights, strict=True))
        self.gradients = dict(zip(names, gradients, strict=True))
        names = [name for name, _ in self.module.named_buffers()]
        self.buffers = dict(zip(names, buffers, strict=True))
        self.dropouts: dict[str, _MaskedDropout] = {}
        for name, _ in _dropouts_of(self.module):
            self.dropouts[name] = _MaskedDropout()
            parent, _, attribute = name.rpartition(".")
            setattr(self.module.get_submodule(parent), attribute, self.dropouts[name])
        self.mask_shapes: dict[torch.Size, list[tuple[str, torch.Size]]] = {}

    def _masks(self, x: Tensor) -> dict[str, Tensor]:
        """Draw the dropout masks of all members, in the order of the layers' calls."""
        if not self.dropouts:
            return {}
        shape = x.shape[1:]
        if shape not in self.mask_shapes:
            found = _mask_shapes(self.nets[0], x[0])
            if found is None:
                raise ValueError("A dropout layer is used twice or not at all.")
            self.mask_shapes[shape] = found
        masks = {n: x.new_empty(len(x), *s) for n, s in self.mask_shapes[shape]}
        for k, (net, generator) in enumerate(
            zip(self.nets, self.generators, strict=True)
        ):
            for name, mask in masks.items():
                kept = 1.0 - net.module_.get_submodule(name).p
                mask[k].bernoulli_(kept, generator=generator).div_(kept)
        return masks

    def _loss(
        self,
        weights: dict[str, Tensor],
        buffers: dict[str, Tensor],
        masks: dict[str, Tensor],
        x: Tensor,
        target: Any,
    ) -> tuple[Tensor, Tensor]:
        for name, mask in masks.items():
            self.dropouts[name].mask = mask
        output = functional_call(self.module, (weights, buffers), (x,))
        loss: Tensor = self.get_loss(output, target)
        first = output[0] if isinstance(output, (tuple, list)) else output
        return loss, first

    def prepare_target(self, target: Any, shape: torch.Size) -> Any:
        """Return the targets unchanged."""
        return target

    def step(self, x: Tensor, target: Any) -> tuple[NDArray[Any], Tensor]:
        """Write the gradients, and return losses (K,) and outputs (K, B, ...)."""
        self.module.train()
        compute = vmap(grad_and_value(self._loss, has_aux=True), randomness="error")
        gradients, (losses, output) = compute(
            self.weights, self.buffers, self._masks(x), x, target
        )
        for name, gradient in gradients.items():
            self.gradients[name].copy_(gradient)
        return losses.numpy(), output

    def evaluate(self, x: Tensor, target: Any) -> NDArray[Any]:
        """Return losses (K,) in evaluation mode."""
        self.module.eval()
        losses, _ = vmap(self._loss, randomness="error")(
            self.weights, self.buffers, {}, x, target
        )
        return losses.numpy()
