"""Tests of progress bars in a pseudo-terminal and in a notebook."""

from __future__ import annotations

import contextlib
import itertools
import os
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
from sklearn.datasets import make_classification
from skorch.callbacks import Callback

from sknan import (
    BackupAndRestore,
    BatchedGridSearchCV,
    DivergenceWarning,
    StableNetClassifier,
    StableNetRegressor,
    audit,
    find_learning_rate,
)
from sknan._utils.progress import (
    advance,
    advance_to,
    call_in_workers,
    counting_parts,
    is_shown,
    progress,
)

X, LABELS = make_classification(200, 5, random_state=0)
VALUES = X @ np.arange(1.0, 6.0)
FAST = {"max_epochs": 4, "batch_size": 64, "random_state": 0}

both = pytest.mark.parametrize(
    ("estimator_class", "y"),
    [(StableNetClassifier, LABELS), (StableNetRegressor, VALUES)],
)


class Terminal:
    """Pseudo-terminal that replaces stderr and records what it shows."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.pieces = []

    def open(self):
        # To be called in the test: pytest replaces the stream between its phases.
        pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
        termios = pytest.importorskip("termios")
        source, sink = pty.openpty()
        termios.tcsetwinsize(sink, (24, 120))
        self.stream = os.fdopen(sink, "w", encoding="utf-8")
        threading.Thread(target=self._read, args=(source,), daemon=True).start()
        self.monkeypatch.setattr(sys, "stderr", self.stream)

    def _read(self, source):
        # Reading from a terminal that is closed raises an error.
        with contextlib.suppress(OSError):
            while piece := os.read(source, 4096):
                self.pieces.append(piece)
        os.close(source)

    @property
    def lines(self):
        """Output so far, with each state of a bar as one line."""
        self.stream.write("\0")
        self.stream.flush()
        while not b"".join(self.pieces).endswith(b"\0"):
            time.sleep(0.001)
        text = b"".join(self.pieces).decode().replace("\0", "")
        text = re.sub(r"\d\d:\d\d", "00:00", text)  # times of the fixture's clock
        return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.fixture
def patient_terminal(monkeypatch):
    """Terminal in which a bar appears after its first second, as for users."""
    shown = Terminal(monkeypatch)
    yield shown
    shown.stream.close()


@pytest.fixture
def terminal(patient_terminal, monkeypatch):
    """Terminal in which a bar appears at once, and a second passes at each reading."""
    monkeypatch.setattr("sknan._utils.progress._SECONDS_BEFORE", 0.0)
    monkeypatch.setattr("tqdm.std.time", itertools.count().__next__)
    return patient_terminal


class Slow(Callback):
    """Callback that adds to the time of a clock at the end of each epoch."""

    def __init__(self, clock):
        self.clock = clock

    def on_epoch_end(self, net, **kwargs):
        self.clock.append(self.clock[-1] + 0.4)


def weights_of(model):
    return [w.detach().clone() for w in model.net_.module_.parameters()]


def same_weights(one, other):
    return all(map(torch.equal, weights_of(one), weights_of(other)))


# -- bars ----------------------------------------------------------------------------


def test_a_fit_shows_loss_learning_rate_and_recoveries(terminal):
    terminal.open()
    model = StableNetClassifier(lr=1e4, verbose=1, **FAST)
    with pytest.warns(DivergenceWarning):
        model.set_params(max_epochs=6).fit(X, LABELS)
    last = terminal.lines[-1]
    row = model.net_.history[-1]
    n_recoveries = len(model.nonfinite_reports_)
    assert n_recoveries
    assert last.startswith("Training: 100%|")
    assert "6/6 epochs [00:00<00:00, " in last
    assert last.endswith(
        f"train_loss={row['train_loss']:.3g}, lr={row['lr']:.3g}, "
        f"recoveries={n_recoveries}]"
    )


def test_early_stopping_ends_with_a_full_bar(terminal):
    terminal.open()
    model = StableNetRegressor(
        lr=1e-12,
        early_stopping=True,
        n_iter_no_change=3,
        max_epochs=50,
        verbose=1,
        random_state=0,
    ).fit(X, np.random.default_rng(0).normal(size=200))
    assert model.n_iter_ < 50
    last = terminal.lines[-1]
    assert last.startswith("Training: 100%|")
    assert f"{model.n_iter_}/{model.n_iter_} epochs" in last
    assert "valid_loss=" in last


class Break(Callback):
    """Callback that raises an error in the third epoch."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 3:
            raise RuntimeError("no power")


def test_the_bar_of_a_resumed_training_starts_at_its_epoch(terminal, tmp_path):
    terminal.open()
    backup = BackupAndRestore(tmp_path / "backup")
    model = StableNetRegressor(callbacks=[Break(), backup], **FAST)
    model.set_params(max_epochs=9)
    with pytest.raises(RuntimeError, match="no power"):
        model.fit(X, VALUES)
    model.set_params(callbacks=[backup], verbose=1).fit(X, VALUES)
    counted = [int(re.search(r"(\d+)/9 epochs", line)[1]) for line in terminal.lines]
    assert set(counted) == {0, *range(2, 10)}  # two epochs are those of the backup


def test_nothing_is_shown_in_the_first_second(patient_terminal, monkeypatch):
    patient_terminal.open()
    clock = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[-1])
    StableNetClassifier(verbose=1, **FAST).fit(X, LABELS)
    assert patient_terminal.lines == []
    slow = [Slow(clock)]
    StableNetClassifier(verbose=1, callbacks=slow, **FAST).fit(X, LABELS)
    counted = [int(line.split("/")[0][-1]) for line in patient_terminal.lines]
    assert counted[0] == 3  # each of four epochs takes 0.4 seconds


def test_verbose_0_shows_nothing(terminal):
    terminal.open()
    StableNetClassifier(**FAST).fit(X, LABELS)
    StableNetClassifier(verbose=1, **FAST).partial_fit(X, LABELS, classes=[0, 1])
    assert terminal.lines == []


def test_nothing_is_written_into_a_pipe(monkeypatch, capfd):
    monkeypatch.setattr("sknan._utils.progress._SECONDS_BEFORE", 0.0)
    StableNetClassifier(verbose=1, **FAST).fit(X, LABELS)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@both
def test_a_bar_does_not_change_the_training(terminal, estimator_class, y):
    terminal.open()
    shown = estimator_class(verbose=1, **FAST).fit(X, y)
    assert terminal.lines
    silent = estimator_class(**FAST).fit(X, y)
    assert same_weights(shown, silent)
    assert shown.net_.history[:, "train_loss"] == silent.net_.history[:, "train_loss"]
    assert [name for name, _ in shown.net_.callbacks_] == [
        name for name, _ in silent.net_.callbacks_
    ]


class ReadsParameters(Callback):
    """Callback of skorch that reads all parameters, as a logger may."""

    def on_epoch_end(self, net, **kwargs):
        self.params = net.get_params()


def test_a_callback_may_read_parameters_while_a_bar_is_shown(terminal):
    terminal.open()
    callback = ReadsParameters()
    StableNetRegressor(callbacks=[callback], verbose=1, **FAST).fit(X, VALUES)
    assert callback.params["max_epochs"] == 4


def test_a_range_test_shows_its_steps(terminal):
    terminal.open()
    net = StableNetClassifier(random_state=0)
    found = find_learning_rate(net, X, LABELS, verbose=1)
    lines = terminal.lines
    assert re.fullmatch(
        r"Range test: 100%\|█+\| 200/200 steps \[00:00<00:00, train_loss=\S+, "
        r"lr=\S+\]",
        lines[-1],
    )
    silent = find_learning_rate(net, X, LABELS)
    assert len(terminal.lines) == len(lines)
    assert np.array_equal(found.losses, silent.losses, equal_nan=True)


def test_lr_auto_shows_the_range_test_and_the_training(terminal):
    terminal.open()
    model = StableNetClassifier(lr="auto", verbose=1, **FAST)
    model.fit(X, LABELS)
    kinds = {line.split(":")[0] for line in terminal.lines}
    assert kinds == {"Range test", "Training"}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_search_counts_its_fits_in_all_workers(terminal, capsys, n_jobs):
    terminal.open()
    rates = {"lr": [1e-3, 1e-2, 1e4]}
    net = StableNetClassifier(max_epochs=15, early_stopping=True, random_state=0)
    search = BatchedGridSearchCV(net, rates, cv=3, refit=False, n_jobs=n_jobs)
    with pytest.warns(DivergenceWarning):
        shown = clone(search).set_params(verbose=1).fit(X, LABELS)
    lines = terminal.lines
    n_recoveries = int(shown.cv_results_["n_recoveries"].sum())
    assert n_recoveries
    assert re.fullmatch(
        r"Search: 100%\|█+\| 9/9 fits \[00:00<00:00, train_loss=\S+, lr=\S+, "
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
        silent = search.fit(X, LABELS)
    assert len(terminal.lines) == len(lines)
    for name in ("mean_test_score", "stacked", "n_recoveries"):
        assert np.array_equal(shown.cv_results_[name], silent.cv_results_[name])


def test_verbose_networks_are_stacked(terminal):
    terminal.open()
    net = StableNetClassifier(verbose=1, **FAST)
    search = BatchedGridSearchCV(net, {"lr": [1e-3, 1e-2]}, cv=2, refit=False)
    assert search.fit(X, LABELS).cv_results_["stacked"].all()
    search.set_params(estimator__verbose=0).fit(X, LABELS)
    assert search.cv_results_["stacked"].all()


def test_an_audit_counts_its_columns(terminal):
    terminal.open()
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(100, 12))).add_prefix("c")
    found = audit(frame, verbose=1)
    lines = terminal.lines
    assert re.fullmatch(r"Audit: 100%\|█+\| 12/12 columns \[00:00<00:00\]", lines[-1])
    assert str(audit(frame)) == str(found)
    assert len(terminal.lines) == len(lines)


def test_nested_blocks_show_one_bar(terminal):
    terminal.open()
    with progress("Outer", 2, "halves", verbose=1):
        assert is_shown()
        with progress("Inner", 5, "fifths", verbose=1):
            assert not is_shown()
            advance(5)
        advance(0.5, 4, loss=0.5)
        advance_to(2)
    assert {line.split(":")[0] for line in terminal.lines} == {"Outer"}
    assert terminal.lines[-1].endswith(
        "2/2 halves [00:00<00:00, loss=0.5, recoveries=4]"
    )


def test_an_exception_stops_the_bar(terminal):
    terminal.open()

    def half_done():
        with progress("Half", 2, "halves", verbose=1):
            advance(1)
            raise RuntimeError("too hard")

    with pytest.raises(RuntimeError, match="too hard"):
        half_done()
    assert terminal.lines[-1].startswith("Half:  50%|")
    assert not is_shown()


def two_steps(name):
    advance(1, 1, loss=0.25)
    advance(1, 1)
    return name, is_shown()


def test_parts_of_units_advance_the_bar_by_fractions(terminal):
    terminal.open()
    with progress("Whole", 2, "units", verbose=1):
        for _ in range(2):
            with counting_parts(4):
                for _ in range(4):
                    advance(1, 1, loss=0.5)
    assert "2/2 units" in terminal.lines[-1]
    assert "recoveries=8" in terminal.lines[-1]
    with counting_parts(4):
        advance(1)  # without a bar


@pytest.mark.parametrize("backend", ["sequential", "threading", "loky", "no generator"])
def test_calls_in_workers_advance_the_bar(terminal, monkeypatch, backend):
    monkeypatch.setattr("sknan._utils.progress._SECONDS_BEFORE", 0.05)
    if backend == "no generator":
        joblib.register_parallel_backend(backend, WithoutGenerator)
    terminal.open()
    with (
        joblib.parallel_config(backend),
        progress("Steps", 4, "steps", verbose=1),
    ):
        found = call_in_workers(two_steps, [("a",), ("b",)], n_jobs=2)
    assert found == [("a", True), ("b", True)]
    lines = terminal.lines
    assert "| 4/4 steps [00:00<00:00, " in lines[-1]
    assert lines[-1].endswith("loss=0.25, recoveries=4]")
    is_here = backend == "sequential"
    assert ("0/4 steps" in lines[0]) != is_here  # elsewhere it is drawn at once
    assert not is_shown()


class WithoutGenerator(joblib.parallel.ThreadingBackend):
    """Backend that cannot return results one by one."""

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
def test_a_notebook_shows_a_widget(verbose):
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
