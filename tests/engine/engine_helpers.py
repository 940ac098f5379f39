"""Jobs on two parts of a small table, and the comparison of their results."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sknan import StableNetClassifier
from sknan._engine.jobs import Job

_rng = np.random.default_rng(0)
_X = _rng.normal(size=(260, 5)).astype(np.float32)
_y = _X[:, 0] + _X[:, 1] * _X[:, 2] + 0.1 * _rng.normal(size=260)
TABLES = [(_X[:200], _y[:200]), (_X[60:], _y[60:])]

LEARNING_RATES = [{"lr": lr} for lr in (1e-4, 1e-3, 1e-2)]


def jobs_of(estimator_class, settings, tables=TABLES, **common):
    """Return a job for each setting on each table."""
    options = {"max_epochs": 3, "batch_size": 32, "random_state": 0, **common}
    is_classifier = estimator_class is StableNetClassifier
    return [
        Job(
            estimator_class(**{**options, **setting}),
            X,
            (y > 0).astype(int) if is_classifier else y,
            {},
        )
        for setting in settings
        for X, y in tables
    ]


def fitted_separately(jobs):
    """Return a fitted clone of each job's estimator."""
    return [clone(job.estimator).fit(job.X, job.y, **job.fit_params) for job in jobs]


def fitted_by_the_loop(jobs):
    """Return a clone of each job's estimator, fitted by the loop of its net."""
    fitted = []
    for job in jobs:
        estimator = clone(job.estimator)
        plan = estimator._plan(estimator._training_rows(job.X, job.y, **job.fit_params))
        plan.run_loop()
        estimator._finish(plan)
        fitted.append(estimator)
    return fitted


def weights_of(estimator):
    return list(estimator.net_.module_.state_dict().values())


def assert_close(outcomes, estimators, atol=1e-5):
    """Compare weights, fitted attributes and histories of outcomes with estimators.

    A stack computes products in another order and multiplies by the learning rate last.
    Weights may therefore differ from those of a net's own loop in their last bits, and
    more so with each step.
    """
    for outcome, separate in zip(outcomes, estimators, strict=True):
        stacked = outcome.estimator
        pairs = zip(weights_of(stacked), weights_of(separate), strict=True)
        for weight, expected in pairs:
            torch.testing.assert_close(weight, expected, atol=atol, rtol=0.0)
        assert stacked.n_iter_ == separate.n_iter_
        assert stacked.best_epoch_ == separate.best_epoch_
        assert stacked.effective_lr_ == separate.effective_lr_
        histories = [est.net_.history.to_list() for est in (stacked, separate)]
        for row, expected in zip(*histories, strict=True):
            assert row.keys() == expected.keys()
            for key in row.keys() - {"batches", "dur"}:
                assert row[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6), key


def assert_bitwise_equal(tensors, expected):
    assert all(torch.equal(*pair) for pair in zip(tensors, expected, strict=True))
