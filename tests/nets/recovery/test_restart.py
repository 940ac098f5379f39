"""Restarts as if on standardized data."""

from __future__ import annotations

import numpy as np
from failing_trainings import MLP, X, Y, fitted, is_sound, network_of, r2
from torch import nn


class Rectified(MLP):
    def __init__(self):
        super().__init__()
        self.body[1] = nn.ReLU()


SCALES = np.array([2000.0, 40.0, 1e6, 1.0], dtype="float32")


def test_a_network_learns_raw_inputs_as_if_they_were_standardized():
    raw = X * SCALES + np.array([1975.0, 0.0, 0.0, 0.0], dtype="float32")
    net = fitted(network_of(Rectified, max_epochs=30), raw)
    assert net.nonfinite_reports_[0].recovery == (
        "Training restarted as if on standardized data."
    )
    assert net.effective_lr_ == 0.05
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
    net = fitted(network_of(Scaled), raw)
    assert is_sound(net)
    assert net.nonfinite_reports_
    recoveries = {report.recovery for report in net.nonfinite_reports_}
    assert "Training restarted as if on standardized data." not in recoveries


def test_no_restart_if_the_weights_may_have_been_trained_before():
    raw = X * SCALES
    net = fitted(network_of(Rectified()), raw)
    assert net.nonfinite_reports_
    recoveries = {report.recovery for report in net.nonfinite_reports_}
    assert "Training restarted as if on standardized data." not in recoveries
