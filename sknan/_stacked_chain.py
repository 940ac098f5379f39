"""Chains of known layers, passed for many networks at once.

Each operation is one call for all slices, into memory that is laid out beforehand, and
what a slice computes depends neither on the others nor on their number. Weights are
kept the way in which their products are fastest: those of the hidden layers with the
inputs first; those of the last layer with the outputs first, whose few logits then lie
side by side for all rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sknan._layerwise import ACTIVATIONS
from sknan.losses import CrossEntropyLoss, MSELoss
from sknan.modules import PeriodicEmbedding

__all__ = ["StackedChain", "loss_of", "turned_weights"]

_aten = torch.ops.aten


# -- losses ----------------------------------------------------------------------------


class _CrossEntropy:
    """Mean cross-entropy of each slice; logits (K, C, B), class codes (K, B)."""

    shape: Any = None

    @staticmethod
    def takes(y: Tensor) -> bool:
        """Whether these are targets that it knows."""
        return y.ndim == 1 and y.dtype == torch.int64

    def prepared(self, target: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
        """Gradient of the loss by the logarithms of the probabilities."""
        *slices, n_rows = shape
        shares = like.new_zeros(*slices, like.shape[1], n_rows)
        return shares.scatter_(-2, target.view(*slices, 1, n_rows), -1.0 / n_rows)

    def value_and_grad(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (K,), and the gradient of the output."""
        if output.shape != self.shape:
            self._lay_out(output)
        logs = torch.log_softmax(output, 1)
        torch.mul(logs, target, out=self.terms)
        torch.sum(self.rows_of_terms, 1, out=self.losses)
        torch._log_softmax_backward_data(target, logs, 1, output.dtype, out=self.grad)
        return self.losses, self.grad

    def _lay_out(self, output: Tensor) -> None:
        """Take memory for batches like this one."""
        self.shape = output.shape
        self.terms, self.grad = torch.empty_like(output), torch.empty_like(output)
        self.rows_of_terms = self.terms.flatten(1)
        self.losses = output.new_empty(len(output))


class _SquaredError:
    """Mean of rows and outputs of each slice; both (K, n_outputs, B)."""

    @staticmethod
    def takes(y: Tensor) -> bool:
        """Whether these are targets that it knows."""
        return y.is_floating_point()

    def prepared(self, target: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
        """With the rows last."""
        return target.view(*shape, like.shape[1]).transpose(-1, -2).contiguous()

    def value_and_grad(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (K,), and the gradient of the output."""
        grad = output - target
        losses = grad.square().mean((1, 2))
        return losses, grad.mul_(2.0 / (grad.shape[1] * grad.shape[2]))


def loss_of(criterion: Any) -> type[_CrossEntropy | _SquaredError] | None:
    """The loss of stacked outputs, if it is written out here.

    Parameters
    ----------
    criterion : nn.Module
        Any.

    Returns
    -------
    type or None
    """
    if type(criterion) in (CrossEntropyLoss, nn.CrossEntropyLoss):
        is_plain = (
            criterion.weight is None
            and criterion.label_smoothing == 0.0
            and criterion.reduction == "mean"
        )
        return _CrossEntropy if is_plain else None
    if type(criterion) in (MSELoss, nn.MSELoss):
        return _SquaredError if criterion.reduction == "mean" else None
    return None


# -- products --------------------------------------------------------------------------

# A product rounds otherwise where its result does not begin at so many numbers.
_ALIGNED = 16


def _product(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of the matrices of each slice, plus a bias."""
    if bias is None:
        return torch.bmm(a, b, out=out)
    return torch.baddbmm(bias, a, b, out=out)


def _product_one_by_one(
    a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The same, each rounded as if there were no other."""
    slices = zip(a, b, strict=True)
    if bias is None:
        return torch.stack([x.mm(y) for x, y in slices], out=out)
    triples = zip(bias, slices, strict=True)
    return torch.stack([torch.addmm(own, x, y) for own, (x, y) in triples], out=out)


_Product = Callable[..., Tensor]


# -- layers ----------------------------------------------------------------------------


class _StackedLinear:
    """A hidden layer; weights (K, in, out), inputs (K, B, in), outputs (K, B, out)."""

    rows_axis = 1  # of the outputs

    def __init__(self, weight: tuple[Tensor, Tensor], bias: Any) -> None:
        self.weight, self.weight_grad = weight
        self.weight_t = self.weight.transpose(1, 2)
        bias, self.bias_grad = bias
        self.bias = None if bias is None else bias.unsqueeze(self.rows_axis)
        self.shape: Any = None
        self.x: Any = None
        self.to_weight: _Product = _way_of_product(self.weight_grad)

    def forward(self, x: Tensor) -> Tensor:
        self._take(x, x.shape[1], self.weight.shape[2])
        return self.to_output(x, self.weight, self.output, self.bias)

    def _take(self, x: Tensor, *output_shape: int) -> None:
        """Keep an input, and take memory if there were none like it."""
        if x is self.x:
            return
        self.x, self.x_t = x, x.transpose(1, 2)
        if x.shape != self.shape:
            self.shape = x.shape
            self.output = x.new_empty(len(x), *output_shape)
            self.to_output: _Product = _way_of_product(self.output)
            self.input_grad = torch.empty_like(x)
            self.to_input: _Product = _way_of_product(self.input_grad)

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        self.to_weight(self.x_t, grad, self.weight_grad)
        self._sum_bias_grad(grad)
        if not needs_input:
            return None
        return self.to_input(grad, self.weight_t, self.input_grad)

    def _sum_bias_grad(self, grad: Tensor) -> None:
        if self.bias_grad is not None:
            torch.sum(grad, self.rows_axis, out=self.bias_grad)


class _StackedOutput(_StackedLinear):
    """A last layer; weights (K, out, in), inputs (K, B, in), outputs (K, out, B)."""

    rows_axis = 2

    def forward(self, x: Tensor) -> Tensor:
        self._take(x, self.weight.shape[1], x.shape[1])
        return self.to_output(self.weight, self.x_t, self.output, self.bias)

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        self.to_weight(grad, self.x, self.weight_grad)
        self._sum_bias_grad(grad)
        if not needs_input:
            return None
        return self.to_input(grad.transpose(1, 2), self.weight, self.input_grad)


def _way_of_product(out: Tensor) -> _Product:
    """How to come to a product so that it is that of each slice alone, to the bit."""
    return _product_one_by_one if out[0].numel() % _ALIGNED else _product


class _Turn:
    """Puts the rows last where the last layer has not done so."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor:
        return grad.transpose(1, 2).contiguous()


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


class _StackedReLU:
    """In the place of a linear layer's output and of its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = torch.relu_(x)
        return x

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor:
        _aten.threshold_backward.grad_input(grad, self.kept, 0, grad_input=grad)
        return grad


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


def turned_weights(layers: list[nn.Module]) -> list[bool]:
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
        kind: Any = loss_of(criterion)
        self.loss = kind()
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
            self.layers.append(_Turn())

    def _forward(self, x: Tensor, *, training: bool) -> Tensor:
        for layer in self.layers:
            if training or not isinstance(layer, _StackedDropout):
                x = layer.forward(x)
        return x

    def prepared(self, target: Tensor, shape: torch.Size) -> Tensor:
        """Targets of rows (..., K, B) as ``step`` takes them."""
        prepared: Tensor = self.loss.prepared(target, shape, self.like)
        return prepared

    def step(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and outputs; the gradients are left in their blocks."""
        output = self._forward(x, training=True)
        losses, grad = self.loss.value_and_grad(output, target)
        for i in range(len(self.layers) - 1, self.first - 1, -1):
            grad = self.layers[i].backward(grad, i > self.first)
        return losses, output.transpose(1, 2)

    def evaluate(self, x: Tensor, target: Tensor) -> Tensor:
        """Losses in evaluation mode."""
        output = self._forward(x, training=False)
        prepared = self.prepared(target, x.shape[:2])
        losses: Tensor = self.loss.value_and_grad(output, prepared)[0]
        return losses


def _is_linear(layer: Any) -> bool:
    return isinstance(layer, nn.Linear)
