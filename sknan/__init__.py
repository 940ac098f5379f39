"""Neural networks on messy tables that never end in NaN, as scikit-learn components."""

from importlib.metadata import version

from sknan.audit import audit
from sknan.backup import BackupAndRestore
from sknan.diagnosis import NonFiniteReport
from sknan.estimators import StableNetClassifier, StableNetRegressor
from sknan.exceptions import (
    DivergenceWarning,
    NonFiniteDataError,
    NonFiniteTrainingError,
    SknanError,
)
from sknan.imputation import NaNImputer
from sknan.learning_rate import LearningRateRange, find_learning_rate
from sknan.modules import TabularMLP
from sknan.nets import (
    GuardedNet,
    GuardedNetBinaryClassifier,
    GuardedNetClassifier,
    GuardedNetRegressor,
    GuardMixin,
)
from sknan.scaling import SafeScaler
from sknan.search import (
    BatchedGridSearchCV,
    BatchedHalvingSearchCV,
    BatchedRandomizedSearchCV,
)

__all__ = [
    "BackupAndRestore",
    "BatchedGridSearchCV",
    "BatchedHalvingSearchCV",
    "BatchedRandomizedSearchCV",
    "DivergenceWarning",
    "GuardMixin",
    "GuardedNet",
    "GuardedNetBinaryClassifier",
    "GuardedNetClassifier",
    "GuardedNetRegressor",
    "LearningRateRange",
    "NaNImputer",
    "NonFiniteDataError",
    "NonFiniteReport",
    "NonFiniteTrainingError",
    "SafeScaler",
    "SknanError",
    "StableNetClassifier",
    "StableNetRegressor",
    "TabularMLP",
    "audit",
    "find_learning_rate",
]

__version__ = version("sknan")
