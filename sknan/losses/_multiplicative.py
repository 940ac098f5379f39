"""Losses for targets on a multiplicative scale: deviances and relative errors."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from sknan import functional as sf
from sknan.functional._domain import is_between, within
from sknan.losses._base import (
    RegressionLoss,
    StandaloneRegressionLoss,
    check_number,
    check_positive,
    largest_of,
    residual,
)

_SCALED = replace(RegressionLoss.traits, scales_target=True)
_POSITIVE_MEAN = replace(_SCALED, target_domain="non-negative")


def _limited_exp(x: Tensor, knee: float | None = None) -> Tensor:
    """Exponential up to 2.6e15 in float32; beyond, it grows logarithmically.

    A loss of it keeps a gradient that reduces outputs that are too large.
    """
    if knee is None:  # 35 in float32; the product with a target is finite
        knee = 0.4 * math.log(largest_of(x))
    if is_between(x, -math.inf, knee):
        return torch.exp(x)
    beyond = within(x - knee, 0.0, largest_of(x))
    factor = torch.where(x > knee, 1.0 + torch.log1p(beyond), 1.0)
    return torch.exp(within(x, -math.inf, knee)) * factor


class _ScaledLoss(RegressionLoss):
    """Base class of losses whose target is scaled for training."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        has_formula = {"forward", "_losses"} & vars(cls).keys()
        if has_formula and "traits" not in vars(cls):
            # A formula of the user may hold for the target in its own unit only.
            cls.traits = replace(cls.traits, scales_target=False)


class _PositiveMeanLoss(_ScaledLoss):
    """Base class of losses whose output is the logarithm of the predicted mean."""

    def predict(self, output: Tensor) -> Tensor:
        """Return the mean: exp of the output, limited to finite numbers of float32."""
        return sf.exp(output)

    def _limited(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Limit both so that the sum of their products is finite."""
        largest = largest_of(input)
        return (
            within(input, -(largest**0.25), largest**0.25),
            within(target, -(largest**0.5), largest**0.5),
        )


class PoissonNLLLoss(_PositiveMeanLoss, nn.PoissonNLLLoss):
    r"""Poisson likelihood of counts, :math:`e^z - y z`; the output is the log-rate.

    The parameters are those of ``torch.nn.PoissonNLLLoss``. If the loss of a batch
    overflows, the exponential continues logarithmically (in float32 above a log-rate of
    84 less the logarithm of the number of elements), so that a diverged rate still has
    a gradient that reduces it. Otherwise the loss is bitwise equal to torch's. With
    ``log_input=False`` the output is the rate, and its logarithm is
    :func:`sknan.functional.log`.

    Shape
    -----
    Output and target (n_samples, *); targets of at least 0. Unreduced: the same.
    """

    traits = replace(_POSITIVE_MEAN, names=("poisson",), infimum=-math.inf)
    _has_torch_kernel = True

    def _derivatives(self, input: Tensor, target: Tensor) -> Tensor | None:
        return None if self.log_input else target / (input + self.eps)

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        input, target = self._limited(input, target)
        if self.log_input:
            # Beyond the knee the exponential grows by a factor of less than 90.
            knee = math.log(largest_of(input) / 100 / self._n_added(input))
            losses = _limited_exp(input, knee) - target * input
        else:
            losses = input - target * sf.log(input + self.eps)
        if self.full:
            above = torch.where(target > 1, target, 1.0)
            stirling = above * torch.log(above) - above
            stirling = stirling + 0.5 * torch.log(2 * math.pi * above)
            losses = losses + torch.where(target > 1, stirling, 0.0)
        return losses

    def predict(self, output: Tensor) -> Tensor:
        """Return the rate: exp of the output, limited to finite numbers of float32."""
        return super().predict(output) if self.log_input else output


class GammaLoss(_PositiveMeanLoss, StandaloneRegressionLoss):
    r"""Half the gamma deviance, :math:`y / \mu - 1 - \log(y / \mu)`.

    It is for positive targets whose spread grows with their mean. The output is
    :math:`\log \mu`; see :class:`PoissonNLLLoss` for large outputs.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction of the losses.

    Shape
    -----
    Output and target (n_samples, *); targets above 0. Unreduced: the same.
    """

    traits = replace(_POSITIVE_MEAN, names=("gamma",), target_domain="positive")

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        input, target = self._limited(input, target)
        return target * _limited_exp(-input) - 1.0 + (input - sf.log(target))


class TweedieLoss(_PositiveMeanLoss, StandaloneRegressionLoss):
    r"""Half the Tweedie deviance, for targets with zeros and a positive tail.

    .. math::

        \frac{y^{2 - p}}{(1 - p)(2 - p)} - \frac{y \mu^{1 - p}}{1 - p}
        + \frac{\mu^{2 - p}}{2 - p}

    The output is :math:`\log \mu`; see :class:`PoissonNLLLoss` for large outputs.

    Parameters
    ----------
    power : float, default=1.5
        Exponent :math:`p`, strictly between 1 (Poisson) and 2 (gamma).
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction of the losses.

    Raises
    ------
    ValueError
        If ``power`` is not between 1 and 2.

    Shape
    -----
    Output and target (n_samples, *); targets of at least 0. Unreduced: the same.

    References
    ----------
    B. Jorgensen. The Theory of Dispersion Models. Chapman & Hall, 1997, chapter 4.
    """

    traits = replace(_POSITIVE_MEAN, names=("tweedie",))

    def __init__(self, power: float = 1.5, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        rule = "between 1 and 2 ('poisson' is 1 and 'gamma' is 2)"
        check_number("power", power, 1.0, 2.0, rule)
        self.power = power

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        input, target = self._limited(input, target)
        p = self.power
        constant = sf.power(target, 2 - p) / ((1 - p) * (2 - p))
        at_mean = _limited_exp((2 - p) * input) / (2 - p)
        return constant + target * _limited_exp((1 - p) * input) / (p - 1) + at_mean


class UnitLoss(_ScaledLoss, StandaloneRegressionLoss):
    """Base class of losses with a constant in the unit of the target.

    Attributes
    ----------
    unit : Tensor of shape () or (n_targets,), or None
        Number by which the target was divided for training. The loss is computed from
        output and target times ``unit``, so that its constant keeps its meaning.
    """

    unit: Tensor | None

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.register_buffer("unit", None)

    def _prepared(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        input, target = super()._prepared(input, target)
        if self.unit is None:
            return input, target
        unit = self.unit.to(input.dtype)
        return input * unit, target * unit


class _FlooredLoss(UnitLoss):
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

    traits = replace(_SCALED, names=("mape",))

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        errors = residual(input, target, self._sum_bound(input, 1 / self.floor))
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

    traits = replace(_SCALED, names=("smape",))

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        most = largest_of(input) / 4
        input, target = within(input, -most, most), within(target, -most, most)
        size = within(input.abs() + target.abs(), self.floor, largest_of(input))
        return 2.0 * ((input - target).abs() / size)


class MSLELoss(UnitLoss):
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

    traits = replace(_SCALED, names=("msle",))

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        return (_signed_log1p(input) - _signed_log1p(target)).square()


def _signed_log1p(x: Tensor) -> Tensor:
    if is_between(x, -math.ulp(0.0), math.inf):
        return sf.log1p(x)
    # abs would have gradient 0 at 0.
    size = torch.where(x < 0, -x, x)
    return torch.where(x < 0, -1.0, 1.0) * sf.log1p(size)
