"""Tests of the losses in estimators and in nets of skorch."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from torch import nn

from sknan import (
    GuardedNetClassifier,
    StableNetClassifier,
    StableNetRegressor,
    TabularMLP,
)
from sknan import losses as sl
from sknan.losses import CLASSIFICATION_LOSSES, REGRESSION_LOSSES


class Softmax(nn.Module):
    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.linear = nn.Linear(n_features_in, n_outputs)

    def forward(self, x):
        return torch.softmax(self.linear(x), dim=-1)


class LogSoftmax(Softmax):
    def forward(self, x):
        return torch.log_softmax(self.linear(x), dim=-1)


def blobs(n=120):
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, n)
    X = generator.normal(size=(n, 4)) + 2.0 * y[:, None]
    return X.astype(np.float32), y


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", sorted(CLASSIFICATION_LOSSES))
def test_a_classifier_learns_with_each_named_loss(name, weighted):
    X, y = blobs()
    module = {"nll": LogSoftmax, "probability_nll": Softmax}.get(name)
    model = StableNetClassifier(
        module, criterion=name, lr=0.05, max_epochs=80, random_state=0
    )
    model.fit(X, y, sample_weight=np.ones(len(y)) * 2 if weighted else None)
    assert model.score(X, y) > 0.95
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", sorted(REGRESSION_LOSSES))
def test_a_regressor_learns_with_each_named_loss(name, weighted):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(300, 3)).astype(np.float32)
    y = np.exp(0.8 + 0.5 * X[:, 0] - 0.3 * X[:, 1])
    given = {}
    if name in ("kl_div", "cosine"):
        y = np.column_stack([y, np.exp(X[:, 2])])
        y = y / y.sum(1, keepdims=True)
    if name == "kl_div":
        given["criterion__from_logits"] = True
    model = StableNetRegressor(
        criterion=name, lr=0.02, max_epochs=40, random_state=0, **given
    )
    weight = generator.uniform(0.5, 2.0, len(y)) if weighted else None
    predicted = model.fit(X, y, sample_weight=weight).predict(X)
    assert predicted.shape == y.shape
    last, known = np.atleast_2d(predicted.T)[-1], np.atleast_2d(y.T)[-1]
    # Correlation and cosine do not determine the scale.
    assert np.corrcoef(last, known)[0, 1] > 0.9


@pytest.mark.parametrize(
    ("criterion", "found", "message"),
    [
        ("gamma", 0.0, "criterion='gamma' needs y above 0, but it is 0 at row 3."),
        (
            "tweedie",
            -1.0,
            "criterion='tweedie' needs y of at least 0, but it is -1 at row 3.",
        ),
    ],
)
def test_targets_outside_the_domain_of_a_loss_raise(criterion, found, message):
    X = np.ones((8, 2), dtype=np.float32)
    y = np.ones(8)
    y[3] = found
    with pytest.raises(ValueError, match="needs y") as caught:
        StableNetRegressor(criterion=criterion).fit(X, y)
    assert str(caught.value) == message


SCALED = ["mape", "smape", "msle", "poisson", "gamma", "tweedie"]


def amounts(n=100):
    generator = np.random.default_rng(1)
    X = generator.normal(size=(n, 1)).astype(np.float32)
    return X, 3.0 + 0.5 * X[:, 0] + 0.1 * generator.normal(size=n)


@pytest.mark.parametrize("name", [*SCALED, nn.PoissonNLLLoss(log_input=False)])
def test_a_loss_of_positive_targets_learns_in_any_unit(name):
    X, y = amounts()
    # With other initial biases, smape stays at 2 for seed 3.
    for unit, seed in ((1e7, 3), (1e-3, 0)):
        model = StableNetRegressor(
            criterion=name, lr=2e-3, max_epochs=60, random_state=seed
        )
        assert model.fit(X, y * unit).score(X, y * unit) > 0.85, (unit, seed)


@pytest.mark.parametrize("name", [name for name in SCALED if name != "msle"])
def test_a_relative_loss_gives_the_same_model_in_any_unit(name):
    X, y = amounts()
    weight = np.linspace(1.0, 2.0, len(y))
    models = [
        StableNetRegressor(criterion=name, max_epochs=5, random_state=0).fit(
            X, y * unit, sample_weight=weight
        )
        for unit in (2.0, 2.0**20)
    ]
    small, large = (model.predict(X) for model in models)
    np.testing.assert_array_equal(small * 2.0**19, large)
    assert models[0].loss_curve_ == models[1].loss_curve_


def test_targets_of_different_units_are_learned_together():
    X, y = amounts()
    both = np.column_stack([y, 1e6 * y])
    for name in ("msle", "poisson"):
        model = StableNetRegressor(criterion=name, lr=2e-3, random_state=0)
        predicted = model.fit(X, both).predict(X)
        for j in range(2):
            assert np.corrcoef(predicted[:, j], both[:, j])[0, 1] > 0.95
            assert predicted[:, j].mean() == pytest.approx(both[:, j].mean(), rel=0.05)


def test_a_stream_keeps_the_unit_of_its_loss_up_to_date():
    X, y = amounts(150)
    y *= 1e4
    model = StableNetRegressor(criterion="smape", random_state=0)
    for start in range(0, 150, 50):
        rows = slice(start, start + 50)
        model.partial_fit(X[rows], y[rows])
        # The first 100 rows decide.
        assert model.target_scale_ == pytest.approx(y[: min(start + 50, 100)].mean())
        assert model.net_.criterion_.unit == np.float32(model.target_scale_)
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict(X), model.predict(X))
    model.set_params(warm_start=True, max_epochs=30).fit(X, y)
    assert np.mean(np.abs(model.predict(X) / y - 1)) < 0.1


def test_weights_that_were_passed_and_formulas_of_a_user_are_kept():
    X, y = amounts()
    module = TabularMLP(1, 1, depth=0)
    model = StableNetRegressor(module, criterion="mape", lr=1e-12, max_epochs=1)
    model.fit(X, 1e4 * y)
    torch.testing.assert_close(model.net_.module_.head.bias, module.head.bias)
    assert model.target_scale_ == pytest.approx(1e4 * y.mean())

    class Own(sl.MAPELoss):
        def forward(self, output, target):
            return (output - target).abs().mean()

    model = StableNetRegressor(criterion=Own, max_epochs=1).fit(X, 1e4 * y)
    assert model.target_scale_ == 1


def test_logits_for_a_loss_of_probabilities_raise():
    X, y = blobs()
    with pytest.raises(ValueError, match="probabilities") as caught:
        StableNetClassifier(criterion="probability_nll", random_state=0).fit(X, y)
    assert str(caught.value) == (
        "Criterion ProbabilityNLLLoss needs probabilities, but the rows of the "
        "module's output are not probabilities. Use criterion='cross_entropy', which "
        "takes logits, or end the module with a softmax."
    )


@pytest.mark.parametrize(
    "inner", [sl.CrossEntropyLoss(), sl.BCEWithLogitsLoss(), nn.CrossEntropyLoss()]
)
def test_a_classifier_learns_with_a_bounded_loss(inner):
    X, y = blobs()
    model = StableNetClassifier(
        criterion=sl.BoundedLoss(inner, 0.0, 3.0), lr=0.05, random_state=0
    )
    weight = np.random.default_rng(0).uniform(0.5, 1.5, len(y))
    assert model.fit(X, y, sample_weight=weight).score(X, y) > 0.95


def test_a_regressor_with_a_bounded_loss_is_robust_to_outlying_targets():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(300, 3)).astype(np.float32)
    y = X[:, 0] - X[:, 1]
    extreme = y.copy()
    extreme[:5] = 500.0
    criterion = sl.BoundedLoss(sl.HuberLoss(), 0.0, 2.0)
    model = StableNetRegressor(
        criterion=criterion, lr=0.01, max_epochs=60, random_state=0
    )
    with pytest.raises(ValueError, match="for regression"):
        StableNetClassifier(criterion=criterion).fit(X, y > 0)
    assert np.corrcoef(model.fit(X, extreme).predict(X)[5:], y[5:])[0, 1] > 0.8


@pytest.mark.parametrize("net", [NeuralNetClassifier, GuardedNetClassifier])
@pytest.mark.parametrize(
    ("module", "criterion"),
    [
        (nn.Linear(4, 2), sl.CrossEntropyLoss),
        (Softmax(4, 2), sl.ProbabilityNLLLoss),
    ],
)
def test_skorch_applies_the_nonlinearity_of_a_loss(net, module, criterion):
    X, y = blobs()
    fitted = net(module, criterion=criterion, lr=0.5, max_epochs=40, verbose=0)
    fitted.fit(X, y)
    np.testing.assert_allclose(fitted.predict_proba(X).sum(1), 1.0, rtol=1e-5)
    assert fitted.score(X, y) > 0.9
