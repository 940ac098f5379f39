"""Tests of softmax, lengths, moments and similarities over dimensions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from functional_helpers import ONE, REDUCTIONS

from sknan import functional as sf


def test_infinite_logits_share_the_weight_of_a_row():
    inf = math.inf
    rows = torch.tensor([[-inf, -inf], [inf, inf], [inf, 0.0], [-inf, 0.0]])
    expected = [[0.5, 0.5], [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]
    assert sf.softmax(rows).tolist() == expected
    assert (sf.log_softmax(rows).exp() == sf.softmax(rows)).all()


def test_masked_elements_have_no_weight_and_no_gradient_even_if_nan():
    x = torch.tensor([[1.0, torch.nan, 2.0], [torch.nan] * 3], requires_grad=True)
    mask = torch.tensor([[True, False, True], [False] * 3])
    weights = sf.softmax(x, mask=mask)
    torch.testing.assert_close(
        weights[0, [0, 2]], torch.softmax(torch.tensor([1.0, 2.0]), 0)
    )
    assert weights[0, 1] == 0
    assert weights[1].tolist() == [0.0, 0.0, 0.0]
    (weights * torch.arange(3.0)).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[~mask] == 0).all()
    assert (x.grad[0, [0, 2]] != 0).all()


def test_a_mask_is_broadcast():
    x = torch.randn(2, 3, 4)
    mask = torch.tensor([True, True, False, True])
    expected = torch.softmax(x[..., mask], -1)
    torch.testing.assert_close(sf.softmax(x, mask=mask)[..., mask], expected)


def test_eps_is_added_to_the_denominator_of_a_softmax():
    x = torch.tensor([[0.0, 1.0, 3.0]], dtype=torch.float64)
    terms = torch.exp(x - 3.0)
    expected = terms / (terms.sum() + 0.5)
    torch.testing.assert_close(sf.softmax(x, eps=0.5), expected)


def test_norms_are_correct_if_squares_overflow_or_underflow():
    for size in (1e-18, 1e30, 1e38):
        x = torch.tensor([3.0, 4.0]) * (size / 5)
        assert sf.norm(x).item() == pytest.approx(size, rel=1e-6)
    for size in (1e-18, 1e30, 1e38):
        x = torch.tensor([3.0, 4.0]) * (size / 5)
        torch.testing.assert_close(sf.normalize(x), torch.tensor([0.6, 0.8]))
    double = torch.tensor([3e200, 4e200], dtype=torch.float64)
    assert sf.norm(double).item() == pytest.approx(5e200, rel=1e-15)


def test_moments_of_constants_are_zero_with_gradient_zero():
    for function in (sf.std, sf.var, sf.standardize):
        for shape in ((2, 5), (2, 1)):
            x = torch.full(shape, 3.7, requires_grad=True)
            y = function(x, -1)
            assert (y == 0).all()
            y.sum().backward()
            assert (x.grad == 0).all()


def test_moments_of_numbers_far_from_zero_agree_with_float64():
    x = 1e4 + torch.randn(1000, generator=torch.Generator().manual_seed(0))
    reference = x.double()
    torch.testing.assert_close(sf.std(x).double(), reference.std(), rtol=1e-6, atol=0)
    torch.testing.assert_close(sf.var(x).double(), reference.var(), rtol=1e-6, atol=0)


def test_correlation_with_a_constant_and_cosine_with_zero_are_zero():
    x = torch.tensor([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]])
    y = torch.tensor([[1.0, 5.0, 2.0], [2.0, 4.0, 6.0]])
    assert sf.correlation(x, y).tolist() == pytest.approx([0.0, 1.0])
    assert sf.cosine_similarity(torch.zeros(3), y).tolist() == [0.0, 0.0]


def test_equal_rows_have_distance_zero_with_gradient_zero():
    x = torch.randn(4, 3, requires_grad=True)
    distance = sf.pairwise_distance(x, x.detach())
    assert distance.tolist() == [0.0] * 4
    distance.sum().backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("name", sorted(n for n, (_, t) in REDUCTIONS.items() if t))
def test_reductions_within_four_units_in_the_last_place_of_float64(name):
    function, of_torch = REDUCTIONS[name]
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(1)) * 3
    found, reference = function(x, -1), of_torch(x.double(), -1)
    # An element near the mean, or a logarithm near 0, is the difference of larger
    # numbers: its error is relative to their size.
    scale = reference.abs().clamp(min=1.0)
    if name == "softmax":
        scale = reference.amax(-1, keepdim=True).expand_as(reference)
    elif name in ("norm", "var", "std", "normalize"):
        scale = reference
    unit = torch.from_numpy(np.spacing(scale.abs().float().numpy())).double()
    assert ((found.double() - reference).abs() / unit).max() <= 4


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
def test_a_row_at_an_edge_changes_other_rows_by_rounding_only(name):
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(6))
    bad = torch.tensor([[0.0] * 5, [math.inf] * 5, [-math.inf, 1.0, 1e30, 0.0, 0.0]])
    function = ONE[name]
    alone = x.clone().requires_grad_()
    both = torch.cat([x, bad]).requires_grad_()
    y, y_both = function(alone), function(both)
    torch.testing.assert_close(y_both[:9], y, rtol=3e-7, atol=3e-7)
    y.sum().backward()
    y_both.sum().backward()
    torch.testing.assert_close(both.grad[:9], alone.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_finite_logits_give_torchs_value_bitwise(name):
    function, of_torch = REDUCTIONS[name]
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(4)) * 30
    assert torch.equal(function(x, -1), of_torch(x, -1))


@pytest.mark.parametrize("dim", [None, 0, -1, (0, 2)])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("function", [sf.norm, sf.var, sf.std, sf.logsumexp])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shapes_of_reductions_equal_torch(function, dim, keepdim, dtype):
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    if function is sf.norm:
        expected = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)
    else:
        dims = (0, 1, 2) if dim is None else dim
        expected = getattr(torch, function.__name__)(x, dims, keepdim=keepdim)
    torch.testing.assert_close(function(x, dim, keepdim=keepdim), expected)
