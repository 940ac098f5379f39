"""Losses with finite value and gradient, by class and by name.

Where torch has the loss, ours is a subclass of it with the same parameters, and equal
to it to the bit where torch's is finite. All take ``sample_weight``, reduce by
``"mean"``, ``"sum"`` or not at all, return 0 where there is nothing to average, and
compute float16 and bfloat16 in float32, which is also what they return: a sum over many
rows fits into neither. NaN that comes in goes out. A batch whose loss is more than the
dtype holds counts as its largest number, with gradient 0.

An estimator that is told ``criterion="huber"`` also needs to know what the loss is for,
and how the network's raw output becomes a prediction. Each class here carries that:
``task``, ``standardizes_target`` (whether the optimum moves and stretches with the
target), ``target_domain``, ``outputs_per_target``, ``is_per_row`` and ``predict``.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor, nn

from sknan import functional as sf
from sknan._utils.validation import did_you_mean
from sknan.losses._base import check_reduction, reduced
from sknan.losses._classification import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    FocalLoss,
    NLLLoss,
    ProbabilityNLLLoss,
)
from sknan.losses._regression import (
    CorrelationLoss,
    CosineSimilarityLoss,
    GammaLoss,
    GaussianNLLLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    LogCoshLoss,
    MAPELoss,
    MSELoss,
    MSLELoss,
    PoissonNLLLoss,
    PseudoHuberLoss,
    QuantileLoss,
    RMSELoss,
    SMAPELoss,
    TweedieLoss,
)

__all__ = [
    "CLASSIFICATION_LOSSES",
    "REGRESSION_LOSSES",
    "BCEWithLogitsLoss",
    "BoundedLoss",
    "CorrelationLoss",
    "CosineSimilarityLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "GammaLoss",
    "GaussianNLLLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "LogCoshLoss",
    "MAPELoss",
    "MSELoss",
    "MSLELoss",
    "NLLLoss",
    "PoissonNLLLoss",
    "ProbabilityNLLLoss",
    "PseudoHuberLoss",
    "QuantileLoss",
    "RMSELoss",
    "SMAPELoss",
    "TweedieLoss",
    "get_criterion",
    "unbounded",
]

CLASSIFICATION_LOSSES: dict[str, type[Any]] = {
    "cross_entropy": CrossEntropyLoss,
    "binary_cross_entropy": BCEWithLogitsLoss,
    "focal": FocalLoss,
    "nll": NLLLoss,
    "probability_nll": ProbabilityNLLLoss,
}
REGRESSION_LOSSES: dict[str, type[Any]] = {
    "mse": MSELoss,
    "squared_error": MSELoss,
    "rmse": RMSELoss,
    "mae": L1Loss,
    "absolute_error": L1Loss,
    "huber": HuberLoss,
    "pseudo_huber": PseudoHuberLoss,
    "log_cosh": LogCoshLoss,
    "quantile": QuantileLoss,
    "gaussian_nll": GaussianNLLLoss,
    "poisson": PoissonNLLLoss,
    "gamma": GammaLoss,
    "tweedie": TweedieLoss,
    "mape": MAPELoss,
    "smape": SMAPELoss,
    "msle": MSLELoss,
    "kl_div": KLDivLoss,
    "cosine": CosineSimilarityLoss,
    "correlation": CorrelationLoss,
}


def get_criterion(name: str) -> type[Any]:
    """Loss class of a name.

    Parameters
    ----------
    name : str
        A key of ``CLASSIFICATION_LOSSES`` or ``REGRESSION_LOSSES``.

    Returns
    -------
    type
        Subclass of ``torch.nn.Module``.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists the known ones.
    """
    known = CLASSIFICATION_LOSSES | REGRESSION_LOSSES
    if name not in known:
        listed = ", ".join(repr(key) for key in known)
        raise ValueError(
            f"Unknown criterion {name!r}.{did_you_mean(name, known)} "
            f"Known criteria: {listed}."
        )
    return known[name]


class BoundedLoss(nn.Module):
    r"""Any loss, kept in a range by a bend that leaves its gradient alive.

    Each element or row of the loss, :math:`l`, passes through
    :func:`sknan.functional.soft_clamp`: unchanged in the middle half of the range, and
    bent towards the bounds with a slope that falls off only a little faster than
    :math:`1/l`. One row gone astray then neither overflows nor outweighs all others,
    and still learns.

    A loss that cannot fall below ``low``, as a squared error below 0, is not bent
    there. A loss of whole batches, as :class:`RMSELoss`, is bounded as a whole.

    Parameters
    ----------
    loss : nn.Module or callable
        Called with output and target. A copy of it gives one loss per row where it has
        a ``reduction``, so that each is bounded; without one the whole is.
    low : float
        Greatest lower bound.
    high : float
        Least upper bound.
    reduction : {"mean", "sum", "none"} or None, default=None
        What is returned; None is that of ``loss``, or ``"mean"``.

    Raises
    ------
    ValueError
        If the bounds are not finite or not in order.

    Examples
    --------
    >>> import torch
    >>> from sknan.losses import BoundedLoss, MSELoss
    >>> loss = BoundedLoss(MSELoss(), 0.0, 10.0)
    >>> output = torch.tensor([1.0, 1e15], requires_grad=True)
    >>> loss(output, torch.zeros(2)) <= 10.0
    tensor(True)
    >>> loss(output, torch.zeros(2)).backward()
    >>> bool((output.grad > 0).all())
    True
    """

    def __init__(
        self, loss: Any, low: float, high: float, *, reduction: str | None = None
    ) -> None:
        super().__init__()
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                f"low must be less than high and both finite, got {low!r} and {high!r}."
            )
        self.loss = copy.deepcopy(loss)
        self.low = low
        self.high = high
        reduction = str(reduction or getattr(loss, "reduction", "mean"))
        check_reduction(reduction)
        self.reduction = reduction
        self._is_per_row = getattr(loss, "is_per_row", hasattr(loss, "reduction"))
        if self._is_per_row:
            self.loss.reduction = "none"

    def forward(
        self, input: Any, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Loss of an output against a target.

        Parameters
        ----------
        input : Tensor
            Output of the network.
        target : Tensor
            What it should be.
        sample_weight : Tensor of shape (n_samples,) or None, default=None
            Factor of the loss of each row.

        Returns
        -------
        Tensor
            A scalar between ``low`` and ``high``, unless summed or unreduced.
        """
        given: tuple[Any, ...] = (input, target)
        if sample_weight is not None and not self._is_per_row:
            given = (*given, sample_weight)
        losses: Tensor = self.loss(*given)
        width = (self.high - self.low) / 4
        bent_below = None if self.low <= infimum_of(self.loss) else self.low
        losses = sf.soft_clamp(losses, bent_below, self.high, width=width)
        if not self._is_per_row:
            return losses
        return reduced(losses, sample_weight, self.reduction)

    def extra_repr(self) -> str:
        """Bounds and reduction."""
        return f"low={self.low!r}, high={self.high!r}, reduction={self.reduction!r}"


def infimum_of(loss: Any) -> float:
    """Greatest number that a loss is known not to fall below."""
    known = getattr(loss, "infimum", None)
    if known is not None:
        return float(known)
    for ours in (CLASSIFICATION_LOSSES | REGRESSION_LOSSES).values():
        if type(loss) in ours.__mro__[1:] and type(loss) is not nn.Module:
            return float(ours.infimum)
    return -math.inf


def unbounded(criterion: Any) -> Any:
    """The loss inside a :class:`BoundedLoss`, or the criterion itself.

    Parameters
    ----------
    criterion : object
        A loss.

    Returns
    -------
    object
    """
    while isinstance(criterion, BoundedLoss):
        criterion = criterion.loss
    return criterion
