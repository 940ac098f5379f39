"""Tests of roots, powers, quotients and angles."""

from __future__ import annotations

import pytest
import torch

from sknan import functional as sf


def test_a_quotient_by_zero_is_zero_with_gradient_zero():
    x = torch.tensor([1.0, 0.0, -5.0, 1.0], requires_grad=True)
    y = torch.tensor([0.0, 0.0, -0.0, 1e-9], requires_grad=True)
    quotient = sf.divide(x, y)
    assert quotient.tolist()[:3] == [0.0, 0.0, 0.0]
    assert quotient[3].item() == pytest.approx(1e9)
    quotient.sum().backward()
    assert x.grad.tolist()[:3] == y.grad.tolist()[:3] == [0.0, 0.0, 0.0]


def test_a_quotient_keeps_the_derivative_that_is_finite():
    x = torch.tensor([1.0, 1.0], requires_grad=True)
    y = torch.tensor([1e-30, 2.0], requires_grad=True)
    quotient = sf.divide(x, y)
    assert torch.equal(quotient, x / y)
    quotient.sum().backward()
    assert torch.equal(x.grad, 1 / y)
    assert y.grad.tolist() == [0.0, -0.25]


def test_eps_is_the_largest_denominator_that_counts_as_zero():
    y = torch.tensor([0.1, 0.2])
    assert sf.divide(torch.ones(2), y, eps=0.15).tolist() == [0.0, 5.0]


@pytest.mark.parametrize(
    ("y", "x"), [(0.0, 0.0), (-0.0, 0.0), (0.0, -0.0), (0.0, -1.0)]
)
def test_the_angle_on_an_axis_equals_torch(y, x):
    y, x = torch.tensor(y), torch.tensor(x)
    assert sf.atan2(y, x).item() == torch.atan2(y, x).item()
