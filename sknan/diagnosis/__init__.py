"""Diagnosis of non-finite training steps: operation, line, rows, columns and cause."""

from sknan.diagnosis._causes import examine_step
from sknan.diagnosis._diagnose import diagnose, reproduce
from sknan.diagnosis._evidence import StepEvidence
from sknan.diagnosis._report import Cause, NonFiniteReport, Phase

__all__ = [
    "Cause",
    "NonFiniteReport",
    "Phase",
    "StepEvidence",
    "diagnose",
    "examine_step",
    "reproduce",
]
