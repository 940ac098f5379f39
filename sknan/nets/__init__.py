"""skorch nets with a guard on every training step."""

from sknan.nets._backup import BackupAndRestore
from sknan.nets._batching import (
    TensorBatches,
    TensorTable,
)
from sknan.nets._best_weights import BestWeights
from sknan.nets._mixin import GuardMixin
from sknan.nets._nets import (
    GuardedNet,
    GuardedNetBinaryClassifier,
    GuardedNetClassifier,
    GuardedNetRegressor,
)
from sknan.nets._tabular_mlp import (
    PeriodicEmbedding,
    TabularMLP,
)

__all__ = [
    "BackupAndRestore",
    "BestWeights",
    "GuardMixin",
    "GuardedNet",
    "GuardedNetBinaryClassifier",
    "GuardedNetClassifier",
    "GuardedNetRegressor",
    "PeriodicEmbedding",
    "TabularMLP",
    "TensorBatches",
    "TensorTable",
]
