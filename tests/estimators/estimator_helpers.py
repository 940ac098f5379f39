"""Small data for the two estimators, and what their tests read from a fitted one."""

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from sknan import StableNetClassifier, StableNetRegressor

X = np.random.default_rng(0).normal(size=(60, 4))
LABELS = (X[:, 0] + X[:, 1] > 0).astype(int)
VALUES = X[:, 0] - 2 * X[:, 1]

FAST = {"max_epochs": 3, "random_state": 0}
ESTIMATORS = [(StableNetClassifier, LABELS), (StableNetRegressor, VALUES)]
both = pytest.mark.parametrize(
    ("Estimator", "y"), ESTIMATORS, ids=["classifier", "regressor"]
)


def weights_of(model):
    return [p.detach().clone() for p in model.net_.module_.parameters()]


def same_weights(first, second):
    pairs = zip(weights_of(first), weights_of(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def raw_scores(model, X):
    proba = getattr(model, "predict_proba", None)
    return model.predict(X) if proba is None else proba(X)


class Recorder(Callback):
    """Callback that records losses, weights, learning rates and batch sizes."""

    def initialize(self):
        self.losses_ = []
        self.weights_ = []
        self.learning_rates_ = []
        return self

    def on_batch_begin(self, net, batch=None, training=None, **_):
        if training:
            self.rows_ = [*getattr(self, "rows_", []), len(batch[0])]

    def on_epoch_end(self, net, **_):
        self.losses_.append(net.history[-1].get("valid_loss"))
        self.weights_.append([p.detach().clone() for p in net.module_.parameters()])
        self.learning_rates_.append(net.history[-1, "lr"])
