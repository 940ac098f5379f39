"""Findings about a table before training, and displays and reports after it."""

from sknan.inspection._audit._audit import (
    Finding,
    TableAudit,
    audit,
    suspected_sentinels,
    table_sentinels,
)
from sknan.inspection._audit_display import AuditDisplay
from sknan.inspection._learning_rate_display import LearningRateDisplay
from sknan.inspection._rate_outcomes import LearningRateCurve
from sknan.inspection._report._report import (
    HTMLReport,
    report,
)
from sknan.inspection._training_display import TrainingDisplay
from sknan.nets._curves import TrainingCurves

__all__ = [
    "AuditDisplay",
    "Finding",
    "HTMLReport",
    "LearningRateCurve",
    "LearningRateDisplay",
    "TableAudit",
    "TrainingCurves",
    "TrainingDisplay",
    "audit",
    "report",
    "suspected_sentinels",
    "table_sentinels",
]
