from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from sknan.losses import (
    CLASSIFICATION_LOSSES,
    REGRESSION_LOSSES,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HuberLoss,
    L1Loss,
    MSELoss,
    PoissonNLLLoss,
    get_criterion,
)

ALL = CLASSIFICATION_LOSSES | REGRESSION_LOSSES
PAIRS = [
    (CrossEntropyLoss, nn.CrossEntropyLoss),
    (BCEWithLogitsLoss, nn.BCEWithLogitsLoss),
    (MSELoss, nn.MSELoss),
    (L1Loss, nn.L1Loss),
    (HuberLoss, nn.HuberLoss),
    (PoissonNLLLoss, nn.PoissonNLLLoss),
]


def example_for(loss, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(6, 3, generator=generator, dtype=dtype) * scale
    if isinstance(loss, nn.CrossEntropyLoss):
        target = torch.tensor([0, 1, 2, 0, 1, 2])
    elif isinstance(loss, nn.BCEWithLogitsLoss):
        target = torch.randint(0, 2, (6, 3), generator=generator).to(dtype)
    else:
        target = torch.rand(6, 3, generator=generator, dtype=dtype) + 2.0
    return output, target


@pytest.mark.parametrize(("ours", "torchs"), PAIRS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_each_loss_is_a_drop_in_for_torchs(ours, torchs, reduction):
    loss = ours(reduction=reduction)
    assert isinstance(loss, torchs)
    output, target = example_for(loss)
    expected = torchs(reduction=reduction)(output, target)
    assert torch.equal(loss(output, target), expected)


@pytest.mark.parametrize(("ours", "torchs"), PAIRS)
def test_the_gradient_is_that_of_finite_differences(ours, torchs):
    loss = ours()
    output, target = example_for(loss)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), output.requires_grad_())


@pytest.mark.parametrize(
    "ours", [CrossEntropyLoss, BCEWithLogitsLoss, L1Loss, HuberLoss]
)
@pytest.mark.parametrize("scale", [1e-30, 1e10, 1e30])
def test_value_and_gradient_stay_finite_for_outputs_of_any_size(ours, scale):
    loss = ours()
    output, target = example_for(loss, scale, torch.float32)
    value = loss(output.requires_grad_(), target)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(output.grad).all()


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_name_gives_its_class(name):
    assert get_criterion(name) is ALL[name]
    assert issubclass(ALL[name], nn.Module)


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_loss_knows_its_task(name):
    is_classification = name in CLASSIFICATION_LOSSES
    expected = "classification" if is_classification else "regression"
    assert ALL[name].task == expected


def test_names_do_not_belong_to_both_tasks():
    assert not CLASSIFICATION_LOSSES.keys() & REGRESSION_LOSSES.keys()


def test_only_counts_are_left_in_their_units():
    in_units = {
        name for name, loss in REGRESSION_LOSSES.items() if not loss.standardizes_target
    }
    assert in_units == {"poisson"}


def test_probabilities_are_those_of_softmax_and_sigmoid():
    logits = torch.tensor([[0.0, 1.0, -1.0], [1e30, 0.0, -1e30]])
    probabilities = CrossEntropyLoss.predict(logits)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    torch.testing.assert_close(probabilities[1], torch.tensor([1.0, 0.0, 0.0]))
    binary = BCEWithLogitsLoss.predict(torch.tensor([[0.0], [1e30], [-1e30]]))
    assert binary.flatten().tolist() == [0.5, 1.0, 0.0]


@pytest.mark.parametrize("loss", [MSELoss, L1Loss, HuberLoss])
def test_a_regression_answers_with_the_output_itself(loss):
    output = torch.tensor([[1.5], [-2.0]])
    assert loss.predict(output) is output


def test_a_rate_is_positive_and_stays_finite():
    rates = PoissonNLLLoss.predict(torch.tensor([0.0, 1.0, -1e30, 88.0, 1e30]))
    assert torch.isfinite(rates).all()
    assert rates[0] == 1.0
    assert rates[1].item() == pytest.approx(math.e)
    assert rates[2] == 0.0
    assert rates[3] == rates[4]


@pytest.mark.parametrize("loss", list(dict(PAIRS)))
def test_a_nan_output_is_not_hidden(loss):
    assert torch.isnan(loss.predict(torch.full((1, 1), torch.nan))).all()


@pytest.mark.parametrize("loss", list(dict(PAIRS)))
def test_losses_can_be_copied_and_pickled(loss):
    for again in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        assert type(again(loss())) is loss


@pytest.mark.parametrize(
    ("name", "hint"), [("hubber", " Did you mean 'huber'?"), ("zzz", "")]
)
def test_an_unknown_name_is_refused_with_a_hint(name, hint):
    with pytest.raises(ValueError, match="criterion") as caught:
        get_criterion(name)
    assert str(caught.value) == (
        f"Unknown criterion {name!r}.{hint} Known criteria: 'cross_entropy', "
        "'binary_cross_entropy', 'mse', 'squared_error', 'mae', 'absolute_error', "
        "'huber', 'poisson'."
    )
