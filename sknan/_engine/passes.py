"""Forward and backward pass of many networks of one shape at once.

Chains of known layers are written out in :mod:`sknan._engine.chain`; any other network
goes through ``torch.func``.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from sknan._engine.chain import StackedChain, transposed_weights
from sknan._engine.losses import loss_of
from sknan._utils.tree import tree_map
from sknan.nets._batching import TensorTable
from sknan.nets._chain import known_layers, layers_of
from sknan.nets._tabular_mlp import PeriodicEmbedding

__all__ = ["are_transposed", "can_be_passed", "kind_of_pass", "stacked_pass"]


def kind_of_pass(net: Any, table: TensorTable) -> Hashable | None:
    """What networks have in common that can be passed together; None if none can.

    Parameters
    ----------
    net : TableNet
        Initialized.
    table : TensorTable
        Rows that it is trained on.

    Returns
    -------
    hashable or None
    """
    layers = _chain_of(net, table)
    if layers is not None:
        sizes = tuple((type(layer), _sizes(layer)) for layer in layers)
        return "chain", sizes, type(net.criterion_)
    return _kind_of_module(net)


def are_transposed(net: Any) -> list[bool]:
    """Which weights of a network :func:`stacked_pass` wants transposed.

    Parameters
    ----------
    net : TableNet
        That has a :func:`kind_of_pass`.

    Returns
    -------
    list of bool
        In the order of its parameters.
    """
    layers = _layers_of_chain(net)
    if layers is not None:
        return transposed_weights(layers)
    return [False for _ in net.module_.parameters()]


def stacked_pass(
    nets: list[Any],
    generators: list[torch.Generator],
    weights: list[Tensor],
    gradients: list[Tensor],
    buffers: list[Tensor],
) -> Any:
    """The two passes of networks of one :func:`kind_of_pass`.

    Parameters
    ----------
    nets : list of TableNet
        Of the slices.
    generators : list of Generator
        That each slice draws its random numbers from.
    weights, gradients, buffers : list of Tensor
        Blocks with the slices along the first axis, in the order of the parameters and
        buffers of a network, transposed where :func:`are_transposed` says so. Gradients
        are written, buffers may be.

    Returns
    -------
    object
        With ``prepared(target, shape)``, which brings the targets of rows, in a tensor
        of that shape (..., K, B), into the form that ``step`` takes; ``step(x,
        target)``, which gives losses, an array (K,), and outputs (K, B, ...) and leaves
        the gradients in their blocks; and ``evaluate(x, target)``, which gives losses.
        Losses and outputs hold until the next call.
    """
    layers = [_layers_of_chain(net) for net in nets]
    if all(its is not None for its in layers):
        criterion = nets[0].criterion_
        return StackedChain(layers, generators, weights, gradients, criterion)
    return _StackedModule(nets, generators, weights, gradients, buffers)


def _layers_of_chain(net: Any) -> list[Any] | None:
    return None if loss_of(net.criterion_) is None else layers_of(net.module_)


def _chain_of(net: Any, table: TensorTable) -> list[nn.Module] | None:
    """The layers of a chain that is written out, for this table."""
    loss = loss_of(net.criterion_)
    if loss is None or not isinstance(table.y, Tensor) or not loss.takes(table.y):
        return None
    return known_layers(net.module_, net.criterion_, table.X)


def _sizes(layer: nn.Module) -> Any:
    if isinstance(layer, nn.Linear):
        return (*layer.weight.shape, layer.bias is not None)
    if isinstance(layer, PeriodicEmbedding):
        return (*layer.weight.shape, *layer.columns.tolist())
    return getattr(layer, "approximate", None)


# -- any other network -----------------------------------------------------------------


class _Masked(nn.Module):
    """Dropout by a mask that is drawn outside: each slice has its own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Any = None

    def forward(self, x: Tensor) -> Any:
        return x * self.mask if self.training else x


def _dropouts_of(module: nn.Module) -> list[tuple[str, nn.Dropout]]:
    found = [(n, m) for n, m in module.named_modules() if type(m) is nn.Dropout]
    return [(name, m) for name, m in found if m.p > 0.0]


def _mask_shapes(net: Any, x: Tensor) -> list[tuple[str, torch.Size]] | None:
    """Dropout layers in the order of their use, with the shape of what comes in.

    None if one of them is used twice, or not at all.
    """
    module = copy.deepcopy(net.module_).train()
    seen: list[tuple[str, torch.Size]] = []
    dropouts = _dropouts_of(module)
    for name, layer in dropouts:
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.append((name, args[0].shape))
        )
    with torch.random.fork_rng(devices=[]):
        module(x)
    return seen if len(seen) == len(dropouts) == len(dict(seen)) else None


def _kind_of_module(net: Any) -> Hashable | None:
    module, criterion = net.module_, net.criterion_
    tensors = [*module.named_parameters(), *module.named_buffers()]
    is_usual = (
        isinstance(criterion, nn.Module)
        and not any(True for _ in criterion.parameters())
        and all(p.requires_grad and p.is_cpu for p in module.parameters())
        and bool(tensors)
        and not isinstance(module, torch.jit.ScriptModule)
    )
    if not is_usual:
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


# Rows that networks are tried on, and how far a loss may be off.
_N_TRIED = 8
_ROUNDING = 1e-4


def can_be_passed(net: Any, table: TensorTable) -> bool:
    """Whether two of a network at once do what it does alone, to rounding.

    They do not where the way of the data depends on the data, or on random numbers that
    are not those of a dropout layer. It is tried on a few rows.

    Parameters
    ----------
    net : TableNet
        That has a :func:`kind_of_pass`.
    table : TensorTable
        Rows that it is trained on.

    Returns
    -------
    bool
    """
    if _chain_of(net, table) is not None:
        return True
    x, target = table.rows(slice(0, _N_TRIED))
    twin = copy.copy(net)
    vars(twin)["module_"] = copy.deepcopy(net.module_).train()
    tensors = [list(twin.module_.parameters()), list(twin.module_.buffers())]
    weights, buffers = ([torch.stack([t.detach()] * 2) for t in ts] for ts in tensors)
    gradients = [torch.empty_like(w) for w in weights]
    state = torch.get_rng_state()
    generators = [torch.Generator() for _ in range(2)]
    for generator in generators:
        generator.set_state(state)
    try:
        stacked = _StackedModule([twin] * 2, generators, weights, gradients, buffers)
        with torch.no_grad():
            losses, _ = stacked.step(*_doubled((x, target)))
        with torch.random.fork_rng(devices=[]):
            outputs = twin.module_(x.clone())
            loss = twin.get_loss(outputs, target)
            loss.backward()
    except Exception:  # whatever a module of somebody else's does not bear
        return False
    pairs = [(torch.as_tensor(losses[0]), loss.detach())]
    pairs += [
        (ours[0], p.grad if p.grad is not None else torch.zeros_like(p))
        for ours, p in zip(gradients, twin.module_.parameters(), strict=True)
    ]
    return all(
        bool(torch.allclose(ours, its, rtol=_ROUNDING, atol=1e-6))
        for ours, its in pairs
    )


def _doubled(rows: Any) -> Any:
    return tree_map(lambda leaf: torch.stack([leaf, leaf]), rows)


class _StackedModule:
    """Any network that ``torch.func`` can pass, for all slices."""

    def __init__(
        self,
        nets: list[Any],
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
        self.masked: dict[str, _Masked] = {}
        for name, _ in _dropouts_of(self.module):
            self.masked[name] = _Masked()
            parent, _, own = name.rpartition(".")
            setattr(self.module.get_submodule(parent), own, self.masked[name])
        self.shapes: dict[torch.Size, list[tuple[str, torch.Size]]] = {}

    def _masks(self, x: Tensor) -> dict[str, Tensor]:
        if not self.masked:
            return {}
        shape = x.shape[1:]
        if shape not in self.shapes:
            found = _mask_shapes(self.nets[0], x[0])
            if found is None:
                raise ValueError("A dropout layer is used twice or not at all.")
            self.shapes[shape] = found
        masks = {n: x.new_empty(len(x), *its) for n, its in self.shapes[shape]}
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
            self.masked[name].mask = mask
        output = functional_call(self.module, (weights, buffers), (x,))
        loss: Tensor = self.get_loss(output, target)
        first = output[0] if isinstance(output, (tuple, list)) else output
        return loss, first

    def prepared(self, target: Any, shape: torch.Size) -> Any:
        """Targets as ``step`` takes them."""
        return target

    def step(self, x: Tensor, target: Any) -> tuple[NDArray[Any], Tensor]:
        """Losses and outputs; the gradients are left in their blocks."""
        self.module.train()
        passes = vmap(grad_and_value(self._loss, has_aux=True), randomness="error")
        found, (losses, output) = passes(
            self.weights, self.buffers, self._masks(x), x, target
        )
        for name, gradient in found.items():
            self.gradients[name].copy_(gradient)
        return losses.numpy(), output

    def evaluate(self, x: Tensor, target: Any) -> NDArray[Any]:
        """Losses in evaluation mode."""
        self.module.eval()
        losses, _ = vmap(self._loss, randomness="error")(
            self.weights, self.buffers, {}, x, target
        )
        found: NDArray[Any] = losses.numpy()
        return found
