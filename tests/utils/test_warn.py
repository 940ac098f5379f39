"""Warnings of the library, and the warning filters of the process."""

from __future__ import annotations

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.base import clone

from sknan import (
    StableNetClassifier,
    StableNetEnsembleClassifier,
)
from sknan._utils.warn import recorded_warnings, warn

X = np.random.RandomState(0).standard_normal((80, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
NET = StableNetClassifier(max_epochs=3, random_state=0)


def test_the_innermost_recorder_takes_a_warning():
    with recorded_warnings() as outer:
        warn("first")
        with recorded_warnings() as inner:
            warn(RuntimeWarning("second"))
    assert [(type(w), str(w)) for w in outer] == [(UserWarning, "first")]
    assert [(type(w), str(w)) for w in inner] == [(RuntimeWarning, "second")]
    with pytest.warns(UserWarning, match="third"):
        warn("third")


@pytest.fixture
def without_forced_switches():
    """Let threads take turns only where one waits or computes.

    scikit-learn's validation replaces the filters for some microseconds.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60.0)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("without_forced_switches")
@pytest.mark.parametrize(
    "model",
    [
        clone(NET).set_params(lr="auto"),
        StableNetEnsembleClassifier(NET, n_estimators=3),
    ],
    ids=["learning rate", "ensemble"],
)
def test_threads_leave_the_filters_of_the_process_unchanged(model):
    clone(model).fit(X, Y)  # imports of torch and its dependencies add filters
    before = warnings.filters, list(warnings.filters), warnings.showwarning
    with ThreadPoolExecutor(4) as threads:
        fitted = list(threads.map(lambda _: clone(model).fit(X, Y), range(8)))
    assert warnings.filters is before[0]
    assert (warnings.filters, warnings.showwarning) == before[1:]
    assert all(np.isfinite(one.predict_proba(X)).all() for one in fitted)
