"""Tests of whole workflows: damaged table, pipeline, search, best model elsewhere."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fresh_process import run_script
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import BaggingClassifier, VotingRegressor
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_validate,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder

from sknan import (
    DivergenceWarning,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetRegressor,
)

RATES = [1e-3, 1e-1, 1e4, 1e30]


@pytest.fixture(scope="module")
def damaged():
    """Breast cancer data with missing values, infinities and outliers."""
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    damage = np.random.default_rng(0).random(X.shape)
    X = X.mask(damage < 0.12, X * 1e6).mask(damage < 0.11, np.inf).mask(damage < 0.10)
    return X, y


def pipeline(**params):
    net = StableNetClassifier(max_epochs=15, random_state=0).set_params(**params)
    return Pipeline(
        [
            ("impute", NaNImputer(add_indicator=True, dtype="float32")),
            ("scale", SafeScaler()),
            ("net", net),
        ]
    )


def score(model, X, y):
    net = model[-1]
    return {
        "accuracy": accuracy_score(y, model.predict(X)),
        "recoveries": len(net.nonfinite_reports_),
        "rate": net.effective_lr_,
    }


def search(n_jobs=1, **params):
    return GridSearchCV(
        pipeline(**params),
        {"net__lr": RATES, "net__optimizer": ["adamw", "sgd"]},
        scoring=score,
        refit="accuracy",
        cv=StratifiedKFold(3, shuffle=True, random_state=0),
        n_jobs=n_jobs,
        error_score="raise",
    )


@pytest.fixture(scope="module")
def searched(damaged):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        return search().fit(*damaged)


def test_a_search_with_sensible_and_absurd_learning_rates_gives_no_nan(searched):
    results = pd.DataFrame(searched.cv_results_)
    numbers = results.select_dtypes("number")
    assert np.isfinite(numbers.to_numpy()).all()
    assert searched.best_score_ > 0.93


def test_absurd_candidates_are_recognizable_in_the_results(searched):
    results = pd.DataFrame(searched.cv_results_)
    absurd = results["param_net__lr"].astype(float) >= 1e4
    assert (results.loc[absurd, "mean_test_recoveries"] >= 1).all()
    assert (results.loc[absurd, "mean_test_rate"] < 1e4).all()
    assert (results.loc[absurd, "mean_test_accuracy"] > 0.85).all()
    sensible = results["param_net__lr"].astype(float) == 1e-3
    assert (results.loc[sensible, "mean_test_recoveries"] == 0).all()
    assert np.allclose(results.loc[sensible, "mean_test_rate"], 1e-3)


def test_two_workers_give_bitwise_the_same_results_as_one(searched, damaged):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        other = search(n_jobs=2).fit(*damaged)
    for key, values in searched.cv_results_.items():
        if "_time" not in key and not key.startswith("param"):
            np.testing.assert_array_equal(other.cv_results_[key], values)
    X = damaged[0]
    np.testing.assert_array_equal(other.predict_proba(X), searched.predict_proba(X))


def test_a_search_does_not_change_the_global_generators(damaged):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - this test is about the global generator
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    GridSearchCV(pipeline(max_epochs=2), {"net__lr": [1e-3]}, cv=2).fit(*damaged)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


def test_the_best_model_predicts_the_same_in_another_process(
    searched, damaged, tmp_path
):
    X, _ = damaged
    (tmp_path / "winner.pkl").write_bytes(pickle.dumps(searched.best_estimator_))
    X.to_pickle(tmp_path / "X.pkl")
    np.save(tmp_path / "expected.npy", searched.predict_proba(X))
    script = tmp_path / "script.py"
    script.write_text(
        "import pickle, sys, numpy, pandas\n"
        "with open(sys.argv[1] + '/winner.pkl', 'rb') as file:\n"
        "    model = pickle.load(file)\n"
        "found = model.predict_proba(pandas.read_pickle(sys.argv[1] + '/X.pkl'))\n"
        "expected = numpy.load(sys.argv[1] + '/expected.npy')\n"
        "sys.exit(not numpy.array_equal(found, expected))\n"
    )
    done = run_script(script, tmp_path / "output", tmp_path, action="error")
    assert done == (0, "")


def test_a_search_can_set_parameters_of_the_imputer_and_the_module(damaged):
    found = RandomizedSearchCV(
        pipeline(max_epochs=5),
        {
            "impute__strategy": ["zero", "mean", "median"],
            "net__module__width": [16, 64],
            "net__clip_norm": [0.1, 1.0, None],
            "net__lr_schedule": ["cosine", "one_cycle"],
        },
        n_iter=4,
        cv=2,
        random_state=0,
        error_score="raise",
    ).fit(*damaged)
    assert found.best_score_ > 0.85
    assert set(found.best_params_) == {
        "impute__strategy",
        "net__module__width",
        "net__clip_norm",
        "net__lr_schedule",
    }


def test_an_invalid_candidate_raises_an_error(damaged):
    grid = GridSearchCV(
        pipeline(), {"net__lr": [1e-3, -1.0]}, cv=2, error_score="raise"
    )
    with pytest.raises(ValueError, match="The 'lr' parameter of StableNetClassifier"):
        grid.fit(*damaged)


# -- metadata routing ----------------------------------------------------------------


def test_weights_are_routed_through_pipeline_and_search(damaged):
    X, y = damaged
    weight = np.where(y == 1, 100.0, 1e-3)
    with config_context(enable_metadata_routing=True):
        net = StableNetClassifier(max_epochs=5, random_state=0)
        net.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        model = make_pipeline(NaNImputer(), SafeScaler(), net)
        grid = GridSearchCV(model, {"stablenetclassifier__lr": [1e-2]}, cv=2)
        weighted = grid.fit(X, y, sample_weight=weight).predict(X)
        net.set_fit_request(sample_weight=False)
        plain = clone(grid).fit(X, y).predict(X)
    assert (weighted == 1).mean() > 0.99
    assert 0.5 < (plain == 1).mean() < 0.75


def test_weights_that_were_not_requested_are_refused(damaged):
    X, y = damaged
    with config_context(enable_metadata_routing=True):
        grid = GridSearchCV(StableNetClassifier(), {"lr": [1e-3]}, cv=2)
        with pytest.raises(ValueError, match="sample_weight"):
            grid.fit(X, y, sample_weight=np.ones(len(y)))


def test_partial_fit_has_a_metadata_request():
    with config_context(enable_metadata_routing=True):
        net = StableNetRegressor().set_partial_fit_request(sample_weight=True)
        request = net.get_metadata_routing()
    assert request.partial_fit.requests == {"sample_weight": True}


# -- together with other estimators of scikit-learn ----------------------------------


def test_a_table_of_text_and_numbers():
    table = pd.DataFrame(
        {
            "age": [20.0, np.nan, 40.0, np.inf] * 10,
            "city": ["Rome", None, "Oslo", "Rome"] * 10,
        }
    )
    y = np.tile([1.0, 2.0, 3.0, 4.0], 10)
    text = make_pipeline(NaNImputer(strategy="most_frequent"), OneHotEncoder())
    model = make_pipeline(
        ColumnTransformer(
            [
                ("numbers", NaNImputer(add_indicator=True), ["age"]),
                ("text", text, ["city"]),
            ],
            sparse_threshold=0,
        ),
        SafeScaler(),
        StableNetRegressor(lr=0.01, max_epochs=200, random_state=0),
    )
    # After imputation the second and the fourth row are equal: 0.6 is the maximum.
    assert model.fit(table, y).score(table, y) == pytest.approx(0.6, abs=1e-3)


def test_ensembles_and_target_transformers():
    X, y = load_diabetes(return_X_y=True)
    net = StableNetRegressor(lr=0.01, max_epochs=10, random_state=0)
    model = make_pipeline(SafeScaler(), net)
    voted = VotingRegressor([("a", model), ("b", clone(model))]).fit(X, y)
    np.testing.assert_allclose(voted.predict(X), model.fit(X, y).predict(X), rtol=1e-6)
    logged = TransformedTargetRegressor(model, func=np.log, inverse_func=np.exp)
    assert logged.fit(X, y).score(X, y) > 0.3


def test_bagged_networks_differ(damaged):
    X, y = damaged
    bag = BaggingClassifier(
        pipeline(max_epochs=3, random_state=None), n_estimators=2, random_state=0
    ).fit(X, y)
    first, second = (m.predict_proba(X.to_numpy()) for m in bag.estimators_)
    assert not np.array_equal(first, second)
    assert np.isfinite(bag.predict_proba(X)).all()


def test_cross_validation_with_probabilities(damaged):
    X, y = damaged
    found = cross_val_predict(
        pipeline(max_epochs=5), X, y, cv=3, method="predict_proba"
    )
    assert found.shape == (569, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    scores = cross_validate(
        pipeline(max_epochs=5),
        X,
        y,
        cv=3,
        scoring={"accuracy": make_scorer(accuracy_score), "auc": "roc_auc"},
    )
    assert scores["test_auc"].min() > 0.95
