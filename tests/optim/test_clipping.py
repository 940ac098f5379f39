"""Gradient norms and clipping for all floats, dense and sparse."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sknan.optim import (
    clip_grad_norm,
    clip_grad_value,
    grad_norm,
    grad_norms,
    stable_grad_norm,
)

FLOAT32_MAX = torch.finfo(torch.float32).max
EXTREMES = [0.0, -0.0, 1e-45, -1e-38, 1e-20, 1e20, FLOAT32_MAX, -FLOAT32_MAX]

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
ordinary = st.floats(-1e4, 1e4, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)


def lists_of(entries):
    return st.lists(st.lists(entries, max_size=5), min_size=1, max_size=4)


def tensors(rows, dtype=torch.float32):
    return [torch.tensor(row, dtype=dtype) for row in rows]


def exact_norm(grads):
    """Evaluate the definition in float64 by hypot, which does not overflow."""
    return math.hypot(*[x for grad in grads for x in grad.double().flatten().tolist()])


def sparse_gradient(rows=(0, 0, 2), scale=1.0):
    embedding = torch.nn.Embedding(4, 3, sparse=True)
    weights = scale * torch.arange(1.0, 1.0 + 3 * len(rows)).reshape(-1, 3)
    (embedding(torch.tensor(rows)) * weights).sum().backward()
    return embedding.weight, embedding.weight.grad


@given(lists_of(ordinary))
def test_the_norm_agrees_with_the_definition(rows):
    grads = tensors(rows)
    # Sums of up to 20 squares in float32.
    assert grad_norm(grads).item() == pytest.approx(exact_norm(grads), rel=1e-6)


@given(lists_of(finite | st.sampled_from(EXTREMES)))
def test_the_stable_norm_agrees_with_the_definition_for_all_finite_entries(rows):
    grads = tensors(rows)
    assert stable_grad_norm(grads) == pytest.approx(exact_norm(grads), rel=1e-14)


@given(lists_of(st.floats(allow_nan=False, allow_infinity=False)))
def test_the_stable_norm_of_finite_float64_entries_is_finite(rows):
    grads = tensors(rows, torch.float64)
    expected = min(exact_norm(grads), sys.float_info.max)
    # A subnormal norm has few digits.
    assert stable_grad_norm(grads) == pytest.approx(expected, rel=1e-14, abs=1e-322)


@pytest.mark.parametrize("norm", [grad_norm, stable_grad_norm])
@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ([math.nan], math.nan),
        ([math.inf], math.inf),
        ([-math.inf], math.inf),
        ([math.inf, math.nan], math.nan),
    ],
)
def test_a_norm_is_non_finite_if_an_entry_is(norm, bad, expected):
    grads = [torch.ones(3), torch.tensor([1.0, *bad, 1.0]), torch.tensor(2.0)]
    np.testing.assert_equal(float(norm(grads)), expected)


def test_the_norms_of_all_gradients_give_the_global_norm():
    grads = [torch.ones(4), torch.full((3, 3), 2.0, dtype=torch.float64)]
    norms = grad_norms([*grads, torch.zeros(0)])
    assert [norm.dtype for norm in norms] == [torch.float64] * 3
    assert [norm.item() for norm in norms] == [2.0, 6.0, 0.0]
    assert grad_norm(grads).item() == math.hypot(2.0, 6.0)
    assert grad_norms([]) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_scaling_does_not_depend_on_the_other_gradients(dtype):
    torch.manual_seed(0)
    grads = [torch.randn(50, dtype=torch.float64).to(dtype) for _ in range(3)]
    alone = [grad * (0.3 / 7.0) for grad in grads]
    together = [grad.clone() for grad in grads]
    mixed = [*(grad.clone() for grad in grads), torch.ones(2, dtype=torch.bfloat16)]
    for clipped in (together, mixed):
        clip_grad_norm(clipped, 0.3, 7.0)
    for first, second, third in zip(alone, together, mixed, strict=False):
        torch.testing.assert_close(second, first, rtol=2e-7, atol=0.0)
        assert torch.equal(second, third)


def test_the_norm_of_no_entries_is_zero():
    assert torch.equal(grad_norm([]), torch.tensor(0.0))
    assert stable_grad_norm([]) == 0.0
    assert grad_norm([torch.zeros(0), torch.zeros(3, 0)]).item() == 0.0
    assert stable_grad_norm([torch.zeros(0), torch.zeros(3, 0)]) == 0.0


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float16], torch.float32),
        ([torch.bfloat16, torch.float16], torch.float32),
        ([torch.float32, torch.float16], torch.float32),
        ([torch.float64], torch.float64),
        ([torch.float32, torch.float64], torch.float64),
    ],
)
def test_the_norm_is_computed_in_float32_or_float64(dtypes, expected):
    # 300 squared overflows float16.
    norm = grad_norm([torch.full((4,), 300.0, dtype=dtype) for dtype in dtypes])
    assert norm.dtype == expected
    assert norm.shape == ()
    assert norm.item() == pytest.approx(600.0 * math.sqrt(len(dtypes)), rel=1e-6)


def test_the_norm_is_not_part_of_the_autograd_graph():
    grads = [torch.ones(2, requires_grad=True) * 2]
    assert not grad_norm(grads).requires_grad


@pytest.mark.parametrize("norm", [grad_norm, stable_grad_norm])
def test_repeated_rows_of_a_sparse_gradient_are_added_up(norm):
    _, grad = sparse_gradient()
    expected = exact_norm([grad.to_dense(), torch.ones(2)])
    assert float(norm([grad, torch.ones(2)])) == pytest.approx(expected, rel=1e-6)
    assert not grad.is_coalesced()  # else the optimizer rounds in another way


@given(lists_of(ordinary), st.floats(1e-2, 1e3))
def test_clipping_agrees_with_torch_in_the_ordinary_range(rows, max_norm):
    grads = tensors(rows)
    parameters = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    clip_grad_norm(grads, max_norm, float(grad_norm(grads)))
    # torch adds 1e-6 to the norm; the rest is rounding.
    tolerance = 1e-6 / max(norm, 1e-3) + 5e-7 if norm > max_norm * (1 - 1e-3) else 0
    for parameter, grad in zip(parameters, grads, strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=tolerance, atol=0)


@given(lists_of(finite | st.sampled_from(EXTREMES)), st.floats(1e-3, 1e6))
def test_clipping_is_exact_for_all_finite_entries(rows, max_norm):
    grads = tensors(rows)
    before = [grad.double() for grad in grads]
    norm = stable_grad_norm(grads)
    coefficient = clip_grad_norm(grads, max_norm, norm)
    assert coefficient == (max_norm / norm if norm > max_norm else 1.0)
    for old, new in zip(before, grads, strict=True):
        # One rounding of the factor and one of the product; the smallest float32.
        torch.testing.assert_close(
            new.double(), old * coefficient, rtol=2e-7, atol=1.5e-45
        )


def test_a_coefficient_below_the_range_of_float32_loses_no_digits():
    grads = [torch.full((16, 1000), FLOAT32_MAX)]
    norm = stable_grad_norm(grads)
    assert norm > FLOAT32_MAX
    clip_grad_norm(grads, 1e-3, norm)
    expected = 1e-3 / math.sqrt(16000)
    torch.testing.assert_close(
        grads[0], torch.full((16, 1000), expected), rtol=2e-7, atol=0
    )


def test_float64_gradients_are_clipped_across_their_whole_range():
    grads = [torch.tensor([1e300, -1e300], dtype=torch.float64)]
    assert clip_grad_norm(grads, 1e-200, stable_grad_norm(grads)) == 0.0
    expected = torch.tensor([1.0, -1.0], dtype=torch.float64) * 1e-200 / math.sqrt(2)
    torch.testing.assert_close(grads[0], expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_gradients_are_clipped_with_an_unrounded_factor(dtype):
    grads = [torch.full((4,), 60000.0, dtype=dtype), torch.ones(2)]
    exact = grads[0].float()
    norm = float(grad_norm(grads))
    clip_grad_norm(grads, 1e-3, norm)
    assert torch.equal(grads[0], (exact * (1e-3 / norm)).to(dtype))


@pytest.mark.parametrize("max_norm", [5.0, 5.1, math.inf])
def test_an_allowed_norm_changes_nothing(max_norm):
    grads = [torch.tensor([3.0, 4.0, 1e-45, -0.0])]
    before = grads[0].clone()
    assert clip_grad_norm(grads, max_norm, 5.0) == 1.0
    assert torch.equal(grads[0].view(torch.int32), before.view(torch.int32))


def test_a_max_norm_of_zero_gives_zeros():
    grads = [torch.tensor([3.0, 4.0])]
    assert clip_grad_norm(grads, 0.0, 5.0) == 0.0
    assert torch.equal(grads[0], torch.zeros(2))


def test_a_sparse_gradient_is_clipped():
    _, grad = sparse_gradient()
    expected = grad.to_dense() * 0.25
    assert clip_grad_norm([grad], 1.0, 4.0) == 0.25
    assert torch.equal(grad.to_dense(), expected)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_gradients_of_a_non_finite_norm_are_refused_and_do_not_change(norm):
    grads = [torch.tensor([1.0, 2.0])]
    with pytest.raises(ValueError, match="cannot be clipped") as caught:
        clip_grad_norm(grads, 1.0, norm)
    assert str(caught.value) == (
        f"Gradients of norm {norm} cannot be clipped: scaling would spread the fault "
        "to every entry. Skip the step, or pass stable_grad_norm(grads) if all entries "
        "are finite."
    )
    assert torch.equal(grads[0], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("bound", [-1.0, math.nan])
def test_a_bound_below_zero_is_refused(bound):
    with pytest.raises(ValueError, match="max_norm") as caught:
        clip_grad_norm([torch.ones(1)], bound, 1.0)
    assert str(caught.value) == f"max_norm must be 0 or more, got {bound}."
    with pytest.raises(ValueError, match="clip_value") as caught:
        clip_grad_value([torch.ones(1)], bound)
    assert str(caught.value) == f"clip_value must be 0 or more, got {bound}."


@given(lists_of(st.floats(width=32)), st.floats(0, 1e6, width=32))
def test_clipping_by_value_agrees_with_numpy(rows, clip_value):
    grads = tensors(rows)
    clip_grad_value(grads, clip_value)
    for row, grad in zip(rows, grads, strict=True):
        expected = np.clip(np.array(row, np.float32), -clip_value, clip_value)
        np.testing.assert_array_equal(grad.numpy(), expected)


def test_clipping_by_value_coalesces_a_sparse_gradient():
    weight, grad = sparse_gradient()
    expected = grad.to_dense().clamp(-6.0, 6.0)
    clip_grad_value([grad, torch.ones(1)], 6.0)
    assert weight.grad is grad
    assert torch.equal(grad.to_dense(), expected)


def test_an_empty_list_of_gradients_can_be_clipped():
    clip_grad_value([], 1.0)
    assert clip_grad_norm([], 1.0, 0.0) == 1.0
