"""Losses that compare distributions, directions and correlations."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from sknan import functional as sf
from sknan.functional._domain import can_read_values, within
from sknan.losses._base import (
    RegressionLoss,
    StandaloneRegressionLoss,
    aligned,
    check_reduction,
    largest_of,
    reduced,
    row_weights,
    torchs_or,
)


class KLDivLoss(RegressionLoss, nn.KLDivLoss):
    r"""Kullback-Leibler divergence, :math:`q (\log q - \log p)` per element.

    The parameters are those of ``torch.nn.KLDivLoss``, with ``reduction="batchmean"``
    and ``log_target``. Log-probabilities of minus infinity count as minus the largest
    number to the power of 3/4.

    Parameters
    ----------
    reduction : {"mean", "batchmean", "sum", "none"}, default="mean"
        Reduction of the losses; ``"batchmean"``, the sum over the number of rows, is
        the divergence itself.
    log_target : bool, default=False
        Whether the target contains log-probabilities.
    from_logits : bool, default=False
        Whether the output contains logits, which are then normalized.

    Shape
    -----
    Log-probabilities or logits (n_samples, n_classes); target of the same shape.
    Unreduced: the same.
    """

    traits = replace(
        RegressionLoss.traits,
        names=("kl_div",),
        target_domain="non-negative",
        infimum=-math.inf,  # a single element may be negative, the sum of a row is not
    )

    def __init__(
        self,
        reduction: str = "mean",
        *,
        log_target: bool = False,
        from_logits: bool = False,
    ) -> None:
        if reduction != "batchmean":
            check_reduction(reduction)
        super().__init__(reduction=reduction, log_target=log_target)
        self.from_logits = from_logits

    def forward(
        self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Compute the loss; see :meth:`MSELoss.forward`."""
        input, target = aligned(input, target)
        if self.from_logits:
            input = sf.log_softmax(input, dim=-1)

        def limited() -> Tensor:
            losses = self._limited_losses(input, target)
            if self.reduction != "batchmean":
                return reduced(losses, sample_weight, self.reduction)
            return reduced(losses.flatten(1).sum(1), sample_weight, "mean")

        def of_torch(input: Tensor) -> Tensor:
            losses = self._divergence(input, target)
            if self.reduction == "none":
                return losses
            count = {"mean": losses.numel(), "batchmean": len(losses), "sum": 1}
            return losses.sum() / max(count[self.reduction], 1)

        if sample_weight is not None or not can_read_values(input):
            return limited()
        return torchs_or(limited, of_torch, [input])

    def _limited_losses(self, input: Tensor, target: Tensor) -> Tensor:
        most = largest_of(input) ** 0.75
        bound = most / self._n_added(input)  # terms of both signs have a finite sum
        input = within(input, -bound, bound)
        if self.log_target:
            target = within(target, -most, math.log(largest_of(input)) / 4)
        else:
            target = within(target, -(most ** (1 / 4)), most ** (1 / 4))
        return self._divergence(input, target)

    def _divergence(self, input: Tensor, target: Tensor) -> Tensor:
        # torch has no batching rule for its kl_div.
        if self.log_target:
            return torch.exp(target) * (target - input)
        return torch.xlogy(target, target) - target * input

    def predict(self, output: Tensor) -> Tensor:
        """Return the probabilities (n_samples, n_classes)."""
        return sf.softmax(output) if self.from_logits else sf.exp(output)


class CosineSimilarityLoss(StandaloneRegressionLoss):
    r"""One minus the cosine between output and target of each row; 1 if one is zero.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction of the losses.

    Shape
    -----
    Output and target (n_samples, n_targets). Unreduced: (n_samples,).
    """

    traits = replace(StandaloneRegressionLoss.traits, names=("cosine",))

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        return 1.0 - sf.cosine_similarity(input, target, dim=-1)


class CorrelationLoss(StandaloneRegressionLoss):
    r"""One minus Pearson's correlation of output and target over the rows of a batch.

    It is 1 if output or target is constant. It does not depend on the location and the
    scale of the output, so that only the order and the shape of predictions are
    learned.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction over the columns; ``"none"`` gives one term for each row and column,
        whose mean over the rows is the loss of the column.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(
        StandaloneRegressionLoss.traits,
        names=("correlation",),
        standardizes_target=True,
        is_per_row=False,
    )

    def forward(
        self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Compute the loss; see :meth:`MSELoss.forward`."""
        check_reduction(self.reduction)
        input, target = aligned(input, target)
        if sample_weight is None and self.reduction != "none" and len(input):
            losses = 1.0 - sf.correlation(input, target, dim=0)
            return losses.mean() if self.reduction == "mean" else losses.sum()
        if sample_weight is None:
            sample_weight = input.new_ones(len(input))
        weight = row_weights(sample_weight, input)
        whole = weight.sum()
        shares = weight / torch.where(whole == 0, 1.0, whole)
        products = _standardized(input, shares) * _standardized(target, shares)
        if self.reduction == "none":
            return 1.0 - products
        correlations = (products * shares).sum(0)
        # The loss of no rows, or of rows without weight, is 0.
        losses = torch.where(shares.sum() > 0, 1.0 - correlations, 0.0)
        return losses.mean() if self.reduction == "mean" else losses.sum()


def _standardized(x: Tensor, shares: Tensor) -> Tensor:
    """Standardize columns by their weighted mean and standard deviation."""
    most = largest_of(x) / 4 / math.sqrt(max(x.numel(), 1))
    x = within(x, -most, most)
    centered = x - (x * shares).sum(0, keepdim=True)
    spread = sf.norm(centered * sf.sqrt(shares), dim=0, keepdim=True)
    # sf.divide, since the quotient by a small standard deviation may overflow.
    return sf.divide(centered, spread, eps=largest_of(x) ** -0.5)
