"""Pictures: what they are made of, what they show, and what they refuse."""

from __future__ import annotations

import sys
import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sknan import (
    AuditDisplay,
    BatchedGridSearchCV,
    DivergenceWarning,
    GuardedNetClassifier,
    LearningRateDisplay,
    SafeScaler,
    StableNetClassifier,
    TabularMLP,
    TrainingDisplay,
    audit,
    find_learning_rate,
)
from sknan.inspection import LearningRateCurve, TrainingCurves

mpl.use("Agg")
import matplotlib.pyplot as plt

X, Y = load_breast_cancer(return_X_y=True)
X = SafeScaler().fit_transform(X).astype(np.float32)[:200]
Y = Y[:200]


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def fitted(**params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        settings = {"max_epochs": 6, "random_state": 0, **params}
        return StableNetClassifier(**settings).fit(X, Y)


@pytest.fixture(scope="module")
def plain():
    return fitted(early_stopping=True)


@pytest.fixture(scope="module")
def rescued():
    return fitted(lr=1e4)


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def made(number, n_epochs=10, recoveries=()):
    loss = np.exp(-np.arange(n_epochs) / (number + 1)) + 0.1
    return TrainingCurves(f"net {number}", loss, lr=loss / 100, recoveries=recoveries)


# -- trainings -----------------------------------------------------------------------


def test_a_training_shows_what_its_history_holds(plain):
    display = TrainingDisplay.from_estimator(plain)
    assert [ax.get_ylabel() for ax in display.ax_] == ["loss", "rate", "gradient norm"]
    assert labels_of(display.ax_[0]) == ["training", "validation", "best epoch"]
    (training, validation, best) = display.ax_[0].get_lines()
    np.testing.assert_array_equal(
        training.get_ydata(), plain.net_.history[:, "train_loss"]
    )
    np.testing.assert_array_equal(
        validation.get_ydata(), plain.net_.history[:, "valid_loss"]
    )
    assert list(best.get_xdata()) == [plain.best_epoch_]
    np.testing.assert_array_equal(
        display.ax_[1].get_lines()[0].get_ydata(), plain.net_.history[:, "lr"]
    )
    assert display.figure_ is display.ax_[0].figure
    assert [text.get_text() for text in display.ax_[2].texts] == ["clip_norm=1"]


def test_each_recovery_is_marked_with_its_cause(rescued):
    curves = TrainingCurves.of(rescued)
    assert curves.recoveries
    assert {cause for _, cause in curves.recoveries} == {"learning_rate"}
    display = TrainingDisplay.from_estimator(rescued)
    assert "recovery: learning rate" in labels_of(display.ax_[0])
    epochs = {epoch for epoch, _ in curves.recoveries}
    for ax in display.ax_:
        dotted = [line for line in ax.get_lines() if line.get_linestyle() == ":"]
        assert {int(line.get_xdata()[0]) for line in dotted} == epochs


def test_a_pipeline_a_search_and_a_skorch_net_are_understood(plain):
    model = make_pipeline(SafeScaler(), StableNetClassifier(max_epochs=2)).fit(X, Y)
    assert len(TrainingCurves.of(model).epochs) == 2
    search = GridSearchCV(StableNetClassifier(max_epochs=2), {"lr": [1e-3]}, cv=2)
    assert len(TrainingCurves.of(search.fit(X, Y)).epochs) == 2
    net = GuardedNetClassifier(
        TabularMLP,
        module__n_features_in=X.shape[1],
        module__n_outputs=2,
        criterion=torch.nn.CrossEntropyLoss,
        max_epochs=3,
        verbose=0,
    )
    net.fit(X, Y.astype(np.int64))
    display = TrainingDisplay.from_estimator(net)
    assert [ax.get_ylabel() for ax in display.ax_][:2] == ["loss", "valid_acc"]


def test_a_few_trainings_are_told_apart_without_colour():
    display = TrainingDisplay([made(i) for i in range(6)]).plot()
    lines = display.ax_[0].get_lines()
    assert labels_of(display.ax_[0]) == [f"net {i}" for i in range(6)]
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 6


def test_fifty_trainings_are_three_words_in_the_legend():
    curves = [
        made(i, 5 + i, ((2, "gradient"),) if i % 5 == 0 else ()) for i in range(50)
    ]
    display = TrainingDisplay(curves).plot()
    names = labels_of(display.ax_[0])
    assert names == ["40 trainings", "10 rescued", "median"]


def test_from_estimators_takes_names_or_none(plain, rescued):
    display = TrainingDisplay.from_estimators({"calm": plain, "wild": rescued})
    assert labels_of(display.ax_[0])[:2] == ["calm", "wild"]
    # One of the two has held no rows out.
    assert display.ax_[0].get_ylabel() == "training loss"
    display = TrainingDisplay.from_estimators([plain, rescued])
    assert labels_of(display.ax_[0])[:2] == ["0", "1"]


def test_one_epoch_and_an_epoch_without_a_loss_are_drawn():
    curves = TrainingCurves("odd", np.array([np.nan]), recoveries=((1, "data"),) * 3)
    display = TrainingDisplay([curves]).plot()
    assert [text.get_text() for text in display.ax_[0].texts] == ["3x"]
    display.figure_.canvas.draw()


def test_axes_may_be_given():
    curves = [made(0)]
    _, two = plt.subplots(2)
    assert list(TrainingDisplay(curves).plot(two).ax_) == list(two)
    figure, one = plt.subplots()
    display = TrainingDisplay(curves).plot(one)
    assert display.figure_ is figure
    assert len(display.ax_) == 2
    (ax,) = TrainingDisplay(curves).plot(plt.subplots()[1], panels=["rate"]).ax_
    assert ax.get_ylabel() == "rate"
    with pytest.raises(ValueError, match="panels") as error:
        TrainingDisplay(curves).plot(plt.subplots(3)[1])
    assert str(error.value) == (
        "TrainingDisplay.plot has 2 panels, got 3 axes. Pass ax=None, one axes or one "
        "for each panel."
    )


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(TypeError) as error:
        TrainingDisplay.from_estimator(LogisticRegression())
    assert str(error.value) == (
        "Expected a StableNet or GuardedNet estimator, or a pipeline or fitted search "
        "that ends in one, got LogisticRegression."
    )
    with pytest.raises(NotFittedError):
        TrainingDisplay.from_estimator(StableNetClassifier())
    with pytest.raises(ValueError, match="panels must be") as error:
        TrainingDisplay([made(0)]).plot(panels=["score"])
    assert str(error.value) == (
        "panels must be some of 'loss', 'rate', which is known of these trainings, got "
        "'score'."
    )
    with pytest.raises(ValueError, match="curves is empty"):
        TrainingDisplay([]).plot()


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError) as error:
        TrainingDisplay([made(0)]).plot()
    assert str(error.value) == (
        "TrainingDisplay.plot draws with matplotlib, which is not installed. Install "
        "it: pip install 'sknan[plot]'."
    )


# -- learning rates ------------------------------------------------------------------


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


def test_a_search_tells_rescued_from_stable_and_from_diverged():
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
    assert {"stable", "rescued", "rate it went on with"} <= set(labels_of(display.ax_))


def test_the_search_of_scikit_learn_shades_only_what_has_no_score():
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
    """As of a search over rates and another parameter, in which the highest failed."""
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


def test_few_settings_are_curves_and_many_are_grey():
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


def test_the_rate_and_the_metric_are_found_or_asked_for():
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


def test_a_value_far_off_leaves_the_others_legible():
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


def test_a_curve_without_any_value_is_drawn():
    fates = ("diverged", "diverged")
    curve = LearningRateCurve("x", np.array([1.0, 2.0]), np.full(2, np.nan), fates)
    display = LearningRateDisplay([curve], value_name="loss").plot()
    assert labels_of(display.ax_) == ["diverged", "x", "no value"]


# -- tables --------------------------------------------------------------------------


def test_an_audit_shows_shares_and_scales():
    frame = pd.DataFrame({"a$b$": np.arange(1.0, 41.0), "t": list("xy") * 20})
    frame.loc[:9, "a$b$"] = np.nan
    frame.loc[10, "a$b$"] = np.inf
    display = AuditDisplay.from_data(frame)
    shares, scales = display.ax_
    assert labels_of(shares) == ["missing", "infinite"]
    widths = [bar.get_width() for bar in shares.patches]
    np.testing.assert_allclose(widths, [0.25, 0.0, 1 / 40, 0.0])
    texts = [text.get_text() for text in scales.texts]
    assert texts == ["text, 2 different"]
    assert shares.get_yticklabels()[0].get_text() == r"✖ a\$b\$"
    display.figure_.canvas.draw()


def test_all_values_of_columns_of_very_different_scales_are_on_the_picture():
    frame = pd.DataFrame(
        {"s": np.linspace(1e-3, 2e-3, 30), "h": np.geomspace(1, 1e30, 30)}
    )
    frame["n"] = -frame["h"]
    low, high = AuditDisplay.from_data(frame).ax_[1].get_xlim()
    assert low < -1e30
    assert high > 1e30


def test_where_nothing_is_missing_the_picture_says_so():
    shares, _ = AuditDisplay.from_data(pd.DataFrame({"a": [1.0, 2.0, 3.0]})).ax_
    assert shares.texts[-1].get_text() == "no cell is missing"
    assert not len(shares.get_yticks())


def test_of_a_wide_table_the_worst_columns_are_shown():
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 40)))
    table.loc[:3, 37] = np.nan
    display = AuditDisplay.from_audit(audit(table), max_columns=5)
    names = [label.get_text() for label in display.ax_[0].get_yticklabels()]
    assert len(names) == 5
    assert "✖ 37" in names
    assert "35 columns with less to say are left out" in display.ax_[1].get_xlabel()


def test_a_table_without_columns_is_refused():
    with pytest.raises(ValueError, match="no columns"):
        AuditDisplay.from_data(pd.DataFrame(index=range(3)))
