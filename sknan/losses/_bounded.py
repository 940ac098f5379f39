"""Smooth bounds for the values of any loss."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sknan import functional as sf
from sknan._utils.validation import check_bounds
from sknan.losses._base import check_reduction, reduced
from sknan.losses._per_label import PerLabelLoss
from sknan.losses._traits import traits_of


class BoundedLoss(nn.Module):
    r"""Bound the values of a loss smoothly, so that its gradient does not vanish.

    Each element or row of the loss, :math:`l`, is passed to
    :func:`sknan.functional.soft_clamp`. It is unchanged in the middle half of the
    range, and beyond approaches the bounds with a gradient that falls only a little
    faster than :math:`1/l`. A single row with a huge loss then neither overflows nor
    outweighs all others, and still has a gradient.

    A loss that cannot fall below ``low``, such as a squared error below 0, is not
    changed near ``low``. A loss of whole batches, such as :class:`RMSELoss`, is bounded
    as a whole.

    Parameters
    ----------
    loss : nn.Module or callable
        Function of output and target. If it has a ``reduction``, a copy of it computes
        one loss per row, and each is bounded; otherwise the whole is bounded.
    low : float
        Lower bound.
    high : float
        Upper bound.
    reduction : {"mean", "sum", "none"} or None, default=None
        Reduction of the bounded losses; None is that of ``loss``, or ``"mean"``.

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
        check_bounds(low, high)
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
        """Compute the loss of an output against a target.

        Parameters
        ----------
        input : Tensor
            Output of the network.
        target : Tensor
            Desired output.
        sample_weight : Tensor of shape (n_samples,) or None, default=None
            Weight of each row.

        Returns
        -------
        Tensor
            A scalar between ``low`` and ``high``, unless summed or unreduced.
        """
        takes_weight = sample_weight is not None and not self._is_per_row
        weights = (sample_weight,) if takes_weight else ()
        losses: Tensor = self.loss(input, target, *weights)
        width = (self.high - self.low) / 4
        lower_bound = None if self.low <= self.traits.infimum else self.low
        losses = sf.soft_clamp(losses, lower_bound, self.high, width=width)
        if not self._is_per_row:
            return losses
        return reduced(losses, sample_weight, self.reduction)

    def extra_repr(self) -> str:
        """Return bounds and reduction."""
        return f"low={self.low!r}, high={self.high!r}, reduction={self.reduction!r}"


def unbounded(criterion: Any) -> Any:
    """Return the loss inside a :class:`BoundedLoss`, or the criterion itself.

    The wrapper of a loss that is computed for each of several labels is removed too.

    Parameters
    ----------
    criterion : object
        A loss.

    Returns
    -------
    object
    """
    while isinstance(criterion, (BoundedLoss, PerLabelLoss)):
        criterion = criterion.loss
    return criterion
