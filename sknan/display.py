"""Pictures of a training, of learning rates and of a table."""

from __future__ import annotations

from sknan._audit_display import AuditDisplay
from sknan._rate_display import LearningRateDisplay
from sknan._rate_fates import LearningRateCurve
from sknan._training_display import TrainingDisplay
from sknan.nets._curves import TrainingCurves

__all__ = [
    "AuditDisplay",
    "LearningRateCurve",
    "LearningRateDisplay",
    "TrainingCurves",
    "TrainingDisplay",
]
