"""Schedules as functions of the progress, compared with torch's schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sknan.optim import (
    Plateau,
    constant,
    cosine,
    coslog4,
    exponential,
    one_cycle,
    step,
)

FUNCTIONS = [constant, coslog4, cosine, exponential, one_cycle, step]


def learning_rates_of_torch(build, n_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build(optimizer)
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@given(st.floats(0.0, 1.0))
def test_every_schedule_stays_between_zero_and_one(progress):
    for function in FUNCTIONS:
        assert 0.0 <= function(progress) <= 1.0, function.__name__


def test_cosine_agrees_with_torch():
    n = 17
    expected = learning_rates_of_torch(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=n, eta_min=0.1),
        n + 1,
    )
    found = [cosine(i / n, final=0.1) for i in range(n + 1)]
    # torch computes recursively, so that rounding errors add up.
    assert found == pytest.approx(expected, abs=1e-12)


def test_one_cycle_agrees_with_torch():
    n = 21
    expected = learning_rates_of_torch(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, max_lr=1.0, total_steps=n, pct_start=7 / n, cycle_momentum=False
        ),
        n,
    )
    # In torch the peak is at pct_start * total_steps - 1 of total_steps - 1 intervals.
    found = [one_cycle(i / (n - 1), pct_start=6 / 20) for i in range(n)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_exponential_agrees_with_torch():
    n = 10
    expected = learning_rates_of_torch(
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.01 ** (1 / n)), n
    )
    assert [exponential(i / n) for i in range(n)] == pytest.approx(expected, rel=1e-12)


def test_step_agrees_with_torch():
    n = 12
    expected = learning_rates_of_torch(
        lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=4), n
    )
    assert [step(i / n) for i in range(n)] == pytest.approx(expected, rel=1e-12)
    assert step(1.0) == pytest.approx(0.01)


def test_one_cycle_without_a_rise_and_without_a_fall():
    assert one_cycle(0.0, pct_start=0.0) == 1.0
    assert one_cycle(1.0, pct_start=0.0) == pytest.approx(4e-6)
    assert one_cycle(0.0, pct_start=1.0) == pytest.approx(0.04)
    assert one_cycle(1.0, pct_start=1.0) == 1.0


def test_coslog4_has_four_waves_of_doubling_length():
    zeros = [(2**k - 1) / 15 for k in range(5)]
    peaks = [(2 ** (k + 0.5) - 1) / 15 for k in range(4)]
    assert [coslog4(t) for t in zeros] == pytest.approx([0.0] * 5, abs=1e-15)
    assert [coslog4(t) for t in peaks] == pytest.approx([1.0] * 4, abs=1e-15)


def test_plateau_agrees_with_torch():
    losses = [1.0, 0.9, 0.95, 0.9, math.nan, 0.91, 0.8, math.inf, 0.9, 0.9, 0.9, 0.9]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=2, min_lr=0.3
    )
    plateau = Plateau(factor=0.5, patience=2, min_factor=0.3)
    for loss in losses:
        reference.step(loss)
        plateau.update(loss)
        assert plateau.current == optimizer.param_groups[0]["lr"]
    assert plateau.current == 0.3


def test_plateau_requires_a_negative_loss_to_fall_too():
    plateau = Plateau(patience=0, threshold=0.1)
    plateau.update(-1.0)
    plateau.update(-1.05)
    assert plateau.current == 0.5
    plateau.update(-1.2)
    assert plateau.current == 0.5


def test_plateau_continues_after_a_first_loss_of_nan():
    plateau = Plateau(patience=1)
    for loss in (math.nan, 2.0, 1.0):
        plateau.update(loss)
    assert (plateau.current, plateau.best) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.0}, "factor must be between 0 and 1, got 1.0."),
        ({"factor": math.nan}, "factor must be between 0 and 1, got nan."),
        ({"factor": "half"}, "factor must be a number, got 'half'."),
        ({"min_factor": None}, "min_factor must be a number, got None."),
        ({"patience": -1}, "patience must be 0 or more, got -1."),
        ({"threshold": -1}, "threshold must be 0 or more and finite, got -1."),
        ({"min_factor": 2}, "min_factor must be in [0, 1], got 2."),
    ],
)
def test_plateau_refuses_parameters_out_of_range(options, message):
    with pytest.raises(ValueError, match="must be") as caught:
        Plateau(**options)
    assert str(caught.value) == message
