"""Losses for numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sknan import functional as sf
from sknan.functional._domain import can_read_values, is_between, within
from sknan.losses._base import (
    Loss,
    aligned,
    check_reduction,
    largest_of,
    reduced,
    residual,
    row_weights,
    upcast,
)
from sknan.losses._traits import LossTraits

__all__ = [
    "CorrelationLoss",
    "CosineSimilarityLoss",
    "GammaLoss",
    "GaussianNLLLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "LogCoshLoss",
    "MAPELoss",
    "MSELoss",
    "MSLELoss",
    "PoissonNLLLoss",
    "PseudoHuberLoss",
    "QuantileLoss",
    "RMSELoss",
    "SMAPELoss",
    "TweedieLoss",
]


_DISTANCE = LossTraits(task="regression", standardizes_target=True, infimum=0.0)
_IN_UNITS = replace(_DISTANCE, standardizes_target=False)
_POSITIVE_MEAN = replace(_IN_UNITS, target_domain="non-negative")


class _ValueLoss(Loss):
    """A loss whose optimum moves and stretches with the target."""

    traits = _DISTANCE

    def predict(self, output: Tensor) -> Tensor:
        """The output itself, in the units it was trained on."""
        return output


class _Own(_ValueLoss):
    """A loss that torch does not have."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}.")


# -- distances -----------------------------------------------------------------------


def _root_bound(x: Tensor) -> float:
    """Size up to which the squares of all elements have a finite sum."""
    return math.sqrt(largest_of(x) / max(x.numel(), 1)) * (1 - 1e-6)


def _sum_bound(x: Tensor, slope: float = 1.0) -> float:
    """Size up to which all elements, ``slope`` times each, have a finite sum."""
    return largest_of(x) / 2 / max(x.numel(), 1) / max(slope, 1.0)


class MSELoss(_ValueLoss, nn.MSELoss):
    r"""Squared error, :math:`(\hat y - y)^2`.

    Residuals count up to the root of the largest number over their number (1.8e19 in
    float32 for one, 1.8e16 for a million), beyond which the sum may overflow; slope 0
    there. Otherwise torch's, to the bit.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_DISTANCE, names=("mse", "squared_error"), unit_power=2)
    _is_torchs = True

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        return residual(input, target, _root_bound(input)).square()


class RMSELoss(_Own):
    r"""Root of the mean squared error, :math:`\sqrt{\sum_i w_i (\hat{y_i} - y_i)^2}`.

    The weights :math:`w` sum to 1. Where all residuals are 0 so is the gradient, of
    which the formula written out makes NaN. Taken as a length, so that squares do not
    overflow.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default="mean"
        ``"sum"`` is the root of the sum; unreduced is the size of each residual.

    Shape
    -----
    Output and target (n_samples, *).
    """

    traits = replace(_DISTANCE, names=("rmse",), is_per_row=False)

    def forward(
        self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Loss; see :meth:`MSELoss.forward`."""
        check_reduction(self.reduction)
        input, target = aligned(input, target)
        if (
            self.reduction == "mean"
            and sample_weight is None
            and can_read_values(input)
        ):
            squared = F.mse_loss(input, target)
            # Away from 0, where the root has no slope, and finite.
            if is_between(squared, largest_of(input) ** -0.75, largest_of(input)):
                return torch.sqrt(squared)
        errors = residual(input, target, _sum_bound(input))
        if self.reduction == "none":
            return reduced(errors.abs(), sample_weight, "none")
        count = float(max(errors.numel(), 1))
        if sample_weight is None:
            length = sf.norm(errors)
            return length / math.sqrt(count) if self.reduction == "mean" else length
        weight = row_weights(sample_weight, errors)
        if self.reduction == "mean":
            whole = weight.sum() * (count / max(weight.numel(), 1))
            weight = weight / torch.where(whole == 0, 1.0, whole)
        return sf.norm(errors * sf.sqrt(weight))


class L1Loss(_ValueLoss, nn.L1Loss):
    r"""Absolute error, :math:`|\hat y - y|`, with slope 0 at 0.

    Residuals count up to half of the largest number over their number. Otherwise
    torch's, to the bit.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_DISTANCE, names=("mae", "absolute_error"), unit_power=1)
    _is_torchs = True

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        return residual(input, target, _sum_bound(input)).abs()


class HuberLoss(_ValueLoss, nn.HuberLoss):
    r"""Squared error up to ``delta``, absolute beyond.

    .. math:: r^2 / 2 \quad\text{or}\quad \delta (|r| - \delta / 2)

    Parameters as of ``torch.nn.HuberLoss``; ``delta`` is in standard deviations of the
    target where an estimator standardises it. Residuals count as in :class:`L1Loss`.
    Otherwise torch's, to the bit.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_DISTANCE, names=("huber",), unit_power=1)
    _is_torchs = True

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        errors = residual(input, target, _sum_bound(input, self.delta))
        return F.huber_loss(
            errors, torch.zeros_like(errors), reduction="none", delta=self.delta
        )


class PseudoHuberLoss(_Own):
    r"""Smooth Huber loss, :math:`\delta^2 (\sqrt{1 + (r / \delta)^2} - 1)`.

    Written as :math:`\delta^2 u \cdot u / (1 + \sqrt{1 + u^2})` with
    :math:`u = r / \delta`, which neither cancels for small residuals nor overflows for
    large ones.

    Parameters
    ----------
    delta : float, default=1.0
        Residual around which it turns from squared to absolute; positive.
    reduction : {"mean", "sum", "none"}, default="mean"
        What is returned.

    Raises
    ------
    ValueError
        If ``delta`` is not a positive finite number.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_DISTANCE, names=("pseudo_huber",))

    def __init__(self, delta: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        _check_positive("delta", delta)
        self.delta = delta

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        most = _sum_bound(input, max(self.delta, 1 / self.delta))
        u = residual(input, target, most) / self.delta
        if is_between(u, -100.0, 100.0):
            # The same, and faster; the exponential of a large logarithm is less exact.
            return torch.expm1(0.5 * torch.log1p(u.square())) * self.delta**2
        root = torch.hypot(u, torch.ones_like(u))
        return u * (u / (1.0 + root)) * self.delta**2


class LogCoshLoss(_Own):
    r"""Logarithm of the hyperbolic cosine of the residual.

    Written as :math:`\log(1 + 2 \sinh^2(r / 2))` up to 20, which is exact for small
    residuals, and as :math:`|r| - \log 2` beyond, where the two agree in float64 too;
    the formula written out overflows from 89 on.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default="mean"
        What is returned.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_DISTANCE, names=("log_cosh",))

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        errors = residual(input, target, _sum_bound(input))
        inner = within(errors, -20.0, 20.0)
        near = torch.log1p(2.0 * torch.sinh(inner * 0.5).square())
        if inner is errors:
            return near
        return torch.where(errors.abs() < 20.0, near, errors.abs() - math.log(2.0))


class QuantileLoss(_Own):
    r"""Pinball loss, whose optimum is a quantile: :math:`\max(q r, (q - 1) r)`.

    :math:`r` is target less output.

    Parameters
    ----------
    quantile : float, default=0.5
        Strictly between 0 and 1.
    reduction : {"mean", "sum", "none"}, default="mean"
        What is returned.

    Raises
    ------
    ValueError
        If ``quantile`` is not between 0 and 1.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_DISTANCE, names=("quantile",))

    def __init__(self, quantile: float = 0.5, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must be between 0 and 1, got {quantile!r}.")
        self.quantile = quantile

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        missing = residual(target, input, _sum_bound(input))
        q = self.quantile
        return torch.maximum(q * missing, (q - 1.0) * missing)


class GaussianNLLLoss(_ValueLoss, nn.GaussianNLLLoss):
    r"""Likelihood of a normal distribution whose variance is learned as well.

    .. math:: \tfrac{1}{2} (\log \sigma^2 + (\hat y - y)^2 / \sigma^2)

    The network gives two numbers per target: the means, then as many numbers :math:`s`
    of any sign, from which :math:`\sigma^2 = \mathrm{softplus}(s) + \epsilon`. They may
    come in one tensor or as a pair. With ``var`` given it is torch's loss of mean and
    variance, where a variance below ``eps`` counts as that.

    Residuals count up to ``eps`` times the root of the largest number over their
    number: 1.8e13 in float32 for one.

    Parameters
    ----------
    full : bool, default=False
        Whether to add the constant :math:`\tfrac{1}{2} \log 2 \pi`.
    eps : float, default=1e-06
        Floor of the variance; positive.
    reduction : {"mean", "sum", "none"}, default="mean"
        What is returned.

    Raises
    ------
    ValueError
        If ``eps`` is not a positive finite number.

    Shape
    -----
    Output (n_samples, 2 * n_targets), or a pair of (n_samples, n_targets); target
    (n_samples, n_targets).
    """

    traits = replace(
        _DISTANCE, names=("gaussian_nll",), outputs_per_target=2, infimum=-math.inf
    )

    def __init__(
        self, *, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
    ) -> None:
        check_reduction(reduction)
        _check_positive("eps", eps)
        super().__init__(full=full, eps=eps, reduction=reduction)

    def forward(  # type: ignore[override]
        self,
        input: Any,
        target: Tensor,
        var: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Loss; ``sample_weight`` as in :meth:`MSELoss.forward`."""
        if var is None:
            mean, raw = _halves(input)
            var = sf.softplus(upcast(raw))
            var = within(var + self.eps, 0.0, largest_of(var))
        else:
            mean = input
            var = upcast(var)
            var = within(var, self.eps, largest_of(var))
        mean, target = aligned(mean, target)
        var = var.reshape(mean.shape) if var.numel() == mean.numel() else var
        # The slope by the variance is the square of this over its own square.
        most = _root_bound(mean) * min(self.eps, 1.0) / 2
        errors = residual(mean, target, most)
        losses = 0.5 * (torch.log(var) + errors.square() / var)
        if self.full:
            losses = losses + 0.5 * math.log(2 * math.pi)
        return reduced(losses, sample_weight, self.reduction)

    def predict(self, output: Any) -> Tensor:
        """The means (n_samples, n_targets)."""
        return _halves(output)[0]


def _halves(output: Any) -> tuple[Tensor, Tensor]:
    """Means and raw variances, from a pair or from one tensor."""
    if isinstance(output, (tuple, list)):
        mean, raw = output[:2]
        return mean, raw
    if output.shape[-1] % 2:
        raise ValueError(
            "GaussianNLLLoss needs two outputs per target, means and raw variances, "
            f"but the output has shape {tuple(output.shape)}."
        )
    mean, raw = output.chunk(2, dim=-1)
    return mean, raw


# -- rates, on the log scale ---------------------------------------------------------

# Numbers of the log scale up to this share of the dtype's own are exponentiated: e**35
# in float32.
_SHARE_OF_LOG = 0.4


def _growing_exp(x: Tensor) -> Tensor:
    """Exponential up to 2.6e15 (in float32); from there on it grows slowly.

    By the logarithm of the distance: a loss of it keeps a slope that leads back.
    """
    knee = _SHARE_OF_LOG * math.log(largest_of(x))
    if is_between(x, -math.inf, knee):
        return torch.exp(x)
    beyond = within(x - knee, 0.0, largest_of(x))
    factor = torch.where(x > knee, 1.0 + torch.log1p(beyond), 1.0)
    return torch.exp(within(x, -math.inf, knee)) * factor


class _RateLoss(_ValueLoss):
    """A loss of positive means; the output is their logarithm."""

    def predict(self, output: Tensor) -> Tensor:
        """The mean: exp of the output, bounded to stay finite in float32."""
        return sf.exp(output)

    def _prepared(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        input, target = aligned(input, target)
        # Their product has a finite sum.
        largest = largest_of(input)
        return (
            within(input, -(largest**0.25), largest**0.25),
            within(target, -(largest**0.5), largest**0.5),
        )


class PoissonNLLLoss(_RateLoss, nn.PoissonNLLLoss):
    r"""Poisson likelihood of counts, :math:`e^z - y z`; the output is the log-rate.

    Parameters as of ``torch.nn.PoissonNLLLoss``. Beyond a log-rate of 35 in float32 (a
    rate of 2.6e15) the exponential goes on growing with the logarithm, so that a rate
    gone astray still has a slope that leads back; below it is torch's, to the bit. With
    ``log_input=False`` the rate is the output, and its logarithm that of
    :func:`sknan.functional.log`.

    Shape
    -----
    Output and target (n_samples, *); targets of at least 0. Unreduced: the same.
    """

    traits = replace(_POSITIVE_MEAN, names=("poisson",), infimum=-math.inf)

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        if self.log_input:
            losses = _growing_exp(input) - target * input
        else:
            losses = input - target * sf.log(input + self.eps)
        if self.full:
            above = torch.where(target > 1, target, 1.0)
            stirling = above * torch.log(above) - above
            stirling = stirling + 0.5 * torch.log(2 * math.pi * above)
            losses = losses + torch.where(target > 1, stirling, 0.0)
        return losses

    def predict(self, output: Tensor) -> Tensor:
        """The rate: exp of the output, bounded to stay finite in float32."""
        return sf.exp(output) if self.log_input else output


class GammaLoss(_RateLoss):
    r"""Half the gamma deviance, :math:`y / \mu - 1 - \log(y / \mu)`.

    For positive targets whose spread grows with their mean. The output is
    :math:`\log \mu`; for the exponential see :class:`PoissonNLLLoss`.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default="mean"
        What is returned.

    Shape
    -----
    Output and target (n_samples, *); targets above 0. Unreduced: the same.
    """

    traits = replace(_POSITIVE_MEAN, names=("gamma",), target_domain="positive")

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        return target * _growing_exp(-input) - 1.0 + (input - sf.log(target))


class TweedieLoss(_RateLoss):
    r"""Half the Tweedie deviance, for targets with zeros and a positive tail.

    .. math::

        \frac{y^{2 - p}}{(1 - p)(2 - p)} - \frac{y \mu^{1 - p}}{1 - p}
        + \frac{\mu^{2 - p}}{2 - p}

    The output is :math:`\log \mu`; for the exponential see :class:`PoissonNLLLoss`.

    Parameters
    ----------
    power : float, default=1.5
        :math:`p`, strictly between 1 (Poisson) and 2 (gamma).
    reduction : {"mean", "sum", "none"}, default="mean"
        What is returned.

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
        super().__init__()
        check_reduction(reduction)
        if not 1 < power < 2:
            raise ValueError(
                f"power must be between 1 and 2, got {power!r}. Use 'poisson' for 1 "
                "and 'gamma' for 2."
            )
        self.power = power
        self.reduction = reduction

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        p = self.power
        constant = sf.power(target, 2 - p) / ((1 - p) * (2 - p))
        at_mean = _growing_exp((2 - p) * input) / (2 - p)
        return constant + target * _growing_exp((1 - p) * input) / (p - 1) + at_mean


# -- relative errors -----------------------------------------------------------------


class MAPELoss(_Own):
    r"""Mean absolute percentage error, :math:`|\hat y - y| / \max(|y|, f)`.

    Parameters
    ----------
    floor : float, default=1.0
        Targets smaller in size are held against this, :math:`f`, in units of the
        target. 1 suits counts and prices; a floor far below the targets lets the
        smallest of them outweigh all others.
    reduction : {"mean", "sum", "none"}, default="mean"
        What is returned: shares, not percent.

    Raises
    ------
    ValueError
        If ``floor`` is not a positive finite number.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_IN_UNITS, names=("mape",))

    def __init__(self, floor: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        _check_positive("floor", floor)
        self.floor = floor

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        errors = residual(input, target, _sum_bound(input, 1 / self.floor))
        return errors.abs() / within(target.abs(), self.floor, largest_of(target))


class SMAPELoss(_Own):
    r"""Symmetric one, :math:`2 |\hat y - y| / \max(|\hat y| + |y|, f)`, at most 2.

    Parameters
    ----------
    floor : float, default=1.0
        Sums smaller in size count as this, :math:`f`, in units of the target.
    reduction : {"mean", "sum", "none"}, default="mean"
        What is returned: shares, not percent.

    Raises
    ------
    ValueError
        If ``floor`` is not a positive finite number.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_IN_UNITS, names=("smape",))

    def __init__(self, floor: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        _check_positive("floor", floor)
        self.floor = floor

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        most = largest_of(input) / 4
        input, target = within(input, -most, most), within(target, -most, most)
        size = within(input.abs() + target.abs(), self.floor, largest_of(input))
        return 2.0 * ((input - target).abs() / size)


class MSLELoss(_Own):
    r"""Squared error of logarithms, :math:`(l(\hat y) - l(y))^2`.

    :math:`l(x) = \mathrm{sign}(x) \log(1 + |x|)`, which is ``log1p`` for numbers of at
    least 0 and goes on below: a negative prediction has a finite loss, and a slope that
    leads back.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default="mean"
        What is returned.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_IN_UNITS, names=("msle",))

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        return (_signed_log1p(input) - _signed_log1p(target)).square()


def _signed_log1p(x: Tensor) -> Tensor:
    if is_between(x, -math.ulp(0.0), math.inf):
        return sf.log1p(x)
    # Not abs, whose slope at 0 is 0.
    size = torch.where(x < 0, -x, x)
    return torch.where(x < 0, -1.0, 1.0) * sf.log1p(size)


# -- distributions and directions ----------------------------------------------------


class KLDivLoss(_ValueLoss, nn.KLDivLoss):
    r"""Kullback-Leibler divergence, :math:`q (\log q - \log p)` per element.

    Parameters as of ``torch.nn.KLDivLoss``, ``reduction="batchmean"`` and
    ``log_target`` included. Log-probabilities of minus infinity count as minus the
    largest number to the power of 3/4.

    Parameters
    ----------
    reduction : {"mean", "batchmean", "sum", "none"}, default="mean"
        What is returned; ``"batchmean"``, the sum over the number of rows, is the
        divergence itself.
    log_target : bool, default=False
        Whether the target holds log-probabilities.
    from_logits : bool, default=False
        Whether the output is of logits, normalised here, as networks give them.

    Shape
    -----
    Log-probabilities or logits (n_samples, n_classes); target of the same shape.
    Unreduced: the same.
    """

    traits = replace(_POSITIVE_MEAN, names=("kl_div",), infimum=-math.inf)

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
        """Loss; see :meth:`MSELoss.forward`."""
        input, target = aligned(input, target)
        if self.from_logits:
            input = sf.log_softmax(input, dim=-1)
        most = largest_of(input) ** 0.75
        input = within(input, -most, most)
        if self.log_target:
            target = within(target, -most, math.log(largest_of(input)) / 4)
            losses = torch.exp(target) * (target - input)
        else:
            target = within(target, -(most ** (1 / 4)), most ** (1 / 4))
            losses = torch.xlogy(target, target) - target * input
        if self.reduction != "batchmean":
            return reduced(losses, sample_weight, self.reduction)
        return reduced(losses.flatten(1).sum(1), sample_weight, "mean")

    def predict(self, output: Tensor) -> Tensor:
        """Probabilities (n_samples, n_classes)."""
        return sf.softmax(output) if self.from_logits else sf.exp(output)


class CosineSimilarityLoss(_Own):
    r"""One minus the cosine between output and target of each row; 1 if one is zero.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default="mean"
        What is returned.

    Shape
    -----
    Output and target (n_samples, n_targets). Unreduced: (n_samples,).
    """

    traits = replace(_IN_UNITS, names=("cosine",))

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        return 1.0 - sf.cosine_similarity(input, target, dim=-1)


class CorrelationLoss(_Own):
    r"""One minus Pearson's correlation of output and target over the rows of a batch.

    1 where one of the two does not vary. It knows nothing of place and scale: what is
    learned is the order and shape of the predictions.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default="mean"
        Over the columns; unreduced are the terms of the rows, whose mean it is.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_DISTANCE, names=("correlation",), is_per_row=False)

    def forward(
        self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Loss; see :meth:`MSELoss.forward`."""
        check_reduction(self.reduction)
        input, target = aligned(input, target)
        n = max(len(input), 1)
        if sample_weight is None and self.reduction != "none" and len(input):
            losses = 1.0 - sf.correlation(input, target, dim=0)
            return losses.mean() if self.reduction == "mean" else losses.sum()
        if sample_weight is None:
            shares = torch.full_like(input[..., :1] if input.ndim else input, 1 / n)
            shares = shares.reshape(-1, *[1] * (input.ndim - 1))[: len(input)]
        else:
            weight = row_weights(sample_weight, input)
            whole = weight.sum()
            shares = weight / torch.where(whole == 0, 1.0, whole)
        products = _in_deviations(input, shares) * _in_deviations(target, shares)
        if self.reduction == "none":
            return 1.0 - products
        correlations = (products * shares).sum(0)
        # Rows of no weight correlate with nothing.
        losses = torch.where(shares.sum() > 0, 1.0 - correlations, 0.0)
        return losses.mean() if self.reduction == "mean" else losses.sum()


def _in_deviations(x: Tensor, shares: Tensor) -> Tensor:
    """Columns less their weighted mean, over their weighted standard deviation."""
    most = largest_of(x) / 4 / math.sqrt(max(x.numel(), 1))
    x = within(x, -most, most)
    centered = x - (x * shares).sum(0, keepdim=True)
    spread = sf.norm(centered * sf.sqrt(shares), dim=0, keepdim=True)
    # To length 1 first: the quotient by a small spread may overflow.
    return sf.divide(centered, spread, eps=largest_of(x) ** -0.5)
