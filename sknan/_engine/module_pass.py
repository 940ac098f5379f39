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
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from sknan._engine.chain import draw_masks
from sknan._engine.losses import plain_loss
from sknan._engine.recording import Recording
from sknan._engine.table_net import TableNet
from sknan._utils.random_state import kept_random_states
from sknan._utils.tree import tree_leaves, tree_map

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


class _MaskedDropout(nn.Module):
    """Dropout by a given mask, which is drawn from the generator of each member."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask if self.training else x


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
}


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


class _RecordedStep(NamedTuple):
    """Operations of a step, which read inputs, targets and masks from fixed memory."""

    x: Tensor
    target: list[Tensor]
    masks: dict[str, Tensor]
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
        names = [name for name, _ in self.module.named_parameters()]
        self.weights = dict(zip(names, weights, strict=True))
        self.gradients = gradients
        self.gradient_parts: list[Tensor] = []
        names = [name for name, _ in self.module.named_buffers()]
        self.buffers = dict(zip(names, buffers, strict=True))
        self.dropouts = {
            name: [own.module_.get_submodule(name).p for own in nets]
            for name, _ in _dropouts_of(self.module)
        }
        for name in self.dropouts:
            self.module.set_submodule(name, _MaskedDropout())
        for part in self.module.modules():
            part.__class__ = _FASTER.get(type(part), type(part))
        self.steps: dict[int, _RecordedStep] = {}

    def _mask_memory(self, x: Tensor) -> dict[str, Tensor]:
        """Return memory for the masks of all members, in the order of the calls."""
        if not self.dropouts:
            return {}
        shapes = _mask_shapes(self.nets[0], x[0])
        if shapes is None:
            raise ValueError("A dropout layer is used twice or not at all.")
        return {n: x.new_ones(len(x), *shape) for n, shape in shapes}

    def _draw(self, masks: dict[str, Tensor]) -> None:
        for name, mask in masks.items():
            draw_masks(mask, self.dropouts[name], self.generators)

    def _loss(
        self,
        weights: dict[str, Tensor],
        buffers: dict[str, Tensor],
        masks: dict[str, Tensor],
        x: Tensor,
        target: Any,
    ) -> tuple[Tensor, Tensor]:
        tensors = {f"{name}.mask": mask for name, mask in masks.items()}
        tensors |= weights | buffers
        output = functional_call(self.module, tensors, (x,))
        loss = plain_loss(self.criterion, output, target)
        if loss is None:
            loss = self.get_loss(output, target)
        first = output[0] if isinstance(output, (tuple, list)) else output
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
        self._draw(step.masks)
        for call in step.calls:
            call()
        return step.losses.numpy(), step.output

    def _recorded_step(self, x: Tensor, target: Any) -> _RecordedStep:
        """Record a step, and undo it."""
        self.module.train()
        target = tree_map(torch.clone, target)
        masks = self._mask_memory(x)
        changed = [x, *self.buffers.values()]
        values = [tensor.clone() for tensor in changed]
        with Recording() as recording:
            losses, output = self._compute(x, target, masks)
        if recording.reads_values:
            raise ValueError("The operations depend on the value of a tensor.")
        torch._foreach_copy_(changed, values)
        inputs = [*changed, *tree_leaves(target), *masks.values()]
        inputs += self.weights.values()
        calls = recording.calls(inputs, [losses, output])
        return _RecordedStep(x, tree_leaves(target), masks, calls, losses, output)

    def _compute(
        self, x: Tensor, target: Any, masks: dict[str, Tensor]
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
        losses, _ = _for_members(self._loss, self.weights, self.buffers, {}, x, target)
        array: NDArray[Any] = losses.numpy()
        return array
