"""Tests of scikit-learn's callbacks on networks, transformers, pipelines, searches."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback

from sknan import (
    BatchedGridSearchCV,
    NaNImputer,
    NonFiniteDataError,
    SafeScaler,
    StableNetClassifier,
    StableNetRegressor,
)
from sknan.preprocessing import TableCleaner

X, LABELS = make_classification(200, 5, random_state=0)
VALUES = X @ np.arange(1.0, 6.0)
FAST = {"max_epochs": 4, "batch_size": 64, "random_state": 0}

both = pytest.mark.parametrize(
    ("estimator_class", "y"),
    [(StableNetClassifier, LABELS), (StableNetRegressor, VALUES)],
)


def same_weights(first, second):
    weights = [list(model.net_.module_.parameters()) for model in (first, second)]
    return all(map(torch.equal, *weights))


class Listener:
    """Callback of scikit-learn that records every event and its arguments."""

    def __init__(self, stops_after=None):
        self.stops_after = stops_after
        self.events = []
        self.fitted = []

    def setup(self, estimator, context):
        self.events.append(("setup", context.task_name))

    def teardown(self, estimator, context):
        self.events.append(("teardown", context.task_name))

    def on_fit_task_begin(self, estimator, context, *, fitted_estimator=None):
        torch.rand(1)  # must not change the random numbers of the training
        self.events.append(("begin", context.task_name))

    def on_fit_task_end(
        self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator
    ):
        torch.rand(1)
        self.events.append(("end", context.task_name))
        self.given = X, y, metadata
        if context.task_name == "epoch":
            self.fitted.append(fitted_estimator)
        return context.task_name == "epoch" and context.task_id + 1 == self.stops_after

    def count(self, *event):
        return self.events.count(event)


@both
def test_callbacks_of_scikit_learn_are_notified_of_epochs(estimator_class, y, capsys):
    name = "accuracy" if estimator_class is StableNetClassifier else "r2"
    monitor = ScoringMonitor(scoring=name)
    model = estimator_class(**FAST).set_callbacks(ProgressBar(), monitor).fit(X, y)
    scores = monitor.get_logs().data_as_pandas
    assert scores["task_name"].tolist() == ["fit", *["epoch"] * 4]
    assert scores["task_id"].tolist() == [0, 0, 1, 2, 3]
    assert scores[name].iloc[0] == scores[name].iloc[-1] == model.score(X, y)
    assert scores[name].nunique() > 1
    assert f"{estimator_class.__name__} - fit" in capsys.readouterr().out
    assert same_weights(model, estimator_class(**FAST).fit(X, y))


@both
def test_a_callback_gets_a_model_with_the_weights_of_its_epoch(estimator_class, y):
    listener = Listener()
    model = estimator_class(**FAST).set_callbacks(listener).fit(X, y)
    assert listener.events == [
        ("setup", "fit"),
        ("begin", "fit"),
        *[("begin", "epoch"), ("end", "epoch")] * 4,
        ("end", "fit"),
        ("teardown", "fit"),
    ]
    assert listener.given[0] is X
    assert listener.given[1] is y
    for n_epochs, shown in enumerate(listener.fitted, start=1):
        assert (shown.n_iter_, shown.best_epoch_) == (n_epochs, None)
        stopped = estimator_class(**FAST)
        stopped.set_callbacks(Listener(stops_after=n_epochs)).fit(X, y)
        assert stopped.n_iter_ == n_epochs
        assert np.array_equal(shown.predict(X), stopped.predict(X))
        again = pickle.loads(pickle.dumps(shown))
        assert np.array_equal(shown.predict(X), again.predict(X))
    assert same_weights(model, estimator_class(**FAST).fit(X, y))
    assert not hasattr(model, "_callback_fit_ctx")


def test_a_callback_gets_sample_weights():
    listener = Listener()
    weights = np.linspace(0.5, 1.5, 200)
    StableNetRegressor(**FAST).set_callbacks(listener).fit(X, VALUES, weights)
    assert listener.given[2]["sample_weight"] is weights


def test_callbacks_are_notified_of_the_epoch_that_stops_early():
    listener = Listener()
    model = StableNetRegressor(
        early_stopping=True, n_iter_no_change=2, lr=1e-12, max_epochs=50, random_state=0
    ).set_callbacks(listener)
    model.fit(X, np.random.default_rng(0).normal(size=200))
    assert model.n_iter_ < 50
    assert listener.count("begin", "epoch") == model.n_iter_
    assert listener.count("end", "epoch") == model.n_iter_


class Interrupt(Callback):
    """Callback of skorch that interrupts the second epoch like Ctrl-C."""

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == 2:
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:Training was interrupted")
def test_callbacks_are_notified_of_the_end_of_an_interrupted_epoch():
    listener = Listener()
    model = StableNetRegressor(callbacks=[Interrupt()], **FAST)
    model.set_callbacks(listener).fit(X, VALUES)
    assert listener.count("begin", "epoch") == listener.count("end", "epoch") == 2
    assert listener.events[-2:] == [("end", "fit"), ("teardown", "fit")]


def test_callbacks_are_torn_down_if_fit_raises():
    listener = Listener()
    with_nan = X.copy()
    with_nan[3, 1] = np.nan
    model = StableNetRegressor(**FAST).set_callbacks(listener)
    with pytest.raises(NonFiniteDataError):
        model.fit(with_nan, VALUES)
    assert listener.events == [
        ("setup", "fit"),
        ("begin", "fit"),
        ("teardown", "fit"),
    ]


def test_callbacks_are_cloned_and_can_be_removed():
    listener = Listener()
    model = StableNetRegressor(**FAST).set_callbacks(listener)
    clone(model).fit(X, VALUES)
    assert listener.count("end", "epoch") == 4
    model.set_callbacks().fit(X, VALUES)
    assert listener.count("end", "epoch") == 4


def test_a_pipeline_passes_its_callbacks_on(capsys):
    monitor = ScoringMonitor(scoring="accuracy")
    net = StableNetClassifier(**FAST).set_callbacks(monitor)
    make_pipeline(StandardScaler(), net).set_callbacks(
        ProgressBar(max_propagation_depth=None)
    ).fit(X, LABELS)
    shown = capsys.readouterr().out
    assert "Pipeline - fit" in shown
    assert "StableNetClassifier - fit" in shown
    scores = monitor.get_logs().data_as_pandas
    assert scores["task_name"].tolist().count("epoch") == 4


@pytest.mark.parametrize("step", [NaNImputer, SafeScaler, TableCleaner])
def test_the_fit_of_a_transformer_is_a_task(step):
    listener = Listener()
    transformed = step().set_callbacks(listener).fit_transform(X)
    assert listener.events == [
        ("setup", "fit"),
        ("begin", "fit"),
        ("end", "fit"),
        ("teardown", "fit"),
    ]
    assert listener.given[0] is X
    assert np.array_equal(transformed, step().fit_transform(X))
    step().set_callbacks(listener).fit(X)
    assert listener.count("end", "fit") == 2
    with pytest.raises(ValueError, match="0 sample"):
        step().set_callbacks(listener).fit(X[:0])
    assert listener.events[-3:] == [
        ("setup", "fit"),
        ("begin", "fit"),
        ("teardown", "fit"),
    ]


def test_a_bar_of_a_pipeline_shows_each_step(capsys):
    net = StableNetClassifier(**FAST)
    make_pipeline(NaNImputer(), SafeScaler(), net).set_callbacks(
        ProgressBar(max_propagation_depth=None)
    ).fit(X, LABELS)  # a step without support for callbacks would warn
    shown = capsys.readouterr().out
    for step in ("NaNImputer", "SafeScaler", "StableNetClassifier"):
        assert f"{step} - fit" in shown


def test_callbacks_are_notified_in_workers_of_grid_search(capsys):
    monitor = ScoringMonitor(scoring="accuracy")
    net = StableNetClassifier(**FAST).set_callbacks(monitor)
    search = GridSearchCV(net, {"lr": [1e-3, 1e-2]}, cv=2, n_jobs=2)
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X, LABELS)
    scores = monitor.get_logs().data_as_pandas
    assert scores["task_name"].tolist().count("epoch") == 4 * (2 * 2 + 1)
    assert "GridSearchCV - fit" in capsys.readouterr().out


def test_networks_with_callbacks_are_not_stacked(capsys):
    monitor = ScoringMonitor(scoring="accuracy")
    net = StableNetClassifier(**FAST)
    rates = {"lr": [1e-3, 1e-2]}
    silent = BatchedGridSearchCV(net, rates, cv=2).fit(X, LABELS)
    search = BatchedGridSearchCV(clone(net).set_callbacks(monitor), rates, cv=2)
    search.set_callbacks(ProgressBar()).fit(X, LABELS)
    assert "BatchedGridSearchCV - fit" in capsys.readouterr().out
    assert silent.cv_results_["stacked"].all()
    assert not search.cv_results_["stacked"].any()
    for name in ("mean_test_score", "params"):
        assert list(search.cv_results_[name]) == list(silent.cv_results_[name])
    logs = monitor.get_logs(select="all")
    n_epochs = [log.data_as_pandas["task_name"].eq("epoch").sum() for log in logs]
    assert sum(n_epochs) == 4 * (2 * 2 + 1)


def test_a_batched_search_accepts_a_progress_bar(capsys):
    search = BatchedGridSearchCV(StableNetClassifier(**FAST), {"lr": [1e-3, 1e-2]})
    search.set_callbacks(ProgressBar()).fit(X, LABELS)
    assert search.cv_results_["stacked"].all()
    shown = capsys.readouterr().out
    assert "BatchedGridSearchCV - fit" in shown
    assert "StableNetClassifier - fit" in shown


class ReadsParameters(Callback):
    """Callback of skorch that reads all parameters, as a logger may."""

    def on_epoch_end(self, net, **kwargs):
        self.params = net.get_params()


def test_a_callback_may_read_parameters_during_training():
    callback = ReadsParameters()
    model = StableNetRegressor(callbacks=[callback], **FAST)
    model.set_callbacks(Listener()).fit(X, VALUES)
    assert callback.params["max_epochs"] == 4


def test_partial_fit_does_not_notify_callbacks():
    listener = Listener()
    StableNetRegressor(**FAST).set_callbacks(listener).partial_fit(X, VALUES)
    assert listener.events == []
