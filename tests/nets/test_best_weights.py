from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import Callback
from torch import nn

from sknan.nets import BestWeights, GuardedNet


class Script(Callback):
    """Write the monitored value of each epoch, and note the weights at its end."""

    def __init__(self, values):
        self.values = values

    def initialize(self):
        self.weights_ = []
        return self

    def on_epoch_end(self, net, **kwargs):
        net.history.record("scripted", self.values[len(net.history) - 1])
        self.weights_.append(net.module_.weight.detach().clone())


def scripted_net(values, patience=100, **options):
    torch.manual_seed(0)
    return GuardedNet(
        nn.Linear,
        nn.MSELoss,
        module__in_features=2,
        module__out_features=1,
        max_epochs=len(values),
        train_split=None,
        lr=0.01,
        verbose=0,
        callbacks=[
            ("script", Script(values)),
            ("best", BestWeights(patience, monitor="scripted")),
        ],
        **options,
    )


def fitted(values, patience=100):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(16, 2)).astype("float32")
    net = scripted_net(values, patience).fit(X, X.sum(1, keepdims=True))
    callbacks = dict(net.callbacks_)
    return net, callbacks["best"], callbacks["script"].weights_


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([3.0, 1.0, 2.0], 2),
        ([1.0, 2.0, 3.0], 1),
        ([3.0, 2.0, 1.0], 3),
        ([2.0, 1.0, 1.0, 1.0, 2.0], 4),
        ([-1.0, -3.0, -2.0], 2),
        ([math.nan, 2.0, math.nan, 3.0], 2),
        ([math.inf, 2.0, 3.0], 2),
        ([2.0, -math.inf, 3.0], 1),
    ],
)
def test_the_weights_of_the_best_epoch_are_restored_the_later_of_equals(values, best):
    net, callback, weights = fitted(values)
    assert callback.best_epoch_ == best
    assert callback.best_score_ == values[best - 1]
    assert torch.equal(net.module_.weight, weights[best - 1])
    assert len(net.history) == len(values)


def test_without_a_finite_epoch_the_last_weights_stay():
    net, callback, weights = fitted([math.nan, math.inf, math.nan])
    assert callback.best_epoch_ is None
    assert torch.equal(net.module_.weight, weights[-1])


@pytest.mark.parametrize(
    ("values", "patience", "n_epochs"),
    [
        ([3.0, 2.0, 2.5, 2.5, 2.5, 1.0], 2, 4),
        ([3.0, 2.0, 2.5, 1.0, 2.5, 1.5], 2, 6),
        ([1.0, 2.0, 2.0, 2.0], 1, 2),
        ([math.nan, math.nan, math.nan, 1.0], 2, 2),
        # Equal is not better: it wins, but does not prolong.
        ([1.0, 1.0, 1.0, 1.0], 2, 3),
    ],
)
def test_training_stops_when_patience_is_exhausted(values, patience, n_epochs):
    net, callback, weights = fitted(values, patience)
    assert len(net.history) == n_epochs
    finite = [value for value in values[:n_epochs] if math.isfinite(value)]
    if finite:
        assert callback.best_score_ == min(finite)
        assert torch.equal(net.module_.weight, weights[callback.best_epoch_ - 1])


def test_the_validation_loss_is_what_is_monitored():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 2)).astype("float32")
    torch.manual_seed(0)
    net = GuardedNet(
        nn.Linear,
        nn.MSELoss,
        module__in_features=2,
        module__out_features=1,
        max_epochs=200,
        lr=0.3,
        verbose=0,
        callbacks=[("best", BestWeights(patience=3))],
    ).fit(X, rng.normal(size=(40, 1)).astype("float32"))
    losses = net.history[:, "valid_loss"]
    best = dict(net.callbacks_)["best"].best_epoch_
    last_of_equals = max(i for i, loss in enumerate(losses, 1) if loss == min(losses))
    assert best == last_of_equals
    first_of_equals = 1 + list(losses).index(min(losses))
    assert len(losses) - first_of_equals == 3


def test_a_second_training_forgets_the_first():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(16, 2)).astype("float32")
    y = X.sum(1, keepdims=True)
    net = scripted_net([1.0, 2.0, 5.0, 4.0], patience=10).set_params(max_epochs=2)
    net.fit(X, y).partial_fit(X, y)
    callback = dict(net.callbacks_)["best"]
    assert (callback.best_epoch_, callback.best_score_) == (4, 4.0)
    net.fit(X, y)
    assert (callback.best_epoch_, callback.best_score_) == (1, 1.0)


def test_patience_is_counted_from_the_start_of_each_training():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(16, 2)).astype("float32")
    y = X.sum(1, keepdims=True)
    values = [1.0, 2.0, 9.0, 9.5, 9.6, 9.7]
    net = scripted_net(values, patience=2).set_params(max_epochs=2)
    net.fit(X, y).set_params(max_epochs=4)
    net.partial_fit(X, y)
    assert len(net.history) == 5


def test_running_statistics_are_restored_with_the_weights():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(16, 2)).astype("float32")

    class Statistics(Callback):
        def initialize(self):
            self.means_ = []
            return self

        def on_epoch_end(self, net, **kwargs):
            net.history.record("scripted", [2.0, 1.0, 3.0][len(net.history) - 1])
            self.means_.append(net.module_[1].running_mean.clone())

    torch.manual_seed(0)
    net = GuardedNet(
        nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
        nn.MSELoss,
        max_epochs=3,
        train_split=None,
        verbose=0,
        callbacks=[
            ("statistics", Statistics()),
            ("best", BestWeights(10, monitor="scripted")),
        ],
    ).fit(X, X.sum(1, keepdims=True))
    means = dict(net.callbacks_)["statistics"].means_
    assert torch.equal(net.module_[1].running_mean, means[1])
    assert not torch.equal(means[1], means[2])


class TwoModuleNet(GuardedNet):
    """A second module, registered as skorch wants it."""

    def initialize_module(self):
        super().initialize_module()
        self.head_ = nn.Linear(1, 1)
        return self

    def infer(self, x, **fit_params):
        return self.head_(super().infer(x, **fit_params))


def test_all_modules_of_a_net_are_restored():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(16, 2)).astype("float32")

    class Heads(Script):
        def on_epoch_end(self, net, **kwargs):
            super().on_epoch_end(net)
            self.weights_[-1] = net.head_.weight.detach().clone()

    torch.manual_seed(0)
    net = TwoModuleNet(
        nn.Linear,
        nn.MSELoss,
        module__in_features=2,
        module__out_features=1,
        max_epochs=3,
        train_split=None,
        verbose=0,
        callbacks=[
            ("heads", Heads([2.0, 1.0, 3.0])),
            ("best", BestWeights(10, monitor="scripted")),
        ],
    ).fit(X, X.sum(1, keepdims=True))
    assert torch.equal(net.head_.weight, dict(net.callbacks_)["heads"].weights_[1])


def test_no_copy_of_the_weights_is_kept_or_pickled():
    net, callback, _ = fitted([2.0, 1.0, 3.0])
    assert callback._snapshot_ is None
    callback.initialize()
    callback.on_train_begin(net)
    net.history[-1]["scripted"] = 1.0
    callback.on_epoch_end(net)
    assert callback._snapshot_ is not None
    for again in (copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))):
        assert again(callback)._snapshot_ is None
        assert again(callback).best_score_ == 1.0


def test_the_callback_can_be_cloned():
    copied = clone(BestWeights(7, monitor="train_loss"))
    assert copied.get_params() == {
        "patience": 7,
        "monitor": "train_loss",
        "greater_is_better": False,
    }


@pytest.mark.parametrize(
    ("params", "rule"),
    [
        ({"patience": np.ones(2)}, "an integer of at least 1"),
        ({"patience": 0}, "an integer of at least 1"),
        ({"patience": 1, "greater_is_better": "yes"}, "True or False"),
    ],
)
def test_invalid_parameters_are_refused_before_the_training(params, rule):
    *_, (name, value) = params.items()
    with pytest.raises(ValueError, match=name) as caught:
        BestWeights(**params).initialize()
    assert str(caught.value) == (
        f"The {name!r} parameter of BestWeights must be {rule}, got {value!r}."
    )
