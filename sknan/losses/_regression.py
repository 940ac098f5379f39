"""Losses of the distance between output and target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sknan import functional as sf
from sknan._utils.validation import is_number
from sknan.functional._domain import can_read_values, is_between, within
from sknan.losses._base import (
    RegressionLoss,
    StandaloneRegressionLoss,
    aligned,
    check_positive,
    check_reduction,
    largest_of,
    reduced,
    residual,
    row_weights,
    torchs_or,
    upcast,
)

# A distance is shifted and scaled with the target.
_DISTANCE = replace(RegressionLoss.traits, standardizes_target=True)


class MSELoss(RegressionLoss, nn.MSELoss):
    r"""Squared error, :math:`(\hat y - y)^2`.

    Residuals are limited to the root of the largest number over the number of
    residuals: 1.8e19 in float32 for one residual, 1.8e16 for a million. Larger ones
    have gradient 0, because the sum of their squares may overflow. Otherwise bitwise
    equal to ``torch.nn.MSELoss``.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_DISTANCE, names=("mse", "squared_error"), unit_power=2)
    _has_torch_kernel = True

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        return residual(input, target, self._root_bound(input)).square()


class RMSELoss(StandaloneRegressionLoss):
    r"""Root of the mean squared error, :math:`\sqrt{\sum_i w_i (\hat{y_i} - y_i)^2}`.

    The weights :math:`w` sum to 1. If all residuals are 0, the gradient is 0, where the
    plain formula gives NaN. The root is computed as a length, so that squares do not
    overflow.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction; ``"sum"`` is the root of the sum of squares, and ``"none"`` gives the
        absolute value of each residual.

    Shape
    -----
    Output and target (n_samples, *).
    """

    traits = replace(_DISTANCE, names=("rmse",), is_per_row=False)

    def forward(
        self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Compute the loss; see :meth:`MSELoss.forward`."""
        check_reduction(self.reduction)
        input, target = aligned(input, target)
        is_plain = self.reduction == "mean" and sample_weight is None
        if is_plain and can_read_values(input):
            squared = F.mse_loss(input, target)
            # Finite, and not so close to 0 that the gradient of the root overflows.
            if is_between(squared, largest_of(input) ** -0.75, largest_of(input)):
                return torch.sqrt(squared)
        errors = residual(input, target, self._sum_bound(input))
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


class L1Loss(RegressionLoss, nn.L1Loss):
    r"""Absolute error, :math:`|\hat y - y|`, with gradient 0 at 0.

    Residuals are limited to half of the largest number over the number of residuals.
    Otherwise bitwise equal to ``torch.nn.L1Loss``.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_DISTANCE, names=("mae", "absolute_error"), unit_power=1)
    _has_torch_kernel = True

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        return residual(input, target, self._sum_bound(input)).abs()


class HuberLoss(RegressionLoss, nn.HuberLoss):
    r"""Squared error up to ``delta``, absolute error beyond.

    .. math:: r^2 / 2 \quad\text{or}\quad \delta (|r| - \delta / 2)

    Residuals are limited as in :class:`L1Loss`. Otherwise bitwise equal to
    ``torch.nn.HuberLoss``.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction of the losses.
    delta : float, default=1.0
        Residual at which the loss changes from squared to absolute; positive. In an
        estimator, which standardizes the target, in standard deviations of the target.

    Raises
    ------
    ValueError
        If ``delta`` is not a positive finite number.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_DISTANCE, names=("huber",), unit_power=1)
    _has_torch_kernel = True

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        check_reduction(reduction)
        check_positive("delta", delta)
        super().__init__(reduction=reduction, delta=delta)

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        errors = residual(input, target, self._sum_bound(input, self.delta))
        return F.huber_loss(
            errors, torch.zeros_like(errors), reduction="none", delta=self.delta
        )


class PseudoHuberLoss(StandaloneRegressionLoss):
    r"""Smooth Huber loss, :math:`\delta^2 (\sqrt{1 + (r / \delta)^2} - 1)`.

    It is computed as :math:`\delta^2 u \cdot u / (1 + \sqrt{1 + u^2})` with
    :math:`u = r / \delta`, which neither cancels for small residuals nor overflows for
    large ones.

    Parameters
    ----------
    delta : float, default=1.0
        Residual around which the loss changes from squared to absolute; positive.
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction of the losses.

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
        check_positive("delta", delta)
        self.delta = delta

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        most = self._sum_bound(input, max(self.delta, 1 / self.delta))
        u = residual(input, target, most) / self.delta
        if is_between(u, -100.0, 100.0):
            # Faster, but less exact for large residuals: it is the exponential of a
            # large logarithm.
            return torch.expm1(0.5 * torch.log1p(u.square())) * self.delta**2
        root = torch.hypot(u, torch.ones_like(u))
        return u * (u / (1.0 + root)) * self.delta**2


class LogCoshLoss(StandaloneRegressionLoss):
    r"""Logarithm of the hyperbolic cosine of the residual.

    It is computed as :math:`\log(1 + 2 \sinh^2(r / 2))` up to :math:`|r| = 20`, which
    is exact for small residuals, and as :math:`|r| - \log 2` beyond. The two agree
    there, in float64 too. The plain formula overflows from 89 on.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction of the losses.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same.
    """

    traits = replace(_DISTANCE, names=("log_cosh",))

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        errors = residual(input, target, self._sum_bound(input))
        inner = within(errors, -20.0, 20.0)
        near = torch.log1p(2.0 * torch.sinh(inner * 0.5).square())
        if inner is errors:
            return near
        return torch.where(errors.abs() < 20.0, near, errors.abs() - math.log(2.0))


class QuantileLoss(StandaloneRegressionLoss):
    r"""Pinball loss, whose optimum is a quantile: :math:`\max(q r, (q - 1) r)`.

    The residual :math:`r` is target minus quantile. For several quantiles, the one
    nearest to the median is an output of the network itself. From there, the softplus
    of each other output is the distance to the next quantile. The quantiles therefore
    cannot cross, whatever the network has learned. :meth:`predict` returns them.

    Parameters
    ----------
    quantile : float or sequence of float, default=0.5
        Quantile to predict, strictly between 0 and 1. For several quantiles, in
        ascending order, the network has one output for each quantile of each target.
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction of the losses.

    Raises
    ------
    ValueError
        If ``quantile`` is not between 0 and 1, or several are not in ascending order.

    Shape
    -----
    Output and target (n_samples, *). Unreduced: the same. With k quantiles: output
    (n_samples, n_targets * k), the quantiles of the first target first; target
    (n_samples, n_targets) or (n_samples,). Unreduced: (n_samples, n_targets, k).

    Examples
    --------
    >>> import torch
    >>> from sknan.losses import QuantileLoss
    >>> loss = QuantileLoss([0.1, 0.5, 0.9])
    >>> loss.predict(torch.tensor([[0.0, 3.0, 2.0]]))
    tensor([[[2.3069, 3.0000, 5.1269]]])
    >>> loss(torch.tensor([[0.0, 3.0, 2.0]]), torch.tensor([3.0]))
    tensor(0.0940)
    """

    traits = replace(_DISTANCE, names=("quantile",))

    def __init__(
        self, quantile: float | Sequence[float] = 0.5, *, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction=reduction)
        self.quantile = quantile
        several = isinstance(quantile, (Sequence, np.ndarray)) and len(quantile) > 0
        self._several = several and not isinstance(quantile, str)
        self._quantiles: list[float] = list(quantile) if self._several else [quantile]  # type: ignore[list-item, arg-type]
        for q in self._quantiles:
            if not is_number(q) or not 0 < q < 1:
                rule = "between 0 and 1" if q is quantile else "all between 0 and 1"
                raise ValueError(f"quantile must be {rule}, got {quantile!r}.")
        ordered = sorted({float(q) for q in self._quantiles})
        if self._quantiles != ordered:
            raise ValueError(
                "quantile must be in ascending order, each value once, got "
                f"{quantile!r}. Pass {ordered!r}."
            )
        if self._several:
            count = len(self._quantiles)
            self.traits = replace(type(self).traits, outputs_per_target=count)
            self._base = min(range(count), key=lambda i: abs(ordered[i] - 0.5))

    def _prepared(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if not self._several:
            return aligned(input, target)
        input = upcast(input)
        n_targets = target.shape[1] if target.ndim == 2 else 1
        needed = (len(target), n_targets * len(self._quantiles))
        if tuple(input.shape) != needed or target.ndim > 2:
            raise ValueError(
                f"The output has shape {tuple(input.shape)} and the target "
                f"{tuple(target.shape)}: with {len(self._quantiles)} quantiles the "
                f"output must be {needed}."
            )
        input = self._in_order(input)
        target = target.to(input.dtype).reshape(len(target), n_targets, 1)
        return input, target.expand(input.shape)

    def _in_order(self, output: Tensor) -> Tensor:
        """Return the quantiles (n_samples, n_targets, n_quantiles), which ascend."""
        count, base = len(self._quantiles), self._base
        # Not len(), which a trace would keep as a constant.
        output = output.reshape(output.shape[0], output.shape[1] // count, count)
        most = largest_of(output) / 2 / count  # the sum of all distances is finite
        output = within(output, -most, most)
        steps = sf.softplus(output)
        middle = output[..., base : base + 1]
        above = middle + steps[..., base + 1 :].cumsum(-1)
        below = middle - steps[..., :base].flip(-1).cumsum(-1).flip(-1)
        return torch.cat([below, middle, above], -1)

    def _losses(self, input: Tensor, target: Tensor) -> Tensor:
        missing = residual(target, input, self._sum_bound(input))
        if not self._several:
            q = self._quantiles[0]
            return torch.maximum(q * missing, (q - 1.0) * missing)
        levels = missing.new_tensor(self._quantiles)
        return torch.maximum(levels * missing, (levels - 1.0) * missing)

    def predict(self, output: Tensor) -> Tensor:
        """Return the quantiles, (n_samples, n_targets, n_quantiles) if several."""
        return self._in_order(upcast(output)) if self._several else output


class GaussianNLLLoss(RegressionLoss, nn.GaussianNLLLoss):
    r"""Negative log-likelihood of a normal distribution with a learned variance.

    .. math:: \tfrac{1}{2} (\log \sigma^2 + (\hat y - y)^2 / \sigma^2)

    The network has two outputs per target: first the means, then as many numbers
    :math:`s` of any sign, from which :math:`\sigma^2 = \mathrm{softplus}(s) +
    \epsilon`. They may come in one tensor or as a pair. If ``var`` is passed, the loss
    is that of torch for mean and variance, with variances limited to at least ``eps``.

    Residuals are limited to ``eps`` times the root of the largest number over the
    number of residuals: 1.8e13 in float32 for one residual.

    Parameters
    ----------
    full : bool, default=False
        Whether to add the constant :math:`\tfrac{1}{2} \log 2 \pi`.
    eps : float, default=1e-06
        Lower bound of the variance; positive.
    reduction : {"mean", "sum", "none"}, default="mean"
        Reduction of the losses.

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
        check_positive("eps", eps)
        super().__init__(full=full, eps=eps, reduction=reduction)

    def forward(  # type: ignore[override]
        self,
        input: Tensor | tuple[Tensor, Tensor],
        target: Tensor,
        var: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; ``sample_weight`` as in :meth:`MSELoss.forward`."""
        if var is None:
            mean, raw = _mean_and_raw_variance(input)
            mean, target = aligned(mean, target)
            var = sf.softplus(upcast(raw))
            var = within(var + self.eps, 0.0, largest_of(var)).reshape(mean.shape)
            return reduced(
                self._of_variance(mean, target, var), sample_weight, self.reduction
            )
        mean, target = aligned(cast(Tensor, input), target)
        var = upcast(var)
        var = var.reshape(mean.shape) if var.numel() == mean.numel() else var
        # The gradient of a variance below eps is that at eps, as in torch.
        bounded = torch.where(var < self.eps, var - var.detach() + self.eps, var)
        bounded = within(bounded, self.eps, largest_of(var))

        def limited() -> Tensor:
            losses = self._of_variance(mean, target, bounded)
            return reduced(losses, sample_weight, self.reduction)

        if sample_weight is not None or not can_read_values(mean):
            return limited()
        return torchs_or(
            limited,
            lambda mean, var: F.gaussian_nll_loss(
                mean, target, var, self.full, self.eps, self.reduction
            ),
            [mean, bounded],
            lambda mean, var: ((mean - target) / var).square(),
        )

    def _of_variance(self, mean: Tensor, target: Tensor, var: Tensor) -> Tensor:
        # The gradient with respect to the variance divides the squared residual by the
        # squared variance.
        most = self._root_bound(mean) * min(self.eps, 1.0) / 2
        errors = residual(mean, target, most)
        losses = 0.5 * (torch.log(var) + errors.square() / var)
        return losses + 0.5 * math.log(2 * math.pi) if self.full else losses

    def predict(self, output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Return the means (n_samples, n_targets)."""
        return _mean_and_raw_variance(output)[0]

    def predict_std(self, output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Return the standard deviations (n_samples, n_targets)."""
        raw = upcast(_mean_and_raw_variance(output)[1])
        return torch.sqrt(sf.softplus(raw) + self.eps)


def _mean_and_raw_variance(
    output: Tensor | tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return means and raw variances, from a pair or from the halves of one tensor."""
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
