"""Networks and data for trainings in which steps fail."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from sknan import DivergenceWarning, GuardedNet, NonFiniteTrainingError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(128, 4)).astype("float32")
Y = (X @ np.array([1.0, -0.5, 0.25, 0.0]) + 0.1)[:, None].astype("float32")


def network_of(module, criterion=nn.MSELoss, **options):
    torch.manual_seed(0)
    defaults = {
        "optimizer": torch.optim.SGD,
        "lr": 0.05,
        "max_epochs": 10,
        "batch_size": 16,
        "train_split": None,
        "verbose": 0,
        "iterator_train__shuffle": True,
    }
    return GuardedNet(module, criterion, **{**defaults, **options})


def fitted(net, inputs=X, targets=Y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        return net.fit(inputs, targets)


def refused(net, inputs=X, targets=Y):
    with pytest.raises(NonFiniteTrainingError) as caught:
        fitted(net, inputs, targets)
    return caught.value


def r2(net, inputs=X, targets=Y):
    with torch.no_grad():
        residual = net.forward(inputs).numpy() - targets
    return 1 - (residual**2).mean() / targets.var()


def is_sound(net):
    return all(torch.isfinite(v).all() for v in net.module_.state_dict().values())


class MLP(nn.Module):
    def __init__(self, d_in=4, width=16):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(d_in, width), nn.Tanh())
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.body(x))


class LogOfFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = MLP()

    def forward(self, x):
        return self.mlp(torch.cat([torch.log(x[:, :1]), x[:, 1:]], 1))


def with_bad_rows():
    inputs = np.abs(X) + 0.5
    inputs[[7, 90], 0] = [-1.0, 0.0]
    return inputs
