"""The contract: torch's value and gradient where both are finite, finite elsewhere.

Each loss with a counterpart in torch is compared with it for all pairs of extreme
outputs and targets, for each of its options and reductions.
"""

from __future__ import annotations

import math

import pytest
import torch
from losses_helpers import ALL, CASES
from torch import nn

from sknan import losses as sl

WEIGHT = torch.tensor([0.5, 0.0, 2.0])

# Loss, its counterpart, their options, and the kind of its target.
OPTIONS = [
    ("MSELoss", {}, "number"),
    ("L1Loss", {}, "number"),
    ("HuberLoss", {"delta": 1.0}, "number"),
    ("HuberLoss", {"delta": 1e-3}, "number"),
    ("HuberLoss", {"delta": 1e3}, "number"),
    ("PoissonNLLLoss", {}, "count"),
    ("PoissonNLLLoss", {"full": True}, "count"),
    ("PoissonNLLLoss", {"log_input": False}, "count"),
    ("PoissonNLLLoss", {"log_input": False, "eps": 1e-3, "full": True}, "count"),
    ("GaussianNLLLoss", {}, "variance"),
    ("GaussianNLLLoss", {"full": True, "eps": 1e-3}, "variance"),
    ("KLDivLoss", {}, "share"),
    ("KLDivLoss", {"log_target": True}, "number"),
    ("BCEWithLogitsLoss", {}, "share"),
    ("BCEWithLogitsLoss", {"weight": WEIGHT}, "share"),
    ("BCEWithLogitsLoss", {"pos_weight": WEIGHT}, "share"),
    ("BCEWithLogitsLoss", {"weight": WEIGHT, "pos_weight": WEIGHT}, "share"),
    *(
        (name, options, "code")
        for name in ("CrossEntropyLoss", "NLLLoss")
        for options in (
            {},
            {"weight": WEIGHT},
            {"ignore_index": 1},
            {"weight": WEIGHT, "ignore_index": 0},
        )
    ),
    ("CrossEntropyLoss", {"label_smoothing": 0.1}, "code"),
    ("CrossEntropyLoss", {"label_smoothing": 1.0, "weight": WEIGHT}, "code"),
    ("CrossEntropyLoss", {"label_smoothing": 0.1, "ignore_index": 2}, "code"),
    ("CrossEntropyLoss", {}, "distribution"),
    ("CrossEntropyLoss", {"weight": WEIGHT}, "distribution"),
    ("CrossEntropyLoss", {"label_smoothing": 0.2, "weight": WEIGHT}, "distribution"),
]
every_option = pytest.mark.parametrize(
    ("name", "options", "kind"),
    OPTIONS,
    ids=[
        f"{name}-{'-'.join(given) or 'plain'}-{kind}" for name, given, kind in OPTIONS
    ],
)


def test_every_loss_of_torch_is_compared():
    of_torch = {name for name, case in CASES.items() if hasattr(nn, name)}
    assert of_torch == {name for name, *_ in OPTIONS}
    assert of_torch <= {kind.__name__ for kind in ALL.values()}


def extremes(dtype, largest=math.inf):
    info = torch.finfo(dtype)
    sizes = [0.0, info.tiny * info.eps, info.tiny, info.eps, 0.3, 1.0, 60.0, 1e4]
    sizes += [1e15, 1e18, math.sqrt(info.max) / 2, info.max / 2, info.max, math.inf]
    values = [size for size in sizes if size <= largest]
    return torch.tensor(values + [-v for v in values], dtype=dtype)


def arguments_of(kind, dtype):
    """Return outputs and targets in all combinations of extreme numbers."""
    values = extremes(dtype)
    if kind in ("code", "distribution"):
        z = torch.cartesian_prod(values, values, torch.tensor([0.0, 2.0]).to(dtype))
        y = torch.arange(len(z)) % 3
        if kind == "distribution":
            y = nn.functional.one_hot(y, 3).to(dtype) * 0.75 + 0.25 / 3
        return [z], y
    targets = {
        "number": values,
        "count": values[~values.signbit()],
        "share": torch.tensor([0.0, 0.3, 1.0, 1e-30], dtype=dtype),
        "variance": values[:20],
    }[kind]
    if kind == "variance":
        variances = values[~values.signbit() & values.isfinite()]
        rows = torch.cartesian_prod(values, targets, variances)
        return [rows[:, [0]], rows[:, [2]]], rows[:, [1]]
    # Three columns, for the weights of three classes.
    rows = torch.cartesian_prod(values, targets)
    return [rows[:, [0]].expand(-1, 3)], rows[:, [1]].expand(-1, 3)


def value_and_gradients(loss, arguments, y):
    leaves = [x.clone().requires_grad_() for x in arguments]
    value = loss(leaves[0], y, *leaves[1:])
    gradients = torch.autograd.grad(value.sum(), leaves)
    return value.detach(), [g.detach() for g in gradients]


def is_right(value, gradients):
    """Whether value and gradients of each row are finite."""
    finite = value.isfinite().reshape(len(value), -1).all(1)
    for g in gradients:
        finite &= g.isfinite().reshape(len(g), -1).all(1)
    return finite


def both(name, options, reduction, dtype):
    options = {
        k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in options.items()
    }
    return [getattr(owner, name)(reduction=reduction, **options) for owner in (sl, nn)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_option
def test_each_unreduced_loss_is_torchs_where_that_is_finite(name, options, kind, dtype):
    ours, of_torch = both(name, options, "none", dtype)
    arguments, y = arguments_of(kind, dtype)
    value, gradients = value_and_gradients(ours, arguments, y)
    assert value.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)
    expected, expected_gradients = value_and_gradients(of_torch, arguments, y)
    right = is_right(expected, expected_gradients)
    assert right.any()
    assert (~right).any() or kind in ("code", "distribution")
    torch.testing.assert_close(value[right], expected[right], rtol=1e-6, atol=0)
    for g, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(
            g[right], expected_gradient[right], rtol=1e-6, atol=1e-45
        )


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
@every_option
def test_a_reduced_loss_of_rows_that_are_right_is_torchs(
    name, options, kind, reduction
):
    if reduction == "batchmean" and name != "KLDivLoss":
        return
    dtype = torch.float32
    arguments, y = arguments_of(kind, dtype)
    _, of_torch = both(name, options, "none", dtype)
    right = is_right(*value_and_gradients(of_torch, arguments, y))
    # Every seventh row, each alone, so that none hides the others.
    ours, of_torch = both(name, options, reduction, dtype)
    for row in right.nonzero()[::7, 0].tolist():
        one = [x[[row]] for x in arguments]
        expected, expected_gradients = value_and_gradients(of_torch, one, y[[row]])
        value, gradients = value_and_gradients(ours, one, y[[row]])
        if not expected.isfinite():  # weights of 0, or an overflow of the sum
            assert value.isfinite()
            continue
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
        for g, expected_gradient in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(g, expected_gradient, rtol=1e-6, atol=1e-45)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@every_option
def test_a_reduced_loss_is_finite_for_any_row(name, options, kind, reduction):
    arguments, y = arguments_of(kind, torch.float32)
    ours, _ = both(name, options, reduction, torch.float32)
    for rows in [slice(None), *(slice(i, i + 1) for i in range(0, len(y), 17))]:
        value, gradients = value_and_gradients(
            ours, [x[rows] for x in arguments], y[rows]
        )
        assert value.isfinite()
        assert all(g.isfinite().all() for g in gradients)
