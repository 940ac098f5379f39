"""Traits of losses, and their use by the estimators."""

import numpy as np
import pytest
import torch
from torch import nn

import sknan.losses as sl
from sknan import StableNetClassifier, StableNetRegressor
from sknan.losses import LossTraits, traits_of


class CubicLoss(nn.Module):
    """A loss that no module of the library knows."""

    traits = LossTraits(
        task="regression",
        standardizes_target=True,
        target_domain="positive",
        outputs_per_target=2,
    )

    def forward(self, output, target):
        return (output - target).abs().pow(3).mean()

    def predict(self, output):
        return output.mean(dim=1, keepdim=True)


class WholeBatchLoss(nn.Module):
    """A loss of a whole batch, which takes the weights of the rows itself."""

    traits = LossTraits(task="regression", is_per_row=False)

    def __init__(self):
        super().__init__()
        self.reduction = "mean"

    def forward(self, output, target, sample_weight=None):
        assert sample_weight is not None
        assert self.reduction == "mean"
        errors = (output - target).flatten().square() * sample_weight
        return errors.sum().sqrt()


class HingeLoss(nn.Module):
    """A binary loss of one logit per row."""

    traits = LossTraits(task="classification", output_kind="logits", is_binary=True)

    def forward(self, output, target):
        return torch.relu(1.0 - (2.0 * target - 1.0) * output).mean()


def table(n_rows=80):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(n_rows, 3)).astype(np.float32)
    return X, 50.0 + X[:, 0] - X[:, 1]


def raw_output(model, X):
    return model.net_.finite_output(torch.from_numpy(X))


def test_a_regressor_follows_the_traits_of_a_new_loss():
    X, y = table()
    model = StableNetRegressor(criterion=CubicLoss, lr=0.02, max_epochs=60)
    model.set_params(random_state=0).fit(X, y)
    assert model.target_mean_ == pytest.approx(y.mean())
    assert raw_output(model, X).shape == (len(X), 2)
    assert model.predict(X).shape == y.shape
    assert np.corrcoef(model.predict(X), y)[0, 1] > 0.9
    with pytest.raises(ValueError, match="needs y above 0") as caught:
        model.fit(X, y - y.max())
    assert str(caught.value).startswith("criterion=CubicLoss needs y above 0, but it")
    with pytest.raises(ValueError, match="CubicLoss is for regression"):
        StableNetClassifier(criterion=CubicLoss()).fit(X, y > 50)


def test_a_new_loss_of_whole_batches_is_given_the_weights():
    X, y = table()
    model = StableNetRegressor(criterion=WholeBatchLoss, max_epochs=3, random_state=0)
    model.fit(X, y - 50.0, sample_weight=np.linspace(1.0, 2.0, len(y)))
    assert model.target_mean_ == 0.0
    assert np.isfinite(model.predict(X)).all()


def test_a_classifier_follows_the_traits_of_a_new_loss():
    X, y = table()
    model = StableNetClassifier(criterion=HingeLoss, lr=0.02, random_state=0)
    model.fit(X, y > 50)
    logits = raw_output(model, X)
    assert logits.shape == (len(X), 1)
    expected = torch.sigmoid(logits[:, 0]).numpy()
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="for 2 classes, but y contains 3"):
        model.fit(X, np.arange(len(X)) % 3)


def test_a_function_may_have_traits():
    X, y = table()

    def loss(output, target):
        return (output - target).abs().mean()

    loss.traits = LossTraits(task="regression", standardizes_target=True)
    model = StableNetRegressor(criterion=loss, max_epochs=2, random_state=0).fit(X, y)
    assert model.target_mean_ == pytest.approx(y.mean())
    with pytest.raises(ValueError, match="for regression"):
        StableNetClassifier(criterion=loss).fit(X, y > 50)


CLASSES_OF_TORCH = [
    (base, cls)
    for cls in vars(sl).values()
    if isinstance(cls, type)
    for base in cls.__mro__
    if base.__module__ == "torch.nn.modules.loss" and base.__name__ == cls.__name__
]


@pytest.mark.parametrize(("of_torch", "cls"), CLASSES_OF_TORCH)
def test_a_loss_of_torch_has_the_traits_of_its_stable_form(of_torch, cls):
    expected, found = traits_of(cls), traits_of(of_torch)
    if of_torch is nn.KLDivLoss:
        assert found == LossTraits(target_domain="non-negative")
        return
    for name in ("output_kind", "is_binary", "unit_power", "target_domain", "infimum"):
        assert getattr(found, name) == getattr(expected, name), name
    if of_torch is nn.BCEWithLogitsLoss:  # a regression may have such targets too
        assert found.task is None
    else:
        assert found.task == expected.task


def test_a_subclass_of_a_loss_of_torch_may_have_another_task_and_domain():
    class Rate(nn.PoissonNLLLoss):
        pass

    class Distance(nn.MSELoss):
        pass

    assert traits_of(nn.PoissonNLLLoss()).target_domain == "non-negative"
    assert traits_of(Rate()) == LossTraits()
    assert traits_of(Distance) == LossTraits(standardizes_target=True, unit_power=2)


def test_a_bounded_loss_has_the_traits_of_the_loss_inside():
    traits = traits_of(sl.BoundedLoss(sl.MSELoss(), 0.0, 1.0))
    assert traits.task == "regression"
    assert traits.standardizes_target
    assert traits.unit_power is None
    assert not traits_of(sl.BoundedLoss(sl.RMSELoss(), 0.0, 1.0)).is_per_row


def test_other_objects_have_the_default_traits():
    for criterion in (None, nn.TripletMarginLoss(), nn.TripletMarginLoss, len):
        assert traits_of(criterion) == LossTraits()


def test_each_name_belongs_to_one_loss():
    losses = {*sl.CLASSIFICATION_LOSSES.values(), *sl.REGRESSION_LOSSES.values()}
    names = [name for loss in losses for name in loss.traits.names]
    assert len(names) == len(set(names))
    assert set(names) == {*sl.CLASSIFICATION_LOSSES, *sl.REGRESSION_LOSSES}
