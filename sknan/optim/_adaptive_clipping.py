"""Gradient clipping with a threshold derived from the weights or from earlier norms.

The clippers `AGC`, `QuantileClip` and `ZScoreClip` share the interface `AdaptiveClip`:
``clipper(parameters, grads, norm) -> coefficient`` and ``reset()``.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sknan._utils.validation import check_range, did_you_mean, is_number
from sknan.optim._clipping import (
    clip_grad_norm,
    coalesced_values,
    grad_norm,
    lowered_norm,
    stable_grad_norm,
)


class AdaptiveClip(Protocol):
    """Interface of an adaptive clipper, which any object with these methods has."""

    def __call__(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor], norm: float
    ) -> float:
        """Clip in place and return norm after / norm before, exactly 1.0 for no change.

        ``grads[i]`` is the gradient of ``parameters[i]``, and ``norm`` is the global
        norm of the gradients. If it is not finite, the call changes nothing.
        """

    def reset(self) -> None:
        """Forget the norms of earlier steps."""


@dataclass
class AGC:
    """Adaptive gradient clipping of each unit in proportion to the norm of its weights.

    A unit is a row (all axes but the first) of a weight, or a whole vector or scalar.
    If the 2-norm of its gradient exceeds ``clipping * max(|W|, eps)``, where ``|W|`` is
    the 2-norm of its weights, the gradient is scaled to that norm.

    Parameters
    ----------
    clipping : float, default=0.01
        Largest ratio of the norm of a unit's gradient to the norm of its weights.
    eps : float, default=1e-3
        Smallest norm of the weights that is assumed, so that zero weights can grow.

    Raises
    ------
    ValueError
        When a parameter is not positive and finite.

    Notes
    -----
    The call reads one number from the device. The paper does not clip the last layer;
    to follow it, pass only the parameters of the other layers.

    References
    ----------
    Brock et al. (2021), arXiv 2102.06171, equation 3.

    Examples
    --------
    >>> weight, grad = torch.ones(1, 4), torch.ones(1, 4)
    >>> AGC(clipping=0.25)([weight], [grad], norm=2.0), grad
    (0.25, tensor([[0.2500, 0.2500, 0.2500, 0.2500]]))
    """

    clipping: float = 0.01
    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_range("clipping", self.clipping)
        check_range("eps", self.eps)

    def reset(self) -> None:
        """Do nothing, since there is no history."""

    @torch.no_grad()
    def __call__(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor], norm: float
    ) -> float:
        """Clip in place; see `AdaptiveClip`."""
        if not math.isfinite(norm) or norm == 0.0:
            return 1.0
        values = coalesced_values(grads)
        for weight, grad, value in zip(parameters, grads, values, strict=True):
            # A sparse gradient has values only for some rows of the weight.
            rows = weight[grad.indices().unbind()] if grad.is_sparse else weight
            if value.numel():
                self._clip_units(rows, value, norm)
        after = float(grad_norm(grads))
        if not math.isfinite(after) or after == 0.0:
            after = stable_grad_norm(grads)
        return float(lowered_norm(norm, after)) / norm

    def _clip_units(self, weight: Tensor, grad: Tensor, norm: float) -> None:
        dims = tuple(range(1, grad.ndim)) or None
        precise = torch.promote_types(grad.dtype, torch.float32)
        limit = self.clipping * torch.linalg.vector_norm(
            weight, dim=dims, keepdim=True, dtype=precise
        ).clamp_min(self.eps)
        if norm < 1e15 and self.clipping * self.eps > 1e-15:
            length = torch.linalg.vector_norm(
                grad, dim=dims, keepdim=True, dtype=precise
            )
            grad.mul_(torch.where(length > limit, limit / length, 1.0))
            return
        # Divided by the largest entry of a unit, no square overflows or underflows. The
        # length of a unit of zeros, or with a non-finite entry, is NaN, and the unit
        # does not change.
        exact = grad.to(precise)
        peak = torch.linalg.vector_norm(exact, math.inf, dim=dims, keepdim=True)
        scaled = exact / peak
        length = torch.linalg.vector_norm(scaled, dim=dims, keepdim=True)
        clipped = scaled * (limit / length)
        grad.copy_(torch.where(length > limit / peak, clipped, exact))


class _HistoryClip:
    """Clipping of the global norm to a threshold learned from earlier norms."""

    def threshold(self, norm: float) -> float:
        raise NotImplementedError

    def record(self, norm: float) -> None:
        raise NotImplementedError

    def __call__(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor], norm: float
    ) -> float:
        """Clip in place; see `AdaptiveClip`."""
        if not math.isfinite(norm):
            return 1.0
        threshold = self.threshold(norm)
        self.record(norm)
        # A threshold of 0, after steps without a gradient, would end all learning.
        return clip_grad_norm(grads, threshold, norm) if threshold > 0.0 else 1.0


@dataclass
class QuantileClip(_HistoryClip):
    """Clipping to a quantile of the norms of the latest steps (AutoClip).

    Parameters
    ----------
    quantile : float, default=0.9
        Quantile between 0 and 1. The paper recommends 0.1, which clips nine steps in
        ten and so nearly normalizes the gradient; 0.9 does not clip ordinary steps.
    window : int, default=500
        Number of latest norms that are stored (all in the paper), at least
        ``min_history``.
    min_history : int, default=20
        Number of norms from which on steps are clipped.

    Raises
    ------
    ValueError
        When a parameter is outside its range.

    Notes
    -----
    The stored norms are those before clipping. Unlike in the paper, the threshold of a
    step does not depend on the norm of that step.

    References
    ----------
    Seetharaman et al. (2020), AutoClip, arXiv 2007.14469, section 2.

    Examples
    --------
    >>> clip = QuantileClip(quantile=0.5, min_history=3)
    >>> for norm in (1.0, 2.0, float("nan"), 100.0):
    ...     clip.record(norm)
    >>> clip.threshold(50.0)
    2.0
    """

    quantile: float = 0.9
    window: int = 500
    min_history: int = 20

    def __post_init__(self) -> None:
        check_range("quantile", self.quantile, 1.0)
        check_range("min_history", self.min_history)
        if not (is_number(self.window) and self.window >= self.min_history):
            raise ValueError(
                f"window must be at least min_history={self.min_history!r}, "
                f"got {self.window!r}."
            )
        self.reset()

    def reset(self) -> None:
        """Forget the norms of earlier steps."""
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def threshold(self, norm: float) -> float:
        """Return the largest allowed norm, inf before ``min_history`` norms."""
        if len(self._sorted) < self.min_history:
            return math.inf
        rank = (len(self._sorted) - 1) * self.quantile
        below = int(rank)
        above = min(below + 1, len(self._sorted) - 1)
        low, high = self._sorted[below], self._sorted[above]
        return low + (high - low) * (rank - below)

    def record(self, norm: float) -> None:
        """Store a norm, unless it is NaN or inf."""
        if not math.isfinite(norm):
            return
        if len(self._latest) >= self.window:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(norm)
        insort(self._sorted, norm)


@dataclass
class ZScoreClip(_HistoryClip):
    """Clipping of norms that are outliers from a moving mean and deviation (ZClip).

    A norm with ``z = (norm - mean) / std`` above ``z_threshold`` is clipped to
    ``mean + std * z_threshold**2 / z``. The larger the outlier, the closer to the mean
    is the clipped norm.

    Parameters
    ----------
    z_threshold : float, default=2.5
        Number of standard deviations above the mean from which on a norm is an outlier.
    alpha : float, default=0.97
        Weight of the past in the moving mean and variance, between 0 and 1.
    n_warmup : int, default=25
        Number of norms from which the moving mean and variance are initialized; steps
        are clipped after them.

    Raises
    ------
    ValueError
        When a parameter is outside its range.

    Notes
    -----
    The moving mean and variance are updated with the clipped norms, as in the paper.
    Non-finite norms are ignored. In the authors' code a single NaN makes the mean NaN
    and ends all clipping.

    References
    ----------
    Kumar et al. (2025), ZClip, arXiv 2504.02507, section 3 (reciprocal clipping).

    Examples
    --------
    >>> clip = ZScoreClip(n_warmup=2)
    >>> for norm in (1.0, 3.0):
    ...     clip.record(norm)
    >>> clip.threshold(4.0), clip.threshold(12.0)
    (inf, 2.625)
    """

    z_threshold: float = 2.5
    alpha: float = 0.97
    n_warmup: int = 25

    def __post_init__(self) -> None:
        check_range("z_threshold", self.z_threshold)
        check_range("alpha", self.alpha, 1.0)
        check_range("n_warmup", self.n_warmup)
        self.reset()

    def reset(self) -> None:
        """Forget the norms of earlier steps."""
        self._first: list[float] = []
        self._mean = 0.0
        self._std = 0.0

    def threshold(self, norm: float) -> float:
        """Return the largest allowed norm, inf if ``norm`` is no outlier."""
        excess = norm - self._mean
        if len(self._first) < self.n_warmup or excess <= self.z_threshold * self._std:
            return math.inf
        return self._mean + self.z_threshold**2 * self._std * (self._std / excess)

    def record(self, norm: float) -> None:
        """Update mean and variance with a norm, clipped if it is an outlier."""
        if not math.isfinite(norm):
            return
        if len(self._first) < self.n_warmup:
            self._first.append(norm)
            n = len(self._first)
            # Halves: a sum that rounds to the largest float would overflow in between.
            mean = 2.0 * math.fsum(first / n / 2.0 for first in self._first)
            self._mean = min(mean, max(self._first))
            deviations = (first - self._mean for first in self._first)
            self._std = math.hypot(*deviations) / math.sqrt(n)
            return
        norm = min(norm, self.threshold(norm))
        self._mean = self.alpha * self._mean + (1.0 - self.alpha) * norm
        # hypot: the square of a norm of 1e200 would overflow.
        self._std = math.hypot(
            math.sqrt(self.alpha) * self._std,
            math.sqrt(1.0 - self.alpha) * (norm - self._mean),
        )


_ADAPTIVE_CLIPS: dict[str, type[AGC] | type[QuantileClip] | type[ZScoreClip]] = {
    "agc": AGC,
    "quantile": QuantileClip,
    "zscore": ZScoreClip,
}


def resolve_adaptive_clip(
    adaptive_clip: str | float | AdaptiveClip | None,
) -> AdaptiveClip | None:
    """Return the clipper for a value of the parameter ``adaptive_clip``.

    Parameters
    ----------
    adaptive_clip : None, str, float or AdaptiveClip
        None for no clipper; "agc", "quantile" or "zscore" for a clipper with default
        parameters; a number for `AGC` with that ``clipping``; a clipper to be copied.

    Returns
    -------
    AdaptiveClip or None
        New clipper without history.

    Raises
    ------
    ValueError
        When the name is unknown, or the number is not positive and finite.
    TypeError
        When the parameter has another type.

    Examples
    --------
    >>> resolve_adaptive_clip("quantile")
    QuantileClip(quantile=0.9, window=500, min_history=20)
    """
    if adaptive_clip is None:
        return None
    if isinstance(adaptive_clip, str):
        if adaptive_clip in _ADAPTIVE_CLIPS:
            return _ADAPTIVE_CLIPS[adaptive_clip]()
        hint = did_you_mean(adaptive_clip.lower(), _ADAPTIVE_CLIPS)
        known = ", ".join(repr(name) for name in _ADAPTIVE_CLIPS)
        raise ValueError(
            f"Unknown adaptive_clip {adaptive_clip!r}.{hint} Known names: {known}."
        )
    if is_number(adaptive_clip):
        check_range("adaptive_clip", adaptive_clip)
        return AGC(clipping=float(adaptive_clip))
    is_class = isinstance(adaptive_clip, type)
    if is_class or not (callable(adaptive_clip) and hasattr(adaptive_clip, "reset")):
        raise TypeError(
            "adaptive_clip must be None, a name, a number or an object such as "
            f"QuantileClip(), got {adaptive_clip!r}."
        )
    clipper = copy.deepcopy(adaptive_clip)
    clipper.reset()
    return clipper
