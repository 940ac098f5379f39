"""Tests of the searches that train their candidates together."""

from __future__ import annotations

import math
import os
import pickle
import re
import signal
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from fresh_process import run_script
from sklearn import config_context
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.decomposition import KernelPCA
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, get_scorer, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    ShuffleSplit,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sknan import (
    DivergenceWarning,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
)
from sknan.model_selection import (
    BatchedGridSearchCV,
    BatchedHalvingSearchCV,
    BatchedRandomizedSearchCV,
)
from sknan.model_selection._pipelines import limit_time
from sknan.model_selection._worker import TimeBudget

# Sums of floats are rounded differently when networks are trained together.
CLOSE = {"rtol": 0, "atol": 2e-3}


@pytest.fixture(scope="module")
def table():
    """240 rows with missing values, and a target that a small network learns."""
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    X, y = X.iloc[:240, :8], y.iloc[:240]
    return X.mask(np.random.default_rng(0).random(X.shape) < 0.05), y


def net(**params):
    small = {"module__width": 8, "max_epochs": 3, "batch_size": 32, "random_state": 0}
    return StableNetClassifier(**{**small, **params})


def pipeline(**params):
    return Pipeline(
        [("impute", NaNImputer()), ("scale", SafeScaler()), ("net", net(**params))]
    )


def ensemble(**params):
    network = net(early_stopping=True, **params)
    return StableNetEnsembleClassifier(network, n_estimators=2, random_state=0)


RATES = {"net__lr": [1e-3, 1e-2, 3e-2]}


def assert_same_results(batched, reference):
    """Assert that all columns of scikit-learn are equal, except for durations."""
    assert set(reference.cv_results_) <= set(batched.cv_results_)
    for name, column in reference.cv_results_.items():
        found = batched.cv_results_[name]
        if "_time" in name:
            assert np.isfinite(found).all()
        elif name == "params":
            assert [repr(p) for p in found] == [repr(p) for p in column]
        elif name.startswith("param_"):
            assert found.dtype == column.dtype
            np.testing.assert_array_equal(found.mask, column.mask)
            assert list(map(repr, found.compressed())) == [
                repr(value) for value in column.compressed()
            ]
        elif name.startswith("rank_"):
            means = batched.cv_results_[name.replace("rank", "mean")]
            expected = [1 + (means > mean).sum() for mean in means]
            np.testing.assert_array_equal(found, expected)
        elif name != "stacked":
            np.testing.assert_allclose(found, column, err_msg=name, **CLOSE)
    assert batched.n_splits_ == reference.n_splits_
    assert batched.multimetric_ == reference.multimetric_


# -- agreement with scikit-learn's searches ------------------------------------------


SCORES = {"scoring": ["neg_log_loss", "roc_auc"], "refit": "neg_log_loss", "cv": 3}


@pytest.mark.parametrize(
    ("model", "grid"),
    [
        (pipeline(), RATES),
        (
            make_pipeline(NaNImputer(), make_pipeline(SafeScaler(), net())),
            {
                "pipeline__stablenetclassifier__lr": [1e-3, 1e-2],
                "pipeline__stablenetclassifier__module__width": [4, 8],
                "nanimputer__strategy": ["mean", "zero"],
            },
        ),
        (
            pipeline(),
            [
                {"scale": ["passthrough", StandardScaler()], "net__lr": [1e-2]},
                {"net": [net(lr=0.02), LogisticRegression()]},
                {"net": [make_pipeline(SafeScaler(), net(lr=0.02))]},
            ],
        ),
        (
            make_pipeline(NaNImputer(), SafeScaler(), ensemble()),
            {
                "stablenetensembleclassifier__estimator__lr": [1e-3, 1e-2],
                "stablenetensembleclassifier__n_estimators": [2, 3],
                "nanimputer__strategy": ["mean", "zero"],
            },
        ),
    ],
    ids=["pipeline", "nested", "replaced steps", "ensemble"],
)
def test_the_results_are_those_of_grid_search(table, model, grid):
    params = {**SCORES, "return_train_score": True}
    with warnings.catch_warnings():
        # Some of the candidates have no scaler, and diverge.
        warnings.simplefilter("ignore", DivergenceWarning)
        batched = BatchedGridSearchCV(model, grid, **params).fit(*table)
        reference = GridSearchCV(model, grid, **params).fit(*table)
    assert_same_results(batched, reference)
    assert repr(batched.best_params_) == repr(reference.best_params_)
    np.testing.assert_allclose(
        batched.predict_proba(table[0]), reference.predict_proba(table[0]), atol=1e-6
    )
    np.testing.assert_array_equal(batched.classes_, reference.classes_)
    np.testing.assert_array_equal(
        batched.feature_names_in_, reference.feature_names_in_
    )


def test_a_regressor_without_a_pipeline():
    X, y = load_diabetes(return_X_y=True)
    model = StableNetRegressor(module__width=8, max_epochs=3, random_state=0)
    grid = {"lr": [1e-3, 1e-2], "optimizer": ["adamw", "sgd"]}
    batched = BatchedGridSearchCV(model, grid, cv=3).fit(X, y)
    assert_same_results(batched, GridSearchCV(model, grid, cv=3).fit(X, y))
    assert 0 <= batched.score(X, y) <= 1


def test_the_networks_of_all_ensembles_are_trained_together(table):
    model = make_pipeline(NaNImputer(), SafeScaler(), ensemble())
    name = "stablenetensembleclassifier__estimator__lr"
    search = BatchedGridSearchCV(model, {name: [1e-3, 1e-2]}, cv=3).fit(*table)
    assert search.cv_results_["stacked"].all()
    assert search.cv_results_["n_recoveries"].tolist() == [0, 0]
    assert search.cv_results_["diverged_at"].tolist() == [None, None]
    assert search.cv_results_["effective_lr"].tolist() == [1e-3, 1e-2]
    assert (search.cv_results_["mean_fit_time"] > 0).all()
    alone = clone(search.best_estimator_).fit(*table)
    np.testing.assert_array_equal(
        search.predict_proba(table[0]), alone.predict_proba(table[0])
    )


def test_the_default_network_of_an_ensemble_can_be_searched():
    X = np.random.default_rng(0).normal(size=(200, 3))
    grid = {"estimator__max_epochs": [1, 2]}
    model = StableNetEnsembleRegressor(n_estimators=2, random_state=0)
    search = BatchedGridSearchCV(model, grid, cv=2).fit(X, X[:, 0])
    assert search.cv_results_["stacked"].all()
    assert search.best_estimator_.estimator.module__n_frequencies == 16


def test_an_ensemble_reports_its_earliest_failed_step(table):
    model = make_pipeline(NaNImputer(), SafeScaler(), ensemble())
    grid = {"stablenetensembleclassifier__estimator__lr": [1e-3, 1e30]}
    search = BatchedGridSearchCV(model, grid, cv=2, refit=False)
    with pytest.warns(DivergenceWarning, match="1 of 2 candidates diverged"):
        search.fit(*table)
    assert search.cv_results_["diverged_at"].tolist() == [None, 1]
    assert search.cv_results_["n_recoveries"][1] >= 4  # two networks on two folds
    assert search.cv_results_["effective_lr"][1] < 1e30


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning")
@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_an_invalid_ensemble_fails_only_its_candidate(table):
    grid = {
        "stablenetensembleclassifier__n_estimators": [2, 0],
        "stablenetensembleclassifier__estimator__clip_norm": [1.0, -1.0],
    }
    model = make_pipeline(NaNImputer(), ensemble())
    search = BatchedGridSearchCV(model, grid, cv=2).fit(*table)
    is_failed = np.isnan(search.cv_results_["mean_test_score"]).tolist()
    assert is_failed == [False, True, True, True]
    assert search.cv_results_["stacked"].tolist() == [True, False, False, False]


class HalfTheRows(StableNetClassifier):
    """Network with its own ``fit``."""

    def fit(self, X, y, **fit_params):
        return super().fit(X[::2], y[::2], **fit_params)


def test_a_subclass_with_its_own_fit_is_searched_by_scikit_learn():
    X, y = load_breast_cancer(return_X_y=True)
    X = SafeScaler().fit_transform(X[:200])
    model = HalfTheRows(max_epochs=2, random_state=0)
    batched, reference = (
        kind(model, {"lr": [1e-3, 1e-2]}, cv=3).fit(X, y[:200])
        for kind in (BatchedGridSearchCV, GridSearchCV)
    )
    assert "stacked" not in batched.cv_results_
    assert_same_results(batched, reference)


def test_random_candidates_are_those_of_randomized_search(table):
    params = {"n_iter": 4, "random_state": 3, **SCORES}
    drawn = {"net__lr": [1e-3, 3e-3, 1e-2, 3e-2], "net__weight_decay": [0.0, 0.1]}
    batched = BatchedRandomizedSearchCV(pipeline(), drawn, **params).fit(*table)
    assert_same_results(
        batched, RandomizedSearchCV(pipeline(), drawn, **params).fit(*table)
    )


@pytest.mark.parametrize(
    "params",
    [
        {"min_resources": 40, "random_state": 0},
        {"resource": "net__max_epochs", "max_resources": 4, "factor": 2},
    ],
    ids=["rows", "epochs"],
)
def test_halving_drops_the_candidates_that_scikit_learn_drops(table, params):
    grid = {"net__lr": [1e-4, 1e-3, 1e-2, 3e-2]}
    params = {"cv": 2, "scoring": "roc_auc", **params}
    batched = BatchedHalvingSearchCV(pipeline(), grid, **params).fit(*table)
    reference = HalvingGridSearchCV(pipeline(), grid, **params).fit(*table)
    assert_same_results(batched, reference)
    assert batched.n_candidates_ == reference.n_candidates_
    assert batched.best_params_ == reference.best_params_
    assert len(batched.cv_results_["stacked"]) == sum(batched.n_candidates_)


def test_epochs_can_be_the_resource(table):
    search = BatchedHalvingSearchCV(
        pipeline(max_epochs=9),
        {"net__lr": [1e-4, 1e-3, 1e-2, 3e-2]},
        resource="epochs",
        cv=2,
    ).fit(*table)
    assert search.n_resources_ == [3, 9]
    assert search.n_candidates_ == [4, 2]
    assert search.best_params_["net__max_epochs"] == 9
    assert search.get_params()["resource"] == "epochs"
    assert search.get_params()["max_resources"] == "auto"


def test_epochs_of_an_ensemble_can_be_the_resource(table):
    model = make_pipeline(NaNImputer(), ensemble(max_epochs=4))
    search = BatchedHalvingSearchCV(
        model,
        {"stablenetensembleclassifier__estimator__lr": [1e-4, 1e-3, 1e-2]},
        resource="epochs",
        factor=2,
        cv=2,
        random_state=0,
    ).fit(*table)
    assert search.n_resources_[-1] == 4
    assert search.cv_results_["stacked"].all()


@pytest.mark.parametrize("resource", ["epochs", "net__max_epochs", "n_samples"])
def test_a_candidate_counts_once_however_many_rounds_it_is_trained_in(table, resource):
    size = 40 if resource == "n_samples" else 1
    search = BatchedHalvingSearchCV(
        pipeline(max_epochs=3),
        {"net__lr": [1e-3, 1e30, 1e-2]},
        resource=resource,
        min_resources=size,
        max_resources=3 * size,
        scoring=lambda model, X, y: model[-1].lr,  # keeps the one that diverges
        refit=False,
        cv=2,
        random_state=0,
    )
    with pytest.warns(DivergenceWarning, match="1 of 3 candidates diverged, .*: it"):
        search.fit(*table)
    assert search.n_candidates_ == [3, 1]
    assert "3, 1 rescued, 0 failed" in search._repr_html_()


def test_other_estimators_are_searched_by_scikit_learn(table):
    X, y = table[0].fillna(0), table[1]
    model, grid = LogisticRegression(max_iter=5000), {"C": [0.1, 1.0]}
    batched = BatchedGridSearchCV(model, grid).fit(X, y)
    assert set(batched.cv_results_) == set(
        GridSearchCV(model, grid).fit(X, y).cv_results_
    )


# `python -m benchmarks.search_suite` runs all of them.
def test_some_of_scikit_learns_own_tests_pass(tmp_path):
    chosen = (
        "test_no_refit or test_grid_search_groups or test_refit_callable "
        "or test_grid_search_failing_classifier or test_pickle or test_y_as_list "
        "or test_unsupported_sample_weight_scorer or test_grid_search_one_grid_point"
    )
    # All estimators are treated as networks of this package.
    suite = Path(__file__).resolve().parents[2] / "benchmarks" / "search_suite.py"
    code, printed = run_script(suite, tmp_path / "output", "all", "-k", chosen)
    assert code == 0, printed
    assert " passed" in printed


# -- input of the candidates ---------------------------------------------------------


class CountsFits(TransformerMixin, BaseEstimator):
    """Transformer that counts how often it is fitted and changes nothing."""

    fits: Counter[tuple[int, int]] = Counter()  # noqa: RUF012 - shared by clones
    transforms: Counter[int] = Counter()  # noqa: RUF012 - shared by clones

    def __init__(self, setting=0):
        self.setting = setting

    def fit(self, X, y=None):
        self.fits[self.setting, int(X[:, 0].sum())] += 1
        self.n_fits_ = 1
        return self

    def transform(self, X):
        self.transforms[int(X[:, 0].sum())] += 1
        return X


@pytest.fixture
def numbered(table):
    """Table whose first column is the number of the row."""
    X = np.nan_to_num(table[0].to_numpy())
    X[:, 0] = np.arange(len(X))
    CountsFits.fits.clear()
    CountsFits.transforms.clear()
    return X, table[1].to_numpy()


def test_transformers_are_fitted_once_for_each_fold_and_setting(numbered):
    model = Pipeline([("count", CountsFits()), ("scale", SafeScaler()), ("net", net())])
    grid = {"count__setting": [0, 1], "net__lr": [1e-3, 1e-2], "net__clip_norm": [1, 9]}
    BatchedGridSearchCV(model, grid, cv=3, refit=False).fit(*numbered)
    assert len(CountsFits.fits) == 6
    assert set(CountsFits.fits.values()) == {1}
    # The rows of each training part and each test part, with each setting.
    assert sorted(CountsFits.transforms.values()) == [2] * 6


def test_the_cache_of_a_pipeline_is_used(numbered, tmp_path):
    model = Pipeline([("count", CountsFits()), ("net", net())], memory=str(tmp_path))
    search = BatchedGridSearchCV(model, {"net__lr": [1e-3, 1e-2]}, cv=3, refit=False)
    search.fit(*numbered)
    search.fit(*numbered)
    assert sum(CountsFits.fits.values()) == 3


def overlap_with_training_rows(model, X, y):
    """Count the scored rows that are training rows too."""
    seen = model[0].mean_
    return {"overlap": float(np.isin(X[:, 0], seen).sum()), "rows": len(X)}


class RemembersRows(CountsFits):
    """Transformer that remembers the numbers of its training rows."""

    def fit(self, X, y=None):
        self.mean_ = X[:, 0].copy()
        return self


@pytest.mark.parametrize("is_generator", [False, True])
def test_random_folds_are_drawn_once(numbered, is_generator):
    X, y = numbered
    cv = ShuffleSplit(3, test_size=0.3)
    if is_generator:
        cv = ((train.tolist(), test) for train, test in cv.split(X))
    model = make_pipeline(RemembersRows(), SafeScaler(), net())
    search = BatchedGridSearchCV(
        model,
        {"stablenetclassifier__lr": [1e-3, 1e-2]},
        scoring=overlap_with_training_rows,
        cv=cv,
        refit=False,
    ).fit(X, y)
    np.testing.assert_array_equal(search.cv_results_["mean_test_overlap"], [0, 0])
    np.testing.assert_array_equal(search.cv_results_["mean_test_rows"], [72, 72])


def test_folds_may_be_masks(numbered):
    X, y = numbered
    masks = []
    for train, test in KFold(3).split(X):
        masks.append((np.isin(np.arange(240), train), np.isin(np.arange(240), test)))
    grid = {"lr": [1e-3, 1e-2]}
    batched = BatchedGridSearchCV(net(), grid, cv=masks).fit(X, y)
    assert_same_results(batched, GridSearchCV(net(), grid, cv=KFold(3)).fit(X, y))


def test_groups_and_weights_are_passed_without_routing(table):
    X, y = table
    groups = np.arange(240) // 20
    weight = np.where(y == 1, 10.0, 1.0)
    params = {**SCORES, "cv": GroupKFold(3)}
    results = [
        kind(pipeline(), RATES, **params).fit(
            X, y, groups=groups, net__sample_weight=weight
        )
        for kind in (BatchedGridSearchCV, GridSearchCV)
    ]
    assert_same_results(*results)
    plain = BatchedGridSearchCV(pipeline(), RATES, **SCORES).fit(X, y)
    assert not np.allclose(
        plain.cv_results_["mean_test_neg_log_loss"],
        results[0].cv_results_["mean_test_neg_log_loss"],
    )


@pytest.mark.parametrize("scoring", ["accuracy", ["accuracy", "neg_log_loss"]])
def test_scores_are_weighted(table, scoring):
    X, y = table[0].fillna(0.0) / 100, table[1]
    weight = np.where(y == 1, 10.0, 1.0)
    params = {"scoring": scoring, "refit": False, "return_train_score": True}
    results = [
        kind(net(), {"lr": [1e-3, 1e-2]}, cv=3, **params).fit(
            X, y, sample_weight=weight
        )
        for kind in (BatchedGridSearchCV, GridSearchCV)
    ]
    assert_same_results(*results)


def test_weights_and_groups_are_routed(table):
    X, y = table
    weight = np.where(y == 1, 10.0, 1.0)
    with config_context(enable_metadata_routing=True):
        model = pipeline()
        model[-1].set_fit_request(sample_weight="importance", groups=False)
        scorer = get_scorer("neg_log_loss").set_score_request(sample_weight=True)
        results = [
            kind(model, RATES, scoring=scorer, cv=GroupKFold(3)).fit(
                X,
                y,
                importance=weight,
                sample_weight=1.0 / weight,
                groups=np.arange(240) // 20,
            )
            for kind in (BatchedGridSearchCV, GridSearchCV)
        ]
        assert_same_results(*results)
        alone = net().set_fit_request(sample_weight="importance")
        bare = [
            kind(alone, {"lr": [1e-3, 1e-2]}, cv=3).fit(
                np.nan_to_num(X), y, importance=weight
            )
            for kind in (BatchedGridSearchCV, GridSearchCV)
        ]
        assert_same_results(*bare)


def test_weights_that_were_not_requested_are_refused(table):
    with config_context(enable_metadata_routing=True):
        search = BatchedGridSearchCV(pipeline(), RATES)
        with pytest.raises(ValueError, match="sample_weight"):
            search.fit(*table, sample_weight=np.ones(240))


def test_the_network_sees_the_names_of_columns(table):
    model = pipeline().set_output(transform="pandas")

    def named(model, X, y):
        assert type(model) is Pipeline
        assert list(model[-1].feature_names_in_) == list(X.columns)
        return accuracy_score(y, model.predict(X))

    search = BatchedGridSearchCV(model, RATES, scoring=named, error_score="raise")
    search.fit(*table)
    assert list(search.best_estimator_[-1].feature_names_in_) == list(table[0].columns)


@pytest.mark.parametrize("seed", [0, np.random.RandomState(0)])
def test_seeds_are_used_as_in_grid_search(table, seed):
    # `clone` copies a RandomState, so each candidate has the same initial state.
    model = pipeline(random_state=seed)
    batched = BatchedGridSearchCV(model, RATES, **SCORES).fit(*table)
    assert_same_results(batched, GridSearchCV(model, RATES, **SCORES).fit(*table))


# -- scores, choice, errors ----------------------------------------------------------


def test_callables_can_score_and_choose(table):
    def scores(model, X, y):
        right = accuracy_score(y, model.predict(X))
        return {"right": right, "rate": model[-1].effective_lr_}

    def highest_rate(results):
        return int(results["mean_test_rate"].argmax())

    search = BatchedGridSearchCV(
        pipeline(), RATES, scoring=scores, refit=highest_rate
    ).fit(*table)
    assert search.best_params_ == {"net__lr": 3e-2}
    np.testing.assert_allclose(
        search.cv_results_["mean_test_rate"], search.cv_results_["effective_lr"]
    )


def test_a_candidate_that_cannot_be_fitted_gets_the_error_score(table):
    grid = {"net__lr": [1e-2, -1.0]}
    search = BatchedGridSearchCV(pipeline(), grid, cv=3, error_score=-5.0)
    with pytest.warns(FitFailedWarning) as caught:
        search.fit(*table)
    message = str(caught[0].message)
    assert "3 fits failed out of a total of 6." in message
    assert "The 'lr' parameter of StableNetClassifier must be" in message
    assert "_check_parameters" in message  # the traceback of the worker
    assert search.cv_results_["mean_test_score"][1] == -5.0
    assert search.cv_results_["n_recoveries"].tolist() == [0, None]
    assert search.best_params_ == {"net__lr": 1e-2}


LAST_BATCH = 24  # rows, of 120


class Failing(nn.Module):
    """Linear model that raises an error at a stage."""

    def __init__(self, n_features_in, n_outputs, stage=None):
        super().__init__()
        self.stage = stage
        self.linear = nn.Linear(n_features_in, n_outputs)
        self.fail_at("init")

    def fail_at(self, stage):
        if self.stage == stage:
            raise KeyError(f"{stage} fails")

    def forward(self, X):
        self.fail_at("forward")
        if len(X) == LAST_BATCH:
            self.fail_at("training")
        if not self.training:
            self.fail_at("prediction")
        return self.linear(X)


def fails_late(progress):
    if progress > 0.5:
        raise ZeroDivisionError("the schedule fails")
    return 1.0


INVALID_VALUES = {
    "clip_norm": [1.0, -1.0, "1"],
    "clip_value": [None, -1.0],
    "adaptive_clip": [None, "agg"],
    "lr_schedule": ["cosine", "cosinus", 3, fails_late, lambda p: math.inf],
    "warmup": [0.0, -1, 1.5, "x"],
    "on_nonfinite": ["recover", "rescue"],
    "max_recoveries": [10, -1],
    "module__activation": ["relu", "relu5"],
    "optimizer": ["adam", "adamant"],
    "optimizer__betas": [(0.9, 0.99), (2.0, 3.0)],
    "criterion": ["cross_entropy", "squared_error", 3],
    "criterion__weight": [None, torch.ones(5)],
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning")
@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
@pytest.mark.filterwarnings("ignore:2 of 5 candidates diverged")
@pytest.mark.parametrize("name", INVALID_VALUES)
def test_an_invalid_value_of_a_candidate_fails_only_that_candidate(table, name):
    values = INVALID_VALUES[name]
    search = BatchedGridSearchCV(pipeline(), {f"net__{name}": values}, cv=2)
    search.fit(*table)
    is_failed = np.isnan(search.cv_results_["mean_test_score"]).tolist()
    assert is_failed == [i > 0 for i in range(len(values))]
    assert search.cv_results_["stacked"][0]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning")
@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
@pytest.mark.filterwarnings("ignore:Columns of X are in raw units")
def test_a_module_that_raises_fails_only_its_candidate(table):
    stages = [None, "init", "forward", "training", "prediction"]
    model = Pipeline(
        [
            ("impute", NaNImputer()),
            ("net", StableNetClassifier(Failing, batch_size=32, max_epochs=3)),
        ]
    )
    search = BatchedGridSearchCV(model, {"net__module__stage": stages}, cv=2)
    search.fit(*table)
    is_failed = np.isnan(search.cv_results_["mean_test_score"]).tolist()
    assert is_failed == [False, True, True, True, True]


def test_errors_are_raised_if_error_score_is_raise(table):
    grid = {"net__lr": [1e-2, -1.0]}
    search = BatchedGridSearchCV(pipeline(), grid, error_score="raise")
    with pytest.raises(ValueError, match="The 'lr' parameter of StableNetClassifier"):
        search.fit(*table)
    assert isinstance(search.estimator, Pipeline)
    assert "_run" not in vars(search)


def test_a_failing_transformer_fails_only_its_candidates(table):
    grid = {"impute__strategy": ["mean", "no such strategy"], "net__lr": [1e-3, 1e-2]}
    search = BatchedGridSearchCV(pipeline(), grid, cv=3)
    with (
        pytest.warns(FitFailedWarning, match="6 fits failed out of a total of 12"),
        pytest.warns(UserWarning, match="non-finite"),
    ):
        search.fit(*table)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [0, 0, 1, 1]


def test_a_search_in_which_all_fits_fail_raises(table):
    search = BatchedGridSearchCV(pipeline(), {"net__lr": [-1.0]}, cv=3)
    with pytest.raises(ValueError, match="All the 3 fits failed"):
        search.fit(*table)


def test_labels_of_several_types_are_refused_before_scikit_learn_sorts_them(table):
    labels = np.array([1, "a"] * (len(table[0]) // 2), dtype=object)
    with pytest.raises(ValueError, match=r"^y contains labels of several types: int,"):
        BatchedGridSearchCV(pipeline(), RATES).fit(table[0], labels)


def test_a_factor_that_keeps_every_candidate_is_refused(table):
    search = BatchedHalvingSearchCV(pipeline(), RATES, factor=1)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is asserted
        search.fit(*table)
    assert str(caught.value) == (
        "The 'factor' parameter of BatchedHalvingSearchCV must be above 1, got 1: each "
        "round keeps 1 / factor of the candidates."
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("net__learning_rate", "StableNetClassifier has no parameter 'learning_rate'."),
        ("lr", "Pipeline has no parameter 'lr'. Did you mean 'net__lr'?"),
        ("clf__lr", "Pipeline has no parameter 'clf__lr'. Did you mean 'net__lr'?"),
    ],
)
def test_an_unknown_parameter_is_refused_with_its_full_name(table, name, hint):
    search = BatchedGridSearchCV(pipeline(), {name: [0.1]})
    with pytest.raises(ValueError, match="Did you mean") as caught:
        search.fit(*table)
    assert str(caught.value).startswith(hint)


def test_an_unknown_parameter_of_an_ensemble_in_a_pipeline_gets_its_full_name(table):
    model = Pipeline([("impute", NaNImputer()), ("net", ensemble())])
    search = BatchedGridSearchCV(model, {"net__lr": [0.1]})
    with pytest.raises(ValueError, match="no parameter") as caught:
        search.fit(*table)
    assert str(caught.value) == (
        "Pipeline has no parameter 'net__lr'. Did you mean 'net__estimator__lr'?"
    )


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_failed_search_shows_the_line_of_the_users_module(table, n_jobs):
    failing = StableNetClassifier(Failing, module__stage="init")
    model = Pipeline([("impute", NaNImputer()), ("net", failing)])
    with pytest.raises(ValueError, match="All the 3 fits failed") as caught:
        BatchedGridSearchCV(model, {"net__lr": [0.1]}, cv=3, n_jobs=n_jobs).fit(*table)
    message = str(caught.value)
    assert "KeyError: 'init fails'" in message
    assert 'raise KeyError(f"{stage} fails")' in message
    assert re.search(r"sknan[\w.]*\._[A-Z]", message) is None


@pytest.mark.parametrize("memory", [0, -1, "1 GB", True])
def test_memory_is_a_number_of_bytes(table, memory):
    search = BatchedGridSearchCV(pipeline(), RATES, max_memory=memory)
    message = (
        "The 'max_memory' parameter of BatchedGridSearchCV must be a number of bytes "
        f"above 0 or None, got {memory!r}."
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole is compared
        search.fit(*table)
    assert str(caught.value) == message


# -- time limit ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search_class", "model", "params", "n_fits"),
    [
        (BatchedGridSearchCV, pipeline(), {}, 9),
        (BatchedGridSearchCV, pipeline(), {"n_jobs": 2}, 9),
        (BatchedHalvingSearchCV, pipeline(), {"resource": "n_samples"}, 12),
        (BatchedRandomizedSearchCV, ensemble(), {"n_iter": 3, "random_state": 0}, 9),
    ],
)
def test_a_search_ends_after_its_time(table, search_class, model, params, n_fits):
    def n_epochs(model, X, y):
        network = model[-1] if isinstance(model, Pipeline) else model.estimators_[1]
        return network.n_iter_

    X, y = NaNImputer().fit_transform(table[0]), table[1]
    grid = RATES if isinstance(model, Pipeline) else {"estimator__lr": RATES["net__lr"]}
    params = {"scoring": n_epochs, "cv": 3, **params}
    with pytest.warns(ConvergenceWarning) as caught:
        search = search_class(model, grid, max_time=1e-9, **params).fit(X, y)
    assert str(caught[-1].message) == (
        f"max_time=1e-09 ended {n_fits} of {n_fits} trainings of the search before "
        "their max_epochs, so that their scores are those of shorter trainings. Raise "
        "max_time, or search fewer candidates."
    )
    assert len(caught) == 2  # with that of the refit
    assert set(search.cv_results_["mean_test_score"]) == {1}
    assert n_epochs(search.best_estimator_, X, y) == 1
    enough = search_class(model, grid, max_time=1e6, **params).fit(X, y)
    assert set(enough.cv_results_["mean_test_score"]) == {3}
    assert 0 < (enough.best_estimator_.get_params()[MAX_TIME[type(model)]]) < 1e6


MAX_TIME = {Pipeline: "net__max_time", StableNetEnsembleClassifier: "max_time"}


@pytest.mark.parametrize(
    ("model", "max_time", "message"),
    [
        (
            pipeline(),
            0,
            "The 'max_time' parameter of BatchedGridSearchCV must be a number of "
            "seconds above 0 or None, got 0.",
        ),
        (
            LogisticRegression(),
            5,
            "max_time=5 needs an estimator that is, or ends in, a network or ensemble "
            "of sknan, got LogisticRegression(). Leave it out.",
        ),
    ],
)
def test_a_time_limit_that_cannot_hold_is_refused(table, model, max_time, message):
    search = BatchedGridSearchCV(model, {}, max_time=max_time)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole is compared
        search.fit(*table)
    assert str(caught.value) == message


def test_the_fits_that_are_left_share_the_time():
    budget = TimeBudget(1000.0, has_refit=True)
    budget.n_rounds_left = 2
    assert budget.per_fit(7, 3) == pytest.approx(50.0, rel=0.1)
    assert budget.of_refit() == pytest.approx(1000.0, rel=0.1)
    budget._end -= 2000.0  # as after evaluations that took longer than expected
    assert budget.per_fit(3, 3) == 0.0
    assert budget.of_refit() == pytest.approx(150.0, rel=0.1)
    assert TimeBudget(1000.0, has_refit=False).per_fit(4, 3) == pytest.approx(250, 0.1)
    unlimited = TimeBudget(None, has_refit=True)
    assert unlimited.per_fit(7, 3) is unlimited.of_refit() is None
    network = net(max_time=5.0)
    for limit, expected in [(None, 5.0), (9.0, 5.0), (2.0, 2.0), (-1.0, 1e-9)]:
        limit_time(network, limit)
        assert network.max_time == expected


# -- shares and workers --------------------------------------------------------------


@pytest.mark.parametrize(
    "params", [{"max_memory": 1}, {"max_memory": np.inf}, {"n_jobs": 2}]
)
def test_the_size_of_shares_does_not_change_the_results(table, params):
    grid = {**RATES, "impute__strategy": ["mean", "zero"]}
    whole = BatchedGridSearchCV(pipeline(), grid, **SCORES).fit(*table)
    parts = BatchedGridSearchCV(pipeline(), grid, **SCORES, **params).fit(*table)
    assert_same_results(parts, whole)
    np.testing.assert_array_equal(
        parts.cv_results_["n_recoveries"], whole.cv_results_["n_recoveries"]
    )


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_models_are_scored_where_they_were_trained(table, n_jobs):
    def where(model, X, y):
        return float(os.getpid())

    search = BatchedGridSearchCV(pipeline(), RATES, scoring=where, n_jobs=n_jobs, cv=2)
    search.fit(*table)
    is_here = search.cv_results_["split0_test_score"] == os.getpid()
    assert is_here.all() if n_jobs is None else not is_here.any()
    assert search.scorer_ is where
    assert (search.cv_results_["mean_score_time"] > 0).all()


class Halving(BaseEstimator, TransformerMixin):
    """Transformer that writes into its input."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        X *= 0.5
        return X


SCRIPT_WITH_A_MODULE = """
import numpy as np, torch
from sklearn.model_selection import GridSearchCV
from sknan import *

class OfThisScript(torch.nn.Module):
    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.first = torch.nn.Linear(n_features_in, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.last = torch.nn.Linear(8, n_outputs)

    def forward(self, X):
        return self.last(torch.relu(self.norm(self.first(X))))

def falling(progress):
    return 1.0 - progress

X = np.random.default_rng(0).normal(size=(120, 4))
y = X[:, 0] > 0
net = StableNetClassifier(
    OfThisScript, lr_schedule=falling, max_epochs=2, random_state=0
)
searches = [
    kind(net, {"lr": [1e-3, 1e-2]}, cv=2, n_jobs=2).fit(X, y)
    for kind in (BatchedGridSearchCV, GridSearchCV)
]
scores = [search.cv_results_["mean_test_score"] for search in searches]
assert np.abs(scores[0] - scores[1]).max() < 0.02, scores
assert searches[0].cv_results_["stacked"].all()
ensembles = [
    StableNetEnsembleClassifier(net, 2, n_jobs=n_jobs, random_state=0).fit(X, y)
    for n_jobs in (1, 2)
]
predictions = [ensemble.predict_proba(X) for ensemble in ensembles]
assert (predictions[0] == predictions[1]).all()
for network in ensembles[1].estimators_:
    assert type(network.net_.module_) is network.module is OfThisScript
"""


def test_modules_of_a_script_travel_to_workers_and_back(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT_WITH_A_MODULE)
    # `run_script` would wait for the workers until they end by themselves.
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("scoring", ["neg_log_loss", ["neg_log_loss", "roc_auc"]])
def test_models_that_write_into_their_input_are_scored_on_the_original(table, scoring):
    X, y = table[0].fillna(0.0).to_numpy(), table[1]
    model = make_pipeline(Halving(), net())
    grid = {"stablenetclassifier__lr": [1e-3, 1e-2]}
    params = {"cv": 2, "scoring": scoring, "refit": False}
    batched = BatchedGridSearchCV(model, grid, **params).fit(X, y)
    reference = GridSearchCV(model, grid, **params).fit(X, y)
    assert_same_results(batched, reference)


def test_training_scores_are_those_of_grid_search(table):
    params = {**SCORES, "return_train_score": True}
    batched = BatchedGridSearchCV(pipeline(), RATES, n_jobs=2, **params).fit(*table)
    reference = GridSearchCV(pipeline(), RATES, **params).fit(*table)
    for name in ("neg_log_loss", "roc_auc"):
        for part in ("train", "test"):
            np.testing.assert_allclose(
                batched.cv_results_[f"mean_{part}_{name}"],
                reference.cv_results_[f"mean_{part}_{name}"],
                atol=1e-4,
            )


def test_precomputed_kernels_are_indexed_in_both_axes(table):
    X = table[0].fillna(0.0).to_numpy()
    kernel, y = X @ X.T, table[1]
    model = make_pipeline(KernelPCA(4, kernel="precomputed"), SafeScaler(), net())
    grid = {"stablenetclassifier__lr": [1e-3, 1e-2]}
    params = {**SCORES, "return_train_score": True}
    batched = BatchedGridSearchCV(model, grid, **params).fit(kernel, y)
    reference = GridSearchCV(model, grid, **params).fit(kernel, y)
    assert_same_results(batched, reference)


class UnpicklableError(Exception):
    """Error that cannot be unpickled, since its arguments differ from its message."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


def raise_for_low_rates(model, X, y):
    if model[-1].lr < 5e-3:
        raise UnpicklableError("too slow", model[-1].lr)
    return 1.0


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_errors_of_a_scorer_are_shown_with_their_traceback(table, n_jobs):
    search = BatchedGridSearchCV(
        pipeline(),
        {"net__lr": [1e-3, 1e-2]},
        scoring=raise_for_low_rates,
        n_jobs=n_jobs,
        cv=2,
    )
    with (
        pytest.warns(UserWarning, match="test scores are non-finite"),
        pytest.warns(UserWarning, match="Scoring failed") as caught,
    ):
        search.fit(*table)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], [np.nan, 1.0])
    messages = [str(w.message) for w in caught if "Scoring failed" in str(w.message)]
    assert len(messages) == 2
    # The traceback names the line in the worker.
    assert 'raise UnpicklableError("too slow", model[-1].lr)' in messages[0]
    assert "too slow: 0.001" in messages[0]
    with pytest.raises(Exception, match=r"too slow: 0\.001") as raised:
        clone(search).set_params(error_score="raise").fit(*table)
    # An error that cannot be pickled is replaced by a RuntimeError.
    assert raised.type is (UnpicklableError if n_jobs is None else RuntimeError)


def raise_key_error(y, predicted):
    raise KeyError("no such measure")


def two_scores(model, X, y):
    return {"accuracy": model.score(X, y), "one": 1.0}


@pytest.mark.parametrize(
    ("rates", "params"),
    [
        (
            [1e-2],
            {"scoring": {"good": "accuracy", "bad": make_scorer(raise_key_error)}},
        ),
        # The second candidate cannot be fitted.
        ([1e-2, -1.0], {"scoring": two_scores, "return_train_score": True}),
        ([1e-2], {"scoring": lambda model, X, y: "a text"}),
        ([1e-2], {"scoring": make_scorer(raise_key_error), "error_score": "raise"}),
    ],
    ids=["one of two raises", "several in one", "a text", "raises"],
)
def test_scores_and_warnings_are_those_of_grid_search(table, rates, params):
    found = []
    for kind in (GridSearchCV, BatchedGridSearchCV):
        search = kind(pipeline(), {"net__lr": rates}, cv=2, refit=False, **params)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                results = search.fit(*table).cv_results_
            except (KeyError, ValueError) as error:
                results = {"error": repr(error)}
        messages = {str(w.message).partition(":")[0] for w in caught}
        found.append((results, messages))
    (reference, expected), (batched, messages) = found
    assert messages == expected
    columns = [n for n in reference if "test_" in n or "train_" in n or n == "error"]
    assert columns
    for name in columns:
        if name == "error":
            assert batched[name] == reference[name]
        else:
            np.testing.assert_allclose(batched[name], reference[name], atol=2e-3)


class CountsJobs(CountsFits):
    """Transformer that records how many jobs it could start."""

    seen: list[int] = []  # noqa: RUF012 - shared by clones

    def fit(self, X, y=None):
        self.seen.append(joblib.effective_n_jobs(None))
        return self


def test_transformers_and_refit_use_the_backend_of_the_caller(numbered):
    CountsJobs.seen.clear()
    model = make_pipeline(CountsJobs(), net())
    with joblib.parallel_config(backend="threading", n_jobs=3):
        BatchedGridSearchCV(
            model, {"stablenetclassifier__lr": [1e-3]}, cv=2, n_jobs=1
        ).fit(*numbered)
        assert joblib.effective_n_jobs(None) == 3
    assert CountsJobs.seen == [3, 3, 3]


class KillsItsWorker(CountsFits):
    """Transformer that kills its process once, unless it is the main process."""

    def __init__(self, marker, home, setting=0):
        self.marker = marker
        self.home = home
        self.setting = setting

    def fit(self, X, y=None):
        if os.getpid() != self.home:
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return self
            os.kill(os.getpid(), signal.SIGKILL)
        return self


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_loses_a_worker_gives_the_same_results(numbered, tmp_path):
    distributed = pytest.importorskip("distributed")
    marker = tmp_path / "killed"
    model = make_pipeline(KillsItsWorker(str(marker), os.getpid()), SafeScaler(), net())
    grid = {"stablenetclassifier__lr": [1e-3, 1e-2, 1e30]}
    alone = BatchedGridSearchCV(model, grid, **SCORES).fit(*numbered)
    assert not marker.exists()
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        distributed_search = BatchedGridSearchCV(model, grid, **SCORES).fit(*numbered)
    assert marker.exists()
    assert_same_results(distributed_search, alone)
    for name in ("n_recoveries", "diverged_at", "effective_lr"):
        np.testing.assert_array_equal(
            distributed_search.cv_results_[name], alone.cv_results_[name], err_msg=name
        )


# -- conventions of scikit-learn -----------------------------------------------------


def test_searches_can_be_pickled_and_cloned(table):
    search = BatchedGridSearchCV(pipeline(), RATES, max_memory=10**9)
    assert clone(search).get_params()["max_memory"] == 10**9
    search.fit(*table)
    again = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(again.predict(table[0]), search.predict(table[0]))
    assert clone(again).fit(*table).best_params_ == search.best_params_


def test_the_results_can_be_a_data_frame(table):
    search = BatchedGridSearchCV(pipeline(), RATES, cv=2).fit(*table)
    results = pd.DataFrame(search.cv_results_)
    assert results["n_recoveries"].tolist() == [0, 0, 0]
    assert results["split1_n_recoveries"].tolist() == [0, 0, 0]
    assert results["diverged_at"].isna().all()
    assert results["effective_lr"].tolist() == RATES["net__lr"]
    assert results["stacked"].dtype == bool


def test_a_subclass_that_overrides_run_search_is_searched_by_scikit_learn(table):
    class OneByOne(BatchedGridSearchCV):
        def _run_search(self, evaluate_candidates):
            for rate in (1e-3, 1e-2):
                evaluate_candidates([{"net__lr": rate}])

    search = OneByOne(pipeline(), RATES, cv=2).fit(*table)
    reference = GridSearchCV(pipeline(), {"net__lr": [1e-3, 1e-2]}, cv=2).fit(*table)
    assert_same_results(search, reference)
    assert "stacked" not in search.cv_results_


def test_verbose_prints_the_lines_of_grid_search(table, capsys):
    printed = []
    for kind in (BatchedGridSearchCV, GridSearchCV):
        kind(pipeline(), RATES, cv=2, verbose=2).fit(*table)
        lines = capsys.readouterr().out.splitlines()
        printed.append([line.partition("total time")[0] for line in lines])
    assert printed[0] == printed[1]


class CountsTasks:
    """Callback of scikit-learn that counts the tasks that ended."""

    max_propagation_depth = None

    def __init__(self):
        self.ended = Counter()

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        self.ended[context.task_name] += 1


def test_callbacks_are_notified_of_every_candidate_and_fold(table):
    callback = CountsTasks()
    search = BatchedGridSearchCV(pipeline(), RATES, cv=2, refit=False)
    search.set_callbacks(callback).fit(*table)
    assert callback.ended["candidate-split-evaluation"] == 6


class CountsRows(CountsTasks):
    """Callback that also counts the training rows of each task."""

    def __init__(self):
        super().__init__()
        self.n_rows = Counter()

    def on_fit_task_begin(self, estimator, context, *, X):
        if context.task_name == "candidate-split-evaluation":
            self.n_rows[len(X)] += 1


def test_callbacks_see_the_rows_of_each_fold(table):
    callback = CountsRows()
    search = BatchedGridSearchCV(pipeline(), RATES, cv=3, refit=False)
    search.set_callbacks(callback).fit(*table)
    assert callback.n_rows == {160: 9}


class RecordsCopies(np.ndarray):
    """Array that records how many rows each indexing copies."""

    copied: list[int] = []  # noqa: RUF012 - shared by views

    def __getitem__(self, key):
        found = super().__getitem__(key)
        if np.ndim(found) == 2 and not np.shares_memory(found, self):
            self.copied.append(len(found))
        return found


def test_candidates_do_not_copy_the_table():
    X = (
        np.random.default_rng(0)
        .normal(size=(300, 3))
        .astype(np.float32)
        .view(RecordsCopies)
    )
    y = (np.asarray(X)[:, 0] > 0).astype(int)
    rates = {"lr": np.logspace(-4, -2, 20)}
    RecordsCopies.copied.clear()
    BatchedGridSearchCV(net(), rates, cv=3, refit=False).fit(X, y)
    # The training rows are copied once for each fold. Test parts have 100 rows.
    assert [n for n in RecordsCopies.copied if n > 100] == [200] * 3


# -- diverged candidates -------------------------------------------------------------


def searched(grid, table, **params):
    """Return a fitted search and its divergence warnings."""
    search = BatchedGridSearchCV(
        pipeline(**params), grid, cv=2, refit=False, scoring="accuracy"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        search.fit(*table)
    return search, [w for w in caught if issubclass(w.category, DivergenceWarning)]


def test_one_warning_summarizes_and_names_a_rescued_best_candidate(table):
    grid = {"net__lr": [1e-5, 1e4, 1e30]}
    search, (warning,) = searched(grid, table)
    results = search.cv_results_
    assert (results["n_recoveries"][1:] >= 2).all()
    assert results["n_recoveries"][0] == 0
    assert results["diverged_at"].tolist()[0] is None
    assert results["diverged_at"].tolist()[1:] == [1, 1]
    assert (results["effective_lr"][1:] < 1e4).all()
    best = search.best_index_
    assert best > 0
    count = results["n_recoveries"][best]
    assert str(warning.message) == (
        "2 of 3 candidates diverged, from net__lr=1e+04 upwards: all were rescued. "
        "See the columns n_recoveries, diverged_at and effective_lr of cv_results_. "
        f"The best candidate is one of them: net__lr={grid['net__lr'][best]:.3g} was "
        f"rescued {count} times and ended at a learning rate of "
        f"{results['effective_lr'][best]:.3g}, so its score does not belong to its "
        "parameters. Search lower learning rates, or choose among the other candidates "
        "with a callable refit."
    )
    assert warning.message.report.epoch == 1
    assert warning.filename == __file__


def test_candidates_that_could_not_be_rescued_are_counted(table):
    grid = {"net__on_nonfinite": ["recover", "raise"], "net__lr": [1e-2, 1e30]}
    search = BatchedGridSearchCV(pipeline(), grid, cv=2, refit=False)
    with (
        pytest.warns(FitFailedWarning),
        pytest.warns(UserWarning, match="test scores are non-finite"),
        pytest.warns(DivergenceWarning) as caught,
    ):
        search.fit(*table)
    (warning,) = [w for w in caught if w.category is DivergenceWarning]
    assert str(warning.message).startswith(
        "2 of 4 candidates diverged, from net__lr=1e+30 upwards: 1 could not be "
        "rescued on every fold. "
    )
    results = search.cv_results_
    failed = [
        params == {"net__on_nonfinite": "raise", "net__lr": 1e30}
        for params in results["params"]
    ]
    assert np.ma.getmaskarray(results["n_recoveries"]).tolist() == failed
    assert np.ma.getmaskarray(results["effective_lr"]).tolist() == failed
    assert results["diverged_at"][failed].tolist() == [1]


def test_the_first_diverged_candidate_is_named(table):
    grid = {"net__optimizer": ["adamw", "sgd"]}
    _, (warning,) = searched(grid, table, lr=1e30)
    assert str(warning.message).startswith(
        "2 of 2 candidates diverged, the first net__optimizer='adamw': all were "
        "rescued. "
    )


class LogNet(nn.Module):
    """Network with a logarithm that is not finite for one row."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.head = nn.Linear(n_features_in, n_outputs)

    def forward(self, x):
        return self.head(x) * torch.log(x[:, :1] + 5)


def test_candidates_that_only_left_out_a_row_have_not_diverged():
    X = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    y = X[:, 0].copy()
    X[9, 0] = -6
    net = StableNetRegressor(LogNet, max_epochs=2, random_state=0)
    search = BatchedGridSearchCV(net, {"lr": [0.01, 0.02]}, cv=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        search.fit(X, y)
    messages = [str(w.message) for w in caught if w.category is DivergenceWarning]
    assert search.cv_results_["effective_lr"].tolist() == [0.01, 0.02]
    assert (
        "2 of 2 candidates had steps that failed and were rescued at the same learning "
        "rate. See the columns n_recoveries, diverged_at and effective_lr of "
        "cv_results_."
    ) in messages


def test_a_search_without_failed_steps_does_not_warn(table):
    assert searched(RATES, table)[1] == []


def test_a_callable_refit_can_exclude_rescued_candidates(table):
    def best_of_the_untouched(results):
        scores = np.where(results["n_recoveries"] == 0, results["mean_test_score"], -1)
        return int(scores.argmax())

    search = BatchedGridSearchCV(
        pipeline(), {"net__lr": [1e-5, 1e30]}, cv=2, refit=best_of_the_untouched
    )
    with pytest.warns(DivergenceWarning) as caught:
        search.fit(*table)
    assert search.best_params_ == {"net__lr": 1e-5}
    assert "best candidate" not in str(caught[0].message)


def test_scorers_in_a_search_of_scikit_learn_can_count_recoveries(table):
    def scores(model, X, y):
        return {
            "accuracy": accuracy_score(y, model.predict(X)),
            "recoveries": len(model[-1].nonfinite_reports_),
        }

    grid = {"net__lr": [1e-3, 1e30]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        reference = GridSearchCV(
            pipeline(), grid, scoring=scores, refit="accuracy", cv=2
        )
        reference.fit(*table)
        batched = BatchedGridSearchCV(pipeline(), grid, cv=2).fit(*table)
    np.testing.assert_array_equal(
        2 * reference.cv_results_["mean_test_recoveries"],
        batched.cv_results_["n_recoveries"],
    )


def test_warnings_of_other_libraries_are_issued_for_each_fold(table):
    class Warns(CountsFits):
        def fit(self, X, y=None):
            warnings.warn("These rows look odd.", UserWarning, stacklevel=2)
            return self

    model = make_pipeline(NaNImputer(), Warns(), SafeScaler(), net())
    search = BatchedGridSearchCV(
        model, {"stablenetclassifier__lr": [1e-3, 1e-2]}, refit=False
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        search.fit(*table)
    assert [str(w.message) for w in caught] == ["These rows look odd."] * 5


def test_names_and_callables_can_be_scorers(table):
    scoring = {
        "accuracy": "accuracy",
        "gain": make_scorer(lambda y, p: float((y == p).sum()), greater_is_better=True),
    }
    batched = BatchedGridSearchCV(
        pipeline(), RATES, scoring=scoring, refit="gain", cv=3
    ).fit(*table)
    assert set(batched.scorer_) == {"accuracy", "gain"}
    assert batched.score(*table) == (batched.predict(table[0]) == table[1]).sum()
