"""Training of stacks: comparison with separate fits, independence of members."""

import numpy as np
import pytest
from engine_helpers import (
    LEARNING_RATES,
    TABLES,
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

CASES = {
    "learning rates": (LEARNING_RATES, {}),
    "decays": ([{"weight_decay": d} for d in (0.0, 0.1, 1.0)], {}),
    "clips": ([{"clip_norm": c} for c in (None, 0.1, 1.0)], {}),
    "schedules": (
        [
            {"lr_schedule": "one_cycle"},
            {"lr_schedule": "plateau"},
            {"lr_schedule": None, "warmup": 5},
        ],
        {"max_epochs": 6},
    ),
    "seeds": ([{"random_state": seed} for seed in range(3)], {}),
    "dropout": (
        [{"module__dropout": p, "lr": 1e-2} for p in (0.1, 0.5)],
        {"module__activation": "silu"},
    ),
    "early stopping": (
        [{"lr": lr, "n_iter_no_change": n} for lr, n in [(1e-1, 1), (1e-3, 9)]],
        {"early_stopping": True, "max_epochs": 20},
    ),
    "embeddings": (
        [{"random_state": seed, "module__dropout": 0.2} for seed in range(3)],
        {"module__n_frequencies": 4, "early_stopping": True},
    ),
    "Adam": (LEARNING_RATES, {"optimizer": "adam", "weight_decay": 0.1}),
    "betas": ([{"optimizer__betas": b} for b in [(0.5, 0.9), (0.9, 0.999)]], {}),
    "SGD": (LEARNING_RATES, {"optimizer": "sgd", "weight_decay": 0.1}),
    "momentum": (
        [{"optimizer__momentum": m} for m in (0.0, 0.5, 0.9)],
        {"optimizer": "sgd", "lr": 0.01},
    ),
    "Nesterov": (
        LEARNING_RATES,
        {
            "optimizer": "sgd",
            "optimizer__momentum": 0.9,
            "optimizer__nesterov": True,
        },
    ),
    "RMSprop": (LEARNING_RATES, {"optimizer": "rmsprop", "weight_decay": 0.1}),
    "RMSprop with momentum": (
        LEARNING_RATES,
        {"optimizer": "rmsprop", "optimizer__momentum": 0.9, "optimizer__alpha": 0.9},
    ),
    "NAdam": (LEARNING_RATES, {"optimizer": "nadam", "weight_decay": 0.1}),
    "RAdam": (
        LEARNING_RATES,
        {"optimizer": "radam", "optimizer__decoupled_weight_decay": True},
    ),
    "Adagrad": (LEARNING_RATES, {"optimizer": "adagrad", "optimizer__lr_decay": 0.1}),
    "one batch": (LEARNING_RATES, {"batch_size": 512}),
    "loss of torch": (LEARNING_RATES, {"criterion": "of torch"}),
}


@pytest.mark.parametrize(("settings", "common"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("estimator_class", [StableNetClassifier, StableNetRegressor])
def test_a_stack_trains_like_the_loop_of_a_net(estimator_class, settings, common):
    if common.get("criterion") == "of torch":
        is_classifier = estimator_class is StableNetClassifier
        loss = nn.CrossEntropyLoss if is_classifier else nn.MSELoss
        common = {**common, "criterion": loss}
    jobs = jobs_of(estimator_class, settings, module__width=16, **common)
    estimators = fitted_by_the_loop(jobs)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    assert_close(outcomes, estimators)


@pytest.mark.parametrize("width", [1, 7, 37])
def test_odd_widths(width):
    jobs = jobs_of(StableNetClassifier, LEARNING_RATES, module__width=width)
    estimators = fitted_by_the_loop(jobs)
    assert_close(train_together(jobs), estimators)


def test_a_custom_schedule_is_stacked():
    settings = [
        {"lr_schedule": lambda progress: 1.0 - progress, "lr": 1e-2},
        *LEARNING_RATES,
    ]
    jobs = jobs_of(StableNetClassifier, settings)
    estimators = fitted_by_the_loop(jobs)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    assert_close(outcomes, estimators)


# Odd widths and batch sizes: a product rounds differently where its result does not
# begin at a multiple of 64 bytes, and a vector may end within a member.
@pytest.mark.parametrize(
    "common",
    [
        {},
        {"module__width": 7},
        {"module__width": 37, "batch_size": 22},
        {"module__width": 256, "max_epochs": 1},
        {"module__depth": 1, "module__width": 21},
        {"optimizer": "sgd", "optimizer__momentum": 0.9, "module__width": 5},
        {"optimizer": "adam", "weight_decay": 0.1, "module__width": 9},
    ],
)
@pytest.mark.parametrize("estimator_class", [StableNetClassifier, StableNetRegressor])
def test_a_diverging_member_does_not_change_the_bits_of_others(estimator_class, common):
    settings = [{"lr": 0.03 * 10.0**-k} for k in range(7)]
    expected = train_together(jobs_of(estimator_class, settings, TABLES[:1], **common))
    with_diverging = [*settings[:3], {"lr": 1e30}, *settings[3:]]
    jobs = jobs_of(estimator_class, with_diverging, TABLES[:1], **common)
    outcomes = train_together(jobs)
    diverged = outcomes.pop(3)
    for outcome, other in zip(outcomes, expected, strict=True):
        assert outcome.is_stacked
        assert_bitwise_equal(weights_of(outcome.estimator), weights_of(other.estimator))
    assert not diverged.is_stacked


@pytest.mark.parametrize(("settings", "common"), CASES.values(), ids=CASES)
def test_a_member_of_a_stack_is_bitwise_identical_to_a_fit(settings, common):
    if common.get("criterion") == "of torch":
        common = {**common, "criterion": nn.CrossEntropyLoss}
    jobs = jobs_of(StableNetClassifier, settings, module__width=16, **common)
    estimators = fitted_separately(jobs)
    for outcome, separate in zip(train_together(jobs), estimators, strict=True):
        assert_bitwise_equal(weights_of(outcome.estimator), weights_of(separate))
        histories = [e.net_.history.to_list() for e in (outcome.estimator, separate)]
        for rows in zip(*histories, strict=True):
            stacked, single = ({**row, "dur": None} for row in rows)
            assert stacked == single


@pytest.mark.parametrize(
    "params",
    [
        {"module__width": 7},
        {"module__width": 16},
        {"module__width": 256},
        {"module__n_frequencies": 4, "module__dropout": 0.2},
        {"module__width": 1, "batch_size": 3, "max_epochs": 1},
        {"module__width": 31, "batch_size": 31},
        {"module__width": 17, "batch_size": 31, "module__activation": "mish"},
        {"module__width": 24, "batch_size": 30, "module__activation": "selu"},
        {"module__width": 5, "batch_size": 8, "module__activation": "silu"},
        {"module__width": 50, "batch_size": 50, "module__activation": "gelu"},
        {"module__width": 21, "batch_size": 22, "early_stopping": True},
    ],
)
@pytest.mark.parametrize("estimator_class", [StableNetClassifier, StableNetRegressor])
def test_a_stack_of_one_has_the_bits_of_a_member_of_many(estimator_class, params):
    jobs = jobs_of(estimator_class, LEARNING_RATES, **params)
    estimators = fitted_separately(jobs)
    for outcome, separate in zip(train_together(jobs), estimators, strict=True):
        assert_bitwise_equal(weights_of(outcome.estimator), weights_of(separate))


def test_many_held_out_rows_are_evaluated_in_parts():
    X = np.random.default_rng(0).normal(size=(3300, 400)).astype(np.float32)
    y = X[:, 0] + X[:, 1]
    net = StableNetRegressor(max_epochs=1, random_state=0)
    net.fit(X[:300], y[:300], X_val=X[300:], y_val=y[300:])
    at_once = net.net_.validation_step(net._as_batch(X[300:], y[300:]))["loss"]
    np.testing.assert_allclose(net.validation_scores_, [-float(at_once)], rtol=1e-6)
