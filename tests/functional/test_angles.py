"""Tests of angles."""

from __future__ import annotations

import pytest
import torch

from sknan import functional as sf


@pytest.mark.parametrize(
    ("y", "x"), [(0.0, 0.0), (-0.0, 0.0), (0.0, -0.0), (0.0, -1.0)]
)
def test_the_angle_on_an_axis_equals_torch(y, x):
    y, x = torch.tensor(y), torch.tensor(x)
    assert sf.atan2(y, x).item() == pytest.approx(
        torch.atan2(y, x.abs() * x.sign()).item()
    )
