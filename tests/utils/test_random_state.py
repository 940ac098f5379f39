"""The generators of torch, numpy and Python, which belong to the caller."""

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import Callback
from torch import nn

from sknan import StableNetClassifier, StableNetRegressor, find_learning_rate
from sknan._utils.random_state import kept_random_states, resumed, seeded

X = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
y = X[:, 0] - X[:, 1]


class BatchListener(Callback):
    """Makes the training use the reference loop."""

    def on_batch_end(self, net, **kwargs):
        pass


class Noisy(nn.Module):
    """Draws from torch's generator in each forward pass."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.linear = nn.Linear(n_features_in, n_outputs)

    def forward(self, X):
        noise = torch.randn_like(X) if self.training else 0.0
        return self.linear(X + 0.1 * noise)


class NoisyInEvaluation(Noisy):
    def forward(self, X):
        return super().forward(X + 0.1 * torch.randn_like(X))


def regressor(**params):
    return StableNetRegressor(**{"max_epochs": 4, "random_state": 0, **params})


NETS = {
    "stacked": regressor(module__dropout=0.2, module__n_frequencies=2),
    "reference loop": regressor(module__dropout=0.2, callbacks=[BatchListener()]),
    "own module": regressor(module=Noisy),
    "rescued": regressor(module=Noisy, lr=30.0, clip_norm=None, max_epochs=2),
}


def streams():
    """Return the states of all generators as comparable objects."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), name, keys.tolist(), rest, random.getstate()


@pytest.mark.filterwarnings("ignore::sknan.DivergenceWarning")
def test_fits_in_threads_give_the_serial_results():
    expected = {name: clone(net).fit(X, y).predict(X) for name, net in NETS.items()}
    before = streams()
    names = list(NETS) * 4
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda name: clone(NETS[name]).fit(X, y).predict(X), names)
        for name, predicted in zip(names, found, strict=True):
            np.testing.assert_array_equal(predicted, expected[name], err_msg=name)
    assert streams() == before


class Raises(Callback):
    def __init__(self, error):
        self.error = error

    def on_batch_end(self, net, **kwargs):
        torch.manual_seed(1)
        if self.error is not None:
            raise self.error


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("error", [None, RuntimeError("x"), KeyboardInterrupt()])
def test_the_callers_streams_continue_after_a_callback_that_seeds(error):
    before = streams()
    try:
        regressor(callbacks=[Raises(error)]).fit(X, y)
    except RuntimeError as raised:
        assert raised is error  # noqa: PT017
    assert streams() == before


class RaisesInInit(nn.Module):
    def __init__(self, error):
        super().__init__()
        torch.manual_seed(1)
        raise error


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_the_callers_streams_continue_after_a_module_that_raises(error):
    before = streams()
    with pytest.raises(type(error)):
        regressor(module=RaisesInInit, module__error=error).fit(X, y)
    assert streams() == before
    with ThreadPoolExecutor(1) as pool:  # the turn was given back
        pool.submit(regressor().fit, X, y).result(timeout=600)


def test_the_finder_and_partial_fit_leave_the_callers_streams():
    before = streams()
    find_learning_rate(regressor(), X, y, n_steps=20)
    regressor(module=Noisy).partial_fit(X, y)
    regressor(module=NoisyInEvaluation, early_stopping=True).fit(X, y)
    StableNetClassifier(lr="auto", max_epochs=2, random_state=0).fit(X, y > 0)
    assert streams() == before


def test_blocks_of_threads_take_turns_and_nest():
    order = []
    inside = threading.Event()

    def draw():
        inside.wait(60)
        with seeded(0, "cpu"):
            order.append("other")

    thread = threading.Thread(target=draw)
    thread.start()
    with kept_random_states(), seeded(1, "cpu"):
        inside.set()
        thread.join(0.1)
        states = torch.get_rng_state(), None
        with resumed(states, "cpu"):
            order.append("first")
    thread.join(60)
    assert order == ["first", "other"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_forked_during_a_block_of_another_thread_has_its_turn():
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    inside, done = threading.Event(), threading.Event()

    def hold():
        with kept_random_states():
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(60)
    child = os.fork()
    if child == 0:
        with kept_random_states():
            os._exit(7)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    finally:
        done.set()
        thread.join()
