"""The range test, and the rate that the estimators take from it."""

import pickle
import re

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from sknan import (
    DivergenceWarning,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetRegressor,
    find_learning_rate,
)
from sknan._engine.jobs import Job, train_together
from sknan._engine.plan import TrainingRows
from sknan._engine.range_test.curves import RateCurves, _drawn_rows
from sknan._engine.range_test.run import _result

WAYS = [StableNetClassifier, StableNetRegressor]
FEW = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]


@pytest.fixture(scope="module")
def table():
    X, y = make_friedman1(400, n_features=6, noise=1.0, random_state=0)
    return (X - 0.5).astype(np.float32) * 3, y


def target_for(door, y):
    return np.where(y > 14, "high", "low") if door is StableNetClassifier else y


def small(door, **params):
    return door(**{"module__width": 16, "random_state": 0, "max_epochs": 20, **params})


# -- what it finds -------------------------------------------------------------------


@pytest.mark.parametrize("door", WAYS)
@pytest.mark.parametrize("batch_size", [16, 128])
def test_the_suggestion_is_near_the_best_of_a_grid(door, batch_size):
    X, y = make_friedman1(1300, n_features=6, noise=1.0, random_state=0)
    X, target = SafeScaler().fit_transform(X), target_for(door, y)
    model = small(door, batch_size=batch_size)
    found = find_learning_rate(model, X[:300], target[:300])
    assert found.suggestion <= found.largest_stable / 2
    rates = [found.suggestion, 1e-3, 1e-4, 1e-2, 1e-1]
    outcomes = train_together(
        [Job(clone(model).set_params(lr=lr), X[:300], target[:300], {}) for lr in rates]
    )
    scores = [o.estimator.score(X[300:], target[300:]) for o in outcomes]
    assert scores[0] > max(scores) - 0.04
    assert scores[0] > scores[1]


def test_a_table_in_raw_units_has_another_rate_than_a_scaled_one():
    X, y = load_diabetes(return_X_y=True)  # columns of norm 1
    wide = find_learning_rate(small(StableNetRegressor), X * 300.0, y)
    narrow = find_learning_rate(small(StableNetRegressor), X * 3.0, y)
    assert wide.suggestion < narrow.suggestion


def test_a_curve_that_ends_leaves_the_others_as_they_are(table):
    model = small(StableNetRegressor, optimizer="adam", clip_norm=None)
    calm = find_learning_rate(model, *table, rates=FEW, n_steps=30)
    wild = find_learning_rate(model, *table, rates=[*FEW, 1e15, 1e30], n_steps=30)
    np.testing.assert_array_equal(wild.losses[: len(FEW)], calm.losses)
    assert wild.suggestion == calm.suggestion
    assert np.isfinite(wild.losses[-1, :, 0]).all()
    assert np.isnan(wild.losses[-1, :, -1]).all()
    frame = wild.to_frame()
    assert frame["ended_at"].isna().tolist()[: len(FEW)] == [True] * len(FEW)
    assert frame["ended_at"].iloc[-1] == 2
    assert not frame["is_stable"].iloc[-1]
    curves = wild.curves()
    assert len(curves[curves["rate"] == 1e30]) == 2
    assert "ended early, the first at rate " in str(wild)


def test_rates_of_one_start_share_their_first_loss_and_two_starts_do_not(table):
    found = find_learning_rate(small(StableNetRegressor), *table, rates=FEW, n_steps=20)
    assert found.losses.shape == (5, 2, 20)
    first = found.losses[:, :, 0]
    assert (first == first[0]).all()
    assert first[0, 0] != first[0, 1]
    assert found.valid_steps[0] == 0
    assert found.valid_losses.shape == (5, 2, len(found.valid_steps))


@pytest.mark.parametrize("door", WAYS)
def test_trainings_one_by_one_find_what_the_stack_finds(door, table):
    X, y = table
    target = target_for(door, y)
    stacked = find_learning_rate(small(door), X, target, rates=FEW, n_steps=40)
    # A clip of each entry that never bites is one that the stack does not know.
    alone = small(door, clip_value=1e6)
    lone = find_learning_rate(alone, X, target, rates=FEW, n_steps=40)
    assert lone.losses.shape == stacked.losses.shape
    np.testing.assert_allclose(
        lone.valid_losses[:, :, 0], stacked.valid_losses[:, :, 0], rtol=1e-5
    )
    assert 1 / 3 < lone.suggestion / stacked.suggestion < 3


class Square(nn.Module):
    """Raises where a weight is not finite."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.layer = nn.Linear(n_features_in, n_outputs)

    def forward(self, X):
        spread = self.layer.weight @ self.layer.weight.T
        root = torch.linalg.cholesky(spread + torch.eye(len(spread)))
        return self.layer(X) @ root


def test_a_decomposition_that_raises_ends_a_curve_and_not_the_test(table):
    X, y = table
    rates = [1e-3, 1e-2, 1e-1, 1e25]
    model = StableNetRegressor(Square, random_state=0, max_epochs=10)
    found = find_learning_rate(model, X, np.c_[y, -y], rates=rates)
    assert np.isfinite(found.losses[:3]).all()
    assert np.isnan(found.losses[3, :, -1]).all()
    assert found.suggestion < 1.0


def test_sample_weights_count(table):
    X, y = table
    weights = np.where(np.arange(len(y)) < 300, 1.0, 0.0)
    spoilt = y.copy()
    spoilt[300:] = 1e6
    model = small(StableNetRegressor)
    found = find_learning_rate(
        model, X, spoilt, sample_weight=weights, rates=FEW, n_steps=20
    )
    bare = find_learning_rate(model, X[:300], y[:300], rates=FEW, n_steps=20)
    assert found.suggestion == bare.suggestion


def test_of_a_large_table_no_more_rows_are_taken_than_there_are_steps_for():
    rows = TrainingRows(
        np.zeros((50_000, 2), np.float32), np.arange(50_000), None, 1, False,
        np.arange(50_000),
    )  # fmt: skip
    rng = np.random.RandomState(0)
    train, valid = _drawn_rows(rows, 2000, rng)
    assert (len(train.X), len(valid.X)) == (2000, 1024)
    assert not set(train.y) & set(valid.y)


# -- what it says --------------------------------------------------------------------

TEN = np.logspace(-5, -0.5, 10)


def result_of(ends, n_rows=400):
    """Judgement of curves that go straight from 1 to an end; rates by seeds."""
    ends = np.asarray(ends, dtype=np.float32)
    steps = np.linspace(0.0, 1.0, 21, dtype=np.float32)
    curves = 1.0 + (ends[:, :, None] - 1.0) * steps
    curves[np.isnan(ends), 0] = 1.0
    valid = curves if n_rows >= 50 else curves[:, :, :0]
    return _result(TEN, RateCurves(curves[:, :, :20], valid, np.arange(21)), n_rows)


VALLEY = np.array([0.98, 0.95, 0.9, 0.7, 0.5, 0.3, 0.2, 0.3, 0.9, np.nan])


def test_a_clear_valley_is_trusted():
    found = result_of(np.c_[VALLEY, VALLEY])
    assert (found.confidence, found.fastest) == ("high", TEN[6])
    assert found.largest_stable == TEN[7]
    assert found.suggestion == pytest.approx(TEN[6], rel=0.1)
    assert str(found) == (
        "Learning rate 0.0099, confidence high. The loss on held-out rows is lowest "
        "there: 0.24 in the end, from 1.\n"
        "Largest stable rate 0.0316, fastest-learning 0.01.\n"
        "10 rates from 1e-05 to 0.316, 2 starts, 20 steps each; 2 curves ended early, "
        "the first at rate 0.316."
    )


REASONS = {
    "flat": (
        np.full(10, 0.999),
        ("low", 1e-3),
        "The curves are flat: the loss on held-out rows fell by less than 1 % at any "
        "rate that is stable, so that the usual rate is taken, or half of the largest "
        "stable one.",
    ),
    "all end": (
        np.full(10, np.nan),
        ("low", 1e-3),
        "Every curve ended at once, whatever the rate, so that the usual rate is "
        "taken: the rate is not to blame. Scale X with SafeScaler().",
    ),
    "none is stable": (
        np.where(np.arange(10) < 1, np.nan, 0.1),
        ("low", 5e-6),
        "No rate tried is stable: from one start or another, a step was refused or "
        "the loss did not fall. Try lower rates, and scale X with SafeScaler().",
    ),
    "edge": (
        np.linspace(0.1, 0.9, 10),
        ("low", 1.0e-5),
        "The loss on held-out rows is lowest there: 0.145 in the end, from 1. It is "
        "the lowest rate tried: try lower ones.",
    ),
}


@pytest.mark.parametrize(("ends", "answer", "reason"), REASONS.values(), ids=REASONS)
def test_what_speaks_against_a_suggestion_is_said(ends, answer, reason):
    found = result_of(np.c_[ends, ends])
    assert (found.confidence, found.suggestion) == answer
    assert found.reason == reason


def test_starts_that_disagree_are_not_trusted():
    low, high = np.roll(VALLEY[:9], -4), VALLEY[:9]
    ends = np.r_[np.c_[low, high], [[0.9, 0.9]]]
    ends = np.minimum(ends, 0.45)
    found = result_of(ends)
    assert found.confidence == "low"
    assert found.reason.endswith("The starts disagree: 0.0001 to 0.01.")


def test_few_rows_are_not_trusted():
    found = result_of(np.c_[VALLEY, VALLEY], n_rows=20)
    assert (found.confidence, found.suggestion) == ("low", 1e-3)
    assert found.reason == (
        "20 rows cannot tell rates apart: the usual rate is taken, or half of the "
        "largest stable one."
    )


def test_some_doubt_is_left_by_rather_few_rows():
    found = result_of(np.c_[VALLEY, VALLEY], n_rows=90)
    assert found.confidence == "medium"
    assert found.reason.endswith("There are few rows, 90, to judge by.")


# -- what it takes -------------------------------------------------------------------


def test_the_transformers_of_a_pipeline_are_fitted_first(table):
    X, y = table
    holes = X.copy()
    holes[::7, 2] = np.nan
    model = make_pipeline(NaNImputer(), SafeScaler(), small(StableNetRegressor))
    found = find_learning_rate(model, holes, y, rates=FEW, n_steps=20)
    filled = make_pipeline(NaNImputer(), SafeScaler()).fit_transform(holes)
    bare = find_learning_rate(model[-1], filled, y, rates=FEW, n_steps=20)
    np.testing.assert_array_equal(found.losses, bare.losses)
    assert not hasattr(model[0], "statistics_")
    assert not hasattr(model[-1], "net_")


REFUSALS = {
    "estimator": (
        {"estimator": LinearRegression()},
        TypeError,
        "estimator must be a StableNetClassifier, a StableNetRegressor or a Pipeline "
        "that ends in one, got LinearRegression.",
    ),
    "rates": (
        {"rates": [1e-3, -1.0, 1.0]},
        ValueError,
        "The 'rates' parameter of find_learning_rate must be at least 3 different "
        "finite numbers above 0 or None, got [0.001, -1.0, 1.0].",
    ),
    "n_seeds": (
        {"n_seeds": 0},
        ValueError,
        "The 'n_seeds' parameter of find_learning_rate must be an integer of at least "
        "1, got 0.",
    ),
    "n_steps": (
        {"n_steps": "many"},
        ValueError,
        "The 'n_steps' parameter of find_learning_rate must be an integer of at least "
        "10 or 'auto', got 'many'.",
    ),
}


@pytest.mark.parametrize(("params", "kind", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_it_cannot_use_is_refused(table, params, kind, message):
    with pytest.raises(kind) as caught:
        find_learning_rate(
            **{"estimator": StableNetRegressor(), "X": table[0], "y": table[1]} | params
        )
    assert str(caught.value) == message


# -- lr="auto" -----------------------------------------------------------------------


@pytest.mark.parametrize("door", WAYS)
def test_auto_takes_the_suggestion(door, table):
    X, y = table
    target = target_for(door, y)
    model = small(door, lr="auto").fit(X, target)
    found = find_learning_rate(model, X, target)
    assert model.lr == "auto"
    assert model.lr_ == model.effective_lr_ == found.suggestion
    np.testing.assert_array_equal(model.learning_rate_range_.losses, found.losses)
    plain = small(door, lr=model.lr_).fit(X, target)
    assert plain.learning_rate_range_ is None
    np.testing.assert_array_equal(model.predict(X), plain.predict(X))


def test_auto_is_repeatable_and_leaves_the_global_generators_alone(table):
    model = small(StableNetRegressor, lr="auto", max_epochs=3)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = clone(model).fit(*table)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    again = clone(model).fit(*table)
    assert first.lr_ == again.lr_
    np.testing.assert_array_equal(first.predict(table[0]), again.predict(table[0]))


def test_auto_survives_clone_and_pickle(table):
    model = small(StableNetRegressor, lr="auto", max_epochs=3).fit(*table)
    assert clone(model).get_params()["lr"] == "auto"
    back = pickle.loads(pickle.dumps(model))
    assert back.lr_ == model.lr_
    assert str(back.learning_rate_range_) == str(model.learning_rate_range_)


def test_auto_is_a_candidate_of_a_search(table):
    search = GridSearchCV(
        small(StableNetRegressor, max_epochs=5), {"lr": [1e-5, "auto"]}, cv=2
    ).fit(*table)
    assert search.best_params_ == {"lr": "auto"}
    assert search.best_estimator_.lr_ > 1e-4


def test_a_training_that_goes_on_keeps_the_rate_it_has(table):
    X, y = table
    warm = small(StableNetRegressor, lr="auto", warm_start=True, max_epochs=3)
    rate = warm.fit(X, y).lr_
    assert warm.fit(X[::-1] * 5, y).lr_ == rate
    assert warm.set_params(lr=1e-4).fit(X, y).lr_ == 1e-4
    assert warm.set_params(lr="auto").fit(X, y).lr_ == 1e-4
    stream = small(StableNetRegressor, lr="auto")
    rate = stream.partial_fit(X[:200], y[:200]).lr_
    assert stream.partial_fit(X[200:] * 9, y[200:]).lr_ == rate
    assert stream.effective_lr_ == rate


@pytest.mark.parametrize("door", WAYS)
def test_auto_on_a_handful_of_rows_is_cautious(door, table):
    X, y = table
    model = small(door, lr="auto").fit(X[:8], target_for(door, y)[:8])
    assert model.learning_rate_range_.confidence == "low"
    assert 0 < model.lr_ <= 1e-3


def test_auto_in_raw_units_of_any_size_ends_finite(table):
    X, y = table
    model = small(StableNetRegressor, lr="auto", max_epochs=5)
    with pytest.warns(DivergenceWarning, match="started anew|was rescued"):
        model.fit(X * 1e12, y)
    assert model.lr_ == 1e-3
    assert "the rate is not to blame" in model.learning_rate_range_.reason
    assert np.isfinite(model.predict(X * 1e12)).all()


@pytest.mark.parametrize("lr", ["Auto", 0, None, float("inf")])
def test_any_other_rate_is_refused(table, lr):
    message = (
        "The 'lr' parameter of StableNetRegressor must be a finite number above 0 or "
        f"'auto', got {lr!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        StableNetRegressor(lr=lr).fit(*table)
