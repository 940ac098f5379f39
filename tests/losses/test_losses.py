"""Every loss of sknan.losses against one table of what it promises."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    mean_absolute_percentage_error,
    mean_pinball_loss,
    mean_squared_log_error,
    mean_tweedie_deviance,
    root_mean_squared_error,
)
from skorch import NeuralNetClassifier
from torch import nn

from sknan import GuardedNetClassifier, StableNetClassifier, StableNetRegressor
from sknan import losses as sl
from sknan.losses import CLASSIFICATION_LOSSES, REGRESSION_LOSSES, get_criterion

ALL = CLASSIFICATION_LOSSES | REGRESSION_LOSSES
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
MAX32 = torch.finfo(torch.float32).max
N_CLASSES = 3


class Case(NamedTuple):
    """A loss, its kind of target, and what it should be in plain float64."""

    make: Any
    target: str  # "codes", "shares", "number", "count", "positive", "two"
    plain: Any
    torchs: Any = None


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
# Of whole batches: what they should be is in tests of their own.
WHOLE = {"RMSELoss": sl.RMSELoss, "CorrelationLoss": sl.CorrelationLoss}
MAKERS = {name: case.make for name, case in CASES.items()} | WHOLE
TARGETS = {name: case.target for name, case in CASES.items()} | dict.fromkeys(
    WHOLE, "number"
)

every_loss = pytest.mark.parametrize("name", sorted(MAKERS))
every_row_loss = pytest.mark.parametrize("name", sorted(CASES))
every_torch_loss = pytest.mark.parametrize(
    "name", sorted(name for name, case in CASES.items() if case.torchs)
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


def test_the_table_holds_every_loss():
    assert set(MAKERS) == {cls.__name__ for cls in ALL.values()}
    offered = {name for name in sl.__all__ if name.endswith("Loss")}
    assert set(MAKERS) == offered - {"BoundedLoss"}


# -- values --------------------------------------------------------------------------


@every_row_loss
def test_unreduced_it_is_the_formula_within_four_units_in_the_last_place(name):
    case = CASES[name]
    z, y = output_for(case.target, 50), target_for(case.target, 50)
    found = case.make(reduction="none")(z, y).double()
    wide = y if y.dtype is torch.int64 else y.double()
    plain = case.plain(z.double(), wide)
    assert found.shape == plain.shape
    # Where terms cancel, the error is one of their size.
    size_of_terms = 8.0 if name == "TweedieLoss" else 1.0
    error = (found - plain).abs() / plain.abs().clamp(min=size_of_terms)
    assert error.max() <= 4 * 2.0**-23


@pytest.mark.parametrize("name", ["PseudoHuberLoss", "LogCoshLoss"])
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e-3, 0.1])
def test_small_residuals_do_not_cancel(name, size):
    z = torch.tensor([size])
    found = CASES[name].make(reduction="none")(z, torch.zeros(1)).item()
    # Taylor: r^2/2 - r^4/12 for log cosh, r^2/2 - r^4/8 delta^-2 for pseudo-Huber.
    r = z.double().item()
    quartic = 1 / 12 if name == "LogCoshLoss" else 1 / (8 * 0.49)
    assert found == pytest.approx(r**2 / 2 - quartic * r**4, rel=1e-4 * (1 + size))


@every_torch_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_each_loss_is_a_drop_in_for_torchs(name, reduction):
    case = CASES[name]
    ours, torchs = case.make(reduction=reduction), case.torchs(reduction=reduction)
    assert isinstance(ours, case.torchs)
    z, y = output_for(case.target, 40), target_for(case.target, 40)
    leaves = [z.clone().requires_grad_() for _ in range(2)]
    values = [loss(leaf, y) for loss, leaf in zip((ours, torchs), leaves, strict=True)]
    if name == "KLDivLoss":  # its mean is of a sum of another order
        torch.testing.assert_close(*values)
    else:
        assert torch.equal(*values)
    for value in values:
        value.sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "given",
    [
        {"weight": torch.tensor([0.2, 1.0, 3.0])},
        {"ignore_index": 1},
        {"label_smoothing": 0.1},
        {
            "weight": torch.tensor([0.2, 1.0, 3.0]),
            "ignore_index": 2,
            "label_smoothing": 0.2,
        },
    ],
    ids=lambda given: "+".join(given),
)
def test_options_of_cross_entropy_are_torchs_when_weights_are_one(given, reduction):
    z, y = output_for("codes", 40), target_for("codes", 40)
    expected = nn.CrossEntropyLoss(reduction=reduction, **given)(z, y)
    loss = sl.CrossEntropyLoss(reduction=reduction, **given)
    torch.testing.assert_close(loss(z, y), expected, rtol=0, atol=0)
    # Our own way, which weights take.
    torch.testing.assert_close(loss(z, y, torch.ones(40)), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_soft_targets_and_images_are_those_of_torch(reduction):
    z = torch.randn(4, N_CLASSES, 5, generator=torch.Generator().manual_seed(0))
    codes = torch.randint(0, N_CLASSES, (4, 5))
    soft = torch.softmax(z.flip(0), 1)
    loss = sl.CrossEntropyLoss(reduction=reduction, label_smoothing=0.1)
    torchs = nn.CrossEntropyLoss(reduction=reduction, label_smoothing=0.1)
    for y in (codes, soft):
        torch.testing.assert_close(loss(z, y), torchs(z, y), rtol=0, atol=0)
        torch.testing.assert_close(loss(z, y, torch.ones(4)), torchs(z, y))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_positive_weights_of_binary_cross_entropy_are_torchs(reduction):
    z, y = output_for("shares", 40), target_for("shares", 40)
    given = {"pos_weight": torch.tensor([1.0, 5.0, 0.2]), "reduction": reduction}
    loss, torchs = sl.BCEWithLogitsLoss(**given), nn.BCEWithLogitsLoss(**given)
    torch.testing.assert_close(loss(z, y), torchs(z, y), rtol=0, atol=0)
    torch.testing.assert_close(loss(z, y, torch.ones(40)), torchs(z, y))


def test_a_gaussian_with_a_given_variance_is_torchs():
    z, y = output_for("number", 30), target_for("number", 30)
    var = torch.rand(30, N_CLASSES, generator=torch.Generator().manual_seed(2)) + 0.1
    for full in (False, True):
        expected = nn.GaussianNLLLoss(full=full)(z, y, var)
        torch.testing.assert_close(sl.GaussianNLLLoss(full=full)(z, y, var), expected)
    pair = sl.GaussianNLLLoss()((z, var), y)
    torch.testing.assert_close(sl.GaussianNLLLoss()(torch.cat([z, var], 1), y), pair)


def test_a_poisson_likelihood_of_rates_and_with_its_constant_is_torchs():
    z, y = output_for("count", 30).exp(), target_for("count", 30)
    of_rates, full = {"log_input": False}, {"full": True}
    for options in (of_rates, full, of_rates | full):
        expected = nn.PoissonNLLLoss(**options)(z, y)
        torch.testing.assert_close(sl.PoissonNLLLoss(**options)(z, y), expected)


def test_the_divergence_of_logits_per_row_is_torchs_of_log_probabilities():
    z, y = output_for("codes", 30), target_for("distribution", 30)
    expected = nn.KLDivLoss(reduction="batchmean")(torch.log_softmax(z, 1), y)
    loss = sl.KLDivLoss("batchmean", from_logits=True)
    torch.testing.assert_close(loss(z, y), expected)
    logs = sl.KLDivLoss("batchmean", log_target=True, from_logits=True)
    torch.testing.assert_close(logs(z, y.log()), expected)
    assert sl.KLDivLoss()(torch.log(y), y).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(
    ("loss", "metric"),
    [
        (sl.RMSELoss(), root_mean_squared_error),
        (sl.MAPELoss(1e-3), mean_absolute_percentage_error),
        (sl.MSLELoss(), mean_squared_log_error),
        (sl.QuantileLoss(0.8), lambda *a, **k: mean_pinball_loss(*a, alpha=0.8, **k)),
    ],
)
def test_a_weighted_mean_is_the_metric_of_scikit_learn(loss, metric):
    y, z = target_for("positive", 60)[:, 0], target_for("positive", 60, seed=5)[:, 0]
    weight = torch.rand(60, generator=torch.Generator().manual_seed(3))
    expected = metric(y.numpy(), z.numpy(), sample_weight=weight.numpy())
    assert loss(z, y, weight).item() == pytest.approx(expected, rel=1e-5)
    assert loss(z, y).item() == pytest.approx(metric(y.numpy(), z.numpy()), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "power"), [(sl.GammaLoss(), 2), (sl.TweedieLoss(), 1.5)]
)
def test_a_deviance_is_twice_the_loss(loss, power):
    y, z = target_for("positive", 60)[:, 0], target_for("positive", 60, seed=5)[:, 0]
    weight = torch.rand(60, generator=torch.Generator().manual_seed(3))
    expected = mean_tweedie_deviance(
        y.numpy(), z.numpy(), power=power, sample_weight=weight.numpy()
    )
    found = loss(z.log(), y, weight).item()
    assert 2 * found == pytest.approx(expected, rel=1e-4)


def test_one_minus_the_correlation_of_numpy():
    z, y = output_for("number", 60), target_for("number", 60)
    expected = [1 - np.corrcoef(z[:, j], y[:, j])[0, 1] for j in range(N_CLASSES)]
    assert sl.CorrelationLoss()(z, y).item() == pytest.approx(np.mean(expected))
    assert sl.CorrelationLoss(reduction="sum")(z, y).item() == pytest.approx(
        sum(expected)
    )
    rows = sl.CorrelationLoss(reduction="none")(z, y)
    np.testing.assert_allclose(rows.mean(0), expected, rtol=1e-5)
    weight = torch.arange(1.0, 61.0)
    cov = np.cov(z[:, 0], y[:, 0], aweights=weight.numpy())
    expected = 1 - cov[0, 1] / math.sqrt(cov[0, 0] * cov[1, 1])
    found = sl.CorrelationLoss()(z[:, 0], y[:, 0], weight).item()
    assert found == pytest.approx(expected, rel=1e-5)


# -- weights and reduction -----------------------------------------------------------


@every_row_loss
def test_weights_weigh_rows(name):
    case = CASES[name]
    z, y = output_for(case.target, 30), target_for(case.target, 30)
    weight = torch.rand(30, generator=torch.Generator().manual_seed(3)) * 4
    each = case.make(reduction="none")(z, y)
    column = weight.reshape(-1, *[1] * (each.ndim - 1))
    torch.testing.assert_close(
        case.make(reduction="none")(z, y, sample_weight=weight), each * column
    )
    torch.testing.assert_close(
        case.make(reduction="sum")(z, y, sample_weight=weight), (each * column).sum()
    )
    torch.testing.assert_close(
        case.make()(z, y, sample_weight=weight),
        (each * column).sum() / column.expand_as(each).sum(),
    )


@every_loss
def test_a_weight_of_two_is_the_row_twice(name):
    z, y = output_for(TARGETS[name], 12), target_for(TARGETS[name], 12)
    weight = torch.tensor([1.0, 2.0] * 6)
    twice = torch.arange(12).repeat_interleave(weight.long())
    loss = MAKERS[name]()
    torch.testing.assert_close(
        loss(z, y, sample_weight=weight), loss(z[twice], y[twice])
    )


@every_loss
def test_nothing_to_average_is_zero_with_gradient_zero(name):
    z, y = output_for(TARGETS[name], 4), target_for(TARGETS[name], 4)
    loss = MAKERS[name]()
    for rows, weight in ((z[:0], None), (z, torch.zeros(4))):
        rows = rows.clone().requires_grad_()
        value = loss(rows, y[: len(rows)], sample_weight=weight)
        assert value.item() == 0.0
        value.backward()
        assert (rows.grad == 0).all()


@pytest.mark.parametrize("cls", [sl.CrossEntropyLoss, sl.NLLLoss, sl.FocalLoss])
def test_targets_that_are_all_ignored_give_zero(cls):
    z = output_for("codes", 5).requires_grad_()
    value = cls()(z, torch.full((5,), -100))
    assert value.item() == 0.0
    value.backward()
    assert (z.grad == 0).all()
    assert cls(weight=torch.zeros(3))(z, torch.zeros(5, dtype=torch.int64)).item() == 0


@every_loss
def test_half_precision_is_computed_and_returned_in_single(name):
    for dtype in (torch.float16, torch.bfloat16):
        z = output_for(TARGETS[name], 8, dtype).requires_grad_()
        y = target_for(TARGETS[name], 8, dtype)
        value = MAKERS[name]()(z, y)
        assert value.dtype is torch.float32
        wide = MAKERS[name]()(z.float(), y.float() if y.is_floating_point() else y)
        torch.testing.assert_close(value, wide)
        value.backward()
        assert z.grad.dtype is dtype


# -- extremes ------------------------------------------------------------------------


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


@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@every_loss
def test_value_and_gradient_are_finite_at_the_extremes(name, dtype, reduction):
    loss = MAKERS[name](reduction=reduction)
    values = extremes(dtype)
    width = output_for(TARGETS[name], 1).shape[1]
    generator = torch.Generator().manual_seed(7)
    picks = torch.randint(0, len(values), (300, width), generator=generator)
    y = target_for(TARGETS[name], 300, dtype)
    assert_finite(loss, values[picks], y)
    assert_finite(loss, values[picks], y, torch.rand(300, generator=generator))
    for value in values:
        assert_finite(loss, torch.full((6, width), value.item(), dtype=dtype), y[:6])


@pytest.mark.parametrize(
    "name", sorted(n for n, k in TARGETS.items() if k in ("number", "two"))
)
@every_dtype
def test_targets_of_any_size_do_no_harm(name, dtype):
    values = extremes(dtype)
    generator = torch.Generator().manual_seed(8)
    width = output_for(TARGETS[name], 1).shape[1]
    z = values[torch.randint(0, len(values), (200, width), generator=generator)]
    y = values[torch.randint(0, len(values), (200, N_CLASSES), generator=generator)]
    assert_finite(MAKERS[name](), z, y)
    assert_finite(MAKERS[name](), z, z[:, :N_CLASSES])


@every_loss
def test_any_bit_pattern_gives_a_finite_value_and_gradient(name):
    width = output_for(TARGETS[name], 1).shape[1]
    rows = st.lists(
        st.lists(st.integers(0, 2**32 - 1), min_size=width, max_size=width),
        min_size=1,
        max_size=4,
    )

    @settings(max_examples=60, deadline=None)
    @given(rows)
    def holds(rows):
        z = torch.from_numpy(np.array(rows, dtype=np.uint32).view(np.float32))
        y = target_for(TARGETS[name], len(z))
        if z.isnan().any():
            assert_nan = MAKERS[name](reduction="none")(z, y)
            assert assert_nan.isnan().any() or TARGETS[name] in (
                "codes",  # the NaN may be of a class that is not asked for
                "probabilities",
            )
        else:
            assert_finite(MAKERS[name](), z, y)

    holds()


@every_loss
def test_a_nan_is_not_hidden(name):
    z = output_for(TARGETS[name], 4)
    z[1] = torch.nan
    y = target_for(TARGETS[name], 4)
    assert MAKERS[name]()(z, y).isnan()
    if y.is_floating_point():
        y[2] = torch.nan
        assert MAKERS[name]()(output_for(TARGETS[name], 4), y).isnan()


def test_a_confidently_wrong_row_keeps_a_gradient_near_one():
    for margin in (30.0, 60.0, 86.0):
        z = torch.tensor([[-margin / 2, margin / 2]], requires_grad=True)
        loss = sl.ProbabilityNLLLoss()(torch.softmax(z, 1), torch.tensor([0]))
        loss.backward()
        assert loss.item() == pytest.approx(margin, rel=1e-5)
        torch.testing.assert_close(z.grad, torch.tensor([[-1.0, 1.0]]))


def test_a_probability_of_zero_still_pulls():
    p = torch.tensor([[0.0, 1.0]], requires_grad=True)
    sl.ProbabilityNLLLoss()(p, torch.tensor([0])).backward()
    assert p.grad[0, 0] < -1e30
    assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize("name", ["PoissonNLLLoss", "GammaLoss", "TweedieLoss"])
def test_a_rate_gone_astray_is_led_back(name):
    sizes = [40.0, 90.0, 1e4, 1e9]
    for sign in (1.0, -1.0):
        z = (sign * torch.tensor(sizes)).requires_grad_()
        loss = MAKERS[name](reduction="none")(z, torch.ones(4))
        assert (loss.diff() > 0).all()
        loss.sum().backward()
        assert (z.grad.sign() == sign).all()


def test_a_negative_prediction_is_led_back_by_a_logarithmic_error():
    z = torch.tensor([-0.5, -1.0, -7.0, -1e30], requires_grad=True)
    sl.MSLELoss(reduction="sum")(z, torch.ones(4)).backward()
    assert (z.grad < 0).all()


def test_a_perfect_batch_has_no_slope():
    for name in ("RMSELoss", "MSELoss", "HuberLoss", "LogCoshLoss", "PseudoHuberLoss"):
        y = target_for("number", 5)
        z = y.clone().requires_grad_()
        value = MAKERS[name]()(z, y)
        assert value.item() == 0.0
        value.backward()
        assert (z.grad == 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_focal_loss_of_a_row_that_is_certain(gamma):
    z = torch.tensor([[80.0, 0.0], [200.0, 0.0], [0.0, 0.0]], requires_grad=True)
    loss = sl.FocalLoss(gamma, reduction="none")(z, torch.zeros(3, dtype=torch.int64))
    assert loss[1].item() == 0.0
    assert loss[2].item() == pytest.approx(0.5**gamma * math.log(2))
    loss.sum().backward()
    assert torch.isfinite(z.grad).all()
    if gamma == 0:
        expected = nn.CrossEntropyLoss(reduction="none")(z, torch.zeros(3).long())
        torch.testing.assert_close(loss, expected)


# -- derivatives and transforms ------------------------------------------------------


@every_loss
def test_derivatives_are_those_of_finite_differences(name):
    z = output_for(TARGETS[name], 5, torch.float64).requires_grad_()
    y = target_for(TARGETS[name], 5, torch.float64)
    for reduction in ("mean", "none"):
        loss = MAKERS[name](reduction=reduction)
        assert torch.autograd.gradcheck(lambda z, loss=loss: loss(z, y), z)
        assert torch.autograd.gradgradcheck(lambda z, loss=loss: loss(z, y), z)
    weight = torch.rand(5, dtype=torch.float64)
    loss = MAKERS[name]()
    assert torch.autograd.gradcheck(lambda z: loss(z, y, sample_weight=weight), z)


@every_loss
def test_vmap_and_func_grad_give_what_a_loop_gives(name):
    loss = MAKERS[name]()
    z = torch.stack([output_for(TARGETS[name], 6, seed=s) for s in range(3)])
    y = torch.stack([target_for(TARGETS[name], 6, seed=s) for s in range(3)])
    values = torch.func.vmap(loss)(z, y)
    expected = torch.stack([loss(*pair) for pair in zip(z, y, strict=True)])
    torch.testing.assert_close(values, expected)
    slopes = torch.func.vmap(torch.func.grad(loss))(z, y)
    leaf = z.clone().requires_grad_()
    sum(loss(*pair) for pair in zip(leaf, y, strict=True)).backward()
    torch.testing.assert_close(slopes, leaf.grad)


@every_loss
def test_one_graph_compiles(name):
    torch._dynamo.reset()
    loss = MAKERS[name]()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    z, y = output_for(TARGETS[name], 6), target_for(TARGETS[name], 6)
    leaf = z.clone().requires_grad_()
    value = compiled(leaf, y)
    torch.testing.assert_close(value, loss(z, y))
    value.backward()
    wild = torch.full_like(z, math.inf)
    assert torch.isfinite(compiled(wild, y))


@every_loss
def test_autocast_changes_no_promise(name):
    z, y = output_for(TARGETS[name], 6), target_for(TARGETS[name], 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_finite(MAKERS[name](), z * 1e30, y)
        assert MAKERS[name]()(z, y).dtype is torch.float32


@every_row_loss
def test_a_row_at_the_edge_changes_little_for_the_others(name):
    # With it the loss takes its careful way, which must agree with the fast one.
    z, y = output_for(TARGETS[name], 20), target_for(TARGETS[name], 20)
    wild = torch.cat([z, torch.full_like(z[:1], math.inf)])
    loss = MAKERS[name](reduction="sum")
    torch.testing.assert_close(
        MAKERS[name](reduction="none")(wild, torch.cat([y, y[:1]]))[:20],
        MAKERS[name](reduction="none")(z, y),
        rtol=1e-6,
        atol=1e-6,
    )
    leaves = [z.clone().requires_grad_() for _ in range(2)]
    loss(leaves[0], y).backward()
    loss(leaves[1], y, sample_weight=torch.ones(20)).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


# -- a bound for any loss ------------------------------------------------------------


def test_a_bounded_loss_stays_in_its_range_and_keeps_its_gradient():
    z = torch.tensor([0.5, 3.0, 1e4, 1e10, 1e18, 3e38], requires_grad=True)
    loss = sl.BoundedLoss(sl.MSELoss(), 0.0, 10.0, reduction="none")
    values = loss(z, torch.zeros(6))
    assert values[0].item() == 0.25  # unchanged
    assert (values >= 0).all()
    assert (values <= 10).all()
    assert (values[:5].diff() > 0).all()
    values.sum().backward()
    assert (z.grad[:5] > 0).all()
    assert torch.isfinite(z.grad).all()


def test_a_bounded_loss_is_bent_below_only_where_it_can_fall():
    z = torch.tensor([[0.0, -200.0]])
    gaussian = sl.BoundedLoss(sl.GaussianNLLLoss(), -2.0, 10.0)
    assert sl.GaussianNLLLoss()(z, torch.zeros(1, 1)) < -6
    assert -2.0 < gaussian(z, torch.zeros(1, 1)) < 1.0
    for squared in (sl.MSELoss(), nn.MSELoss()):
        bounded = sl.BoundedLoss(squared, 0.0, 10.0)
        assert bounded(torch.ones(3), torch.ones(3)).item() == 0.0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_bounded_loss_is_weighted_and_reduced_as_any_other(reduction):
    z, y = output_for("codes", 20) * 30, target_for("codes", 20)
    weight = torch.rand(20)
    each = sl.BoundedLoss(sl.CrossEntropyLoss(reduction="none"), 0.0, 5.0)(z, y)
    assert each.shape == (20,)
    loss = sl.BoundedLoss(sl.CrossEntropyLoss(reduction=reduction), 0.0, 5.0)
    expected = {
        "mean": (each * weight).sum() / weight.sum(),
        "sum": (each * weight).sum(),
        "none": each * weight,
    }[reduction]
    torch.testing.assert_close(loss(z, y, weight), expected)


def test_a_bounded_loss_of_a_function_or_of_whole_batches_is_bounded_as_a_whole():
    z, y = torch.full((4, 1), 1e6), torch.zeros(4, 1)
    for inner in (lambda z, y: (z - y).square().mean(), sl.RMSELoss()):
        value = sl.BoundedLoss(inner, 0.0, 10.0)(z, y)
        assert value.shape == ()
        assert 9.0 < value < 10.0
    weighted = sl.BoundedLoss(sl.RMSELoss(), 0.0, 10.0)
    weight = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert weighted(torch.tensor([1.0, 9.0, 9.0, 9.0]), torch.zeros(4), weight) == 1.0


def test_a_bounded_loss_leaves_the_loss_that_it_was_given_alone():
    inner = sl.MSELoss()
    loss = sl.BoundedLoss(inner, 0.0, 10.0)
    assert inner.reduction == "mean"
    assert sl.unbounded(sl.BoundedLoss(loss, 0.0, 20.0)).__class__ is sl.MSELoss
    assert repr(loss) == (
        "BoundedLoss(\n  low=0.0, high=10.0, reduction='mean'\n  (loss): MSELoss()\n)"
    )


# -- in estimators and under skorch --------------------------------------------------


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_name_gives_its_class(name):
    assert get_criterion(name) is ALL[name]
    assert issubclass(ALL[name], nn.Module)


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_loss_knows_its_task(name):
    is_classification = name in CLASSIFICATION_LOSSES
    expected = "classification" if is_classification else "regression"
    assert ALL[name].traits.task == expected


def test_names_do_not_belong_to_both_tasks():
    assert not CLASSIFICATION_LOSSES.keys() & REGRESSION_LOSSES.keys()


def test_losses_that_depend_on_the_zero_of_the_target_leave_it_in_its_units():
    in_units = {
        name
        for name, loss in REGRESSION_LOSSES.items()
        if not loss.traits.standardizes_target
    }
    rates = {"poisson", "gamma", "tweedie"}
    assert in_units == rates | {"mape", "smape", "msle", "kl_div", "cosine"}


class Softmax(nn.Module):
    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.linear = nn.Linear(n_features_in, n_outputs)

    def forward(self, x):
        return torch.softmax(self.linear(x), dim=-1)


class LogSoftmax(Softmax):
    def forward(self, x):
        return torch.log_softmax(self.linear(x), dim=-1)


def blobs(n=120):
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, n)
    X = generator.normal(size=(n, 4)) + 2.0 * y[:, None]
    return X.astype(np.float32), y


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", sorted(CLASSIFICATION_LOSSES))
def test_a_classifier_learns_by_name(name, weighted):
    X, y = blobs()
    module = {"nll": LogSoftmax, "probability_nll": Softmax}.get(name)
    model = StableNetClassifier(
        module, criterion=name, lr=0.05, max_epochs=80, random_state=0
    )
    model.fit(X, y, sample_weight=np.ones(len(y)) * 2 if weighted else None)
    assert model.score(X, y) > 0.95
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", sorted(REGRESSION_LOSSES))
def test_a_regressor_learns_by_name(name, weighted):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(300, 3)).astype(np.float32)
    y = np.exp(0.8 + 0.5 * X[:, 0] - 0.3 * X[:, 1])
    given = {}
    if name in ("kl_div", "cosine"):
        y = np.column_stack([y, np.exp(X[:, 2])])
        y = y / y.sum(1, keepdims=True)
    if name == "kl_div":
        given["criterion__from_logits"] = True
    model = StableNetRegressor(
        criterion=name, lr=0.02, max_epochs=40, random_state=0, **given
    )
    weight = generator.uniform(0.5, 2.0, len(y)) if weighted else None
    predicted = model.fit(X, y, sample_weight=weight).predict(X)
    assert predicted.shape == y.shape
    last, known = np.atleast_2d(predicted.T)[-1], np.atleast_2d(y.T)[-1]
    # An order or a direction leaves the scale open.
    assert np.corrcoef(last, known)[0, 1] > 0.9


@pytest.mark.parametrize(
    ("criterion", "found", "message"),
    [
        ("gamma", 0.0, "criterion='gamma' needs y above 0, but it is 0 at row 3."),
        (
            "tweedie",
            -1.0,
            "criterion='tweedie' needs y of at least 0, but it is -1 at row 3.",
        ),
    ],
)
def test_targets_for_which_a_loss_is_not_defined_are_refused(criterion, found, message):
    X = np.ones((8, 2), dtype=np.float32)
    y = np.ones(8)
    y[3] = found
    with pytest.raises(ValueError, match="needs y") as caught:
        StableNetRegressor(criterion=criterion).fit(X, y)
    assert str(caught.value) == message


def test_logits_for_a_loss_of_probabilities_are_refused():
    X, y = blobs()
    with pytest.raises(ValueError, match="probabilities") as caught:
        StableNetClassifier(criterion="probability_nll", random_state=0).fit(X, y)
    assert str(caught.value) == (
        "Criterion ProbabilityNLLLoss needs probabilities, but the rows of the "
        "module's output are not probabilities. Use criterion='cross_entropy', which "
        "takes logits, or end the module with a softmax."
    )


@pytest.mark.parametrize(
    "inner", [sl.CrossEntropyLoss(), sl.BCEWithLogitsLoss(), nn.CrossEntropyLoss()]
)
def test_a_classifier_takes_a_bounded_loss(inner):
    X, y = blobs()
    model = StableNetClassifier(
        criterion=sl.BoundedLoss(inner, 0.0, 3.0), lr=0.05, random_state=0
    )
    weight = np.random.default_rng(0).uniform(0.5, 1.5, len(y))
    assert model.fit(X, y, sample_weight=weight).score(X, y) > 0.95


def test_a_regressor_takes_a_bounded_loss_and_shrugs_off_wild_targets():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(300, 3)).astype(np.float32)
    y = X[:, 0] - X[:, 1]
    wild = y.copy()
    wild[:5] = 500.0
    criterion = sl.BoundedLoss(sl.HuberLoss(), 0.0, 2.0)
    model = StableNetRegressor(
        criterion=criterion, lr=0.01, max_epochs=60, random_state=0
    )
    with pytest.raises(ValueError, match="for regression"):
        StableNetClassifier(criterion=criterion).fit(X, y > 0)
    assert np.corrcoef(model.fit(X, wild).predict(X)[5:], y[5:])[0, 1] > 0.8


@pytest.mark.parametrize("net", [NeuralNetClassifier, GuardedNetClassifier])
@pytest.mark.parametrize(
    ("module", "criterion"),
    [
        (nn.Linear(4, 2), sl.CrossEntropyLoss),
        (Softmax(4, 2), sl.ProbabilityNLLLoss),
    ],
)
def test_skorch_makes_its_automatic_choices(net, module, criterion):
    X, y = blobs()
    fitted = net(module, criterion=criterion, lr=0.5, max_epochs=40, verbose=0)
    fitted.fit(X, y)
    np.testing.assert_allclose(fitted.predict_proba(X).sum(1), 1.0, rtol=1e-5)
    assert fitted.score(X, y) > 0.9


def test_probabilities_are_those_of_softmax_and_sigmoid():
    logits = torch.tensor([[0.0, 1.0, -1.0], [1e30, 0.0, -1e30]])
    for loss in (sl.CrossEntropyLoss(), sl.FocalLoss(), sl.NLLLoss()):
        probabilities = loss.predict(logits)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
        torch.testing.assert_close(probabilities[1], torch.tensor([1.0, 0.0, 0.0]))
    binary = sl.BCEWithLogitsLoss().predict(torch.tensor([[0.0], [1e30], [-1e30]]))
    assert binary.flatten().tolist() == [0.5, 1.0, 0.0]


@pytest.mark.parametrize("name", ["poisson", "gamma", "tweedie"])
def test_a_rate_is_positive_and_stays_finite(name):
    rates = get_criterion(name)().predict(torch.tensor([0.0, 1.0, -1e30, 1e30, 2e30]))
    assert torch.isfinite(rates).all()
    assert rates[0] == 1.0
    assert rates[1].item() == pytest.approx(math.e)
    assert rates[2] == 0.0
    assert rates[3] == rates[4]


def test_the_mean_of_a_gaussian_is_its_prediction():
    output = torch.arange(8.0).reshape(2, 4)
    assert sl.GaussianNLLLoss().predict(output).tolist() == [[0.0, 1.0], [4.0, 5.0]]


@every_loss
def test_losses_can_be_copied_and_pickled(name):
    loss = MAKERS[name]()
    z, y = output_for(TARGETS[name], 4), target_for(TARGETS[name], 4)
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(again) is type(loss)
        assert torch.equal(again(z, y), loss(z, y))


# -- refusals ------------------------------------------------------------------------


def known_names():
    return ", ".join(repr(name) for name in ALL)


@pytest.mark.parametrize(
    ("name", "hint"), [("hubber", " Did you mean 'huber'?"), ("zzz", "")]
)
def test_an_unknown_name_is_refused_with_a_hint(name, hint):
    with pytest.raises(ValueError, match="criterion") as caught:
        get_criterion(name)
    assert str(caught.value) == (
        f"Unknown criterion {name!r}.{hint} Known criteria: {known_names()}."
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sl.MSELoss()(torch.ones(3, 1), torch.ones(3, 2)),
            "The output has shape (3, 1) and the target (3, 2): they must be equal, or "
            "one (n,) and the other (n, 1).",
        ),
        (
            lambda: sl.RMSELoss()(torch.ones(3, 1), torch.ones(3), torch.ones(2)),
            "sample_weight has shape (2,), but the loss needs one weight per row: "
            "(3,).",
        ),
        (
            lambda: sl.RMSELoss(reduction="total"),
            "reduction must be 'mean', 'sum' or 'none', got 'total'.",
        ),
        (
            lambda: sl.MSELoss(reduction="total")(torch.ones(3), torch.ones(3)),
            "reduction must be 'mean', 'sum' or 'none', got 'total'.",
        ),
        (
            lambda: sl.QuantileLoss(1.0),
            "quantile must be between 0 and 1, got 1.0.",
        ),
        (
            lambda: sl.PseudoHuberLoss(0.0),
            "delta must be a positive finite number, got 0.0.",
        ),
        (lambda: sl.FocalLoss(-1.0), "gamma must be finite and at least 0, got -1.0."),
        (
            lambda: sl.TweedieLoss(2.0),
            "power must be between 1 and 2, got 2.0. Use 'poisson' for 1 and 'gamma' "
            "for 2.",
        ),
        (
            lambda: sl.MAPELoss(0.0),
            "floor must be a positive finite number, got 0.0.",
        ),
        (
            lambda: sl.GaussianNLLLoss()(torch.ones(3, 3), torch.ones(3, 1)),
            "GaussianNLLLoss needs two outputs per target, means and raw variances, "
            "but the output has shape (3, 3).",
        ),
        (
            lambda: sl.BoundedLoss(sl.MSELoss(), 1.0, 0.0),
            "low must be less than high and both finite, got 1.0 and 0.0.",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=r"must|needs") as caught:
        call()
    assert str(caught.value) == message


def test_a_vector_meets_a_column():
    column, vector = torch.randn(5, 1), torch.randn(5)
    expected = (column[:, 0] - vector).square().mean()
    torch.testing.assert_close(sl.MSELoss()(column, vector), expected)
    torch.testing.assert_close(sl.MSELoss()(vector, column), expected)
