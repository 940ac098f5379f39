"""Properties that every tensor function has."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from functional_helpers import (
    MAX32,
    ONE,
    PAIR_REDUCTIONS,
    PAIRS,
    REDUCTIONS,
    TWO,
    UNARY,
    assert_finite_value_and_gradient,
    every_dtype,
    extremes,
    one_argument,
    two_arguments,
    ulps,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sknan import functional as sf


def test_the_tables_contain_every_function():
    named = {name.split()[0] for name in ONE | TWO}
    assert named == set(sf.__all__)


@every_dtype
@one_argument
def test_value_and_gradient_are_finite_for_extreme_arguments(name, dtype):
    values = extremes(dtype)
    assert_finite_value_and_gradient(ONE[name], values)
    # Rows of each pair, and tensors filled with one value.
    assert_finite_value_and_gradient(ONE[name], torch.cartesian_prod(values, values))
    for value in values:
        assert_finite_value_and_gradient(
            ONE[name], torch.full((3, 4), value.item(), dtype=dtype)
        )


@every_dtype
@two_arguments
def test_value_and_gradients_are_finite_for_pairs_of_extreme_arguments(name, dtype):
    values = extremes(dtype)
    first, second = torch.cartesian_prod(values, values).unbind(1)
    if name in PAIRS:
        assert_finite_value_and_gradient(TWO[name], first, second)
    else:
        rows = torch.stack([first, second, second.flip(0)], 1)
        assert_finite_value_and_gradient(TWO[name], rows, rows.roll(7, 0))
        assert_finite_value_and_gradient(TWO[name], rows, rows)
        for value in values:
            whole = torch.full((2, 3), value.item(), dtype=dtype)
            assert_finite_value_and_gradient(TWO[name], whole, rows[:2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(UNARY))
def test_every_number_of_sixteen_bits_has_a_finite_value_and_gradient(name, dtype):
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = numbers.view(dtype)
    assert_finite_value_and_gradient(UNARY[name].function, numbers[~numbers.isnan()])


def floats_of(bits, n_columns):
    """Strategy for arrays of any bit pattern, including NaN."""
    integer, floating = {32: (np.uint32, np.float32), 64: (np.uint64, np.float64)}[bits]
    pattern = st.integers(0, 2**bits - 1)
    edge = st.sampled_from(
        torch.cat([extremes(torch.float32).double(), torch.tensor([torch.nan])])
        .numpy()
        .astype(floating)
        .view(integer)
        .tolist()
    )
    row = st.lists(pattern | edge, min_size=n_columns, max_size=n_columns)
    return row.map(
        lambda row: torch.from_numpy(np.array(row, dtype=integer).view(floating))
    )


@pytest.mark.parametrize("bits", [32, 64])
@one_argument
def test_any_bit_pattern_gives_finite_value_and_gradient_and_nan_gives_nan(name, bits):
    @settings(max_examples=40)
    @given(floats_of(bits, 4))
    def holds(x):
        is_nan = x.isnan()
        if name in UNARY:
            value = ONE[name](x)
            assert torch.equal(value.isnan(), is_nan)
            x = x[~is_nan]
        elif is_nan.any():
            value = ONE[name](x)
            assert value.isnan().all()
            return
        assert_finite_value_and_gradient(ONE[name], x)

    holds()


@pytest.mark.parametrize("bits", [32, 64])
@two_arguments
def test_any_two_bit_patterns_give_finite_value_and_gradients(name, bits):
    @settings(max_examples=40)
    @given(floats_of(bits, 3), floats_of(bits, 3))
    def holds(x, y):
        is_nan = x.isnan() | y.isnan()
        if name in PAIRS:
            assert torch.equal(TWO[name](x, y).isnan(), is_nan)
            x, y = x[~is_nan], y[~is_nan]
        elif is_nan.any():
            assert TWO[name](x, y).isnan()
            return
        assert_finite_value_and_gradient(TWO[name], x, y)

    holds()


LOG_LEAST = math.log(2.0**-149)


@pytest.mark.parametrize(
    ("function", "x", "value", "gradient"),
    [
        (sf.log, [0.0, -1.0, 2.0**-149], [LOG_LEAST] * 3, [0.0] * 3),
        (sf.log, [math.inf], [math.log(MAX32)], [0.0]),
        (sf.log1p, [-1.0, -7.0], [math.log(2.0**-24)] * 2, [0.0] * 2),
        (sf.exp, [-math.inf], [0.0], [0.0]),
        (sf.expm1, [-math.inf], [-1.0], [0.0]),
        (sf.logit, [0.0, 1.0], [LOG_LEAST, math.log(2.0**24)], [0.0] * 2),
        (sf.log_sigmoid, [math.inf, -math.inf], [0.0, -MAX32], [0.0] * 2),
        (sf.softplus, [math.inf, -math.inf], [MAX32, 0.0], [0.0] * 2),
        (sf.sqrt, [0.0, -0.0, -3.0], [0.0] * 3, [0.0] * 3),
        (sf.sqrt, [math.inf], [math.sqrt(MAX32)], [0.0]),
        (sf.rsqrt, [math.inf], [0.0], [0.0]),
        (sf.reciprocal, [0.0, -0.0, -1e-20], [0.0, 0.0, -1e20], [0.0] * 3),
        (sf.reciprocal, [math.inf, -math.inf], [0.0, -0.0], [0.0] * 2),
        (
            sf.asin,
            [-1.0, 1.0, 5.0],
            [-math.pi / 2, math.pi / 2, math.pi / 2],
            [0.0] * 3,
        ),
        (sf.acos, [-1.0, 1.0, -5.0], [math.pi, 0.0, math.pi], [0.0] * 3),
        (lambda x: sf.power(x, 1 / 3), [0.0, -8.0], [0.0] * 2, [0.0] * 2),
        (lambda x: sf.power(x, -1), [0.0], [0.0], [0.0]),
        (lambda x: sf.smooth_clip(x, 3.0), [1e30, -math.inf], [3.0, -3.0], [0.0] * 2),
    ],
)
def test_value_and_gradient_at_an_edge(function, x, value, gradient):
    x = torch.tensor(x, requires_grad=True)
    y = function(x)
    torch.testing.assert_close(y, torch.tensor(value), rtol=3e-7, atol=3e-7)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor(gradient), rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_pairs_within_four_units_in_the_last_place_of_float64(name):
    function, of_torch = PAIRS[name]
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1000, generator=generator)
    y = torch.randn(1000, generator=generator)
    assert ulps(function(x, y), of_torch(x.double(), y.double())) <= 4


@pytest.mark.parametrize("name", sorted(PAIR_REDUCTIONS))
def test_pairs_of_rows_within_four_units_in_the_last_place_of_one(name):
    function, of_torch = PAIR_REDUCTIONS[name]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(100, 9, generator=generator)
    y = torch.randn(100, 9, generator=generator)
    found, reference = function(x, y), of_torch(x.double(), y.double())
    assert (
        (found.double() - reference).abs() / reference.abs().clamp(min=1)
    ).max() <= (4 * 2.0**-23)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@one_argument
def test_half_precision_is_rounded_once(name, dtype):
    x = torch.rand(8, 4, generator=torch.Generator().manual_seed(5)).to(dtype) * 0.9
    y = ONE[name](x)
    assert y.dtype is dtype
    if name in ("rsqrt", "reciprocal", "power -1", "power -2", "power -0.5"):
        x = x.clamp(min=0.1)  # above the edge of the narrow dtype
        y = ONE[name](x)
    torch.testing.assert_close(y, ONE[name](x.double()).to(dtype), rtol=1e-2, atol=0)


@every_dtype
@one_argument
def test_the_dtype_is_kept(name, dtype):
    assert ONE[name](torch.full((2, 3), 0.5, dtype=dtype)).dtype is dtype


def test_integers_become_floats():
    assert sf.log(torch.tensor([1, 2])).dtype is torch.float32
    assert sf.divide(torch.tensor([1, 2]), torch.tensor([2, 0])).tolist() == [0.5, 0.0]


# Numbers between kinks, where finite differences are accurate.
SMOOTH = torch.tensor([[0.3, 0.7, 0.45], [0.62, 0.11, 0.85]], dtype=torch.float64)


@one_argument
def test_first_and_second_derivatives_agree_with_finite_differences(name):
    x = SMOOTH.clone().requires_grad_()
    assert torch.autograd.gradcheck(ONE[name], x)
    assert torch.autograd.gradgradcheck(ONE[name], x)


@two_arguments
def test_derivatives_of_two_arguments_agree_with_finite_differences(name):
    x = SMOOTH.clone().requires_grad_()
    y = (SMOOTH.flip(1) * 1.7 + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(TWO[name], (x, y))
    assert torch.autograd.gradgradcheck(TWO[name], (x, y))


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-38, MAX32, math.inf, -math.inf])
@one_argument
def test_a_second_derivative_at_an_edge_is_not_nan(name, value):
    x = torch.full((2, 3), value, requires_grad=True)
    (gradient,) = torch.autograd.grad(ONE[name](x).sum(), x, create_graph=True)
    if gradient.requires_grad:
        (second,) = torch.autograd.grad(gradient.sum(), x, allow_unused=True)
        if (name, value) == ("logit", 1e-38):
            return  # torch's is NaN, too
        assert second is None or not second.isnan().any()


@one_argument
def test_vmap_equals_the_batch(name):
    x = SMOOTH.float()
    torch.testing.assert_close(torch.func.vmap(ONE[name])(x), ONE[name](x))


@two_arguments
def test_vmap_of_two_arguments_equals_the_batch(name):
    x, y = SMOOTH.float(), SMOOTH.float().flip(0)
    torch.testing.assert_close(torch.func.vmap(TWO[name])(x, y), TWO[name](x, y))


@one_argument
def test_func_grad_equals_autograd(name):
    x = torch.cat([SMOOTH.float(), torch.zeros(1, 3)])
    found = torch.func.grad(lambda x: ONE[name](x).sum())(x)
    leaf = x.clone().requires_grad_()
    ONE[name](leaf).sum().backward()
    torch.testing.assert_close(found, leaf.grad)
    per_row = torch.func.vmap(torch.func.grad(lambda x: ONE[name](x).sum()))(x)
    torch.testing.assert_close(per_row, leaf.grad)


@one_argument
def test_a_function_compiles_to_one_graph(name):
    torch._dynamo.reset()
    compiled = torch.compile(ONE[name], fullgraph=True, backend="aot_eager")
    x = torch.cat([SMOOTH.float(), torch.zeros(1, 3)]).requires_grad_()
    y = compiled(x)
    torch.testing.assert_close(y, ONE[name](x))
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


@two_arguments
def test_a_function_of_two_arguments_compiles_to_one_graph(name):
    torch._dynamo.reset()
    compiled = torch.compile(TWO[name], fullgraph=True, backend="aot_eager")
    x = torch.cat([SMOOTH.float(), torch.zeros(1, 3)]).requires_grad_()
    y = compiled(x, x.detach().flip(0))
    torch.testing.assert_close(y, TWO[name](x, x.detach().flip(0)))
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


@one_argument
def test_value_and_gradient_are_finite_under_autocast(name):
    x = extremes(torch.float32)[:20].reshape(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_finite_value_and_gradient(ONE[name], x)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@one_argument
def test_empty_tensors_give_torchs_shape(name, shape):
    x = torch.empty(shape, requires_grad=True)
    with warnings.catch_warnings():
        # torch warns about degrees of freedom in empty tensors.
        warnings.simplefilter("ignore")
        of_torch = UNARY[name].of_torch if name in UNARY else REDUCTIONS[name][1]
        if of_torch is not None:
            expected = of_torch(x) if name in UNARY else of_torch(x, -1)
            assert ONE[name](x).shape == expected.shape
    assert_finite_value_and_gradient(ONE[name], x)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@two_arguments
def test_pairs_of_empty_tensors_are_accepted(name, shape):
    assert_finite_value_and_gradient(TWO[name], torch.empty(shape), torch.empty(shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: sf.power(x, math.inf),
            "exponent must be finite, got inf.",
        ),
        (
            lambda x: sf.smooth_clip(x, -1.0),
            "limit must be a positive finite number, got -1.0.",
        ),
        (
            lambda x: sf.soft_clamp(x, 3.0, 1.0),
            "low must be less than high and both finite, got 3.0 and 1.0.",
        ),
        (
            lambda x: sf.soft_clamp(x, 0.0, math.inf),
            "low must be less than high and both finite, got 0.0 and inf.",
        ),
        (
            lambda x: sf.soft_clamp(x, 0.0, 1.0, width=0.6),
            "width must be positive and at most half of high - low, got 0.6 for 0.0 "
            "and 1.0.",
        ),
    ],
)
def test_invalid_parameters_raise(call, message):
    with pytest.raises(ValueError, match=r"must be") as caught:
        call(torch.ones(2))
    assert str(caught.value) == message
