"""Gradient clipping and learning-rate schedules for any torch training loop."""

from sknan.optim._adaptive_clipping import (
    AGC,
    AdaptiveClip,
    QuantileClip,
    ZScoreClip,
    resolve_adaptive_clip,
)
from sknan.optim._clipping import (
    clip_grad_norm,
    clip_grad_value,
    coalesced_values,
    grad_norm,
    grad_norms,
    stable_grad_norm,
)
from sknan.optim._learning_rate_schedule import LearningRateSchedule
from sknan.optim._schedules import (
    SCHEDULES,
    Plateau,
    constant,
    cosine,
    coslog4,
    exponential,
    one_cycle,
    step,
)

__all__ = [
    "AGC",
    "SCHEDULES",
    "AdaptiveClip",
    "LearningRateSchedule",
    "Plateau",
    "QuantileClip",
    "ZScoreClip",
    "clip_grad_norm",
    "clip_grad_value",
    "coalesced_values",
    "constant",
    "cosine",
    "coslog4",
    "exponential",
    "grad_norm",
    "grad_norms",
    "one_cycle",
    "resolve_adaptive_clip",
    "stable_grad_norm",
    "step",
]
