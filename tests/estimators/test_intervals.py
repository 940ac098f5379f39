from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
from sklearn.datasets import make_regression
from sklearn.pipeline import make_pipeline

from sknan import SafeScaler, StableNetEnsembleRegressor, StableNetRegressor
from sknan.estimators._intervals import HeldOutResiduals, mixture_deviation
from sknan.losses import BoundedLoss, GaussianNLLLoss

SMALL = {"module__width": 16, "max_epochs": 8, "batch_size": 64, "lr": 0.01}


@pytest.fixture(scope="module")
def table():
    X, y = make_regression(400, n_features=4, noise=20.0, random_state=0)
    return X.astype(np.float32), y


def small(n_estimators=5, **changes):
    network = StableNetRegressor(**{**SMALL, "early_stopping": True, **changes})
    return StableNetEnsembleRegressor(network, n_estimators, random_state=0)


# -- intervals -------------------------------------------------------------------------


def cv_plus(centers, errors, weights, coverage):
    """Ends of one interval by the definition, with all values in memory."""
    values = np.concatenate([c + e for c, e in zip(centers, errors, strict=True)])
    mirrored = np.concatenate([e - c for c, e in zip(centers, errors, strict=True)])
    weight = np.concatenate(weights)
    needed = coverage * (weight.sum() + weight.mean()) - 1e-7

    def quantile(values):
        order = np.argsort(values)
        return values[order][np.searchsorted(weight[order].cumsum(), needed)]

    return sorted([-quantile(mirrored), quantile(values)])


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_bounds_are_those_of_the_definition(is_weighted, scale):
    rng = np.random.default_rng(0)
    errors = [np.abs(rng.normal(size=n)) * scale for n in (7, 20, 33)]
    counts = [rng.integers(1, 4, size=len(e)).astype(float) for e in errors]
    weights = counts if is_weighted else [np.ones(len(e)) for e in errors]
    residuals = HeldOutResiduals.of(errors, counts if is_weighted else None)
    centers = (10 + 3 * rng.normal(size=(3, 20))) * scale
    for coverage in (0.05, 0.5, 0.9, 0.98):
        low, high = residuals.bounds(centers, coverage)
        for j in range(20):
            expected = cv_plus(centers[:, j], errors, weights, coverage)
            found = np.array([low[j], high[j]]) / scale
            np.testing.assert_allclose(found, np.array(expected) / scale, atol=1e-5)


def test_intervals_contain_the_stated_share_of_new_targets(table):
    X, y = table
    model = small(max_epochs=20).fit(X[:200], y[:200])
    intervals = model.predict_interval(X[200:])
    assert intervals.shape == (200, 2)
    low, high = intervals.T
    assert np.mean((low <= y[200:]) & (y[200:] <= high)) == pytest.approx(0.9, abs=0.05)
    narrow = model.predict_interval(X[200:], coverage=0.5)
    assert ((low < narrow[:, 0]) & (narrow[:, 1] < high)).all()
    again = pickle.loads(pickle.dumps(model)).predict_interval(X[200:])
    np.testing.assert_array_equal(again, intervals)
    both = small(max_epochs=20).fit(X[:200], np.column_stack([y, 0 * y + 3])[:200])
    assert both.predict_interval(X[200:]).shape == (200, 2, 2)
    assert (both.predict_interval(X[200:])[:, 1] == 3.0).all()


def test_rows_of_weight_zero_have_no_effect_on_intervals(table):
    X, y = table
    weight = (np.arange(400) < 200).astype(float)
    spoilt = np.where(weight > 0, y, 1e6)
    model = small(3).fit(X, spoilt, sample_weight=weight)
    half = small(3).fit(X[:200], y[:200])
    found = model.predict_interval(X[:9])
    np.testing.assert_allclose(found, half.predict_interval(X[:9]), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "coverage", "message"),
    [
        (
            {},
            1.0,
            "coverage must be a number between 0 and 1, both excluded, got 1.0.",
        ),
        (
            {},
            0.99,
            "coverage=0.99 needs at least 99 held-out rows, but there are 40: lower it "
            "to at most 0.975, or fit more rows.",
        ),
        (
            {"early_stopping": False},
            0.9,
            "predict_interval needs residuals of rows that were held out of the "
            "networks, but this StableNetEnsembleRegressor held out none: set "
            "early_stopping=True in its estimator, and do not pass X_val.",
        ),
    ],
)
def test_intervals_that_cannot_be_given_are_refused(table, changes, coverage, message):
    X, y = table
    model = small(**{**changes, "max_epochs": 1}).fit(X[:40], y[:40])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.predict_interval(X, coverage)


# -- standard deviations ---------------------------------------------------------------


def noisy(n_rows=600):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, 2)).astype(np.float32)
    deviation = np.where(X[:, 1] > 0, 50.0, 5.0)
    return X, 1000.0 + deviation * rng.normal(size=n_rows), deviation


@pytest.mark.parametrize(
    "criterion", ["gaussian_nll", BoundedLoss(GaussianNLLLoss(), -9.0, 9.0)]
)
def test_the_standard_deviation_is_in_the_units_of_y(criterion):
    X, y, deviation = noisy()
    network = StableNetRegressor(
        **{**SMALL, "max_epochs": 30}, criterion=criterion, random_state=0
    )
    model = make_pipeline(SafeScaler(), network)
    mean, std = model.fit(X, y).predict(X, return_std=True)
    np.testing.assert_array_equal(mean, model.predict(X))
    for value in (5.0, 50.0):
        assert np.median(std[deviation == value]) == pytest.approx(value, rel=0.5)
    several = np.column_stack([y, y / 1000, np.full(len(y), 3.0)])
    mean, std = model.fit(X, several).predict(X, return_std=True)
    assert mean.shape == std.shape == (600, 3)
    assert std[:, 0].mean() == pytest.approx(1000 * std[:, 1].mean(), rel=0.2)
    assert (std[:, 2] == 0.0).all()


def test_the_deviation_of_an_ensemble_has_two_parts():
    X, y, _ = noisy(200)
    for criterion in ("gaussian_nll", "mse"):
        model = small(3, criterion=criterion).fit(X, y)
        mean, std = model.predict(X, return_std=True)
        centers = np.stack([member.predict(X) for member in model.estimators_])
        noise = np.zeros_like(centers)
        if criterion == "gaussian_nll":
            noise = np.stack(
                [m.predict(X, return_std=True)[1] for m in model.estimators_]
            )
        variance = (noise**2).mean(axis=0) + centers.var(axis=0)
        np.testing.assert_allclose(std, np.sqrt(variance), rtol=1e-5)
        np.testing.assert_array_equal(mean, model.predict(X))


def test_the_deviation_of_the_largest_floats_does_not_overflow():
    means = [np.array([1.7e308]), np.array([-1.7e308])]
    assert mixture_deviation(means, None) == pytest.approx(1.7e308)
    assert mixture_deviation([means[0]] * 2, [np.array([1e308])] * 2) == 1e308


def test_a_criterion_without_variance_is_refused(table):
    message = (
        "predict(X, return_std=True) needs a criterion that learns the variance of the "
        "target, which 'mse' does not: use criterion='gaussian_nll', or "
        "StableNetEnsembleRegressor for the deviation between networks."
    )
    model = StableNetRegressor(max_epochs=1).fit(*table)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.predict(table[0], return_std=True)
