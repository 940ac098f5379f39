"""Weights, randomness, early stopping, continued training and schedules."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import pickle
import re
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from estimator_helpers import (
    FAST,
    LABELS,
    VALUES,
    Recorder,
    X,
    both,
    same_weights,
    weights_of,
)
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from torch import nn

from sknan import (
    BatchedGridSearchCV,
    SafeScaler,
    StableNetClassifier,
    StableNetRegressor,
    TabularMLP,
)
from sknan._engine.range_test import TimeIsUp, range_test
from sknan._engine.range_test.curves import curves_at_rates
from sknan._engine.range_test.trial import compared_with_usual
from sknan.nets._time_limit import TimeLimit

# -- sample and class weights ------------------------------------------------------


@both
def test_a_weight_of_zero_equals_removing_the_row(Estimator, y):
    weight = (np.arange(60) % 3 > 0).astype(float)
    kept = weight > 0
    weighted = Estimator(**FAST).fit(X, y, sample_weight=weight)
    assert same_weights(weighted, Estimator(**FAST).fit(X[kept], y[kept]))


@both
def test_an_integer_weight_equals_repeating_the_row(Estimator, y):
    # In one batch: with several, the batches would contain different rows.
    weight = np.arange(60) % 3
    rows = np.repeat(np.arange(60), weight)
    weighted = Estimator(batch_size=200, **FAST).fit(X, y, sample_weight=weight)
    assert same_weights(
        weighted, Estimator(batch_size=200, **FAST).fit(X[rows], y[rows])
    )


@both
def test_only_the_proportions_of_weights_matter(Estimator, y):
    weight = np.random.default_rng(0).uniform(0.5, 2, size=60)
    model = Estimator(batch_size=16, **FAST).fit(X, y, weight)
    # Multiplication by a power of two is exact.
    assert same_weights(
        model, Estimator(batch_size=16, **FAST).fit(X, y, weight * 2**40)
    )
    assert same_weights(
        model, Estimator(batch_size=16, **FAST).fit(X, y, weight * 2**-40)
    )
    assert not same_weights(model, Estimator(batch_size=16, **FAST).fit(X, y))


@both
def test_equal_weights_have_no_effect(Estimator, y):
    model = Estimator(batch_size=16, **FAST).fit(X, y, np.full(60, 7.0))
    assert same_weights(model, Estimator(batch_size=16, **FAST).fit(X, y))


def test_predictions_move_toward_rows_of_large_weight():
    y = np.where(np.arange(60) % 2, 1.0, -1.0)  # only the mean can be learned
    model = StableNetRegressor(lr=0.01, max_epochs=40, random_state=0)
    high = model.fit(X, y, np.where(y > 0, 20.0, 1.0)).predict(X).mean()
    low = model.fit(X, y, np.where(y > 0, 1.0, 20.0)).predict(X).mean()
    assert low < 0 < high


def test_a_class_weight_equals_a_weight_of_its_rows():
    by_dict = StableNetClassifier(class_weight={0: 1, 1: 3}, batch_size=16, **FAST)
    by_rows = StableNetClassifier(batch_size=16, **FAST)
    assert same_weights(
        by_dict.fit(X, LABELS), by_rows.fit(X, LABELS, np.where(LABELS, 3, 1))
    )


def test_balanced_classes_have_equal_influence():
    y = (np.arange(60) < 6).astype(int)
    plain = StableNetClassifier(module__depth=0, lr=0.05, max_epochs=60, random_state=0)
    balanced = clone(plain).set_params(class_weight="balanced")
    noise = np.zeros_like(X)
    # With two distinct rows, the network does not seem collapsed.
    noise[:, 0] = np.arange(60) % 2
    assert plain.fit(noise, y).predict_proba(noise)[:, 1].mean() < 0.2
    assert 0.4 < balanced.fit(noise, y).predict_proba(noise)[:, 1].mean() < 0.6


def test_balanced_class_weights_treat_a_weight_as_repetitions():
    # As in scikit-learn, where compute_class_weight has a sample_weight parameter.
    weight = 1 + (np.arange(60) % 3)
    rows = np.repeat(np.arange(60), weight)
    model = StableNetClassifier(class_weight="balanced", batch_size=200, **FAST)
    weighted = clone(model).fit(X, LABELS, sample_weight=weight).predict_proba(X)
    repeated = model.fit(X[rows], LABELS[rows]).predict_proba(X)
    # Three thirds and one whole may differ by rounding.
    np.testing.assert_allclose(weighted, repeated, rtol=1e-5)


def test_weights_can_be_combined_with_early_stopping():
    weight = np.random.default_rng(0).uniform(0.1, 3, size=60)
    model = StableNetClassifier(early_stopping=True, **FAST).fit(X, LABELS, weight)
    assert all(math.isfinite(row["valid_loss"]) for row in model.net_.history)


# -- randomness --------------------------------------------------------------------


@both
def test_the_same_seed_gives_bitwise_identical_weights(Estimator, y):
    params = {"batch_size": 16, "early_stopping": True, "module__dropout": 0.2}
    first = Estimator(**params, **FAST).fit(X, y)
    torch.rand(7)  # random numbers drawn elsewhere have no effect
    second = Estimator(**params, **FAST).fit(X, y)
    assert same_weights(first, second)
    assert not same_weights(first, second.set_params(random_state=1).fit(X, y))


@both
def test_global_random_generators_do_not_change(Estimator, y):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the test is about the global generator
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    model = Estimator(early_stopping=True, module__dropout=0.2, **FAST).fit(X, y)
    model.predict(X)
    model.partial_fit(X, y)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


def test_a_generator_as_seed_advances_between_fits():
    generator = np.random.RandomState(0)
    model = StableNetRegressor(max_epochs=1, random_state=generator)
    first = copy.deepcopy(model.fit(X, VALUES))
    assert not same_weights(first, model.fit(X, VALUES))


def test_without_a_seed_models_differ():
    first = StableNetRegressor(max_epochs=1).fit(X, VALUES)
    assert not same_weights(first, StableNetRegressor(max_epochs=1).fit(X, VALUES))


# -- early stopping ----------------------------------------------------------------


@both
def test_the_best_epoch_is_restored(Estimator, y):
    noisy = y if y is VALUES else np.random.default_rng(0).permutation(y)
    recorder = Recorder()
    model = Estimator(
        lr=0.03,
        lr_schedule="constant",
        batch_size=8,
        max_epochs=30,
        early_stopping=True,
        validation_fraction=0.3,
        callbacks=[recorder],
        random_state=0,
    ).fit(X, noisy)
    best = int(np.argmin(recorder.losses_)) + 1
    assert model.best_epoch_ == best
    assert model.n_iter_ == len(recorder.losses_)
    assert best < model.n_iter_
    kept = zip(weights_of(model), recorder.weights_[best - 1], strict=True)
    assert all(torch.equal(a, b) for a, b in kept)
    assert set(recorder.rows_) <= set(range(1, 9))


def test_the_last_of_equal_epochs_is_kept_and_patience_counts_from_the_first():
    # At this learning rate no weight changes: all epochs are equal.
    model = StableNetRegressor(
        lr=1e-30,
        weight_decay=0.0,
        early_stopping=True,
        n_iter_no_change=4,
        max_epochs=50,
        random_state=0,
    ).fit(X, VALUES)
    assert model.n_iter_ == 5
    assert model.best_epoch_ == 5


def test_held_out_rows_are_not_trained_on():
    recorder = Recorder()
    StableNetClassifier(
        early_stopping=True,
        validation_fraction=0.25,
        batch_size=1000,
        callbacks=[recorder],
        **FAST,
    ).fit(X, LABELS)
    assert recorder.rows_ == [45, 45, 45]


def test_auto_stops_early_from_500_rows_on():
    many = np.random.default_rng(0).normal(size=(500, 4))
    for n, stops in ((499, False), (500, True)):
        model = StableNetRegressor(**FAST).fit(many[:n], many[:n, 0])
        assert (model.best_epoch_ is not None) == stops
        assert ("valid_loss" in model.net_.history[-1]) == stops


def test_the_validation_split_keeps_the_proportions_of_classes():
    y = (np.arange(60) < 12).astype(int)

    class Shares(Callback):
        def on_train_begin(self, net, X=None, y=None, **_):
            self.share_ = float(X.y.double().mean())

    shares = Shares()
    StableNetClassifier(
        early_stopping=True, validation_fraction=0.25, callbacks=[shares], **FAST
    ).fit(X, y)
    assert shares.share_ == pytest.approx(0.2)


# -- continued training ------------------------------------------------------------


@both
def test_a_warm_start_continues_where_the_last_fit_ended(Estimator, y):
    model = Estimator(warm_start=True, lr=0.01, max_epochs=20, random_state=0).fit(X, y)
    before = weights_of(model)
    loss = model.net_.history[-1, "train_loss"]
    model.set_params(lr=1e-30, weight_decay=0.0, max_epochs=1).fit(X, y)
    moved = zip(before, weights_of(model), strict=True)
    assert all(torch.equal(a, b) for a, b in moved)
    assert model.net_.history[-1, "train_loss"] <= loss
    assert model.n_iter_ == 21


@both
def test_a_fit_without_warm_start_starts_from_scratch(Estimator, y):
    model = Estimator(**FAST).fit(X, y)
    first = weights_of(model)
    model.fit(X, y)
    assert model.n_iter_ == 3
    assert all(torch.equal(a, b) for a, b in zip(first, weights_of(model), strict=True))


@both
def test_the_optimizer_state_is_kept_only_for_continued_training(Estimator, y):
    assert not Estimator(**FAST).fit(X, y).net_.optimizer_.state
    assert Estimator(warm_start=True, **FAST).fit(X, y).net_.optimizer_.state
    classes = {"classes": [0, 1]} if y is LABELS else {}
    assert Estimator(**FAST).partial_fit(X, y, **classes).net_.optimizer_.state


def test_a_warm_start_accepts_a_vector_after_a_column():
    model = StableNetRegressor(warm_start=True, **FAST).fit(X, VALUES[:, None])
    assert model.predict(X).shape == (60, 1)
    assert model.fit(X, VALUES).predict(X).shape == (60,)


@both
def test_partial_fit_is_one_epoch_at_the_full_learning_rate(Estimator, y):
    classes = {"classes": [0, 1]} if y is LABELS else {}
    recorder = Recorder()
    model = Estimator(lr=0.01, warmup=0.5, callbacks=[recorder], random_state=0)
    for n in range(1, 41):
        model.partial_fit(X, y, **classes)
        assert model.n_iter_ == n
    assert recorder.learning_rates_ == [0.01] * 40
    assert model.score(X, y) > 0.9


@pytest.mark.parametrize("is_pickled", [False, True], ids=["here", "pickled"])
@pytest.mark.parametrize(
    ("params", "change"),
    [
        ({"criterion": nn.HuberLoss}, "criterion was 'huber' in the last training"),
        ({"criterion__delta": 2.0}, "criterion__delta was 1.0 in the last training"),
        ({"module__width": 8}, "module__width was 16 in the last training and is 8"),
        ({"module__depth": 1}, "module__depth was not set in the last training"),
        ({"module": TabularMLP}, "module was None in the last training and is <class"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_continued_training_refuses_another_network(params, change, is_pickled):
    model = StableNetRegressor(
        criterion="huber",
        criterion__delta=1.0,
        module__width=np.int64(16),
        warm_start=True,
        **FAST,
    ).fit(X, VALUES)
    model = pickle.loads(pickle.dumps(model)) if is_pickled else model
    before = weights_of(model)
    model.set_params(**{"module__width": 16, "lr": 0.1, **params})
    for train in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=re.escape(change)) as refused:
            train(X, VALUES)
        assert str(refused.value).startswith("The parameter ")
        assert str(refused.value).endswith(
            " now, but a continued training keeps its network and loss. Restore the "
            "parameter, or start anew: call fit with warm_start=False."
        )
    assert all(map(torch.equal, before, weights_of(model)))
    assert model.set_params(warm_start=False).fit(X, VALUES).n_iter_ == 3
    assert model.partial_fit(X, VALUES).n_iter_ == 4


def test_partial_fit_knows_classes_that_have_not_occurred_yet():
    model = StableNetClassifier(random_state=0)
    model.partial_fit(X[:1], ["b"], classes=["c", "a", "b"])
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert model.predict_proba(X).shape == (60, 3)
    model.partial_fit(X[1:3], ["c", "a"])
    assert np.isfinite(model.predict_proba(X)).all()


def test_partial_fit_continues_after_fit():
    model = StableNetRegressor(lr=0.01, max_epochs=5, random_state=0).fit(X, VALUES)
    before = model.score(X, VALUES)
    for _ in range(20):
        model.partial_fit(X, VALUES)
    assert model.score(X, VALUES) > before
    assert model.n_iter_ == 25


def test_partial_fit_keeps_the_units_of_fit():
    model = StableNetRegressor(max_epochs=5, random_state=0).fit(X, VALUES + 100)
    mean = model.target_mean_.copy()
    model.partial_fit(X[:5], VALUES[:5])
    np.testing.assert_array_equal(model.target_mean_, mean)


@pytest.mark.parametrize("bounds", [[1], [2, 5], [99], [300]])
def test_units_of_partial_fit_are_those_of_the_first_hundred_rows(bounds):
    y = np.random.default_rng(0).normal(1e6, 3.0, size=(400, 2))
    inputs = np.zeros((400, 1))
    model = StableNetRegressor(random_state=0)
    for start, stop in itertools.pairwise([0, *bounds, max(bounds[-1], 100), 400]):
        if start < stop:
            model.partial_fit(inputs[start:stop], y[start:stop])
    known = y[: max(bounds[-1], 100)]
    np.testing.assert_allclose(model.target_mean_, known.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(model.target_scale_, known.std(axis=0), rtol=1e-9)


@pytest.mark.parametrize("order", ["row by row", "sorted", "nearly equal first"])
def test_partial_fit_learns_from_batches_of_equal_targets(order):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, 3))
    y = np.round(inputs[:, 0] * 3) + 7
    model = StableNetRegressor(lr=1e-2, random_state=0)
    if order == "row by row":
        batches = [[i] for i in range(300)]
    elif order == "sorted":
        batches = [np.flatnonzero(y == value) for value in np.unique(y)] * 20
    else:
        model.partial_fit(inputs[:2], [1.0, 1.0 + 1e-6])
        batches = [np.arange(300)] * 20
    for rows in batches:
        model.partial_fit(inputs[rows], y[rows])
    assert model.score(inputs, y) > 0.7


# -- schedules and clipping --------------------------------------------------------


def test_the_schedule_is_followed():
    recorder = Recorder()
    model = StableNetRegressor(lr=0.01, max_epochs=10, callbacks=[recorder])
    model.set_params(random_state=0).fit(X, VALUES)
    # With one step per epoch, the history contains the learning rate of that step.
    expected = 0.01 * (1 + np.cos(np.pi * np.arange(10) / 10)) / 2
    np.testing.assert_allclose(recorder.learning_rates_, expected, rtol=1e-12)
    model.set_params(lr_schedule="constant").fit(X, VALUES)
    assert recorder.learning_rates_ == [0.01] * 10
    model.set_params(lr_schedule=lambda progress: 0.5).fit(X, VALUES)
    assert recorder.learning_rates_ == [0.005] * 10


@pytest.mark.parametrize(
    "params",
    [
        {"clip_norm": 1e-3},
        {"clip_value": 1e-4},
        {"adaptive_clip": "agc"},
    ],
    ids=str,
)
def test_clipping_changes_the_training(params):
    plain = StableNetRegressor(optimizer="sgd", lr=0.1, clip_norm=100.0, **FAST)
    clipped = clone(plain).set_params(**params).fit(X, VALUES)
    assert not same_weights(plain.fit(X, VALUES), clipped)


def test_a_clip_above_every_gradient_changes_nothing():
    wide = StableNetRegressor(optimizer="sgd", lr=0.1, clip_norm=1e6, **FAST)
    none = StableNetRegressor(optimizer="sgd", lr=0.1, clip_norm=None, **FAST)
    assert same_weights(wide.fit(X, VALUES), none.fit(X, VALUES))


# -- quality -----------------------------------------------------------------------


def test_the_defaults_learn_real_tables(cancer):
    X, y = cancer
    assert (
        StableNetClassifier(max_epochs=20, random_state=0).fit(X, y).score(X, y) > 0.97
    )
    X, y = load_diabetes(return_X_y=True)
    X = SafeScaler().fit_transform(X)
    model = StableNetRegressor(max_epochs=30, random_state=0).fit(X, y)
    assert r2_score(y, model.predict(X)) > 0.45


class Stop(Exception):
    """Error by which a search ends a trial."""


def test_the_error_of_a_callback_is_not_replaced_by_a_message_of_the_guard():
    class StopWhenRescued(Callback):
        def on_epoch_end(self, net, **kwargs):
            if net.nonfinite_reports_:
                raise Stop

    X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    model = StableNetClassifier(
        lr=1e30, callbacks=[StopWhenRescued()], max_epochs=3, random_state=0
    )
    with pytest.raises(Stop):
        model.fit(X, (X[:, 0] > 0).astype(int))


@both
def test_a_network_is_freed_with_its_estimator(Estimator, y):
    X = np.random.default_rng(0).normal(size=(len(y), 3))
    model = Estimator(max_epochs=1).fit(X, y)
    network = weakref.ref(model.net_.module_)
    del model
    gc.collect()
    assert network() is None


# -- time limit --------------------------------------------------------------------


@both
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_training_ends_after_its_time(Estimator, y, early_stopping):
    settings = {**FAST, "early_stopping": early_stopping}
    with pytest.warns(ConvergenceWarning) as caught:
        instant = Estimator(max_time=1e-9, **settings).fit(X, y)
    kept = "the best epoch so far" if early_stopping else "the last epoch"
    assert [str(warning.message) for warning in caught] == [
        "max_time=1e-09 ended the training before max_epochs=3; n_iter_ is the number "
        f"of epochs. The weights are those of {kept}. Raise max_time to train "
        "for more epochs."
    ]
    assert instant.n_iter_ == 1
    assert instant.best_epoch_ == (1 if early_stopping else None)
    assert np.isfinite(instant.predict(X)).all()
    unlimited = Estimator(**settings).fit(X, y)
    enough = Estimator(max_time=1e6, **settings).fit(X, y)
    assert enough.n_iter_ == unlimited.n_iter_ == 3
    assert same_weights(enough, unlimited)
    assert not any("limit" in name for name, _ in enough.net_.callbacks_)


def test_the_search_for_a_learning_rate_counts_as_training():
    with pytest.warns(ConvergenceWarning) as caught:
        fast = StableNetClassifier(lr="auto", max_time=1e-9, **FAST).fit(X, LABELS)
    assert str(caught[0].message) == (
        "max_time=1e-09 is too short for the range test of lr='auto', so that lr_ is "
        "the default, 0.001. Raise max_time, or pass a number for lr."
    )
    assert fast.n_iter_ == 1
    assert fast.lr_ == 1e-3
    assert fast.learning_rate_range_ is None
    unlimited = StableNetClassifier(lr="auto", **FAST).fit(X, LABELS)
    enough = StableNetClassifier(lr="auto", max_time=1e6, **FAST).fit(X, LABELS)
    expected, found = (m.learning_rate_range_ for m in (unlimited, enough))
    assert str(found) == str(expected)
    np.testing.assert_array_equal(found.losses, expected.losses)


class EndOfTime(Callback):
    def on_batch_end(self, net, **kwargs):
        (limit,) = (c for _, c in net.callbacks_ if isinstance(c, TimeLimit))
        limit.max_time = 0.0


def test_the_warning_names_the_range_test_as_what_took_time():
    settings = {**FAST, "max_time": 1e6, "callbacks": [EndOfTime()]}
    with pytest.warns(ConvergenceWarning) as caught:
        model = StableNetClassifier(lr="auto", **settings).fit(X, LABELS)
    assert [str(warning.message) for warning in caught] == [
        "max_time=1e+06 ended the training before max_epochs=3; n_iter_ is the number "
        "of epochs. The weights are those of the last epoch. Up to half of the time "
        "went to the range test of lr='auto': raise max_time, or pass a number for "
        "lr, to train for more epochs."
    ]
    assert model.n_iter_ == 1


def test_learning_rates_need_time_to_be_confirmed():
    model = StableNetClassifier(lr="auto", **FAST)
    rows = model._training_rows(np.tile(X, (4, 1)), np.tile(LABELS, 4), None)
    found = replace(range_test(model, rows, 0), suggestion=0.01)
    kept = compared_with_usual(model, rows, found, [0, 1], has_time=False)
    assert (kept.suggestion, kept.confidence) == (1e-3, "low")
    assert kept.reason == (
        "max_time is too short for trainings that confirm another learning rate. The "
        "suggestion is the default."
    )
    for clip_value in (None, 1e6):  # in a stack, and separately
        model.set_params(clip_value=clip_value)
        with pytest.raises(TimeIsUp):
            curves_at_rates(model, rows, np.array([1e-3]), [0], 10, deadline=0.0)


def test_a_part_of_the_data_is_one_epoch_whatever_the_time():
    model = StableNetClassifier(max_time=1e-9, random_state=0)
    for _ in range(2):
        model.partial_fit(X, LABELS, classes=[0, 1])
    assert model.n_iter_ == 2


def n_epochs(model, X, y):
    return model.n_iter_


@pytest.mark.parametrize("search_class", [BatchedGridSearchCV, GridSearchCV])
def test_each_fit_of_a_search_has_the_time(search_class):
    grid = {"max_time": [1e-9, 1e6]}
    search = search_class(StableNetClassifier(**FAST), grid, scoring=n_epochs, cv=2)
    with pytest.warns(ConvergenceWarning, match="max_time=1e-09") as caught:
        search.fit(X, LABELS)
    # scikit-learn fits each candidate separately.
    assert len(caught) == (1 if search_class is BatchedGridSearchCV else 2)
    assert search.cv_results_["mean_test_score"].tolist() == [1, 3]
    assert all(search.cv_results_.get("stacked", [True]))
