"""Tests of the functions that act element by element."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from functional_helpers import ELEMENTWISE, UNARY, every_dtype, extremes, ordinary, ulps

from sknan import functional as sf
from sknan.functional._domain import within


@pytest.mark.parametrize(
    "name", sorted(name for name, case in UNARY.items() if case.exact)
)
def test_within_four_units_in_the_last_place_of_mpmath(name):
    case = UNARY[name]
    x = ordinary(case)
    with mpmath.workdps(40):
        reference = [float(case.exact(mpmath.mpf(v))) for v in x.tolist()]
    found = case.function(x)
    if name == "logit":
        # Around 1/2 torch's absolute error is that of numbers around 1.
        is_small = np.abs(reference) < 1
        assert np.abs(found.numpy() - reference)[is_small].max() <= 4 * 2.0**-23
        found, reference = found[~is_small], np.array(reference)[~is_small]
    assert ulps(found, reference) <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_ordinary_arguments_give_torchs_value_and_gradient_bitwise(name, dtype):
    case = ELEMENTWISE[name]
    x = ordinary(case, dtype=dtype)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    y, expected = case.function(leaves[0]), case.of_torch(leaves[1])
    assert torch.equal(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_an_element_at_an_edge_does_not_change_other_elements(name):
    case = ELEMENTWISE[name]
    x = ordinary(case)
    alone = x.clone().requires_grad_()
    both = torch.cat([x, torch.tensor([0.0, -math.inf, math.inf])]).requires_grad_()
    y, y_both = case.function(alone), case.function(both)
    assert torch.equal(y, y_both[:-3])
    y.sum().backward()
    y_both.sum().backward()
    assert torch.equal(alone.grad, both.grad[:-3])


NOT_MONOTONE = {"reciprocal", "power -1", "power -2", "power 2"}


@every_dtype
@pytest.mark.parametrize("name", sorted(ELEMENTWISE.keys() - NOT_MONOTONE))
def test_a_monotone_function_is_monotone_across_its_edges(name, dtype):
    values = extremes(dtype).sort().values
    steps = ELEMENTWISE[name].function(values).double().diff()
    assert (steps >= 0).all() or (steps <= 0).all()


@pytest.mark.parametrize("low_high", [(-1.0, 5.0), (None, 5.0), (-1.0, None)])
def test_a_soft_clamp_is_within_bounds_and_has_a_gradient_everywhere(low_high):
    low, high = low_high
    x = torch.cat([torch.linspace(-20, 20, 401), torch.tensor([1e10, 1e30, 3e38])])
    x = torch.cat([x, -x]).requires_grad_()
    y = sf.soft_clamp(x, low, high)
    assert low is None or (y >= low).all()
    assert high is None or (y <= high).all()
    y.sum().backward()
    assert (x.grad > 0).all()
    inner = ((low is None) | (x > (low or 0) + 1.5)) & (
        (high is None) | (x < (high or 0) - 1.5)
    )
    assert inner.any()
    assert torch.equal(y[inner], x[inner])
    assert (x.grad[inner] == 1).all()


def test_derivatives_of_a_soft_clamp_beyond_its_knees():
    x = torch.tensor([-30.0, -2.0, 1.0, 4.2, 90.0], dtype=torch.float64)
    function = UNARY["soft_clamp"].function
    assert torch.autograd.gradcheck(function, x.requires_grad_())
    assert torch.autograd.gradgradcheck(function, x)


def test_a_number_at_a_bound_keeps_its_gradient_in_every_version_of_torch():
    x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, math.nan], requires_grad=True)
    y = within(x, 0.0, 1.0)
    torch.testing.assert_close(y.detach(), x.detach().clamp(0, 1), equal_nan=True)
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0, 1, 1, 1, 0, 0]
