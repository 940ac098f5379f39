"""Display of one training, of a few, and of many."""

from __future__ import annotations

import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sknan import (
    DivergenceWarning,
    GuardedNetClassifier,
    SafeScaler,
    StableNetClassifier,
    TabularMLP,
    TrainingDisplay,
)
from sknan.inspection import TrainingCurves

X, Y = load_breast_cancer(return_X_y=True)
X = SafeScaler().fit_transform(X).astype(np.float32)[:200]
Y = Y[:200]


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


def test_a_training_is_drawn_from_its_history(plain):
    display = TrainingDisplay.from_estimator(plain)
    assert [ax.get_ylabel() for ax in display.ax_] == [
        "loss",
        "learning rate",
        "gradient norm",
    ]
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


def test_pipelines_searches_and_skorch_nets_are_drawn(plain):
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


def test_a_few_trainings_differ_without_color():
    display = TrainingDisplay([made(i) for i in range(6)]).plot()
    lines = display.ax_[0].get_lines()
    assert labels_of(display.ax_[0]) == [f"net {i}" for i in range(6)]
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 6


def test_the_legend_of_fifty_trainings_has_three_entries():
    curves = [
        made(i, 5 + i, ((2, "gradient"),) if i % 5 == 0 else ()) for i in range(50)
    ]
    display = TrainingDisplay(curves).plot()
    names = labels_of(display.ax_[0])
    assert names == ["40 trainings", "10 rescued", "median"]


def test_from_estimators_takes_names_or_none(plain, rescued):
    display = TrainingDisplay.from_estimators({"calm": plain, "wild": rescued})
    assert labels_of(display.ax_[0])[:2] == ["calm", "wild"]
    # Only one of the two has held-out rows.
    assert display.ax_[0].get_ylabel() == "training loss"
    display = TrainingDisplay.from_estimators([plain, rescued])
    assert labels_of(display.ax_[0])[:2] == ["0", "1"]


def test_one_epoch_and_an_epoch_without_a_loss_are_drawn():
    curves = TrainingCurves("odd", np.array([np.nan]), recoveries=((1, "data"),) * 3)
    display = TrainingDisplay([curves]).plot()
    assert [text.get_text() for text in display.ax_[0].texts] == ["3x"]
    display.figure_.canvas.draw()


def test_axes_can_be_passed():
    curves = [made(0)]
    _, two = plt.subplots(2)
    assert list(TrainingDisplay(curves).plot(two).ax_) == list(two)
    figure, one = plt.subplots()
    display = TrainingDisplay(curves).plot(one)
    assert display.figure_ is figure
    assert len(display.ax_) == 2
    (ax,) = TrainingDisplay(curves).plot(plt.subplots()[1], panels=["rate"]).ax_
    assert ax.get_ylabel() == "learning rate"
    with pytest.raises(ValueError, match="panels") as error:
        TrainingDisplay(curves).plot(plt.subplots(3)[1])
    assert str(error.value) == (
        "TrainingDisplay.plot has 2 panels, got 3 axes. Pass ax=None, one axes or one "
        "for each panel."
    )


def test_a_training_that_cannot_be_drawn_is_refused():
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
        "panels must be among 'loss', 'rate', the panels with values for these "
        "trainings, got 'score'."
    )
    with pytest.raises(ValueError, match="curves is empty"):
        TrainingDisplay([]).plot()


def test_without_matplotlib_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError) as error:
        TrainingDisplay([made(0)]).plot()
    assert str(error.value) == (
        "TrainingDisplay.plot draws with matplotlib, which is not installed. Install "
        "it: pip install 'sknan[plot]'."
    )


@pytest.mark.parametrize("panels", ["loss", [], 3])
def test_panels_that_are_no_list_are_refused(panels):
    with pytest.raises(ValueError, match="panels") as error:
        TrainingDisplay([made(0)]).plot(panels=panels)
    assert str(error.value) == (
        "The 'panels' parameter of TrainingDisplay must be a list of at least one "
        f"panel, or None, got {panels!r}."
    )


@pytest.mark.parametrize("ax", ["left", 3, [1, 2]])
def test_objects_that_are_no_axes_are_refused(ax):
    with pytest.raises(TypeError) as error:
        TrainingDisplay([made(0)]).plot(ax)
    assert str(error.value) == (
        "The 'ax' parameter of TrainingDisplay.plot must be an Axes of matplotlib, a "
        f"list of them or None, got {ax!r}."
    )
