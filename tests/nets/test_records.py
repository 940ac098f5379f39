"""History entries and warnings of guarded trainings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sknan import GuardedNet, StableNetClassifier

X = np.random.default_rng(0).normal(size=(128, 4)).astype("float32")
Y = (X @ np.array([1.0, -0.5, 0.25, 0.0]) + 0.1)[:, None].astype("float32")


class MLP(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def network_of(**options):
    torch.manual_seed(0)
    return GuardedNet(
        MLP,
        nn.MSELoss,
        lr=0.05,
        batch_size=16,
        train_split=None,
        verbose=0,
        iterator_train__shuffle=True,
        **options,
    )


def test_clips_are_counted_and_measured():
    net = network_of(clip_norm=0.05, max_epochs=2).fit(X, Y)
    share, coefficient = net.history[-1, ("clip_share", "clip_coefficient")]
    assert 0.5 < share <= 1.0
    assert 0.0 < coefficient < 1.0


def test_a_clip_that_never_had_an_effect_gives_a_warning():
    with pytest.warns(UserWarning, match="clip_norm") as caught:
        network_of(clip_norm=1e6, max_epochs=4).fit(X, Y)
    message = str(caught[0].message)
    assert message.startswith(
        "clip_norm=1000000.0 never had an effect: the norm of the gradients was at "
    )
    assert message.endswith(
        "in 32 steps. Lower it to bound what is unusual here, or leave it out."
    )


def test_no_warning_says_that_the_default_clip_of_an_estimator_was_idle():
    labels = (Y.ravel() > 0).astype(int)
    model = StableNetClassifier(lr=1e-6, max_epochs=30, batch_size=16, random_state=0)
    model.fit(X, labels)  # warnings are errors here
