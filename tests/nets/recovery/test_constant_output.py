"""Loss of the best constant output."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from failing_trainings import X, Y, network_of
from torch import nn

from sknan.nets.recovery.constant_output import lowest_constant_loss

LABELS = (Y[:, 0] > 0.5).astype("int64")


def lowest(criterion, n_outputs, target, module=None):
    torch.manual_seed(0)
    module = module or nn.Linear(4, n_outputs)
    net = network_of(module, criterion).initialize()
    data = torch.tensor(X).split(32), torch.tensor(target).split(32)
    return lowest_constant_loss(net, list(zip(*data, strict=True)), {})


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_best_constant_for_a_squared_error_is_the_mean(offset):
    found = lowest(nn.MSELoss, 1, Y + np.float32(offset))
    assert found == pytest.approx(np.var(Y), rel=1e-3)


def test_the_best_constant_for_a_cross_entropy_is_the_share_of_each_class():
    share = LABELS.mean()
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    assert lowest(nn.CrossEntropyLoss, 2, LABELS) == pytest.approx(entropy, rel=1e-3)


class OwnLikelihood(nn.Module):
    def forward(self, output, target):
        return -torch.log(output.gather(1, target[:, None])).mean()


def test_a_constant_is_never_outside_the_range_of_the_outputs():
    # As probabilities, both outputs could otherwise become large.
    module = nn.Sequential(nn.Linear(4, 2), nn.Softmax(dim=1))
    assert lowest(OwnLikelihood, 2, LABELS, module) >= 0.0


class Pair(nn.Linear):
    def forward(self, inputs):
        return (super().forward(inputs),) * 2


class OfFirst(nn.MSELoss):
    def forward(self, outputs, target):
        return super().forward(outputs[0], target)


def test_several_outputs_have_no_constant():
    assert math.isnan(lowest(OfFirst, 1, Y, Pair(4, 1)))
