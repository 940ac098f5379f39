"""Weights and buffers that other code than the optimizer makes non-finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from failing_trainings import MLP, X, Y, fitted, network_of, r2, refused
from skorch.callbacks import Callback
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import nn


class Damage(Callback):
    """Callback that makes a bias NaN after a batch, past torch's counter of writes."""

    def __init__(self, *batches):
        self.batches = batches

    def on_batch_end(self, net, training=None, **_):
        batches = net.history[-1]["batches"]
        if training and (len(net.history), len(batches)) in self.batches:
            net.module_.head.bias.data.fill_(np.nan)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.LBFGS])
@pytest.mark.parametrize(("batch", "found"), [(1, (1, 2)), (8, (1, None))])
def test_a_callback_is_to_blame_for_a_weight_and_not_the_rate(optimizer, batch, found):
    options = {"callbacks": [Damage((1, batch))], "optimizer": optimizer}
    options["max_epochs"] = 2 if optimizer is torch.optim.LBFGS else 10
    net = fitted(network_of(MLP, **options))
    (report,) = net.nonfinite_reports_
    assert (report.epoch, report.batch) == found
    assert report.cause == "architecture"
    where = "epoch 1, batch 2" if batch == 1 else "epoch 1"
    assert str(report) == (
        f"Non-finite output in 'head' at {where}. The weight 'head.bias' is not "
        "finite: 1 of 1 entries. The optimizer had left it finite, so that other code "
        "has changed it since. Find the code that changes this weight outside the "
        "optimizer: a callback, a hook, or the module or the criterion in a "
        "validation pass."
    )
    assert report.recovery == "The last verified weights were restored."
    assert net.effective_lr_ == 0.05
    assert r2(net) > 0.8


def test_damage_in_each_epoch_ends_the_training_within_the_budget():
    damage = Damage(*((epoch, 1) for epoch in range(1, 21)))
    error = refused(network_of(MLP, max_epochs=20, callbacks=[damage]))
    assert str(error).endswith(" Gave up after 10 recoveries (max_recoveries=10).")


def test_a_variance_below_zero_is_of_the_optimizer():
    # Without memory, a centered RMSprop takes the root of a rounding error.
    options = {"optimizer__centered": True, "optimizer__alpha": 0.0}
    error = refused(network_of(MLP, optimizer=torch.optim.RMSprop, **options))
    assert error.report.phase == "step"


class RuinsFirstStep(torch.optim.Adam):
    """Optimizer whose first step makes the weights NaN, as an overflow does."""

    n_steps = 0

    def step(self, closure=None):
        loss = super().step(closure)
        self.n_steps += 1
        if self.n_steps == 1:
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.data.fill_(np.nan)
        return loss


def test_a_repetition_that_ruins_the_weights_is_undone():
    data = X.copy()
    data[3] = -9.0  # outside the domain, in the first batch
    options = {"optimizer": RuinsFirstStep, "iterator_train__shuffle": False}
    net = fitted(network_of(LogOf, **options), data)
    assert net.nonfinite_reports_[0].recovery == "The batch was left out."
    assert {r.operation for r in net.nonfinite_reports_} == {"aten.log"}
    assert {r.rows for r in net.nonfinite_reports_} == {(3,)}
    assert r2(net) > 0.8


class Normalized(nn.MSELoss):
    """Loss divided by its moving average."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, output, target):
        loss = super().forward(output, target)
        self.mean.mul_(0.9).add_(0.1 * loss.detach())
        return loss / self.mean


class LogOf(MLP):
    def forward(self, x):
        return super().forward(torch.log(x + 6.0))


@pytest.mark.parametrize("policy", ["recover", "raise"])
def test_a_validation_pass_leaves_the_buffers_of_the_loss_finite(policy):
    held_out = X[:8].copy()
    held_out[2] = -9.0
    order = {"iterator_train__shuffle": False}
    options = {"train_split": predefined_split(Dataset(held_out, Y[:8])), **order}
    net = network_of(LogOf, Normalized, on_nonfinite=policy, **options)
    found = (
        "Non-finite loss in 'criterion' at epoch 1. The buffer 'criterion.mean' is "
        "not finite: 1 of 1 entries. The optimizer had left it finite, so that other "
        "code has changed it since. Find the code that changes this buffer outside "
        "the optimizer: a callback, a hook, or the module or the criterion in a "
        "validation pass."
    )
    if policy == "raise":
        assert str(refused(net)) == found
        return
    fitted(net)
    reports = net.nonfinite_reports_
    assert [report.epoch for report in reports] == list(range(1, 11))
    assert str(reports[0]) == found
    assert {report.recovery for report in reports} == {
        "The buffers from before the validation pass were restored."
    }
    twin = fitted(network_of(LogOf, Normalized, **order))
    assert torch.equal(net.forward(X), twin.forward(X))
