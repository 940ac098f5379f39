r"""Training steps in the coordinates of standardized data.

Raw units are the most frequent reason for a first step that fails: a column of size
1000 makes outputs and gradients a thousand times too large. If a module passes its
input to linear layers only, or returns the output of a linear layer, it can train as if
on standardized data, although neither data nor module change: with
:math:`\hat x = (x - m) / s` and :math:`y = \mu + t \hat y`,

.. math:: W = t W_s / s, \quad b = \mu + t b_s - W m,

so that a step in :math:`W_s, b_s` that is written back to :math:`W, b` is the step of a
network on standardized data. Forward and backward passes, and all visible weights, are
those of the network on raw data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sknan._utils.thresholds import FAR, SMALL
from sknan._utils.tree import first_of
from sknan.diagnosis._raised import result_of_trial
from sknan.diagnosis._values import are_all_finite
from sknan.losses._traits import traits_of

# A column whose mean or standard deviation is at least this large is in raw units. The
# default network learns as well with one column of size 300 as without, and is worse
# than a constant with one of size 1000; several columns add up.
RAW = FAR

# With one column of this size among five, the R2 of a network of 32 units is below 0
# for Adam at learning rates from 1e-4 to 0.1 and for Adadelta, and 0.01 to 0.92 without
# the column. At a tenth of it some of them still learn.
_LOST = 1e5

# Number of rows from which mean and standard deviation are estimated.
_MOST_ROWS = 10_000

_RESHAPING = {"squeeze", "unsqueeze", "view", "reshape", "flatten", "ravel"}


class _Uses(TorchFunctionMode):
    """Mode that records the uses of the input and the layer that gives the output."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self._inputs = inputs
        self._unchanged = {id(inputs)}
        self._weight_of: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []
        self.weights: list[Tensor] = []  # of each call of a linear layer
        self.first: list[Tensor] = []
        self.is_input_used_otherwise = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the function and record the use of its arguments."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor):
            return out  # shape, dtype, device
        given = [*args, *kwargs.values()]
        takes_input = any(id(x) in self._unchanged for x in given)
        self._alive += [out, *given]  # an id is unique as long as its object exists
        if func is F.linear:
            self.weights.append(given[1])
            self._weight_of[id(out)] = given[1]
            if id(given[0]) in self._unchanged:
                self.first.append(given[1])
                return out
        elif takes_input and out.shape == self._inputs.shape:
            if torch.equal(out, self._inputs):  # such as dropout in evaluation
                self._unchanged.add(id(out))
                return out
        elif getattr(func, "__name__", "") in _RESHAPING and id(args[0]) in (
            self._weight_of
        ):
            self._weight_of[id(out)] = self._weight_of[id(args[0])]
        self.is_input_used_otherwise |= takes_input
        return out

    def input_layers(self, linear: dict[int, nn.Linear]) -> list[nn.Linear]:
        """Return the layers that use the input, or none if anything else uses it."""
        is_known = all(id(weight) in linear for weight in self.first)
        if self.is_input_used_otherwise or not is_known:
            return []
        return list({id(w): linear[id(w)] for w in self.first}.values())

    def weight_of(self, output: Any) -> Tensor | None:
        """Return the weight of the layer that gave an output, if used only once."""
        weight = self._weight_of.get(id(output))
        n_uses = sum(w is weight for w in self.weights)
        return weight if n_uses == 1 else None


def _may_be_raw(values: Any) -> bool:
    """Whether numbers are large enough for raw units."""
    is_float = isinstance(values, Tensor) and values.is_floating_point()
    return is_float and values.numel() > 0 and not bool(values.abs().max() < RAW)


def _middle_and_spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return median and half the central 68 % range of each column, in float64."""
    sample = values[:: max(1, len(values) // _MOST_ROWS)].detach().double()
    levels = sample.new_tensor([0.159, 0.5, 0.841])
    low, middle, high = torch.quantile(sample, levels, dim=0)
    spread = (high - low) / 2
    # If the central quantiles are equal, the tails may still vary. If they do not, or
    # the deviation is rounding error, the scale is the magnitude of the median.
    spread = torch.where(spread > 0, spread, sample.std(dim=0, correction=0))
    is_real = spread > torch.finfo(values.dtype).eps * middle.abs()
    spread = torch.where(is_real, spread, middle.abs().clamp_min(1.0))
    size = torch.maximum(middle.abs(), spread)
    # Beside values of size 1, smaller ones than the rounding error are noise.
    is_noise = size < torch.finfo(torch.float32).eps
    keeps = is_noise | ~torch.isfinite(size) | ~(size >= RAW).any()
    return torch.where(keeps, 0.0, middle), torch.where(keeps, 1.0, spread)


def lost_columns(X: Any) -> list[int]:
    """Return the columns that are too large for a network to learn.

    Parameters
    ----------
    X : Tensor of shape (n_rows, n_columns)
        Inputs. Other inputs have no such columns.
    """
    if not _may_be_raw(X) or X.ndim != 2 or not bool(X.abs().max() >= _LOST):
        return []
    middle, spread = _middle_and_spread(X)
    size = torch.maximum(middle.abs(), spread)
    columns: list[int] = (size >= _LOST).nonzero().flatten().tolist()
    return columns


@dataclass
class _LayerTensors:
    """Tensors in the places of the parameters of a linear layer."""

    weight: Tensor
    bias: Tensor | None


@dataclass
class _Units:
    """Shift and scale of the inputs and outputs of a layer."""

    layer: nn.Linear | _LayerTensors
    shift: Tensor
    scale: Tensor
    out_shift: Tensor
    out_scale: Tensor

    @classmethod
    def of(cls, layer: nn.Linear) -> _Units:
        """Return shifts of 0 and scales of 1."""
        weight = layer.weight.detach()
        rows, columns = torch.zeros_like(weight[:, 0]), torch.zeros_like(weight[0])
        return cls(layer, columns, columns + 1, rows, rows + 1)


class Conditioning:
    """Change between raw and standardized coordinates of linear layers.

    Parameters
    ----------
    units : list
        Shift and scale of each layer.
    parameters : sequence of Tensor
        All parameters of the network.
    loss_scale : float
        Loss on raw targets, divided by the loss on standardized targets.

    Attributes
    ----------
    is_inconsistent : bool
        Whether some layers are in raw and some in standardized coordinates. This is
        temporary, unless a change was interrupted.
    """

    def __init__(
        self, units: list[_Units], parameters: Sequence[Tensor], loss_scale: float
    ) -> None:
        self._units = units
        self._parameters = parameters
        self._loss_scale = loss_scale
        self._is_scaled = False
        # Ctrl-C may interrupt a change at any line.
        self.is_inconsistent = False

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """Return the units, with the index of each layer in the network."""
        index = {id(part): i for i, part in enumerate(module.modules())}
        units = [
            {n: index[id(v)] if n == "layer" else v.cpu() for n, v in vars(u).items()}
            for u in self._units
        ]
        return {"units": units, "loss_scale": self._loss_scale}

    @classmethod
    def from_state_dict(
        cls, state: dict[str, Any], module: nn.Module
    ) -> Conditioning | None:
        """Return a conditioning with a saved state, for another network.

        Parameters
        ----------
        state : dict
            Result of :meth:`state_dict`.
        module : nn.Module
            Network with the same layers.

        Returns
        -------
        Conditioning or None
            None if the network has other layers, or a number is not finite.
        """
        if not 0.0 < state["loss_scale"] < math.inf:
            return None
        parts: list[Any] = list(module.modules())
        units = []
        for saved in state["units"]:
            layer = parts[saved["layer"]] if saved["layer"] < len(parts) else None
            if not isinstance(layer, nn.Linear):
                return None
            tensors = {k: v.to(layer.weight) for k, v in saved.items() if k != "layer"}
            found, blank = _Units(layer, **tensors), _Units.of(layer)
            if any(vars(found)[k].shape != vars(blank)[k].shape for k in tensors):
                return None
            if not are_all_finite(tensors.values()):
                return None
            units.append(found)
        return cls(units, list(module.parameters()), state["loss_scale"])

    def on(self, parameters: Sequence[Tensor]) -> Conditioning:
        """Return the same conditioning for other tensors.

        Parameters
        ----------
        parameters : sequence of Tensor
            Tensors in the places of the parameters of the network, in their order.
        """
        new = {id(p): t for p, t in zip(self._parameters, parameters, strict=True)}
        units = [
            replace(
                u,
                layer=_LayerTensors(new[id(u.layer.weight)], new.get(id(u.layer.bias))),
            )
            for u in self._units
        ]
        return Conditioning(units, list(parameters), self._loss_scale)

    @torch.no_grad()
    def reinterpret(self) -> None:
        """Interpret the present weights as weights for standardized data."""
        self._is_scaled = True
        self.to_raw()

    @torch.no_grad()
    def to_scaled(self) -> None:
        """Change the weights to standardized coordinates, for the optimizer."""
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
        """Change the weights to raw coordinates."""
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
        """Change the gradients to those of the loss on standardized data."""
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
    """Return coordinates in which a network trains as if on standardized data.

    Parameters
    ----------
    module : nn.Module
        Network.
    criterion : object
        Loss. Targets are standardized only if the loss compares them with the output
        and its unit is known.
    batch : (Tensor of shape (n_rows, n_columns), object)
        Inputs and targets of a batch. Other inputs give None.
    data : (Tensor, object)
        All rows of inputs and targets.
    run : callable
        Function that calls the module on inputs.

    Returns
    -------
    Conditioning or None
        None if the data are not in raw units or the network cannot be conditioned.
    """
    inputs, target = batch[0], data[1]
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        return None
    if inputs.ndim != 2 or not any(map(_may_be_raw, data)):
        return None
    traced = _traced(run, inputs)
    if traced is None:
        return None
    output, uses = traced
    layers = _linear_layers(module)
    found: dict[int, _Units] = {}
    for layer in uses.input_layers(layers):
        middle, spread = _middle_and_spread(data[0])
        units = found[id(layer.weight)] = _Units.of(layer)
        units.scale = spread.to(layer.weight)
        if layer.bias is not None:
            units.shift = middle.to(layer.weight)
    loss_scale = 1.0
    weight = uses.weight_of(output)
    power = traits_of(criterion).unit_power
    if (
        power is not None
        and weight is not None
        and id(weight) in layers
        and isinstance(target, Tensor)
        and target.is_floating_point()
        and target.numel() == len(target) * len(weight)
    ):
        middle, spread = _middle_and_spread(target.reshape(len(target), -1))
        units = found.setdefault(id(weight), _Units.of(layers[id(weight)]))
        units.out_scale = spread.to(weight)
        if units.layer.bias is not None:
            units.out_shift = middle.to(weight)
        loss_scale = float(spread.pow(power).mean())
    changed = [
        u for u in found.values() if (u.scale != 1).any() or (u.out_scale != 1).any()
    ]
    if not changed:
        return None
    return Conditioning(changed, list(module.parameters()), loss_scale)


def is_overwhelmed(module: nn.Module, inputs: Tensor) -> bool:
    """Whether outputs are far too large, as those of new weights on raw units are.

    A module that normalizes its input, or takes its logarithm, has usual outputs. Half
    of the rows decide, because a few outliers may overflow an operation.

    Parameters
    ----------
    module : nn.Module
        Network before its training. A copy is called, in training mode.
    inputs : Tensor of shape (n_rows, n_columns)
        Rows to call it on.
    """

    def run() -> Any:
        with torch.no_grad():
            return copy.deepcopy(module).train()(inputs)

    output = result_of_trial(run)
    first = first_of(output)
    if not isinstance(first, Tensor) or first.ndim == 0 or first.numel() == 0:
        return False
    largest = first.abs().flatten(1).amax(1) if first.ndim > 1 else first.abs()
    # Standardized targets are small beside such outputs. A column of size 1000 gives
    # them; the default network is worse than a constant from there.
    return bool(SMALL * largest.float().nanmedian() >= 1.0)


def feeds_linear_layers(module: nn.Module, inputs: Tensor) -> bool:
    """Whether a network passes its input to linear layers and to nothing else.

    Parameters
    ----------
    module : nn.Module
        Network.
    inputs : Tensor of shape (n_rows, n_columns)
        Rows to call it on, in evaluation mode.
    """
    was_training = module.training
    traced = _traced(module.eval(), inputs)
    module.train(was_training)
    return traced is not None and bool(traced[1].input_layers(_linear_layers(module)))


def _traced(run: Callable[[Tensor], Any], inputs: Tensor) -> tuple[Any, _Uses] | None:
    """Return the output of a network and the uses of its input, or None if it fails."""

    def traced() -> tuple[Any, _Uses]:
        with torch.no_grad(), _Uses(inputs) as uses:
            return run(inputs), uses

    return result_of_trial(traced)


def _linear_layers(module: nn.Module) -> dict[int, nn.Linear]:
    """Return the linear layers by the identities of their weights."""
    return {id(m.weight): m for m in module.modules() if isinstance(m, nn.Linear)}
