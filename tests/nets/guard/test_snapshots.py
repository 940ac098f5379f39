"""Finite and non-finite weights in snapshots."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sknan.nets.guard._snapshots import Snapshot


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_one_nonfinite_weight_among_several_types_is_found(dtype, value):
    empty = nn.ParameterList([nn.Parameter(torch.zeros(0))])
    module = nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 2).to(dtype), empty])
    snapshot = Snapshot([module])
    with torch.no_grad():
        module[0].bias.fill_(3e38)
    assert snapshot.is_live_finite()
    with torch.no_grad():
        module[1].weight[1, 0] = value
    assert not snapshot.is_live_finite()
