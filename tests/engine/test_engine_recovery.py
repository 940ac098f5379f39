"""Recovery of members of a stack: the same bits as in a fit, and still in the stack."""

import time
import warnings

import numpy as np
import pytest
import torch
from engine_helpers import assert_bitwise_equal, weights_of
from sklearn.base import clone
from torch import nn

from sknan import DivergenceWarning, StableNetClassifier, StableNetRegressor
from sknan._engine.fit import train_stack
from sknan._engine.jobs import Job, train_together
from sknan.nets._time_limit import TimeLimit
from sknan.optim import Plateau

_Z = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
_VALUES = _Z[:, 0] - _Z[:, 1]
_LABELS = (_VALUES > 0).astype(int)
_RAW = 1e3 * _Z + 1e4
# In two rows the root of `Rooted` is outside of its domain.
_OUTLIERS = _Z.copy()
_OUTLIERS[[17, 123], 0] = -9.0


class Rooted(nn.Module):
    """Network with batch normalization, dropout, and the root of a column."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.first = nn.Linear(n_features_in, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.2)
        self.last = nn.Linear(8, n_outputs)

    def forward(self, X):
        hidden = self.drop(torch.relu(self.norm(self.first(X))))
        return self.last(hidden) + (X[:, :1] + 6.0).sqrt()


def rates(*values):
    return [{"lr": value} for value in values]


REGRESSION = StableNetRegressor, _VALUES
CASES = {
    "rows left out": (
        *REGRESSION,
        _OUTLIERS,
        rates(1e-3, 0.05, 1.0),
        {"module": Rooted, "max_epochs": 4},
    ),
    "skipped": (
        *REGRESSION,
        _OUTLIERS,
        rates(1e-3, 0.05),
        {"module": Rooted, "on_nonfinite": "skip", "max_recoveries": 100},
    ),
    "raised": (
        *REGRESSION,
        _OUTLIERS,
        rates(1e-3, 0.05),
        {"module": Rooted, "on_nonfinite": "raise"},
    ),
    "raw units": (
        *REGRESSION,
        _RAW,
        rates(1e-3, 0.05, 100.0),
        {"optimizer": "sgd", "clip_norm": None},
    ),
    "absurd rates": (
        StableNetClassifier,
        _LABELS,
        _Z,
        rates(1e-3, 1.0, 100.0, 1e6, 1e9),
        {"module__dropout": 0.1, "early_stopping": True, "max_epochs": 8},
    ),
    "quantile": (
        StableNetClassifier,
        _LABELS,
        _Z,
        rates(1e-3, 1.0, 1e6),
        {"adaptive_clip": "quantile", "clip_norm": None, "max_epochs": 8},
    ),
    "values": (
        StableNetClassifier,
        _LABELS,
        _Z,
        rates(1e-3, 1.0, 1e6),
        {"clip_value": 0.1, "clip_norm": None, "lr_schedule": "plateau"},
    ),
    "momentum": (
        StableNetClassifier,
        _LABELS,
        _Z,
        rates(1e-3, 10.0, 1e4),
        {"optimizer": "sgd", "optimizer__momentum": 0.9, "clip_norm": None},
    ),
}


def fitted(job):
    """Return the estimator, or the error, of a separate fit."""
    estimator = clone(job.estimator)
    try:
        return estimator.fit(job.X, job.y)
    except Exception as error:
        return error


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_members_recover_in_the_stack_with_the_bits_of_a_fit(case):
    estimator_class, y, X, settings, common = case
    options = {"max_epochs": 5, "early_stopping": False, "random_state": 0, **common}
    jobs = [Job(estimator_class(**options, **s), X, y, {}) for s in settings]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        expected = [fitted(job) for job in jobs]
    outcomes = train_together(jobs)
    has_failed = []
    for outcome, separate in zip(outcomes, expected, strict=True):
        assert outcome.is_stacked
        if isinstance(separate, Exception):
            assert (type(outcome.error), str(outcome.error)) == (
                type(separate),
                str(separate),
            )
            has_failed.append(True)
            continue
        member = outcome.estimator
        assert_bitwise_equal(weights_of(member), weights_of(separate))
        assert all(bool(torch.isfinite(w).all()) for w in weights_of(member))
        assert member.effective_lr_ == separate.effective_lr_
        reports = [list(map(str, e.nonfinite_reports_)) for e in (member, separate)]
        assert reports[0] == reports[1]
        histories = [e.net_.history.to_list() for e in (member, separate)]
        for rows in zip(*histories, strict=True):
            stacked, single = ({**row, "dur": None} for row in rows)
            assert stacked == single
        has_failed.append(bool(reports[0]))
    assert any(has_failed)


class Slow(TimeLimit):
    """Time limit for epochs that seem to take 1000 seconds, the first two 2000."""

    def allows_epoch(self, n_networks=1):
        seconds = 2000.0 if self.n_epochs_ < 2 else 1000.0
        self._latest_ = time.monotonic() - seconds * n_networks
        return super().allows_epoch(n_networks)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", Plateau(patience=0)])
def test_a_schedule_follows_the_time_with_failed_steps_in_loop_and_stack(schedule):
    params = {"module": Rooted, "max_epochs": 60, "random_state": 0, "batch_size": 50}
    params |= {"lr_schedule": schedule, "early_stopping": False, "lr": 0.1}
    learning_rates = []
    for runs_stack in (False, True):
        model = StableNetRegressor(**params)
        rows = model._training_rows(_OUTLIERS, _VALUES)
        plan = model._plan(rows)
        plan.time_limit = Slow(10_100.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DivergenceWarning)
            train_stack([plan], [0])[0]() if runs_stack else plan.run_loop()
        assert plan.net.nonfinite_reports_
        learning_rates.append([row["lr"] for row in plan.net.history])
    looped, stacked = learning_rates
    assert len(stacked) == 8
    assert stacked == looped
    if isinstance(schedule, str):
        assert stacked[-1] < 0.05 * max(stacked)
        top = int(np.argmax(stacked))
        assert stacked[top:] == sorted(stacked[top:], reverse=True)
