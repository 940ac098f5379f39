"""Chains of known layers, passed for many networks at once.

Each operation is one call for all slices, and what a slice computes depends neither on
the others nor on their number. In a small network the calls take longer to lead up to
than to run: so the way of a batch is laid out once, as a list of calls with all their
arguments, which read and write memory that is theirs. Weights are kept the way in which
their products are fastest: those of the hidden layers with the inputs first; those of
the last layer with the outputs first, whose few logits then lie side by side for all
rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from sknan._engine.losses import StackedLoss, loss_of
from sknan.nets._chain import ACTIVATIONS
from sknan.nets._tabular_mlp import PeriodicEmbedding

__all__ = ["StackedChain", "transposed_weights"]

_aten = torch.ops.aten

_Call = Callable[[], object]


# -- products --------------------------------------------------------------------------

# A product rounds otherwise where its result does not begin at so many numbers.
_ALIGNED = 16


def _product(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> _Call:
    """Of the matrices of each slice, plus a bias; to the bit that of a slice alone."""
    if out[0].numel() % _ALIGNED:
        return partial(_product_one_by_one, a, b, out, bias)
    if bias is None:
        return partial(torch.bmm, a, b, out=out)
    return partial(torch.baddbmm, bias, a, b, out=out)


def _product_one_by_one(a: Tensor, b: Tensor, out: Tensor, bias: Any) -> None:
    slices = zip(a, b, strict=True)
    if bias is None:
        torch.stack([x.mm(y) for x, y in slices], out=out)
        return
    triples = zip(bias, slices, strict=True)
    torch.stack([torch.addmm(own, x, y) for own, (x, y) in triples], out=out)


# -- layers ----------------------------------------------------------------------------
#
# A layer appends its calls to a list and says where they leave what they find: first
# those of the way forth, then those of the way back over the same batch.


class _StackedLinear:
    """A hidden layer; weights (K, in, out), inputs (K, B, in), outputs (K, B, out)."""

    rows_axis = 1  # of the outputs

    def __init__(self, weight: tuple[Tensor, Tensor], bias: Any) -> None:
        self.weight, self.weight_grad = weight
        bias, self.bias_grad = bias
        self.bias = None if bias is None else bias.unsqueeze(self.rows_axis)

    def forward(self, x: Tensor, calls: list[_Call]) -> Tensor:
        self.x = x
        output = x.new_empty(len(x), x.shape[1], self.weight.shape[2])
        calls.append(_product(x, self.weight, output, self.bias))
        return output

    def backward(
        self, grad: Tensor, needs_input: bool, calls: list[_Call]
    ) -> Tensor | None:
        calls.append(_product(self.x.transpose(1, 2), grad, self.weight_grad))
        self._sum_bias_grad(grad, calls)
        if not needs_input:
            return None
        found = torch.empty_like(self.x)
        calls.append(_product(grad, self.weight.transpose(1, 2), found))
        return found

    def _sum_bias_grad(self, grad: Tensor, calls: list[_Call]) -> None:
        if self.bias_grad is not None:
            calls.append(partial(torch.sum, grad, self.rows_axis, out=self.bias_grad))


class _StackedOutput(_StackedLinear):
    """A last layer; weights (K, out, in), inputs (K, B, in), outputs (K, out, B)."""

    rows_axis = 2

    def forward(self, x: Tensor, calls: list[_Call]) -> Tensor:
        self.x = x
        output = x.new_empty(len(x), self.weight.shape[1], x.shape[1])
        calls.append(_product(self.weight, x.transpose(1, 2), output, self.bias))
        return output

    def backward(
        self, grad: Tensor, needs_input: bool, calls: list[_Call]
    ) -> Tensor | None:
        calls.append(_product(grad, self.x, self.weight_grad))
        self._sum_bias_grad(grad, calls)
        if not needs_input:
            return None
        found = torch.empty_like(self.x)
        calls.append(_product(grad.transpose(1, 2), self.weight, found))
        return found


class _Transpose:
    """Puts the rows last where the last layer has not done so."""

    def forward(self, x: Tensor, calls: list[_Call]) -> Tensor:
        return _copied(x.transpose(1, 2), calls)

    def backward(self, grad: Tensor, needs_input: bool, calls: list[_Call]) -> Tensor:
        return _copied(grad.transpose(1, 2), calls)


def _copied(source: Tensor, calls: list[_Call]) -> Tensor:
    place = torch.empty(source.shape, dtype=source.dtype)
    calls.append(partial(place.copy_, source))
    return place


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

    def forward(self, x: Tensor, calls: list[_Call]) -> Tensor:
        output = x.new_empty(len(x), *self._pass(0, x[0]).shape)
        calls.append(partial(self._forward, x, output))
        return output

    def _pass(self, k: int, x: Tensor) -> Tensor:
        output: Tensor = functional_call(self.module, self.weights[k], (x,))
        return output

    def _forward(self, x: Tensor, output: Tensor) -> None:
        with torch.enable_grad():
            self.outputs = [self._pass(k, own) for k, own in enumerate(x)]
        torch.stack([its.detach() for its in self.outputs], out=output)

    def backward(self, grad: Tensor, needs_input: bool, calls: list[_Call]) -> None:
        calls.append(partial(self._backward, grad))

    def _backward(self, grad: Tensor) -> None:
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

    def forward(self, x: Tensor, calls: list[_Call]) -> Tensor:
        y = torch.empty_like(x)
        calls.append(lambda: y.copy_(self.function(self.module, x)))
        self.kept = y if self.is_of_output else x
        return y

    def backward(
        self, grad: Tensor, needs_input: bool, calls: list[_Call]
    ) -> Tensor | None:
        if not needs_input:
            return None
        kept, found = self.kept, torch.empty_like(grad)
        calls.append(lambda: found.copy_(self.slope(self.module, grad, kept)))
        return found


class _StackedReLU:
    """In the place of a linear layer's output and of its gradient."""

    def forward(self, x: Tensor, calls: list[_Call]) -> Tensor:
        self.kept = x
        calls.append(partial(torch.relu_, x))
        return x

    def backward(self, grad: Tensor, needs_input: bool, calls: list[_Call]) -> Tensor:
        slope = _aten.threshold_backward.grad_input
        calls.append(partial(slope, grad, self.kept, 0, grad_input=grad))
        return grad


class _StackedDropout:
    """Each slice draws its mask from its own generator, as it would by itself."""

    def __init__(self, shares: list[float], generators: list[torch.Generator]) -> None:
        self.kept = [1.0 - share for share in shares]
        self.generators = generators

    def forward(self, x: Tensor, calls: list[_Call]) -> Tensor:
        self.noise, output = torch.empty_like(x), torch.empty_like(x)
        calls.append(partial(self._draw, self.noise))
        calls.append(partial(torch.mul, x, self.noise, out=output))
        return output

    def _draw(self, noise: Tensor) -> None:
        for own, kept, generator in zip(noise, self.kept, self.generators, strict=True):
            own.bernoulli_(kept, generator=generator).div_(kept)

    def backward(
        self, grad: Tensor, needs_input: bool, calls: list[_Call]
    ) -> Tensor | None:
        if not needs_input:
            return None
        found = torch.empty_like(grad)
        calls.append(partial(torch.mul, grad, self.noise, out=found))
        return found


# -- a chain of them ------------------------------------------------------------------


def transposed_weights(layers: list[nn.Module]) -> list[bool]:
    """Which weights a :class:`StackedChain` of these layers wants transposed.

    Parameters
    ----------
    layers : list of nn.Module
        Of one network.

    Returns
    -------
    list of bool
        In the order of the parameters.
    """
    return [
        isinstance(layer, nn.Linear) and layer is not layers[-1] and name == "weight"
        for layer in layers
        for name, _ in layer.named_parameters()
    ]


class _CompiledPass(NamedTuple):
    """The calls of a step over inputs ``x``, and where they leave what they find."""

    x: Tensor
    forward: list[_Call]
    loss: StackedLoss
    backward: list[_Call]
    output: Tensor


class StackedChain:
    """A chain of known layers and a known loss, for all slices.

    Parameters
    ----------
    layers : list of list of nn.Module
        Of each slice.
    generators : list of Generator
        That each slice draws its random numbers from.
    weights, gradients : list of Tensor
        Blocks with the slices along the first axis, in the order of the parameters.
    criterion : nn.Module
        That has a :func:`loss_of`.
    """

    def __init__(
        self,
        layers: list[Any],
        generators: list[torch.Generator],
        weights: list[Tensor],
        gradients: list[Tensor],
        criterion: nn.Module,
    ) -> None:
        self.loss: Any = loss_of(criterion)
        blocks = iter(zip(weights, gradients, strict=True))
        n_outputs = next(la.out_features for la in layers[0][::-1] if _is_linear(la))
        self.like = weights[0].new_empty(0, n_outputs)
        self.layers: list[Any] = []
        columns = list(zip(*layers, strict=True))
        for i, own in enumerate(columns):
            first = own[0]
            if _is_linear(first):
                weight = next(blocks)
                bias = next(blocks) if first.bias is not None else (None, None)
                is_last = i == len(columns) - 1
                place = _StackedOutput if is_last else _StackedLinear
                self.layers.append(place(weight, bias))
            elif isinstance(first, PeriodicEmbedding):
                of_it = [next(blocks) for _ in first.parameters()]
                self.layers.append(_StackedEmbedding(first, of_it))
            elif isinstance(first, nn.Dropout):
                shares = [layer.p for layer in own]
                self.layers.append(_StackedDropout(shares, generators))
            elif isinstance(first, nn.ReLU) and i and _is_linear(columns[i - 1][0]):
                self.layers.append(_StackedReLU())
            else:
                self.layers.append(_StackedActivation(first))
        weighted = (_StackedLinear, _StackedEmbedding)
        self.first = [isinstance(layer, weighted) for layer in self.layers].index(True)
        if not isinstance(self.layers[-1], _StackedOutput):
            self.layers.append(_Transpose())
        self.ways: dict[int, _CompiledPass] = {}

    def prepared(self, target: Tensor, shape: torch.Size) -> Tensor:
        """Targets of rows (..., K, B) as ``step`` takes them."""
        prepared: Tensor = self.loss.prepared(target, shape, self.like)
        return prepared

    def step(self, x: Tensor, target: Tensor) -> tuple[NDArray[Any], Tensor]:
        """Losses and outputs; the gradients are left in their blocks.

        Inputs that come in the same tensor as others before take the same way.
        """
        way = self.ways.get(id(x))
        if way is None:
            way = self.ways[id(x)] = self._way_of(x)
        for call in way.forward:
            call()
        losses: NDArray[Any] = way.loss.evaluate(target)
        for call in way.backward:
            call()
        return losses, way.output

    def _way_of(self, x: Tensor) -> _CompiledPass:
        forward: list[_Call] = []
        backward: list[_Call] = []
        output = x
        for layer in self.layers:
            output = layer.forward(output, forward)
        loss = self.loss(output)
        grad = loss.grad
        for i in range(len(self.layers) - 1, self.first - 1, -1):
            grad = self.layers[i].backward(grad, i > self.first, backward)
        return _CompiledPass(x, forward, loss, backward, output.transpose(1, 2))

    def evaluate(self, x: Tensor, target: Tensor) -> NDArray[Any]:
        """Losses in evaluation mode."""
        calls: list[_Call] = []
        output = x
        for layer in self.layers:
            if not isinstance(layer, _StackedDropout):
                output = layer.forward(output, calls)
        for call in calls:
            call()
        prepared = self.prepared(target, x.shape[:2])
        losses: NDArray[Any] = self.loss(output).evaluate(prepared)
        return losses


def _is_linear(layer: Any) -> bool:
    return isinstance(layer, nn.Linear)
