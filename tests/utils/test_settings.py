"""Settings that the caller has made for other code neither act nor change."""

import contextlib
import multiprocessing
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from torch import nn

from sknan import (
    BatchedGridSearchCV,
    GuardedNet,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
    find_learning_rate,
)
from sknan._utils.settings import usual_settings
from sknan.diagnosis import diagnose

X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
y = X[:, 0] - X[:, 1]


class Own(nn.Module):
    """A module that creates tensors in every way, and draws random numbers."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.linear = nn.Linear(n_features_in, n_outputs)
        self.shift = nn.Parameter(torch.Tensor(n_outputs).zero_())
        self.dropout = nn.Dropout(0.1)

    def forward(self, X):
        scale = torch.ones(1) * torch.tensor([0.5]) + torch.arange(0.0, 1.0)
        return self.linear(self.dropout(X)) * scale + self.shift


def regressor(**params):
    return StableNetRegressor(**{"max_epochs": 3, "random_state": 0, **params})


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS = {
    "default dtype": lambda: default_dtype(torch.float64),
    "short default dtype": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "numpy errors": lambda: np.errstate(all="raise"),
}

ACTIONS = {
    "default": lambda: regressor().fit(X, y).predict(X),
    "own module": lambda: regressor(module=Own).fit(X, y).predict(X),
    "frequencies": lambda: regressor(module__n_frequencies=2).fit(X, y).predict(X),
    "partial_fit": lambda: regressor().partial_fit(X, y).partial_fit(X, y).predict(X),
    "classifier": lambda: (
        StableNetClassifier(max_epochs=2, random_state=0)
        .fit(X, y > 0)
        .predict_log_proba(X)
    ),
    "rescue": lambda: regressor(lr=30.0, clip_norm=None).fit(X, y).predict(X),
    "score": lambda: regressor().fit(X, y).score(X, y),
    "ensemble": lambda: (
        StableNetEnsembleRegressor(regressor(), n_estimators=2, random_state=0)
        .fit(X, y)
        .predict(X)
    ),
    "search": lambda: (
        BatchedGridSearchCV(regressor(), {"lr": [1e-3, 1e-2]}, cv=2)
        .fit(X, y)
        .cv_results_["mean_test_score"]
    ),
    "finder": lambda: find_learning_rate(regressor(), X, y, n_steps=20).losses,
}


def state_of_process():
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_num_threads(),
        np.geterr(),
        list(warnings.filters),
    )


@pytest.mark.filterwarnings("ignore::sknan.DivergenceWarning")
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_settings_of_the_caller_neither_act_nor_change(action):
    expected = action()
    for name, setting in SETTINGS.items():
        with setting():
            before = state_of_process()
            found = action()
            assert state_of_process() == before, name
        # A default device makes torch observe each operation, and the passes general.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.asarray(found).dtype == np.asarray(expected).dtype


def guarded(**params):
    torch.manual_seed(0)
    return GuardedNet(
        nn.Linear,
        nn.MSELoss,
        module__in_features=3,
        module__out_features=1,
        max_epochs=2,
        verbose=0,
        **params,
    )


@pytest.mark.parametrize("setting", ["no_grad", "inference mode", "autocast"])
def test_a_guarded_net_trains_and_predicts_in_float32_with_gradients(setting):
    target = y[:, None]
    expected = guarded().fit(X, target).predict(X)
    with SETTINGS[setting]():
        given = torch.from_numpy(X).clone(), torch.from_numpy(target).clone()
        net = guarded().fit(*given)
        found = net.predict(given[0])
        step = net.validation_step(given)
    np.testing.assert_array_equal(found, expected)
    assert step["loss"].dtype == torch.float32
    net.partial_fit(X, target)


def test_a_guarded_net_keeps_torchs_default_dtype():
    with default_dtype(torch.float64):
        net = guarded().fit(X.astype(float), y[:, None].astype(float))
    assert net.module_.weight.dtype == torch.float64


def test_a_step_is_diagnosed_without_gradients_and_in_the_callers_precision():
    class Log(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu().log()

    module, target = Log(3, 1), torch.ones(60, 1)
    inputs = torch.from_numpy(X)
    expected = diagnose(module, nn.MSELoss(), inputs, target)
    with torch.no_grad():
        assert str(diagnose(module, nn.MSELoss(), inputs, target)) == str(expected)
    double = nn.Linear(3, 1)
    nn.init.constant_(double.weight, 1e4)
    assert diagnose(double, nn.MSELoss(), inputs, target) is None
    with torch.autocast("cpu", dtype=torch.float16):
        half = diagnose(double, nn.MSELoss(), inputs * 1e2, target)
    assert half is not None


def test_settings_end_with_the_block_after_an_error():
    with torch.no_grad(), default_dtype(torch.float64):
        before = state_of_process()
        with contextlib.suppress(KeyboardInterrupt), usual_settings():
            assert torch.is_grad_enabled()
            assert torch.zeros(2).dtype == torch.full((2,), 0.5).dtype == torch.float32
            assert torch.tensor([1, 2]).dtype == torch.int64
            assert torch.tensor(np.zeros(2)).dtype == torch.float64
            raise KeyboardInterrupt
        assert state_of_process() == before
        assert torch.zeros(2).dtype == torch.float64


def _answer(queue, action):
    queue.put(action())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("n_rows", [60, 100_000])
def test_a_forked_process_predicts_and_trains(n_rows):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this system")
    many = np.resize(X, (n_rows, 3))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.ones(2**22).sum() > 0  # starts torch's other thread
        net = regressor(num_threads=2).fit(X, y)
        predicted = net.predict(many)
        prepare = make_pipeline(NaNImputer(strategy="mean"), SafeScaler())
        prepared = prepare.fit_transform(many)
        context = multiprocessing.get_context("fork")
        for action, expected in (
            (lambda: net.predict(many), predicted),
            (lambda: clone(net).fit(X, y).predict(many), predicted),
            (lambda: prepare.fit_transform(many), prepared),
        ):
            queue = context.Queue()  # a killed child may hold the lock of its queue
            child = context.Process(target=_answer, args=(queue, action))
            child.start()
            try:
                found = queue.get(timeout=600)
            finally:
                child.kill()
                child.join()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)
