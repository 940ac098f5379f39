"""Tests of the learning-rate finder and of ``lr="auto"``."""

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
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetRegressor,
    find_learning_rate,
)
from sknan._engine.jobs import Job, train_together
from sknan._engine.plan import TrainingRows
from sknan._engine.range_test.curves import RateCurves, drawn_rows
from sknan._engine.range_test.run import _result

ESTIMATORS = [StableNetClassifier, StableNetRegressor]
FEW = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]


@pytest.fixture(scope="module")
def table():
    X, y = make_friedman1(400, n_features=6, noise=1.0, random_state=0)
    return (X - 0.5).astype(np.float32) * 3, y


def target_for(estimator_class, y):
    return (
        np.where(y > 14, "high", "low") if estimator_class is StableNetClassifier else y
    )


def small(estimator_class, **params):
    return estimator_class(
        **{"module__width": 16, "random_state": 0, "max_epochs": 20, **params}
    )


# -- curves and suggestion -----------------------------------------------------------


@pytest.mark.parametrize("estimator_class", ESTIMATORS)
@pytest.mark.parametrize("batch_size", [16, 128])
def test_the_suggestion_is_near_the_best_of_a_grid(estimator_class, batch_size):
    X, y = make_friedman1(1300, n_features=6, noise=1.0, random_state=0)
    X, target = SafeScaler().fit_transform(X), target_for(estimator_class, y)
    model = small(estimator_class, batch_size=batch_size)
    found = find_learning_rate(model, X[:300], target[:300])
    assert found.suggestion <= found.largest_stable / 2
    rates = [found.suggestion, 1e-3, 1e-4, 1e-2, 1e-1]
    outcomes = train_together(
        [Job(clone(model).set_params(lr=lr), X[:300], target[:300], {}) for lr in rates]
    )
    scores = [o.estimator.score(X[300:], target[300:]) for o in outcomes]
    assert scores[0] > max(scores) - 0.04
    assert scores[0] > scores[1]


def test_larger_units_give_a_lower_learning_rate():
    X, y = load_diabetes(return_X_y=True)  # columns of norm 1
    wide = find_learning_rate(small(StableNetRegressor), X * 300.0, y)
    narrow = find_learning_rate(small(StableNetRegressor), X * 3.0, y)
    assert wide.suggestion < narrow.suggestion


def test_a_diverged_curve_changes_no_other_curve(table):
    model = small(StableNetRegressor, optimizer="adam", clip_norm=None)
    stable = find_learning_rate(model, *table, rates=FEW, n_steps=30)
    with_diverged = find_learning_rate(
        model, *table, rates=[*FEW, 1e15, 1e30], n_steps=30
    )
    np.testing.assert_array_equal(with_diverged.losses[: len(FEW)], stable.losses)
    assert with_diverged.suggestion == stable.suggestion
    assert np.isfinite(with_diverged.losses[-1, :, 0]).all()
    assert np.isnan(with_diverged.losses[-1, :, -1]).all()
    frame = with_diverged.to_frame()
    assert frame["ended_at"].isna().tolist()[: len(FEW)] == [True] * len(FEW)
    assert frame["ended_at"].iloc[-1] == 2
    assert not frame["is_stable"].iloc[-1]
    curves = with_diverged.curves()
    assert len(curves[curves["rate"] == 1e30]) == 2
    assert "ended early, the first at a learning rate of " in str(with_diverged)


def test_learning_rates_share_initial_weights_and_repetitions_do_not(table):
    found = find_learning_rate(small(StableNetRegressor), *table, rates=FEW, n_steps=20)
    assert found.losses.shape == (5, 2, 20)
    first = found.losses[:, :, 0]
    assert (first == first[0]).all()
    assert first[0, 0] != first[0, 1]
    assert found.valid_steps[0] == 0
    assert found.valid_losses.shape == (5, 2, len(found.valid_steps))


@pytest.mark.parametrize("estimator_class", ESTIMATORS)
def test_single_trainings_agree_with_the_stack(estimator_class, table):
    X, y = table
    target = target_for(estimator_class, y)
    stacked = find_learning_rate(
        small(estimator_class), X, target, rates=FEW, n_steps=40
    )
    # The stack does not support clipping by value, even where nothing is clipped.
    alone = small(estimator_class, clip_value=1e6)
    single = find_learning_rate(alone, X, target, rates=FEW, n_steps=40)
    assert single.losses.shape == stacked.losses.shape
    np.testing.assert_allclose(
        single.valid_losses[:, :, 0], stacked.valid_losses[:, :, 0], rtol=1e-5
    )
    assert 1 / 3 < single.suggestion / stacked.suggestion < 3


class Square(nn.Module):
    """Module that raises if a weight is not finite."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.layer = nn.Linear(n_features_in, n_outputs)

    def forward(self, X):
        spread = self.layer.weight @ self.layer.weight.T
        root = torch.linalg.cholesky(spread + torch.eye(len(spread)))
        return self.layer(X) @ root


def test_a_module_that_raises_ends_only_its_curve(table):
    X, y = table
    rates = [1e-3, 1e-2, 1e-1, 1e25]
    model = StableNetRegressor(Square, random_state=0, max_epochs=10)
    found = find_learning_rate(model, X, np.c_[y, -y], rates=rates)
    assert np.isfinite(found.losses[:3]).all()
    assert np.isnan(found.losses[3, :, -1]).all()
    assert found.suggestion < 1.0


def test_sample_weights_are_used(table):
    X, y = table
    weights = np.where(np.arange(len(y)) < 300, 1.0, 0.0)
    with_outliers = y.copy()
    with_outliers[300:] = 1e6
    model = small(StableNetRegressor)
    found = find_learning_rate(
        model, X, with_outliers, sample_weight=weights, rates=FEW, n_steps=20
    )
    bare = find_learning_rate(model, X[:300], y[:300], rates=FEW, n_steps=20)
    assert found.suggestion == bare.suggestion


def test_only_as_many_rows_are_drawn_as_the_steps_need():
    rows = TrainingRows(
        np.zeros((50_000, 2), np.float32), np.arange(50_000), None, 1, False,
        np.arange(50_000), np.arange(50_000),
    )  # fmt: skip
    rng = np.random.RandomState(0)
    train, valid = drawn_rows(rows, 2000, rng)
    assert (len(train.X), len(valid.X)) == (2000, 1000)
    assert not set(train.y) & set(valid.y)


# -- comparison with the usual learning rate -------------------------------------------


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(100), 7)])
def test_comparisons_stop_early_on_rows_of_their_own(groups):
    # They have enough rows to stop early, if the user has not chosen these.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(700, 4))
    model = small(StableNetRegressor, max_epochs=2, lr="auto")
    model.fit(X, X[:, 0], groups=groups)
    assert model.lr_ > 1e-3


def test_another_rate_than_the_default_needs_a_clear_gain():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 4))
    y = X[:, 0] + rng.normal(size=120)
    model = small(StableNetRegressor, batch_size=8)
    found = find_learning_rate(model, X, y, rates=FEW, n_steps=40)
    assert found.suggestion == 1e-3
    assert re.fullmatch(
        r"No other learning rate gives a loss on held-out rows that is lower, by more "
        r"than its noise, than that of the default, \S+\.",
        found.reason,
    )


def test_the_rate_of_samples_of_one_table_is_stable_and_better(table):
    X, y = table
    model = small(StableNetRegressor, max_epochs=10)
    halves = [(X[i::2][:150], y[i::2][:150]) for i in range(2)]
    found = [find_learning_rate(model, *half, rates=FEW) for half in halves]
    rates = [result.suggestion for result in found]
    assert min(rates) > 1e-3
    assert max(rates) < 3 * min(rates)
    assert re.fullmatch(
        r"A training with it has a loss on held-out rows of \S+, against \S+ with the "
        r"default, 0\.001\.",
        found[0].reason,
    )


def test_few_rows_give_the_default_learning_rate(table):
    X, y = table
    model = small(StableNetRegressor)
    found = find_learning_rate(model, X[:80], y[:80], rates=FEW, n_steps=20)
    assert (found.suggestion, found.confidence) == (1e-3, "low")
    assert found.reason == (
        "80 rows are too few to compare learning rates. The suggestion is the default, "
        "or half of the largest stable learning rate if that is lower."
    )


# -- reason and confidence -----------------------------------------------------------

TEN = np.logspace(-5, -0.5, 10)


def result_of(ends, n_rows=400):
    """Judge linear loss curves from 1 to ``ends``, of shape (n_rates, n_seeds)."""
    ends = np.asarray(ends, dtype=np.float32)
    steps = np.linspace(0.0, 1.0, 21, dtype=np.float32)
    curves = 1.0 + (ends[:, :, None] - 1.0) * steps
    curves[np.isnan(ends), 0] = 1.0
    valid = curves if n_rows >= 50 else curves[:, :, :0]
    return _result(TEN, RateCurves(curves[:, :, :20], valid, np.arange(21)), n_rows)


WITH_MINIMUM = np.array([0.98, 0.95, 0.9, 0.7, 0.5, 0.3, 0.2, 0.3, 0.9, np.nan])


def test_a_clear_minimum_gives_high_confidence():
    found = result_of(np.c_[WITH_MINIMUM, WITH_MINIMUM])
    assert (found.confidence, found.fastest) == ("high", TEN[6])
    assert found.largest_stable == TEN[7]
    assert found.suggestion == pytest.approx(TEN[6], rel=0.1)
    assert str(found) == (
        "Learning rate 0.01, confidence high. The loss on held-out rows is lowest "
        "there: 0.26 in the end, from 1.\n"
        "Largest stable learning rate 0.0316, fastest-learning 0.01.\n"
        "10 learning rates from 1e-05 to 0.316, 2 starts, 20 steps each; 2 curves "
        "ended early, the first at a learning rate of 0.316."
    )


REASONS = {
    "flat": (
        np.full(10, 0.999),
        ("low", 1e-3),
        "The curves are flat: the loss on held-out rows fell by less than 1 % at each "
        "stable learning rate. The suggestion is the default, or half of the largest "
        "stable learning rate if that is lower.",
    ),
    "all end": (
        np.full(10, np.nan),
        ("low", 1e-3),
        "Every curve ended at once, at each learning rate, so that none is at fault. "
        "Scale X with SafeScaler(). The suggestion is the default.",
    ),
    "none is stable": (
        np.where(np.arange(10) < 1, np.nan, 0.1),
        ("low", 5e-6),
        "No learning rate is stable: from one start or another, a step was refused or "
        "the loss did not fall. Try lower learning rates, and scale X with "
        "SafeScaler().",
    ),
    "edge": (
        np.linspace(0.1, 0.9, 10),
        ("low", 1.0e-5),
        "The loss on held-out rows is lowest there: 0.168 in the end, from 1. It is "
        "the lowest learning rate of the test: try lower ones.",
    ),
}


@pytest.mark.parametrize(("ends", "answer", "reason"), REASONS.values(), ids=REASONS)
def test_the_reason_names_doubts_about_the_suggestion(ends, answer, reason):
    found = result_of(np.c_[ends, ends])
    assert (found.confidence, found.suggestion) == answer
    assert found.reason == reason


def test_disagreeing_repetitions_give_low_confidence():
    low, high = np.roll(WITH_MINIMUM[:9], -4), WITH_MINIMUM[:9]
    ends = np.r_[np.c_[low, high], [[0.9, 0.9]]]
    ends = np.minimum(ends, 0.45)
    found = result_of(ends)
    assert found.confidence == "low"
    assert found.reason.endswith("The starts disagree: 0.0001 to 0.01.")


def test_very_few_rows_give_low_confidence():
    found = result_of(np.c_[WITH_MINIMUM, WITH_MINIMUM], n_rows=20)
    assert (found.confidence, found.suggestion) == ("low", 1e-3)
    assert found.reason == (
        "20 rows are too few to compare learning rates. The suggestion is the default, "
        "or half of the largest stable learning rate if that is lower."
    )


# -- arguments -----------------------------------------------------------------------


def test_the_transformers_of_a_pipeline_are_fitted_first(table):
    X, y = table
    with_missing = X.copy()
    with_missing[::7, 2] = np.nan
    model = make_pipeline(NaNImputer(), SafeScaler(), small(StableNetRegressor))
    found = find_learning_rate(model, with_missing, y, rates=FEW, n_steps=20)
    filled = make_pipeline(NaNImputer(), SafeScaler()).fit_transform(with_missing)
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
    "n_steps_array": (
        {"n_steps": np.array([10, 20])},
        ValueError,
        "The 'n_steps' parameter of find_learning_rate must be an integer of at least "
        "10 or 'auto', got array([10, 20]).",
    ),
    "rates_text": (
        {"rates": "fast"},
        ValueError,
        "The 'rates' parameter of find_learning_rate must be at least 3 different "
        "finite numbers above 0 or None, got 'fast'.",
    ),
    "verbose": (
        {"verbose": "yes"},
        ValueError,
        "The 'verbose' parameter of find_learning_rate must be an integer of at least "
        "0, got 'yes'.",
    ),
}


@pytest.mark.parametrize(("params", "kind", "message"), REFUSALS.values(), ids=REFUSALS)
def test_invalid_arguments_are_refused(table, params, kind, message):
    with pytest.raises(kind) as caught:
        find_learning_rate(
            **{"estimator": StableNetRegressor(), "X": table[0], "y": table[1]} | params
        )
    assert str(caught.value) == message


# -- lr="auto" -----------------------------------------------------------------------


@pytest.mark.parametrize("estimator_class", ESTIMATORS)
def test_auto_uses_the_suggestion(estimator_class, table):
    X, y = table
    target = target_for(estimator_class, y)
    model = small(estimator_class, lr="auto").fit(X, target)
    found = find_learning_rate(model, X, target)
    assert model.lr == "auto"
    assert model.lr_ == model.effective_lr_ == found.suggestion
    np.testing.assert_array_equal(model.learning_rate_range_.losses, found.losses)
    plain = small(estimator_class, lr=model.lr_).fit(X, target)
    assert plain.learning_rate_range_ is None
    np.testing.assert_array_equal(model.predict(X), plain.predict(X))


def test_auto_is_repeatable_and_does_not_change_the_global_generators(table):
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


def test_auto_can_be_a_candidate_of_a_search(table):
    search = GridSearchCV(
        small(StableNetRegressor, max_epochs=5), {"lr": [1e-5, "auto"]}, cv=2
    ).fit(*table)
    assert search.best_params_ == {"lr": "auto"}
    assert search.best_estimator_.lr_ > 1e-4


def test_a_continued_training_keeps_its_learning_rate(table):
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


@pytest.mark.parametrize("estimator_class", ESTIMATORS)
def test_auto_with_eight_rows_is_cautious(estimator_class, table):
    X, y = table
    model = small(estimator_class, lr="auto").fit(
        X[:8], target_for(estimator_class, y)[:8]
    )
    assert model.learning_rate_range_.confidence == "low"
    assert 0 < model.lr_ <= 1e-3


def test_auto_does_not_depend_on_huge_units(table):
    X, y = table
    model = small(StableNetRegressor, lr="auto", max_epochs=5).fit(X * 1e12, y)
    assert model.nonfinite_reports_ == []
    assert model.learning_rate_range_.largest_stable is not None
    assert model.score(X * 1e12, y) > 0.0


@pytest.mark.parametrize("lr", ["Auto", 0, None, float("inf")])
def test_other_values_of_lr_are_refused(table, lr):
    message = (
        "The 'lr' parameter of StableNetRegressor must be a finite number above 0 or "
        f"'auto', got {lr!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        StableNetRegressor(lr=lr).fit(*table)


@pytest.mark.parametrize("estimator_class", ESTIMATORS)
def test_trainings_of_the_usual_and_the_found_rate_stop_early(estimator_class):
    X = np.random.default_rng(0).normal(size=(700, 1)).astype(np.float32)
    target = target_for(estimator_class, 14 + 2 * X[:, 0])
    model = small(estimator_class, max_epochs=2, lr="auto").fit(X, target)
    found = model.learning_rate_range_
    assert model.lr_ == found.suggestion
    assert "a training" in found.reason.lower()
