"""Search for the rows and columns of a batch that are to blame."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sknan.diagnosis._culprits import (
    Trials,
    by_bisection,
    nonfinite_rows,
    places_to_blame,
    sliced,
    without_rows,
)
from sknan.diagnosis._evidence import FailedOperation, Places


def table(n_rows=8, n_columns=3):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n_rows, n_columns, generator=generator) + 1.0


# -- rows ----------------------------------------------------------------------------


@given(st.lists(st.floats(width=32), min_size=1, max_size=12))
def test_nonfinite_rows_agree_with_the_definition(values):
    expected = tuple(i for i, v in enumerate(values) if not math.isfinite(v))
    column = torch.tensor(values)
    assert nonfinite_rows(column, len(values)) == expected
    wide = torch.ones(len(values), 2, 2)
    wide[:, 1, 0] = column
    assert nonfinite_rows({"a": (wide, [torch.ones(3)])}, len(values)) == expected


def test_data_without_rows_are_ignored():
    nan = torch.tensor(math.nan)
    data = (nan, torch.full((3,), math.nan), torch.arange(4), None, "text")
    assert nonfinite_rows(data, 4) == ()
    assert nonfinite_rows(None, 4) == ()


def test_a_row_of_nested_data_is_bad_if_any_tensor_is():
    first, second = torch.ones(4, 2), torch.ones(4)
    first[1, 0], second[3] = math.nan, -math.inf
    assert nonfinite_rows((first, {"b": second}), 4) == (1, 3)


def test_rows_are_selected_from_each_tensor_that_has_them():
    data = {"a": torch.arange(4), "b": (torch.ones(4, 2), torch.arange(2)), "c": 5}
    cut = sliced(data, slice(1, 3), 4)
    assert cut["a"].tolist() == [1, 2]
    assert cut["b"][0].shape == (2, 2)
    assert cut["b"][1].tolist() == [0, 1]
    assert cut["c"] == 5
    assert sliced(data, torch.tensor([3, 0]), 4)["a"].tolist() == [3, 0]


@given(st.sets(st.integers(0, 9)))
def test_removing_rows_keeps_the_others_in_order(rows):
    batch = torch.arange(10), {"x": torch.arange(10.0)[:, None]}
    left = without_rows(batch, tuple(rows), 10)
    expected = [i for i in range(10) if i not in rows]
    assert left[0].tolist() == expected
    assert left[1]["x"].flatten().tolist() == expected


@given(st.integers(1, 40), st.data())
def test_bisection_finds_every_row_that_fails_by_itself(n_rows, data):
    bad = data.draw(st.sets(st.integers(0, n_rows - 1)))
    n_calls = 0

    def is_finite(part):
        nonlocal n_calls
        n_calls += 1
        return not bad & set(range(n_rows)[part])

    assert by_bisection(is_finite, n_rows) == tuple(sorted(bad))
    # The search descends from the root to each bad row.
    depth = math.ceil(math.log2(n_rows)) + 1
    assert n_calls <= 1 + 2 * len(bad) * depth


def test_bisection_finds_nothing_if_only_all_rows_together_fail():
    assert by_bisection(lambda part: part != slice(0, 8), 8) == ()
    assert by_bisection(lambda part: False, 0) == ()


# -- rows and columns of a step ------------------------------------------------------


def squared(outputs, target, inputs):
    return (outputs - target).square().mean()


def places(phase, inputs, forward, *, target=None, loss=squared, rows=(), **options):
    """Return the rows and columns to blame for a failure in a phase."""
    target = torch.ones(len(inputs), 1) if target is None else target
    parameters = list(forward.parameters()) if isinstance(forward, nn.Module) else []
    trials = Trials(phase, forward, loss, parameters)
    try:
        outputs = forward(inputs)
    except Exception:
        outputs = None
    failed = FailedOperation(phase, "", "aten.log", None, rows, **options)
    return places_to_blame(failed, (inputs, target), outputs, trials)


class LogOfFirst(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(torch.cat([torch.log(x[:, :1]), x[:, 1:]], 1))


def test_rows_and_columns_of_a_failed_forward_pass_are_found():
    inputs = table()
    inputs[[2, 6], 0] = -1.0
    assert places("forward", inputs, LogOfFirst()) == Places((2, 6), (0,))


def test_the_column_is_found_whose_usual_number_repairs_the_row():
    inputs = table()
    inputs[5, 2] = -1.0
    assert places("forward", inputs, torch.log) == Places((5,), (2,))


def test_columns_of_all_rows_to_blame_are_found():
    inputs = table(n_columns=5)
    inputs[1, 0] = inputs[3, 4] = inputs[6, 0] = -1.0
    assert places("forward", inputs, torch.log) == Places((1, 3, 6), (0, 4))


def test_several_columns_that_fail_in_one_row_are_found():
    inputs = table(n_columns=4)
    inputs[5, :2] = -1.0
    assert places("forward", inputs, torch.log) == Places((5,), (0, 1))


def test_columns_of_a_wide_table_are_found():
    inputs = table(n_columns=3000)
    inputs[5, [7, 2999]] = -1.0
    assert places("forward", inputs, torch.log) == Places((5,), (7, 2999))


def log_of_sum(x):
    return torch.log(x.sum(1, keepdim=True) + 1.5)


def test_no_column_is_blamed_if_most_columns_repair_the_row():
    inputs = table()
    inputs[5] = -1.0
    assert places("forward", inputs, log_of_sum) == Places((5,))


def test_columns_that_do_not_make_a_usual_row_fail_are_not_blamed():
    def log_of_difference(x):
        rest = x[:, 2:].sum(1) - 6.0
        return torch.log(x[:, 0] - x[:, 1] + 0.2 * rest + 0.75)

    inputs = torch.full((8, 6), 1.5)
    inputs[3] = torch.tensor([1.2, 1.8, 1.0, 1.0, 1.0, 1.0])
    # A usual number in column 0 or 1 repairs the row, but the others count too.
    assert places("forward", inputs, log_of_difference) == Places((3,))


def test_no_column_is_searched_for_if_most_rows_fail():
    assert places("forward", -table(), LogOfFirst()) == Places(tuple(range(8)))


def test_rows_that_fail_because_of_another_row_are_not_blamed():
    def centered(x):
        return torch.log(x) - torch.log(x).mean(0)

    inputs = table()
    inputs[2, 1] = -1.0
    assert places("forward", inputs, centered) == Places((2,), (1,))


def test_an_operation_on_weights_alone_has_no_rows():
    inputs = -table()
    found = places("forward", inputs, LogOfFirst(), depends_on_batch=False)
    assert found == Places()


@pytest.mark.parametrize(
    "inputs",
    [
        torch.ones(4, 1),
        torch.ones(4, 3, 2),
        torch.ones(4, 3, dtype=torch.int64),
        {"a": torch.ones(4, 3)},
    ],
    ids=["column", "series", "codes", "dict"],
)
def test_data_other_than_tables_have_no_columns(inputs):
    def forward(data):
        x = data["a"] if isinstance(data, dict) else data
        return torch.log(x.float())

    x = inputs["a"] if isinstance(inputs, dict) else inputs
    x[1] = -1
    target = torch.ones_like(x, dtype=torch.float32)
    trials = Trials("forward", forward, squared, [])
    failed = FailedOperation("forward", "", "aten.log", None)
    found = places_to_blame(failed, (inputs, target), forward(inputs), trials)
    assert found == Places((1,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_columns_are_found_in_any_dtype(dtype):
    inputs = table().to(dtype)
    inputs[5, 2] = -1.0
    assert places("forward", inputs, torch.log) == Places((5,), (2,))


def test_the_search_leaves_batch_and_random_state_unchanged():
    inputs = table()
    inputs[2, 0] = -1.0
    before = inputs.clone()
    torch.manual_seed(1)
    module = nn.Sequential(LogOfFirst(), nn.Dropout(0.5))
    state = torch.get_rng_state()
    trials = Trials("forward", module, squared, [])
    failed = FailedOperation("forward", "", "aten.log", None, (2,))
    assert places_to_blame(failed, (inputs, None), None, trials).columns == (0,)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(inputs, before)


def test_rows_of_a_loss_are_found_by_bisection():
    target = torch.ones(8, 1)
    target[[0, 3]] = 0.0

    def relative(outputs, target, inputs):
        assert len(outputs) == len(target) == len(inputs)
        return ((target - target) / target).mean()

    found = places("loss", table(), LogOfFirst(), target=target, loss=relative)
    assert found == Places((0, 3))


def test_rows_of_a_loss_that_is_a_gradient_are_found():
    def penalty(outputs, target, inputs):
        x = inputs.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(torch.log(x).sum(), x)
        return gradient.sum()

    inputs = table()
    inputs[4, 1] = 0.0
    assert places("loss", inputs, nn.Linear(3, 1), loss=penalty).rows == (4,)


class RootOfProduct(nn.Module):
    """A root whose derivative is infinite in rows of zeros."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.sqrt(self.scale * x[:, :1]).mean(0, keepdim=True).expand(len(x), 1)


def test_rows_and_columns_of_a_failed_backward_pass_are_found():
    inputs = table()
    inputs[[1, 5], 0] = 0.0
    found = places("backward", inputs, RootOfProduct(), rows=tuple(range(8)))
    assert found == Places((1, 5), (0,))


class Factor(nn.Module):
    def forward(self, x):
        return torch.linalg.cholesky(torch.diag_embed(x)).sum(-1)


def test_a_decomposition_that_raises_has_rows_and_columns():
    inputs = table()
    inputs[2, 0] = -1.0
    assert places("forward", inputs, Factor()) == Places((2,), (0,))


# -- huge numbers --------------------------------------------------------------------


class UsedColumns(nn.Module):
    """A network that does not use its last column."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 1)

    def forward(self, x):
        return self.linear(torch.cat([torch.log(x[:, :1]), x[:, 1:2]], 1))


def test_huge_numbers_in_a_column_that_is_not_used_are_not_blamed():
    inputs = table()
    inputs[:, 2] = 9e18
    inputs[5, 0] = -3.0
    assert places("forward", inputs, UsedColumns()) == Places((5,), (0,))


@pytest.mark.parametrize("phase", ["loss", "backward"])
def test_huge_numbers_that_make_a_step_fail_are_blamed(phase):
    inputs = table()
    inputs[[1, 4], 1] = torch.tensor([-3.4e38, 9.97e36])
    inputs[:, 2] = 9e18
    found = places(phase, inputs, UsedColumns())
    assert found == Places((1, 4), (1,), "inputs")


def test_a_column_of_huge_numbers_is_blamed_in_all_rows():
    inputs = table()
    inputs[:, 1] = 1e30
    found = places("loss", inputs, UsedColumns())
    assert found == Places(tuple(range(8)), (1,), "inputs")


def test_huge_targets_that_make_a_loss_fail_are_blamed():
    target = torch.ones(8, 1)
    target[[2, 7]] = torch.tensor([[1e25], [-3e30]])
    found = places("loss", table(), UsedColumns(), target=target)
    assert found == Places((2, 7), (), "targets")


def test_a_refused_finite_step_is_blamed_on_huge_numbers_only():
    inputs, target = table(), torch.ones(8, 1)
    module = UsedColumns()
    trials = Trials("backward", module, squared, list(module.parameters()))
    outputs = module(inputs)
    assert places_to_blame(None, (inputs, target), outputs, trials) == Places()
    inputs[3, 1] = 1e28
    found = places_to_blame(None, (inputs, target), outputs, trials)
    assert found == Places((3,), (1,), "inputs")


def test_huge_numbers_in_nested_inputs_have_rows():
    inputs = {"a": torch.ones(6, 3, 2), "codes": torch.arange(6)}
    inputs["a"][4, 1, 1] = 1e30
    trials = Trials("loss", lambda data: data["a"].sum(1), squared, [])
    failed = FailedOperation("loss", "criterion", "aten.mse_loss", None)
    found = places_to_blame(failed, (inputs, torch.ones(6, 2)), None, trials)
    assert found == Places((4,), (), "inputs")
