"""The scikit-learn door: guarded networks as estimators.

Every check of scikit-learn's ``check_estimator`` holds for them. What they share lives
in :mod:`sknan._estimator_base`; the classifier and the regressor have a module each.
"""

from sknan._classifier import StableNetClassifier
from sknan._regressor import StableNetRegressor

__all__ = ["StableNetClassifier", "StableNetRegressor"]
