from __future__ import annotations

import ast
import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_classification, make_regression
from sklearn.metrics import log_loss, mean_squared_error

from sknan import (
    DivergenceWarning,
    NonFiniteDataError,
    NonFiniteTrainingError,
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
)
from sknan.estimators import default_network
from sknan.estimators._validation_split import ValidationFold
from sknan.nets import PeriodicEmbedding

SMALL = {
    "module__width": 16,
    "module__n_frequencies": 4,
    "max_epochs": 8,
    "batch_size": 32,
    "early_stopping": True,
}


@pytest.fixture(scope="module")
def classes():
    X, y = make_classification(
        n_samples=240, n_features=6, n_informative=4, n_classes=3, random_state=0
    )
    X[:, 5] = X[:, 5] > 0  # a mark of two values
    return X.astype(np.float32), np.array(["a", "b", "c"])[y]


@pytest.fixture(scope="module")
def numbers():
    X, y = make_regression(n_samples=240, n_features=5, noise=5.0, random_state=0)
    return X.astype(np.float32), 100.0 + y


def small_classifier(**changes):
    return StableNetEnsembleClassifier(
        StableNetClassifier(**{**SMALL, **changes}), random_state=0
    )


def small_regressor(**changes):
    return StableNetEnsembleRegressor(
        StableNetRegressor(**{**SMALL, **changes}), random_state=0
    )


# -- what is averaged ------------------------------------------------------------------


def test_probabilities_are_the_mean_of_those_of_the_networks(classes):
    X, y = classes
    model = small_classifier().fit(X, y)
    each = [its.predict_proba(X) for its in model.estimators_]
    mean = model.predict_proba(X)
    np.testing.assert_allclose(mean, np.mean(each, axis=0), atol=1e-6)
    np.testing.assert_allclose(mean.sum(axis=1), 1.0, atol=1e-6)
    assert mean.dtype == np.float32
    assert list(model.classes_) == ["a", "b", "c"]
    assert (model.predict(X) == model.classes_[mean.argmax(axis=1)]).all()
    np.testing.assert_array_equal(model.predict_log_proba(X), np.log(mean))


def test_predictions_are_the_mean_in_the_units_of_y(numbers):
    X, y = numbers
    model = small_regressor().fit(X, y)
    each = [its.predict(X) for its in model.estimators_]
    np.testing.assert_allclose(model.predict(X), np.mean(each, axis=0), rtol=1e-12)
    assert model.predict(X).shape == y.shape


def test_several_targets(numbers):
    X, y = numbers
    targets = np.column_stack([y, -y])
    assert small_regressor().fit(X, targets).predict(X).shape == targets.shape


def test_the_mean_is_better_than_the_networks(classes, numbers):
    X, y = classes
    model = small_classifier().fit(X[:160], y[:160])
    losses = [log_loss(y[160:], m.predict_proba(X[160:])) for m in model.estimators_]
    assert log_loss(y[160:], model.predict_proba(X[160:])) < np.mean(losses)
    X, y = numbers
    model = small_regressor().fit(X[:160], y[:160])
    errors = [
        mean_squared_error(y[160:], m.predict(X[160:])) for m in model.estimators_
    ]
    assert mean_squared_error(y[160:], model.predict(X[160:])) < np.mean(errors)


def test_a_mean_of_the_largest_numbers_does_not_overflow():
    X = np.linspace(-1, 1, 40, dtype=np.float32).reshape(-1, 1)
    y = np.where(X[:, 0] > 0, 1.7e308, 1.6e308)
    assert np.isfinite(small_regressor().fit(X, y).predict(X)).all()


# -- which rows each network holds out -------------------------------------------------


@pytest.mark.parametrize("n_rows", [5, 23, 100])
def test_folds_are_of_one_size_and_never_overlap(n_rows):
    parts = [ValidationFold(i, 5, seed=3).split(n_rows) for i in range(5)]
    held = np.concatenate([valid for _, valid in parts])
    assert len(set(held)) == len(held) == n_rows // 5 * 5
    for train, valid in parts:
        assert len(valid) == n_rows // 5
        assert sorted([*train, *valid]) == list(range(n_rows))


def test_folds_hold_each_class_in_proportion():
    codes = np.repeat([0, 1, 2], [100, 50, 12])
    np.random.default_rng(0).shuffle(codes)
    for i in range(5):
        train, valid = ValidationFold(i, 5, seed=0).split(len(codes), codes)
        assert abs(np.bincount(codes[valid]) - [20, 10, 2.4]).max() <= 1
        assert np.bincount(codes[train]).min() > 0


def test_each_network_is_what_its_fit_without_the_others_gives(numbers):
    X, y = numbers
    model = small_regressor().fit(X, y)
    for number, member in enumerate(model.estimators_):
        alone = clone(member)
        seeds = np.random.RandomState(0).randint(np.iinfo(np.int32).max, size=(2, 5))
        fold = ValidationFold(number, 5, int(seeds[1, 0]))
        plan = alone._prepare(X, y, fold=fold)
        plan.run()
        alone._finish(plan)
        assert alone.best_epoch_ == member.best_epoch_
        for mine, its in zip(
            member.net_.module_.parameters(),
            alone.net_.module_.parameters(),
            strict=True,
        ):
            # A stack rounds otherwise, by some last bits.
            torch.testing.assert_close(mine, its, atol=1e-4, rtol=0.0)


def test_a_sixth_network_holds_out_a_part_of_another_deal(classes):
    X, y = classes
    model = small_classifier().set_params(n_estimators=6).fit(X, y)
    jobs = model._jobs(X, y, None)
    folds = [job.fit_params["fold"] for job in jobs]
    assert [fold.number for fold in folds] == [0, 1, 2, 3, 4, 0]
    assert folds[5].seed != folds[0].seed
    assert len(model.estimators_) == 6


def test_without_early_stopping_each_trains_on_all_rows(numbers):
    X, y = numbers
    model = small_regressor(early_stopping=False).fit(X, y)
    assert [its.best_epoch_ for its in model.estimators_] == [None] * 5
    first, second = (its.predict(X[:3]) for its in model.estimators_[:2])
    assert (first != second).any()


@pytest.mark.parametrize("n_rows", [2, 3, 5, 7])
def test_a_handful_of_rows_is_enough(n_rows):
    X = np.arange(n_rows, dtype=float).reshape(-1, 1)
    assert np.isfinite(small_regressor().fit(X, X[:, 0]).predict(X)).all()
    model = small_classifier().fit(X, np.arange(n_rows) > 0)
    assert np.isfinite(model.predict_proba(X)).all()


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "expected"),
    [
        (699, "auto", 32),
        (700, "auto", 64),
        (5999, "auto", 128),
        (6000, "auto", 256),
        (99_999, "auto", 512),
        (100_000, "auto", 1024),
        (100_000, 7, 7),
    ],
)
def test_batches_go_by_the_number_of_rows(n_rows, batch_size, expected):
    assert StableNetRegressor(batch_size=batch_size).rows_per_batch(n_rows) == expected


def test_an_automatic_batch_is_the_one_of_that_size(numbers):
    X, y = numbers
    options = {"max_epochs": 2, "random_state": 0}
    auto = StableNetRegressor(batch_size="auto", **options).fit(X, y)
    given = StableNetRegressor(batch_size=32, **options).fit(X, y)
    np.testing.assert_array_equal(auto.predict(X), given.predict(X))


# -- scikit-learn's conventions --------------------------------------------------------


def test_the_same_seed_gives_the_same_whatever_n_jobs(classes):
    X, y = classes
    one = small_classifier().fit(X, y).predict_proba(X)
    two = small_classifier().set_params(n_jobs=2).fit(X, y).predict_proba(X)
    assert (one == two).all()
    other = small_classifier().set_params(random_state=1).fit(X, y)
    assert (one != other.predict_proba(X)).any()


def test_it_is_the_same_after_pickling(classes):
    X, y = classes
    model = small_classifier().fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict_proba(X) == model.predict_proba(X)).all()


def test_parameters_of_the_network_are_reached_by_their_names(numbers):
    X, y = numbers
    model = small_regressor()
    model.set_params(estimator__lr=0.01, estimator__module__width=8)
    model.fit(X, y)
    assert model.estimators_[3].lr_ == 0.01
    assert model.estimators_[3].net_.module_.head.in_features == 8


def test_names_of_columns_reach_the_message(classes):
    X, y = classes
    table = pd.DataFrame(X, columns=list("abcdef"))
    model = small_classifier().fit(table, y)
    assert list(model.feature_names_in_) == list("abcdef")
    table.loc[3, "c"] = np.nan
    message = (
        "X contains 1 NaN value in 1 of 6 columns: 'c' (1, first at row 3). Impute "
        "first: make_pipeline(NaNImputer(), SafeScaler(), StableNetClassifier())."
    )
    with pytest.raises(NonFiniteDataError) as refusal:
        model.predict(table)
    assert str(refusal.value) == message


def test_weights_of_rows_reach_the_networks(numbers):
    X, y = numbers
    weight = (np.arange(len(y)) < 120).astype(float)
    spoilt = np.where(weight > 0, y, 1e6)
    model = small_regressor().fit(X, spoilt, sample_weight=weight)
    half = small_regressor().fit(X[:120], y[:120])
    np.testing.assert_array_equal(model.predict(X), half.predict(X))


@pytest.mark.parametrize(
    ("ensemble", "name"),
    [
        (StableNetEnsembleClassifier, "classifier"),
        (StableNetEnsembleRegressor, "regressor"),
    ],
)
def test_the_default_network_is_the_one_that_is_documented(ensemble, name):
    network = default_network(name)
    text = " ".join(ensemble.__doc__.split())
    stated = text.split(f"{type(network).__name__}( ")[1].split(")``")[0]
    given = dict(part.split("=") for part in stated.split(", "))
    documented = {key: ast.literal_eval(value) for key, value in given.items()}
    assert type(network)(**documented).get_params() == network.get_params()
    job = ensemble()._jobs([[0.0]], [0.0], None)[0]
    seed = job.estimator.random_state
    assert job.estimator.get_params() == {**network.get_params(), "random_state": seed}


def test_columns_of_two_values_are_not_embedded(classes):
    X, y = classes
    network = small_classifier().fit(X, y).estimators_[0].net_.module_
    (embedding,) = (m for m in network.modules() if isinstance(m, PeriodicEmbedding))
    assert embedding.columns.tolist() == [0, 1, 2, 3, 4]


# -- when something is wrong -----------------------------------------------------------


def test_what_cannot_be_trained_is_an_error_that_names_the_network(numbers):
    X, y = numbers
    model = small_regressor(
        optimizer="sgd", lr=1e30, on_nonfinite="raise", early_stopping=False
    )
    with pytest.raises(NonFiniteTrainingError) as error:
        model.fit(X, y)
    assert error.value.__notes__ == [
        "while training network 0 of 5 of StableNetEnsembleRegressor"
    ]


def test_a_rescue_is_told_once_and_reported(numbers):
    X, y = numbers
    model = small_regressor(optimizer="sgd", lr=1e30, early_stopping=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y)
    (said,) = (w.message for w in caught if w.category is DivergenceWarning)
    reports = [r for its in model.estimators_ for r in its.nonfinite_reports_]
    assert model.nonfinite_reports_ == reports
    assert len(reports) >= 5
    first = model.estimators_[0]
    n_failed = len(first.nonfinite_reports_)
    assert str(said) == (
        "5 of 5 networks were rescued in training. The first: Training failed "
        f"{'once' if n_failed == 1 else f'{n_failed} times'} and was rescued; it went "
        f"on with lr={first.effective_lr_:.3g} instead of lr=1e+30. First failure: "
        f"{reports[0]}"
    )
    assert said.report is first.nonfinite_reports_[0]
    assert model.effective_lr_ == min(its.effective_lr_ for its in model.estimators_)
    assert np.isfinite(model.predict(X)).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            StableNetEnsembleClassifier(n_estimators=0),
            "The 'n_estimators' parameter of StableNetEnsembleClassifier must be an "
            "integer of at least 1, got 0.",
        ),
        (
            StableNetEnsembleRegressor(n_estimators=True),
            "The 'n_estimators' parameter of StableNetEnsembleRegressor must be an "
            "integer of at least 1, got True.",
        ),
        (
            StableNetEnsembleRegressor(StableNetClassifier()),
            "The 'estimator' parameter of StableNetEnsembleRegressor must be a "
            "StableNetRegressor or None, got StableNetClassifier().",
        ),
        (
            StableNetEnsembleClassifier(StableNetClassifier(warm_start=True)),
            "StableNetEnsembleClassifier trains new networks in each fit: set "
            "warm_start=False in its estimator.",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(model, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.fit([[0.0], [1.0]], [0, 1])


def test_there_is_a_network_for_two_tasks_only():
    message = "estimator must be 'classifier' or 'regressor', got 'ranker'."
    with pytest.raises(ValueError, match=f"^{message}$"):
        default_network("ranker")
