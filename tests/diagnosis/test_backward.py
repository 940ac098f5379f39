"""Detection of the operation that fails in a backward pass."""

from __future__ import annotations

import pytest
import torch
from diagnosis_helpers import (
    Net,
    found,
    line_of,
    table,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from sknan.diagnosis import diagnose

BACKWARD = {
    "sqrt": (lambda x: torch.sqrt(x), 0.0, "aten.sqrt"),
    "root": (lambda x: x**0.5, 0.0, "aten.pow"),
    "norm by hand": (lambda x: x / (x.square().sum(1, True).sqrt() + 1), 0.0, "sqrt"),
    "sqrt trap": (lambda x: torch.where(x > 0, torch.sqrt(x), x), -1.0, "aten.sqrt"),
    "div trap": (lambda x: torch.where(x > 0, 1 / x, x), 0.0, "aten.reciprocal"),
    "log trap": (lambda x: torch.where(x > 0, torch.log(x), x), -0.0, "aten.log"),
    "masked trap": (lambda x: torch.log(x).masked_fill(x <= 0, 0.0), 0.0, "aten.log"),
    "acos": (lambda x: torch.acos(x / 4), 4.0, "aten.acos"),
    "asin": (lambda x: torch.asin(x / 4), 4.0, "aten.asin"),
    "hypot": (lambda x: torch.hypot(x, x), 0.0, "aten.hypot"),
    "sqrt_": (lambda x: (x * 1).sqrt_(), 0.0, "aten.sqrt_"),
    "cdist": (lambda x: x + (x - 1).square().sum(1, True).sqrt(), 1.0, "aten.sqrt"),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_an_operation_of_the_backward_pass_is_found_with_line_and_rows(name):
    function, value, operation = BACKWARD[name]
    report = found(function, table(row1=value, row4=value))
    assert (report.phase, report.module) == ("backward", "inner.part")
    assert report.operation.removeprefix("aten.") == operation.removeprefix("aten.")
    assert report.source == line_of(function)
    assert report.rows == (1, 4)


def test_an_overflowing_gradient_is_found_at_the_operation_that_overflows():
    report = found(
        lambda x: (x * 1e30).tanh() + x, table() * 0, lambda o, y: o.sum() * 1e20
    )
    assert (report.phase, report.operation) == ("backward", "aten.mul")
    assert report.module == "inner.part"


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad / 0.0


def test_a_user_defined_gradient_is_located_at_the_line_that_calls_the_function():
    def function(x):
        return InfiniteGradient.apply(x)

    report = found(function, table())
    assert (report.phase, report.operation) == ("backward", "InfiniteGradient")
    assert report.module == "inner.part"
    assert report.source == line_of(function, 1)


def test_the_gradient_of_a_loss_is_located_by_line():
    def root_of_squares(output, target):
        return torch.sqrt((output - target).square().mean())

    def same(x):
        return x * 0

    module = Net(same)
    nn.init.zeros_(module.head.bias)
    report = diagnose(module, root_of_squares, table(), torch.zeros(6, 1))
    assert (report.phase, report.module) == ("backward", "criterion")
    assert report.operation == "aten.sqrt"
    assert report.source == line_of(root_of_squares, 1)


@pytest.mark.parametrize("reentrant", [False, True])
def test_failed_gradients_of_checkpointed_parts_are_found(reentrant):
    def function(x):
        return checkpoint(torch.sqrt, x, use_reentrant=reentrant)

    report = found(function, table(row1=0.0))
    assert report.phase == "backward"
    assert report.module == "inner.part"
    assert report.source == line_of(function, 1)
    if not reentrant:
        assert report.operation == "aten.sqrt"
        assert report.rows == (1,)
