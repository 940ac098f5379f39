"""Properties that every loss has."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_helpers import (
    ALL,
    CASES,
    MAKERS,
    N_CLASSES,
    TARGETS,
    assert_finite,
    every_dtype,
    every_loss,
    every_row_loss,
    every_torch_loss,
    extremes,
    output_for,
    target_for,
)

from sknan import losses as sl


def test_the_table_contains_every_loss():
    assert set(MAKERS) == {cls.__name__ for cls in ALL.values()}
    offered = {name for name in sl.__all__ if name.endswith("Loss")}
    assert set(MAKERS) == offered - {"BoundedLoss"}


@every_row_loss
def test_unreduced_losses_are_within_four_units_in_the_last_place_of_the_formula(name):
    case = CASES[name]
    z, y = output_for(case.target, 50), target_for(case.target, 50)
    found = case.make(reduction="none")(z, y).double()
    wide = y if y.dtype is torch.int64 else y.double()
    expected = case.formula(z.double(), wide)
    assert found.shape == expected.shape
    # The error is relative to the size of terms that cancel.
    size_of_terms = 8.0 if name == "TweedieLoss" else 1.0
    error = (found - expected).abs() / expected.abs().clamp(min=size_of_terms)
    assert error.max() <= 4 * 2.0**-23


@every_torch_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_a_loss_of_torch_can_be_replaced_with_the_same_result(name, reduction):
    case = CASES[name]
    losses = [make(reduction=reduction) for make in (case.make, case.of_torch)]
    assert isinstance(losses[0], case.of_torch)
    z, y = output_for(case.target, 40), target_for(case.target, 40)
    leaves = [z.clone().requires_grad_() for _ in range(2)]
    values = [loss(leaf, y) for loss, leaf in zip(losses, leaves, strict=True)]
    if name == "KLDivLoss":  # sums in a different order
        torch.testing.assert_close(*values)
    else:
        assert torch.equal(*values)
    for value in values:
        value.sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-6, atol=1e-9)


@every_row_loss
def test_a_sample_weight_multiplies_the_losses_of_its_row(name):
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
def test_a_weight_of_two_equals_a_repeated_row(name):
    z, y = output_for(TARGETS[name], 12), target_for(TARGETS[name], 12)
    weight = torch.tensor([1.0, 2.0] * 6)
    twice = torch.arange(12).repeat_interleave(weight.long())
    loss = MAKERS[name]()
    torch.testing.assert_close(
        loss(z, y, sample_weight=weight), loss(z[twice], y[twice])
    )


@every_loss
def test_a_mean_of_no_rows_is_zero_with_gradient_zero(name):
    z, y = output_for(TARGETS[name], 4), target_for(TARGETS[name], 4)
    loss = MAKERS[name]()
    for rows, weight in ((z[:0], None), (z, torch.zeros(4))):
        rows = rows.clone().requires_grad_()
        value = loss(rows, y[: len(rows)], sample_weight=weight)
        assert value.item() == 0.0
        value.backward()
        assert (rows.grad == 0).all()


@every_loss
def test_half_precision_is_computed_and_returned_in_float32(name):
    for dtype in (torch.float16, torch.bfloat16):
        z = output_for(TARGETS[name], 8, dtype).requires_grad_()
        y = target_for(TARGETS[name], 8, dtype)
        value = MAKERS[name]()(z, y)
        assert value.dtype is torch.float32
        wide = MAKERS[name]()(z.float(), y.float() if y.is_floating_point() else y)
        torch.testing.assert_close(value, wide)
        value.backward()
        assert z.grad.dtype is dtype


@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@every_loss
def test_value_and_gradient_are_finite_for_extreme_outputs(name, dtype, reduction):
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
def test_value_and_gradient_are_finite_for_extreme_targets(name, dtype):
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

    @settings(max_examples=60)
    @given(rows)
    def holds(rows):
        z = torch.from_numpy(np.array(rows, dtype=np.uint32).view(np.float32))
        y = target_for(TARGETS[name], len(z))
        if z.isnan().any():
            value = MAKERS[name](reduction="none")(z, y)
            assert value.isnan().any() or TARGETS[name] in (
                "codes",  # the NaN may belong to another class than the target
                "probabilities",
            )
        else:
            assert_finite(MAKERS[name](), z, y)

    holds()


@every_loss
def test_a_nan_gives_nan(name):
    z = output_for(TARGETS[name], 4)
    z[1] = torch.nan
    y = target_for(TARGETS[name], 4)
    assert MAKERS[name]()(z, y).isnan()
    if y.is_floating_point():
        y[2] = torch.nan
        assert MAKERS[name]()(output_for(TARGETS[name], 4), y).isnan()


@every_loss
def test_derivatives_of_losses_agree_with_finite_differences(name):
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
def test_vmap_and_func_grad_equal_a_loop(name):
    loss = MAKERS[name]()
    z = torch.stack([output_for(TARGETS[name], 6, seed=s) for s in range(3)])
    y = torch.stack([target_for(TARGETS[name], 6, seed=s) for s in range(3)])
    values = torch.func.vmap(loss)(z, y)
    expected = torch.stack([loss(*pair) for pair in zip(z, y, strict=True)])
    torch.testing.assert_close(values, expected)
    gradients = torch.func.vmap(torch.func.grad(loss))(z, y)
    leaf = z.clone().requires_grad_()
    sum(loss(*pair) for pair in zip(leaf, y, strict=True)).backward()
    torch.testing.assert_close(gradients, leaf.grad)


@every_loss
def test_a_loss_compiles_to_one_graph(name):
    torch._dynamo.reset()
    loss = MAKERS[name]()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    z, y = output_for(TARGETS[name], 6), target_for(TARGETS[name], 6)
    leaf = z.clone().requires_grad_()
    value = compiled(leaf, y)
    torch.testing.assert_close(value, loss(z, y))
    value.backward()
    extreme = torch.full_like(z, math.inf)
    assert torch.isfinite(compiled(extreme, y))


@every_loss
def test_losses_are_finite_and_in_float32_under_autocast(name):
    z, y = output_for(TARGETS[name], 6), target_for(TARGETS[name], 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_finite(MAKERS[name](), z * 1e30, y)
        assert MAKERS[name]()(z, y).dtype is torch.float32


@every_row_loss
def test_an_extreme_row_changes_other_rows_by_rounding_only(name):
    # The general code is used for all rows then. It must agree with the fast kernel.
    z, y = output_for(TARGETS[name], 20), target_for(TARGETS[name], 20)
    extreme = torch.cat([z, torch.full_like(z[:1], math.inf)])
    loss = MAKERS[name](reduction="sum")
    torch.testing.assert_close(
        MAKERS[name](reduction="none")(extreme, torch.cat([y, y[:1]]))[:20],
        MAKERS[name](reduction="none")(z, y),
        rtol=1e-6,
        atol=1e-6,
    )
    leaves = [z.clone().requires_grad_() for _ in range(2)]
    loss(leaves[0], y).backward()
    loss(leaves[1], y, sample_weight=torch.ones(20)).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


@every_loss
def test_losses_can_be_copied_and_pickled(name):
    loss = MAKERS[name]()
    z, y = output_for(TARGETS[name], 4), target_for(TARGETS[name], 4)
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(again) is type(loss)
        assert torch.equal(again(z, y), loss(z, y))


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
            lambda: sl.QuantileLoss([0.5, 2]),
            "quantile must be all between 0 and 1, got [0.5, 2].",
        ),
        (
            lambda: sl.QuantileLoss([0.9, 0.1, 0.9]),
            "quantile must be in ascending order, each value once, got "
            "[0.9, 0.1, 0.9]. Pass [0.1, 0.9].",
        ),
        (lambda: sl.QuantileLoss([]), "quantile must be between 0 and 1, got []."),
        (
            lambda: sl.QuantileLoss([0.1, 0.9])(torch.ones(3, 3), torch.ones(3)),
            "The output has shape (3, 3) and the target (3,): with 2 quantiles the "
            "output must be (3, 2).",
        ),
        (
            lambda: sl.HuberLoss(delta=-1.0),
            "delta must be a positive finite number, got -1.0.",
        ),
        (
            lambda: sl.PseudoHuberLoss(0.0),
            "delta must be a positive finite number, got 0.0.",
        ),
        (lambda: sl.FocalLoss(-1.0), "gamma must be finite and at least 0, got -1.0."),
        (
            lambda: sl.TweedieLoss(2.0),
            "power must be between 1 and 2 ('poisson' is 1 and 'gamma' is 2), got 2.0.",
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
            lambda: sl.RMSELoss(reduction=np.ones(2)),
            "reduction must be 'mean', 'sum' or 'none', got array([1., 1.]).",
        ),
        (
            lambda: sl.BoundedLoss(sl.MSELoss(), 1.0, 0.0),
            "low must be less than high and both finite, got 1.0 and 0.0.",
        ),
    ],
)
def test_invalid_shapes_and_parameters_raise(call, message):
    with pytest.raises(ValueError, match=r"must|needs") as caught:
        call()
    assert str(caught.value) == message


def test_an_output_that_is_no_tensor_raises():
    with pytest.raises(TypeError) as caught:
        sl.MSELoss()((torch.ones(3), torch.ones(3)), torch.ones(3))
    assert str(caught.value) == (
        "The module returns a tuple of 2 values, but the loss needs one tensor of real "
        "numbers. Return only that tensor from forward, or pass a criterion that takes "
        "the whole output."
    )


@pytest.mark.parametrize("value", ["0.5", None, [0.5], True, math.nan])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda v: sl.QuantileLoss([v, 0.5]), "quantile"),
        (lambda v: sl.FocalLoss(v), "gamma"),
        (lambda v: sl.TweedieLoss(v), "power"),
        (lambda v: sl.MAPELoss(v), "floor"),
        (lambda v: sl.SMAPELoss(v), "floor"),
        (lambda v: sl.PseudoHuberLoss(v), "delta"),
        (lambda v: sl.HuberLoss(delta=v), "delta"),
        (lambda v: sl.GaussianNLLLoss(eps=v), "eps"),
        (lambda v: sl.BoundedLoss(sl.MSELoss(), v, 1.0), "low"),
        (lambda v: sl.RMSELoss(reduction=v), "reduction"),
        (lambda v: sl.HuberLoss(reduction=v), "reduction"),
        (lambda v: sl.KLDivLoss(reduction=v), "reduction"),
    ],
)
def test_an_option_of_another_type_is_named_with_its_value(make, name, value):
    with pytest.raises(ValueError, match=name) as caught:
        make(value)
    assert repr(value) in str(caught.value)


def test_a_vector_and_a_column_are_aligned():
    column, vector = torch.randn(5, 1), torch.randn(5)
    expected = (column[:, 0] - vector).square().mean()
    torch.testing.assert_close(sl.MSELoss()(column, vector), expected)
    torch.testing.assert_close(sl.MSELoss()(vector, column), expected)
