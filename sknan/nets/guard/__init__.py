"""Policy of a guarded training: when a step is refused, and what follows."""

from sknan.nets.guard._guard import Guard
from sknan.nets.guard._loss_watch import LossWatch
from sknan.nets.guard._snapshots import OptimizerSnapshot, Snapshot
from sknan.nets.guard._trials import Trials

__all__ = [
    "Guard",
    "LossWatch",
    "OptimizerSnapshot",
    "Snapshot",
    "Trials",
]
