"""Loss of the best constant output."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from failing_trainings import (
    LogOfFirst,
    X,
    Y,
    fitted,
    network_of,
    r2,
    refused,
    with_bad_rows,
)
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import nn

from sknan import DivergenceWarning, StableNetClassifier, functional
from sknan.losses._registry import closed_form_of
from sknan.nets.recovery.constant_output import lowest_constant_loss
from sknan.nets.recovery.drop_rows import DropRows
from sknan.nets.recovery.rate_trials import RateTrials
from sknan.nets.recovery.repair_operations import RepairOperations
from sknan.nets.recovery.sample_losses import _Rows

LABELS = (Y[:, 0] > 0.5).astype("int64")


def lowest(criterion, n_outputs, target, module=None):
    torch.manual_seed(0)
    module = module or nn.Linear(4, n_outputs)
    net = network_of(module, criterion).initialize()
    data = torch.tensor(X).split(32), torch.tensor(target).split(32)
    batches = list(zip(*data, strict=True))
    with torch.no_grad():
        outputs = [net.module_(inputs) for inputs, _ in batches]
    return lowest_constant_loss(net, batches, [outputs])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_best_constant_for_a_squared_error_is_the_mean(offset):
    found = lowest(nn.MSELoss, 1, Y + np.float32(offset))
    assert found == pytest.approx(np.var(Y), rel=1e-3)


def test_the_best_constant_for_a_cross_entropy_is_the_share_of_each_class():
    share = LABELS.mean()
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    assert lowest(nn.CrossEntropyLoss, 2, LABELS) == pytest.approx(entropy, rel=1e-3)


class Bias(nn.Module):
    """Module whose output is a view of its weights, which later steps change."""

    def __init__(self, n_outputs):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_outputs))

    def forward(self, X):
        return self.bias.expand(len(X), -1)


def test_an_output_may_be_a_view_of_a_weight():
    share = np.mean(LABELS)
    model = StableNetClassifier(Bias, lr=0.02, random_state=0).fit(X, LABELS)
    assert model.predict_proba(X)[:, 1] == pytest.approx(share, abs=0.02)
    net = network_of(Bias(2), nn.CrossEntropyLoss).fit(X, LABELS)
    assert net.predict_proba(X).shape == (len(X), 2)


class OwnLikelihood(nn.Module):
    def forward(self, output, target):
        return -torch.log(output.gather(1, target[:, None])).mean()


def test_a_constant_is_never_outside_the_range_of_the_outputs():
    # As probabilities, both outputs could otherwise become large.
    module = nn.Sequential(nn.Linear(4, 2), nn.Softmax(dim=1))
    assert lowest(OwnLikelihood, 2, LABELS, module) >= 0.0


@pytest.mark.parametrize(
    ("criterion", "last"),
    [(OwnLikelihood, nn.Softmax(dim=1)), (nn.NLLLoss, nn.LogSoftmax(dim=1))],
)
def test_a_constant_of_probabilities_adds_up_to_one(criterion, last):
    share = LABELS.mean()
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    module = nn.Sequential(nn.Linear(4, 2), last)
    assert entropy <= lowest(criterion, 2, LABELS, module) < 1.02 * entropy


class Pair(nn.Linear):
    def forward(self, inputs):
        return (super().forward(inputs),) * 2


class OfFirst(nn.MSELoss):
    def forward(self, outputs, target):
        return super().forward(outputs[0], target)


def test_several_outputs_have_no_constant():
    assert math.isnan(lowest(OfFirst, 1, Y, Pair(4, 1)))


class LikelihoodOfScale(nn.Module):
    """Negative log-likelihood that is NaN for the rows whose scale is negative."""

    def forward(self, output, target):
        mean, scale = output[:, :1], output[:, 1:]
        return (scale.log() + 0.5 * ((target - mean) / scale) ** 2).mean()


class MeanAndScale(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


def test_a_rescue_far_worse_than_a_constant_is_no_success():
    # Steps near a scale of 0 throw the weights far away, where the loss is flat.
    net = network_of(
        MeanAndScale, LikelihoodOfScale, lr=0.01, optimizer__momentum=0.9, max_epochs=15
    )
    torch.manual_seed(1)
    error = refused(net)
    first = net.nonfinite_reports_[0]
    assert str(error) == (
        "Training failed in 16 steps of 2 epochs, for one reason, and the rescued "
        "network has learned nothing: its loss is no better than that of the untrained "
        f"network, or of a constant output. First failure: {first}"
    )
    assert {r.recovery for r in net.nonfinite_reports_} == {
        DropRows.says,
        RepairOperations.says,
    }


class Root(nn.Module):
    """Network at a constant output, with 0 * inf in the gradient of most rows."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 16)
        self.head = nn.Linear(16, 1)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        h = self.first(x)
        return self.head(torch.where(h > 0, torch.sqrt(h), 0.1 * h))


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)
        nn.init.constant_(self.head.weight, 0.5)

    def forward(self, x):
        return self.head(torch.cat([torch.log(x[:, :1]), x[:, 1:]], 1))


class Drift(Callback):
    """Slow growth of the loss, which is then not on its way down."""

    def on_epoch_end(self, net, **_):
        with torch.no_grad():
            net.module_.head.weight.mul_(1.1)
            net.module_.head.bias.add_(0.1)


@pytest.mark.parametrize(
    ("module", "says"), [(Root, RepairOperations.says), (Linear, DropRows.says)]
)
def test_a_rescue_that_chance_would_explain_is_no_success(module, says):
    """Two standard errors of the loss contain that of a constant output.

    A network whose operations were repaired in most steps must be better than it, and
    one whose loss is far higher in the mean, by one row alone, is worse.
    """
    data = X
    if module is Linear:
        data = with_bad_rows()
        data[20, 1] = 1e3
    net = network_of(module, lr=1e-9, max_epochs=3, callbacks=[Drift()])
    assert "has learned nothing" in str(refused(net, data, Y - Y.mean()))
    assert {report.recovery for report in net.nonfinite_reports_} == {says}


class LogOfCodes(nn.Module):
    """Network with a logarithm that is undefined for most rows."""

    def __init__(self, log):
        super().__init__()
        self.log = log
        self.codes = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.log(self.codes(x).exp().mean(1) - 0.999))


@pytest.mark.filterwarnings("ignore:Non-finite output of aten.log")
def test_the_repaired_outputs_count_where_most_rows_need_repair():
    """The network is good for the few other rows, and far off for these."""
    rng = np.random.default_rng(0)
    inputs, effects = rng.integers(0, 50, (400, 4)), rng.normal(size=50)
    targets = effects[inputs].mean(1)[:, None].astype("float32")
    options = {"lr": 0.1, "batch_size": 128, "train_split": ValidSplit(5)}
    net = network_of(LogOfCodes, module__log=torch.log, **options)
    error = refused(net, inputs, targets)
    assert "has learned nothing" in str(error)
    assert {r.recovery for r in net.nonfinite_reports_} == {RepairOperations.says}
    loss = np.square(net.predict(inputs[:80]) - targets[:80]).mean()
    assert net.history[-1, "valid_loss"] == pytest.approx(loss, rel=1e-5)
    # The advice of the error.
    assert "Use sknan.functional.log," in str(error)
    net = network_of(LogOfCodes, module__log=functional.log, max_epochs=20, **options)
    assert r2(fitted(net, inputs, targets), inputs, targets) > 0.0


def test_a_rescue_whose_loss_is_still_high_is_remarked_on():
    net = network_of(LogOfFirst, lr=1e-3, max_epochs=2)
    with pytest.warns(DivergenceWarning) as caught:
        net.fit(with_bad_rows(), Y + 2.0)
    assert str(caught[0].message) == (
        "Training failed in 4 steps of 2 epochs, for one reason, and was rescued. Rows "
        "7, 90 were left out of steps. Its loss of 2.69 on training rows is still "
        "above that of a constant output, 1.85. First failure: "
        f"{net.nonfinite_reports_[0]}"
    )


def test_rows_that_always_fail_do_not_count_against_a_rescue():
    data = X.copy()
    data[[7, 90], 0] = -3e38
    net = fitted(network_of(nn.Linear(4, 1), max_epochs=20), data)
    assert {row for r in net.nonfinite_reports_ for row in r.rows} == {7, 90}
    sound = np.setdiff1d(np.arange(len(X)), [7, 90])
    assert r2(net, X[sound], Y[sound]) > 0.9


class Judged(Callback):
    """Number of rows on which a rescue would be judged, and of those that are sound."""

    def on_epoch_end(self, net, **_):
        training = net._training_
        (rows,) = training.rows_of_data(256)
        everything = torch.from_numpy(with_bad_rows()), torch.from_numpy(Y)
        trials = RateTrials(training, everything, {})
        with torch.no_grad():
            sound = trials._sound_rows(everything)
        self.n_rows = len(rows[0]), len(sound[0])


def test_rows_that_fail_are_not_judged():
    judged = Judged()
    options = {"max_epochs": 3, "callbacks": [judged]}
    fitted(network_of(LogOfFirst, **options), with_bad_rows())
    # The logarithm of 0 only fails in the gradient.
    assert judged.n_rows == (126, 127)


def test_equal_targets_leave_nothing_to_be_better_at():
    targets = np.full_like(Y, 0.5)
    data = X.copy()
    data[[7, 90], 0] = -1.0
    net = fitted(network_of(LogOfFirst, max_epochs=3, lr=0.0001), data, targets)
    assert net.nonfinite_reports_


class Triplets(nn.Module):
    """Mean over the triplets that violate a margin, 0/0 for a batch without any."""

    def forward(self, output, target):
        distances = ((output[:, None] - output[None]) ** 2).sum(2)
        is_same = target[:, None] == target[None]
        gaps = torch.relu(distances[:, :, None] - distances[:, None, :] + 1.0)
        gaps = gaps[is_same[:, :, None] & ~is_same[:, None, :]]
        return gaps.sum() / (gaps > 0).sum()


WEIGHTS = torch.tensor([1.0, 5.0])


@pytest.mark.parametrize(
    ("criterion", "is_mean"),
    [
        (nn.CrossEntropyLoss(), True),
        (nn.CrossEntropyLoss(WEIGHTS), True),
        (nn.CrossEntropyLoss(reduction="sum"), True),
        (Triplets(), False),
    ],
)
def test_only_losses_of_single_rows_are_compared_with_a_constant(criterion, is_mean):
    # Equal outputs violate each triplet by 1. Those that remain may do so by more.
    torch.manual_seed(0)
    net = network_of(nn.Linear(4, 2), criterion).initialize()
    batch = torch.tensor(X[:32]), torch.tensor(LABELS[:32])
    with torch.no_grad():
        error = _Rows(net, batch, {}).error()
        assert math.isfinite(error) is is_mean
        if closed_form_of(criterion):  # the losses of all rows come from one call
            losses = F.cross_entropy(net.module_(batch[0]), batch[1], reduction="none")
            expected = float(losses.std(correction=0)) / math.sqrt(32)
            assert error == pytest.approx(expected, rel=1e-5)
            assert criterion.reduction == "mean"
