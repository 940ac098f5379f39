"""Learning rates of optimizers: temporary scaling, search by trial, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sknan.optim._learning_rates import (
    ascends,
    growing_momentum,
    hopeless_decay,
    longest_reach,
    lower_scale,
    run_search,
    scaled_rates,
    unseen_reach,
)


def optimizer(kind=torch.optim.SGD, lr=0.1, n_groups=1, **options):
    groups = [{"params": [nn.Parameter(torch.ones(2))]} for _ in range(n_groups)]
    return kind(groups, lr=lr, **options)


def rates(*optimizers):
    return [group["lr"] for o in optimizers for group in o.param_groups]


# -- scaling -------------------------------------------------------------------------


def test_learning_rates_are_scaled_inside_the_block_only():
    first, second = optimizer(n_groups=2), optimizer(torch.optim.Adam, lr=0.3)
    first.param_groups[1]["lr"] = 0.01
    with scaled_rates([first, second], 0.5):
        assert rates(first, second) == [0.05, 0.005, 0.15]
    assert rates(first, second) == [0.1, 0.01, 0.3]


def test_learning_rates_are_restored_after_an_error():
    one = optimizer()
    with pytest.raises(KeyboardInterrupt), scaled_rates([one], 0.5):
        raise KeyboardInterrupt
    assert rates(one) == [0.1]


def test_a_factor_of_one_changes_nothing():
    one = optimizer()
    rate = one.param_groups[0]["lr"] = torch.tensor(0.1)
    with scaled_rates([one], 1.0):
        assert one.param_groups[0]["lr"] is rate


@given(
    st.lists(st.floats(1e-8, 1e3), min_size=1, max_size=4),
    st.floats(0.0, 10.0),
    st.data(),
)
def test_no_learning_rate_exceeds_its_cap(given_rates, factor, data):
    one = optimizer(n_groups=len(given_rates))
    for group, rate in zip(one.param_groups, given_rates, strict=True):
        group["lr"] = rate
    caps = data.draw(st.lists(st.floats(0.0, 1e3), min_size=len(given_rates)))
    caps = caps[: len(given_rates)]
    with scaled_rates([one], factor, caps):
        expected = [min(r * factor, c) for r, c in zip(given_rates, caps, strict=True)]
        assert rates(one) == expected
    assert rates(one) == given_rates


def test_caps_for_another_number_of_groups_are_ignored():
    one = optimizer(n_groups=2)
    with scaled_rates([one], 1.0, [0.01]):
        assert rates(one) == [0.1, 0.1]


def test_a_learning_rate_that_is_a_tensor_stays_a_tensor():
    one = optimizer(torch.optim.Adam, lr=torch.tensor(0.1), capturable=False)
    with scaled_rates([one], 0.5, [0.02]):
        rate = one.param_groups[0]["lr"]
        assert isinstance(rate, torch.Tensor)
        assert rate.item() == pytest.approx(0.02)
    with scaled_rates([one], 0.5):
        assert one.param_groups[0]["lr"].item() == pytest.approx(0.05)
    assert one.param_groups[0]["lr"].item() == pytest.approx(0.1)


# -- reach ---------------------------------------------------------------------------


def test_momentum_increases_the_reach():
    plain, heavy = optimizer(lr=0.2), optimizer(lr=0.1, momentum=0.9)
    assert longest_reach([plain]) == 0.2
    assert longest_reach([plain, heavy]) == pytest.approx(1.0)


def test_a_momentum_of_one_reaches_a_hundred_times_as_far():
    one = optimizer(lr=0.1, momentum=0.9)
    one.param_groups[0]["momentum"] = 1.0
    assert longest_reach([one]) == pytest.approx(10.0)


def test_gradient_descent_moves_as_far_as_its_reach():
    one = optimizer(lr=0.1, momentum=0.9)
    weight = one.param_groups[0]["params"][0]
    weight.grad = torch.tensor([1.0, 0.0])
    one.step()
    weight.grad = torch.zeros(2)
    for _ in range(200):
        one.step()
    assert 1.0 - weight[0].item() == pytest.approx(longest_reach([one]), rel=1e-4)


# -- a lower learning rate -----------------------------------------------------------


def found_scale(scale, growth, loss_at):
    """Return the result of the search for a scale with a function for the losses."""
    return run_search(
        lower_scale(scale, growth), lambda scales: list(map(loss_at, scales))
    )


def descent(curvature, n_steps=16):
    """Return the loss of a parabola after some gradient steps, by the learning rate."""

    def loss_at(scale):
        w = 1.0
        for _ in range(n_steps):
            w -= scale * curvature * w
        return 0.5 * curvature * w * w if abs(w) < 1e150 else math.inf

    return loss_at


@given(st.floats(1e-2, 1e30))
def test_a_learning_rate_is_found_that_descends_a_parabola(curvature):
    # A step with lr=1 moves the weight by `curvature` times its size.
    scale = found_scale(4.0 / min(curvature, 4.0), curvature, descent(curvature))
    assert 0.05 < scale * curvature < 2.0


@given(st.floats(1.0, 1e6), st.floats(0.0, 1e6))
def test_the_scale_is_lower_even_if_the_highest_would_be_best(scale, growth):
    found = found_scale(scale, growth, lambda s: -s)
    assert 0.0 < found <= scale / 2


@given(
    st.floats(1e-300, 1e300),
    st.floats(0.0, allow_nan=False),
    st.sampled_from(["none", "lowest", "highest", "equal", "random"]),
)
def test_the_number_of_trials_is_bounded(scale, growth, best):
    rng = np.random.default_rng(0)
    tried = []

    def loss_at(s):
        tried.append(s)
        losses = {"none": math.inf, "lowest": s, "highest": -s, "equal": 1.0}
        return losses.get(best, rng.random())

    found = found_scale(scale, growth, loss_at)
    assert found in tried
    assert 0.0 <= found <= scale / 2
    assert len(tried) <= 28
    if best in ("none", "lowest"):
        assert found == min(tried)


@pytest.mark.parametrize("growth", [1.0, 1e3, 1e6, 1e8])
def test_a_guess_that_is_too_low_does_not_limit_the_search(growth):
    found = found_scale(1.0, growth, descent(10.0))
    assert 0.03 < found < 0.2


def test_the_search_finds_the_best_scale_to_a_quarter_of_a_decade():
    for best in (0.1, 0.03, 0.2):
        found = found_scale(
            1.0, 1.0, lambda s, best=best: abs(math.log10(s) - math.log10(best))
        )
        assert abs(math.log10(found) - math.log10(best)) <= 0.26


def test_a_training_reaches_farther_than_a_trial_by_its_momentum():
    plain, half, full = (optimizer(momentum=m) for m in (0.0, 0.5, 1.0))
    assert unseen_reach([plain], 1, None) == 1.0
    # A gradient is repeated 1 time in the first step, 1.5 in the next, later 2 times.
    assert unseen_reach([plain, half], 1, None) == 2.0
    assert unseen_reach([half], 1, 2) == 1.25
    assert unseen_reach([half], 2, 1) == 1.0
    assert 1.0 < unseen_reach([full], 10, None) < math.inf


# -- refusals ------------------------------------------------------------------------


def test_a_decay_that_explodes_is_reported_with_its_numbers():
    assert hopeless_decay([optimizer(lr=0.5, weight_decay=10.0)]) == (
        "lr=0.5 times weight_decay=10 multiplies every weight by -4 at each step, "
        "whatever the data."
    )
    adamw = optimizer(torch.optim.AdamW, lr=1.0, weight_decay=3.0)
    assert hopeless_decay([optimizer(), adamw]) == (
        "lr=1 times weight_decay=3 multiplies every weight by -2 at each step, "
        "whatever the data."
    )


@pytest.mark.parametrize(
    ("kind", "lr", "decay"),
    [
        (torch.optim.SGD, 0.1, 10.0),
        (torch.optim.SGD, 1e30, 0.5),
        (torch.optim.AdamW, 1e-3, 0.01),
        (torch.optim.Adam, 0.5, 10.0),
        (torch.optim.Adagrad, 0.5, 10.0),
    ],
)
def test_a_decay_is_not_reported_if_a_lower_learning_rate_helps(kind, lr, decay):
    assert hopeless_decay([optimizer(kind, lr=lr, weight_decay=decay)]) is None


@given(st.floats(1e-3, 1e3), st.floats(1.0, 1e3))
def test_the_weights_grow_exactly_if_the_decay_is_reported(lr, decay):
    one = optimizer(lr=lr, weight_decay=decay)
    weight = one.param_groups[0]["params"][0]
    weight.grad = torch.zeros(2)
    for _ in range(3):
        one.step()
    grows = weight.abs().max().item() > 1.0 + 1e-5  # as float32 is rounded
    is_hopeless = hopeless_decay([one]) is not None
    assert is_hopeless == (lr * decay > 2.0)
    assert grows <= is_hopeless or lr * decay == pytest.approx(2.0)


def test_an_optimizer_that_maximizes_is_reported_by_name():
    assert ascends([optimizer()]) is None
    climbing = optimizer(torch.optim.Adam, maximize=True)
    assert ascends([optimizer(), climbing]) == "Adam climbs the loss: maximize=True."
    assert ascends([optimizer(torch.optim.LBFGS)]) is None


def test_a_momentum_above_one_is_reported():
    fitting = [optimizer(), optimizer(momentum=1.0), optimizer(torch.optim.Adam)]
    assert growing_momentum(fitting) is None
    assert growing_momentum([*fitting, optimizer(torch.optim.RMSprop, momentum=2)]) == (
        "RMSprop adds 2 times the last step to each step, whatever the learning rate: "
        "momentum=2."
    )
