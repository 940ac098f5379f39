"""A loss whose values are bounded, with a gradient everywhere."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sknan import functional as sf
from sknan.losses._base import check_reduction, reduced
from sknan.losses._traits import traits_of

__all__ = ["BoundedLoss", "unbounded"]


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
        # A bounded value does not scale with the unit of the target.
        self.traits = replace(traits_of(loss), unit_power=None)
        self._is_per_row = self.traits.is_per_row and hasattr(loss, "reduction")
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
        bent_below = None if self.low <= self.traits.infimum else self.low
        losses = sf.soft_clamp(losses, bent_below, self.high, width=width)
        if not self._is_per_row:
            return losses
        return reduced(losses, sample_weight, self.reduction)

    def extra_repr(self) -> str:
        """Bounds and reduction."""
        return f"low={self.low!r}, high={self.high!r}, reduction={self.reduction!r}"


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
