"""Learning rates that are no learning rates: who has set them, and where."""

import math
import warnings

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, LRScheduler
from torch import nn

from sknan import (
    DivergenceWarning,
    GuardedNetRegressor,
    NonFiniteTrainingError,
    StableNetRegressor,
)

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = X[:, :1]


class SetRate(Callback):
    """Set the learning rate in the optimizer at the beginning of an epoch."""

    def __init__(self, rate):
        self.rate = rate

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            for group in net.optimizer_.param_groups:
                group["lr"] = self.rate


class SetRateOfBatch(SetRate):
    """Set the learning rate before a batch."""

    def on_batch_begin(self, net, **kwargs):
        self.on_epoch_begin(net)


def scheduler(rate):
    return LRScheduler(
        torch.optim.lr_scheduler.LambdaLR,
        lr_lambda=lambda epoch: rate if epoch == 1 else 1.0,
    )


def loop(callback, **params):
    torch.manual_seed(0)
    defaults = {"optimizer": torch.optim.Adam, "lr": 0.01, "max_epochs": 3}
    return GuardedNetRegressor(
        nn.Linear(3, 1),
        batch_size=20,
        train_split=None,
        verbose=0,
        callbacks=None if callback is None else [("rate", callback)],
        **{**defaults, **params},
    )


def estimator(callback, **params):
    return StableNetRegressor(
        optimizer="adam",
        lr=0.01,
        lr_schedule=params.pop("lr_schedule", "constant"),
        batch_size=20,
        max_epochs=3,
        early_stopping=False,
        random_state=0,
        callbacks=None if callback is None else [("rate", callback)],
        **params,
    )


@pytest.mark.parametrize("build", [loop, estimator])
@pytest.mark.parametrize("rate", [math.nan, math.inf, -2.0])
@pytest.mark.parametrize(
    ("make", "origin"),
    [
        (SetRate, "the callback 'rate' (SetRate)"),
        (SetRateOfBatch, "the callback 'rate' (SetRateOfBatch)"),
        (scheduler, "LambdaLR in the callback 'rate'"),
    ],
)
def test_a_learning_rate_that_is_none_is_refused_with_its_origin(
    build, rate, make, origin
):
    net = build(make(rate))
    with pytest.raises(NonFiniteTrainingError) as caught:
        net.fit(X, Y if build is loop else Y.ravel())
    value = f"{0.01 * rate:.3g}" if make is scheduler else f"{rate:.3g}"
    assert str(caught.value) == (
        f"The learning rate of Adam is {value}, set by {origin}, at epoch 2, batch 1. "
        "Set a finite learning rate of at least 0."
    )
    assert caught.value.report.cause == "learning_rate"
    if build is loop:
        assert net.nonfinite_reports_ == [caught.value.report]
        assert all(torch.isfinite(w).all() for w in net.module_.parameters())


class SetParameter(SetRate):
    """Set the parameter ``lr`` at the beginning of an epoch."""

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            net.set_params(lr=self.rate)


@pytest.mark.parametrize("rate", [math.inf, math.nan])
def test_a_non_finite_parameter_is_named(rate):
    with pytest.raises(NonFiniteTrainingError) as caught:
        loop(SetParameter(rate)).set_params(optimizer=torch.optim.SGD).fit(X, Y)
    assert str(caught.value) == (
        f"The learning rate of SGD is {rate}, which is the parameter lr, at epoch 2, "
        "batch 1. Set a finite learning rate of at least 0."
    )


def group_with(rate):
    return {"optimizer__param_groups": [("bias", {"lr": rate})]}


GROUP = "set for 'bias' in optimizer__param_groups"


@pytest.mark.parametrize(
    ("params", "origin", "rate"),
    [
        (group_with, GROUP, math.nan),
        (group_with, GROUP, math.inf),
        (group_with, GROUP, 1e6),
        (
            lambda rate: {"optimizer__lr": rate},
            "which is the parameter optimizer__lr",
            1e6,
        ),
    ],
)
def test_a_rate_in_the_parameters_of_the_optimizer_is_named(params, origin, rate):
    net = loop(None, on_nonfinite="raise", **params(rate))
    with pytest.raises(NonFiniteTrainingError) as caught:
        net.set_params(optimizer=torch.optim.SGD, max_epochs=20).fit(X, Y)
    if math.isfinite(rate):
        report = caught.value.report
        assert report.evidence.endswith(" since the last good ones at lr=1e+06.")
        assert report.action == f"Lower the learning rate of 1e+06, {origin}."
        return
    assert str(caught.value) == (
        f"The learning rate of SGD is {rate}, {origin}, at epoch 1, batch 1. Set a "
        "finite learning rate of at least 0."
    )


def test_a_rate_in_param_groups_of_the_optimizer_is_named():
    net = loop(None).initialize()
    net.optimizer_.param_groups[0]["lr"] = -0.5
    with pytest.raises(NonFiniteTrainingError) as caught:
        net.partial_fit(X, Y)
    assert str(caught.value) == (
        "The learning rate of Adam is -0.5, set in optimizer.param_groups by a "
        "scheduler or by your own code, at epoch 1, batch 1. Set a finite learning "
        "rate of at least 0."
    )


@pytest.mark.parametrize("build", [loop, estimator])
@pytest.mark.parametrize(
    ("schedule", "found"),
    [
        (
            lambda progress: math.nan,
            "The lr_schedule <lambda> returned nan at progress 0.0. "
            "Return a finite factor of 0 or more",
        ),
        (lambda progress: 1.0 / (0.0 * progress), "float division by zero"),
        (lambda progress: float("half"), "could not convert string to float: 'half'"),
        (lambda progress: (-1.0 - progress) ** 0.5, "real number, not 'complex'"),
    ],
)
def test_a_schedule_that_fails_is_named(build, schedule, found):
    with pytest.raises(NonFiniteTrainingError) as caught:
        build(None, lr_schedule=schedule).fit(X, Y if build is loop else Y.ravel())
    message = str(caught.value)
    assert message.startswith("lr_schedule fails: ")
    assert found in message
    assert message.endswith(
        ", at epoch 1, batch 1. Set a finite learning rate of at least 0."
    )
    assert caught.value.report.cause == "learning_rate"


@pytest.mark.parametrize("build", [loop, estimator])
def test_a_rate_that_rounding_makes_negative_is_none(build):
    net = build(SetRate(-1e-12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.fit(X, Y if build is loop else Y.ravel())
    assert net.nonfinite_reports_ == []


@pytest.mark.parametrize("build", [loop, estimator])
def test_a_rate_that_a_callback_raises_for_an_epoch_is_lowered_in_it_alone(build):
    class Spike(Callback):
        def on_epoch_begin(self, net, **kwargs):
            is_third = len(net.history) == 3
            net.optimizer_.param_groups[0]["lr"] = 1e30 if is_third else 0.01

    net = build(Spike()).set_params(max_epochs=8, lr_schedule=None)
    with pytest.warns(DivergenceWarning) as caught:
        net.fit(X, Y if build is loop else Y[:, 0])
    history = getattr(net, "net_", net).history
    assert 1e-4 < history[2, "lr"] < 10.0  # a limit from now on
    assert history[:, "lr"][3:] == [min(0.01, history[2, "lr"])] * 5
    assert net.effective_lr_ == 0.01
    message = str(caught[0].message)
    assert message.startswith(
        "Training failed once and was rescued; it went on with rates of at most "
        f"{history[2, 'lr']:.3g}. First failure: "
    )
    assert message.endswith(
        " Lower the learning rate of 1e+30, set by the callback 'rate' (Spike)."
    )


def test_a_rate_is_not_lowered_for_an_earlier_one_that_was_too_high():
    rate = LRScheduler(
        torch.optim.lr_scheduler.LambdaLR,
        lr_lambda=lambda step: 1e25 if step == 39 else 1.0,
        step_every="batch",
    )
    net = loop(rate, optimizer=torch.optim.SGD, lr=0.1, max_epochs=30)
    with pytest.warns(DivergenceWarning):
        net.fit(X, Y)
    assert net.history[:, "lr"] == 19 * [0.1] + [0.1 * 1e25] + 10 * [0.1]
    assert net.effective_lr_ == 0.1
    assert net.guard_.rate_caps[0] >= 0.1
    (report,) = net.nonfinite_reports_
    assert (report.epoch, report.cause) == (21, "learning_rate")
    assert report.evidence.endswith(" since the last good ones at lr=1e+24.")
    assert report.action == (
        "Lower the learning rate of 1e+24, set by the callback 'rate' (LambdaLR)."
    )


def test_a_collapse_is_put_down_to_the_rate_of_the_scheduler():
    torch.manual_seed(0)
    net = GuardedNetRegressor(
        nn.Sequential(
            *[nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8)],
            *[nn.ReLU(), nn.Linear(8, 1)],
        ),
        lr=0.02,
        max_epochs=9,
        batch_size=5,
        train_split=None,
        verbose=0,
        callbacks=[
            ("rate", LRScheduler(torch.optim.lr_scheduler.ExponentialLR, gamma=3.0))
        ],
    )
    with pytest.warns(DivergenceWarning):
        net.fit(X, Y)
    report = net.nonfinite_reports_[0]
    rate = 0.02 * 3.0 ** (report.epoch - 1)
    assert report.evidence == (
        "The network has collapsed: it gives the same output for each of the 5 "
        f"different rows of a batch, at lr={rate:.3g}."
    )
    assert report.action == (
        f"Lower the learning rate of {rate:.3g}, set by ExponentialLR in the callback "
        "'rate'."
    )
