from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.metrics import log_loss

from sknan import StableNetClassifier, StableNetEnsembleClassifier
from sknan.estimators._temperature import at_temperature, fit_temperature

SMALL = {"module__width": 16, "max_epochs": 8, "batch_size": 64, "lr": 0.01}


@pytest.fixture(scope="module")
def table():
    X, y = make_classification(400, n_informative=4, n_classes=3, random_state=0)
    return X.astype(np.float32), np.array(["a", "b", "c"])[y]


def calibrated(**changes):
    network = StableNetClassifier(**{**SMALL, "early_stopping": True, **changes})
    options = {"calibration": "temperature", "random_state": 0}
    return StableNetEnsembleClassifier(network, **options)


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_the_temperature_minimizes_the_log_loss(factor, is_weighted):
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.normal(size=(2000, 4))
    codes = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    weights = rng.uniform(size=2000) if is_weighted else None
    logs = log_softmax(factor * logits, axis=1)

    def loss(log_temperature):
        p = at_temperature(logs, np.exp(log_temperature))
        return log_loss(codes, p, sample_weight=weights)

    expected = np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x)
    found = fit_temperature(logs, codes, weights)
    assert found == pytest.approx(expected, rel=0.01)  # the further row has an effect
    assert found == pytest.approx(factor, rel=0.1)


def test_perfect_and_useless_predictions_have_a_temperature():
    logs = np.log([[0.9, 0.1], [0.2, 0.8]])
    right = fit_temperature(np.tile(logs, (50, 1)), np.tile([0, 1], 50), None)
    assert 0.1 < right < 1.0
    wrong = fit_temperature(np.tile(logs, (50, 1)), np.tile([1, 0], 50), None)
    np.testing.assert_allclose(at_temperature(logs, wrong), 0.5, atol=1e-3)
    one_class = fit_temperature(np.tile(logs, (50, 1)), np.zeros(100, int), None)
    assert np.isfinite(one_class)


@pytest.mark.parametrize("criterion", ["cross_entropy", "focal"])
def test_calibration_changes_probabilities_and_no_label(table, criterion):
    X, y = table
    model = calibrated(criterion=criterion, max_epochs=20).fit(X[:200], y[:200])
    plain = clone(model).set_params(calibration=None).fit(X[:200], y[:200])
    assert (model.predict(X) == plain.predict(X)).all()
    mean = plain.predict_proba(X).astype(float)
    expected = at_temperature(np.log(mean), model.temperature_)
    np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-5)
    assert model.oof_score_ == plain.oof_score_
    of_rows = log_loss(y[:200], model.oof_prediction_)
    assert of_rows <= log_loss(y[:200], plain.oof_prediction_) + 1e-3
    if criterion == "focal":
        assert model.temperature_ < 0.8
        assert of_rows < log_loss(y[:200], plain.oof_prediction_) - 0.01
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict_proba(X) == model.predict_proba(X)).all()
    model.set_params(calibration=None).fit(X[:200], y[:200])
    assert not hasattr(model, "temperature_")
    assert (model.predict_proba(X) == plain.predict_proba(X)).all()


@pytest.mark.parametrize(
    ("criterion", "target"),
    [
        ("binary_cross_entropy", lambda y: y == "a"),
        ("cross_entropy", lambda y: np.column_stack([y == "a", y == "b"]).astype(int)),
    ],
)
def test_one_logit_per_label_is_calibrated_too(table, criterion, target):
    X, y = table[0], target(table[1])
    model = calibrated(criterion=criterion).fit(X, y)
    plain = clone(model).set_params(calibration=None).fit(X, y)
    p, before = model.predict_proba(X), plain.predict_proba(X)
    assert p.shape == before.shape == plain.oof_prediction_.shape
    assert model.oof_prediction_.shape == before.shape
    logit = np.log(before / (1 - before)) / model.temperature_
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-logit)), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "calibration", "message"),
    [
        (
            {},
            "platt",
            "The 'calibration' parameter of StableNetEnsembleClassifier must be "
            "'temperature' or None, got 'platt'.",
        ),
        *[
            (
                {"early_stopping": early_stopping},
                "temperature",
                "calibration='temperature' needs rows that are held out of the "
                "networks: set early_stopping=True in the estimator of "
                "StableNetEnsembleClassifier, and do not pass X_val.",
            )
            for early_stopping in (False, "auto")  # "auto" holds out none of few rows
        ],
    ],
)
def test_a_calibration_that_is_impossible_is_refused(
    table, changes, calibration, message
):
    model = calibrated(**changes, max_epochs=1).set_params(calibration=calibration)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.fit(*table)
