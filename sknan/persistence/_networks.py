"""Fitted networks as torch modules: prepared numbers in, predictions out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from skorch import NeuralNetBinaryClassifier
from torch import Tensor, nn

from sknan._utils.compiled import original_of
from sknan._utils.pickling import copy_of_module
from sknan._utils.thresholds import OVERFLOWS_SQUARED
from sknan._utils.tree import first_of
from sknan._utils.validation import FLOAT32_MAX
from sknan.estimators._base import StableNetBase
from sknan.estimators._class_outputs import ClassCoding
from sknan.estimators._target_scaling import NumberCoding
from sknan.losses._bounded import unbounded
from sknan.losses._traits import predictions
from sknan.nets._chain import FAR_FROM_OVERFLOW, output_bound
from sknan.nets.recovery.finite_operations import RepairedOperations


class Network(nn.Module):
    """Module of a fitted net, with the repair of its output.

    Parameters
    ----------
    net : FittedNetwork or skorch net with OutputMixin
        Fitted net.
    largest : float
        Bound of the finite numbers that the module receives.
    """

    def __init__(self, net: Any, largest: float = math.inf) -> None:
        super().__init__()
        module = copy_of_module(original_of(net.module_)).cpu().eval()
        self.module = module.requires_grad_(False)
        self._allows_ruled_out = net._may_rule_out_classes
        rows = torch.full((1, 1), largest)
        is_safe = output_bound(self.module, rows) < FAR_FROM_OVERFLOW
        self._is_repaired = net.on_nonfinite == "recover" and not is_safe
        self._range = None
        if net._output_range_ is not None:
            low, high = net._output_range_[0]
            self._range = (low.cpu(), high.cpu())

    def forward(self, X: Tensor) -> Tensor:
        """Return the output; NaN or infinite in rows that cannot be repaired."""
        output = _first(self.module(X))
        if not self._is_repaired:
            return output
        is_sound = self._are_sound(output, output.isfinite())
        is_bad = ~is_sound & _all_of_row(X.isfinite())
        # Rows that need no repair must not affect the flags of a batch.
        rows = torch.where(_along(is_bad, X), X, 0.0)
        repaired = _repaired(self.module, rows)
        if self._range is not None:
            low, high = (bound.to(output) for bound in self._range)
            repaired = torch.minimum(torch.maximum(repaired, low), high)
        is_repaired = is_bad & self._are_sound(
            repaired, repaired.abs() < OVERFLOWS_SQUARED
        )
        return torch.where(_along(is_repaired, output), repaired, output)

    def _are_sound(self, output: Tensor, is_sound: Tensor) -> Tensor:
        """Return which rows are sound, by which of their values are."""
        if self._allows_ruled_out and output.ndim > 1:
            any_sound = is_sound.flatten(1).any(dim=1)
            is_sound = is_sound | (output.isneginf() & _along(any_sound, output))
        return _all_of_row(is_sound)


class EstimatorNetwork(nn.Module):
    """Network of a fitted estimator, from prepared numbers to its raw output."""

    mean: Tensor
    scale: Tensor

    def __init__(self, estimator: StableNetBase, largest: float) -> None:
        super().__init__()
        scaling = estimator._scaling
        self._is_scaled = scaling is not None
        if scaling is not None:
            largest = math.inf
            self.register_buffer("mean", torch.from_numpy(scaling.mean))
            self.register_buffer("scale", torch.from_numpy(scaling.scale))
        self.network = Network(estimator._fitted, largest)

    def forward(self, X: Tensor) -> Tensor:
        """Return the output; NaN for rows that ``predict`` refuses."""
        is_valid = _all_of_row(X.abs() <= FLOAT32_MAX)
        if self._is_scaled:
            X = (X.double() / 2 - self.mean / 2) / self.scale * 2
        # A copy, because the module may work in place.
        output = self.network(X.to(torch.float32, copy=True)).float()
        is_valid = is_valid & _all_of_row(output.isfinite())
        return torch.where(_along(is_valid, output), output, torch.nan)


class Numbers(nn.Module):
    """Predicted numbers in the units of ``y``."""

    limit: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, coding: NumberCoding, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = copy.deepcopy(unbounded(criterion)).cpu()
        self._shape = coding.shape
        self._dtype = getattr(torch, coding.dtype.__name__)
        limit = np.finfo(coding.dtype).max.astype(np.float64)
        self.register_buffer("limit", torch.from_numpy(np.asarray(limit)))
        for name, values in (("mean", coding.mean), ("scale", coding.scale)):
            self.register_buffer(name, torch.from_numpy(values).reshape(-1, 1))

    def forward(self, output: Tensor) -> Tensor:
        """Convert (n_samples, n_outputs) to the shape and dtype of ``predict``."""
        found = predictions(self.criterion, output).double()
        several = found.shape[2:]  # such as the quantiles of each target
        # -1 would be ambiguous for 0 rows.
        n_targets = self.mean.shape[0]
        n_each = found.shape[1:].numel() // n_targets
        found = found.reshape(found.shape[0], n_targets, n_each)
        found = found * self.scale + self.mean
        # Comparisons with a tensor: ONNX has limits of clamp in float32.
        found = torch.where(found > self.limit, self.limit, found)
        found = torch.where(found < -self.limit, -self.limit, found).to(self._dtype)
        return found.reshape(found.shape[0], *self._shape, *several)


class Probabilities(nn.Module):
    """Probabilities of classes, or their logarithms in float64."""

    def __init__(
        self, coding: ClassCoding, criterion: nn.Module, *, in_logs: bool = False
    ) -> None:
        super().__init__()
        self.criterion = copy.deepcopy(criterion).cpu()
        self._convert: Callable[..., Tensor] = (
            coding.log_responses if in_logs else coding.responses
        )

    def forward(self, output: Tensor) -> Tensor:
        """Convert (n_samples, n_outputs) to (n_samples, n_classes)."""
        found: Tensor = self._convert(self.criterion, output)
        return found


class MeanOfNetworks(nn.Module):
    """Mean of the predictions of several networks, computed in float64."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, X: Tensor) -> Tensor:
        """Return the mean in the dtype of a prediction."""
        each: list[Tensor] = [network(X) for network in self.networks]
        # Each term is divided first: a sum of values near the largest would overflow.
        share = 1.0 / len(each)
        mean = each[0].double() * share
        for one in each[1:]:
            mean = mean + one.double() * share
        return mean.type_as(each[0])


class CalibratedMean(nn.Module):
    """Mean of probabilities, given as logarithms, at a temperature."""

    def __init__(
        self, networks: Sequence[nn.Module], temperature: float, *, is_pair: bool
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self._temperature = temperature
        self._is_pair = is_pair

    def forward(self, X: Tensor) -> Tensor:
        """Return the calibrated probabilities."""
        each = torch.stack([network(X) for network in self.networks])
        logs = each.logsumexp(dim=0) - math.log(len(self.networks))
        found = torch.softmax(logs / self._temperature, dim=-1).float()
        return found[..., 1] if self._is_pair else found


class NetPredictions(nn.Module):
    """Prediction of a guarded skorch net, as its ``predict_proba``."""

    def __init__(self, net: Any, largest: float) -> None:
        super().__init__()
        self.network = Network(net, largest)
        self._nonlinearity = net._get_predict_nonlinearity()
        self._is_flat = isinstance(net, NeuralNetBinaryClassifier)
        weights = [p for p in self.network.parameters() if p.is_floating_point()]
        self._dtype = weights[0].dtype if weights else torch.float32

    def forward(self, X: Tensor) -> Tensor:
        """Return the prediction; NaN for rows that ``predict`` refuses."""
        # A copy, because the module may work in place.
        output = self.network(X.to(self._dtype, copy=True))
        output = output.reshape(-1) if self._is_flat else output
        output = self._nonlinearity(output)
        is_sound = self.network._are_sound(output, output.isfinite())
        return torch.where(_along(is_sound, output), output, torch.nan)


@torch._disable_dynamo  # type: ignore[attr-defined]
def _repaired(module: nn.Module, X: Tensor) -> Tensor:
    """Return the output with each operation kept inside its domain.

    ``torch.compile`` cannot trace the mode, and runs this function without it.
    """
    with RepairedOperations():
        return _first(module(X))


def _along(rows: Tensor, values: Tensor) -> Tensor:
    """Return flags of rows in a shape that broadcasts along the values of a row."""
    return rows.reshape(-1, *[1] * (values.ndim - 1))


def _all_of_row(flags: Tensor) -> Tensor:
    return flags.flatten(1).all(dim=1) if flags.ndim > 1 else flags


def _first(output: Any) -> Tensor:
    first: Tensor = first_of(output)
    return first
