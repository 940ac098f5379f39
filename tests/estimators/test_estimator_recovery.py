"""Recovery of the two estimators from failed steps."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from estimator_helpers import (
    FAST,
    VALUES,
    X,
    both,
    raw_scores,
    weights_of,
)
from torch import nn

from sknan import (
    BatchedGridSearchCV,
    DivergenceWarning,
    NonFiniteTrainingError,
    StableNetClassifier,
    StableNetRegressor,
)


@both
@pytest.mark.parametrize("lr", [1e4, 1e15, 1e30, 1e300])
def test_training_recovers_from_an_absurd_learning_rate_with_a_warning(
    Estimator, y, lr
):
    model = Estimator(lr=lr, max_epochs=40, batch_size=16, random_state=0)
    with pytest.warns(DivergenceWarning) as caught:
        model.fit(X, y)
    assert model.effective_lr_ < lr
    assert model.nonfinite_reports_
    assert len(caught) == 1
    warning = caught[0].message
    assert warning.report == model.nonfinite_reports_[0]
    assert str(warning).endswith(f"First failure: {model.nonfinite_reports_[0]}")
    assert all(torch.isfinite(w).all() for w in weights_of(model))
    assert np.isfinite(raw_scores(model, X)).all()


def test_the_warning_points_to_the_line_that_called_fit():
    model = StableNetRegressor(lr=1e30, max_epochs=5, batch_size=16, random_state=0)
    with pytest.warns(DivergenceWarning) as caught:
        model.fit(X, VALUES)
    assert caught[0].filename == __file__


@both
def test_on_nonfinite_raise_raises_with_the_report(Estimator, y):
    model = Estimator(lr=1e30, on_nonfinite="raise", max_epochs=5, batch_size=16)
    with pytest.raises(NonFiniteTrainingError) as caught:
        model.set_params(random_state=0).fit(X, y)
    report = caught.value.report
    assert str(caught.value) == str(report)
    assert report.cause == "learning_rate"
    assert report.epoch == 1


def test_a_collapsed_network_is_flagged_and_restarted(cancer):
    X, y = cancer
    model = StableNetClassifier(
        optimizer="sgd", lr=100.0, max_epochs=20, random_state=0
    )
    with pytest.warns(DivergenceWarning, match="The network has collapsed"):
        model.fit(X, y)
    assert model.effective_lr_ < 100.0
    assert model.nonfinite_reports_[0].cause == "learning_rate"
    assert model.score(X, y) > 0.9


class LogOfColumn(nn.Module):
    """Logarithm of a column that contains zeros."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 1)

    def forward(self, X):
        return self.head(torch.log(X[:, :1].clamp(min=0)))


class DividedByNorm(LogOfColumn):
    """Weight of zeros, divided by its norm."""

    def __init__(self):
        super().__init__()
        self.direction = nn.Parameter(torch.zeros(4))

    def forward(self, X):
        return self.head(X @ (self.direction / self.direction.norm())[:, None])


def test_a_module_that_cannot_be_repaired_gives_an_error_that_names_the_line():
    with pytest.raises(NonFiniteTrainingError) as caught:
        StableNetRegressor(
            DividedByNorm, max_recoveries=3, max_epochs=10, random_state=0
        ).fit(X, VALUES)
    report = caught.value.report
    assert (report.phase, report.cause) == ("forward", "architecture")
    assert (report.module, report.operation) == ("", "aten.div")
    assert report.source.startswith(__file__)
    assert str(caught.value) == (
        f"{report} Gave up after 3 recoveries (max_recoveries=3)."
    )


def test_a_module_that_fails_for_most_rows_learns_with_repaired_operations():
    model = StableNetRegressor(LogOfColumn, lr=0.1, max_epochs=60, random_state=0)
    with pytest.warns(DivergenceWarning):
        model.fit(X, VALUES)
    report = model.nonfinite_reports_[0]
    assert (report.cause, report.operation) == ("activation", "aten.log")
    assert report.recovery == "The step was taken with its operations repaired."
    with pytest.warns(UserWarning, match="The module alone"):
        assert np.isfinite(model.predict(X)).all()


def nan_loss(output, target):
    return (output - target).square().mean() * torch.nan


@pytest.mark.filterwarnings("ignore::sknan.DivergenceWarning")
@pytest.mark.parametrize("policy", ["recover", "skip"])
def test_a_training_without_a_single_step_raises(policy):
    model = StableNetRegressor(
        nn.Linear(4, 1), criterion=nan_loss, on_nonfinite=policy, **FAST
    )
    with pytest.raises(NonFiniteTrainingError):
        model.fit(X, VALUES)


def without_line(message):
    return re.sub(r"\(.*?:\d+\)", "(line)", str(message))


def test_a_rare_bad_row_is_skipped_and_reported():
    table = np.abs(X) + 0.5
    table[7, 0] = 0.0
    model = StableNetRegressor(
        LogOfColumn, batch_size=6, max_epochs=3, max_recoveries=10, random_state=0
    )
    with pytest.warns(DivergenceWarning):
        model.fit(table, VALUES)
    reports = model.nonfinite_reports_
    assert len(reports) == 3  # once an epoch
    assert {(r.rows, r.rows_in, r.columns) for r in reports} == {((7,), "data", (0,))}
    assert reports[0].recovery == "The step was taken without the rows to blame."
    # In prediction, the operation is kept inside its domain for this row.
    with pytest.warns(UserWarning, match="The module alone") as caught:
        prediction = model.predict(table)
    assert np.isfinite(prediction).all()
    (warned,) = caught
    assert without_line(warned.message) == (
        "Non-finite output of aten.log (line). The module alone is not finite for 1 of "
        "60 rows, although X is finite; aten.log was given 0 to 2.83. To blame: row 7, "
        "column 0. Clean these columns, or use sknan.functional.log, whose value and "
        "gradient stay finite. Predictions for this row keep each operation inside its "
        "domain and range."
    )


class FailsInTraining(nn.Module):
    """A network with a logarithm that some rows leave in training alone."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.linear = nn.Linear(n_features_in, n_outputs)

    def forward(self, x):
        least = -torch.inf if self.training else 1.0
        return self.linear(torch.log((x + 6.0).clamp(min=least)))


@pytest.mark.parametrize("n_bad", [1, 96])
@pytest.mark.parametrize("is_search", [False, True])
def test_only_consecutive_skipped_steps_count(is_search, n_bad):
    table = np.random.default_rng(0).normal(size=(96, 3)).astype("float32")
    y = table[:, 0].copy()
    table[:n_bad, 1] = -9.0
    options = {"max_epochs": 12, "batch_size": 32, "early_stopping": False}
    model = StableNetRegressor(FailsInTraining, lr=0.02, random_state=0, **options)
    model.set_params(on_nonfinite="skip", max_recoveries=4)
    if is_search:
        model = BatchedGridSearchCV(model, {"lr": [0.01, 0.02]}, cv=2)
    if n_bad == 96:
        with pytest.raises(ValueError if is_search else NonFiniteTrainingError) as e:
            model.fit(table, y)
        assert "Gave up after 4 recoveries (max_recoveries=4)." in str(e.value)
        return
    with pytest.warns(DivergenceWarning):
        model.fit(table, y)
    best = model.best_estimator_ if is_search else model
    assert [report.epoch for report in best.nonfinite_reports_] == [*range(1, 13)]
    if is_search:  # the row is in the training rows of one of two folds
        assert list(model.cv_results_["n_recoveries"]) == [12, 12]
