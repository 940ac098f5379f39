"""Networks as scikit-learn estimators."""

from sknan.estimators._classifier import StableNetClassifier
from sknan.estimators._ensemble import (
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
)
from sknan.estimators._ensemble_base import default_network
from sknan.estimators._regressor import StableNetRegressor
from sknan.estimators._tabular_pipeline import tabular_pipeline

__all__ = [
    "StableNetClassifier",
    "StableNetEnsembleClassifier",
    "StableNetEnsembleRegressor",
    "StableNetRegressor",
    "default_network",
    "tabular_pipeline",
]
