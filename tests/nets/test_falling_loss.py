"""Warning of a loss that falls without a lower bound."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from sknan import GuardedNet, StableNetRegressor

X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
LABELS = (X[:, :1] > 0).astype(np.float32)


def network(criterion, n_outputs=1, **params):
    torch.manual_seed(0)
    options = {"lr": 0.05, "max_epochs": 2, "train_split": None, "verbose": 0, **params}
    return GuardedNet(nn.Linear(3, n_outputs), criterion, **options)


class Unbounded(nn.Module):
    """Error over a number that is negative."""

    def forward(self, output, target):
        return -((output - target) ** 2).mean() / 0.02


def test_a_loss_that_falls_without_end_gives_one_warning():
    net = network(Unbounded, lr=1e-3, max_epochs=40)
    with pytest.warns(UserWarning, match="no lower bound") as caught:
        net.fit(X, X[:, :1])
    history = net.history[:, "train_loss"]
    assert [str(w.message) for w in caught] == [
        f"The training loss has fallen from {history[0]:.3g} to {history[-1]:.3g} in "
        "40 epochs. It seems to have no lower bound, so that the network learns to "
        "lower it, whatever it predicts. Look for a divisor or a weight in the loss "
        "that may be negative, and for targets or outputs outside the range that the "
        "loss is meant for."
    ]


def test_a_loss_that_falls_in_a_stack_gives_the_warning():
    model = StableNetRegressor(
        criterion=Unbounded, lr=0.05, max_epochs=40, early_stopping=False
    )
    with pytest.warns(UserWarning, match="It seems to have no lower bound"):
        model.fit(X, X[:, 0])


class Narrow(nn.Module):
    """Negative log-likelihood of a normal distribution."""

    def forward(self, output, target):
        scale = output[:, 1:].clamp(-20, 20).exp()
        normal = torch.distributions.Normal(output[:, :1], scale)
        return -normal.log_prob(target).mean()


def test_a_likelihood_of_the_narrowest_distribution_gives_no_warning():
    net = network(Narrow, 2, optimizer=torch.optim.Adam, max_epochs=300, lr=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.fit(X, np.zeros_like(LABELS))
    assert net.history[-1, "train_loss"] < -1.0


class Counts(nn.Module):
    """Poisson loss without its constant terms."""

    def forward(self, output, target):
        return (output.exp() - target * output).mean()


@pytest.mark.parametrize("scale", [100, 10_000])
def test_the_low_loss_of_large_counts_gives_no_warning(scale):
    counts = np.random.default_rng(0).poisson(scale * np.exp(0.3 * X[:, 0]))
    net = network(Counts, optimizer=torch.optim.Adam, lr=0.1, max_epochs=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.fit(X, counts[:, None].astype(np.float32))
    assert net.history[-1, "train_loss"] < -100


@pytest.mark.parametrize("criterion", [nn.KLDivLoss(reduction="batchmean"), nn.NLLLoss])
def test_outputs_that_are_no_log_probabilities_give_the_warning(criterion):
    is_class = criterion is nn.NLLLoss
    target = LABELS[:, 0].astype(int) if is_class else np.abs(X[:, :2])
    net = network(criterion, 2, lr=1.0, max_epochs=200, clip_norm=None)
    with pytest.warns(UserWarning, match="It seems to have no lower bound"):
        net.fit(X, target)
