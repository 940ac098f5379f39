"""Explanations of failed steps in whole trainings."""

from __future__ import annotations

import pytest
import torch
from failing_trainings import (
    MLP,
    X,
    Y,
    fitted,
    is_sound,
    network_of,
    r2,
    with_bad_rows,
)
from torch import nn

from sknan.diagnosis import diagnose


class OwnNorm(nn.Module):
    """Module with running statistics that fail for a batch of one row."""

    def __init__(self):
        super().__init__()
        self.mlp = MLP()
        self.register_buffer("spread", torch.ones(4))

    def forward(self, x):
        if self.training:
            spread = x.std(0)
            with torch.no_grad():
                self.spread.lerp_(spread, 0.1)
        else:
            spread = self.spread
        return self.mlp(x / spread)


def test_a_batch_of_one_row_is_skipped_and_leaves_the_buffers_finite():
    net = network_of(OwnNorm, batch_size=127)
    with pytest.warns(UserWarning, match="degrees of freedom"):
        fitted(net)
    assert is_sound(net)
    first = net.nonfinite_reports_[0]
    assert (first.cause, first.operation) == ("architecture", "aten.std")


class Count(nn.Module):
    """Module in which only a buffer becomes NaN, by the mean of no value."""

    def __init__(self):
        super().__init__()
        self.mlp = MLP()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x[x > 2.5].mean(), 0.1)
        return self.mlp(x)


def test_a_buffer_that_becomes_nan_is_reported_at_once():
    net = fitted(network_of(Count, max_epochs=2))
    assert is_sound(net)
    first = net.nonfinite_reports_[0]
    assert (first.phase, first.cause) == ("forward", "architecture")
    assert first.operation == "aten.mean"
    assert first.epoch == 1


class Factor(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        matrices = torch.diag_embed(x * x)
        return self.head(torch.linalg.cholesky(matrices).sum(-1))


def test_a_decomposition_that_raises_is_a_failed_step():
    inputs = X.copy()
    inputs[11, 2] = 0.0
    net = fitted(network_of(Factor, lr=0.01, max_epochs=2), inputs)
    first = net.nonfinite_reports_[0]
    assert (first.cause, first.rows) == ("architecture", (11,))
    assert first.operation == "aten.linalg_cholesky_ex"
    assert first.rows_in == "data"


def test_an_error_without_nonfinite_numbers_is_raised_unchanged():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network_of(MLP, module__d_in=5).fit(X, Y)


class Doubled(torch.autograd.Function):
    """Function whose gradient has the shape of one row."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return grad[:1]


class WithBug(nn.Module):
    """Network whose outputs are followed by an operation."""

    def __init__(self, operation):
        super().__init__()
        self.mlp = MLP()
        self.operation = operation
        self.state = None

    def forward(self, x):
        return self.operation(self, self.mlp(x))


def written_in_place(module, x):
    return x.sigmoid().mul_(2)


def kept_with_its_graph(module, x):
    before, module.state = module.state, x.tanh()
    return module.state if before is None else module.state + before.mean()


def of_wrong_shape(module, x):
    return Doubled.apply(x)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (written_in_place, "modified by an inplace operation"),
        (kept_with_its_graph, "backward through the graph a second time"),
        (of_wrong_shape, "DoubledBackward returned an invalid gradient"),
    ],
)
def test_an_error_in_any_backward_pass_is_raised_unchanged(operation, message):
    with pytest.raises(RuntimeError, match=message):
        network_of(WithBug, module__operation=operation).fit(X, Y)
    with pytest.raises(RuntimeError, match=message):
        diagnose(WithBug(operation), nn.functional.mse_loss, X, Y)


class Spread(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = MLP()

    def forward(self, x):
        normal = torch.distributions.Normal(0.0, x[:, :1], validate_args=True)
        return self.mlp(torch.cat([normal.stddev, x[:, 1:]], 1))


def test_rows_that_a_check_refuses_are_left_out_of_each_step():
    inputs = with_bad_rows()
    targets = inputs[:, 1:2] - inputs[:, 2:3]
    net = fitted(network_of(Spread), inputs, targets)
    assert r2(net, abs(inputs) + 1e-3, targets) > 0.5
    assert {row for r in net.nonfinite_reports_ for row in r.rows} == {7, 90}
    first = net.nonfinite_reports_[0]
    assert (first.operation, first.error) == ("Normal", "ValueError")
    assert first.recovery == "The step was taken without the rows to blame."


def test_a_lone_row_under_batch_normalization_is_skipped():
    norm = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    net = fitted(network_of(norm, batch_size=127, max_epochs=3, lr=0.01))
    assert is_sound(net)
    assert [r.operation for r in net.nonfinite_reports_] == ["BatchNorm1d"] * 3
    assert net.nonfinite_reports_[0].recovery == "The batch was left out."


class FixedSize(nn.Module):
    """Module that passes for all batches but a shorter last one."""

    def __init__(self):
        super().__init__()
        self.mlp = MLP()

    def forward(self, x):
        return self.mlp(x) + torch.zeros(48, 1)


def test_a_batch_size_in_the_code_is_an_error_of_the_program():
    with pytest.raises(RuntimeError, match="size of tensor") as caught:
        network_of(FixedSize, batch_size=48).fit(X, Y)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
