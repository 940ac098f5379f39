"""Bars in a real terminal, and scikit-learn's callbacks."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import sys
import threading
import time

import joblib
import numpy as np
import pandas as pd
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
    BackupAndRestore,
    BatchedGridSearchCV,
    DivergenceWarning,
    NaNImputer,
    NonFiniteDataError,
    SafeScaler,
    StableNetClassifier,
    StableNetRegressor,
    audit,
    find_learning_rate,
)
from sknan._utils.progress import (
    advance,
    advance_to,
    call_in_workers,
    is_shown,
    progress,
)
from sknan.preprocessing import TableCleaner

X, LABELS = make_classification(200, 5, random_state=0)
VALUES = X @ np.arange(1.0, 6.0)
MANY, LABELS_OF_MANY = make_classification(6000, 30, random_state=0)
FAST = {"max_epochs": 4, "batch_size": 64, "random_state": 0}

both = pytest.mark.parametrize(
    ("door", "y"), [(StableNetClassifier, LABELS), (StableNetRegressor, VALUES)]
)


class Terminal:
    """A pseudo-terminal in the place of stderr, and what has been shown in it."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.pieces = []

    def open(self):
        # In the test: pytest puts its own stream in place between the phases.
        pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
        termios = pytest.importorskip("termios")
        source, sink = pty.openpty()
        termios.tcsetwinsize(sink, (24, 120))
        self.stream = os.fdopen(sink, "w", encoding="utf-8")
        threading.Thread(target=self._read, args=(source,), daemon=True).start()
        self.monkeypatch.setattr(sys, "stderr", self.stream)

    def _read(self, source):
        # A terminal that nobody has open any more is an error to read from.
        with contextlib.suppress(OSError):
            while piece := os.read(source, 4096):
                self.pieces.append(piece)
        os.close(source)

    @property
    def lines(self):
        """All that has come through, each state of a bar as a line."""
        self.stream.flush()
        time.sleep(0.1)
        text = b"".join(self.pieces).decode()
        return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.fixture
def terminal(monkeypatch):
    shown = Terminal(monkeypatch)
    yield shown
    shown.stream.close()


class Slow(Callback):
    """Make an epoch last."""

    def __init__(self, seconds=0.3):
        self.seconds = seconds

    def on_epoch_end(self, net, **kwargs):
        time.sleep(self.seconds)


def weights_of(model):
    return [w.detach().clone() for w in model.net_.module_.parameters()]


def same_weights(one, other):
    return all(map(torch.equal, weights_of(one), weights_of(other)))


# -- bars ----------------------------------------------------------------------------


def test_a_fit_shows_loss_rate_and_recoveries(terminal):
    terminal.open()
    model = StableNetClassifier(lr=1e4, verbose=1, callbacks=[Slow()], **FAST)
    with pytest.warns(DivergenceWarning):
        model.set_params(max_epochs=6).fit(X, LABELS)
    last = terminal.lines[-1]
    row = model.net_.history[-1]
    n_recoveries = len(model.nonfinite_reports_)
    assert n_recoveries
    assert last.startswith("Training: 100%|")
    assert "6/6 epochs [00:0" in last
    assert last.endswith(
        f"train_loss={row['train_loss']:.3g}, lr={row['lr']:.3g}, "
        f"recoveries={n_recoveries}]"
    )


def test_a_training_that_stops_early_ends_at_a_full_bar(terminal):
    terminal.open()
    model = StableNetRegressor(
        lr=1e-12,
        early_stopping=True,
        n_iter_no_change=3,
        max_epochs=50,
        verbose=1,
        callbacks=[Slow()],
        random_state=0,
    ).fit(X, np.random.default_rng(0).normal(size=200))
    assert model.n_iter_ < 50
    last = terminal.lines[-1]
    assert last.startswith("Training: 100%|")
    assert f"{model.n_iter_}/{model.n_iter_} epochs" in last
    assert "valid_loss=" in last


class Break(Callback):
    """Break the training off."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 3:
            raise RuntimeError("no power")


def test_a_training_that_is_resumed_begins_where_it_was(terminal, tmp_path):
    terminal.open()
    backup = BackupAndRestore(tmp_path / "backup")
    model = StableNetRegressor(callbacks=[Break(), backup], **FAST)
    model.set_params(max_epochs=9)
    with pytest.raises(RuntimeError, match="no power"):
        model.fit(X, VALUES)
    model.set_params(callbacks=[Slow(), backup], verbose=1).fit(X, VALUES)
    counted = [int(re.search(r"(\d+)/9 epochs", line)[1]) for line in terminal.lines]
    assert min(counted) > 4  # the first second shows none
    assert max(counted) == 9


def test_what_takes_less_than_a_second_shows_nothing(terminal):
    terminal.open()
    StableNetClassifier(verbose=1, **FAST).fit(X, LABELS)
    assert terminal.lines == []


def test_verbose_0_shows_nothing(terminal):
    terminal.open()
    slow = {"callbacks": [Slow()], **FAST}
    StableNetClassifier(**slow).fit(X, LABELS)
    StableNetClassifier(verbose=1, **slow).partial_fit(X, LABELS, classes=[0, 1])
    assert terminal.lines == []


def test_a_log_stays_empty(capfd):
    StableNetClassifier(verbose=1, callbacks=[Slow()], **FAST).fit(X, LABELS)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@both
def test_a_bar_changes_no_bit(terminal, door, y):
    terminal.open()
    shown = door(verbose=1, callbacks=[Slow()], **FAST).fit(X, y)
    assert terminal.lines
    silent = door(callbacks=[Slow(0.0)], **FAST).fit(X, y)
    assert same_weights(shown, silent)
    assert shown.net_.history[:, "train_loss"] == silent.net_.history[:, "train_loss"]
    assert [name for name, _ in shown.net_.callbacks_] == [
        name for name, _ in silent.net_.callbacks_
    ]


def test_a_range_test_shows_its_steps(terminal):
    terminal.open()
    net = StableNetClassifier(random_state=0)
    found = find_learning_rate(net, MANY, LABELS_OF_MANY, verbose=1)
    lines = terminal.lines
    assert re.fullmatch(
        r"Range test: 100%\|█+\| 400/400 steps \[00:\d\d<00:00, train_loss=\S+, "
        r"lr=\S+\]",
        lines[-1],
    )
    silent = find_learning_rate(net, MANY, LABELS_OF_MANY)
    assert len(terminal.lines) == len(lines)
    assert np.array_equal(found.losses, silent.losses, equal_nan=True)


def test_lr_auto_shows_the_range_test_too(terminal):
    terminal.open()
    model = StableNetClassifier(lr="auto", verbose=1, callbacks=[Slow()], **FAST)
    model.fit(MANY, LABELS_OF_MANY)
    kinds = {line.split(":")[0] for line in terminal.lines}
    assert kinds == {"Range test", "Training"}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_search_counts_its_fits_in_all_workers(terminal, capsys, n_jobs):
    terminal.open()
    rates = {"lr": [1e-3, 1e-2, 1e4]}
    net = StableNetClassifier(max_epochs=15, early_stopping=True, random_state=0)
    search = BatchedGridSearchCV(net, rates, cv=3, refit=False, n_jobs=n_jobs)
    with pytest.warns(DivergenceWarning):
        shown = clone(search).set_params(verbose=1).fit(MANY, LABELS_OF_MANY)
    lines = terminal.lines
    n_recoveries = int(shown.cv_results_["n_recoveries"].sum())
    assert n_recoveries
    assert re.fullmatch(
        r"Search: 100%\|█+\| 9/9 fits \[00:\d\d<00:00, train_loss=\S+, lr=\S+, "
        rf"recoveries={n_recoveries}\]",
        lines[-1],
    )
    counted = [int(re.search(r"(\d+)/9 fits", line)[1]) for line in lines]
    if n_jobs == 1:
        assert len(set(counted)) > 2  # each fit advances the bar
    else:
        assert counted[0] == 0  # shown at once; each worker advances it when it is done
    assert capsys.readouterr().out.startswith("Fitting 3 folds for each of 3 cand")
    with pytest.warns(DivergenceWarning):
        silent = search.fit(MANY, LABELS_OF_MANY)
    assert len(terminal.lines) == len(lines)
    for name in ("mean_test_score", "stacked", "n_recoveries"):
        assert np.array_equal(shown.cv_results_[name], silent.cv_results_[name])


def test_networks_with_a_bar_are_stacked_all_the_same(terminal):
    terminal.open()
    net = StableNetClassifier(verbose=1, **FAST)
    search = BatchedGridSearchCV(net, {"lr": [1e-3, 1e-2]}, cv=2, refit=False)
    assert search.fit(X, LABELS).cv_results_["stacked"].all()
    search.set_params(estimator__verbose=0).fit(X, LABELS)
    assert search.cv_results_["stacked"].all()


def test_an_audit_counts_its_columns(terminal):
    terminal.open()
    rng = np.random.default_rng(0)
    words = np.array([f"word {i}" for i in range(20_000)])
    frame = pd.DataFrame({f"c{i}": rng.choice(words, 60_000) for i in range(12)})
    found = audit(frame, verbose=1)
    lines = terminal.lines
    assert re.fullmatch(r"Audit: 100%\|█+\| 12/12 columns \[00:\d\d<00:00\]", lines[-1])
    assert str(audit(frame)) == str(found)
    assert len(terminal.lines) == len(lines)


def test_a_block_inside_a_block_with_a_bar_has_none(terminal):
    terminal.open()
    with progress("Outer", 2, "halves", verbose=1):
        assert is_shown()
        with progress("Inner", 5, "fifths", verbose=1):
            assert not is_shown()
            advance(5)
        time.sleep(1.1)
        advance(0.5, 4, loss=0.5)
        advance_to(2)
    assert {line.split(":")[0] for line in terminal.lines} == {"Outer"}
    assert terminal.lines[-1].endswith(
        "2/2 halves [00:01<00:00, loss=0.5, recoveries=4]"
    )


def test_a_block_that_raises_leaves_the_bar_where_it_was(terminal):
    terminal.open()

    def half_done():
        with progress("Half", 2, "halves", verbose=1):
            time.sleep(1.1)
            advance(1)
            raise RuntimeError("too hard")

    with pytest.raises(RuntimeError, match="too hard"):
        half_done()
    assert terminal.lines[-1].startswith("Half:  50%|")
    assert not is_shown()


def two_steps(name):
    advance(1, 1, loss=0.25)
    time.sleep(0.6)
    advance(1, 1)
    return name, is_shown()


@pytest.mark.parametrize("backend", ["sequential", "threading", "loky", "no generator"])
def test_calls_in_workers_advance_the_bar(terminal, backend):
    if backend == "no generator":
        joblib.register_parallel_backend(backend, AtTheEnd)
    terminal.open()
    with (
        joblib.parallel_config(backend),
        progress("Steps", 4, "steps", verbose=1),
    ):
        found = call_in_workers(two_steps, [("a",), ("b",)], n_jobs=2)
    assert found == [("a", True), ("b", True)]
    lines = terminal.lines
    assert "| 4/4 steps [00:0" in lines[-1]
    assert lines[-1].endswith("loss=0.25, recoveries=4]")
    is_here = backend == "sequential"
    assert ("0/4 steps" in lines[0]) != is_here  # elsewhere it is drawn at once
    assert not is_shown()


class AtTheEnd(joblib.parallel.ThreadingBackend):
    """Backend that cannot return results one by one, as those of older libraries."""

    supports_return_generator = False


def test_calls_in_workers_without_a_bar_count_nothing():
    found = call_in_workers(two_steps, [("a",), ("b",)], n_jobs=2)
    assert found == [("a", False), ("b", False)]


NOTEBOOK = """
import time
from sklearn.datasets import load_iris
from skorch.callbacks import Callback
from sknan import StableNetClassifier
class Slow(Callback):
    def on_epoch_end(self, net, **kwargs):
        time.sleep(0.3)
net = StableNetClassifier(max_epochs=5, callbacks=[Slow()], verbose=VERBOSE)
net.fit(*load_iris(return_X_y=True));
"""


@pytest.mark.parametrize("verbose", [0, 1])
def test_a_notebook_shows_a_bar_of_its_own(verbose):
    for package in ("ipykernel", "ipywidgets"):
        pytest.importorskip(package, reason=f"the package {package} is missing")
    nbclient = pytest.importorskip("nbclient", reason="the package nbclient is missing")
    nbformat = pytest.importorskip("nbformat")
    code = NOTEBOOK.replace("VERBOSE", str(verbose))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook = nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert len(outputs) == verbose
    for output in outputs:
        assert "application/vnd.jupyter.widget-view+json" in output["data"]
        text = output["data"]["text/plain"]
        assert text.startswith("Training:")
        assert "train_loss=" in text


# -- scikit-learn's callbacks --------------------------------------------------------


class Listener:
    """Hears of every task, and keeps what it is shown."""

    def __init__(self, stops_after=None):
        self.stops_after = stops_after
        self.events = []
        self.fitted = []

    def setup(self, estimator, context):
        self.events.append(("setup", context.task_name))

    def teardown(self, estimator, context):
        self.events.append(("teardown", context.task_name))

    def on_fit_task_begin(self, estimator, context, *, fitted_estimator=None):
        torch.rand(1)  # must not change what is drawn in the training
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
def test_scikit_learns_own_callbacks_follow_the_epochs(door, y, capsys):
    name = "accuracy" if door is StableNetClassifier else "r2"
    monitor = ScoringMonitor(scoring=name)
    model = door(**FAST).set_callbacks(ProgressBar(), monitor).fit(X, y)
    scores = monitor.get_logs().data_as_pandas
    assert scores["task_name"].tolist() == ["fit", *["epoch"] * 4]
    assert scores["task_id"].tolist() == [0, 0, 1, 2, 3]
    assert scores[name].iloc[0] == scores[name].iloc[-1] == model.score(X, y)
    assert scores[name].nunique() > 1
    assert f"{door.__name__} - fit" in capsys.readouterr().out
    assert same_weights(model, door(**FAST).fit(X, y))


@both
def test_a_callback_is_shown_a_model_that_predicts_as_in_its_epoch(door, y):
    listener = Listener()
    model = door(**FAST).set_callbacks(listener).fit(X, y)
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
        alone = door(**FAST).set_callbacks(Listener(stops_after=n_epochs)).fit(X, y)
        assert alone.n_iter_ == n_epochs
        assert np.array_equal(shown.predict(X), alone.predict(X))
        again = pickle.loads(pickle.dumps(shown))
        assert np.array_equal(shown.predict(X), again.predict(X))
    assert same_weights(model, door(**FAST).fit(X, y))
    assert not hasattr(model, "_callback_fit_ctx")


def test_weights_of_rows_are_shown_too():
    listener = Listener()
    weights = np.linspace(0.5, 1.5, 200)
    StableNetRegressor(**FAST).set_callbacks(listener).fit(X, VALUES, weights)
    assert listener.given[2]["sample_weight"] is weights


def test_an_epoch_that_ends_the_training_is_told_of():
    listener = Listener()
    model = StableNetRegressor(
        early_stopping=True, n_iter_no_change=2, lr=1e-12, max_epochs=50, random_state=0
    ).set_callbacks(listener)
    model.fit(X, np.random.default_rng(0).normal(size=200))
    assert model.n_iter_ < 50
    assert listener.count("begin", "epoch") == model.n_iter_
    assert listener.count("end", "epoch") == model.n_iter_


class Interrupt(Callback):
    """Press Ctrl-C in the second epoch."""

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == 2:
            raise KeyboardInterrupt


def test_an_epoch_that_is_broken_off_has_an_end():
    listener = Listener()
    model = StableNetRegressor(callbacks=[Interrupt()], **FAST)
    model.set_callbacks(listener).fit(X, VALUES)
    assert listener.count("begin", "epoch") == listener.count("end", "epoch") == 2
    assert listener.events[-2:] == [("end", "fit"), ("teardown", "fit")]


def test_a_fit_that_raises_tears_its_callbacks_down():
    listener = Listener()
    holed = X.copy()
    holed[3, 1] = np.nan
    model = StableNetRegressor(**FAST).set_callbacks(listener)
    with pytest.raises(NonFiniteDataError):
        model.fit(holed, VALUES)
    assert listener.events == [
        ("setup", "fit"),
        ("begin", "fit"),
        ("teardown", "fit"),
    ]


def test_callbacks_go_with_a_clone_and_can_be_taken_off():
    listener = Listener()
    model = StableNetRegressor(**FAST).set_callbacks(listener)
    clone(model).fit(X, VALUES)
    assert listener.count("end", "epoch") == 4
    model.set_callbacks().fit(X, VALUES)
    assert listener.count("end", "epoch") == 4


def test_a_pipeline_hands_its_bar_on(capsys):
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
def test_a_step_of_preparation_is_a_task(step):
    listener = Listener()
    told = step().set_callbacks(listener).fit_transform(X)
    assert listener.events == [
        ("setup", "fit"),
        ("begin", "fit"),
        ("end", "fit"),
        ("teardown", "fit"),
    ]
    assert listener.given[0] is X
    assert np.array_equal(told, step().fit_transform(X))
    step().set_callbacks(listener).fit(X)
    assert listener.count("end", "fit") == 2
    with pytest.raises(ValueError, match="0 sample"):
        step().set_callbacks(listener).fit(X[:0])
    assert listener.events[-3:] == [
        ("setup", "fit"),
        ("begin", "fit"),
        ("teardown", "fit"),
    ]


def test_a_bar_on_a_pipeline_shows_each_step_of_ours(capsys):
    net = StableNetClassifier(**FAST)
    make_pipeline(NaNImputer(), SafeScaler(), net).set_callbacks(
        ProgressBar(max_propagation_depth=None)
    ).fit(X, LABELS)  # a step that takes no callbacks would warn
    shown = capsys.readouterr().out
    for step in ("NaNImputer", "SafeScaler", "StableNetClassifier"):
        assert f"{step} - fit" in shown


def test_workers_of_a_search_of_scikit_learns_report_each_epoch(capsys):
    monitor = ScoringMonitor(scoring="accuracy")
    net = StableNetClassifier(**FAST).set_callbacks(monitor)
    search = GridSearchCV(net, {"lr": [1e-3, 1e-2]}, cv=2, n_jobs=2)
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X, LABELS)
    scores = monitor.get_logs().data_as_pandas
    assert scores["task_name"].tolist().count("epoch") == 4 * (2 * 2 + 1)
    assert "GridSearchCV - fit" in capsys.readouterr().out


def test_networks_with_callbacks_are_trained_one_by_one_and_told(capsys):
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


def test_a_plain_batched_search_takes_a_progress_bar(capsys):
    search = BatchedGridSearchCV(StableNetClassifier(**FAST), {"lr": [1e-3, 1e-2]})
    search.set_callbacks(ProgressBar()).fit(X, LABELS)
    assert search.cv_results_["stacked"].all()
    shown = capsys.readouterr().out
    assert "BatchedGridSearchCV - fit" in shown
    assert "StableNetClassifier - fit" in shown


class Curious(Callback):
    """Ask for all parameters in mid-training, as a logger may."""

    def on_epoch_end(self, net, **kwargs):
        self.params = net.get_params()


def test_a_logger_may_ask_for_parameters_meanwhile(terminal):
    terminal.open()
    curious = Curious()
    model = StableNetRegressor(callbacks=[curious], verbose=1, **FAST)
    model.set_callbacks(Listener()).fit(X, VALUES)
    assert curious.params["max_epochs"] == 4


def test_partial_fit_tells_nobody():
    listener = Listener()
    StableNetRegressor(**FAST).set_callbacks(listener).partial_fit(X, VALUES)
    assert listener.events == []
