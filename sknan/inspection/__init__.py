"""Findings about a table before training, and displays and reports after it."""

from sknan.inspection._attribution_display import AttributionDisplay
from sknan.inspection._attributions import Attributions, attributions
from sknan.inspection._audit._finding import Finding
from sknan.inspection._audit._run import audit
from sknan.inspection._audit._table_audit import TableAudit
from sknan.inspection._audit_display import AuditDisplay
from sknan.inspection._interval_display import IntervalDisplay
from sknan.inspection._learning_rate_display import LearningRateDisplay
from sknan.inspection._rate_outcomes import LearningRateCurve
from sknan.inspection._report._page import HTMLReport, report
from sknan.inspection._training_display import TrainingDisplay
from sknan.nets._curves import TrainingCurves
from sknan.preprocessing._tables.sentinels import suspected_sentinels, table_sentinels

__all__ = [
    "AttributionDisplay",
    "Attributions",
    "AuditDisplay",
    "Finding",
    "HTMLReport",
    "IntervalDisplay",
    "LearningRateCurve",
    "LearningRateDisplay",
    "TableAudit",
    "TrainingCurves",
    "TrainingDisplay",
    "attributions",
    "audit",
    "report",
    "suspected_sentinels",
    "table_sentinels",
]
