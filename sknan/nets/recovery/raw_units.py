r"""Layers that learn as if inputs and targets were standardised, in their own weights.

Raw units are the commonest reason for a first step that goes wrong: a column of size
1000 makes outputs and gradients a thousand times too large. Where a module hands its
input to linear layers and to nothing else, or returns what a linear layer gives it,
standardised data can be had without touching data or module: with
:math:`\hat x = (x - m) / s` and :math:`y = \mu + t \hat y`,

.. math:: W = t W_s / s, \quad b = \mu + t b_s - W m,

so that a step taken in :math:`W_s, b_s` and written back to :math:`W, b` is the step of
a network on standardised data. Forward and backward passes, and every weight that
anyone sees, are those of the network on raw ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sknan.losses._traits import traits_of

__all__ = ["Conditioning", "conditioned"]

# Columns whose mean or spread is at least this large are raw.
_RAW = 10.0

# Columns smaller than this are left as they are: they would get weights as large as
# they are small.
_TINY = 1e-3

# A spread of less than this share of the mean is rounding.
_LEAST_SPREAD = 1e-6

# Rows that mean and spread are taken from.
_MOST_ROWS = 10_000

_OF_SHAPE = {"squeeze", "unsqueeze", "view", "reshape", "flatten", "ravel"}


class _Uses(TorchFunctionMode):
    """Note what the input is handed to, and which layer the output comes from."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self._inputs = inputs
        self._weight_of: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []
        self.weights: list[Tensor] = []  # one for each call of a linear layer
        self.first: list[Tensor] = []
        self.is_input_used_otherwise = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor):
            return out  # shape, dtype, device
        given = [*args, *kwargs.values()]
        takes_input = any(x is self._inputs for x in given) and out is not self._inputs
        self._alive.append(out)
        if func is F.linear:
            self.weights.append(given[1])
            self._weight_of[id(out)] = given[1]
            if takes_input and given[0] is self._inputs:
                self.first.append(given[1])
                return out
        elif getattr(func, "__name__", "") in _OF_SHAPE and id(args[0]) in (
            self._weight_of
        ):
            self._weight_of[id(out)] = self._weight_of[id(args[0])]
        self.is_input_used_otherwise |= takes_input
        return out

    def weight_of(self, output: Any) -> Tensor | None:
        """Weight of the layer that an output comes from, if it is used only there."""
        weight = self._weight_of.get(id(output))
        n_uses = sum(w is weight for w in self.weights)
        return weight if n_uses == 1 else None


def _middle_and_spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Robust mean and deviation of each column, in float64."""
    sample = values[:: max(1, len(values) // _MOST_ROWS)].detach().double()
    levels = sample.new_tensor([0.159, 0.5, 0.841])
    low, middle, high = torch.quantile(sample, levels, dim=0)
    spread = (high - low) / 2
    # Where the middle is constant the ends may not be; where they are too, or the mean
    # takes up all digits, it is the mean that makes the column large.
    spread = torch.where(spread > 0, spread, sample.std(dim=0, correction=0))
    is_real = spread > _LEAST_SPREAD * middle.abs()
    spread = torch.where(is_real, spread, middle.abs().clamp_min(1.0))
    size = torch.maximum(middle.abs(), spread)
    keeps = (size < _TINY) | ~torch.isfinite(size)
    if not bool((size >= _RAW).any()):
        keeps = torch.ones_like(keeps)
    return torch.where(keeps, 0.0, middle), torch.where(keeps, 1.0, spread)


@dataclass
class _Units:
    """The units of what goes into a layer (shift, scale) and of what comes out."""

    layer: nn.Linear
    shift: Tensor
    scale: Tensor
    out_shift: Tensor
    out_scale: Tensor


class Conditioning:
    """Take the steps of some linear layers in the coordinates of standardised data.

    Parameters
    ----------
    units : list
        Of the layers.
    parameters : list of nn.Parameter
        All of the network.
    loss_scale : float
        Of the loss on raw targets, in multiples of that on standardised ones.

    Attributes
    ----------
    is_inconsistent : bool
        Whether some layers are on raw and some on standardised data, for good if the
        writing was interrupted.
    """

    def __init__(
        self, units: list[_Units], parameters: list[nn.Parameter], loss_scale: float
    ) -> None:
        self._units = units
        self._parameters = parameters
        self._loss_scale = loss_scale
        self._is_scaled = False
        # Ctrl-C may come between any two of the lines below.
        self.is_inconsistent = False

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """The units, with the place of each layer in the network instead of it."""
        place = {id(part): i for i, part in enumerate(module.modules())}
        units = [{**vars(u), "layer": place[id(u.layer)]} for u in self._units]
        return {"units": units, "loss_scale": self._loss_scale}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], module: nn.Module) -> Conditioning:
        """The conditioning that :meth:`state_dict` has described, of another network.

        Parameters
        ----------
        state : dict
        module : nn.Module
            A network of the same layers.

        Returns
        -------
        Conditioning
        """
        parts: list[Any] = list(module.modules())
        units = [_Units(**{**u, "layer": parts[u["layer"]]}) for u in state["units"]]
        return cls(units, list(module.parameters()), state["loss_scale"])

    @torch.no_grad()
    def reinterpret(self) -> None:
        """Take the weights in place for those on standardised data."""
        self._is_scaled = True
        self.to_raw()

    @torch.no_grad()
    def to_scaled(self) -> None:
        """Put the weights on standardised data in place, for the optimizer."""
        self.is_inconsistent = True
        for u in self._units:
            if u.layer.bias is not None:
                bias = u.layer.bias + u.layer.weight @ u.shift - u.out_shift
                u.layer.bias.copy_(bias / u.out_scale)
            u.layer.weight.mul_(u.scale / u.out_scale[:, None])
        self._is_scaled = True
        self.is_inconsistent = False

    @torch.no_grad()
    def to_raw(self) -> None:
        """Put the weights on raw data in place."""
        if not self._is_scaled:
            return
        self.is_inconsistent = True
        for u in self._units:
            u.layer.weight.mul_(u.out_scale[:, None] / u.scale)
            if u.layer.bias is not None:
                bias = u.out_shift + u.out_scale * u.layer.bias
                u.layer.bias.copy_(bias - u.layer.weight @ u.shift)
        self._is_scaled = False
        self.is_inconsistent = False

    @torch.no_grad()
    def scale_grads(self) -> None:
        """Make the gradients those of the loss on standardised data."""
        if self._loss_scale != 1.0:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(self._loss_scale)
        for u in self._units:
            grad, bias = u.layer.weight.grad, u.layer.bias
            if grad is not None:
                if bias is not None and bias.grad is not None:
                    grad.sub_(torch.outer(bias.grad, u.shift))
                grad.mul_(u.out_scale[:, None] / u.scale)
            if bias is not None and bias.grad is not None:
                bias.grad.mul_(u.out_scale)


def conditioned(
    module: nn.Module,
    criterion: Any,
    batch: tuple[Any, Any],
    data: tuple[Any, Any],
    run: Callable[[Any], Any],
) -> Conditioning | None:
    """What makes a network learn as if on standardised data, if its data are raw.

    Parameters
    ----------
    module : nn.Module
        The network.
    criterion : object
        Targets are only looked at for a loss of torch's that compares them with the
        output as they are.
    batch : (Tensor of shape (n_rows, n_columns), object)
        Of anything else nothing is made.
    data : (Tensor, object)
        All rows of inputs and targets.
    run : callable
        Calls the module on a batch.

    Returns
    -------
    Conditioning or None
    """
    inputs = batch[0]
    if not isinstance(inputs, Tensor) or inputs.ndim != 2 or not inputs.numel():
        return None
    if not inputs.is_floating_point():
        return None
    try:
        with torch.no_grad(), _Uses(inputs) as uses:
            output = run(inputs)
    except Exception:  # as a decomposition of this batch may raise
        return None
    layers = {id(m.weight): m for m in module.modules() if isinstance(m, nn.Linear)}

    def units_of(weight: Tensor) -> _Units:
        rows, columns = weight.shape
        return _Units(
            layers[id(weight)],
            weight.new_zeros(columns),
            weight.new_ones(columns),
            weight.new_zeros(rows),
            weight.new_ones(rows),
        )

    found: dict[int, _Units] = {}
    is_input_known = not uses.is_input_used_otherwise and uses.first
    if is_input_known and all(id(w) in layers for w in uses.first):
        middle, spread = _middle_and_spread(data[0])
        for weight in uses.first:
            units = found.setdefault(id(weight), units_of(weight))
            units.scale = spread.to(weight)
            if units.layer.bias is not None:
                units.shift = middle.to(weight)
    loss_scale = 1.0
    weight = uses.weight_of(output)
    power = traits_of(criterion).unit_power
    target = data[1]
    is_target_known = (
        power is not None
        and weight is not None
        and id(weight) in layers
        and isinstance(target, Tensor)
        and target.is_floating_point()
        and target.numel() == len(target) * len(weight)
    )
    if power is not None and weight is not None and is_target_known:
        middle, spread = _middle_and_spread(target.reshape(len(target), -1))
        units = found.setdefault(id(weight), units_of(weight))
        units.out_scale = spread.to(weight)
        if units.layer.bias is not None:
            units.out_shift = middle.to(weight)
        loss_scale = float(spread.pow(power).mean())
    changed = [
        u
        for u in found.values()
        if bool((u.scale != 1).any() or (u.out_scale != 1).any())
    ]
    if not changed:
        return None
    return Conditioning(changed, list(module.parameters()), loss_scale)
