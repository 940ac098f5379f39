"""Stacked passes of custom modules, other losses and all layers of a chain."""

import numpy as np
import pytest
import torch
from engine_helpers import (
    LEARNING_RATES,
    assert_bitwise_equal,
    assert_close,
    fitted_by_the_loop,
    fitted_separately,
    jobs_of,
    weights_of,
)
from torch import nn

from sknan import StableNetClassifier, StableNetRegressor
from sknan._engine.jobs import train_together


class Residual(nn.Module):
    """Module with normalization, buffers, dropout and a parameter outside of layers."""

    def __init__(self, n_features_in, n_outputs, p=0.2):
        super().__init__()
        # The gradient of a bias before the normalization would be only rounding error,
        # which Adam turns into steps.
        self.layer = nn.Linear(n_features_in, 16, bias=False)
        self.batch_norm = nn.BatchNorm1d(16)
        self.layer_norm = nn.LayerNorm(16)
        self.drop_early, self.drop_late = nn.Dropout(p), nn.Dropout(p)
        self.scale = nn.Parameter(torch.ones(16))
        self.head = nn.Linear(16, n_outputs)

    def forward(self, X):
        hidden = torch.relu(self.batch_norm(self.layer(self.drop_early(X))))
        hidden = hidden + self.drop_late(self.layer_norm(hidden * self.scale))
        return self.head(hidden)


class Convolution(nn.Module):
    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.convolution = nn.Conv1d(1, 4, 3, padding=1)
        self.head = nn.Linear(4 * n_features_in, n_outputs)

    def forward(self, X):
        return self.head(torch.tanh(self.convolution(X[:, None])).flatten(1))


STACKED = {
    "residual": ({"module": Residual}, {}),
    "convolution": ({"module": Convolution}, {}),
    "early stopping": (
        {
            "module": Residual,
            "early_stopping": True,
            "n_iter_no_change": 1,
            "max_epochs": 3,
        },
        {},
    ),
    "sample weights": ({}, {"sample_weight": np.arange(200) + 1.0}),
    "weights, custom": ({"module": Residual}, {"sample_weight": np.arange(200) + 1.0}),
}


@pytest.mark.parametrize(("params", "fit_params"), STACKED.values(), ids=STACKED)
@pytest.mark.parametrize("estimator_class", [StableNetClassifier, StableNetRegressor])
def test_custom_modules_train_like_separate_fits(estimator_class, params, fit_params):
    params = {"max_epochs": 1, **params}
    jobs = [
        job._replace(fit_params=fit_params)
        for job in jobs_of(estimator_class, LEARNING_RATES, **params)
    ]
    estimators = fitted_separately(jobs)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    # Rounding errors grow from epoch to epoch. The size of a step of Adam does not
    # depend on the size of the gradient, and among 16 000 gradients of a wide layer
    # some are little more than rounding error.
    is_small = params["max_epochs"] == 1 and "module" in params
    assert_close(outcomes, estimators, atol=1e-5 if is_small else 1e-4)


@pytest.mark.parametrize(
    ("estimator_class", "criterion", "options"),
    [
        (StableNetRegressor, "huber", {}),
        (StableNetRegressor, "gaussian_nll", {}),
        (StableNetClassifier, "cross_entropy", {"criterion__label_smoothing": 0.1}),
        (StableNetClassifier, "binary_cross_entropy", {}),
    ],
)
def test_other_losses_train_like_separate_fits(estimator_class, criterion, options):
    jobs = jobs_of(estimator_class, LEARNING_RATES, criterion=criterion, **options)
    estimators = fitted_separately(jobs)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    assert_close(outcomes, estimators, atol=1e-5)


class Branching(Convolution):
    def forward(self, X):
        output = super().forward(X)
        return output if output.mean() > 0 else -output


class FunctionalDropout(Convolution):
    def forward(self, X):
        return super().forward(nn.functional.dropout(X, 0.5, self.training))


class Masked(Convolution):
    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)
        self.register_buffer("mask", torch.arange(n_features_in) > 0)

    def forward(self, X):
        return super().forward(torch.where(self.mask, X, 0.0))


def test_a_module_with_a_buffer_of_booleans_is_stacked():
    jobs = jobs_of(StableNetRegressor, LEARNING_RATES, module=Masked, max_epochs=1)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    assert_close(outcomes, fitted_separately(jobs))


class Frozen(Convolution):
    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)
        self.convolution.requires_grad_(False)


def frozen_chain(n_features_in, n_outputs):
    first = nn.Linear(n_features_in, 8).requires_grad_(False)
    return nn.Sequential(first, nn.ReLU(), nn.Linear(8, n_outputs))


class Reassigned(Convolution):
    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, X):
        self.mean = 0.9 * self.mean + X.detach().mean()
        return super().forward(X)


class TwiceDropped(Residual):
    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)
        self.drop_late = self.drop_early


@pytest.mark.parametrize(
    "optimizer", [{"weight_decay": 0.1}, {"optimizer": "adam", "weight_decay": 0.1}]
)
@pytest.mark.parametrize(
    "module", [FunctionalDropout, TwiceDropped, Frozen, frozen_chain]
)
def test_frozen_weights_and_functional_dropout_are_stacked(module, optimizer):
    settings = [{"lr": lr} for lr in (1e-2, 1e-3)]
    jobs = jobs_of(StableNetRegressor, settings, module=module, **optimizer)
    estimators = fitted_by_the_loop(jobs)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    assert_close(outcomes, estimators)


class UnusedParts(nn.Module):
    """Layer with other registered parts, which forward does not use."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.unused, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.layer = nn.Linear(n_features_in, n_outputs)
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, X):
        return self.layer(X)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_parts_that_forward_does_not_use_keep_their_weights(weight_decay):
    # A stack would let them decay.
    options = {"module": UnusedParts, "weight_decay": weight_decay}
    jobs = jobs_of(StableNetRegressor, [{"lr": 1e-2}, {"lr": 1e-3}], **options)
    estimators = fitted_by_the_loop(jobs)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked == (not weight_decay) for outcome in outcomes)
    assert_close(outcomes, estimators)
    assert_close(outcomes, fitted_separately(jobs))


@pytest.mark.parametrize("module", [Branching, Reassigned])
def test_modules_that_vmap_cannot_reproduce_are_trained_separately(module):
    jobs = jobs_of(StableNetRegressor, LEARNING_RATES, module=module)
    estimators = fitted_separately(jobs)
    outcomes = train_together(jobs)
    assert not any(outcome.is_stacked for outcome in outcomes)
    assert_close(outcomes, estimators)


class Annealed(Convolution):
    n_calls = 0

    def forward(self, X):
        self.n_calls += self.training
        return super().forward(X) * 0.9**self.n_calls


class Pruned(Convolution):
    """Gradient of a weight that a hook changes."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)
        next(self.parameters()).register_hook(torch.zeros_like)


class Hooked(Convolution):
    """Output that a hook changes from the tenth call on."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)
        self.n_calls = 0
        self.register_forward_hook(self.count)

    @staticmethod
    def count(module, args, output):
        module.n_calls += module.training
        return output * 0.5 if module.n_calls > 10 else output


class Recurrent(nn.Module):
    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.cells = nn.GRU(1, 4, batch_first=True)
        self.head = nn.Linear(4, n_outputs)

    def forward(self, X):
        return self.head(self.cells(X.unsqueeze(-1))[0][:, -1])


class HalfPrecision(Convolution):
    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)
        self.bfloat16()  # which NumPy does not have

    def forward(self, X):
        return super().forward(X.bfloat16())


@pytest.mark.parametrize("module", [Annealed, HalfPrecision, Hooked, Pruned, Recurrent])
def test_modules_that_torch_must_call_itself_use_the_loop(module):
    jobs = jobs_of(StableNetRegressor, LEARNING_RATES, module=module, max_epochs=2)
    outcomes = train_together(jobs)
    assert not any(outcome.is_stacked for outcome in outcomes)
    assert_close(outcomes, fitted_by_the_loop(jobs))


class ScaledByBuffer(Convolution):
    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, X):
        return self.scale * super().forward(X)


def test_a_buffer_without_dimensions_is_stacked():
    jobs = jobs_of(StableNetRegressor, LEARNING_RATES, module=ScaledByBuffer)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    assert_close(outcomes, fitted_by_the_loop(jobs))


@pytest.mark.filterwarnings("ignore::sknan.DivergenceWarning")
@pytest.mark.parametrize("batch_size", [32, 31])
@pytest.mark.parametrize("estimator_class", [StableNetClassifier, StableNetRegressor])
def test_a_custom_module_in_a_stack_of_one_has_the_bits_of_a_member_of_many(
    estimator_class, batch_size
):
    settings = [*LEARNING_RATES, {"lr": 1e30}]
    jobs = jobs_of(estimator_class, settings, module=Residual, batch_size=batch_size)
    estimators = fitted_separately(jobs)
    for outcome, separate in zip(train_together(jobs), estimators, strict=True):
        assert_bitwise_equal(weights_of(outcome.estimator), weights_of(separate))


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "tanh"])
def test_all_layers_and_batch_sizes_of_a_chain(activation):
    # A last batch of another size, a loss on held-out rows, dropout in some members.
    common = {
        "module__activation": activation,
        "module__width": 16,
        "early_stopping": True,
        "batch_size": 48,
        "max_epochs": 4,
    }
    settings = [
        {"lr": lr, "module__dropout": p, "random_state": seed}
        for lr, p, seed in [(1e-3, 0.3, 0), (1e-2, 0.1, 0), (1e-3, 0.1, 1)]
    ]
    jobs = jobs_of(StableNetClassifier, settings, **common)
    assert_close(train_together(jobs), fitted_separately(jobs))


class SecondLayerFirst(nn.Module):
    """Chain whose layers are applied in another order than that of its attributes."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.second, self.first = nn.Linear(5, 5), nn.Linear(n_features_in, 5)
        self.act, self.head = nn.Tanh(), nn.Linear(5, n_outputs)

    def forward(self, X):
        return self.head(self.second(self.act(self.first(X))))


def repeated_layer(n_features_in, n_outputs):
    layer = nn.Linear(n_features_in, n_features_in)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(n_features_in, n_outputs))


def chain_with(register):
    def build(n_features_in, n_outputs):
        module = nn.Sequential(nn.Linear(n_features_in, 4), nn.Linear(4, n_outputs))
        getattr(module[0].weight, register)(HOOKS[register])
        return module

    return build


def clear_gradient(weight):
    weight.grad.zero_()


HOOKS = {
    "register_hook": torch.zeros_like,
    "register_post_accumulate_grad_hook": clear_gradient,
}


@pytest.mark.parametrize(
    ("module", "is_stacked"),
    [
        (SecondLayerFirst, True),
        (repeated_layer, True),
        *((chain_with(register), False) for register in HOOKS),
    ],
    ids=["second layer first", "repeated layer", *HOOKS],
)
def test_chains_that_explicit_passes_would_not_train_correctly(module, is_stacked):
    jobs = jobs_of(StableNetRegressor, LEARNING_RATES, module=module)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked == is_stacked for outcome in outcomes)
    assert_close(outcomes, fitted_by_the_loop(jobs), atol=1e-4)


def test_a_hook_of_a_criterion_is_called_for_each_batch():
    criterion, calls = nn.CrossEntropyLoss(), []
    criterion.register_forward_hook(lambda *_: calls.append(1))
    jobs = jobs_of(StableNetClassifier, LEARNING_RATES[:1], criterion=criterion)
    n_epochs, n_batches = 3, 7
    fitted_separately(jobs[:1])
    assert len(calls) >= n_epochs * n_batches


class Renormalized(Convolution):
    """Module with an operation that has no batching rule."""

    def forward(self, X):
        return super().forward(torch.renorm(X, 2, 0, 1.0))


def test_an_operation_without_a_batching_rule_gives_no_warning():
    jobs = jobs_of(StableNetRegressor, LEARNING_RATES, module=Renormalized)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    with pytest.warns(UserWarning, match="batching rule"):  # the user's own
        torch.vmap(torch.histc)(torch.ones(2, 3))
