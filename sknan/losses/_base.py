"""What all losses share: how targets are brought to outputs, and rows to one number."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sknan.functional._domain import EDGES, can_read_values, is_between, widen, within
from sknan.losses._traits import LossTraits

__all__ = [
    "Loss",
    "aligned",
    "check_reduction",
    "largest_of",
    "reduced",
    "residual",
    "row_weights",
    "upcast",
]

Reduction = Literal["mean", "sum", "none"]


def largest_of(x: Tensor) -> float:
    """Largest number of a widened tensor."""
    return EDGES[x.dtype].largest


def check_reduction(reduction: str) -> None:
    """Refuse what is no reduction."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}."
        )


class _Upcast(torch.autograd.Function):
    """To float32 and back, with a gradient that half precision can hold."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.float()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        largest = EDGES[ctx.dtype].largest
        return gradients[0].clamp(-largest, largest).to(ctx.dtype)


def upcast(x: Tensor) -> Tensor:
    """The output of a network in at least float32."""
    is_half = x.dtype in (torch.float16, torch.bfloat16)
    # A cast alone sends a gradient back that may be too large for a half.
    wide: Tensor = _Upcast.apply(x) if is_half else widen(x)[0]  # type: ignore[no-untyped-call]
    return wide


def aligned(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Output and target in one shape and dtype, wide enough to compute in."""
    input = upcast(input)
    if input.shape != target.shape:
        shapes = (tuple(input.shape), tuple(target.shape))
        # (n,) against (n, 1) would broadcast to (n, n).
        shorter, longer = sorted(shapes, key=len)
        if longer != (*shorter, 1):
            raise ValueError(
                f"The output has shape {shapes[0]} and the target {shapes[1]}: they "
                "must be equal, or one (n,) and the other (n, 1)."
            )
        target = target.reshape(input.shape)
    return input, target.to(input.dtype)


def residual(input: Tensor, target: Tensor, most: float) -> Tensor:
    """Output less target, up to ``most`` in size; slope 0 beyond."""
    half = largest_of(input) / 2
    return within(within(input, -half, half) - within(target, -half, half), -most, most)


def row_weights(sample_weight: Tensor, losses: Tensor) -> Tensor:
    """One weight per row, in a shape that meets the losses."""
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
    """Losses as they are, their sum, or their mean; 0 if there is nothing to average.

    Parameters
    ----------
    losses : Tensor of shape (n_samples, *)
        Finite.
    sample_weight : Tensor of shape (n_samples,) or None
        Factor of the losses of each row.
    reduction : {"mean", "sum", "none"}
        What to do.
    counts : Tensor of the shape of ``losses`` or None, default=None
        What each loss counts for in the mean; None is 1.
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
    # Divided first: their sum may be more than the mean.
    each = losses / whole if weight is None else losses * (weight / whole)
    return within(each.sum(), -largest, largest)


class Loss(nn.Module):
    """A loss that is finite, weighted and reduced; base of all of ours.

    A subclass gives ``_losses``: one loss per element, or per row. Where it also is a
    subclass of a loss of torch, and ``_is_torchs``, torch's own fused kernel comes
    first: if what it says is finite it is right, and so is its gradient.
    """

    traits: ClassVar[LossTraits] = LossTraits(infimum=0.0)

    _is_torchs: ClassVar[bool] = False
    reduction: str

    def _prepared(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return aligned(input, target)

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def _counts(self, target: Tensor) -> Tensor | None:
        """What each loss counts for in the mean."""
        return None

    def forward(
        self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Loss of an output against a target.

        Parameters
        ----------
        input : Tensor
            Output of the network.
        target : Tensor
            What it should be.
        sample_weight : Tensor of shape (n_samples,) or None, default=None
            Factor of the loss of each row; the mean is over the sum of weights, and 0
            if that is 0.

        Returns
        -------
        Tensor
            A scalar, or unreduced. Never of less precision than float32.

        Raises
        ------
        ValueError
            If the shapes do not agree.
        """
        check_reduction(self.reduction)
        input, target = self._prepared(input, target)
        fused = self._is_torchs and sample_weight is None and self.reduction != "none"
        if fused and can_read_values(input):
            value: Tensor = super().forward(input, target)
            if is_between(value, -largest_of(value), largest_of(value)):
                return value
        losses = self._losses(input, target)
        return reduced(losses, sample_weight, self.reduction, self._counts(target))
