"""Tests of the activations against their functions."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from sknan import activations
from sknan import functional as sf

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

# Module, the same function, and its range if it has one.
CASES = {
    "SafeLog": (activations.SafeLog(), sf.log, None),
    "SafeLog1p": (activations.SafeLog1p(), sf.log1p, None),
    "SafeExp": (activations.SafeExp(), sf.exp, None),
    "SafeExpm1": (activations.SafeExpm1(), sf.expm1, None),
    "SafeSqrt": (activations.SafeSqrt(), sf.sqrt, None),
    "SafeRsqrt": (activations.SafeRsqrt(), sf.rsqrt, None),
    "SafeReciprocal": (activations.SafeReciprocal(), sf.reciprocal, None),
    "SafeLogit": (activations.SafeLogit(), sf.logit, None),
    "SafeLogSigmoid": (activations.SafeLogSigmoid(), sf.log_sigmoid, None),
    "SafeSoftplus": (activations.SafeSoftplus(), sf.softplus, (0.0, math.inf)),
    "SafeAtanh": (activations.SafeAtanh(), sf.atanh, None),
    "SafeAsin": (activations.SafeAsin(), sf.asin, (-math.pi / 2, math.pi / 2)),
    "SafeAcos": (activations.SafeAcos(), sf.acos, (0.0, math.pi)),
    "SafePower": (
        activations.SafePower(1 / 3),
        lambda x: sf.power(x, 1 / 3),
        (0.0, math.inf),
    ),
    "SafeSoftmax": (activations.SafeSoftmax(), sf.softmax, (0.0, 1.0)),
    "SafeLogSoftmax": (activations.SafeLogSoftmax(), sf.log_softmax, (-math.inf, 0.0)),
    "SafeNormalize": (activations.SafeNormalize(), sf.normalize, (-1.0, 1.0)),
    "SafeStandardize": (activations.SafeStandardize(), sf.standardize, None),
    "BoundedSigmoid": (
        activations.BoundedSigmoid(-2.0, 7.0),
        lambda x: -2.0 + 9.0 * torch.sigmoid(x),
        (-2.0, 7.0),
    ),
    "BoundedTanh": (
        activations.BoundedTanh(-2.0, 7.0),
        lambda x: 2.5 + 4.5 * torch.tanh(x),
        (-2.0, 7.0),
    ),
    "SmoothClip": (
        activations.SmoothClip(2.0),
        lambda x: sf.smooth_clip(x, 2.0),
        (-2.0, 2.0),
    ),
    "SoftClamp": (
        activations.SoftClamp(-2.0, 7.0),
        lambda x: sf.soft_clamp(x, -2.0, 7.0),
        (-2.0, 7.0),
    ),
}
by_name = pytest.mark.parametrize("name", sorted(CASES))
ONE_ARGUMENT = set(activations.__all__) - {"SafeDivide", "MaskedSoftmax"}


def test_the_table_contains_every_activation():
    assert set(CASES) == ONE_ARGUMENT


@by_name
def test_a_module_equals_its_function(name):
    module, function, _ = CASES[name]
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(x), function(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@by_name
def test_value_and_gradient_are_finite_and_in_range_for_extreme_inputs(name, dtype):
    module, _, bounds = CASES[name]
    largest = torch.finfo(dtype).max
    sizes = [0.0, 1e-30, 2.0**-149, 0.5, 1.0, 88.8, 1e4, 1e19, 1e30, largest, math.inf]
    values = torch.tensor(sizes + [-v for v in sizes], dtype=torch.float64).to(dtype)
    for x in (values, torch.cartesian_prod(values, values)):
        x.requires_grad_()
        y = module(x)
        assert y.dtype is dtype
        assert torch.isfinite(y).all()
        y.backward(torch.ones_like(y))
        assert torch.isfinite(x.grad).all()
        if bounds is not None:
            # A bound such as pi is rounded to the dtype.
            low, high = (torch.tensor(b, dtype=dtype) for b in bounds)
            slack = 1e-6 if name == "SafeNormalize" else 0.0
            assert (y >= low - slack).all()
            assert (y <= high + slack).all()


@by_name
def test_nan_gives_nan(name):
    x = torch.tensor([[1.0, torch.nan], [0.5, 0.25]])
    assert CASES[name][0](x)[0, 1].isnan()
    assert not CASES[name][0](x)[1].isnan().any()


@by_name
def test_derivatives_of_activations_agree_with_finite_differences(name):
    x = torch.tensor([[0.3, 0.7], [0.62, 0.11]], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(CASES[name][0], x)
    assert torch.autograd.gradgradcheck(CASES[name][0], x)


@by_name
def test_an_activation_can_be_copied_pickled_and_compiled(name):
    module = CASES[name][0]
    x = torch.rand(3, 4) * 0.9
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(x), module(x))
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (activations.SafeLog(), "SafeLog()"),
        (activations.SafePower(0.5), "SafePower(exponent=0.5)"),
        (activations.SafeSoftmax(1), "SafeSoftmax(dim=1, eps=0.0)"),
        (activations.SafeDivide(), "SafeDivide(eps=None)"),
        (activations.BoundedSigmoid(), "BoundedSigmoid(low=0.0, high=1.0)"),
        (activations.BoundedTanh(), "BoundedTanh(low=-1.0, high=1.0)"),
        (
            activations.SoftClamp(None, 3.0),
            "SoftClamp(low=None, high=3.0, width=None)",
        ),
    ],
)
def test_the_repr_shows_the_constructor_call(module, expected):
    assert repr(module) == expected


def test_a_quotient_and_a_masked_softmax_have_two_inputs():
    quotient = activations.SafeDivide()(torch.ones(2), torch.tensor([2.0, 0.0]))
    assert quotient.tolist() == [0.5, 0.0]
    coarse = activations.SafeDivide(eps=3.0)(torch.ones(2), torch.tensor([2.0, 4.0]))
    assert coarse.tolist() == [0.0, 0.25]
    mask = torch.tensor([[True, True], [False, False]])
    weights = activations.MaskedSoftmax()(torch.zeros(2, 2), mask)
    assert weights.tolist() == [[0.5, 0.5], [0.0, 0.0]]


def test_attention_over_padding_only_has_a_finite_gradient():
    # Four sequences are empty. torch's softmax over a row of -inf is NaN.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 5, 3, generator=generator)
    mask = torch.arange(5) < torch.tensor([0, 1, 5])[:, None].repeat(4, 1)
    score = nn.Linear(3, 1)
    weights = activations.MaskedSoftmax()(score(x).squeeze(-1), mask)
    pooled = (weights[..., None] * x).sum(1)
    assert (pooled[::3] == 0).all()
    pooled.square().sum().backward()
    assert torch.isfinite(score.weight.grad).all()
    assert (score.weight.grad != 0).any()


@pytest.mark.parametrize("cls", [activations.BoundedSigmoid, activations.BoundedTanh])
@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.0), (2.0, -1.0), (0.0, math.inf), ("0", 1.0), (0.0, None)]
)
def test_bounds_out_of_order_raise(cls, low, high):
    with pytest.raises(ValueError, match="low") as caught:
        cls(low, high)
    assert str(caught.value) == (
        f"low must be less than high and both finite, got {low!r} and {high!r}."
    )
