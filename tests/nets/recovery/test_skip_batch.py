"""Batches outside the domain of an operation: left out, at the same learning rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from failing_trainings import (
    MLP,
    LogOfFirst,
    X,
    Y,
    fitted,
    is_sound,
    network_of,
    r2,
    with_bad_rows,
)
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping
from torch import nn

from sknan.nets.guard._guard import BATCH_IDLE, BATCH_SKIPPED, STEP_SKIPPED
from sknan.nets.recovery.drop_rows import DropRows
from sknan.nets.recovery.own_gradient import TakeOwnGradient

# Parameters that skorch's nets have too.
COMMON = (
    "module",
    "criterion",
    "optimizer",
    "lr",
    "max_epochs",
    "batch_size",
    "train_split",
    "verbose",
    "iterator_train__shuffle",
)


class MeanOfViolations(nn.Module):
    """Mean error of the rows whose error is above a tolerance: 0/0 if none is."""

    def __init__(self, least=0.0):
        super().__init__()
        self.least = least

    def forward(self, output, target):
        error = (output - target).abs()
        is_far = error > 0.3
        return (error * is_far).sum() / is_far.sum().clamp(min=self.least)


def test_a_batch_with_nothing_to_learn_costs_nothing():
    net = fitted(network_of(MLP, MeanOfViolations, max_epochs=30, max_recoveries=1))
    safe = fitted(
        network_of(MLP, MeanOfViolations, criterion__least=1.0, max_epochs=30)
    )
    assert safe.nonfinite_reports_ == []
    assert len(net.nonfinite_reports_) > 100
    assert {report.recovery for report in net.nonfinite_reports_} == {BATCH_IDLE}
    assert net.effective_lr_ == 0.05
    assert r2(net) > r2(safe) - 0.02
    has_step = np.array(net.history[:, "n_recoveries"]) < 8
    losses = np.array(net.history[:, "train_loss"])
    assert (losses[has_step] > 0.0).all()
    assert np.isnan(losses[~has_step]).all()


class Undefined(nn.Module):
    """Squared error, which has no logarithm in the second epoch."""

    def forward(self, output, target):
        loss = (output - target).square().mean()
        return torch.log(-loss) if self.is_undefined else loss


class InSecondEpoch(Callback):
    def on_epoch_begin(self, net, **kwargs):
        net.criterion_.is_undefined = len(net.history) == 2


@pytest.mark.parametrize(
    ("policy", "recovery"), [("recover", BATCH_IDLE), ("skip", STEP_SKIPPED)]
)
def test_an_epoch_without_a_step_has_a_loss_of_nan(policy, recovery):
    callbacks = [InSecondEpoch(), EarlyStopping("train_loss")]
    options = {"max_epochs": 4, "batch_size": 64, "callbacks": callbacks}
    net = fitted(network_of(MLP, Undefined, on_nonfinite=policy, **options))
    assert {report.recovery for report in net.nonfinite_reports_} == {recovery}
    losses = net.history[:, "train_loss"]
    assert np.isnan(losses).tolist() == [False, True, False, False]


class RootOfOutput(nn.Module):
    """Loss that is NaN for all rows if the first one is below a bound."""

    def forward(self, output, target):
        error = (output - target).square().mean()
        return error + 0.0 * torch.sqrt(output[0] + 1.0 - 1e-3).sum()


def test_a_batch_outside_a_domain_never_lowers_the_rate():
    net = fitted(network_of(MLP, RootOfOutput, max_epochs=20))
    assert is_sound(net)
    assert len(net.nonfinite_reports_) > 3
    assert net.effective_lr_ == 0.05
    assert r2(net) > 0.9


def test_a_batch_of_huge_rows_never_lowers_the_rate():
    """Its loss is finite at the first weights, and overflows as these grow."""
    module = nn.Linear(4, 1)
    nn.init.constant_(module.weight, 0.1)
    data = X.copy()
    data[112:, 0] = 3e19
    options = {"lr": 0.1, "max_epochs": 3, "iterator_train__shuffle": False}
    net = fitted(network_of(module, **options), data)
    found = [(r.cause, r.batch, r.recovery) for r in net.nonfinite_reports_]
    assert found == 3 * [("data", 8, BATCH_SKIPPED)]
    assert net.effective_lr_ == 0.1
    assert r2(net, X[:112], Y[:112]) > 0.9


class Ordinal(nn.Module):
    """Probabilities of five classes between cut points, which may cross."""

    def __init__(self, n_features_in=4, n_outputs=5):
        super().__init__()
        self.score = nn.Linear(n_features_in, 1)
        self.cut = nn.Parameter(torch.tensor([0.4, -0.3, 0.2, -0.1]))

    def forward(self, inputs):
        below = torch.sigmoid(self.cut - self.score(inputs))
        parts = [below[:, :1], below[:, 1:] - below[:, :-1], 1 - below[:, -1:]]
        return torch.cat(parts, dim=1)


class Likelihood(nn.Module):
    def forward(self, output, target):
        return -torch.log(output.gather(1, target[:, None])).mean()


def test_rows_that_fail_again_and_again_are_learned_from():
    labels = np.digitize(Y[:, 0], [-0.4, -0.1, 0.2, 0.5]).astype("int64")
    options = {"optimizer": torch.optim.Adam, "max_epochs": 40}
    net = network_of(Ordinal, Likelihood, **options)
    plain = NeuralNet(**{name: net.get_params()[name] for name in COMMON})
    fitted(net, X, labels)
    recoveries = [report.recovery for report in net.nonfinite_reports_]
    assert recoveries.index(TakeOwnGradient.says) >= 16  # after two epochs
    assert net.effective_lr_ == 0.05
    torch.manual_seed(0)
    plain.fit(X, labels)
    accuracy = (net.predict(X).argmax(1) == labels).mean()
    # Two epochs without these rows, and clipped steps, cost some accuracy.
    assert accuracy > (plain.predict(X).argmax(1) == labels).mean() - 0.1
    assert accuracy > 0.6


def test_rows_whose_gradient_is_not_finite_are_left_out_throughout():
    net = fitted(network_of(LogOfFirst, max_epochs=6), with_bad_rows())
    recoveries = {report.recovery for report in net.nonfinite_reports_}
    assert recoveries == {DropRows.says}
    assert len(net.nonfinite_reports_) == 12
