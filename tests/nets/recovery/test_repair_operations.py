"""Steps with finite operations in place of those that failed."""

from __future__ import annotations

import torch
from failing_trainings import fitted, network_of, r2
from torch import nn


class RootTrap(nn.Module):
    """Module with 0 * inf in the gradient of the branch that is not taken."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        h = self.first(x)
        return self.head(torch.where(h > 0, torch.sqrt(h), 0.1 * h))


def test_an_operation_that_fails_in_every_row_is_repaired():
    net = fitted(network_of(RootTrap, optimizer=torch.optim.Adam, lr=0.02))
    assert r2(net) > 0.8
    first = net.nonfinite_reports_[0]
    assert (first.phase, first.cause, first.operation) == (
        "backward",
        "architecture",
        "aten.sqrt",
    )
    assert first.recovery == "The step was taken with its operations repaired."
