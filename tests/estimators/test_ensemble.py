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
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss, mean_squared_error, r2_score
from torch import nn

from sknan import (
    BatchedGridSearchCV,
    BatchedHalvingSearchCV,
    DivergenceWarning,
    NonFiniteDataError,
    NonFiniteTrainingError,
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
)
from sknan._engine.jobs import train_together
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
    X[:, 5] = X[:, 5] > 0  # an indicator column
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


# -- averages --------------------------------------------------------------------------


def test_probabilities_are_the_mean_over_the_networks(classes):
    X, y = classes
    model = small_classifier().fit(X, y)
    each = [member.predict_proba(X) for member in model.estimators_]
    mean = model.predict_proba(X)
    np.testing.assert_allclose(mean, np.mean(each, axis=0), atol=1e-6)
    np.testing.assert_allclose(mean.sum(axis=1), 1.0, atol=1e-6)
    assert mean.dtype == np.float32
    assert list(model.classes_) == ["a", "b", "c"]
    assert (model.predict(X) == model.classes_[mean.argmax(axis=1)]).all()
    np.testing.assert_array_equal(model.predict_log_proba(X), np.log(mean))


def test_predictions_are_the_mean_over_the_networks_in_the_units_of_y(numbers):
    X, y = numbers
    model = small_regressor().fit(X, y)
    each = [member.predict(X) for member in model.estimators_]
    np.testing.assert_allclose(model.predict(X), np.mean(each, axis=0), rtol=1e-12)
    assert model.predict(X).shape == y.shape


def test_several_targets_can_be_predicted(numbers):
    X, y = numbers
    targets = np.column_stack([y, -y])
    assert small_regressor().fit(X, targets).predict(X).shape == targets.shape


def test_the_mean_is_better_than_the_networks_on_average(classes, numbers):
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


def test_the_mean_of_the_largest_floats_does_not_overflow():
    X = np.linspace(-1, 1, 40, dtype=np.float32).reshape(-1, 1)
    y = np.where(X[:, 0] > 0, 1.7e308, 1.6e308)
    assert np.isfinite(small_regressor().fit(X, y).predict(X)).all()


# -- validation rows and batches -------------------------------------------------------


def test_each_network_equals_one_that_is_fitted_alone(numbers):
    X, y = numbers
    model = small_regressor().fit(X, y)
    for number, member in enumerate(model.estimators_):
        alone = clone(member)
        seeds = np.random.RandomState(0).randint(np.iinfo(np.int32).max, size=(2, 5))
        fold = ValidationFold(number, 5, int(seeds[1, 0]))
        plan = alone._plan(alone._training_rows(X, y), fold)
        plan.run_loop()
        alone._finish(plan)
        assert alone.best_epoch_ == member.best_epoch_
        for stacked, single in zip(
            member.net_.module_.parameters(),
            alone.net_.module_.parameters(),
            strict=True,
        ):
            # Operations of a stack differ in rounding.
            torch.testing.assert_close(stacked, single, atol=1e-4, rtol=0.0)


def test_a_sixth_network_holds_out_a_fold_of_another_partition(classes):
    X, y = classes
    model = small_classifier().set_params(n_estimators=6).fit(X, y)
    jobs = model._jobs(X, y)
    folds = [job.fit_params["fold"] for job in jobs]
    assert [fold.number for fold in folds] == [0, 1, 2, 3, 4, 0]
    assert folds[5].seed != folds[0].seed
    assert len(model.estimators_) == 6


def held_out_of(model, X, y, weight=None):
    return [
        o.estimator._held_out_
        for o in train_together(model._jobs(X, y, sample_weight=weight))
    ]


@pytest.mark.parametrize("batch_size", [32, 1000], ids=["batches", "merged rows"])
def test_the_rows_held_out_are_numbered_as_the_caller_passed_them(numbers, batch_size):
    X, y = (np.concatenate([part[:60], part[:30], part[:10]]) for part in numbers)
    weight = np.where(np.arange(100) < 95, 1.0, 0.0)  # rows 5 to 9 again
    found = held_out_of(small_regressor(batch_size=batch_size), X, y, weight)
    assert sorted(np.concatenate(found)) == list(range(95))
    if batch_size == 1000:  # copies of a row are held out together
        assert all(set(rows[rows < 30]) == set(rows[(rows > 59) & (rows < 90)] - 60)
                   for rows in found)  # fmt: skip
    without = small_regressor(early_stopping=False)
    assert held_out_of(without, X, y) == [None] * 5
    assert "_held_out_" not in vars(small_regressor().fit(X, y).estimators_[0])


@pytest.mark.parametrize(("n_estimators", "n_jobs"), [(3, None), (6, 2)])
def test_held_out_predictions_are_those_of_networks_that_did_not_train_on_the_row(
    numbers, n_estimators, n_jobs
):
    X, y = (part[:102] for part in numbers)
    weight = np.where(np.arange(102) < 97, 1.0 + np.arange(102) % 3, 0.0)
    model = small_regressor(max_epochs=2).set_params(n_estimators=n_estimators)
    held_out = held_out_of(clone(model), X, y, weight)
    model.set_params(n_jobs=n_jobs).fit(X, y, sample_weight=weight)
    each = np.full((n_estimators, 102), np.nan)
    for i, rows in enumerate(held_out):
        each[i, rows] = model.estimators_[i].predict(X[rows])
    is_known = ~np.isnan(each).all(axis=0)
    assert is_known.sum() == pytest.approx(min(n_estimators, 5) * 19, abs=2)
    assert not is_known[97:].any()
    expected = np.nanmean(each[:, is_known], axis=0)
    np.testing.assert_allclose(model.oof_prediction_[is_known], expected, rtol=1e-6)
    assert np.isnan(model.oof_prediction_[~is_known]).all()
    assert model.oof_score_ == pytest.approx(
        r2_score(y[is_known], expected, sample_weight=weight[is_known])
    )
    model.set_params(estimator__early_stopping=False).fit(X, y)
    assert not hasattr(model, "oof_prediction_")
    assert not hasattr(model, "oof_score_")


def test_held_out_scores_are_those_of_rows_never_seen(classes, numbers):
    X, y = classes
    model = small_classifier(max_epochs=30).fit(X[:160], y[:160])
    labels = model.classes_[model.oof_prediction_.argmax(axis=1)]
    assert model.oof_prediction_.shape == (160, 3)
    assert model.oof_score_ == np.mean(labels == y[:160])
    assert model.oof_score_ == pytest.approx(model.score(X[160:], y[160:]), abs=0.15)
    coded = clone(model).fit(X[:160], np.unique(y[:160], return_inverse=True)[1] * 1.0)
    assert coded.oof_score_ == model.oof_score_
    labels = np.column_stack([y == "a", y == "b"]).astype(int)
    several = small_classifier().fit(X, labels)
    right = (several.oof_prediction_ > 0.5) == labels
    assert several.oof_score_ == right.all(axis=1).mean()
    X, y = numbers
    several = small_regressor().fit(X, np.column_stack([y, 1e300 * y]))
    assert several.oof_prediction_.shape == (240, 2)
    assert several.oof_score_ < 1.0
    huge = small_regressor().fit(X, np.where(y > 100, 1.7e308, -1.7e308))
    assert np.isfinite(huge.oof_prediction_).all()
    assert np.isfinite(huge.oof_score_)


def test_a_search_gives_held_out_predictions_too(numbers):
    X, y = numbers
    model = small_regressor(max_epochs=2)
    search = BatchedGridSearchCV(model, {"estimator__lr": [1e-3, 1e-2]}, cv=2).fit(X, y)
    alone = clone(search.best_estimator_).fit(X, y)
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.oof_prediction_, alone.oof_prediction_)


def test_without_early_stopping_each_network_trains_on_all_rows(numbers):
    X, y = numbers
    model = small_regressor(early_stopping=False).fit(X, y)
    assert [member.best_epoch_ for member in model.estimators_] == [None] * 5
    first, second = (member.predict(X[:3]) for member in model.estimators_[:2])
    assert (first != second).any()


@pytest.mark.parametrize("n_rows", [2, 3, 5, 7])
def test_a_few_rows_are_enough(n_rows):
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
def test_the_automatic_batch_size_depends_on_the_number_of_rows(
    n_rows, batch_size, expected
):
    assert StableNetRegressor(batch_size=batch_size).rows_per_batch(n_rows) == expected


def test_an_automatic_batch_size_equals_the_same_size_given(numbers):
    X, y = numbers
    options = {"max_epochs": 2, "random_state": 0}
    auto = StableNetRegressor(batch_size="auto", **options).fit(X, y)
    given = StableNetRegressor(batch_size=32, **options).fit(X, y)
    np.testing.assert_array_equal(auto.predict(X), given.predict(X))


@pytest.mark.parametrize(
    ("n_rows", "expected"), [(2, 30), (29_999, 30), (30_000, 12), (100_000, 8)]
)
def test_the_automatic_epochs_depend_on_the_number_of_rows(n_rows, expected):
    assert default_network("regressor").most_epochs(n_rows) == expected
    assert StableNetRegressor(max_epochs=7).most_epochs(n_rows) == 7


@pytest.mark.parametrize("estimator", [StableNetRegressor, StableNetEnsembleRegressor])
def test_automatic_epochs_equal_the_same_number_given(numbers, estimator):
    X, y = numbers
    is_single = estimator is StableNetRegressor
    made = estimator(random_state=0) if is_single else small_regressor()
    name = "max_epochs" if is_single else "estimator__max_epochs"
    auto = made.set_params(**{name: "auto"}).fit(X, y)
    given = clone(made).set_params(**{name: 30}).fit(X, y)
    np.testing.assert_array_equal(auto.predict(X), given.predict(X))


def test_searches_take_automatic_epochs(numbers):
    X, y = numbers
    network = StableNetRegressor(max_epochs="auto", random_state=0, module__width=8)
    search = BatchedGridSearchCV(network, {"max_epochs": ["auto", 30]}, cv=2).fit(X, y)
    assert np.ptp(search.cv_results_["mean_test_score"]) == 0
    lrs = {"lr": [1e-3, 1e-2, 1e-4]}
    halving = BatchedHalvingSearchCV(network, lrs, resource="epochs", cv=2).fit(X, y)
    assert halving.n_resources_ == [10, 30]


def test_automatic_epochs_of_a_large_table_and_of_a_continued_training():
    X = np.random.default_rng(0).normal(size=(30_000, 1))
    options = {"module__width": 4, "module__depth": 1, "batch_size": 3000}
    model = StableNetRegressor(max_epochs="auto", warm_start=True, **options)
    assert model.fit(X, X[:, 0]).n_iter_ == 12
    assert model.fit(X[:400], X[:400, 0]).n_iter_ == 12 + 30


# -- scikit-learn's conventions --------------------------------------------------------


def test_predictions_depend_on_the_seed_and_not_on_n_jobs(classes):
    X, y = classes
    one = small_classifier().fit(X, y).predict_proba(X)
    two = small_classifier().set_params(n_jobs=2).fit(X, y).predict_proba(X)
    assert (one == two).all()
    other = small_classifier().set_params(random_state=1).fit(X, y)
    assert (one != other.predict_proba(X)).any()


def test_a_pickled_ensemble_gives_the_same_predictions(classes):
    X, y = classes
    model = small_classifier().fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict_proba(X) == model.predict_proba(X)).all()


def test_set_params_reaches_parameters_of_the_network(numbers):
    X, y = numbers
    model = small_regressor()
    model.set_params(estimator__lr=0.01, estimator__module__width=8)
    model.fit(X, y)
    assert model.estimators_[3].lr_ == 0.01
    assert model.estimators_[3].net_.module_.head.in_features == 8


def test_parameters_of_the_default_network_can_be_set():
    model = StableNetEnsembleRegressor().set_params(estimator__lr=0.01)
    expected = default_network("regressor").set_params(lr=0.01)
    assert model.estimator.get_params() == expected.get_params()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lr", " Did you mean 'estimator__lr'?"),
        ("net__estimator__lr", " Did you mean 'estimator__lr'?"),
        ("learning_rate", " Did you mean 'estimator__lr'?"),
        ("module__width", " Did you mean 'estimator__module__width'?"),
        ("n_estimator", " Did you mean 'n_estimators'?"),
        ("xyz", ""),
    ],
)
def test_an_unknown_parameter_is_refused_with_the_nearest_name(name, hint):
    with pytest.raises(ValueError, match="no parameter") as caught:
        StableNetEnsembleClassifier().set_params(**{name: 1})
    assert str(caught.value) == (
        f"StableNetEnsembleClassifier has no parameter {name!r}.{hint} It has: "
        "'calibration', "
        "'estimator', 'max_time', 'n_estimators', 'n_jobs', 'random_state', "
        "'scoring', 'validation_split', 'verbose'. Parameters of its network are "
        "written estimator__..."
    )


def test_messages_contain_column_names(classes):
    X, y = classes
    table = pd.DataFrame(X.copy(), columns=list("abcdef"))
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


def test_sample_weights_reach_the_networks(numbers):
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
def test_the_default_network_is_the_documented_one(ensemble, name):
    network = default_network(name)
    text = " ".join(ensemble.__doc__.split())
    stated = text.split(f"{type(network).__name__}( ")[1].split(")``")[0]
    given = dict(part.split("=") for part in stated.split(", "))
    documented = {key: ast.literal_eval(value) for key, value in given.items()}
    assert type(network)(**documented).get_params() == network.get_params()
    job = ensemble()._jobs([[0.0]], [0.0])[0]
    seed = job.estimator.random_state
    assert job.estimator.get_params() == {**network.get_params(), "random_state": seed}


def test_columns_of_two_values_are_not_embedded(classes):
    X, y = classes
    network = small_classifier().fit(X, y).estimators_[0].net_.module_
    (embedding,) = (m for m in network.modules() if isinstance(m, PeriodicEmbedding))
    assert embedding.columns.tolist() == [0, 1, 2, 3, 4]


# -- errors and warnings ---------------------------------------------------------------


def test_the_error_of_a_failed_training_names_the_network(numbers):
    X, y = numbers
    model = small_regressor(
        optimizer="sgd", lr=1e30, on_nonfinite="raise", early_stopping=False
    )
    with pytest.raises(NonFiniteTrainingError) as error:
        model.fit(X, y)
    assert error.value.__notes__ == [
        "while training network 0 of 5 of StableNetEnsembleRegressor"
    ]


def test_recoveries_give_one_warning_and_all_reports(numbers):
    X, y = numbers
    model = small_regressor(optimizer="sgd", lr=1e30, early_stopping=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y)
    (summary,) = (w.message for w in caught if w.category is DivergenceWarning)
    reports = [r for member in model.estimators_ for r in member.nonfinite_reports_]
    assert model.nonfinite_reports_ == reports
    assert len(reports) >= 5
    first = model.estimators_[0]
    n_failed = len(first.nonfinite_reports_)
    assert str(summary).startswith(
        "5 of 5 networks were rescued in training. The first: Training failed "
        + ("once" if n_failed == 1 else f"in {n_failed} steps of ")
    )
    assert str(summary).endswith(
        f"and was rescued; it went on with lr={first.effective_lr_:.3g} instead of "
        f"lr=1e+30. First failure: {reports[0]}"
    )
    assert summary.report is first.nonfinite_reports_[0]
    assert model.effective_lr_ == min(m.effective_lr_ for m in model.estimators_)
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
            StableNetEnsembleClassifier(max_time=0),
            "The 'max_time' parameter of StableNetEnsembleClassifier must be a number "
            "above 0 or None, got 0.",
        ),
        (
            StableNetEnsembleRegressor(n_estimators=True),
            "The 'n_estimators' parameter of StableNetEnsembleRegressor must be an "
            "integer of at least 1, got True.",
        ),
        (
            StableNetEnsembleRegressor(n_jobs="all"),
            "The 'n_jobs' parameter of StableNetEnsembleRegressor must be an integer "
            "other than 0 or None, got 'all'.",
        ),
        (
            StableNetEnsembleRegressor(verbose="yes"),
            "The 'verbose' parameter of StableNetEnsembleRegressor must be an integer "
            "of at least 0, got 'yes'.",
        ),
        (
            StableNetEnsembleRegressor(random_state=-1),
            "The 'random_state' parameter of StableNetEnsembleRegressor must be an "
            "integer from 0 to 2**32 - 1, a numpy.random.RandomState or None, got -1.",
        ),
        (
            StableNetEnsembleClassifier(calibration=np.ones(2)),
            "The 'calibration' parameter of StableNetEnsembleClassifier must be "
            "'temperature' or None, got array([1., 1.]).",
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
def test_invalid_parameters_are_refused(model, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.fit([[0.0], [1.0]], [0, 1])


def test_the_networks_share_the_time():
    X, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    network = StableNetClassifier(max_epochs=3)

    def fitted(max_time, **params):
        model = StableNetEnsembleClassifier(
            network, 3, max_time=max_time, random_state=0, **params
        )
        return model.fit(X, y).estimators_

    with pytest.warns(ConvergenceWarning, match="max_time=3.33333e-10") as caught:
        assert [member.n_iter_ for member in fitted(1e-9)] == [1, 1, 1]
    assert len(caught) == 1  # for all networks together
    assert [member.n_iter_ for member in fitted(1e6)] == [3, 3, 3]
    assert [member.max_time for member in fitted(3e6)] == [1e6] * 3
    assert [member.max_time for member in fitted(3e6, n_jobs=2)] == [1.5e6] * 3
    network.set_params(max_time=1e-9)
    with pytest.warns(ConvergenceWarning, match="max_time=1e-09"):
        assert [member.n_iter_ for member in fitted(None)] == [1, 1, 1]


def test_an_unknown_kind_of_default_network_is_refused():
    message = "estimator must be 'classifier' or 'regressor', got 'ranker'."
    with pytest.raises(ValueError, match=f"^{message}$"):
        default_network("ranker")


class LogOfFirst(nn.Module):
    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.head = nn.Linear(n_features_in, n_outputs)

    def forward(self, x):
        return self.head(torch.cat([torch.log(x[:, :1]), x[:, 1:]], 1))


def test_rows_that_each_network_repairs_give_one_warning():
    table = np.random.default_rng(0).uniform(1, 9, size=(90, 3))
    table[7, 0] = -1.0
    network = StableNetRegressor(LogOfFirst, max_epochs=2, early_stopping=False)
    model = StableNetEnsembleRegressor(network, n_estimators=3, random_state=0)
    with pytest.warns(DivergenceWarning, match="3 of 3 networks were rescued"):
        model.fit(table, table[:, 1])
    with pytest.warns(UserWarning, match="In 3 of 3 networks: Non-finite") as caught:
        assert np.isfinite(model.predict(table)).all()
    assert len(caught) == 1
    assert "To blame: row 7, column 0." in str(caught[0].message)
