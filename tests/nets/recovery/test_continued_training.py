"""Trainings that go on from weights that were trained, loaded or passed in."""

import contextlib
import pickle
import warnings

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from sknan import (
    DivergenceWarning,
    GuardedNet,
    GuardedNetRegressor,
    NonFiniteTrainingError,
    StableNetRegressor,
)
from sknan.nets import TabularMLP

Z = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
X_RAW = Z * 1e3 + 1e4
Y = Z[:, 0] - Z[:, 1]
Y_COLUMN = Y[:, None]

pytestmark = pytest.mark.filterwarnings("ignore::sknan.DivergenceWarning")


def rescued(**params):
    """Return a network that was rescued from raw units in its first fit."""
    torch.manual_seed(0)
    net = GuardedNetRegressor(
        TabularMLP,
        module__n_features_in=3,
        module__n_outputs=1,
        optimizer__momentum=0.9,
        lr=0.05,
        max_epochs=20,
        train_split=None,
        verbose=0,
        **params,
    ).fit(X_RAW, Y_COLUMN)
    assert net.nonfinite_reports_
    assert net.score(X_RAW, Y) > 0.95
    return net


@pytest.mark.parametrize("is_pickled", [False, True])
@pytest.mark.parametrize("method_name", ["fit", "partial_fit"])
def test_a_rescued_network_goes_on_without_another_rescue(method_name, is_pickled):
    net = rescued(warm_start=method_name == "fit")
    if is_pickled:
        net = pickle.loads(pickle.dumps(net))
    before = net.score(X_RAW, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DivergenceWarning)
        getattr(net, method_name)(X_RAW, Y_COLUMN)
    assert net.score(X_RAW, Y) > before - 0.01


def test_a_fit_from_the_beginning_forgets_the_coordinates():
    net = rescued()
    net.fit(Z, Y_COLUMN)
    assert net.nonfinite_reports_ == []
    assert net._conditioning_ is None


def test_a_failed_continuation_that_is_no_better_keeps_the_trained_weights():
    net = StableNetRegressor(
        optimizer="rmsprop",
        lr=10.0,
        warm_start=True,
        max_epochs=15,
        early_stopping=False,
        random_state=0,
    ).fit(Z, Y)
    for _ in range(3):
        before = net.score(Z, Y)
        net.fit(Z, Y)
        assert net.nonfinite_reports_
        assert net.score(Z, Y) > max(before - 0.01, 0.95)


def guarded(module=nn.Linear, **params):
    torch.manual_seed(0)
    sizes = (
        {} if isinstance(module, nn.Module) else {"in_features": 3, "out_features": 1}
    )
    return GuardedNet(
        module,
        nn.MSELoss,
        lr=0.05,
        max_epochs=3,
        train_split=None,
        verbose=0,
        **{f"module__{name}": size for name, size in sizes.items()},
        **params,
    )


def says(net):
    return [report.recovery for report in net.nonfinite_reports_]


TARGET = Y[:, None]
RESTART = "Training restarted as if on standardized data."


def test_a_new_network_restarts_on_data_in_raw_units():
    assert RESTART in says(guarded().fit(X_RAW, TARGET))


def loaded_by_hand(path):
    net = guarded(warm_start=True).initialize()
    net.load_params(f_params=path)
    return net


def loaded_by_callback(path):
    class Load(Callback):
        def on_train_begin(self, net, **kwargs):
            net.load_params(f_params=path)

    return guarded(callbacks=[Load()])


def passed_in(path):
    module = nn.Linear(3, 1)
    module.load_state_dict(torch.load(path))
    return guarded(module)


@pytest.mark.parametrize("way", [loaded_by_hand, loaded_by_callback, passed_in])
def test_weights_that_were_loaded_or_passed_in_are_not_reinterpreted(way, tmp_path):
    path = str(tmp_path / "weights.pt")
    source = guarded().initialize()
    source.save_params(f_params=path)
    net = way(path)
    with contextlib.suppress(NonFiniteTrainingError):  # it learns nothing
        net.fit(X_RAW, TARGET)
    assert net.nonfinite_reports_
    assert RESTART not in says(net)


def test_a_second_fit_of_a_net_without_warm_start_is_as_the_first():
    net = guarded()
    first = net.fit(X_RAW, TARGET).predict(X_RAW)
    torch.manual_seed(0)
    np.testing.assert_array_equal(net.fit(X_RAW, TARGET).predict(X_RAW), first)


class Interrupted(torch.optim.SGD):
    """Optimizer whose twelfth step is interrupted before it changes a weight."""

    n_steps = 0

    def step(self, closure=None):
        loss = closure()
        Interrupted.n_steps += 1
        if Interrupted.n_steps == 12:
            raise KeyboardInterrupt
        super().step()
        return loss


def test_an_interrupted_step_leaves_weights_for_raw_units():
    Interrupted.n_steps = 0
    net = guarded(optimizer=Interrupted, batch_size=50)
    with pytest.warns(UserWarning, match="interrupted"):
        net.fit(X_RAW, TARGET)
    assert RESTART in says(net)
    residual = net.predict(X_RAW) - TARGET
    assert residual.var() < 0.9 * TARGET.var()
    assert abs(residual.mean()) < 1.0
