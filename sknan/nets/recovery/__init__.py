"""Recoveries from a failed training step, one module each.

A new recovery is a module with a class that satisfies
:class:`~sknan.nets.recovery.protocol.Recovery`, and an entry in ``RECOVERIES``.
"""

from sknan.nets.recovery.drop_rows import DropRows
from sknan.nets.recovery.own_gradient import TakeOwnGradient
from sknan.nets.recovery.protocol import Answer, Failure, Recovery, StepRefused
from sknan.nets.recovery.refuse_labels import RefuseLabels
from sknan.nets.recovery.repair_operations import RepairOperations
from sknan.nets.recovery.restart import RestartOnStandardizedData
from sknan.nets.recovery.restore_weights import RestoreWeights
from sknan.nets.recovery.retry import Retry
from sknan.nets.recovery.roll_back import RollBack
from sknan.nets.recovery.skip_batch import SkipBatch
from sknan.nets.recovery.skip_step import SkipStep

__all__ = ["RECOVERIES", "Answer", "Failure", "Recovery", "StepRefused"]

# Tried in this order until one of them returns a step or "retry".
RECOVERIES: tuple[Recovery, ...] = (
    RefuseLabels(),
    RestartOnStandardizedData(),
    Retry(),
    TakeOwnGradient(),
    DropRows(),
    RepairOperations(),
    SkipStep(),
    RestoreWeights(),
    SkipBatch(),
    RollBack(),
)
