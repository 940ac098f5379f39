"""Forward and backward pass of any module for many networks, by ``torch.func``.

The operations of a step are recorded once and then run again
(:mod:`sknan._engine.recording`). Dropout masks are drawn from the generators of the
members, and the normalization of tables has an explicit gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.overrides import TorchFunctionMode

from sknan._engine.chain import draw_masks
from sknan._engine.losses import plain_loss
from sknan._engine.recording import Recording
from sknan._engine.table_net import TableNet
from sknan._utils.random_state import kept_random_states
from sknan._utils.tree import first_of, tree_leaves, tree_map
from sknan.nets._dropout import (
    DrawMask,
    Dropout,
    draw_as_torch,
    draw_function_of,
    is_dropout,
)

_set_fallback_warning = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]


def _for_members(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of one network for all members.

    An operation without a batching rule runs once for each member, as in separate fits.
    torch would warn the user, who does not know of the stack. The flag of this warning
    belongs to the whole process. It is set only in this call, by one thread at a time.
    """
    with kept_random_states():
        _set_fallback_warning(False)
        try:
            return vmap(function, randomness="error")(*args)
        finally:
            _set_fallback_warning(True)


class _Rates(float):
    """Probability of a dropout layer, with that of each member."""

    of_members: list[float]
    draw: DrawMask


class _MaskedDropout(TorchFunctionMode):
    """Dropout by given masks, in the order of the calls.

    Parameters
    ----------
    masks : list of Tensor or None
        Masks of a network; None to note what masks are needed.

    Attributes
    ----------
    calls : list of (float, torch.Size)
        Probability and shape of each call in training mode.
    """

    def __init__(self, masks: list[Tensor] | None = None) -> None:
        super().__init__()
        self.masks = masks
        self.calls: list[tuple[float, torch.Size]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is not F.dropout:
            return func(*args, **(kwargs or {}))
        x, p, training = _dropout_arguments(*args, **(kwargs or {}))
        if p == 0.0 or not training:
            return x
        self.calls.append((p, x.shape))
        return x if self.masks is None else x * self.masks[len(self.calls) - 1]


def _dropout_arguments(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[Tensor, float, bool]:
    return input, p, training


class _Linear(nn.Linear):
    """Linear layer of tables in operations that are fast under ``vmap``."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2:
            return super().forward(x)
        output = x @ self.weight.t()
        return output if self.bias is None else output + self.bias


class _Normalized(torch.autograd.Function):
    """Columns with mean 0 and variance 1, times a weight, plus a bias.

    The means, the variances, and what the gradient needs are returned too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        mean = x.mean(0)
        centered = x - mean
        variance = (centered * centered).mean(0)
        scale = (variance + eps).rsqrt()
        y = centered * scale
        return y * weight + bias, mean, variance, y, scale * weight

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[3:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        y, scale = ctx.saved_tensors
        bias_grad, weight_grad = grad.sum(0), (grad * y).sum(0)
        n = len(y)
        x_grad = (grad - bias_grad / n - y * (weight_grad / n)) * scale
        return x_grad, weight_grad, bias_grad, None


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalization of tables in operations that are fast under ``vmap``."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.ndim != 2 or len(x) < 2 or self.momentum is None:
            return super().forward(x)
        one = x.new_ones(())
        weight, bias = (self.weight, self.bias) if self.affine else (one, one - 1.0)
        results: Any = _Normalized.apply(x, weight, bias, self.eps)  # type: ignore[no-untyped-call]
        normalized: Tensor = results[0]
        mean, variance = results[1:3]
        unbiased = self.momentum * len(x) / (len(x) - 1)
        for buffer, new, factor in (
            (self.running_mean, mean, self.momentum),
            (self.running_var, variance, unbiased),
        ):
            if buffer is not None:
                buffer.mul_(1.0 - self.momentum).add_(new.detach() * factor)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return normalized


_FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _Linear,
    nn.BatchNorm1d: _BatchNorm,
    Dropout: nn.Dropout,  # whose function takes the masks
}


def _dropout_calls(nets: list[TableNet], x: Tensor) -> list[tuple[float, torch.Size]]:
    """Return the probabilities and shapes of the calls of dropout for some rows.

    The probability of a layer is one of :class:`_Rates`.
    """
    module = copy.deepcopy(nets[0].module_).train()
    for name, layer in module.named_modules():
        if is_dropout(layer):
            layer.p = _Rates(layer.p)
            layer.p.draw = draw_function_of(layer)
            layer.__class__ = nn.Dropout
            layer.p.of_members = [net.module_.get_submodule(name).p for net in nets]
    dropout = _MaskedDropout()
    with kept_random_states(), dropout:
        module(x)
    return dropout.calls


class _Masks(NamedTuple):
    """Memory for the masks of one call of dropout, and how they are drawn."""

    memory: Tensor
    rates: list[float]
    draw: DrawMask


class _RecordedStep(NamedTuple):
    """Operations of a step, which read inputs, targets and masks from fixed memory."""

    x: Tensor
    target: list[Tensor]
    masks: list[_Masks]
    calls: list[Callable[[], object]]
    losses: Tensor
    output: Tensor


class StackedModule:
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
        self.get_loss, self.criterion = net.get_loss, net.criterion_
        self.module = copy.deepcopy(net.module_)
        named = list(self.module.named_parameters())
        self.weights, frozen = (
            {
                name: weight
                for (name, p), weight in zip(named, weights, strict=True)
                if p.requires_grad == is_trained
            }
            for is_trained in (True, False)
        )
        pairs = zip(named, gradients, strict=True)
        self.gradients = [g for (_, p), g in pairs if p.requires_grad]
        self.gradient_parts: list[Tensor] = []
        names = [name for name, _ in self.module.named_buffers()]
        self.buffers = frozen | dict(zip(names, buffers, strict=True))
        for part in self.module.modules():
            part.__class__ = _FASTER.get(type(part), type(part))
        self.steps: dict[int, _RecordedStep] = {}

    def _masks(self, x: Tensor) -> list[_Masks]:
        """Return the masks of each call of dropout."""
        return [
            _Masks(
                x.new_ones(len(x), *shape),
                getattr(p, "of_members", [p] * len(x)),
                getattr(p, "draw", draw_as_torch),
            )
            for p, shape in _dropout_calls(self.nets, x[0])
        ]

    def _loss(
        self,
        weights: dict[str, Tensor],
        buffers: dict[str, Tensor],
        masks: list[Tensor],
        x: Tensor,
        target: Any,
    ) -> tuple[Tensor, Tensor]:
        with _MaskedDropout(masks):
            output = functional_call(self.module, weights | buffers, (x,))
        loss = plain_loss(self.criterion, output, target)
        if loss is None:
            loss = self.get_loss(output, target)
        first = first_of(output)
        return loss, first

    def prepare_target(self, target: Any, shape: torch.Size) -> Any:
        """Return the targets unchanged."""
        return target

    def step(self, x: Tensor, target: Any) -> tuple[NDArray[Any], Tensor]:
        """Write the gradients, and return losses (K,) and outputs (K, B, ...).

        The operations are recorded once for each tensor of inputs.
        """
        step = self.steps.get(id(x))
        if step is None:
            step = self.steps[id(x)] = self._recorded_step(x, target)
        torch._foreach_copy_(step.target, tree_leaves(target))
        for masks in step.masks:
            draw_masks(masks.draw, masks.memory, masks.rates, self.generators)
        for call in step.calls:
            call()
        return step.losses.numpy(), step.output

    def _recorded_step(self, x: Tensor, target: Any) -> _RecordedStep:
        """Record a step, and undo it."""
        self.module.train()
        target = tree_map(torch.clone, target)
        masks = self._masks(x)
        memory = [part.memory for part in masks]
        changed = [x, *self.buffers.values()]
        values = [tensor.clone() for tensor in changed]
        with Recording() as recording:
            losses, output = self._compute(x, target, memory)
        if recording.reads_values:
            raise ValueError("The operations depend on the value of a tensor.")
        torch._foreach_copy_(changed, values)
        inputs = [*changed, *tree_leaves(target), *memory]
        inputs += self.weights.values()
        calls = recording.calls(inputs, [losses, output])
        return _RecordedStep(x, tree_leaves(target), masks, calls, losses, output)

    def _compute(
        self, x: Tensor, target: Any, masks: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        self.module.train()
        self.criterion.train()
        gradients, (losses, output) = _for_members(
            grad_and_value(self._loss, has_aux=True),
            self.weights,
            self.buffers,
            masks,
            x,
            target,
        )
        torch._foreach_copy_(self.gradients, list(gradients.values()))
        return losses, output

    def evaluate(self, x: Tensor, target: Any) -> NDArray[Any]:
        """Return losses (K,) in evaluation mode."""
        self.module.eval()
        self.criterion.eval()
        losses, _ = _for_members(self._loss, self.weights, self.buffers, [], x, target)
        array: NDArray[Any] = losses.numpy()
        return array
