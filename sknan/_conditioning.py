r"""A first layer that learns as if its inputs were standardised, in its own weights.

Raw units are the commonest reason for a first step that goes wrong: a column of size
1000 makes outputs and gradients a thousand times too large. Where a module hands its
input to linear layers and to nothing else, standardised inputs can be had without
touching data or module: with :math:`\hat x = (x - m) / s`,

.. math:: W x + b = W_s \hat x + b_s, \quad W_s = W \operatorname{diag}(s), \;
    b_s = b + W m,

so that a step taken in :math:`W_s, b_s` and written back to :math:`W, b` is the step of
a network on standardised inputs. Forward and backward passes, and every weight that
anyone sees, are those of the network on raw ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["Conditioning", "find_first_layers"]

# Columns whose mean or spread is at least this large are raw.
_RAW = 10.0

# Columns smaller than this are left as they are.
_TINY = 1e-3

# A spread of less than this share of the mean is rounding.
_LEAST_SPREAD = 1e-6

# Rows that mean and spread are taken from.
_MOST_ROWS = 10_000


class _UsesOf(TorchFunctionMode):
    """Note what an input is handed to."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self._tensor = tensor
        self.weights: list[Tensor] = []
        self.is_used_otherwise = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [*args, *kwargs.values()]
        if any(x is self._tensor for x in given):
            if func is F.linear and given[0] is self._tensor:
                self.weights.append(given[1])
            elif isinstance(out, Tensor) and out is not self._tensor:
                self.is_used_otherwise = True  # and not by shape, dtype or device
        return out


def find_first_layers(
    module: nn.Module, inputs: Any, run: Callable[[Any], Any]
) -> list[nn.Linear]:
    """The linear layers that take the input as it is, if nothing else does.

    Parameters
    ----------
    module : nn.Module
        The network.
    inputs : Tensor of shape (n_rows, n_columns)
        A batch. Of anything else nothing is found.
    run : callable
        Calls the module on a batch.

    Returns
    -------
    list of nn.Linear
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 2:
        return []
    if not inputs.is_floating_point():
        return []
    with torch.no_grad(), _UsesOf(inputs) as uses:
        run(inputs)
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    found = [m for w in uses.weights for m in layers if m.weight is w]
    if uses.is_used_otherwise or len(found) != len(uses.weights):
        return []
    return list({id(layer): layer for layer in found}.values())


class Conditioning:
    """Take the steps of some linear layers in the coordinates of standardised inputs.

    Parameters
    ----------
    layers : list of nn.Linear
        That take the input.
    table : Tensor of shape (n_samples, n_columns)
        The training data.

    Attributes
    ----------
    is_needed : bool
        Whether a column is in raw units.
    """

    def __init__(self, layers: list[nn.Linear], table: Tensor) -> None:
        self.layers = layers
        stride = max(1, len(table) // _MOST_ROWS)
        sample = table[::stride].detach().double()
        low, middle, high = torch.quantile(
            sample, sample.new_tensor([0.159, 0.5, 0.841]), dim=0
        )
        spread = (high - low) / 2
        # Where the middle is constant the ends may not be; where they are too, or all
        # digits are taken up by the mean, it is the mean that makes the column large.
        spread = torch.where(spread > 0, spread, sample.std(dim=0, correction=0))
        spread = torch.where(
            spread > _LEAST_SPREAD * middle.abs(), spread, middle.abs().clamp_min(1.0)
        )
        size = torch.maximum(middle.abs(), spread)
        self.is_needed = bool((size >= _RAW).any())
        # A tiny column would get weights as large as it is small.
        self.scale = torch.where(size >= _TINY, spread, 1.0).float()
        self.shift = torch.where(size >= _TINY, middle, 0.0).float()
        self._is_scaled = False

    def _shift_of(self, layer: nn.Linear) -> Tensor | None:
        return None if layer.bias is None else self.shift

    @torch.no_grad()
    def reinterpret(self) -> None:
        """Take the weights in place for those on standardised inputs."""
        self._is_scaled = True
        self.to_raw()

    @torch.no_grad()
    def to_scaled(self) -> None:
        """Put the weights on standardised inputs in place, for the optimizer."""
        for layer in self.layers:
            shift = self._shift_of(layer)
            if shift is not None:
                layer.bias.add_(layer.weight @ shift)
            layer.weight.mul_(self.scale)
        self._is_scaled = True

    @torch.no_grad()
    def to_raw(self) -> None:
        """Put the weights on raw inputs in place."""
        if not self._is_scaled:
            return
        for layer in self.layers:
            layer.weight.div_(self.scale)
            shift = self._shift_of(layer)
            if shift is not None:
                layer.bias.sub_(layer.weight @ shift)
        self._is_scaled = False

    @torch.no_grad()
    def scale_grads(self) -> None:
        """Make the gradients those on standardised inputs."""
        for layer in self.layers:
            if layer.weight.grad is None:
                continue
            shift = self._shift_of(layer)
            if shift is not None and layer.bias.grad is not None:
                layer.weight.grad -= torch.outer(layer.bias.grad, shift)
            layer.weight.grad /= self.scale
