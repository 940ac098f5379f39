"""Estimator checks of scikit-learn on every estimator, without expected failures."""

from __future__ import annotations

from sklearn.utils.estimator_checks import parametrize_with_checks

from sknan import (
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
)

ESTIMATORS = [
    StableNetClassifier(),
    StableNetRegressor(),
    NaNImputer(),
    SafeScaler(),
    StableNetEnsembleClassifier(n_estimators=2),
    StableNetEnsembleRegressor(n_estimators=2),
    # Settings that run other branches of the code.
    StableNetClassifier(optimizer="nadam", lr=0.005, max_epochs=25, clip_norm=None),
    StableNetRegressor(criterion="huber", max_epochs=50, early_stopping=True),
    NaNImputer(strategy="zero", add_indicator=True, keep_empty_features=True),
    NaNImputer(strategy="most_frequent"),
    NaNImputer(strategy="mean", dtype="float32"),
    SafeScaler(bound=None, quantile_range=(5.0, 95.0)),
]


@parametrize_with_checks(ESTIMATORS)
def test_it_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)
