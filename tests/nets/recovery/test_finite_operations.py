"""Finite replacements for torch operations."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sknan.diagnosis._backward import sanitized_backward
from sknan.nets.recovery.finite_operations import RepairedOperations

MAX = torch.finfo(torch.float32).max
TINY = torch.finfo(torch.float32).tiny
EXTREMES = [0.0, -0.0, 1e-45, -1e-40, TINY, 1.0, -1.0, 100.0, -100.0, MAX, -MAX]


def repaired(function, *inputs):
    with RepairedOperations():
        return function(*inputs)


def leaf(values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def gradients_of(outputs, *inputs):
    """Return the gradients of the sum of the outputs, as in a repaired step."""
    sanitized_backward(outputs.float().sum())
    return [x.grad for x in inputs]


def positive(*shape, seed=0):
    """Return numbers between 0.1 and 0.9, in the domain of every function."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator) * 0.8 + 0.1


# -- the same as torch ---------------------------------------------------------------

# Each is called as function, method and operator, by position and by name.
TO_THE_BIT = {
    "log": lambda x, y: torch.log(x),
    "x.log": lambda x, y: x.log(),
    "log1p": lambda x, y: torch.log1p(x),
    "x.log1p": lambda x, y: x.log1p(),
    "special.log1p": lambda x, y: torch.special.log1p(x),
    "log2": lambda x, y: torch.log2(x),
    "x.log10": lambda x, y: x.log10(),
    "exp": lambda x, y: torch.exp(x),
    "x.exp": lambda x, y: x.exp(),
    "expm1": lambda x, y: torch.expm1(x),
    "special.expm1": lambda x, y: torch.special.expm1(x),
    "sqrt": lambda x, y: torch.sqrt(x),
    "x.sqrt": lambda x, y: x.sqrt(),
    "rsqrt": lambda x, y: torch.rsqrt(x),
    "reciprocal": lambda x, y: torch.reciprocal(x),
    "x / y": lambda x, y: x / y,
    "x / 3": lambda x, y: x / 3,
    "1 / x": lambda x, y: 1 / x,
    "3 / x": lambda x, y: 3.0 / x,
    "div": lambda x, y: torch.div(x, y),
    "div by name": lambda x, y: torch.div(input=x, other=y),
    "x.div": lambda x, y: x.div(0.3),
    "true_divide": lambda x, y: torch.true_divide(x, y),
    "divide": lambda x, y: x.divide(y),
    "floor": lambda x, y: torch.div(x, 0.3, rounding_mode="floor"),
    "by a row": lambda x, y: x / y[:1],
    "by a number of float64": lambda x, y: x / torch.tensor(3.0, dtype=torch.float64),
    "by a small number": lambda x, y: x / 1e-12,
    "by small numbers": lambda x, y: x / (y * 1e-12),
    "of large numbers": lambda x, y: (x * 1e25) / y,
    "x**0.5": lambda x, y: x**0.5,
    "x**2": lambda x, y: x**2,
    "x**-1": lambda x, y: x**-1,
    "x**3.7": lambda x, y: x**3.7,
    "pow": lambda x, y: torch.pow(x, 1.5),
    "pow by name": lambda x, y: torch.pow(x, exponent=1.5),
    "x.pow": lambda x, y: x.pow(2.5),
    "x**y": lambda x, y: x**y,
    "2**x": lambda x, y: 2**x,
    "x**inf": lambda x, y: x**math.inf,
    "softmax": lambda x, y: torch.softmax(x, 1),
    "softmax by name": lambda x, y: torch.softmax(x, dim=0),
    "softmax in float64": lambda x, y: torch.softmax(x, 1, torch.float64),
    "softmax with dtype": lambda x, y: torch.softmax(x, 1, dtype=torch.float64),
    "x.softmax": lambda x, y: x.softmax(-1),
    "F.softmax": lambda x, y: F.softmax(x, 1),
    "F.softmax with dtype": lambda x, y: F.softmax(x, dim=1, dtype=torch.float64),
    "nn.Softmax": lambda x, y: nn.Softmax(dim=1)(x),
    "special.softmax": lambda x, y: torch.special.softmax(x, 0),
    "log_softmax": lambda x, y: torch.log_softmax(x, 1),
    "x.log_softmax": lambda x, y: x.log_softmax(1, torch.float64),
    "F.log_softmax": lambda x, y: F.log_softmax(x, dim=0),
    "nn.LogSoftmax": lambda x, y: nn.LogSoftmax(1)(x),
    "logsumexp": lambda x, y: torch.logsumexp(x, 1),
    "x.logsumexp": lambda x, y: x.logsumexp(dim=(0, 1)),
    "logsumexp, kept": lambda x, y: torch.logsumexp(x, 1, True),
    "hypot": lambda x, y: torch.hypot(x, y),
    "x.hypot": lambda x, y: x.hypot(y),
    "atanh": lambda x, y: torch.atanh(x),
    "asin": lambda x, y: torch.asin(x),
    "arccos": lambda x, y: torch.arccos(x),
    "x.acos": lambda x, y: x.acos(),
    "logit": lambda x, y: torch.logit(x),
    "logit with eps": lambda x, y: torch.logit(x, 1e-3),
    "special.logit": lambda x, y: torch.special.logit(x),
    "softplus": lambda x, y: F.softplus(x),
    "softplus with beta": lambda x, y: F.softplus(x, 2.0),
    "x /= y": lambda x, y: _divided_in_place(x, y),
    "log_": lambda x, y: (x * 1.0).log_(),
    "div_": lambda x, y: (x * 1.0).div_(y),
    "exp_": lambda x, y: (x * 1.0).exp_(),
    "mul_": lambda x, y: (x * 1.0).mul_(y),
    "std with bias": lambda x, y: torch.std(x, 1, False),
    "matmul": lambda x, y: x @ y.T,
    "max": lambda x, y: x.max(1).values,
}


def _divided_in_place(x, y):
    x = x * 1.0
    x /= y
    return x


@pytest.mark.parametrize("name", TO_THE_BIT)
def test_values_are_bitwise_identical_to_torchs_where_those_are_finite(name):
    function = TO_THE_BIT[name]
    result, original = ([positive(4, 3), positive(4, 3, seed=1)] for _ in range(2))
    for x in [*result, *original]:
        x.requires_grad_()
    values, expected = repaired(function, *result), function(*original)
    assert values.dtype == expected.dtype
    assert torch.equal(values, expected)
    sanitized_backward(values.sum())
    expected.sum().backward()
    for x, y in zip(result, original, strict=True):
        if y.grad is not None and y.grad.isfinite().all():
            # The derivative of a product of functions is rounded in a different order.
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-6)


SPREADS = {
    "std()": lambda x: x.std(),
    "std(0)": lambda x: x.std(0),
    "std by name": lambda x: x.std(dim=1, keepdim=True, correction=0),
    "torch.std": lambda x: torch.std(x, dim=(0, 1), correction=2),
    "std, unbiased": lambda x: x.std(1, unbiased=False),
    "var()": lambda x: torch.var(x),
    "var(-1)": lambda x: x.var(-1, keepdim=True),
    "var by list": lambda x: torch.var(x, [0, 1]),
    "atan2": lambda x: torch.atan2(x, x.flip(0)),
    "x.arctan2": lambda x: x.arctan2(x.flip(0)),
}


@pytest.mark.parametrize("name", SPREADS)
def test_deviations_and_angles_are_torchs_within_four_units_in_the_last_place(name):
    x = positive(5, 4)
    result, original = repaired(SPREADS[name], x), SPREADS[name](x)
    assert result.shape == original.shape
    torch.testing.assert_close(result, original, rtol=4 * 2.0**-23, atol=0.0)


@given(
    st.floats(2.0**-40, 2.0**40, width=32),
    st.floats(-(2.0**40), 2.0**40, width=32).filter(lambda v: abs(v) > 2.0**-40),
)
def test_powers_roots_and_quotients_are_torchs_over_many_magnitudes(x, y):
    x, y = torch.tensor([x]), torch.tensor([y])
    for function in (torch.log, torch.sqrt, torch.rsqrt, torch.log2, lambda v: v**1.5):
        assert torch.equal(repaired(function, x), function(x))
    assert torch.equal(repaired(torch.div, x, y), x / y)
    assert torch.equal(repaired(torch.hypot, x, y), torch.hypot(x, y))


@given(st.floats(width=32, allow_nan=False), st.floats(width=32, allow_nan=False))
def test_a_quotient_is_torchs_wherever_value_and_derivatives_are_finite(x, y):
    upper, lower = leaf([x]), leaf([y])
    quotient = repaired(torch.div, upper, lower)
    reference = [upper.detach(), lower.detach()]
    original = reference[0] / reference[1]
    by_upper, by_lower = reference[1].reciprocal(), original / reference[1]
    if all(bool(v.isfinite()) for v in (original, by_upper, by_lower)):
        assert torch.equal(quotient.detach(), original)
    elif math.isfinite(x) and math.isfinite(y):
        assert quotient.isfinite()
    for gradient in gradients_of(quotient, upper, lower):
        assert gradient.isfinite()


def test_softmax_without_a_dimension_uses_the_same_one_as_torch():
    for shape in [(4,), (4, 3), (2, 3, 4), (2, 2, 3, 4)]:
        x = positive(*shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates it
            original = F.softmax(x), F.log_softmax(x)
        result = repaired(F.softmax, x), repaired(F.log_softmax, x)
        assert all(map(torch.equal, result, original))


def test_results_for_integers_are_torchs():
    x = torch.arange(1, 7).reshape(2, 3)
    for function in (
        lambda v: v**2,
        lambda v: v / 4,
        lambda v: 3 / v,
        lambda v: v / v.flip(0),
        lambda v: v // 2,
        torch.log,
        torch.sqrt,
        torch.exp,
        lambda v: (v > 2) / 2,
    ):
        result, original = repaired(function, x), function(x)
        assert result.dtype == original.dtype
        assert torch.equal(result, original)
    assert torch.equal(repaired(lambda v: v / 0, x), torch.zeros(2, 3))


def test_complex_numbers_are_torchs():
    x = torch.complex(positive(3), positive(3, seed=1))
    for function in (
        torch.log,
        torch.sqrt,
        lambda v: v / v.flip(0),
        lambda v: v / 2,
        lambda v: v**0.5,
        lambda v: 1j / v,
        torch.fft.fft,
    ):
        assert torch.equal(repaired(function, x), function(x))
    real = positive(3)
    assert torch.equal(repaired(lambda v: v / 1j, real), real / 1j)
    assert torch.equal(repaired(lambda v: v / x, real), real / x)


# Other values exceed the range of half precision.
IN_HALF = [name for name in TO_THE_BIT if "small" not in name and "large" not in name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", IN_HALF)
def test_results_keep_the_dtype_and_are_within_one_unit_of_torchs(name, dtype):
    function = TO_THE_BIT[name]
    x, y = positive(4, 3).to(dtype), positive(4, 3, seed=1).to(dtype)
    result, original = repaired(function, x, y), function(x, y)
    assert result.dtype == original.dtype
    # The value is rounded once from float32; torch may round more often.
    unit = torch.finfo(result.dtype).eps
    if name in ("x**inf", "floor"):
        assert torch.equal(result, original)
    else:
        torch.testing.assert_close(result, original, rtol=2 * unit, atol=2 * unit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_dtypes_are_torchs(dtype):
    x = positive(4, 4)
    for function in (
        lambda v: F.linear(v, v),
        lambda v: F.softmax(F.linear(v, v), 1),
        lambda v: F.linear(v, v) / F.linear(v, v),
        lambda v: F.linear(v, v) / 3,
        lambda v: F.linear(v, v) ** 0.5,
        lambda v: torch.log(F.linear(v, v)),
        lambda v: torch.log_softmax(F.linear(v, v), 1),
        lambda v: F.linear(v, v).std(0),
    ):
        with torch.autocast("cpu", dtype):
            result, original = repaired(function, x), function(x)
        assert result.dtype == original.dtype
        unit = 4 * torch.finfo(result.dtype).eps  # as many roundings
        torch.testing.assert_close(result, original, rtol=unit, atol=unit)


# -- finite where torch is not -------------------------------------------------------

FRAGILE = {
    "log": torch.log,
    "log1p": torch.log1p,
    "log2": torch.log2,
    "log10": torch.log10,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "x/0": lambda x: x / 0,
    "1/x": lambda x: 1 / x,
    "x/x": lambda x: x / x,
    "x / sum": lambda x: x / x.sum(),
    "x**0.5": lambda x: x**0.5,
    "x**-2": lambda x: x**-2,
    "x**2": lambda x: x**2,
    "x**x": lambda x: x**x,
    "softmax by hand": lambda x: x.exp() / x.exp().sum(),
    "std": lambda x: x.std(),
    "std of one": lambda x: x[:1].std(),
    "var": lambda x: x.var(),
    "norm by hand": lambda x: x / x.square().sum().sqrt(),
    "norm": lambda x: x / x.norm(),
    "normalize": lambda x: F.normalize(x, dim=0),
    "hypot": lambda x: torch.hypot(x, x),
    "atan2": lambda x: torch.atan2(x, x),
    "atanh": torch.atanh,
    "acos": torch.acos,
    "logit": torch.logit,
    "logsumexp": lambda x: torch.logsumexp(x, 0),
    "trap": lambda x: torch.where(x > 0, x.sqrt(), x),
    "cosh": torch.cosh,
    "lgamma": torch.lgamma,
    "erfinv": torch.erfinv,
    "mul": lambda x: x * x * x,
    "sum": lambda x: x.sum() * 3,
    "xlogy": lambda x: torch.xlogy(x, x),
    "log_": lambda x: (x * 1.0).log_(),
    "exp_": lambda x: (x * 1.0).exp_(),
    "x /= x": lambda x: _divided_in_place(x, x.clone()),
    "mul_": lambda x: (x * 1.0).mul_(x),
    "mean of none": lambda x: x[x > math.inf].mean() + 0 * x.sum(),
}


@pytest.mark.parametrize("name", FRAGILE)
def test_extreme_inputs_have_finite_values_and_derivatives(name):
    pairs = itertools.combinations([0.0, 1e-40, 1.0, MAX, -MAX], 2)
    for values in [EXTREMES, *([v] for v in EXTREMES), *map(list, pairs)]:
        x = leaf(values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the deviation of one number
            y = repaired(FRAGILE[name], x)
        assert y.isfinite().all(), values
        (gradient,) = gradients_of(repaired(lambda y: (y / MAX).sum(), y), x)
        assert gradient is None or gradient.isfinite().all(), values


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=25)
@given(st.lists(finite, min_size=1, max_size=4))
def test_any_finite_numbers_have_finite_values(values):
    for function in FRAGILE.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert repaired(function, torch.tensor(values)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_clamped_to_the_range_of_the_dtype(dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([0.0, 1.0, -largest, largest], dtype=dtype)
    for function in (
        torch.exp,
        torch.log,
        lambda v: v * v,
        lambda v: v / 0,
        torch.cosh,
    ):
        y = repaired(function, x)
        assert y.dtype == dtype
        assert y.isfinite().all()
    assert repaired(lambda v: v * v, x).max() == largest
    module = nn.Linear(4, 2).to(dtype)
    assert repaired(lambda v: module(v / 3), x).isfinite().all()


def test_values_outside_the_domain_are_those_at_the_edge():
    x = torch.tensor([-1.0, 0.0])
    least = torch.tensor(torch.finfo(x.dtype).smallest_normal * 2.0**-23)
    assert repaired(torch.log, x).tolist() == [least.log().item()] * 2
    assert repaired(torch.sqrt, x).tolist() == [0.0, 0.0]
    assert repaired(lambda v: v / 0, x).tolist() == [0.0, 0.0]
    assert repaired(lambda v: v * 0 / 0, x).tolist() == [0.0, 0.0]
    huge = repaired(lambda v: v * MAX * 2, torch.tensor([1.0, -1.0]))
    assert huge.tolist() == [MAX, -MAX]
    share = repaired(torch.softmax, torch.full((1, 2), -math.inf), 1)
    assert share.tolist() == [[0.5, 0.5]]


def test_arguments_outside_the_domain_are_those_at_the_edge():
    gap = torch.finfo(torch.float32).eps / 2
    for function, outside, edge in (
        (torch.acosh, 0.5, 1.0),
        (torch.erfinv, 1.5, 1 - gap),
        (torch.special.erfinv, -1.0, gap - 1),
        (torch.special.ndtri, 2.0, 1 - gap),
        (torch.special.entr, -1.0, 0.0),
        (lambda v: torch.xlogy(2.0, v), -1.0, TINY),
        (lambda v: torch.xlogy(v.abs(), v), -1.0, None),
    ):
        x = leaf([outside])
        y = repaired(function, x)
        assert torch.isfinite(y).all()
        if edge is not None:
            assert y == function(torch.tensor([edge]))
        (gradient,) = gradients_of(y, x)
        assert torch.isfinite(gradient).all()


def test_a_result_in_a_given_tensor_is_finite():
    x = torch.tensor([0.0, 1.0])
    target = torch.full((3,), math.nan)
    y = repaired(lambda: torch.log(x, out=target))
    assert y is target
    assert torch.equal(y, repaired(torch.log, x))
    assert torch.isfinite(repaired(lambda: torch.lgamma(x, out=target))).all()


@pytest.mark.parametrize("function", [torch.linalg.cholesky, torch.linalg.inv])
def test_a_matrix_without_a_decomposition_is_moved_to_one_that_has_it(function):
    indefinite = torch.tensor([[1.0, 9.0], [9.0, 1.0]])
    singular = torch.ones(2, 2)
    for matrix in (singular, indefinite, torch.zeros(2, 2), torch.diag(-leaf([1, 2]))):
        assert torch.isfinite(repaired(function, matrix)).all()
    sound = torch.eye(2) * 3
    assert torch.equal(repaired(function, sound), function(sound))
    with pytest.raises(RuntimeError):
        repaired(function, torch.ones(2, 3))


def test_checks_of_arguments_pass():
    scale = leaf([-1.0, 2.0])
    normal = repaired(torch.distributions.Normal, torch.zeros(2), scale)
    loss = repaired(lambda: -normal.log_prob(torch.ones(2)).sum())
    assert torch.isfinite(loss)
    share = leaf([1.5, 0.5])
    loss = repaired(F.binary_cross_entropy, share, torch.tensor([1.0, 0.0]))
    assert loss == F.binary_cross_entropy(torch.tensor([1.0, 0.5]), torch.eye(2)[0])


# -- transforms ----------------------------------------------------------------------


def in_place(v):
    v = v.clone()
    v.log_()
    return v


@pytest.mark.parametrize(
    "function",
    [
        torch.log,
        in_place,
        lambda v: torch.lgamma(v) + v / v.sum(),
        lambda v: torch.softmax(v.masked_fill(v < 9, -math.inf), 0),
        lambda v: torch.cumprod(v * 1e30, 0),
        torch.func.grad(lambda v: torch.sqrt(v).sum()),
        torch.func.jacrev(torch.log1p),
    ],
)
def test_mapped_functions_are_finite(function):
    x = torch.tensor([[1.0, 2.0, 4.0], [0.0, -1.0, 1.0]])
    mapped = torch.vmap(function)
    y = repaired(mapped, x)
    assert torch.isfinite(y).all()
    sound = torch.isfinite(mapped(x))
    assert torch.equal(y[sound], mapped(x)[sound])
    assert not sound.all()


def test_a_mapped_nan_stays_nan():
    x = torch.tensor([[math.nan], [-1.0]])
    y = repaired(torch.vmap(lambda v: torch.lgamma(v.log() - 1)), x)
    assert y.isnan().flatten().tolist() == [True, False]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_has_the_gradients_of_its_function(use_reentrant):
    def block(v):
        return torch.log(v) * v

    x, again = leaf([0.0, 2.0]), leaf([0.0, 2.0])
    with RepairedOperations():
        sanitized_backward(block(x).sum())
        y = torch.utils.checkpoint.checkpoint(block, again, use_reentrant=use_reentrant)
        sanitized_backward(y.sum())
    assert torch.equal(again.grad, x.grad)


def test_named_tuples_remain_named_tuples():
    matrix = torch.full((2, 2), 1e38)
    assert repaired(torch.linalg.eigh, matrix * 0 + 3e38).eigenvalues.isfinite().all()
    assert repaired(torch.linalg.slogdet, torch.zeros(2, 2)).logabsdet == -MAX
    values, indices = repaired(lambda v: (v * v).max(1), matrix)
    assert values.tolist() == [MAX, MAX]
    assert indices.dtype == torch.int64


# -- unchanged values ----------------------------------------------------------------


def test_nan_stays_nan():
    x = torch.tensor([math.nan, 1.0])
    for name, function in FRAGILE.items():
        if name not in ("mean of none", "std of one"):
            assert repaired(function, x).isnan().any(), name
    assert repaired(F.linear, x, torch.ones(1, 2)).isnan().all()
    in_place = repaired(lambda v: v.clone().add_(1), x)
    assert in_place.isnan().tolist() == [True, False]


def test_an_explicit_infinity_remains():
    hidden = torch.tensor([True, False])
    x = torch.ones(2)
    for function in (
        lambda v: v.masked_fill(hidden, -math.inf),
        lambda v: torch.where(hidden, -math.inf, v),
        lambda v: v.clone().masked_fill_(hidden, -math.inf),
        lambda v: torch.full((2,), -math.inf),
        lambda v: torch.full_like(v, -math.inf),
        lambda v: torch.tensor([0.0, -math.inf]),
        lambda v: v.new_tensor([0.0, -math.inf]),
        lambda v: torch.zeros(2).fill_(-math.inf),
        lambda v: torch.full((2, 2), -math.inf).triu(1),
        lambda v: v + torch.tensor([0.0, -math.inf]),
        lambda v: torch.cat([v, torch.tensor([-math.inf])]),
        lambda v: torch.cat([v, torch.tensor([-math.inf])]).min(),
        lambda v: v * torch.tensor(math.inf),
    ):
        assert torch.equal(repaired(function, x), function(x))
        assert function(x).isinf().any()

    def assigned(v):
        v = v.clone()
        v[0] = -math.inf
        return v

    assert torch.equal(repaired(assigned, x), torch.tensor([-math.inf, 1.0]))


def test_fully_masked_attention_has_finite_values_and_gradients():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    x = torch.randn(2, 3, 4, requires_grad=True)
    hidden = torch.tensor([[False, False, True], [True, True, True]])

    def attend(v):
        return attention(v, v, v, key_padding_mask=hidden)[0]

    assert attend(x)[1].isnan().all()
    y = repaired(attend, x)
    assert y.isfinite().all()
    assert torch.equal(y[0], attend(x)[0])
    sanitized_backward(y.square().sum())
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_keep_the_structure_of_their_results(kind):
    torch.manual_seed(0)
    module, x = kind(2, 3), torch.randn(5, 1, 2)
    result, original = repaired(module, x), module(x)
    assert torch.equal(result[0], original[0])
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 2), torch.randn(2, 2)])
    assert torch.equal(repaired(module, packed)[0].data, module(packed)[0].data)


def test_outside_the_block_torch_is_unchanged():
    x = torch.tensor([0.0])
    with pytest.raises(RuntimeError, match="no"), RepairedOperations():
        raise RuntimeError("no")
    assert torch.log(x).item() == -math.inf


def test_blocks_may_be_nested():
    with RepairedOperations(), RepairedOperations():
        assert torch.log(torch.tensor(0.0)).isfinite()
        assert torch.cosh(torch.tensor(1e3)).isfinite()


# -- gradients -----------------------------------------------------------------------


def test_sanitized_gradients_are_torchs_where_those_are_finite():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(5, 3)
    module(x).square().mean().backward()
    original = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    sanitized_backward(module(x).square().mean())
    assert all(
        torch.equal(p.grad, g)
        for p, g in zip(module.parameters(), original, strict=True)
    )


def test_only_entries_that_are_not_finite_have_gradient_zero():
    x = leaf([0.0, 4.0])
    sanitized_backward(torch.sqrt(x).sum())
    assert x.grad.tolist() == [0.0, 0.25]


def test_no_hook_remains():
    def fail(grad):
        raise RuntimeError("no")

    x = leaf([0.0, 4.0])
    y = torch.sqrt(x)
    handle = y.register_hook(fail)
    with pytest.raises(RuntimeError, match="no"):
        sanitized_backward(y.sum())
    handle.remove()
    y.sum().backward()
    assert x.grad.tolist() == [math.inf, 0.25]
