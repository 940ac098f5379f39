"""Display of range tests and searches over the learning rate."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sknan import (
    BatchedGridSearchCV,
    LearningRateDisplay,
    SafeScaler,
    StableNetClassifier,
    find_learning_rate,
)
from sknan.inspection import LearningRateCurve

X, Y = load_breast_cancer(return_X_y=True)
X = SafeScaler().fit_transform(X).astype(np.float32)[:200]
Y = Y[:200]


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_range_is_drawn_with_its_zones_and_its_suggestion():
    rates = np.geomspace(1e-4, 1e8, 7)
    found = find_learning_rate(
        StableNetClassifier(random_state=0), X, Y, rates=rates, n_steps=20
    )
    display = LearningRateDisplay.from_range(found)
    names = labels_of(display.ax_)
    assert {"stable", "held-out rows", "training rows"} <= set(names)
    assert f"suggestion {found.suggestion:.2g}" in names
    frame = found.to_frame()
    fates = np.array(display.curves[0].fates)
    np.testing.assert_array_equal(fates == "stable", frame["is_stable"])
    ended = frame["ended_at"].notna().to_numpy()
    np.testing.assert_array_equal(fates == "diverged", ended)
    assert ended.any()


def test_a_search_shows_stable_rescued_and_diverged_rates():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = BatchedGridSearchCV(
            StableNetClassifier(max_epochs=6, batch_size=16, random_state=0),
            {"lr": [1e-3, 1e4, 1e8]},
            cv=2,
        ).fit(X, Y)
    display = LearningRateDisplay.from_search(search)
    (curve,) = display.curves
    assert curve.fates == ("stable", "rescued", "rescued")
    np.testing.assert_array_equal(
        curve.effective_lr, search.cv_results_["effective_lr"]
    )
    assert {"stable", "rescued", "rate after recovery"} <= set(labels_of(display.ax_))


def test_a_search_of_scikit_learn_shades_only_rates_without_a_score():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = GridSearchCV(
            make_pipeline(StableNetClassifier(max_epochs=3, on_nonfinite="raise")),
            {"stablenetclassifier__lr": [1e-3, 1e30]},
            cv=2,
        ).fit(X, Y)
    display = LearningRateDisplay.from_search(search)
    assert display.curves[0].fates == ("", "diverged")
    assert {"diverged", "no value", "best 0.001"} <= set(labels_of(display.ax_))
    same = LearningRateDisplay.from_search(search.cv_results_)
    assert same.chosen is None


def results(n_others, metrics=("score",)):
    """Return results of a search over two parameters without scores at lr=10."""
    params = [
        {"lr": lr, "weight_decay": d}
        for lr in (1e-3, 1e-2, 10.0)
        for d in range(n_others)
    ]
    value = np.array(
        [np.nan if p["lr"] > 1 else p["lr"] + p["weight_decay"] for p in params]
    )
    found = {"params": params, "param_lr": None, "param_weight_decay": None}
    for metric in metrics:
        found |= {f"mean_test_{metric}": value, f"std_test_{metric}": 0 * value}
    return found


def test_few_settings_are_styled_and_many_are_gray():
    display = LearningRateDisplay.from_search(results(3))
    assert [curve.name for curve in display.curves] == [
        f"weight_decay={d}" for d in range(3)
    ]
    display = LearningRateDisplay.from_search(results(50))
    assert labels_of(display.ax_) == [
        "diverged",
        "49 others",
        "weight_decay=49",
        "no value",
    ]


def test_the_rate_and_the_metric_are_found_or_must_be_passed():
    two = results(1, ("r2", "mae"))
    display = LearningRateDisplay.from_search(two, metric="mae")
    assert display.value_name == "mean mae on the test folds"
    with pytest.raises(ValueError, match="metric must") as error:
        LearningRateDisplay.from_search(two, metric="auc")
    assert str(error.value) == "metric must be one of 'r2', 'mae', got 'auc'."
    del two["param_lr"]
    with pytest.raises(ValueError, match="Pass param") as error:
        LearningRateDisplay.from_search(two)
    assert str(error.value) == (
        "The search has 0 parameters named lr among 'weight_decay'. Pass param, the "
        "name of the learning rate."
    )
    with pytest.raises(TypeError) as refused:
        LearningRateDisplay.from_search(GridSearchCV(StableNetClassifier(), {}))
    assert str(refused.value) == (
        "from_search draws a fitted search or its cv_results_, and GridSearchCV has no "
        "cv_results_. Fit it first."
    )
    with pytest.raises(TypeError) as refused:
        LearningRateDisplay.from_range(3)
    assert str(refused.value) == (
        "from_range draws a LearningRateRange, as find_learning_rate returns, got int."
    )


def test_a_value_far_from_the_others_is_off_the_scale():
    curve = LearningRateCurve(
        "r2",
        np.array([1e-3, 1e-2, 1e-1, 1.0]),
        np.array([0.7, 0.8, 0.75, -1e9]),
        ("", "", "", ""),
    )
    display = LearningRateDisplay([curve], value_name="r2", greater_is_better=True)
    display.plot()
    assert display.ax_.get_ylim()[0] > -5
    assert "off the scale" in labels_of(display.ax_)


@pytest.mark.parametrize("score", [0.7, 0.0])
def test_equal_scores_are_drawn_on_a_readable_scale(score):
    rates, scores = np.array([1e-3, 1e-2]), score * np.array([1.0, 1.0 + 4e-16])
    curve = LearningRateCurve("r2", rates, scores, ("", ""))
    display = LearningRateDisplay([curve], value_name="r2", greater_is_better=True)
    low, high = display.plot().ax_.get_ylim()
    assert high - low > 1e-3


def test_a_curve_without_any_value_is_drawn():
    fates = ("diverged", "diverged")
    curve = LearningRateCurve("x", np.array([1.0, 2.0]), np.full(2, np.nan), fates)
    display = LearningRateDisplay([curve], value_name="loss").plot()
    assert labels_of(display.ax_) == ["diverged", "x", "no value"]
