"""Restarts as if on standardized data."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from failing_trainings import MLP, X, Y, fitted, is_sound, network_of, r2, refused
from skorch import NeuralNet
from torch import nn
from torch.utils.data import TensorDataset

from sknan import GuardedNet


class Rectified(MLP):
    def __init__(self):
        super().__init__()
        self.body[1] = nn.ReLU()


SCALES = np.array([2000.0, 40.0, 5e4, 1.0], dtype="float32")


def test_a_network_learns_raw_inputs_as_if_they_were_standardized():
    raw = X * SCALES + np.array([1975.0, 0.0, 0.0, 0.0], dtype="float32")
    net = fitted(network_of(Rectified, max_epochs=30), raw)
    assert net.nonfinite_reports_[0].recovery == (
        "Training restarted as if on standardized data."
    )
    assert net.effective_lr_ == 0.05
    assert r2(net, raw) > 0.9


def test_a_network_that_has_collapsed_on_raw_inputs_restarts():
    raw = X.copy()
    raw[:, :2] = 100.0 * (raw[:, :2] + 5.0)
    options = {"lr": 0.03, "optimizer__momentum": 0.9, "batch_size": 64}
    net = fitted(network_of(Rectified, max_epochs=20, **options), raw)
    (report,) = net.nonfinite_reports_
    assert report.evidence.startswith("The network has collapsed")
    assert report.recovery == "Training restarted as if on standardized data."
    assert r2(net, raw) > 0.9


def test_a_network_learns_raw_targets_as_if_they_were_standardized():
    raw = (Y * 2e5 + 3e5).astype("float32")
    net = fitted(network_of(Rectified, max_epochs=30), X, raw)
    assert net.nonfinite_reports_[0].recovery == (
        "Training restarted as if on standardized data."
    )
    assert r2(net, X, raw) > 0.9


class Scaled(Rectified):
    """Module that uses its input outside linear layers too."""

    def forward(self, x):
        return super().forward(x) * x[:, :1].abs().sqrt()


def test_no_restart_if_the_input_is_used_outside_linear_layers():
    raw = X * SCALES
    net = network_of(Scaled)
    refused(net, raw)  # it learns nothing
    assert is_sound(net)
    assert net.nonfinite_reports_
    recoveries = {report.recovery for report in net.nonfinite_reports_}
    assert "Training restarted as if on standardized data." not in recoveries


def test_no_restart_if_the_weights_may_have_been_trained_before():
    raw = X * SCALES
    net = network_of(Rectified())
    refused(net, raw)  # it learns nothing
    assert net.nonfinite_reports_
    recoveries = {report.recovery for report in net.nonfinite_reports_}
    assert "Training restarted as if on standardized data." not in recoveries


# -- starts ------------------------------------------------------------------------

IDENTIFIERS = np.column_stack([X[:, :3], 1e9 + 1e6 * X[:, 3]]).astype("float32")
ADAM = {"optimizer": torch.optim.Adam, "lr": 0.01, "max_epochs": 30}
RAW = (
    "Columns of X are in raw units: 3, with values of size up to 1e+09. A linear layer "
    "learns nothing from them. "
)


def test_a_network_starts_as_if_on_standardized_data_where_no_step_can_learn():
    net = network_of(Rectified, **ADAM)
    with pytest.warns(UserWarning, match="raw units") as caught:
        net.fit(IDENTIFIERS, Y)
    assert [str(w.message) for w in caught] == [
        f"{RAW}The network is trained as if on standardized data. Standardize X, for "
        "example with SafeScaler()."
    ]
    assert net.nonfinite_reports_ == []
    assert r2(net, IDENTIFIERS) > 0.9
    again = pickle.loads(pickle.dumps(net)).partial_fit(IDENTIFIERS, Y)
    assert r2(again, IDENTIFIERS) > 0.9


def test_weights_that_were_passed_in_are_not_replaced_at_the_start():
    net = network_of(Rectified(), **ADAM | {"max_epochs": 1})
    with pytest.warns(UserWarning, match="raw units") as caught:
        net.fit(IDENTIFIERS, Y)
    assert (
        str(caught[0].message) == f"{RAW}Standardize X, for example with SafeScaler()."
    )


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_a_policy_other_than_recover_only_warns(policy):
    net = network_of(Rectified, on_nonfinite=policy, **ADAM | {"max_epochs": 1})
    with pytest.warns(UserWarning, match="raw units: 3"):
        net.fit(TensorDataset(*map(torch.from_numpy, (IDENTIFIERS, Y))), None)
    assert net._conditioning_ is None


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_network_that_can_learn_starts_as_in_skorch(scale):
    raw = X * np.array([1.0, 1.0, 1.0, scale], dtype="float32")
    options = {"batch_size": 16, "train_split": None, "verbose": 0} | ADAM
    torch.manual_seed(0)
    guarded = GuardedNet(Rectified, nn.MSELoss, **options).fit(raw, Y)
    torch.manual_seed(0)
    plain = NeuralNet(Rectified, nn.MSELoss, **options).fit(raw, Y)
    assert (guarded.predict(raw) == plain.predict(raw)).all()


def test_a_module_that_normalizes_its_input_starts_as_it_is():
    class Normalized(Rectified):
        def __init__(self):
            super().__init__()
            self.body.insert(0, nn.BatchNorm1d(4))

    net = network_of(Normalized, **ADAM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.fit(IDENTIFIERS, Y)
    assert net._conditioning_ is None
