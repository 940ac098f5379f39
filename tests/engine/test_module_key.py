"""Keys of modules and criteria: equal for one function, different for two."""

import functools

import numpy as np
import pytest
import torch
from engine_helpers import (
    TABLES,
    assert_bitwise_equal,
    fitted_separately,
    jobs_of,
    weights_of,
)
from torch import nn

from sknan import StableNetClassifier, StableNetRegressor
from sknan._engine.jobs import train_together
from sknan._engine.module_key import module_key
from sknan.optim import AGC, QuantileClip


class Scaled(nn.Module):
    """Module and loss with attributes that are not registered."""

    def __init__(self, n_features_in, n_outputs, **attributes):
        super().__init__()
        self.layer = nn.Linear(n_features_in, n_outputs)
        self.drop = nn.Dropout(attributes.pop("p", 0.1))
        vars(self).update(attributes)

    def forward(self, x):
        return self.layer(self.drop(x))


class Options:
    def __init__(self, factor):
        self.factor = factor


def key(seed=0, hook=None, **attributes):
    job = jobs_of(StableNetRegressor, [{}], TABLES[:1])[0]
    torch.manual_seed(seed)
    module = Scaled(5, 1, **attributes)
    if hook is not None:
        module.layer.register_forward_hook(hook)
    estimator = job.estimator.set_params(module=module, criterion="huber")
    return module_key(estimator._plan(estimator._training_rows(job.X, job.y)).net)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1.0, 2.0),
        (1, True),
        (torch.tensor(1.0), torch.tensor(1.000001)),
        (np.arange(2000), np.arange(2000) // 1999 * 1999),
        (["a"], ["b"]),
        ({"a": 1}, {"a": 2}),
        (Options(1.0), Options(2.0)),
        (functools.partial(torch.add, alpha=1), functools.partial(torch.add, alpha=2)),
        (AGC(0.1), AGC(0.2)),
        (lambda x: x, lambda x: x),
    ],
)
def test_modules_whose_attributes_differ_have_different_keys(one, other):
    assert key(value=one) == key(seed=1, value=one)
    assert key(value=one) != key(value=other)


def test_weights_and_probabilities_of_dropout_may_differ():
    assert key(p=0.1) == key(seed=1, p=0.2)
    assert key(p=0.1) != key(p=0.0)


def test_a_module_with_a_hook_is_not_stacked():
    assert key(hook=lambda module, args, output: None) is None


def test_an_object_may_refer_to_itself():
    options, others = Options(None), Options(None)
    options.factor, others.factor = options, others
    assert key(value=options) == key(value=others)


@pytest.mark.parametrize(
    ("criterion", "settings"),
    [
        ("cross_entropy", [{"criterion__label_smoothing": s} for s in (0.0, 0.1, 0.3)]),
        ("cross_entropy", [{"criterion__ignore_index": i} for i in (-100, 0)]),
        (
            "cross_entropy",
            [{"criterion__weight": torch.tensor([1.0, w])} for w in (1.00001, 1.00002)],
        ),
        ("focal", [{"criterion__reduction": r} for r in ("mean", "sum")]),
        (
            "cross_entropy",
            [{"class_weight": {0: 1.0, 1: 2.0}}, {"class_weight": {0: 2.0, 1: 1.0}}],
        ),
    ],
)
def test_candidates_that_differ_in_the_loss_train_like_separate_fits(
    criterion, settings
):
    jobs = jobs_of(StableNetClassifier, settings, criterion=criterion)
    estimators = fitted_separately(jobs)
    for outcome, separate in zip(train_together(jobs), estimators, strict=True):
        assert outcome.is_stacked
        assert_bitwise_equal(weights_of(outcome.estimator), weights_of(separate))


def test_candidates_that_differ_in_clipping_are_trained_in_one_stack():
    clips = ["agc", AGC(0.1), QuantileClip(0.5, min_history=2), None]
    settings = [{"adaptive_clip": clip} for clip in clips]
    settings += [{"clip_value": 1e-3}, {"clip_norm": 0.1, "clip_value": 0.1}]
    settings += [{"on_nonfinite": "skip"}, {"max_recoveries": 0}]
    jobs = jobs_of(StableNetRegressor, settings, TABLES[:1])
    estimators = fitted_separately(jobs)
    for outcome, separate in zip(train_together(jobs), estimators, strict=True):
        assert outcome.is_stacked
        assert_bitwise_equal(weights_of(outcome.estimator), weights_of(separate))


def test_candidates_with_a_loss_of_ones_own_are_trained_in_one_stack():
    settings = [{"lr": 1e-3}, {"lr": 1e-2}, {"random_state": 1}]
    jobs = jobs_of(StableNetRegressor, settings, TABLES[:1], criterion="huber")
    assert [outcome.is_stacked for outcome in train_together(jobs)] == [True] * 3
