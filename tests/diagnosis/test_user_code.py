"""The line of the user's code that a report names."""

from __future__ import annotations

import pytest
import torch
from diagnosis_helpers import (
    found,
    line_of,
    table,
)
from torch import nn

from sknan import losses as sl


def test_the_line_is_that_of_the_operation_in_a_function_of_several_lines():
    def function(x):
        y = x * 2
        z = torch.log(y)
        return z + 1

    assert found(function, table(row2=-1.0)).source == line_of(function, 2)


class UserDefinedLog(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.log(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_a_user_defined_operation_is_located_by_line():
    report = found(lambda x: UserDefinedLog.apply(x), table(row3=-1.0))
    assert (report.phase, report.operation) == ("forward", "aten.log")
    assert report.source == line_of(UserDefinedLog.forward, 2)
    assert report.rows == (3,)


# -- losses --------------------------------------------------------------------------


def rmsle(output, target):
    return (torch.log1p(output.abs()) - torch.log1p(target)).square().mean()


class Relative(nn.Module):
    def forward(self, output, target):
        error = (output - target).abs()
        return (error / target).mean()


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Relative()

    def forward(self, output, target):
        return self.inner(output, target)


def test_a_failure_in_a_loss_function_is_located_by_line():
    y = torch.ones(6, 1)
    y[4] = -2.0
    report = found(torch.tanh, table(), rmsle, y)
    assert (report.phase, report.module) == ("loss", "criterion")
    assert (report.operation, report.source) == ("aten.log1p", line_of(rmsle, 1))
    assert report.rows == (4,)


@pytest.mark.parametrize("criterion", [Relative(), Nested()])
def test_a_failure_in_a_loss_module_is_located_by_line(criterion):
    y = torch.ones(6, 1)
    y[[0, 5]] = 0.0
    report = found(torch.tanh, table(), criterion, y)
    assert (report.phase, report.module) == ("loss", "criterion")
    assert report.operation == "aten.div"
    assert report.source == line_of(Relative.forward, 2)
    assert report.rows == (0, 5)


def test_a_failure_in_a_loss_of_torch_has_no_line_of_the_user():
    report = found(lambda x: x * 1e30, table(), nn.MSELoss())
    assert (report.phase, report.module) == ("loss", "criterion")
    assert (report.operation, report.source) == ("aten.mse_loss", None)


def test_a_batch_of_ignored_labels_is_blamed_on_the_loss():
    y = torch.full((6,), -100)
    report = found(torch.tanh, table(), nn.CrossEntropyLoss(), y, n_outputs=2)
    assert (report.phase, report.operation) == ("loss", "aten.nll_loss_forward")


class LoggedLoss(sl.MSLELoss):
    def forward(self, output, target):
        return super().forward(torch.log(output * 0 - 1), target)


class CancelingWeights(sl.MSELoss):
    """Weights whose sum is almost 0, so that the weighted mean in sknan overflows."""

    def forward(self, output, target):
        weights = torch.tensor([3e38, -3e38, 1e-30, 1e-30, 1e-30, 1e-30])
        return super().forward(output, target, weights)


def logged_by_function(output, target):
    loss = sl.HuberLoss()
    return loss(torch.log(output * 0 - 1), target)


@pytest.mark.parametrize(
    ("criterion", "source"),
    [
        (LoggedLoss(), line_of(LoggedLoss.forward, 1)),
        (CancelingWeights(), line_of(CancelingWeights.forward, 2)),
        (logged_by_function, line_of(logged_by_function, 2)),
    ],
    ids=["subclass", "inside sknan", "function"],
)
def test_a_failure_in_a_loss_that_uses_sknan_is_located_in_the_users_file(
    criterion, source
):
    report = found(torch.tanh, table(), criterion)
    assert (report.phase, report.module) == ("loss", "criterion")
    assert report.source == source
