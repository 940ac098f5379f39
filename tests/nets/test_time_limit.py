"""End of a training by its time limit."""

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from sknan import GuardedNetRegressor
from sknan.nets import BestWeights
from sknan.nets._time_limit import TimeLimit

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
Y = X[:, :1]

# No epoch is that short, and no test takes that long.
INSTANT, FOREVER = 1e-9, 1e6


def fitted(*callbacks):
    torch.manual_seed(0)
    net = GuardedNetRegressor(
        torch.nn.Linear(3, 1), max_epochs=5, verbose=0, callbacks=list(callbacks)
    )
    return net.fit(X, Y)


@pytest.mark.parametrize(
    ("max_time", "n_epochs"), [(INSTANT, 1), (FOREVER, 5), (np.inf, 5)]
)
def test_a_training_ends_after_its_time_but_not_before_an_epoch(max_time, n_epochs):
    assert len(fitted(TimeLimit(max_time)).history) == n_epochs


def test_networks_that_are_trained_together_share_the_time():
    limit = TimeLimit(FOREVER).initialize()
    limit._latest_ -= 1000.0  # as after an epoch of that many seconds
    limit.max_time = 1500.0
    assert limit.allows_epoch(2)  # 500 seconds are spent, and 500 more are expected
    limit._latest_ -= 1000.0
    assert not limit.allows_epoch(1)  # 1500 seconds are spent


class Ending(Callback):
    """Callback that records scores and weights, and uses up the time in epoch 3."""

    def __init__(self, limit):
        self.limit = limit

    def on_epoch_end(self, net, **_):
        epoch = len(net.history)
        net.history.record("score", [3.0, 1.0, 2.0][epoch - 1])
        if epoch == 2:
            self.weights = net.module_.weight.detach().clone()
        if epoch == 3:
            self.limit.max_time = INSTANT


def test_the_weights_of_the_best_epoch_are_kept():
    limit = TimeLimit(FOREVER)
    ending = Ending(limit)
    net = fitted(ending, BestWeights(patience=9, monitor="score"), limit)
    assert len(net.history) == 3
    assert torch.equal(net.module_.weight, ending.weights)
