"""Explicit forward and backward passes of chains of known layers, for many networks.

Each operation is one call for all members, and the result of a member depends neither
on the other members nor on their number. In a small network a call takes longer to
prepare than to run. A step is therefore prepared once, as a list of calls with all
their arguments, which read and write memory that every batch uses again.

Weights are stored in the layout in which their products are fastest: those of hidden
layers with the inputs first; those of the last layer with the outputs first, so that
the few logits of all rows of a batch are contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sknan._engine.losses import StackedLoss, stacked_loss_of
from sknan._engine.products import parts_of_members, stacked_product
from sknan.nets._chain import ACTIVATIONS
from sknan.nets._dropout import DrawMask, draw_function_of

_aten = torch.ops.aten

_Call = Callable[[], object]


# -- layers ----------------------------------------------------------------------------
#
# ``forward(x, calls)`` and ``backward(grad, needs_input, calls)`` append calls to a
# list. They return the tensor that these calls write: the output, or the gradient of
# the input (None if it is not needed). ``backward`` follows ``forward`` for the same x.


class _StackedLinear:
    """Hidden layer: weights (K, in, out), inputs (K, B, in), outputs (K, B, out)."""

    rows_axis = 1  # axis of the batch in the output

    def __init__(self, weight: tuple[Tensor, Tensor], bias: Any) -> None:
        self.weight, self.weight_grad = weight
        values, self.bias_grad = bias
        self.bias = None if values is None else values.unsqueeze(self.rows_axis)

    def forward(self, x: Tensor, calls: list[_Call]) -> Tensor:
        self.x = x
        output = x.new_empty(len(x), x.shape[1], self.weight.shape[2])
        calls.append(stacked_product(x, self.weight, output, self.bias))
        return output

    def backward(
        self, grad: Tensor, needs_input: bool, calls: list[_Call]
    ) -> Tensor | None:
        calls.append(stacked_product(self.x.transpose(1, 2), grad, self.weight_grad))
        self._sum_bias_grad(grad, calls)
        if not needs_input:
            return None
        input_grad = torch.empty_like(self.x)
        calls.append(stacked_product(grad, self.weight.transpose(1, 2), input_grad))
        return input_grad

    def _sum_bias_grad(self, grad: Tensor, calls: list[_Call]) -> None:
        if self.bias_grad is not None:
            calls.append(partial(torch.sum, grad, self.rows_axis, out=self.bias_grad))


class _StackedOutput(_StackedLinear):
    """Last layer: weights (K, out, in), inputs (K, B, in), outputs (K, out, B)."""

    rows_axis = 2

    def forward(self, x: Tensor, calls: list[_Call]) -> Tensor:
        self.x = x
        output = x.new_empty(len(x), self.weight.shape[1], x.shape[1])
        calls.append(stacked_product(self.weight, x.transpose(1, 2), output, self.bias))
        return output

    def backward(
        self, grad: Tensor, needs_input: bool, calls: list[_Call]
    ) -> Tensor | None:
        calls.append(stacked_product(grad, self.x, self.weight_grad))
        self._sum_bias_grad(grad, calls)
        if not needs_input:
            return None
        input_grad = torch.empty_like(self.x)
        calls.append(stacked_product(grad.transpose(1, 2), self.weight, input_grad))
        return input_grad


class _RowsLast:
    """Transposition to outputs (K, out, B) after a last layer that is not linear."""

    def forward(self, x: Tensor, calls: list[_Call]) -> Tensor:
        return _copied(x.transpose(1, 2), calls)

    def backward(self, grad: Tensor, needs_input: bool, calls: list[_Call]) -> Tensor:
        return _copied(grad.transpose(1, 2), calls)


def _copied(source: Tensor, calls: list[_Call]) -> Tensor:
    copy = torch.empty(source.shape, dtype=source.dtype)
    calls.append(partial(copy.copy_, source))
    return copy


class _StackedActivation:
    """Elementwise function with a known derivative."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.function, self.derivative, self.uses_output = ACTIVATIONS[type(module)]

    def forward(self, x: Tensor, calls: list[_Call]) -> Tensor:
        y = torch.empty_like(x)
        compute = partial(_write, self.function, self.module)
        calls += [partial(compute, *part) for part in parts_of_members(y, x)]
        self.kept = y if self.uses_output else x
        return y

    def backward(
        self, grad: Tensor, needs_input: bool, calls: list[_Call]
    ) -> Tensor | None:
        if not needs_input:
            return None
        result = torch.empty_like(grad)
        compute = partial(_write, self.derivative, self.module)
        parts = parts_of_members(result, grad, self.kept)
        calls += [partial(compute, *part) for part in parts]
        return result


def _write(function: Any, module: nn.Module, result: Tensor, *args: Tensor) -> None:
    result.copy_(function(module, *args))


class _StackedReLU:
    """ReLU after a linear layer, which overwrites its output and gradient."""

    def forward(self, x: Tensor, calls: list[_Call]) -> Tensor:
        self.kept = x
        calls.append(partial(torch.relu_, x))
        return x

    def backward(self, grad: Tensor, needs_input: bool, calls: list[_Call]) -> Tensor:
        derivative = _aten.threshold_backward.grad_input
        calls.append(partial(derivative, grad, self.kept, 0, grad_input=grad))
        return grad


def draw_masks(
    draw: DrawMask,
    masks: Tensor,
    rates: list[float],
    generators: list[torch.Generator],
) -> None:
    """Draw the mask of a dropout layer, (K, ...), for each member from its generator.

    Members that share a generator have one rate and one mask.
    """
    drawn: dict[torch.Generator, Tensor] = {}
    for mask, rate, generator in zip(masks, rates, generators, strict=True):
        if generator in drawn:
            mask.copy_(drawn[generator])
        else:
            draw(mask, rate, generator)
            drawn[generator] = mask


class _StackedDropout:
    """Dropout whose masks are drawn from the generator of each member."""

    def __init__(
        self, layers: tuple[nn.Dropout, ...], generators: list[torch.Generator]
    ) -> None:
        self.draw = draw_function_of(layers[0])
        self.rates, self.generators = [layer.p for layer in layers], generators

    def forward(self, x: Tensor, calls: list[_Call]) -> Tensor:
        self.masks, output = torch.empty_like(x), torch.empty_like(x)
        draw = partial(draw_masks, self.draw, self.masks, self.rates, self.generators)
        calls.append(draw)
        calls.append(partial(torch.mul, x, self.masks, out=output))
        return output

    def backward(
        self, grad: Tensor, needs_input: bool, calls: list[_Call]
    ) -> Tensor | None:
        if not needs_input:
            return None
        result = torch.empty_like(grad)
        calls.append(partial(torch.mul, grad, self.masks, out=result))
        return result


# -- the chain -------------------------------------------------------------------------


def transposed_weights(layers: list[nn.Module]) -> list[bool]:
    """Return for each parameter whether :class:`StackedChain` stores it transposed."""
    return [
        _is_linear(layer) and layer is not layers[-1] and name == "weight"
        for layer in layers
        for name, _ in layer.named_parameters()
    ]


class _StepProgram(NamedTuple):
    """Prepared calls of a step, which read inputs from one tensor.

    Parameters
    ----------
    x : Tensor of shape (K, B, n_features)
        Tensor of the inputs.
    forward, backward : list of callable
        Calls of the two passes.
    loss : StackedLoss
        Loss between them.
    output : Tensor of shape (K, B, n_outputs)
        Tensor that the forward pass writes the outputs to.
    """

    x: Tensor
    forward: list[_Call]
    loss: StackedLoss
    backward: list[_Call]
    output: Tensor


class StackedChain:
    """Passes of a chain of known layers and a known loss, for all members.

    Parameters
    ----------
    layers : list of list of nn.Module
        Layers of each member's network.
    generators : list of Generator
        Generator of each member's random numbers.
    weights : list of Tensor
        Tensors with the members along the first axis, in the order of the parameters,
        transposed where :func:`transposed_weights` says so.
    criterion : object
        Criterion that has a :func:`~sknan._engine.losses.stacked_loss_of`.
    """

    def __init__(
        self,
        layers: list[list[nn.Module]],
        generators: list[torch.Generator],
        weights: list[Tensor],
        criterion: object,
    ) -> None:
        self.loss: Any = stacked_loss_of(criterion)
        # The result of a product must be contiguous.
        gradients = [weight.new_empty(weight.shape) for weight in weights]
        self.gradient_parts = [gradient.flatten(1) for gradient in gradients]
        blocks = iter(zip(weights, gradients, strict=True))
        columns: list[tuple[Any, ...]] = list(zip(*layers, strict=True))
        last_linear = next(c[0] for c in reversed(columns) if _is_linear(c[0]))
        self.reference = weights[0].new_empty(0, last_linear.out_features)
        self.layers: list[Any] = []
        for i, column in enumerate(columns):
            layer = column[0]
            if _is_linear(layer):
                weight = next(blocks)
                bias = next(blocks) if layer.bias is not None else (None, None)
                is_last = i == len(columns) - 1
                linear = _StackedOutput if is_last else _StackedLinear
                self.layers.append(linear(weight, bias))
            elif isinstance(layer, nn.Dropout):
                self.layers.append(_StackedDropout(column, generators))
            elif isinstance(layer, nn.ReLU) and i and _is_linear(columns[i - 1][0]):
                self.layers.append(_StackedReLU())
            else:
                self.layers.append(_StackedActivation(layer))
        # Layers before the first weights need no gradient.
        self.first = next(
            i
            for i, layer in enumerate(self.layers)
            if isinstance(layer, _StackedLinear)
        )
        if not isinstance(self.layers[-1], _StackedOutput):
            self.layers.append(_RowsLast())
        self.programs: dict[int, _StepProgram] = {}

    def prepare_target(self, target: Tensor, shape: torch.Size) -> Tensor:
        """Convert targets of rows in a tensor of shape (..., K, B) for :meth:`step`."""
        prepared: Tensor = self.loss.prepare_target(target, shape, self.reference)
        return prepared

    def step(self, x: Tensor, target: Tensor) -> tuple[NDArray[Any], Tensor]:
        """Compute gradients, and return losses (K,) and outputs (K, B, n_outputs).

        A step is prepared once for each tensor of inputs.
        """
        program = self.programs.get(id(x))
        if program is None:
            program = self.programs[id(x)] = self._prepared_step(x)
        for call in program.forward:
            call()
        losses: NDArray[Any] = program.loss.evaluate(target)
        for call in program.backward:
            call()
        return losses, program.output

    def _prepared_step(self, x: Tensor) -> _StepProgram:
        forward: list[_Call] = []
        backward: list[_Call] = []
        output = x
        for layer in self.layers:
            output = layer.forward(output, forward)
        loss = self.loss(output)
        grad = loss.grad
        for i in range(len(self.layers) - 1, self.first - 1, -1):
            grad = self.layers[i].backward(grad, i > self.first, backward)
        return _StepProgram(x, forward, loss, backward, output.transpose(1, 2))

    def evaluate(self, x: Tensor, target: Tensor) -> NDArray[Any]:
        """Return losses (K,) in evaluation mode."""
        calls: list[_Call] = []
        output = x
        for layer in self.layers:
            if not isinstance(layer, _StackedDropout):
                output = layer.forward(output, calls)
        for call in calls:
            call()
        prepared = self.prepare_target(target, x.shape[:2])
        losses: NDArray[Any] = self.loss(output).evaluate(prepared)
        return losses


def _is_linear(layer: object) -> bool:
    return isinstance(layer, nn.Linear)
