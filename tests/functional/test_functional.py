"""Every function of sknan.functional against one table of what it promises."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sknan import functional as sf

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
MAX32 = torch.finfo(torch.float32).max
EXTREMES = [0.0, 2.0**-149, 1e-30, 1e-7, 0.5, 1.0, 88.8, 1e4, 1e19, 1e30, MAX32]


class Case(NamedTuple):
    """A function of one tensor, what it should be, and where."""

    ours: object
    torchs: object
    # Ordinary range: numbers drawn evenly from it, or from the exponents if positive.
    low: float
    high: float
    reference: object = None


ELEMENTWISE = {
    "log": Case(sf.log, torch.log, 1e-30, 1e30, mpmath.log),
    "log1p": Case(sf.log1p, torch.log1p, -0.999, 1e6, mpmath.log1p),
    "exp": Case(sf.exp, torch.exp, -80, 88, mpmath.exp),
    "expm1": Case(sf.expm1, torch.expm1, -20, 88, mpmath.expm1),
    "logit": Case(
        sf.logit, torch.logit, 1e-6, 1 - 1e-6, lambda x: mpmath.log(x / (1 - x))
    ),
    "sigmoid": Case(
        sf.sigmoid, torch.sigmoid, -80, 80, lambda x: 1 / (1 + mpmath.exp(-x))
    ),
    "log_sigmoid": Case(
        sf.log_sigmoid,
        torch.nn.functional.logsigmoid,
        -80,
        10,
        lambda x: -mpmath.log1p(mpmath.exp(-x)),
    ),
    "softplus": Case(
        sf.softplus,
        torch.nn.functional.softplus,
        -80,
        19.9,
        lambda x: mpmath.log1p(mpmath.exp(x)),
    ),
    "sqrt": Case(sf.sqrt, torch.sqrt, 1e-30, 1e30, mpmath.sqrt),
    "rsqrt": Case(sf.rsqrt, torch.rsqrt, 1e-20, 1e30, lambda x: 1 / mpmath.sqrt(x)),
    "reciprocal": Case(sf.reciprocal, torch.reciprocal, 1e-18, 1e30, lambda x: 1 / x),
    "atanh": Case(sf.atanh, torch.atanh, -0.999, 0.999, mpmath.atanh),
    "asin": Case(sf.asin, torch.asin, -0.999, 0.999, mpmath.asin),
    "acos": Case(sf.acos, torch.acos, -0.999, 0.999, mpmath.acos),
}
for _p in (-2, -1, -0.5, 0, 1 / 3, 0.5, 1, 2, 2.5, 3):
    ELEMENTWISE[f"power {_p:.3g}"] = Case(
        lambda x, p=_p: sf.power(x, p),
        lambda x, p=_p: torch.pow(x, p),
        1e-6,
        1e6,
        lambda x, p=_p: mpmath.power(x, mpmath.mpf(p)),
    )
BOUNDS = {
    "smooth_clip": Case(
        lambda x: sf.smooth_clip(x, 3.0),
        None,
        -50,
        50,
        lambda x: x / mpmath.sqrt(1 + (x / 3) ** 2),
    ),
    "soft_clamp": Case(lambda x: sf.soft_clamp(x, -1.0, 5.0), None, -50, 50),
    "soft_clamp one side": Case(lambda x: sf.soft_clamp(x, high=5.0), None, -50, 50),
}
UNARY = ELEMENTWISE | BOUNDS

# Over the last dimension, or the last two.
REDUCTIONS = {
    "softmax": (sf.softmax, torch.softmax),
    "softmax eps": (lambda x, dim: sf.softmax(x, dim, eps=1e-3), None),
    "log_softmax": (sf.log_softmax, torch.log_softmax),
    "logsumexp": (sf.logsumexp, torch.logsumexp),
    "norm": (sf.norm, lambda x, dim: torch.linalg.vector_norm(x, dim=dim)),
    "normalize": (
        sf.normalize,
        lambda x, dim: torch.nn.functional.normalize(x, dim=dim),
    ),
    "var": (sf.var, torch.var),
    "std": (sf.std, torch.std),
    "standardize": (
        sf.standardize,
        lambda x, dim: (
            (x - x.mean(dim, keepdim=True)) / x.std(dim, correction=0, keepdim=True)
        ),
    ),
}
PAIRS = {
    "divide": (sf.divide, torch.divide),
    "atan2": (sf.atan2, torch.atan2),
    "hypot": (sf.hypot, torch.hypot),
}
PAIR_REDUCTIONS = {
    "cosine_similarity": (
        sf.cosine_similarity,
        lambda x, y: torch.nn.functional.cosine_similarity(x, y, dim=-1),
    ),
    "correlation": (
        sf.correlation,
        lambda x, y: torch.nn.functional.cosine_similarity(
            x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True), dim=-1
        ),
    ),
    "pairwise_distance": (
        sf.pairwise_distance,
        lambda x, y: torch.linalg.vector_norm(x - y, dim=-1),
    ),
}


def over_last(function):
    return lambda x: function(x, -1)


ONE = {name: case.ours for name, case in UNARY.items()} | {
    name: over_last(ours) for name, (ours, _) in REDUCTIONS.items()
}
TWO = {name: ours for name, (ours, _) in (PAIRS | PAIR_REDUCTIONS).items()}

one_argument = pytest.mark.parametrize("name", sorted(ONE))
two_arguments = pytest.mark.parametrize("name", sorted(TWO))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def test_the_tables_hold_every_function():
    named = {name.split()[0] for name in ONE | TWO}
    assert named == set(sf.__all__)


def extremes(dtype):
    """Each extreme and its negative, and what lies next to the edges of the dtype."""
    info = torch.finfo(dtype)
    near = [info.tiny, info.tiny / 2, info.max, math.sqrt(info.max), info.max**-0.5]
    near += [1 - info.eps / 2, 1 + info.eps, info.smallest_normal, 2 * info.eps]
    values = torch.tensor(EXTREMES + near + [math.inf], dtype=torch.float64)
    return torch.cat([values, -values]).to(dtype)


def assert_finite_value_and_slope(function, *arguments):
    arguments = [x.clone().requires_grad_() for x in arguments]
    y = function(*arguments)
    assert torch.isfinite(y).all(), (arguments, y)
    gradients = torch.autograd.grad(y, arguments, torch.ones_like(y))
    for gradient in gradients:
        assert torch.isfinite(gradient).all(), (arguments, y, gradients)
    return y, gradients


# -- extremes ------------------------------------------------------------------------


@every_dtype
@one_argument
def test_value_and_slope_are_finite_at_the_extremes(name, dtype):
    values = extremes(dtype)
    assert_finite_value_and_slope(ONE[name], values)
    # Each beside each, as rows, and whole tensors of each.
    assert_finite_value_and_slope(ONE[name], torch.cartesian_prod(values, values))
    for value in values:
        assert_finite_value_and_slope(
            ONE[name], torch.full((3, 4), value.item(), dtype=dtype)
        )


@every_dtype
@two_arguments
def test_value_and_slopes_are_finite_for_pairs_of_extremes(name, dtype):
    values = extremes(dtype)
    first, second = torch.cartesian_prod(values, values).unbind(1)
    if name in PAIRS:
        assert_finite_value_and_slope(TWO[name], first, second)
    else:
        rows = torch.stack([first, second, second.flip(0)], 1)
        assert_finite_value_and_slope(TWO[name], rows, rows.roll(7, 0))
        assert_finite_value_and_slope(TWO[name], rows, rows)
        for value in values:
            whole = torch.full((2, 3), value.item(), dtype=dtype)
            assert_finite_value_and_slope(TWO[name], whole, rows[:2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(UNARY))
def test_every_number_of_sixteen_bits_has_a_finite_value_and_slope(name, dtype):
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = numbers.view(dtype)
    assert_finite_value_and_slope(UNARY[name].ours, numbers[~numbers.isnan()])


def floats_of(bits, n_columns):
    """Arrays of every bit pattern there is, those of NaN too."""
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
def test_any_bit_pattern_gives_finite_value_and_slope_and_nan_gives_nan(name, bits):
    @settings(max_examples=40, deadline=None)
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
        assert_finite_value_and_slope(ONE[name], x)

    holds()


@pytest.mark.parametrize("bits", [32, 64])
@two_arguments
def test_any_two_bit_patterns_give_finite_value_and_slopes(name, bits):
    @settings(max_examples=40, deadline=None)
    @given(floats_of(bits, 3), floats_of(bits, 3))
    def holds(x, y):
        is_nan = x.isnan() | y.isnan()
        if name in PAIRS:
            assert torch.equal(TWO[name](x, y).isnan(), is_nan)
            x, y = x[~is_nan], y[~is_nan]
        elif is_nan.any():
            assert TWO[name](x, y).isnan()
            return
        assert_finite_value_and_slope(TWO[name], x, y)

    holds()


# -- values at the edges -------------------------------------------------------------

LOG_TINY = math.log(2.0**-126)


@pytest.mark.parametrize(
    ("function", "x", "value", "slope"),
    [
        (sf.log, [0.0, -1.0, 2.0**-149], [LOG_TINY] * 3, [0.0] * 3),
        (sf.log, [math.inf], [math.log(MAX32)], [0.0]),
        (sf.log1p, [-1.0, -7.0], [math.log(2.0**-24)] * 2, [0.0] * 2),
        (sf.exp, [-math.inf], [0.0], [0.0]),
        (sf.expm1, [-math.inf], [-1.0], [0.0]),
        (sf.logit, [0.0, 1.0], [LOG_TINY, math.log(2.0**24)], [0.0] * 2),
        (sf.log_sigmoid, [math.inf, -math.inf], [0.0, -MAX32], [0.0] * 2),
        (sf.softplus, [math.inf, -math.inf], [MAX32, 0.0], [0.0] * 2),
        (sf.sqrt, [0.0, -0.0, -3.0], [0.0] * 3, [0.0] * 3),
        (sf.sqrt, [math.inf], [math.sqrt(MAX32)], [0.0]),
        (sf.rsqrt, [math.inf], [0.0], [0.0]),
        (sf.reciprocal, [0.0, -0.0, 1e-20], [0.0] * 3, [0.0] * 3),
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
def test_value_and_slope_at_an_edge(function, x, value, slope):
    x = torch.tensor(x, requires_grad=True)
    y = function(x)
    torch.testing.assert_close(y, torch.tensor(value), rtol=3e-7, atol=3e-7)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor(slope), rtol=0, atol=0)


NOT_MONOTONE = {"reciprocal", "power -1", "power -2", "power 2"}


@every_dtype
@pytest.mark.parametrize("name", sorted(ELEMENTWISE.keys() - NOT_MONOTONE))
def test_a_monotone_function_stays_monotone_over_its_edges(name, dtype):
    values = extremes(dtype).sort().values
    steps = ELEMENTWISE[name].ours(values).double().diff()
    assert (steps >= 0).all() or (steps <= 0).all()


def test_a_quotient_by_nothing_is_zero():
    x = torch.tensor([1.0, 0.0, -5.0, 1.0], requires_grad=True)
    y = torch.tensor([0.0, 0.0, 1e-11, 1e-9], requires_grad=True)
    quotient = sf.divide(x, y)
    assert quotient.tolist()[:3] == [0.0, 0.0, 0.0]
    assert quotient[3].item() == pytest.approx(1e9)
    quotient.sum().backward()
    assert x.grad.tolist()[:3] == y.grad.tolist()[:3] == [0.0, 0.0, 0.0]


def test_eps_says_from_where_a_denominator_counts():
    y = torch.tensor([0.1, 0.2])
    assert sf.divide(torch.ones(2), y, eps=0.15).tolist() == [0.0, 5.0]


@pytest.mark.parametrize(
    ("y", "x"), [(0.0, 0.0), (-0.0, 0.0), (0.0, -0.0), (0.0, -1.0)]
)
def test_the_angle_on_the_axis_is_that_of_torch(y, x):
    y, x = torch.tensor(y), torch.tensor(x)
    assert sf.atan2(y, x).item() == pytest.approx(
        torch.atan2(y, x.abs() * x.sign()).item()
    )


def test_rows_of_infinite_logits_share_the_weight():
    inf = math.inf
    rows = torch.tensor([[-inf, -inf], [inf, inf], [inf, 0.0], [-inf, 0.0]])
    expected = [[0.5, 0.5], [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]
    assert sf.softmax(rows).tolist() == expected
    assert (sf.log_softmax(rows).exp() == sf.softmax(rows)).all()


def test_masked_elements_take_no_part_whatever_they_hold():
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


def test_eps_in_the_denominator_of_a_softmax():
    x = torch.tensor([[0.0, 1.0, 3.0]], dtype=torch.float64)
    terms = torch.exp(x - 3.0)
    expected = terms / (terms.sum() + 0.5)
    torch.testing.assert_close(sf.softmax(x, eps=0.5), expected)


def test_norms_whose_squares_overflow_or_vanish_are_right():
    for size in (1e-18, 1e30, 1e38):
        x = torch.tensor([3.0, 4.0]) * (size / 5)
        assert sf.norm(x).item() == pytest.approx(size, rel=1e-6)
    for size in (1e-18, 1e30, 1e38):
        x = torch.tensor([3.0, 4.0]) * (size / 5)
        torch.testing.assert_close(sf.normalize(x), torch.tensor([0.6, 0.8]))
    double = torch.tensor([3e200, 4e200], dtype=torch.float64)
    assert sf.norm(double).item() == pytest.approx(5e200, rel=1e-15)


def test_nothing_that_varies_gives_zero_with_slope_zero():
    for function in (sf.std, sf.var, sf.standardize):
        for shape in ((2, 5), (2, 1)):
            x = torch.full(shape, 3.7, requires_grad=True)
            y = function(x, -1)
            assert (y == 0).all()
            y.sum().backward()
            assert (x.grad == 0).all()


def test_moments_of_numbers_far_from_zero_are_those_of_float64():
    x = 1e4 + torch.randn(1000, generator=torch.Generator().manual_seed(0))
    reference = x.double()
    torch.testing.assert_close(sf.std(x).double(), reference.std(), rtol=1e-6, atol=0)
    torch.testing.assert_close(sf.var(x).double(), reference.var(), rtol=1e-6, atol=0)


def test_a_constant_correlates_with_nothing_and_a_zero_has_no_direction():
    x = torch.tensor([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]])
    y = torch.tensor([[1.0, 5.0, 2.0], [2.0, 4.0, 6.0]])
    assert sf.correlation(x, y).tolist() == pytest.approx([0.0, 1.0])
    assert sf.cosine_similarity(torch.zeros(3), y).tolist() == [0.0, 0.0]


def test_rows_that_coincide_have_distance_zero_and_no_slope():
    x = torch.randn(4, 3, requires_grad=True)
    distance = sf.pairwise_distance(x, x.detach())
    assert distance.tolist() == [0.0] * 4
    distance.sum().backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("low_high", [(-1.0, 5.0), (None, 5.0), (-1.0, None)])
def test_a_soft_clamp_stays_in_bounds_and_keeps_a_slope(low_high):
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


# -- accuracy ------------------------------------------------------------------------


def ordinary(case, n=300, dtype=torch.float32):
    generator = np.random.default_rng(0)
    if case.low > 0 and case.high / case.low > 1e3:
        x = np.exp(generator.uniform(math.log(case.low), math.log(case.high), n))
    else:
        x = generator.uniform(case.low, case.high, n)
    return torch.from_numpy(x).to(dtype)


def ulps(found, reference):
    """Distance in units of the last place of float32."""
    found, reference = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    unit = np.spacing(np.abs(reference).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(found - reference) / unit))


@pytest.mark.parametrize(
    "name", sorted(name for name, case in UNARY.items() if case.reference)
)
def test_within_four_units_in_the_last_place_of_mpmath(name):
    case = UNARY[name]
    x = ordinary(case)
    with mpmath.workdps(40):
        reference = [float(case.reference(mpmath.mpf(v))) for v in x.tolist()]
    found = case.ours(x)
    if name == "logit":
        # Around 1/2 it is the error of torch's: that of numbers around 1.
        is_small = np.abs(reference) < 1
        assert np.abs(found.numpy() - reference)[is_small].max() <= 4 * 2.0**-23
        found, reference = found[~is_small], np.array(reference)[~is_small]
    assert ulps(found, reference) <= 4


@pytest.mark.parametrize("name", sorted(n for n, (_, t) in REDUCTIONS.items() if t))
def test_reductions_within_four_units_in_the_last_place_of_float64(name):
    ours, torchs = REDUCTIONS[name]
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(1)) * 3
    found, reference = ours(x, -1), torchs(x.double(), -1)
    # An element that happens to lie by the mean, or a logarithm by 0, has lost digits
    # before: its error counts by the size of what was subtracted.
    scale = reference.abs().clamp(min=1.0)
    if name == "softmax":
        scale = reference.amax(-1, keepdim=True).expand_as(reference)
    elif name in ("norm", "var", "std", "normalize"):
        scale = reference
    unit = torch.from_numpy(np.spacing(scale.abs().float().numpy())).double()
    assert ((found.double() - reference).abs() / unit).max() <= 4


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_pairs_within_four_units_in_the_last_place_of_float64(name):
    ours, torchs = PAIRS[name]
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1000, generator=generator)
    y = torch.randn(1000, generator=generator)
    assert ulps(ours(x, y), torchs(x.double(), y.double())) <= 4


@pytest.mark.parametrize("name", sorted(PAIR_REDUCTIONS))
def test_pairs_of_rows_within_four_units_in_the_last_place_of_one(name):
    ours, torchs = PAIR_REDUCTIONS[name]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(100, 9, generator=generator)
    y = torch.randn(100, 9, generator=generator)
    found, reference = ours(x, y), torchs(x.double(), y.double())
    assert (
        (found.double() - reference).abs() / reference.abs().clamp(min=1)
    ).max() <= (4 * 2.0**-23)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_to_the_bit_torchs_in_the_ordinary_range(name, dtype):
    case = ELEMENTWISE[name]
    x = ordinary(case, dtype=dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = case.ours(ours), case.torchs(theirs)
    assert torch.equal(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_an_element_at_the_edge_changes_nothing_for_the_others(name):
    case = ELEMENTWISE[name]
    x = ordinary(case)
    alone = x.clone().requires_grad_()
    beside = torch.cat([x, torch.tensor([0.0, -math.inf, math.inf])]).requires_grad_()
    y, y_beside = case.ours(alone), case.ours(beside)
    assert torch.equal(y, y_beside[:-3])
    y.sum().backward()
    y_beside.sum().backward()
    assert torch.equal(alone.grad, beside.grad[:-3])


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
def test_a_row_at_the_edge_changes_little_for_the_others(name):
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(6))
    bad = torch.tensor([[0.0] * 5, [math.inf] * 5, [-math.inf, 1.0, 1e30, 0.0, 0.0]])
    function = ONE[name]
    alone = x.clone().requires_grad_()
    beside = torch.cat([x, bad]).requires_grad_()
    y, y_beside = function(alone), function(beside)
    torch.testing.assert_close(y_beside[:9], y, rtol=3e-7, atol=3e-7)
    y.sum().backward()
    y_beside.sum().backward()
    torch.testing.assert_close(beside.grad[:9], alone.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_to_the_bit_torchs_for_finite_logits(name):
    ours, torchs = REDUCTIONS[name]
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(4)) * 30
    assert torch.equal(ours(x, -1), torchs(x, -1))


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
def test_the_dtype_stays(name, dtype):
    assert ONE[name](torch.full((2, 3), 0.5, dtype=dtype)).dtype is dtype


def test_integers_become_floats():
    assert sf.log(torch.tensor([1, 2])).dtype is torch.float32
    assert sf.divide(torch.tensor([1, 2]), torch.tensor([2, 0])).tolist() == [0.5, 0.0]


# -- derivatives ---------------------------------------------------------------------

# Away from kinks, so that finite differences see a smooth function.
SMOOTH = torch.tensor([[0.3, 0.7, 0.45], [0.62, 0.11, 0.85]], dtype=torch.float64)


@one_argument
def test_first_and_second_derivatives_are_those_of_finite_differences(name):
    x = SMOOTH.clone().requires_grad_()
    assert torch.autograd.gradcheck(ONE[name], x)
    assert torch.autograd.gradgradcheck(ONE[name], x)


@two_arguments
def test_derivatives_by_both_arguments(name):
    x = SMOOTH.clone().requires_grad_()
    y = (SMOOTH.flip(1) * 1.7 + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(TWO[name], (x, y))
    assert torch.autograd.gradgradcheck(TWO[name], (x, y))


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-38, MAX32, math.inf, -math.inf])
@one_argument
def test_a_second_derivative_at_an_edge_is_no_nan(name, value):
    x = torch.full((2, 3), value, requires_grad=True)
    (slope,) = torch.autograd.grad(ONE[name](x).sum(), x, create_graph=True)
    if slope.requires_grad:
        (second,) = torch.autograd.grad(slope.sum(), x, allow_unused=True)
        assert second is None or not second.isnan().any()


def test_derivatives_beyond_the_bends_of_a_soft_clamp():
    x = torch.tensor([-30.0, -2.0, 1.0, 4.2, 90.0], dtype=torch.float64)
    function = UNARY["soft_clamp"].ours
    assert torch.autograd.gradcheck(function, x.requires_grad_())
    assert torch.autograd.gradgradcheck(function, x)


# -- transforms ----------------------------------------------------------------------


@one_argument
def test_vmap_gives_what_the_batch_gives(name):
    x = SMOOTH.float()
    torch.testing.assert_close(torch.func.vmap(ONE[name])(x), ONE[name](x))


@two_arguments
def test_vmap_of_two_gives_what_the_batch_gives(name):
    x, y = SMOOTH.float(), SMOOTH.float().flip(0)
    torch.testing.assert_close(torch.func.vmap(TWO[name])(x, y), TWO[name](x, y))


@one_argument
def test_func_grad_is_the_slope_of_autograd(name):
    x = torch.cat([SMOOTH.float(), torch.zeros(1, 3)])
    found = torch.func.grad(lambda x: ONE[name](x).sum())(x)
    leaf = x.clone().requires_grad_()
    ONE[name](leaf).sum().backward()
    torch.testing.assert_close(found, leaf.grad)
    per_row = torch.func.vmap(torch.func.grad(lambda x: ONE[name](x).sum()))(x)
    torch.testing.assert_close(per_row, leaf.grad)


@one_argument
def test_one_graph_compiles(name):
    torch._dynamo.reset()
    compiled = torch.compile(ONE[name], fullgraph=True, backend="aot_eager")
    x = torch.cat([SMOOTH.float(), torch.zeros(1, 3)]).requires_grad_()
    y = compiled(x)
    torch.testing.assert_close(y, ONE[name](x))
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


@two_arguments
def test_one_graph_of_two_arguments_compiles(name):
    torch._dynamo.reset()
    compiled = torch.compile(TWO[name], fullgraph=True, backend="aot_eager")
    x = torch.cat([SMOOTH.float(), torch.zeros(1, 3)]).requires_grad_()
    y = compiled(x, x.detach().flip(0))
    torch.testing.assert_close(y, TWO[name](x, x.detach().flip(0)))
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


@one_argument
def test_autocast_changes_no_promise(name):
    x = extremes(torch.float32)[:20].reshape(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_finite_value_and_slope(ONE[name], x)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@one_argument
def test_empty_tensors_pass(name, shape):
    x = torch.empty(shape, requires_grad=True)
    with warnings.catch_warnings():
        # torch warns of degrees of freedom, which is what is asked here.
        warnings.simplefilter("ignore")
        torchs = UNARY[name].torchs if name in UNARY else REDUCTIONS[name][1]
        if torchs is not None:
            expected = torchs(x) if name in UNARY else torchs(x, -1)
            assert ONE[name](x).shape == expected.shape
    assert_finite_value_and_slope(ONE[name], x)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@two_arguments
def test_pairs_of_empty_tensors_pass(name, shape):
    assert_finite_value_and_slope(TWO[name], torch.empty(shape), torch.empty(shape))


@pytest.mark.parametrize("dim", [None, 0, -1, (0, 2)])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("function", [sf.norm, sf.var, sf.std, sf.logsumexp])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shapes_of_reductions_are_torchs(function, dim, keepdim, dtype):
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    if function is sf.norm:
        expected = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)
    else:
        dims = (0, 1, 2) if dim is None else dim
        expected = getattr(torch, function.__name__)(x, dims, keepdim=keepdim)
    torch.testing.assert_close(function(x, dim, keepdim=keepdim), expected)


# -- refusals ------------------------------------------------------------------------


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
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=r"must be") as caught:
        call(torch.ones(2))
    assert str(caught.value) == message
