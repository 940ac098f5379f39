"""Exceptions of signal handlers, told from those of the program."""

import functools
import signal
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sknan import BatchedGridSearchCV, StableNetRegressor
from sknan._utils.outside import is_of_signal
from sknan.diagnosis._raised import may_concern_values
from sknan.functional._domain import is_between
from sknan.persistence import load, save


def refuses(x):
    if (x < 0).any():
        raise ValueError("no negative amounts")
    return x


class Limit:
    """Handler of signals with a deadline."""

    def __call__(self, number, frame):
        raise ValueError(number)


@pytest.mark.parametrize("handler", [Limit(), functools.partial(Limit.__call__, 0)])
def test_an_exception_of_a_signal_handler_is_told_from_one_of_a_check(handler):
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(ValueError, match=str(int(signal.SIGTERM))) as caught:
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert is_of_signal(caught.value)
    assert not may_concern_values(caught.value)

    def check(*x):
        x = x[0]  # no longer a tuple
        return refuses(x)

    with pytest.raises(ValueError, match="no negative amounts") as caught:
        check(torch.tensor(-1.0))
    assert not is_of_signal(caught.value)


X = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
Y = X[:, 0]
NET = StableNetRegressor(max_epochs=1, random_state=0)


class Layer(nn.Linear):
    """Module whose signature no other test has read."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)


class Counted(TorchDispatchMode):
    """Mode in which operations call Python, as they do while a step is explained."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def bounded(_):
    with Counted():
        return is_between(torch.ones(3), 0.0, 2.0)


class DeadlineError(ValueError, RuntimeError):
    """Exception of kinds that blocks keep."""


def score_rows(model, X, y):
    return model.score(X, y)


def doubled(X):
    return 2 * X


def searched(model, **params):
    return BatchedGridSearchCV(model, {}, cv=2, error_score=0.0, **params).fit(X, Y)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    save(clone(NET).fit(X, Y), path)
    searched(NET)  # imports what would be traced
    return path


@pytest.mark.parametrize(
    ("run", "function"),
    [
        (lambda _: StableNetRegressor(Layer).fit(X, Y), "signature"),
        (lambda _: searched(NET, scoring=score_rows), "score_rows"),
        (
            lambda _: searched(make_pipeline(FunctionTransformer(doubled), NET)),
            "doubled",
        ),
        (bounded, "__torch_dispatch__"),
        (load, "_check_parts"),
        (load, "_restored"),
        (lambda path: save(load(path), path), "_written"),
    ],
)
def test_no_block_keeps_the_exception_of_a_handler(run, function, file):
    # Python calls a handler as it calls the function of sys.settrace.
    def alarm(frame, event, arg):
        if frame.f_code.co_name == function:
            sys.settrace(None)
            raise DeadlineError("deadline")

    before = sys.gettrace()
    sys.settrace(alarm)
    try:
        with pytest.raises(DeadlineError, match=r"^deadline$"):
            run(file)
    finally:
        sys.settrace(before)


class Cleaned(Layer):
    """Module with a ``finally`` that fails, as torch.vmap's does after a signal."""

    is_signaled = False

    def forward(self, X):
        try:
            if self.is_signaled:
                signal.raise_signal(signal.SIGINT)
        finally:
            if self.is_signaled:
                raise RuntimeError("no level was entered")
        return super().forward(X)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, DeadlineError])
@pytest.mark.parametrize(
    "run",
    [
        lambda: searched(clone(NET).set_params(module=Cleaned)),
        lambda: clone(NET).set_params(module=Cleaned, lr="auto").fit(X, Y),
    ],
)
def test_an_exception_of_a_signal_is_raised_in_place_of_what_it_led_to(
    monkeypatch, kind, run
):
    def handler(number, frame):
        raise kind("stop")

    monkeypatch.setattr(Cleaned, "is_signaled", True)
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(kind, match=r"^stop$"):
            run()
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_exception_after_a_handled_one_is_not_of_the_signal():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(ValueError, match="All the 2 fits failed"):
            searched(clone(NET).set_params(lr=-1.0))
