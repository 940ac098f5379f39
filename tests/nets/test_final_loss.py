"""Check of the loss after a training in which no step has failed."""

from __future__ import annotations

import copy
import re
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import FitFailedWarning
from sklearn.metrics import mean_squared_error, r2_score
from skorch.callbacks import Callback, Checkpoint, LRScheduler
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from sknan import (
    BatchedGridSearchCV,
    DivergenceWarning,
    GuardedNet,
    NonFiniteTrainingError,
    StableNetClassifier,
    StableNetRegressor,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 4)).astype("float32")
Y = (X @ np.array([1.0, -0.5, 0.2, 0.0]) + 0.1 * RNG.normal(size=200)).astype("float32")


class MLP(nn.Sequential):
    def __init__(self, has_norm=False, is_zero=False):
        norm = [nn.BatchNorm1d(16)] if has_norm else []
        super().__init__(nn.Linear(4, 16), *norm, nn.ReLU(), nn.Linear(16, 1))
        if is_zero:
            nn.init.zeros_(self[-1].weight)


def net_of(**options):
    torch.manual_seed(0)
    settings = {
        "criterion": nn.MSELoss,
        "optimizer": torch.optim.SGD,
        "max_epochs": 1,
        "batch_size": -1,
        "train_split": None,
        "verbose": 0,
    }
    return GuardedNet(**{"module": MLP} | settings | options)


def fit_estimator(kind, lr, max_epochs):
    y = Y if kind is StableNetRegressor else (Y > 0).astype(int)
    options = {"lr": lr, "max_epochs": max_epochs, "batch_size": 200, "random_state": 0}
    return kind(early_stopping=False, **options).fit(X, y)


@pytest.mark.parametrize(("lr", "size"), [(1e2, r"\d\.\d+e\+\d+"), (1e20, "inf")])
def test_a_single_step_that_ruins_the_network_is_an_error(lr, size):
    with pytest.raises(NonFiniteTrainingError) as caught:
        net_of(lr=lr).fit(X, Y[:, None])
    assert re.fullmatch(
        r"Training diverged at epoch 1, batch 1\. The loss has risen from \d\.\d+ "
        rf"before the training to {size} after it, far above that of a constant "
        rf"output(, 1\.\d+)?, at lr={re.escape(f'{lr:g}')}\. Lower lr; for an "
        r"estimator, sknan\.find_learning_rate suggests one\.",
        str(caught.value),
    )
    assert caught.value.report.cause == "learning_rate"


@pytest.mark.parametrize("kind", [StableNetRegressor, StableNetClassifier])
@pytest.mark.parametrize("lr", [1e2, 1e8, 1e20])
@pytest.mark.parametrize("max_epochs", [1, 2])
def test_no_estimator_is_ruined_silently(kind, lr, max_epochs):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DivergenceWarning)
            model = fit_estimator(kind, lr, max_epochs)
    except NonFiniteTrainingError:
        return
    y = Y if kind is StableNetRegressor else (Y > 0).astype(int)
    assert model.score(X, y) > 0.2


def test_a_continued_training_that_ruins_the_network_is_undone():
    net = net_of(lr=0.1, max_epochs=50).fit(X, Y[:, None])
    before = net.predict(X)
    net.set_params(optimizer__lr=1e4, max_epochs=1)
    with pytest.warns(
        DivergenceWarning, match=r"lr=1e\+04\..* The weights from before"
    ):
        net.partial_fit(X, Y[:, None])
    np.testing.assert_array_equal(net.predict(X), before)


def test_the_moments_of_a_training_that_is_undone_are_forgotten():
    momentum = {"optimizer__momentum": 0.9, "batch_size": 100}
    net = net_of(lr=0.01, max_epochs=20, **momentum).fit(X, Y[:, None])
    net.set_params(lr=2.0, max_epochs=1)
    before, losses = net.predict(X), []
    for _ in range(4):
        with pytest.warns(DivergenceWarning, match="The weights from before the"):
            net.partial_fit(X, Y[:, None])
        np.testing.assert_array_equal(net.predict(X), before)
        losses.append(net.history[-1, "train_loss"])
    # The first call continues the momentum of fit, the others start without any.
    assert losses[1] == losses[2] == losses[3]


def test_a_candidate_that_is_ruined_has_no_score():
    model = StableNetRegressor(max_epochs=1, early_stopping=False, random_state=0)
    search = BatchedGridSearchCV(model, {"lr": [3e-3, 1e6]}, cv=2, refit=False)
    with (
        pytest.warns(FitFailedWarning, match="The loss has risen"),
        pytest.warns(UserWarning, match="test scores are non-finite"),
        pytest.warns(DivergenceWarning, match="1 of 2 candidates diverged, from lr=1e"),
    ):
        search.fit(X, Y)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [False, True]


class Score(nn.Module):
    """Score that is highest at the target."""

    def forward(self, output, target):
        return torch.exp(-(output - target - 3.0).square() / 8.0).mean()


@pytest.mark.parametrize("kind", ["loop", "stack"])
def test_a_score_that_is_maximized_may_rise(kind):
    options = {"criterion": Score, "optimizer": torch.optim.Adam, "lr": 0.02}
    options["optimizer__maximize"] = True
    if kind == "loop":
        model = net = net_of(max_epochs=80, **options).fit(X, Y[:, None])
    else:
        model = StableNetRegressor(max_epochs=20, random_state=0, **options).fit(X, Y)
        net = model.net_
    scores = net.history[:, "train_loss"]
    assert model.nonfinite_reports_ == []
    assert scores[-1] > 2 * scores[0]


@pytest.mark.parametrize("kind", ["loop", "stack"])
def test_fine_tuning_of_a_good_module(kind):
    """Ten times the loss of a good network is still good."""
    y = X[:, 0]
    trained = StableNetRegressor(MLP(), lr=0.01, max_epochs=150, random_state=0)
    module = trained.fit(X, y).net_.module_
    first = mean_squared_error(y, trained.predict(X))

    def fitted(lr):
        options = {"lr": lr, "max_epochs": 1, "batch_size": 16}
        if kind == "stack":
            options |= {"lr_schedule": "constant", "random_state": 0}
            return StableNetRegressor(copy.deepcopy(module), **options).fit(X, y)
        torch.manual_seed(0)
        options |= {"optimizer": torch.optim.Adam, "train_split": None, "verbose": 0}
        return GuardedNet(copy.deepcopy(module), nn.MSELoss, **options).fit(
            X, y[:, None]
        )

    model = fitted(0.1)
    assert model.nonfinite_reports_ == []
    assert mean_squared_error(y, model.predict(X)) > 10 * first
    assert r2_score(y, model.predict(X)) > 0.5
    with pytest.warns(DivergenceWarning, match=r"The loss has (grown|risen)"):
        model = fitted(1000.0)
    assert r2_score(y, model.predict(X)) > 0.99


def test_one_row_that_makes_up_the_standard_error_hides_no_ruin():
    inputs = X[:60].copy()
    inputs[5] *= 1000.0
    target = np.clip(inputs[:, :1] - inputs[:, 1:2], -3.0, 3.0)
    with pytest.raises(NonFiniteTrainingError, match="The loss has risen"):
        net_of(lr=0.1).fit(inputs, target)


class TwoHeads(MLP):
    def forward(self, x):
        output = super().forward(x)
        return output, torch.cat([output, -output], dim=1)


class TwoLosses(nn.Module):
    def forward(self, outputs, target):
        is_high = (target[:, 0] > 0).long()
        return (outputs[0] - target).square().mean() + nn.functional.cross_entropy(
            outputs[1], is_high
        )


def test_a_network_with_several_outputs_is_not_ruined_silently():
    options = {
        "module": TwoHeads,
        "criterion": TwoLosses,
        "optimizer": torch.optim.Adam,
    }
    assert net_of(**options, lr=1e-3).fit(X, Y[:, None]).nonfinite_reports_ == []
    with pytest.raises(NonFiniteTrainingError, match="The loss has risen"):
        net_of(**options, lr=30.0).fit(X, Y[:, None])


def test_the_report_names_the_learning_rate_of_the_user():
    with pytest.raises(NonFiniteTrainingError, match=r"output, .*, at lr=1e\+03\. L"):
        net_of(lr=1e3, warmup=5).fit(X, Y[:, None])


def test_the_report_names_the_rate_before_a_scheduler_has_lowered_it():
    cosine = LRScheduler(CosineAnnealingLR, T_max=1)
    with pytest.raises(NonFiniteTrainingError, match=r"output, .*, at lr=1e\+03\. "):
        net_of(lr=1e3, callbacks=[cosine]).fit(X, Y[:, None])


def test_a_loss_that_has_risen_above_that_of_a_constant_gives_a_warning():
    rise = (
        r"risen from 1\.1 before the training to 3\.3\d after it, above that of a con"
    )
    with pytest.warns(
        DivergenceWarning, match=rf"{rise}stant output, 1\.21, at lr=3\."
    ):
        net = net_of(lr=3.0, max_epochs=20, batch_size=100, clip_norm=1.0).fit(
            X, Y[:, None]
        )
    assert net.nonfinite_reports_ == []
    # The first steps at a usual rate may do so too.
    net.set_params(max_epochs=9).fit(X, Y[:, None])


class Tolerant(nn.Module):
    """Loss that is exactly 0 for small errors."""

    def forward(self, output, target):
        return torch.relu((output - target).abs() - 5.0).mean()


class Drift(Callback):
    def __init__(self, step):
        self.step = step

    def on_epoch_end(self, net, **_):
        with torch.no_grad():
            net.module_[-1].bias.add_(self.step)


@pytest.mark.parametrize(
    ("criterion", "offset", "step"), [(nn.MSELoss, 2.0, -1e-3), (Tolerant, 0.0, 0.2)]
)
def test_a_rise_within_chance_or_from_zero_is_not_reported(criterion, offset, step):
    options = {"lr": 1e-9, "max_epochs": 30, "callbacks": [Drift(step)]}
    net = net_of(criterion=criterion, **options).fit(X, Y[:, None] + offset)
    assert net.nonfinite_reports_ == []
    assert net.history[-1, "train_loss"] > net.history[0, "train_loss"]


class Normalized(nn.MSELoss):
    """Loss divided by its moving average."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, output, target):
        loss = super().forward(output, target)
        self.mean.mul_(0.9).add_(0.1 * loss.detach())
        return loss / self.mean


class NormalizedByAssignment(Normalized):
    """Loss divided by its moving average, a new tensor in each step."""

    def forward(self, output, target):
        loss = nn.MSELoss.forward(self, output, target)
        self.mean = 0.9 * self.mean + 0.1 * loss.detach()
        return loss / self.mean


@pytest.mark.parametrize("criterion", [Normalized, NormalizedByAssignment])
def test_a_loss_that_changes_with_the_training_is_not_compared_with_the_first_one(
    criterion,
):
    target = (X[:, :2] > 0).astype("float32")
    module = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    options = {"lr": 0.03, "max_epochs": 30, "batch_size": 50}
    net = net_of(module=module, criterion=criterion, **options).fit(X, target)
    assert net.nonfinite_reports_ == []
    assert r2_score(target, net.predict(X)) > 0.6


@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize("options", [{}, {"has_norm": True}, {"is_zero": True}])
def test_short_healthy_trainings_are_not_reported(options, is_sorted):
    order = np.argsort(Y) if is_sorted else np.arange(len(Y))
    module = {f"module__{name}": value for name, value in options.items()}
    for target in (Y[order, None], 1000.0 + 10.0 * Y[order, None]):
        for batch_size in (2, 16, -1):
            options = {"lr": 1e-3, "optimizer": torch.optim.Adam, **module}
            net = net_of(batch_size=batch_size, **options)
            assert net.fit(X[order], target).nonfinite_reports_ == []


def test_the_best_epoch_counts_if_a_callback_returns_to_it(tmp_path):
    class Ruin(torch.optim.SGD):
        """Steps of which the third is too long."""

        def step(self, closure=None):
            n = self.n = getattr(self, "n", 0) + 1
            self.param_groups[0]["lr"] = 100.0 if n == 3 else 0.1
            return super().step(closure)

    best = Checkpoint(dirname=str(tmp_path), load_best=True)
    data = predefined_split(Dataset(X, Y[:, None]))
    options = {"optimizer": Ruin, "max_epochs": 3}
    net = net_of(train_split=data, callbacks=[best], **options).fit(X, Y[:, None])
    assert net.nonfinite_reports_ == []
    assert r2_score(Y, net.predict(X)) > -0.5
    with pytest.warns(DivergenceWarning, match="The loss has risen"):
        net = net_of(train_split=data, **options).fit(X, Y[:, None])
    (report,) = net.nonfinite_reports_
    assert report.recovery == "The last verified weights were restored."
    assert r2_score(Y, net.predict(X)) > 0
    with pytest.raises(NonFiniteTrainingError, match="The loss has risen"):
        net_of(train_split=data, max_recoveries=0, **options).fit(X, Y[:, None])


class Counted(nn.MSELoss):
    """Loss that depends on how often it was called."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, output, target):
        self.n += 1
        return super().forward(output, target) * self.n


def test_the_check_leaves_no_trace():
    net = net_of(lr=1e-3, criterion=Counted, module__has_norm=True).fit(X, Y[:, None])
    assert net.criterion_.n == 1
    assert net.module_[1].num_batches_tracked == 1
