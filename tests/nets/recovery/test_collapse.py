"""Networks that give one output for all rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale
from torch import nn

from sknan import DivergenceWarning, GuardedNetClassifier, StableNetRegressor
from sknan.nets.recovery.collapse import is_collapsed

ROWS = torch.arange(4.0)[:, None]


@pytest.mark.parametrize(
    ("inputs", "output", "expected"),
    [
        (ROWS, torch.ones(4, 2), True),
        (ROWS, (torch.ones(4), ROWS), True),
        ({"x": ROWS}, torch.ones(4), True),
        (ROWS, ROWS, False),
        (torch.ones(4, 1), torch.ones(4), False),
        (ROWS[:1], torch.ones(1), False),
        (ROWS, torch.ones(()), False),
        (ROWS, None, False),
    ],
)
def test_a_network_has_collapsed_if_different_rows_have_one_output(
    inputs, output, expected
):
    assert is_collapsed(inputs, output) is expected


@pytest.mark.parametrize("lr", [10.0, 50.0])
def test_a_collapsed_network_that_had_learned_nothing_starts_again(lr):
    X, y = map(scale, load_diabetes(return_X_y=True))
    model = StableNetRegressor(optimizer="sgd", lr=lr, max_epochs=20, random_state=2)
    with pytest.warns(DivergenceWarning, match="The network has collapsed"):
        model.fit(X[::2], y[::2])
    (report,) = model.nonfinite_reports_
    assert report.recovery.startswith("The first weights were restored, and the learn")
    assert model.score(X[::2], y[::2]) > 0.4


class Killed(nn.Module):
    """Network whose hidden units a step may kill; or one of zeros."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.head = nn.Linear(8, 2)
        self.scale = scale

    def forward(self, x):
        return self.head(self.scale * torch.relu(self.hidden(x)))


class Kill(torch.optim.SGD):
    """SGD whose fifth step is far too long."""

    def step(self, closure=None):
        loss = super().step(closure)
        self.n = getattr(self, "n", 0) + 1
        if self.n == 5:
            with torch.no_grad():
                self.param_groups[0]["params"][1].fill_(-1e3)
        return loss


def fitted(module):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(160, 4)).astype("float32")
    torch.manual_seed(0)
    net = GuardedNetClassifier(
        module,
        criterion=nn.CrossEntropyLoss,
        optimizer=Kill,
        lr=0.1,
        max_epochs=30,
        batch_size=32,
        train_split=None,
        verbose=0,
    )
    y = (X[:, 0] > 0).astype("int64")
    return net.fit(X, y).score(X, y), net.nonfinite_reports_


def test_a_guarded_net_that_collapses_goes_back():
    with pytest.warns(DivergenceWarning, match="same output for each of the 32 diff"):
        score, reports = fitted(Killed)
    assert len(reports) == 1
    assert score > 0.8


def test_a_network_that_gave_one_output_at_first_has_not_collapsed():
    class Zero(Killed):
        def __init__(self):
            super().__init__(scale=0.0)

    _, reports = fitted(Zero)
    assert reports == []
