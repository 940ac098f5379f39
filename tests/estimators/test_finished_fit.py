"""Checks at the end of a fit of an estimator."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from sknan import NonFiniteTrainingError, StableNetRegressor
from sknan.estimators._target_scaling import mean_and_scale

X = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
Y = 5.0 * X[:, 0] + 40.0


class FailsInEvaluation(nn.Linear):
    """Network whose output is infinite for one row, in evaluation mode only."""

    def __init__(self, n_features_in=3, n_outputs=1):
        super().__init__(n_features_in, n_outputs)

    def forward(self, inputs):
        output = super().forward(inputs)
        if self.training:
            return output
        return output / (inputs[:, :1] - float(X[7, 0])).abs().clamp(max=1.0).ceil()


def test_a_fit_whose_network_cannot_predict_its_rows_is_an_error():
    net = StableNetRegressor(
        FailsInEvaluation, on_nonfinite="skip", max_epochs=2, early_stopping=False
    )
    with pytest.raises(NonFiniteTrainingError, match="After training"):
        net.fit(X, Y)


def test_the_mean_and_scale_of_the_target_are_those_of_the_weighted_rows():
    weights = np.linspace(0.1, 3.0, 80) ** 2
    net = StableNetRegressor(max_epochs=2, random_state=0)
    net.fit(X, Y, sample_weight=weights)
    mean = np.average(Y, weights=weights)
    variance = np.average((Y - mean) ** 2, weights=weights)
    assert net.target_mean_ == pytest.approx(mean, rel=1e-6)
    assert net.target_scale_ == pytest.approx(np.sqrt(variance), rel=1e-6)


def test_targets_that_vary_after_constant_ones_are_standardized_with_their_weights():
    weights = np.linspace(0.1, 3.0, 80) ** 2
    net = StableNetRegressor(max_epochs=1, random_state=0)
    net.partial_fit(X, np.full(80, 2.0))
    net.partial_fit(X, Y, sample_weight=weights)
    mean = (2.0 + np.average(Y, weights=weights)) / 2
    assert net.target_mean_ == pytest.approx(mean, rel=1e-6)


def test_weights_of_unknown_targets_do_not_count():
    values = np.array([[1.0, np.nan], [2.0, 5.0], [6.0, 1.0]])
    mean, scale = mean_and_scale(values, np.array([1.0, 1.0, 3.0]))
    np.testing.assert_allclose(mean, [21 / 5, 2.0])
    np.testing.assert_allclose(scale, [np.sqrt(4.96), np.sqrt(3.0)])


def test_a_spread_beside_a_large_offset_is_exact_and_rounding_is_no_spread():
    steps = np.arange(80.0)
    sums = np.resize([0.1 + 0.2, 0.3], 80)
    values = np.column_stack([4e15 + steps, -1e300 * (1 + 1e-14 * steps), sums])
    for weights in (None, np.r_[0.0, np.ones(79)]):
        mean, scale = mean_and_scale(values, weights)
        rows = steps if weights is None else steps[1:]
        spread = rows.std()
        assert scale[0] == pytest.approx(spread, rel=1e-3)
        assert scale[1] == pytest.approx(1e286 * spread, rel=1e-2)
        assert mean[0] - 4e15 == pytest.approx(rows.mean(), abs=0.5)
        assert scale[2] == 0
    X = (steps[:, None] - 40) / 23
    net = StableNetRegressor(lr=0.05, max_epochs=20, random_state=0)
    assert net.fit(X, values[:, 0]).score(X, values[:, 0]) > 0.5
