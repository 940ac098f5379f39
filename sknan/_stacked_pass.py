"""Forward and backward pass of many networks of one shape at once.

Chains of known layers are written out here, with products and kernels that round each
slice as a training by itself does. Any other network goes through ``torch.func``: to
the same results, but for rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from sknan._layerwise import ACTIVATIONS, layers_of, layerwise_pass
from sknan.batching import TensorTable, tree_map
from sknan.losses import CrossEntropyLoss, MSELoss
from sknan.modules import PeriodicEmbedding

__all__ = ["can_be_passed", "kind_of_pass", "stacked_pass"]

_aten = torch.ops.aten


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
    if _is_chain(net, table.X, table.y):
        layers = layers_of(net.module_) or []
        sizes = tuple((type(layer), _sizes(layer)) for layer in layers)
        return "chain", sizes, type(net.criterion_)
    return _kind_of_module(net)


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
        buffers of a network. Gradients are written, buffers may be.

    Returns
    -------
    object
        With ``step(x, target)``, which gives losses (K,) and outputs (K, B, ...), and
        ``evaluate(x, target)``, which gives losses.
    """
    layers = [layers_of(net.module_) for net in nets]
    loss_of = _loss_of(nets[0].criterion_)
    if loss_of is not None and all(its is not None for its in layers):
        return _StackedChain(layers, generators, weights, gradients, loss_of)
    return _StackedModule(nets, generators, weights, gradients, buffers)


def _is_chain(net: Any, X: Any, y: Any) -> bool:
    loss_of = _loss_of(net.criterion_)
    if loss_of is None or not isinstance(y, Tensor):
        return False
    if loss_of is _cross_entropy and (y.ndim != 1 or y.dtype != torch.int64):
        return False
    return layerwise_pass(net.module_, net.criterion_, X) is not None


def _sizes(layer: nn.Module) -> Any:
    if isinstance(layer, nn.Linear):
        return (*layer.weight.shape, layer.bias is not None)
    if isinstance(layer, PeriodicEmbedding):
        return (*layer.weight.shape, *layer.columns.tolist())
    return getattr(layer, "approximate", None)


# -- losses: value of each slice, and gradient of the output ---------------------------


def _cross_entropy(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the rows of each slice; logits (K, B, C), codes (K, B)."""
    n_slices, n_rows, n_classes = output.shape
    logs = torch.log_softmax(output.reshape(-1, n_classes), 1)
    codes = target.reshape(-1)
    losses, total = _aten.nll_loss_forward.default(logs, codes, None, 0, -100)
    share = torch.full_like(losses, 1.0 / n_rows)
    grad = _aten.nll_loss_backward.default(share, logs, codes, None, 0, -100, total)
    grad = _aten._log_softmax_backward_data.default(grad, logs, 1, output.dtype)
    return losses.view(n_slices, n_rows).mean(1), grad.view_as(output)


def _squared_error(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over rows and outputs of each slice; both (K, B, ...)."""
    difference = output - target.view_as(output)
    n_values = difference[0].numel()
    losses = difference.square().flatten(1).mean(1)
    return losses, difference.mul_(2.0 / n_values)


def _loss_of(criterion: Any) -> Any:
    """The loss of stacked outputs, if it is written out here."""
    if type(criterion) in (CrossEntropyLoss, nn.CrossEntropyLoss):
        is_plain = (
            criterion.weight is None
            and criterion.label_smoothing == 0.0
            and criterion.reduction == "mean"
        )
        return _cross_entropy if is_plain else None
    if type(criterion) in (MSELoss, nn.MSELoss):
        return _squared_error if criterion.reduction == "mean" else None
    return None


# -- layers ----------------------------------------------------------------------------


class _StackedLinear:
    """Linear layers of all slices; weights (K, out, in), inputs (K, B, in)."""

    def __init__(self, weight: tuple[Tensor, Tensor], bias: Any) -> None:
        self.weight, self.weight_grad = weight
        self.weight_t = self.weight.transpose(1, 2)
        self.bias, self.bias_grad = bias

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        if self.bias is None:
            return _product(x, self.weight_t)
        if self.weight.shape[1] == 1 or _is_tiny(x, self.weight_t):
            triples = zip(self.bias, x, self.weight_t, strict=True)
            return torch.stack([torch.addmm(b, own, w) for b, own, w in triples])
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight_t)

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        _product(grad.transpose(1, 2), self.x, out=self.weight_grad)
        if self.bias_grad is not None:
            torch.sum(grad, 1, out=self.bias_grad)
        return _product(grad, self.weight) if needs_input else None


# For products of fewer multiplications, and of one column, torch's batched product
# takes another way than its plain one, and rounds otherwise.
_TINY = 400


def _is_tiny(a: Tensor, b: Tensor) -> bool:
    return a.shape[1] * a.shape[2] * b.shape[2] < _TINY


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Of the matrices of each slice, as a training by itself would round it."""
    if not _is_tiny(a, b):
        return torch.bmm(a, b, out=out)
    return torch.stack([x.mm(y) for x, y in zip(a, b, strict=True)], out=out)


class _StackedEmbedding:
    """Embeddings of numbers: each slice by autograd, as in a training by itself."""

    def __init__(
        self, module: PeriodicEmbedding, blocks: list[tuple[Tensor, Tensor]]
    ) -> None:
        self.module = module
        names = [name for name, _ in module.named_parameters()]
        self.weights = [
            {n: w.requires_grad_() for n, w in zip(names, own, strict=True)}
            for own in zip(*(weight.unbind() for weight, _ in blocks), strict=True)
        ]
        self.places = list(zip(*(grad.unbind() for _, grad in blocks), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            self.outputs = [
                functional_call(self.module, weights, (own,))
                for weights, own in zip(self.weights, x, strict=True)
            ]
        return torch.stack([output.detach() for output in self.outputs])

    def backward(self, grad: Tensor, needs_input: bool) -> None:
        slices = zip(self.outputs, self.weights, self.places, grad, strict=True)
        for output, weights, places, own in slices:
            found = torch.autograd.grad(output, list(weights.values()), own)
            for place, gradient in zip(places, found, strict=True):
                place.copy_(gradient)
        del self.outputs


class _StackedActivation:
    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.function, self.slope, self.is_of_output = ACTIVATIONS[type(module)]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(self.module, x)
        self.kept = y if self.is_of_output else x
        return y

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        if not needs_input:
            return None
        slope: Tensor = self.slope(self.module, grad, self.kept)
        return slope


class _StackedDropout:
    """Each slice draws its mask from its own generator, as it would by itself."""

    def __init__(self, shares: list[float], generators: list[torch.Generator]) -> None:
        self.shares = shares
        self.generators = generators

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.empty_like(x)
        for own, p, generator in zip(noise, self.shares, self.generators, strict=True):
            own.bernoulli_(1.0 - p, generator=generator).div_(1.0 - p)
        self.noise = noise
        return x * noise

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        return grad * self.noise if needs_input else None


# -- a chain of them ------------------------------------------------------------------


class _StackedChain:
    """A chain of known layers and a known loss, for all slices."""

    def __init__(
        self,
        layers: list[Any],
        generators: list[torch.Generator],
        weights: list[Tensor],
        gradients: list[Tensor],
        loss_of: Any,
    ) -> None:
        self.loss_of = loss_of
        blocks = iter(zip(weights, gradients, strict=True))
        self.layers: list[Any] = []
        for own in zip(*layers, strict=True):
            first = own[0]
            if isinstance(first, nn.Linear):
                weight = next(blocks)
                bias = next(blocks) if first.bias is not None else (None, None)
                self.layers.append(_StackedLinear(weight, bias))
            elif isinstance(first, PeriodicEmbedding):
                of_it = [next(blocks) for _ in first.parameters()]
                self.layers.append(_StackedEmbedding(first, of_it))
            elif isinstance(first, nn.Dropout):
                self.layers.append(
                    _StackedDropout([layer.p for layer in own], generators)
                )
            else:
                self.layers.append(_StackedActivation(first))
        weighted = (_StackedLinear, _StackedEmbedding)
        self.first = [isinstance(layer, weighted) for layer in self.layers].index(True)

    def _forward(self, x: Tensor, *, training: bool) -> Tensor:
        for layer in self.layers:
            if training or not isinstance(layer, _StackedDropout):
                x = layer.forward(x)
        return x

    def step(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and outputs; the gradients are left in their blocks."""
        output = self._forward(x, training=True)
        losses, grad = self.loss_of(output, target)
        for i in range(len(self.layers) - 1, self.first - 1, -1):
            grad = self.layers[i].backward(grad, i > self.first)
        return losses, output

    def evaluate(self, x: Tensor, target: Tensor) -> Tensor:
        """Losses in evaluation mode."""
        losses: Tensor = self.loss_of(self._forward(x, training=False), target)[0]
        return losses


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
    if _is_chain(net, table.X, table.y):
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
    pairs = [(losses[0], loss.detach())]
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

    def step(self, x: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        """Losses and outputs; the gradients are left in their blocks."""
        self.module.train()
        passes = vmap(grad_and_value(self._loss, has_aux=True), randomness="error")
        found, (losses, output) = passes(
            self.weights, self.buffers, self._masks(x), x, target
        )
        for name, gradient in found.items():
            self.gradients[name].copy_(gradient)
        return losses, output

    def evaluate(self, x: Tensor, target: Any) -> Tensor:
        """Losses in evaluation mode."""
        self.module.eval()
        losses, _ = vmap(self._loss, randomness="error")(
            self.weights, self.buffers, {}, x, target
        )
        loss: Tensor = losses
        return loss
