"""Base classes of losses: target alignment, row weights, reduction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sknan._utils.validation import is_number, is_one_of
from sknan.functional._domain import EDGES, can_read_values, is_finite, widen, within
from sknan.losses._traits import LossTraits


def largest_of(x: Tensor) -> float:
    """Return the largest number of the dtype of a widened tensor."""
    return EDGES[x.dtype].largest


def check_reduction(reduction: str) -> None:
    """Raise ValueError for an unknown reduction."""
    if not is_one_of(reduction, ("mean", "sum", "none")):
        raise ValueError(
            f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}."
        )


def check_number(name: str, value: object, low: float, high: float, rule: str) -> None:
    """Raise ValueError unless an option is a number with ``low < value < high``."""
    if not is_number(value) or not low < value < high:
        raise ValueError(f"{name} must be {rule}, got {value!r}.")


def check_positive(name: str, value: object) -> None:
    """Raise ValueError unless an option is a positive finite number."""
    check_number(name, value, 0.0, math.inf, "a positive finite number")


def upcast(x: Tensor) -> Tensor:
    """Return the output of a network in float32 or float64."""
    refuse_other_output(x)
    return widen(x)[0]


def refuse_other_output(x: object) -> None:
    """Raise TypeError unless the output of a network is a tensor of real numbers."""
    found = f"a {type(x).__name__}"
    if isinstance(x, Tensor):
        is_dense = x.layout is torch.strided and not x.is_nested
        is_inexact = x.is_complex() or x.is_floating_point()
        if is_dense and (x.dtype in EDGES or not is_inexact):
            return
        found = f"numbers of {x.dtype}" if is_dense else "a sparse or nested tensor"
        found = "complex numbers" if x.is_complex() else found
    if isinstance(x, (tuple, list)):
        found += f" of {len(x)} values"
    raise TypeError(
        f"The module returns {found}, but the loss needs one tensor of real numbers. "
        "Return only that tensor from forward, or pass a criterion that takes the "
        "whole output."
    )


def aligned(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return output and target in one shape and in one dtype for computation."""
    input = upcast(input)
    if input.shape != target.shape:
        shapes = (tuple(input.shape), tuple(target.shape))
        # (n,) and (n, 1) would broadcast to (n, n).
        shorter, longer = sorted(shapes, key=len)
        if longer != (*shorter, 1):
            raise ValueError(
                f"The output has shape {shapes[0]} and the target {shapes[1]}: they "
                "must be equal, or one (n,) and the other (n, 1)."
            )
        target = target.reshape(input.shape)
    return input, target.to(input.dtype)


def residual(input: Tensor, target: Tensor, most: float) -> Tensor:
    """Return output minus target, clamped to ``[-most, most]``."""
    half = largest_of(input) / 2
    return within(within(input, -half, half) - within(target, -half, half), -most, most)


def row_weights(sample_weight: Tensor, losses: Tensor) -> Tensor:
    """Return one weight for each row, in a shape that broadcasts with the losses."""
    if sample_weight.shape != losses.shape[:1]:
        raise ValueError(
            f"sample_weight has shape {tuple(sample_weight.shape)}, but the loss needs "
            f"one weight per row: {tuple(losses.shape[:1])}."
        )
    shape = (-1,) + (1,) * (losses.ndim - 1)
    return sample_weight.to(losses.dtype).reshape(shape)


def reduced(
    losses: Tensor,
    sample_weight: Tensor | None,
    reduction: str,
    counts: Tensor | None = None,
) -> Tensor:
    """Reduce losses to their mean or sum; the mean of nothing is 0.

    Parameters
    ----------
    losses : Tensor of shape (n_samples, *)
        Finite losses.
    sample_weight : Tensor of shape (n_samples,) or None
        Weight of each row.
    reduction : {"mean", "sum", "none"}
        Reduction; ``"none"`` returns the weighted losses.
    counts : Tensor of the shape of ``losses`` or None, default=None
        Weight of each loss in the denominator of the mean; None is 1.
    """
    check_reduction(reduction)
    largest = largest_of(losses)
    weight = None if sample_weight is None else row_weights(sample_weight, losses)
    if reduction != "mean":
        weighted = losses if weight is None else losses * weight
        total = weighted if reduction == "none" else weighted.sum()
        return within(total, -largest, largest)
    if weight is None and counts is None:
        total = losses.sum() / max(losses.numel(), 1)
        return within(total, -largest, largest)
    shares = torch.ones_like(losses) if counts is None else counts
    if weight is not None:
        shares = shares * weight
    whole = shares.sum()
    whole = torch.where(whole == 0, 1.0, whole)
    # Divided before they are added: the sum may overflow where the mean does not.
    each = losses / whole if weight is None else losses * (weight / whole)
    return within(each.sum(), -largest, largest)


def torchs_or(
    limited: Callable[[], Tensor],
    kernel: Callable[..., Tensor],
    arguments: Sequence[Tensor],
    derivatives_of: Callable[..., Tensor | None] = lambda *arguments: None,
) -> Tensor:
    """Return torch's loss where it and its gradient are finite, else a limited one.

    Parameters
    ----------
    limited : callable
        Function without arguments that returns the limited loss.
    kernel : callable
        Function of torch, of one or more arguments with a gradient.
    arguments : sequence of Tensor
        Its arguments.
    derivatives_of : callable
        Function of the same arguments that returns derivatives which may overflow where
        the loss does not, or None.
    """
    value = kernel(*arguments)
    derivatives = derivatives_of(*(x.detach() for x in arguments))
    if is_finite(value) and (derivatives is None or is_finite(derivatives)):
        return value
    if value.ndim == 0:
        return limited()
    is_right = value.detach().isfinite()
    if derivatives is not None:
        is_right = is_right & derivatives.isfinite()
    is_kept = is_right if value.ndim == arguments[0].ndim else is_right.unsqueeze(1)
    inside = [torch.where(is_kept, x, 1.0) for x in arguments]
    return torch.where(is_right, kernel(*inside), limited())


class Loss(nn.Module):
    """Base class of losses with a finite value, row weights and a reduction.

    A subclass defines ``_losses``, which returns one loss for each element or row,
    limited so that their sum is finite. If it also inherits from a loss of torch and
    sets ``_has_torch_kernel``, torch's fused kernel is called first.
    """

    traits: LossTraits = LossTraits(infimum=0.0)

    _has_torch_kernel: ClassVar[bool] = False
    reduction: str

    def _prepared(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return aligned(input, target)

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def _counts(self, target: Tensor) -> Tensor | None:
        """Return the weight of each loss in the denominator of the mean."""
        return None

    def _derivatives(self, input: Tensor, target: Tensor) -> Tensor | None:
        """Return derivatives that may overflow where torch's loss does not."""
        return None

    def _n_added(self, x: Tensor) -> int:
        """Return the number of losses whose sum must be finite."""
        return 1 if self.reduction == "none" else max(x.numel(), 1)

    def _sum_bound(self, x: Tensor, factor: float = 1.0) -> float:
        """Return a size up to which ``factor`` times all elements have a finite sum."""
        return largest_of(x) / 2 / self._n_added(x) / max(factor, 1.0)

    def _root_bound(self, x: Tensor) -> float:
        """Return a size up to which the squares of all elements have a finite sum."""
        return math.sqrt(largest_of(x) / self._n_added(x)) * (1 - 1e-6)

    def forward(
        self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Compute the loss of an output against a target.

        Parameters
        ----------
        input : Tensor
            Output of the network.
        target : Tensor
            Desired output.
        sample_weight : Tensor of shape (n_samples,) or None, default=None
            Weight of each row. The mean divides by the sum of the weights, and is 0 if
            that sum is 0.

        Returns
        -------
        Tensor
            A scalar, or unreduced losses, in float32 or float64.

        Raises
        ------
        ValueError
            If the shapes do not agree.
        """
        check_reduction(self.reduction)
        input, target = self._prepared(input, target)
        kernel = super().forward

        def limited() -> Tensor:
            losses = self._losses(input, target)
            return reduced(losses, sample_weight, self.reduction, self._counts(target))

        is_torchs = self._has_torch_kernel and sample_weight is None
        if not is_torchs or not can_read_values(input):
            return limited()
        return torchs_or(
            limited,
            lambda x: kernel(x, target),
            [input],
            lambda x: self._derivatives(x, target),
        )


class RegressionLoss(Loss):
    """Base class of losses for numbers."""

    traits = LossTraits(task="regression", infimum=0.0)

    def predict(self, output: Tensor) -> Tensor:
        """Return the output unchanged, in the units of the training target."""
        return output


class StandaloneRegressionLoss(RegressionLoss):
    """Base class of losses for numbers that torch does not have."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction
