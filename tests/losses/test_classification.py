"""Tests of the losses for classes."""

from __future__ import annotations

import math

import pytest
import torch
from losses_helpers import (
    N_CLASSES,
    output_for,
    target_for,
)
from torch import nn

from sknan import losses as sl


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "given",
    [
        {"weight": torch.tensor([0.2, 1.0, 3.0])},
        {"ignore_index": 1},
        {"label_smoothing": 0.1},
        {
            "weight": torch.tensor([0.2, 1.0, 3.0]),
            "ignore_index": 2,
            "label_smoothing": 0.2,
        },
    ],
    ids=lambda given: "+".join(given),
)
def test_options_of_cross_entropy_give_torchs_result(given, reduction):
    z, y = output_for("codes", 40), target_for("codes", 40)
    expected = nn.CrossEntropyLoss(reduction=reduction, **given)(z, y)
    loss = sl.CrossEntropyLoss(reduction=reduction, **given)
    torch.testing.assert_close(loss(z, y), expected, rtol=0, atol=0)
    # Weights are not passed to torch's kernel.
    torch.testing.assert_close(loss(z, y, torch.ones(40)), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_probabilities_and_images_give_torchs_result(reduction):
    z = torch.randn(4, N_CLASSES, 5, generator=torch.Generator().manual_seed(0))
    codes = torch.randint(0, N_CLASSES, (4, 5))
    soft = torch.softmax(z.flip(0), 1)
    loss = sl.CrossEntropyLoss(reduction=reduction, label_smoothing=0.1)
    of_torch = nn.CrossEntropyLoss(reduction=reduction, label_smoothing=0.1)
    for y in (codes, soft):
        torch.testing.assert_close(loss(z, y), of_torch(z, y), rtol=0, atol=0)
        torch.testing.assert_close(loss(z, y, torch.ones(4)), of_torch(z, y))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_positive_weights_of_binary_cross_entropy_give_torchs_result(reduction):
    z, y = output_for("shares", 40), target_for("shares", 40)
    given = {"pos_weight": torch.tensor([1.0, 5.0, 0.2]), "reduction": reduction}
    loss, of_torch = sl.BCEWithLogitsLoss(**given), nn.BCEWithLogitsLoss(**given)
    torch.testing.assert_close(loss(z, y), of_torch(z, y), rtol=0, atol=0)
    torch.testing.assert_close(loss(z, y, torch.ones(40)), of_torch(z, y))


@pytest.mark.parametrize("cls", [sl.CrossEntropyLoss, sl.NLLLoss, sl.FocalLoss])
def test_the_loss_is_zero_if_all_targets_are_ignored(cls):
    z = output_for("codes", 5).requires_grad_()
    value = cls()(z, torch.full((5,), -100))
    assert value.item() == 0.0
    value.backward()
    assert (z.grad == 0).all()
    assert cls(weight=torch.zeros(3))(z, torch.zeros(5, dtype=torch.int64)).item() == 0


def test_a_wrong_row_has_a_gradient_near_one_at_any_certainty():
    for margin in (30.0, 60.0, 86.0):
        z = torch.tensor([[-margin / 2, margin / 2]], requires_grad=True)
        loss = sl.ProbabilityNLLLoss()(torch.softmax(z, 1), torch.tensor([0]))
        loss.backward()
        assert loss.item() == pytest.approx(margin, rel=1e-5)
        torch.testing.assert_close(z.grad, torch.tensor([[-1.0, 1.0]]))


def test_a_probability_of_zero_has_a_gradient():
    p = torch.tensor([[0.0, 1.0]], requires_grad=True)
    sl.ProbabilityNLLLoss()(p, torch.tensor([0])).backward()
    assert p.grad[0, 0] < -1e30
    assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_focal_loss_of_a_certain_row_has_a_finite_gradient(gamma):
    z = torch.tensor([[80.0, 0.0], [200.0, 0.0], [0.0, 0.0]], requires_grad=True)
    loss = sl.FocalLoss(gamma, reduction="none")(z, torch.zeros(3, dtype=torch.int64))
    assert loss[1].item() == 0.0
    assert loss[2].item() == pytest.approx(0.5**gamma * math.log(2))
    loss.sum().backward()
    assert torch.isfinite(z.grad).all()
    if gamma == 0:
        expected = nn.CrossEntropyLoss(reduction="none")(z, torch.zeros(3).long())
        torch.testing.assert_close(loss, expected)


def test_predictions_of_class_losses_are_softmax_and_sigmoid():
    logits = torch.tensor([[0.0, 1.0, -1.0], [1e30, 0.0, -1e30]])
    for loss in (sl.CrossEntropyLoss(), sl.FocalLoss(), sl.NLLLoss()):
        probabilities = loss.predict(logits)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
        torch.testing.assert_close(probabilities[1], torch.tensor([1.0, 0.0, 0.0]))
    binary = sl.BCEWithLogitsLoss().predict(torch.tensor([[0.0], [1e30], [-1e30]]))
    assert binary.flatten().tolist() == [0.5, 1.0, 0.0]
