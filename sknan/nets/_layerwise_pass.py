"""Forward and backward pass of a chain of known layers, without autograd.

For a network of width 32, recording the graph takes autograd more than half of the time
of a step. The passes of a chain of known layers can be written in advance. They call
the kernels of autograd in its order and with the same random numbers, so that loss and
gradients are bitwise the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sknan.losses._registry import closed_form_of
from sknan.nets._chain import ACTIVATIONS, known_layers
from sknan.nets._tabular_mlp import PeriodicEmbedding

_aten = torch.ops.aten

_MEAN = 1  # code of the reduction in kernels

_ONES = {dtype: torch.ones((), dtype=dtype) for dtype in (torch.float32, torch.float64)}


# -- layers --------------------------------------------------------------------------


class _Layer:
    """Layer in training mode that saves its input until the backward pass."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the layer."""
        raise NotImplementedError

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        """Return the gradient of the input, if needed, from that of the output."""
        raise NotImplementedError


class _Linear(_Layer):
    def __init__(self, module: nn.Linear) -> None:
        super().__init__(module)
        self.weight = module.weight.detach()
        self.weight_t = self.weight.t()
        self.bias = None if module.bias is None else module.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        if self.bias is None:
            return x.mm(self.weight_t)
        return torch.addmm(self.bias, x, self.weight_t)

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        torch.mm(grad.t(), self.x, out=self.weight_grad)
        if self.bias_grad is not None:
            torch.sum(grad, 0, out=self.bias_grad)
        if not needs_input:
            return None
        if self.x.numel() == 1:  # autograd uses this product for a column
            return self.weight_t.mm(grad.t()).t()
        return grad.mm(self.weight)

    def bind_gradients(self, gradients: dict[Any, Tensor]) -> None:
        """Set the tensors that receive the gradients of the weights."""
        self.weight_grad = gradients[self.module.weight]
        self.bias_grad = gradients.get(self.module.bias)


class _Embedding(_Layer):
    """Embedding that uses autograd, which costs little for its few large operations."""

    def __init__(self, module: PeriodicEmbedding) -> None:
        super().__init__(module)
        self.weights = list(module.parameters())

    def forward(self, x: Tensor) -> Tensor:
        self.x = x.detach().requires_grad_()
        with torch.enable_grad():
            self.output: Tensor = self.module.forward(self.x)
        output: Tensor = self.output.detach()
        return output

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        sources = [*self.weights, self.x] if needs_input else self.weights
        gradients = torch.autograd.grad(self.output, sources, grad)
        del self.output
        for weight_grad, gradient in zip(self.weight_grads, gradients, strict=False):
            weight_grad.copy_(gradient)
        return gradients[-1] if needs_input else None

    def bind_gradients(self, gradients: dict[Any, Tensor]) -> None:
        """Set the tensors that receive the gradients of the weights."""
        self.weight_grads = [gradients[weight] for weight in self.weights]


class _Activation(_Layer):
    """Elementwise function whose gradient is a function of its input or its output."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.function, self.gradient, self.saves_output = ACTIVATIONS[type(module)]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(self.module, x)
        self.saved = y if self.saves_output else x
        return y

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        return self.gradient(self.module, grad, self.saved) if needs_input else None


class _Dropout(_Layer):
    def forward(self, x: Tensor) -> Tensor:
        keep = 1.0 - self.module.p
        self.noise = torch.empty_like(x).bernoulli_(keep).div_(keep)
        return x * self.noise

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        return grad * self.noise if needs_input else None


_LAYERS: dict[type[nn.Module], type[_Layer]] = {
    nn.Linear: _Linear,
    PeriodicEmbedding: _Embedding,
    nn.Dropout: _Dropout,
    **dict.fromkeys(ACTIVATIONS, _Activation),
}


# -- losses --------------------------------------------------------------------------


def _cross_entropy(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return mean cross-entropy of class codes and gradient; None if not finite."""
    logs = torch.log_softmax(output, 1)
    loss, total = _aten.nll_loss_forward.default(logs, target, None, _MEAN, -100)
    if not math.isfinite(loss.item()):
        return None  # a stable loss has a finite value here
    grad = _aten.nll_loss_backward.default(
        _ONES[loss.dtype], logs, target, None, _MEAN, -100, total
    )
    return loss, _aten._log_softmax_backward_data.default(grad, logs, 1, output.dtype)


def _squared_error(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return mean squared error and gradient; None if not finite."""
    loss = _aten.mse_loss.default(output, target, _MEAN)
    if not math.isfinite(loss.item()):
        return None
    one = _ONES[loss.dtype]
    return loss, _aten.mse_loss_backward.default(one, output, target, _MEAN)


def _known_loss(criterion: Any, output: Tensor, target: Any) -> Any:
    """Return the closed form of a loss for these tensors, or None."""
    form = closed_form_of(criterion)
    if form is None or not isinstance(target, Tensor):
        return None
    if form == "cross_entropy":
        fits = (output.ndim, target.ndim) == (2, 1) and target.dtype == torch.int64
        return _cross_entropy if fits and len(target) else None
    fits = output.shape == target.shape and output.dtype == target.dtype
    return _squared_error if fits else None


# -- the passes ----------------------------------------------------------------------


class LayerwisePass:
    """Loss and gradients of a network in training mode, without autograd.

    Parameters
    ----------
    layers : list of nn.Module
        Known layers, each of them once.
    criterion : nn.Module
        Loss without weights.

    Attributes
    ----------
    is_random : bool
        Whether the passes draw random numbers.
    gradients : Tensor of one dimension
        All gradients of a step. The gradients of the parameters are views of it.
    """

    def __init__(self, layers: list[Any], criterion: Any) -> None:
        self._layers = [_LAYERS[type(layer)](layer) for layer in layers]
        self._criterion = criterion
        # Closed form of the loss, determined with the first batch.
        self._loss_of: Any = None
        self._has_batch = False
        weighted = [
            layer for layer in self._layers if isinstance(layer, (_Linear, _Embedding))
        ]
        weights = [p for layer in weighted for p in layer.module.parameters()]
        views, self.gradients = _flat_gradients(weights)
        self._gradients = list(zip(weights, views, strict=True))
        for layer in weighted:
            layer.bind_gradients(dict(self._gradients))
        # Layers before the first weights need no gradient.
        self._first = self._layers.index(weighted[0])
        self.is_random = any(isinstance(layer, _Dropout) for layer in self._layers)

    def step(
        self, X: Tensor, y: Any, get_loss: Callable[[Tensor, Any], Tensor]
    ) -> dict[str, Any]:
        """Compute loss and output of a batch, and set the gradients of the parameters.

        Parameters
        ----------
        X : Tensor of shape (n_samples, n_features)
            Inputs.
        y : Tensor or tuple of Tensor
            Target of the loss.
        get_loss : callable
            Loss of output and target, used if the loss has no closed form.

        Returns
        -------
        dict
            ``loss`` and ``y_pred``.
        """
        with torch.no_grad():
            output = X
            for layer in self._layers:
                output = layer.forward(output)
            if not self._has_batch:
                self._loss_of = _known_loss(self._criterion, output, y)
                self._has_batch = True
            result = None if self._loss_of is None else self._loss_of(output, y)
            loss, grad = result or _loss_by_autograd(get_loss, output, y)
            for i in range(len(self._layers) - 1, self._first - 1, -1):
                grad = self._layers[i].backward(grad, i > self._first)
            for parameter, gradient in self._gradients:
                if parameter.grad is not gradient:
                    parameter.grad = gradient
        return {"loss": loss, "y_pred": output}


def _flat_gradients(weights: list[nn.Parameter]) -> tuple[list[Tensor], Tensor]:
    """Return a view for the gradient of each weight, and the tensor of all of them.

    Each view starts at a multiple of 64 bytes, like a separate tensor, because the
    alignment affects the order of summation in a product.
    """
    starts = [0]
    for weight in weights:
        starts.append(starts[-1] + math.ceil(weight.numel() / 16) * 16)
    whole = torch.zeros(starts[-1], dtype=weights[0].dtype)
    views = [
        whole.narrow(0, start, weight.numel()).view(weight.shape)
        for weight, start in zip(weights, starts[:-1], strict=True)
    ]
    return views, whole


@torch.enable_grad()
def _loss_by_autograd(
    get_loss: Callable[[Tensor, Any], Tensor], output: Tensor, target: Any
) -> tuple[Tensor, Tensor]:
    leaf = output.detach().requires_grad_()
    loss = get_loss(leaf, target)
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad


def layerwise_pass(module: nn.Module, criterion: Any, X: Any) -> LayerwisePass | None:
    """Return the passes of a network, or None if it is not a chain of known layers.

    Parameters
    ----------
    module, criterion, X
        Arguments of :func:`~sknan.nets._chain.known_layers`.

    Returns
    -------
    LayerwisePass or None
    """
    layers = known_layers(module, criterion, X)
    return None if layers is None else LayerwisePass(layers, criterion)
