"""Neural networks on messy tables that never end in NaN, as scikit-learn components."""

import sys
from importlib.metadata import version

from sknan import (
    estimators,
    inspection,
    model_selection,
    nets,
    optim,
    persistence,  # noqa: F401 - so that sknan.persistence needs no import of its own
    preprocessing,
)
from sknan.diagnosis import NonFiniteReport
from sknan.estimators import (
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
    tabular_pipeline,
)
from sknan.exceptions import (
    ChangedColumnWarning,
    DivergenceWarning,
    NonFiniteDataError,
    NonFiniteTrainingError,
    SknanError,
)
from sknan.inspection import (
    AuditDisplay,
    LearningRateDisplay,
    TrainingDisplay,
    audit,
    report,
)
from sknan.model_selection import (
    BatchedGridSearchCV,
    BatchedHalvingSearchCV,
    BatchedRandomizedSearchCV,
    LearningRateRange,
    find_learning_rate,
)
from sknan.nets import (
    BackupAndRestore,
    GuardedNet,
    GuardedNetBinaryClassifier,
    GuardedNetClassifier,
    GuardedNetRegressor,
    GuardMixin,
    TabularMLP,
    guard,
)
from sknan.preprocessing import NaNImputer, SafeScaler

__all__ = [
    "AuditDisplay",
    "BackupAndRestore",
    "BatchedGridSearchCV",
    "BatchedHalvingSearchCV",
    "BatchedRandomizedSearchCV",
    "ChangedColumnWarning",
    "DivergenceWarning",
    "GuardMixin",
    "GuardedNet",
    "GuardedNetBinaryClassifier",
    "GuardedNetClassifier",
    "GuardedNetRegressor",
    "LearningRateDisplay",
    "LearningRateRange",
    "NaNImputer",
    "NonFiniteDataError",
    "NonFiniteReport",
    "NonFiniteTrainingError",
    "SafeScaler",
    "SknanError",
    "StableNetClassifier",
    "StableNetEnsembleClassifier",
    "StableNetEnsembleRegressor",
    "StableNetRegressor",
    "TabularMLP",
    "TrainingDisplay",
    "audit",
    "find_learning_rate",
    "report",
    "tabular_pipeline",
]

__version__ = version("sknan")

# Former module paths that documentation has named, and the packages that replace them.
_FORMER_MODULES = {
    "adaptive_clipping": optim,
    "clipping": optim,
    "display": inspection,
    "ensemble": estimators,
    "guard": guard,
    "html_report": inspection,
    "imputation": preprocessing,
    "learning_rate": model_selection,
    "modules": nets,
    "pipelines": estimators,
    "scaling": preprocessing,
    "schedules": optim,
    "search": model_selection,
}
for _name, _package in _FORMER_MODULES.items():
    sys.modules.setdefault(f"{__name__}.{_name}", _package)
    globals()[_name] = _package
