"""Guard, clipping and schedule of a training, from the parameters of its owner."""

from __future__ import annotations

from typing import Any

from sknan._utils.validation import is_number
from sknan.nets.guard._guard import Guard
from sknan.optim._adaptive_clipping import AdaptiveClip, resolve_adaptive_clip
from sknan.optim._learning_rate_schedule import LearningRateSchedule


def guard_parts(
    parameters: Any,
) -> tuple[Guard, AdaptiveClip | None, LearningRateSchedule]:
    """Return new parts of a guarded training, and refuse invalid parameters.

    They are those of a net or an estimator: guard, adaptive clipping and schedule.

    Raises
    ------
    ValueError or TypeError
        If a parameter is invalid. The message names it.
    """
    for name in ("clip_norm", "clip_value"):
        value = getattr(parameters, name)
        if value is not None and not (is_number(value) and value > 0):
            raise ValueError(f"{name} must be a number above 0 or None, got {value!r}.")
    decay = parameters.ema_decay
    if decay is not None and not (is_number(decay) and 0 < decay < 1):
        raise ValueError(
            "ema_decay must be a number between 0 and 1, both excluded, or None, got "
            f"{decay!r}."
        )
    return (
        Guard(parameters.on_nonfinite, parameters.max_recoveries),
        resolve_adaptive_clip(parameters.adaptive_clip),
        LearningRateSchedule(parameters.lr_schedule, parameters.warmup),
    )
