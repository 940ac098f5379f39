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
from sknan.modules import TabularMLP
from sknan.nets import (
    GuardedNet,
    GuardedNetBinaryClassifier,
    GuardedNetClassifier,
    GuardedNetRegressor,
    GuardMixin,
)
from sknan.scaling import SafeScaler

__all__ = [
    "BackupAndRestore",
    "DivergenceWarning",
    "GuardMixin",
    "GuardedNet",
    "GuardedNetBinaryClassifier",
    "GuardedNetClassifier",
    "GuardedNetRegressor",
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
]

__version__ = version("sknan")
