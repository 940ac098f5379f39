"""Tests of smooth bounds for the values of a loss."""

from __future__ import annotations

import pytest
import torch
from losses_helpers import (
    output_for,
    target_for,
)
from torch import nn

from sknan import losses as sl


def test_a_bounded_loss_is_in_its_range_and_has_a_gradient():
    z = torch.tensor([0.5, 3.0, 1e4, 1e10, 1e18, 3e38], requires_grad=True)
    loss = sl.BoundedLoss(sl.MSELoss(), 0.0, 10.0, reduction="none")
    values = loss(z, torch.zeros(6))
    assert values[0].item() == 0.25  # not changed
    assert (values >= 0).all()
    assert (values <= 10).all()
    assert (values[:5].diff() > 0).all()
    values.sum().backward()
    assert (z.grad[:5] > 0).all()
    assert torch.isfinite(z.grad).all()


def test_a_lower_bound_matters_only_to_a_loss_that_can_fall_below_it():
    z = torch.tensor([[0.0, -200.0]])
    gaussian = sl.BoundedLoss(sl.GaussianNLLLoss(), -2.0, 10.0)
    assert sl.GaussianNLLLoss()(z, torch.zeros(1, 1)) < -6
    assert -2.0 < gaussian(z, torch.zeros(1, 1)) < 1.0
    for squared in (sl.MSELoss(), nn.MSELoss()):
        bounded = sl.BoundedLoss(squared, 0.0, 10.0)
        assert bounded(torch.ones(3), torch.ones(3)).item() == 0.0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_bounded_loss_supports_weights_and_reductions(reduction):
    z, y = output_for("codes", 20) * 30, target_for("codes", 20)
    weight = torch.rand(20)
    each = sl.BoundedLoss(sl.CrossEntropyLoss(reduction="none"), 0.0, 5.0)(z, y)
    assert each.shape == (20,)
    loss = sl.BoundedLoss(sl.CrossEntropyLoss(reduction=reduction), 0.0, 5.0)
    expected = {
        "mean": (each * weight).sum() / weight.sum(),
        "sum": (each * weight).sum(),
        "none": each * weight,
    }[reduction]
    torch.testing.assert_close(loss(z, y, weight), expected)


def test_a_function_or_a_loss_of_whole_batches_is_bounded_as_a_whole():
    z, y = torch.full((4, 1), 1e6), torch.zeros(4, 1)
    for inner in (lambda z, y: (z - y).square().mean(), sl.RMSELoss()):
        value = sl.BoundedLoss(inner, 0.0, 10.0)(z, y)
        assert value.shape == ()
        assert 9.0 < value < 10.0
    weighted = sl.BoundedLoss(sl.RMSELoss(), 0.0, 10.0)
    weight = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert weighted(torch.tensor([1.0, 9.0, 9.0, 9.0]), torch.zeros(4), weight) == 1.0


def test_a_bounded_loss_does_not_change_the_loss_inside():
    inner = sl.MSELoss()
    loss = sl.BoundedLoss(inner, 0.0, 10.0)
    assert inner.reduction == "mean"
    assert sl.unbounded(sl.BoundedLoss(loss, 0.0, 20.0)).__class__ is sl.MSELoss
    assert repr(loss) == (
        "BoundedLoss(\n  low=0.0, high=10.0, reduction='mean'\n  (loss): MSELoss()\n)"
    )
