"""Losses of logits, log-probabilities and probabilities of classes."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sknan import functional as sf
from sknan.functional._domain import EDGES, is_between, within
from sknan.losses._base import (
    Loss,
    check_number,
    check_reduction,
    largest_of,
    upcast,
)
from sknan.losses._traits import LossTraits

_OF_LOGITS = LossTraits(task="classification", output_kind="logits", infimum=0.0)


def bounded_logits(x: Tensor) -> Tensor:
    """Limit logits so that sums over rows and classes are finite."""
    most = largest_of(x) ** 0.75
    return within(x, -most, most)


class _ClassLoss(Loss):
    """Base class of losses of class codes, one of which may be ignored."""

    weight: Tensor | None
    ignore_index: int

    def predict(self, output: Tensor) -> Tensor:
        """Return the probabilities (n_samples, n_classes)."""
        return sf.softmax(output, dim=-1)

    def _prepared(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        input = upcast(input)
        # Probabilities of the classes, or codes.
        is_soft = target.is_floating_point()
        return input, target.to(input.dtype if is_soft else torch.int64)

    def _counts(self, target: Tensor) -> Tensor | None:
        if target.is_floating_point():
            return None
        is_counted = target != self.ignore_index
        if self.weight is None:
            return is_counted.to(torch.get_default_dtype())
        codes = target.clamp(0, len(self.weight) - 1)
        return torch.where(is_counted, self.weight[codes], 0.0)


class _StandaloneClassLoss(_ClassLoss):
    """Base class of losses of class codes that torch does not have."""

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction


class CrossEntropyLoss(_ClassLoss, nn.CrossEntropyLoss):
    r"""Cross-entropy of logits, :math:`-\log \mathrm{softmax}(z)_y`.

    The parameters are those of ``torch.nn.CrossEntropyLoss``: class weights,
    ``ignore_index``, ``label_smoothing``, ``reduction``.

    Value and gradient are finite for all logits. Their absolute values are limited to
    the largest number to the power of 3/4 (2.5e28 in float32), infinities included. The
    loss is 0 with gradient 0 if all targets are ignored, all weights are zero, or there
    are no rows. Otherwise it is bitwise equal to torch's.

    Shape
    -----
    Logits (n_samples, n_classes, *); class codes (n_samples, *), or probabilities of
    the classes, (n_samples, n_classes, *). Unreduced: (n_samples, *).

    Examples
    --------
    >>> import torch
    >>> from sknan.losses import CrossEntropyLoss
    >>> logits = torch.tensor([[float("inf"), 0.0], [0.0, 0.0]])
    >>> CrossEntropyLoss()(logits, torch.tensor([0, 1]))
    tensor(0.3466)
    >>> CrossEntropyLoss(ignore_index=-1)(logits, torch.tensor([-1, -1]))
    tensor(0.)
    """

    traits = replace(_OF_LOGITS, names=("cross_entropy",))
    _has_torch_kernel = True

    def _derivatives(self, input: Tensor, target: Tensor) -> Tensor | None:
        # The gradient of a row that does not count may be NaN.
        is_ignored = (target - self.ignore_index).abs()
        if self.weight is None and is_between(is_ignored, 0.0, math.inf):
            return None
        return torch.logsumexp(input, 1)

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            bounded_logits(input),
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )


class BCEWithLogitsLoss(Loss, nn.BCEWithLogitsLoss):
    r"""Binary cross-entropy of logits, :math:`\log(1 + e^z) - y z`.

    The parameters are those of ``torch.nn.BCEWithLogitsLoss``: ``weight``,
    ``pos_weight``, ``reduction``.

    Value and gradient are finite for all logits, which are limited as in
    :class:`CrossEntropyLoss`. The loss is 0 if there are no rows. Otherwise it is
    bitwise equal to torch's.

    Shape
    -----
    Logits (n_samples, *); targets of the same shape, 0, 1 or probabilities between.
    """

    traits = replace(
        _OF_LOGITS,
        names=("binary_cross_entropy",),
        is_binary=True,
        target_domain="unit interval",
    )
    _has_torch_kernel = True

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            bounded_logits(input),
            target,
            weight=self.weight,
            pos_weight=self.pos_weight,
            reduction="none",
        )

    def predict(self, output: Tensor) -> Tensor:
        """Return the probabilities of the second class, in the shape of the output."""
        return torch.sigmoid(output)


class FocalLoss(_StandaloneClassLoss):
    r"""Focal loss of logits, :math:`-(1 - p_y)^\gamma \log p_y`.

    Rows that are already classified correctly have less weight. :math:`1 - p` is
    computed without cancellation, and its power has a finite gradient at 0, unlike the
    plain formula with ``gamma`` below 1.

    Parameters
    ----------
    gamma : float, default=2.0
        Exponent of at least 0; 0 is the cross-entropy.
    weight : Tensor of shape (n_classes,) or None, default=None
        Weight of each class.
    ignore_index : int, default=-100
        Class code of targets that are ignored.
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction of the losses.

    Raises
    ------
    ValueError
        If ``gamma`` is negative or not finite.

    Shape
    -----
    Logits (n_samples, n_classes, *), as in :class:`CrossEntropyLoss`; class codes
    (n_samples, *).

    References
    ----------
    T.-Y. Lin et al. Focal Loss for Dense Object Detection. ICCV 2017, arXiv 1708.02002,
    equation 4.
    """

    traits = replace(_OF_LOGITS, names=("focal",))

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(weight, ignore_index=ignore_index, reduction=reduction)
        check_number("gamma", gamma, -math.ulp(0.0), math.inf, "finite and at least 0")
        self.gamma = gamma

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        logs = F.log_softmax(bounded_logits(input), dim=1)
        nll = F.nll_loss(logs, target, ignore_index=self.ignore_index, reduction="none")
        missing = -torch.expm1(-nll)
        losses = sf.power(missing, self.gamma) * nll
        counts = self._counts(target)
        return losses if self.weight is None or counts is None else losses * counts


class NLLLoss(_ClassLoss, nn.NLLLoss):
    r"""Negative log-likelihood of log-probabilities, :math:`-z_y`.

    The parameters are those of ``torch.nn.NLLLoss``. The loss is finite for
    log-probabilities of minus infinity, and 0 if all targets are ignored. Otherwise it
    is bitwise equal to torch's.

    skorch's classifiers take the logarithm themselves for this class, as
    ``log(p + eps)``, whose gradient vanishes for a row that is classified wrongly with
    certainty. For probabilities use :class:`ProbabilityNLLLoss`.

    Shape
    -----
    Log-probabilities (n_samples, n_classes, *); class codes (n_samples, *).
    """

    traits = LossTraits(
        names=("nll",),
        task="classification",
        output_kind="log-probabilities",
        infimum=-math.inf,  # the input need not be normalized
    )
    _has_torch_kernel = True

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(
            bounded_logits(input),
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction="none",
        )


class ProbabilityNLLLoss(_StandaloneClassLoss):
    r"""Negative log-likelihood of probabilities, with a gradient for small ones.

    The loss is :math:`-\log p_y`. Below the smallest normal number (1.2e-38 in float32)
    it is the tangent at that number, so that the gradient is :math:`-1/p` as far as
    that is finite. After a softmax, a row that is classified wrongly with certainty
    then has a gradient near 1. The common ``log(p + eps)`` gives it a gradient of
    p / eps. A softmax that has underflowed to exactly 0 has gradient 0 with any loss:
    prefer logits and :class:`CrossEntropyLoss`.

    The loss is for networks that end with a softmax. skorch passes their output to this
    class unchanged.

    Parameters
    ----------
    weight : Tensor of shape (n_classes,) or None, default=None
        Weight of each class.
    ignore_index : int, default=-100
        Class code of targets that are ignored.
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction of the losses.

    Shape
    -----
    Probabilities (n_samples, n_classes, *); class codes (n_samples, *).

    Examples
    --------
    >>> import torch
    >>> from sknan.losses import ProbabilityNLLLoss
    >>> logits = torch.tensor([[-40.0, 40.0]], requires_grad=True)
    >>> loss = ProbabilityNLLLoss()(torch.softmax(logits, 1), torch.tensor([0]))
    >>> loss.backward()
    >>> logits.grad
    tensor([[-1.,  1.]])
    """

    traits = replace(
        _OF_LOGITS, names=("probability_nll",), output_kind="probabilities"
    )

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        chosen = F.nll_loss(
            input, target, ignore_index=self.ignore_index, reduction="none"
        )
        # Wider than [0, 1], so that the gradient is not 0 at both ends.
        p = within(-chosen, -1.0, 2.0)
        tiny = EDGES[p.dtype].tiny
        tangent = within(p / tiny - 1.0, -largest_of(p), 0.0) + math.log(tiny)
        losses = -torch.where(p > tiny, sf.log(p), tangent)
        if self.weight is not None:
            losses = losses * self.weight[target.clamp(0, len(self.weight) - 1)]
        return torch.where(target == self.ignore_index, 0.0, losses)

    def predict(self, output: Tensor) -> Tensor:
        """Return the output unchanged, since it contains probabilities."""
        return output
