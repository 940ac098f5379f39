"""The contract: torch's value and gradient where both are finite, finite elsewhere.

Every public function is found by its name. It is compared for all pairs of extreme
numbers, as arguments or as rows, in every dtype.
"""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from functional_helpers import every_dtype

from sknan import functional as sf


def _centered(x):
    return x - x.mean(-1, keepdim=True)


def _length(x, keepdim=True):
    return torch.linalg.vector_norm(x, dim=-1, keepdim=keepdim)


def _cosine(x, y):
    return (x * y / (_length(x) * _length(y))).sum(-1)


# Counterparts whose name in torch differs, and formulas of functions torch lacks.
OF_TORCH = {
    "log_sigmoid": F.logsigmoid,
    "norm": lambda x: _length(x, keepdim=False),
    "power": torch.pow,
    "normalize": lambda x: x / _length(x),
    "standardize": lambda x: _centered(x) / x.std(-1, correction=0, keepdim=True),
    "smooth_clip": lambda x: x / torch.hypot(x / 3.0, torch.ones_like(x)),
    "soft_clamp": None,  # bounded, as tested in test_elementwise
    "cosine_similarity": _cosine,
    "correlation": lambda x, y: _cosine(_centered(x), _centered(y)),
    "pairwise_distance": lambda x, y: _length(x - y, keepdim=False),
}
OPTIONS = {"smooth_clip": {"limit": 3.0}, "soft_clamp": {"low": -1.0, "high": 5.0}}
# Their squares underflow or overflow in torch, which gives 0, or no gradient.
WITH_SQUARES = {
    *("norm", "normalize", "var", "std", "standardize", "atan2"),
    *("cosine_similarity", "correlation", "pairwise_distance"),
}


def _tensors_of(function):
    """Return the number of tensors that a function needs."""
    parameters = inspect.signature(function).parameters.values()
    return sum(
        "Tensor" in str(p.annotation) and p.default is inspect.Parameter.empty
        for p in parameters
    )


def _over_last(function):
    has_dim = "dim" in inspect.signature(function).parameters
    return (lambda *x: function(*x, dim=-1)) if has_dim else function


def _case(name):
    """Return a function, its counterpart, and whether they are of rows."""
    function = getattr(sf, name)
    is_of_rows = "dim" in inspect.signature(function).parameters
    if name in OF_TORCH:
        of_torch = OF_TORCH[name]
    else:
        owner = torch if hasattr(torch, name) else F
        of_torch = getattr(owner, name)
        if is_of_rows:
            of_torch = lambda x, f=of_torch: f(x, -1)  # noqa: E731
    ours = _over_last(function)
    options = OPTIONS.get(name, {})
    return (lambda *x: ours(*x, **options)), of_torch, is_of_rows


def extremes(dtype):
    info = torch.finfo(dtype)
    sizes = [0.0, info.tiny * info.eps, info.tiny, info.eps, 0.3, 1.0, 1e4, info.max]
    values = torch.tensor(sizes, dtype=torch.float64)
    return torch.cat([values, -values, torch.tensor([math.inf, -math.inf])]).to(dtype)


def arguments_of(name, dtype):
    values = extremes(dtype)
    pairs = torch.cartesian_prod(values, values)
    n_tensors, is_of_rows = _tensors_of(getattr(sf, name)), _case(name)[2]
    if not is_of_rows:
        return list(pairs.unbind(1)[:n_tensors])
    rows = [pairs, pairs.roll(37, 0)][:n_tensors]
    if n_tensors == 2:
        rows = [torch.cat([rows[0], pairs, pairs]), torch.cat([rows[1], pairs, -pairs])]
    return rows


def value_and_gradients(function, arguments, weight):
    leaves = [x.clone().requires_grad_() for x in arguments]
    y = function(*leaves)
    # The sum of a softmax has no gradient.
    upstream = weight.to(y.dtype)[: y.shape[-1]] if y.ndim == 2 else torch.ones_like(y)
    gradients = torch.autograd.grad((y * upstream).sum(), leaves)
    return y.detach(), [g.detach() for g in gradients]


def by_row(condition):
    return condition if condition.ndim == 1 else condition.all(1)


def is_close(found, expected, size=0.0):
    """Whether numbers agree within 8 units in the last place of the largest."""
    info = torch.finfo(found.dtype)
    expected = expected.double().clamp(-info.max, info.max)
    largest = expected.abs()
    if found.ndim == 2:
        largest = largest.amax(1, keepdim=True)
    error = (found.double() - expected).abs() / 8
    return by_row(error <= info.eps * (largest + size) + info.tiny * info.eps)


def size_of_terms(name, x):
    """Return the size of the terms of a gradient that cancel each other."""
    if name == "smooth_clip":
        return 1.0
    if name in ("normalize", "cosine_similarity"):
        return 1 / _length(x.double())
    if name in ("standardize", "correlation"):
        return 1 / _length(_centered(x.double()))
    return 0.0


@every_dtype
@pytest.mark.parametrize("name", sf.__all__)
def test_value_and_gradient_are_torchs_wherever_those_are_finite(name, dtype):
    function, of_torch, _ = _case(name)
    arguments = arguments_of(name, dtype)
    weight = torch.tensor([1.0, 0.0])
    y, gradients = value_and_gradients(function, arguments, weight)
    assert y.dtype is dtype
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)
    if of_torch is None:
        return
    expected, expected_gradients = value_and_gradients(of_torch, arguments, weight)
    is_right = by_row(expected.isfinite())
    for expected_gradient in expected_gradients:
        is_right &= by_row(expected_gradient.isfinite())
    agrees = is_close(y, expected)
    for x, g, expected_gradient in zip(
        arguments, gradients, expected_gradients, strict=True
    ):
        agrees &= is_close(g, expected_gradient, size_of_terms(name, x))
    if dtype is torch.float64:
        if name in WITH_SQUARES:
            for x in arguments:
                is_plain = (x == 0) | ((x.abs() > 1e-150) & (x.abs() < 1e150))
                is_right &= by_row(is_plain)
    else:
        # Where torch rounds in between, or squares overflow, the wider value counts.
        wide = [x.double() for x in arguments]
        expected, expected_gradients = value_and_gradients(of_torch, wide, weight)
        agrees |= is_close(y, expected)
    assert (agrees | ~is_right).all(), [
        [x[~agrees & is_right][:9].tolist() for x in (*arguments, y, expected)],
        [g[~agrees & is_right][:9].tolist() for g in (*gradients, *expected_gradients)],
    ]
    # Elsewhere a value that is not 0 has the sign of torch's infinity.
    of_sign = expected.isinf() & (y != 0)
    if name in (
        "rsqrt",
        "var",
    ):  # torch's is negative for -0.0, and if squares overflow
        assert (y >= 0).all()
        return
    assert (y.sign() == expected.sign())[of_sign].all()


@every_dtype
@pytest.mark.parametrize("name", sf.__all__)
def test_a_number_is_a_tensor_without_dimensions(name, dtype):
    function, of_torch, is_of_rows = _case(name)
    arguments = [torch.tensor(0.3, dtype=dtype)] * _tensors_of(getattr(sf, name))
    y = function(*arguments)
    assert y.shape == ()
    assert y.dtype is dtype
    assert y.isfinite()
    if of_torch is not None and not is_of_rows:
        torch.testing.assert_close(y, of_torch(*arguments))


@pytest.mark.parametrize("name", sf.__all__)
def test_integers_become_floats_and_complex_numbers_raise(name):
    function, _, _ = _case(name)
    n_tensors = _tensors_of(getattr(sf, name))
    integers = torch.tensor([3, 0, -2, 1])
    found = function(*[integers] * n_tensors)
    torch.testing.assert_close(found, function(*[integers.float()] * n_tensors))
    if name == "sigmoid":  # torch's function
        return
    with pytest.raises(TypeError) as caught:
        function(*[torch.tensor([1j, 2.0])] * n_tensors)
    assert str(caught.value) == (
        "Complex numbers are not supported, got torch.complex64."
    )


@pytest.mark.parametrize("name", ["atan2", "divide", "hypot", "power"])
def test_two_dtypes_are_promoted_as_in_torch(name):
    function, of_torch, _ = _case(name)
    half = torch.tensor([1.0, 2.0], dtype=torch.float16)
    for other in (half.float(), half.double(), torch.tensor(2.0, dtype=torch.float64)):
        for pair in ((half, other), (other, half)):
            expected = of_torch(*pair)
            found = function(*pair)
            assert found.dtype is expected.dtype
            torch.testing.assert_close(found, expected)
