"""Tests of the losses for numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_helpers import (
    CASES,
    MAKERS,
    N_CLASSES,
    output_for,
    target_for,
)
from sklearn.metrics import (
    mean_absolute_percentage_error,
    mean_pinball_loss,
    mean_squared_log_error,
    mean_tweedie_deviance,
    root_mean_squared_error,
)
from torch import nn

from sknan import StableNetRegressor
from sknan import losses as sl
from sknan.losses import get_criterion


@pytest.mark.parametrize("name", ["PseudoHuberLoss", "LogCoshLoss"])
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e-3, 0.1])
def test_small_residuals_do_not_cancel(name, size):
    z = torch.tensor([size])
    found = CASES[name].make(reduction="none")(z, torch.zeros(1)).item()
    # Taylor: r^2/2 - r^4/12 for log cosh, r^2/2 - r^4/8 delta^-2 for pseudo-Huber.
    r = z.double().item()
    quartic = 1 / 12 if name == "LogCoshLoss" else 1 / (8 * 0.49)
    assert found == pytest.approx(r**2 / 2 - quartic * r**4, rel=1e-4 * (1 + size))


def test_a_perfect_batch_has_gradient_zero():
    for name in ("RMSELoss", "MSELoss", "HuberLoss", "LogCoshLoss", "PseudoHuberLoss"):
        y = target_for("number", 5)
        z = y.clone().requires_grad_()
        value = MAKERS[name]()(z, y)
        assert value.item() == 0.0
        value.backward()
        assert (z.grad == 0).all()


def test_a_gaussian_with_a_given_variance_gives_torchs_result():
    z, y = output_for("number", 30), target_for("number", 30)
    var = torch.rand(30, N_CLASSES, generator=torch.Generator().manual_seed(2)) + 0.1
    for full in (False, True):
        expected = nn.GaussianNLLLoss(full=full)(z, y, var)
        torch.testing.assert_close(sl.GaussianNLLLoss(full=full)(z, y, var), expected)
    pair = sl.GaussianNLLLoss()((z, var), y)
    torch.testing.assert_close(sl.GaussianNLLLoss()(torch.cat([z, var], 1), y), pair)


def test_the_prediction_of_a_gaussian_is_its_mean():
    output = torch.arange(8.0).reshape(2, 4)
    assert sl.GaussianNLLLoss().predict(output).tolist() == [[0.0, 1.0], [4.0, 5.0]]


@pytest.mark.parametrize(
    ("loss", "metric"),
    [
        (sl.RMSELoss(), root_mean_squared_error),
        (sl.MAPELoss(1e-3), mean_absolute_percentage_error),
        (sl.MSLELoss(), mean_squared_log_error),
        (sl.QuantileLoss(0.8), lambda *a, **k: mean_pinball_loss(*a, alpha=0.8, **k)),
    ],
)
def test_a_weighted_mean_equals_the_metric_of_scikit_learn(loss, metric):
    y, z = target_for("positive", 60)[:, 0], target_for("positive", 60, seed=5)[:, 0]
    weight = torch.rand(60, generator=torch.Generator().manual_seed(3))
    expected = metric(y.numpy(), z.numpy(), sample_weight=weight.numpy())
    assert loss(z, y, weight).item() == pytest.approx(expected, rel=1e-5)
    assert loss(z, y).item() == pytest.approx(metric(y.numpy(), z.numpy()), rel=1e-5)


def test_options_of_the_poisson_likelihood_give_torchs_result():
    z, y = output_for("count", 30).exp(), target_for("count", 30)
    rates, full = {"log_input": False}, {"full": True}
    for options in (rates, full, rates | full):
        expected = nn.PoissonNLLLoss(**options)(z, y)
        torch.testing.assert_close(sl.PoissonNLLLoss(**options)(z, y), expected)


@pytest.mark.parametrize(
    ("loss", "power"), [(sl.GammaLoss(), 2), (sl.TweedieLoss(), 1.5)]
)
def test_a_deviance_is_twice_the_loss(loss, power):
    y, z = target_for("positive", 60)[:, 0], target_for("positive", 60, seed=5)[:, 0]
    weight = torch.rand(60, generator=torch.Generator().manual_seed(3))
    expected = mean_tweedie_deviance(
        y.numpy(), z.numpy(), power=power, sample_weight=weight.numpy()
    )
    found = loss(z.log(), y, weight).item()
    assert 2 * found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["PoissonNLLLoss", "GammaLoss", "TweedieLoss"])
def test_the_gradient_of_a_diverged_rate_reduces_it(name):
    sizes = [40.0, 90.0, 1e4, 1e9]
    for sign in (1.0, -1.0):
        z = (sign * torch.tensor(sizes)).requires_grad_()
        loss = MAKERS[name](reduction="none")(z, torch.ones(4))
        assert (loss.diff() > 0).all()
        loss.sum().backward()
        assert (z.grad.sign() == sign).all()


@pytest.mark.parametrize("name", ["poisson", "gamma", "tweedie"])
def test_a_predicted_rate_is_positive_and_finite(name):
    rates = get_criterion(name)().predict(torch.tensor([0.0, 1.0, -1e30, 1e30, 2e30]))
    assert torch.isfinite(rates).all()
    assert rates[0] == 1.0
    assert rates[1].item() == pytest.approx(math.e)
    assert rates[2] == 0.0
    assert rates[3] == rates[4]


def test_the_gradient_of_a_logarithmic_error_increases_negative_predictions():
    z = torch.tensor([-0.5, -1.0, -7.0, -1e30], requires_grad=True)
    sl.MSLELoss(reduction="sum")(z, torch.ones(4)).backward()
    assert (z.grad < 0).all()


def test_the_divergence_of_logits_is_torchs_of_log_probabilities():
    z, y = output_for("codes", 30), target_for("distribution", 30)
    expected = nn.KLDivLoss(reduction="batchmean")(torch.log_softmax(z, 1), y)
    loss = sl.KLDivLoss("batchmean", from_logits=True)
    torch.testing.assert_close(loss(z, y), expected)
    logs = sl.KLDivLoss("batchmean", log_target=True, from_logits=True)
    torch.testing.assert_close(logs(z, y.log()), expected)
    assert sl.KLDivLoss()(torch.log(y), y).item() == pytest.approx(0.0, abs=1e-7)


def test_a_correlation_loss_is_one_minus_the_correlation_of_numpy():
    z, y = output_for("number", 60), target_for("number", 60)
    expected = [1 - np.corrcoef(z[:, j], y[:, j])[0, 1] for j in range(N_CLASSES)]
    assert sl.CorrelationLoss()(z, y).item() == pytest.approx(np.mean(expected))
    assert sl.CorrelationLoss(reduction="sum")(z, y).item() == pytest.approx(
        sum(expected)
    )
    rows = sl.CorrelationLoss(reduction="none")(z, y)
    np.testing.assert_allclose(rows.mean(0), expected, rtol=1e-5)
    weight = torch.arange(1.0, 61.0)
    cov = np.cov(z[:, 0], y[:, 0], aweights=weight.numpy())
    expected = 1 - cov[0, 1] / math.sqrt(cov[0, 0] * cov[1, 1])
    found = sl.CorrelationLoss()(z[:, 0], y[:, 0], weight).item()
    assert found == pytest.approx(expected, rel=1e-5)


QUANTILES = [0.1, 0.5, 0.9]


def quantiles_of(z):
    """Return the quantiles of the outputs (n_samples, 3) by their definition."""
    distances = torch.log1p(torch.exp(z))
    median = z[:, 1]
    return [median - distances[:, 0], median, median + distances[:, 2]]


def test_several_quantiles_are_the_losses_of_each():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(7, 6, generator=generator)
    y = torch.randn(7, 2, generator=generator)
    weight = torch.rand(7, generator=generator)
    # The outputs of the first target come first.
    columns = zip(quantiles_of(z[:, :3]), quantiles_of(z[:, 3:]), strict=True)
    quantiles = [torch.stack(pair, 1) for pair in columns]
    for reduction in ("mean", "sum", "none"):
        found = sl.QuantileLoss(QUANTILES, reduction=reduction)(z, y, weight)
        each = [
            sl.QuantileLoss(q, reduction=reduction)(predicted, y, weight)
            for q, predicted in zip(QUANTILES, quantiles, strict=True)
        ]
        expected = torch.stack(each, -1)
        if reduction == "mean":
            expected = expected.mean()
        elif reduction == "sum":
            expected = expected.sum()
        torch.testing.assert_close(found, expected)
    predicted = sl.QuantileLoss(QUANTILES).predict(z)
    torch.testing.assert_close(predicted, torch.stack(quantiles, -1))


@given(
    levels=st.lists(st.floats(1e-3, 1 - 1e-3), min_size=1, max_size=12, unique=True),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 100.0, 1e20, 3e38]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_no_output_makes_quantiles_cross(levels, scale, seed):
    loss = sl.QuantileLoss(sorted(levels))
    assert loss.traits.outputs_per_target == len(levels)
    generator = torch.Generator().manual_seed(seed)
    output = torch.rand(5, 2 * len(levels), generator=generator) * 2 - 1
    output = (output * scale).requires_grad_()
    predicted = loss.predict(output)
    assert predicted.shape == (5, 2, len(levels))
    assert predicted.isfinite().all()
    assert (predicted.diff(dim=-1) >= 0).all()
    loss(output, torch.randn(5, 2, generator=generator)).backward()
    assert output.grad.isfinite().all()


@pytest.mark.parametrize("n_targets", [None, 2])
def test_a_regressor_learns_several_quantiles(n_targets):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(600, 3)).astype(np.float32)
    y = 2 * X[:, 0] + generator.normal(size=600)
    if n_targets:
        y = np.column_stack([y, 100 - 3 * y])
    model = StableNetRegressor(
        criterion="quantile",
        criterion__quantile=QUANTILES,
        max_epochs=30,
        random_state=0,
    )
    predicted = model.fit(X, y).predict(X)
    assert predicted.shape == (*y.shape, 3)
    shares = (y[..., None] <= predicted).mean(0)
    np.testing.assert_allclose(
        shares, np.broadcast_to(QUANTILES, shares.shape), atol=0.05
    )
    assert (np.diff(predicted) > 0).all()
