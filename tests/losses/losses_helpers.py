"""Table of the losses with their formulas, data for them, and shared assertions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sknan import losses as sl
from sknan.losses import CLASSIFICATION_LOSSES, REGRESSION_LOSSES

ALL = CLASSIFICATION_LOSSES | REGRESSION_LOSSES
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
N_CLASSES = 3


class Case(NamedTuple):
    """A loss, its kind of target, its formula, and the loss of torch."""

    make: Any
    target: str  # "codes", "shares", "number", "count", "positive", "two"
    formula: Any
    of_torch: Any = None


def nll_of(log_p, y):
    return -log_p.gather(1, y[:, None]).squeeze(1)


def focal(z, y):
    nll = nll_of(torch.log_softmax(z, 1), y)
    return (1 - torch.exp(-nll)) ** 2 * nll


def tweedie(z, y, p=1.5):
    mu = torch.exp(z)
    return (
        y ** (2 - p) / ((1 - p) * (2 - p))
        - y * mu ** (1 - p) / (1 - p)
        + mu ** (2 - p) / (2 - p)
    )


def gaussian(z, y):
    mean, raw = z.chunk(2, -1)
    var = F.softplus(raw) + 1e-6
    return 0.5 * (torch.log(var) + (mean - y) ** 2 / var)


def signed_log1p(x):
    return torch.sign(x) * torch.log1p(x.abs())


CASES = {
    "CrossEntropyLoss": Case(
        sl.CrossEntropyLoss,
        "codes",
        lambda z, y: nll_of(torch.log_softmax(z, 1), y),
        nn.CrossEntropyLoss,
    ),
    "NLLLoss": Case(sl.NLLLoss, "codes", nll_of, nn.NLLLoss),
    "ProbabilityNLLLoss": Case(
        sl.ProbabilityNLLLoss, "probabilities", lambda p, y: nll_of(torch.log(p), y)
    ),
    "FocalLoss": Case(sl.FocalLoss, "codes", focal),
    "BCEWithLogitsLoss": Case(
        sl.BCEWithLogitsLoss,
        "shares",
        lambda z, y: torch.log1p(torch.exp(z)) - y * z,
        nn.BCEWithLogitsLoss,
    ),
    "MSELoss": Case(sl.MSELoss, "number", lambda z, y: (z - y) ** 2, nn.MSELoss),
    "L1Loss": Case(sl.L1Loss, "number", lambda z, y: (z - y).abs(), nn.L1Loss),
    "HuberLoss": Case(
        sl.HuberLoss,
        "number",
        lambda z, y: torch.where(
            (z - y).abs() < 1, (z - y) ** 2 / 2, (z - y).abs() - 0.5
        ),
        nn.HuberLoss,
    ),
    "PseudoHuberLoss": Case(
        lambda **given: sl.PseudoHuberLoss(0.7, **given),
        "number",
        lambda z, y: 0.49 * (torch.sqrt(1 + ((z - y) / 0.7) ** 2) - 1),
    ),
    "LogCoshLoss": Case(
        sl.LogCoshLoss, "number", lambda z, y: torch.log(torch.cosh(z - y))
    ),
    "QuantileLoss": Case(
        lambda **given: sl.QuantileLoss(0.8, **given),
        "number",
        lambda z, y: torch.maximum(0.8 * (y - z), -0.2 * (y - z)),
    ),
    "GaussianNLLLoss": Case(sl.GaussianNLLLoss, "two", gaussian),
    "PoissonNLLLoss": Case(
        sl.PoissonNLLLoss,
        "count",
        lambda z, y: torch.exp(z) - y * z,
        nn.PoissonNLLLoss,
    ),
    "GammaLoss": Case(
        sl.GammaLoss,
        "positive",
        lambda z, y: y / torch.exp(z) - 1 - torch.log(y / torch.exp(z)),
    ),
    "TweedieLoss": Case(sl.TweedieLoss, "count", tweedie),
    "MAPELoss": Case(
        sl.MAPELoss, "number", lambda z, y: (z - y).abs() / y.abs().clamp(min=1)
    ),
    "SMAPELoss": Case(
        sl.SMAPELoss,
        "number",
        lambda z, y: 2 * (z - y).abs() / (z.abs() + y.abs()).clamp(min=1),
    ),
    "MSLELoss": Case(
        sl.MSLELoss, "number", lambda z, y: (signed_log1p(z) - signed_log1p(y)) ** 2
    ),
    "KLDivLoss": Case(
        sl.KLDivLoss, "distribution", lambda z, y: y * (torch.log(y) - z), nn.KLDivLoss
    ),
    "CosineSimilarityLoss": Case(
        sl.CosineSimilarityLoss,
        "number",
        lambda z, y: 1 - F.cosine_similarity(z, y, dim=-1),
    ),
}
# Losses of whole batches, whose values have separate tests.
WHOLE = {"RMSELoss": sl.RMSELoss, "CorrelationLoss": sl.CorrelationLoss}
MAKERS = {name: case.make for name, case in CASES.items()} | WHOLE
TARGETS = {name: case.target for name, case in CASES.items()} | dict.fromkeys(
    WHOLE, "number"
)

every_loss = pytest.mark.parametrize("name", sorted(MAKERS))
every_row_loss = pytest.mark.parametrize("name", sorted(CASES))
every_torch_loss = pytest.mark.parametrize(
    "name", sorted(name for name, case in CASES.items() if case.of_torch)
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def target_for(kind, n, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    if kind in ("codes", "probabilities"):
        return torch.randint(0, N_CLASSES, (n,), generator=generator)
    values = torch.rand(n, N_CLASSES, generator=generator, dtype=torch.float64) + 0.05
    values = {
        "shares": values.clamp(max=1.0),
        "number": values * 6 - 3,
        "count": (values * 5).round(),
        "positive": values * 5,
        "two": values * 6 - 3,
        "distribution": values / values.sum(1, keepdim=True),
    }[kind]
    return values.to(dtype)


def output_for(kind, n, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = 2 * N_CLASSES if kind == "two" else N_CLASSES
    z = torch.randn(n, width, generator=generator, dtype=torch.float64)
    if kind == "probabilities":
        z = torch.softmax(z, 1)
    if kind == "distribution":
        z = torch.log_softmax(z, 1)
    return z.to(dtype)


def extremes(dtype):
    sizes = [0.0, 2.0**-149, 1e-30, 1e-7, 0.5, 1.0, 88.8, 1e4, 1e19, 1e30]
    sizes += [torch.finfo(dtype).max, math.inf]
    values = torch.tensor(sizes + [-v for v in sizes], dtype=torch.float64)
    return values.to(dtype)


def assert_finite(loss, z, y, weight=None):
    z = z.clone().requires_grad_()
    value = loss(z, y, sample_weight=weight)
    assert torch.isfinite(value).all(), (z, y, value)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert torch.isfinite(gradient).all(), (z, y, value, gradient)
