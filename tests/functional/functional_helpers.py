"""Tables of the tensor functions with their references, and shared assertions."""

from __future__ import annotations

import math
from typing import NamedTuple

import mpmath
import numpy as np
import pytest
import torch

from sknan import functional as sf

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
MAX32 = torch.finfo(torch.float32).max
EXTREMES = [0.0, 2.0**-149, 1e-30, 1e-7, 0.5, 1.0, 88.8, 1e4, 1e19, 1e30, MAX32]


class Case(NamedTuple):
    """A function of one tensor, its references, and its ordinary range."""

    function: object
    of_torch: object
    # Ordinary range. Numbers are drawn uniformly from it, or log-uniformly if it is
    # positive and wide.
    low: float
    high: float
    exact: object = None


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

# Reductions over one dimension, with their counterparts in torch.
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


ONE = {name: case.function for name, case in UNARY.items()} | {
    name: over_last(function) for name, (function, _) in REDUCTIONS.items()
}
TWO = {name: function for name, (function, _) in (PAIRS | PAIR_REDUCTIONS).items()}

one_argument = pytest.mark.parametrize("name", sorted(ONE))
two_arguments = pytest.mark.parametrize("name", sorted(TWO))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def extremes(dtype):
    """Return extreme numbers, numbers next to the edges of the dtype, and negatives."""
    info = torch.finfo(dtype)
    near = [info.tiny, info.tiny / 2, info.max, math.sqrt(info.max), info.max**-0.5]
    near += [1 - info.eps / 2, 1 + info.eps, info.smallest_normal, 2 * info.eps]
    values = torch.tensor(EXTREMES + near + [math.inf], dtype=torch.float64)
    return torch.cat([values, -values]).to(dtype)


def assert_finite_value_and_gradient(function, *arguments):
    arguments = [x.clone().requires_grad_() for x in arguments]
    y = function(*arguments)
    assert torch.isfinite(y).all(), (arguments, y)
    gradients = torch.autograd.grad(y, arguments, torch.ones_like(y))
    for gradient in gradients:
        assert torch.isfinite(gradient).all(), (arguments, y, gradients)
    return y, gradients


def ordinary(case, n=300, dtype=torch.float32):
    generator = np.random.default_rng(0)
    if case.low > 0 and case.high / case.low > 1e3:
        x = np.exp(generator.uniform(math.log(case.low), math.log(case.high), n))
    else:
        x = generator.uniform(case.low, case.high, n)
    return torch.from_numpy(x).to(dtype)


def ulps(found, reference):
    """Return the largest distance in units of the last place of float32."""
    found, reference = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    unit = np.spacing(np.abs(reference).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(found - reference) / unit))
