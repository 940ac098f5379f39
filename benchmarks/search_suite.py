"""scikit-learn's tests of its searches, applied to the batched searches.

``python -m benchmarks.search_suite`` runs the tests of the installed scikit-learn
twice, about two minutes each time. In the first run, ``theirs``, the estimators of the
tests are not sknan's, so that the batched searches must behave exactly like
scikit-learn's. In the second run, ``all``, every estimator is treated like a network of
sknan: it is fitted and scored in the workers of the batched search. Tests that cannot
pass there are listed with the reason.

``python -m benchmarks.search_suite theirs`` or ``all`` performs one of the runs.
Further arguments are passed to pytest.
"""

from __future__ import annotations

import sys
import time
from subprocess import call
from typing import Any

import pytest
import sklearn.model_selection
from joblib import parallel_config

from sknan import model_selection
from sknan._engine.jobs import Job, JobOutcome
from sknan.model_selection import _pipelines, _worker

__all__ = ["DIFFERENT_BY_DESIGN"]

# Tests that fail by design if every estimator is treated like a network of sknan.
DIFFERENT_BY_DESIGN = {
    "test_grid_search_cv_results": "there are further columns about divergence",
    "test_random_search_cv_results": "there are further columns about divergence",
    "test_custom_run_search": "there are further columns about divergence",
    "test_base_estimator_inputs": "parameters are set before the folds are made",
    "test_search_callbacks_propagation": "callbacks are notified of candidates and "
    "folds, but not of the fits, which happen elsewhere",
}


def _is_estimator(thing: object) -> bool:
    return hasattr(thing, "fit") and hasattr(thing, "get_params")


def _one_by_one(jobs: list[Job], max_memory: int | None = None) -> list[JobOutcome]:
    """Run jobs like `train_together`, for estimators that are not networks."""
    outcomes = []
    for job in jobs:
        estimator: Any = job.estimator
        target = () if job.y is None else (job.y,)
        start = time.perf_counter()
        try:
            estimator.fit(job.X, *target, **job.fit_params)
            error = None
        except Exception as raised:
            error = raised
        seconds = time.perf_counter() - start
        outcomes.append(JobOutcome(estimator, error, seconds, False, []))
    return outcomes


class _ExpectedFailures:
    """Plugin of pytest that marks tests that fail by design."""

    def __init__(self, is_for_all: bool) -> None:
        self.is_for_all = is_for_all

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            reason = DIFFERENT_BY_DESIGN.get(item.originalname)
            if self.is_for_all and reason is not None:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=False))


def run(kinds: str, options: list[str]) -> int:
    """Run the tests.

    Parameters
    ----------
    kinds : {"theirs", "all"}
        Whether none of the estimators in the tests, or all, are treated like networks
        of sknan.
    options : list of str
        Options of pytest.

    Returns
    -------
    int
        Exit code of pytest.
    """
    module: Any = sklearn.model_selection
    module.GridSearchCV = model_selection.BatchedGridSearchCV
    module.RandomizedSearchCV = model_selection.BatchedRandomizedSearchCV
    module.HalvingGridSearchCV = model_selection.BatchedHalvingSearchCV
    if kinds == "all":
        vars(_pipelines)["_has_known_fit"] = _is_estimator
        vars(_worker)["train_together"] = _one_by_one
    tests = [
        f"sklearn.model_selection.tests.{name}"
        for name in ("test_search", "test_successive_halving")
    ]
    common = ["-q", "-c", "/dev/null", "-p", "no:cacheprovider", "-W", "ignore"]
    plugin = _ExpectedFailures(kinds == "all")
    # Threads see the replaced classes, new processes would not.
    with parallel_config(backend="threading" if kinds == "all" else "loky"):
        return int(pytest.main([*common, "--pyargs", *tests, *options], [plugin]))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(run(sys.argv[1], sys.argv[2:]))
    # Each run in a new process, because the classes stay replaced.
    sys.exit(
        max(
            call([sys.executable, "-m", "benchmarks.search_suite", kinds])
            for kinds in ("theirs", "all")
        )
    )
