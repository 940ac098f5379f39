"""Losses of relative errors, in the units of the target."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from sknan import functional as sf
from sknan.functional._domain import is_between, within
from sknan.losses._base import (
    StandaloneRegressionLoss,
    check_positive,
    largest_of,
    residual,
    sum_bound,
)


class _FlooredLoss(StandaloneRegressionLoss):
    """Base class of losses whose denominator has a lower bound."""

    def __init__(self, floor: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        check_positive("floor", floor)
        self.floor = floor


class MAPELoss(_FlooredLoss):
    r"""Mean absolute percentage error, :math:`|\hat y - y| / \max(|y|, f)`.

    Parameters
    ----------
    floor : float, default=1.0
        Lower bound of the denominator, :math:`f`, in units of the target. 1 suits
        counts and prices. With a bound far below most targets, the smallest targets
        outweigh all others.
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction of the losses, which are fractions, not percentages.

    Raises
    ------
    ValueError
        If ``floor`` is not a positive finite number.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(StandaloneRegressionLoss.traits, names=("mape",))

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        errors = residual(input, target, sum_bound(input, 1 / self.floor))
        return errors.abs() / within(target.abs(), self.floor, largest_of(target))


class SMAPELoss(_FlooredLoss):
    r"""Symmetric MAPE, :math:`2 |\hat y - y| / \max(|\hat y| + |y|, f)`, at most 2.

    Parameters
    ----------
    floor : float, default=1.0
        Lower bound of the denominator, :math:`f`, in units of the target.
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction of the losses, which are fractions, not percentages.

    Raises
    ------
    ValueError
        If ``floor`` is not a positive finite number.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(StandaloneRegressionLoss.traits, names=("smape",))

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        most = largest_of(input) / 4
        input, target = within(input, -most, most), within(target, -most, most)
        size = within(input.abs() + target.abs(), self.floor, largest_of(input))
        return 2.0 * ((input - target).abs() / size)


class MSLELoss(StandaloneRegressionLoss):
    r"""Squared error of logarithms, :math:`(l(\hat y) - l(y))^2`.

    :math:`l(x) = \mathrm{sign}(x) \log(1 + |x|)`, which is ``log1p`` for numbers of at
    least 0 and is also defined below. A negative prediction therefore has a finite loss
    and a gradient that increases it.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction of the losses.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(StandaloneRegressionLoss.traits, names=("msle",))

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        return (_signed_log1p(input) - _signed_log1p(target)).square()


def _signed_log1p(x: Tensor) -> Tensor:
    if is_between(x, -math.ulp(0.0), math.inf):
        return sf.log1p(x)
    # abs would have gradient 0 at 0.
    size = torch.where(x < 0, -x, x)
    return torch.where(x < 0, -1.0, 1.0) * sf.log1p(size)
