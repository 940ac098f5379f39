"""Healthy trainings: no alarm, and results bitwise identical to those without guard.

The trainings are nineteen of benchmarks/false_alarms.py, and one of each kind of
benchmarks/unusual_trainings.py.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from sknan import StableNetClassifier

FOLDER = Path(__file__).parents[1] / "benchmarks"


def loaded(name):
    path = FOLDER / f"{name}.py"
    if not path.exists():
        pytest.skip("the benchmarks are not here")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark_module():
    return loaded("false_alarms")


@pytest.fixture(scope="module")
def unusual_trainings():
    return loaded("unusual_trainings")


# Estimators and nets, each kind of network and target, and two networks that weight
# decay shrinks to zero. Number 66 is left out, since it takes as long as ten others.
NUMBERS = [n for n in range(0, 200, 11) if n != 66] + [26]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_healthy_training_raises_no_alarm(benchmark_module, number):
    outcome = benchmark_module.run(benchmark_module.random_case(number))
    assert outcome.is_healthy
    assert outcome.alarms == []
    assert outcome.differs == []


def test_the_trainings_cover_both_libraries_and_every_kind(benchmark_module):
    cases = [benchmark_module.random_case(number) for number in NUMBERS]
    assert {case.library for case in cases} == {"skorch", "scikit-learn"}
    assert {case.kind for case in cases} == set(benchmark_module.KINDS)
    assert {case.task for case in cases} == set(benchmark_module.TASKS)


# One of each kind, by nets and estimators.
UNUSUAL = [*range(16), 18, 50, 38]


@pytest.mark.parametrize("number", UNUSUAL)
def test_an_unusual_loss_raises_no_alarm(unusual_trainings, number):
    outcome = unusual_trainings.run(unusual_trainings.random_case(number))
    assert outcome.is_healthy
    assert outcome.alarms == []
    assert outcome.differs == []


def test_the_unusual_trainings_cover_every_kind(unusual_trainings):
    kinds = {unusual_trainings.random_case(number).kind for number in UNUSUAL}
    assert kinds == set(unusual_trainings.KINDS)


def test_a_network_that_weight_decay_shrinks_to_zero_has_not_collapsed():
    # The target does not depend on the table, so that only weight decay has an effect.
    rng = np.random.default_rng(0)
    X = 0.01 * rng.normal(size=(120, 4)).astype(np.float32)
    y = np.arange(120) % 2
    model = StableNetClassifier(
        optimizer="nadam",
        weight_decay=0.3,
        lr=0.01,
        lr_schedule=None,
        max_epochs=120,
        early_stopping=False,
        random_state=0,
        module__width=16,
    ).fit(X, y)
    assert len(np.unique(model.predict_proba(X), axis=0)) == 1
    assert model.nonfinite_reports_ == []


def test_a_network_that_a_high_learning_rate_kills_has_collapsed():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4)).astype(np.float32)
    model = StableNetClassifier(lr=30.0, max_epochs=20, random_state=0, clip_norm=None)
    with pytest.warns(UserWarning, match="rescued"):
        model.fit(X, (X[:, 0] > 0).astype(int))
    assert model.nonfinite_reports_
    assert np.isfinite(model.predict_proba(X)).all()
    assert model.score(X, (X[:, 0] > 0).astype(int)) > 0.8
