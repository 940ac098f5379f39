"""Short runs of the random benchmarks, and the failures that `fuzz` recognizes."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from sknan import NaNImputer, StableNetRegressor

ROOT = Path(__file__).parents[1]


@pytest.fixture
def fuzz(monkeypatch):
    if not (ROOT / "benchmarks" / "fuzz.py").exists():
        pytest.skip("the benchmarks are not here")
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import fuzz

    return fuzz


def test_random_uses_are_finite_or_refused(fuzz):
    numbers = range(2 * len(fuzz.ENTRIES))
    outcomes = {number: fuzz.judged(number) for number in numbers}
    assert {n: o.failures for n, o in outcomes.items() if o.failures} == {}
    fitted = [n for n, outcome in outcomes.items() if outcome.result == "fitted"]
    assert len(fitted) >= len(numbers) // 3


@pytest.mark.parametrize("name", ["GuardedNetClassifier", "GuardedNetRegressor"])
def test_random_networks_and_losses_are_finite_or_refused(fuzz, name):
    first, step = list(fuzz.ENTRIES).index(name), len(fuzz.ENTRIES)
    for number in range(first, first + 20 * step, step):
        assert fuzz.run(number).failures == [], number


class Silent(NaNImputer):
    """Imputer that leaves missing values."""

    def transform(self, X):
        return np.asarray(X)


class Foreign(StableNetRegressor):
    """Estimator that fails by accident."""

    def fit(self, X, y):
        return np.zeros(2) @ np.zeros(3)


class Noisy(NaNImputer):
    """Imputer with a warning of NumPy."""

    def transform(self, X):
        np.log(np.zeros(1))
        return super().transform(X)


class Restless(NaNImputer):
    """Imputer with other values in each run."""

    n_runs = 0

    def transform(self, X):
        Restless.n_runs += 1
        return super().transform(X) + Restless.n_runs


class Endless(NaNImputer):
    """Imputer that does not return."""

    def transform(self, X):
        while True:
            pass


@pytest.mark.parametrize(
    ("model", "failure"),
    [
        (Silent(), "non-finite: transform"),
        (Foreign(), "foreign: ValueError: matmul: Input operand 1 has a mismatch"),
        (Noisy(), "warning: RuntimeWarning: divide by zero encountered in log"),
        (Restless(), "different: the second run"),
        (Endless(), "time-out: "),
    ],
)
def test_each_kind_of_failure_is_recognized(fuzz, monkeypatch, model, failure):
    X = np.array([[1.0, np.nan], [2.0, 3.0]])
    monkeypatch.setattr(fuzz.Draw, "data", lambda _: (X, X[:, 0]))
    monkeypatch.setattr(fuzz.Draw, "model", lambda *_: model)
    monkeypatch.setattr(fuzz.Draw, "fit_params", lambda *_: {})
    # A slow machine must not take any other model for an endless one.
    timeout = 0.2 if isinstance(model, Endless) else 600.0
    failures = fuzz.judged(0, timeout=timeout).failures
    assert failures
    assert failures[0].startswith(failure)


def test_random_interruptions_leave_everything_usable(fuzz, tmp_path):
    from benchmarks import interruptions

    before = signal.getsignal(signal.SIGTERM)
    outcomes = [interruptions.judged(n, str(tmp_path)) for n in range(4)]
    assert [failures for _, failures in outcomes] == [[]] * len(outcomes)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("kind", ["report", "backup of net"])
def test_random_damage_of_files_is_refused_or_harmless(fuzz, kind):
    from benchmarks import damaged_files

    data, other = damaged_files.written(kind), bytes(100)
    damaged_files.EXPECTED[kind] = None
    for number in range(12):
        assert damaged_files.judged(kind, data, other, number)[1] == "", number
