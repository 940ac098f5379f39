"""The cause of a non-finite training step: operation, line, rows and columns."""

from sknan.diagnosis._causes import examine_step
from sknan.diagnosis._diagnose import (
    diagnose,
    reproduce,
)
from sknan.diagnosis._evidence import StepEvidence
from sknan.diagnosis._report import (
    Cause,
    NonFiniteReport,
    Phase,
)

__all__ = [
    "Cause",
    "NonFiniteReport",
    "Phase",
    "StepEvidence",
    "diagnose",
    "examine_step",
    "reproduce",
]
