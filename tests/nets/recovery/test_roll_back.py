"""Roll backs with a lower learning rate or with clipping."""

from __future__ import annotations

import pytest
import torch
from failing_trainings import MLP, X, Y, fitted, is_sound, network_of, r2, refused
from sklearn.metrics import r2_score
from skorch.callbacks import Callback, LRScheduler
from torch import nn

from sknan import StableNetRegressor
from sknan.nets.recovery.amplification import amplification_of
from sknan.optim import QuantileClip


def test_the_learning_rate_is_lowered_until_the_network_learns():
    net = fitted(network_of(MLP, lr=1e4))
    (report,) = net.nonfinite_reports_
    assert report.cause == "learning_rate"
    assert report.recovery.startswith(
        "The last verified weights were restored, and the learning rate was divided by "
    )
    assert 1e-3 < net.effective_lr_ < 2.0
    assert r2(net) > 0.8


@pytest.mark.parametrize("kind", ["loop", "stack"])
def test_a_step_that_fails_at_any_rate_ends_the_training_at_any_budget(kind):
    options = {"optimizer": torch.optim.AdamW, "optimizer__eps": 0.0}
    options["max_recoveries"] = 10**9
    data = X.copy()
    data[:, 0] = 0.0  # whose weights have a gradient of 0
    if kind == "loop":
        net, target = network_of(MLP, **options), Y
    else:
        net, target = StableNetRegressor(MLP, **options), Y[:, 0]
    error = refused(net, data, target)
    assert str(error).endswith(
        "such as optimizer__eps=1e-8. No learning rate is low enough."
    )


@pytest.mark.parametrize("kind", ["loop", "stack"])
def test_a_new_learning_rate_ends_the_reduction_of_the_earlier_one(kind):
    if kind == "loop":
        net, target = network_of(MLP, lr=1e4, max_epochs=2), Y
    else:
        net = StableNetRegressor(optimizer="sgd", lr=1e4, max_epochs=2, random_state=0)
        target = Y[:, 0]
    rescued = fitted(net, X, target)
    lowered = rescued.effective_lr_
    assert lowered < 100.0
    rescued.partial_fit(X, target)
    assert rescued.effective_lr_ == lowered
    rescued.set_params(lr=0.1)
    for _ in range(10):
        rescued.partial_fit(X, target)
    assert rescued.effective_lr_ == 0.1
    assert len(rescued.nonfinite_reports_) == 1
    assert r2_score(target, rescued.predict(X)) > 0.8


@pytest.mark.parametrize("kind", ["loop", "stack"])
def test_an_eps_of_zero_is_to_blame_and_not_the_learning_rate(kind):
    def net(eps):
        options = {"optimizer": torch.optim.AdamW, "lr": 0.01, "optimizer__eps": eps}
        if kind == "loop":
            return network_of(two_layers, **options), Y
        return StableNetRegressor(two_layers(), random_state=0, **options), Y[:, 0]

    constant = X.copy()
    constant[:, 2] = 0.0
    model, target = net(0.0)
    report = refused(model, constant, target).report
    assert report.cause == "precision"
    assert report.evidence.endswith(
        " of 6 weight tensors are non-finite, first '0.weight': the optimizer has "
        "divided by 0 where the square of a gradient is 0, since its eps is 0."
    )
    assert report.action == (
        "Give the optimizer an eps above 0, such as optimizer__eps=1e-8."
    )
    model, target = net(1e-8)
    assert not fitted(model, constant, target).nonfinite_reports_


def two_layers():
    return nn.Sequential(
        *(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
    )


@pytest.mark.parametrize("lr", [0.5, 1.0])
def test_an_optimizer_that_divides_by_the_gradient_gets_a_useful_rate(lr):
    # The gradients alone suggest rates around 1e-8.
    options = {"optimizer": torch.optim.RMSprop, "lr": lr}
    net = fitted(network_of(two_layers, **options))
    assert net.nonfinite_reports_
    assert 1e-3 < net.effective_lr_ < 0.1
    assert r2(net) > 0.8
    estimator = StableNetRegressor(
        optimizer="rmsprop",
        lr=lr,
        lr_schedule="constant",
        clip_norm=None,
        max_epochs=10,
        random_state=0,
        module__width=16,
    )
    model = fitted(estimator, X, Y[:, 0])
    assert model.nonfinite_reports_
    assert 1e-3 < model.effective_lr_ < 0.1
    assert model.score(X, Y[:, 0]) > 0.8


@pytest.mark.parametrize("kind", ["loop", "stack"])
def test_the_rate_suits_the_momentum_of_a_long_training(kind):
    options = {"lr": 1.0, "optimizer__momentum": 0.95, "max_epochs": 20}
    if kind == "loop":
        net = fitted(network_of(two_layers, **options))
        assert net.nonfinite_reports_
        assert r2(net) > 0.9
        return
    estimator = StableNetRegressor(
        two_layers,
        optimizer="sgd",
        batch_size=16,
        lr_schedule="constant",
        clip_norm=None,
        early_stopping=False,
        random_state=1,
        **options,
    )
    model = fitted(estimator, X, Y[:, 0])
    assert model.nonfinite_reports_
    assert model.score(X, Y[:, 0]) > 0.9


def test_trials_of_lower_rates_leave_the_history_of_an_adaptive_clip_unchanged():
    net = fitted(network_of(MLP, lr=1e4, adaptive_clip=QuantileClip()))
    assert net.nonfinite_reports_
    # One norm for each step that was taken, and no others.
    assert len(net.adaptive_clip_._latest) <= 10 * 8


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        widths = [4] + [24] * 10
        self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
        self.head = nn.Linear(24, 1)
        for layer in [*self.layers, self.head]:
            nn.init.normal_(layer.weight, std=0.4)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


def test_a_network_that_amplifies_gradients_is_clipped_at_an_unchanged_rate():
    net = fitted(network_of(Deep, lr=0.1, max_epochs=30))
    first = net.nonfinite_reports_[0]
    assert first.cause == "gradient"
    assert "gradients are now clipped to norm" in first.recovery
    assert net.effective_lr_ == 0.1
    assert r2(net) > 0.5


def test_a_row_outside_a_domain_does_not_make_a_network_amplify():
    net = network_of(MLP).initialize()
    rows = torch.full((8, X.shape[1]), torch.nan)
    rows[1:] = 1.0
    assert amplification_of(net, (rows, torch.zeros(8, 1)), {}) == ""
    rows[:] = torch.nan
    assert amplification_of(net, (rows, torch.zeros(8, 1)), {}) == (
        "amplifies gradients nan times from output to input"
    )


class Growing(Callback):
    """Schedule with a factor above 1."""

    def on_epoch_end(self, net, **_):
        net.optimizer_.param_groups[0]["lr"] *= 3.0


def test_no_scheduler_raises_the_rate_above_the_largest_sound_one():
    net = fitted(network_of(MLP, max_epochs=20, callbacks=[Growing()]))
    assert is_sound(net)
    assert r2(net) > 0.5
    assert len(net.nonfinite_reports_) < 5


@pytest.mark.parametrize("model_class", [network_of, StableNetRegressor])
def test_reports_and_history_have_the_rates_that_a_scheduler_has_set(model_class):
    options = {"lr": 0.01, "lr_schedule": None, "max_epochs": 20}
    options["callbacks"] = [LRScheduler("StepLR", step_size=2, gamma=10.0)]
    if model_class is network_of:
        model = net = fitted(model_class(MLP, optimizer=torch.optim.SGD, **options))
    else:
        model = model_class(optimizer="sgd", random_state=0, **options)
        model = fitted(model, X, Y[:, 0])
        net = model.net_
    rates, report = net.history[:, "lr"], model.nonfinite_reports_[0]
    rate = 0.01 * 10.0 ** ((report.epoch - 1) // 2)
    assert f"at lr={rate:.3g}." in report.evidence
    after = rates[report.epoch :]
    assert after
    assert max(after) <= rates[report.epoch - 1] * 1.001 < rate


def test_a_weight_decay_that_explodes_by_itself_is_refused():
    error = refused(network_of(MLP, lr=0.5, optimizer__weight_decay=10.0))
    assert str(error) == (
        "Training diverged. lr=0.5 times weight_decay=10 multiplies every weight by -4 "
        "at each step, whatever the data. Lower weight_decay to 0.1 or less."
    )


def test_an_optimizer_that_maximizes_the_loss_is_reported():
    error = refused(network_of(MLP, lr=0.5, optimizer__maximize=True, max_epochs=60))
    assert "SGD climbs the loss: maximize=True." in str(error)
    assert error.report.action == (
        "Leave out maximize, or return the score with its sign changed."
    )


def test_a_momentum_above_one_is_reported_and_a_lower_one_trains():
    error = refused(network_of(MLP, lr=1e-5, optimizer__momentum=1.5, max_epochs=60))
    assert (
        "SGD adds 1.5 times the last step to each step, whatever the learning rate: "
        "momentum=1.5."
    ) in str(error)
    assert error.report.action == "Lower momentum to below 1, such as 0.9."
    followed = network_of(MLP, lr=0.01, optimizer__momentum=0.9, max_epochs=20)
    assert r2(fitted(followed)) > 0.5


class Undone(Callback):
    """Callback that undoes learning after each epoch."""

    def on_epoch_end(self, net, **_):
        with torch.no_grad():
            net.module_.head.bias.fill_(5.0)


def test_a_rescue_that_has_learned_nothing_is_an_error():
    net = network_of(MLP, lr=1e30, max_epochs=2, callbacks=[Undone()])
    error = refused(net)
    assert str(error) == (
        "Training failed in 2 steps of 2 epochs, for 2 reasons, and the rescued "
        "network has learned nothing: its loss is no better than that of the untrained "
        "network, or of a constant output. First failure: "
        f"{net.nonfinite_reports_[0]}"
    )


class Brittle(nn.Module):
    """Output that overflows once its bias has moved; no learning rate helps."""

    def __init__(self):
        super().__init__()
        self.body = MLP()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        output = self.body(x) + torch.expm1(1e12 * self.bias**2) - 1e3 * self.bias
        return output, output  # of which no constant is known


class OfFirst(nn.MSELoss):
    def forward(self, outputs, target):
        return super().forward(outputs[0], target)


def test_a_rate_too_low_to_change_the_loss_is_no_rescue():
    net = network_of(Brittle, OfFirst, lr=1.0, max_epochs=2)
    error = refused(net)
    assert net.effective_lr_ < 1e-8
    reports = net.nonfinite_reports_
    assert str(error) == (
        f"Training failed in {len(reports)} steps of 1 epoch, for 2 reasons, and the "
        "rescued network has learned nothing: its loss is no better than that of the "
        f"untrained network, or of a constant output. First failure: {reports[0]}"
    )


class InSmallUnits(nn.MSELoss):
    def forward(self, output, target):
        return 1e12 * super().forward(output, target)


def test_a_rate_below_1e_8_is_a_rescue_if_the_loss_is_in_such_units():
    net = fitted(network_of(MLP, InSmallUnits, max_epochs=20))
    assert net.effective_lr_ < 1e-8
    assert r2(net) > 0.9


class Units(nn.Module):
    """Loss with finite gradients whose squares overflow."""

    def forward(self, output, target):
        return 1e30 * (output - target).square().mean()


def test_gradients_whose_squares_overflow_are_reported_as_large():
    net = fitted(network_of(MLP, Units, optimizer=torch.optim.RMSprop, lr=0.01))
    (report,) = net.nonfinite_reports_
    assert (report.phase, report.cause) == ("backward", "gradient")
    assert r2(net) > 0.8
