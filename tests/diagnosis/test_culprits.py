"""Search for the rows and columns of a batch that are to blame."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sknan.diagnosis._culprits import (
    columns_to_blame,
    nonfinite_rows,
    places_to_blame,
    rows_by_bisection,
    sliced,
    without_rows,
)


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

    assert rows_by_bisection(is_finite, n_rows) == tuple(sorted(bad))
    # The search descends from the root to each bad row.
    depth = math.ceil(math.log2(n_rows)) + 1
    assert n_calls <= 1 + 2 * len(bad) * depth


def test_bisection_finds_nothing_if_only_all_rows_together_fail():
    assert rows_by_bisection(lambda part: part != slice(0, 8), 8) == ()
    assert rows_by_bisection(lambda part: False, 0) == ()


# -- columns -------------------------------------------------------------------------


def log_is_finite(copies):
    return torch.isfinite(torch.log(copies)).all(dim=1)


def test_the_column_is_found_whose_median_repairs_the_row():
    inputs = table()
    inputs[5, 2] = -1.0
    assert columns_to_blame(inputs, 5, log_is_finite) == (2,)


def test_a_huge_value_is_replaced_by_the_median_without_overflow():
    inputs = table()
    inputs[5, 0] = -3e38

    def is_finite(copies):
        assert copies.isfinite().all()
        return (copies > 0).all(dim=1)

    assert columns_to_blame(inputs, 5, is_finite) == (0,)


def test_no_column_is_blamed_if_two_columns_fail():
    inputs = table()
    inputs[5, :2] = -1.0
    assert columns_to_blame(inputs, 5, log_is_finite) == ()


def test_no_column_is_blamed_if_most_columns_repair_the_row():
    inputs = table()
    inputs[5] = -1.0

    def is_finite(copies):  # the sum of three
        return copies.sum(dim=1) > -1.5

    assert columns_to_blame(inputs, 5, is_finite) == ()


def test_no_column_is_blamed_if_all_copies_fail_together():
    inputs = table()
    assert columns_to_blame(inputs, 5, lambda copies: False) == ()


@pytest.mark.parametrize(
    "inputs",
    [
        torch.ones(4, 1),
        torch.ones(1, 4),
        torch.ones(4, 300),
        torch.ones(4, 3, 2),
        torch.ones(4, 3, dtype=torch.int64),
        {"a": torch.ones(4, 3)},
        None,
    ],
    ids=["column", "row", "wide", "series", "codes", "dict", "nothing"],
)
def test_data_other_than_tables_have_no_columns(inputs):
    assert columns_to_blame(inputs, 0, log_is_finite) == ()


def test_the_search_for_columns_leaves_the_batch_unchanged():
    inputs = table()
    inputs[5, 2] = -1.0
    before = inputs.clone()
    columns_to_blame(inputs, 5, log_is_finite)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_columns_are_found_in_any_dtype(dtype):
    inputs = table().to(dtype)
    inputs[5, 2] = -1.0
    assert columns_to_blame(inputs, 5, log_is_finite) == (2,)


# -- both ----------------------------------------------------------------------------


class LogOfFirst(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(torch.cat([torch.log(x[:, :1]), x[:, 1:]], 1))


def places(phase, inputs, target, forward, loss, rows=()):
    outputs = forward(inputs)
    return places_to_blame(phase, rows, (inputs, target), outputs, forward, loss)


def squared(outputs, target, inputs):
    return (outputs - target).square().mean()


def test_rows_and_columns_of_a_failed_forward_pass_are_found():
    inputs = table()
    inputs[[2, 6], 0] = -1.0
    found = places("forward", inputs, torch.ones(8, 1), LogOfFirst(), squared)
    assert found == ((2, 6), (0,))


def test_no_column_is_searched_for_if_most_rows_fail():
    inputs = -table()
    rows, columns = places("forward", inputs, torch.ones(8, 1), LogOfFirst(), squared)
    assert rows == tuple(range(8))
    assert columns == ()


def test_rows_of_a_loss_are_found_by_bisection():
    target = torch.ones(8, 1)
    target[[0, 3]] = 0.0

    def relative(outputs, target, inputs):
        assert len(outputs) == len(target) == len(inputs)
        return ((target - target) / target).mean()

    inputs = table()
    found = places("loss", inputs, target, LogOfFirst(), relative)
    assert found == ((0, 3), ())


def test_rows_of_the_failed_operation_are_kept():
    inputs = table()
    inputs[2, 0] = -1.0
    found = places(
        "forward", inputs, torch.ones(8, 1), LogOfFirst(), squared, rows=(2,)
    )
    assert found == ((2,), (0,))
    found = places(
        "backward", inputs, torch.ones(8, 1), LogOfFirst(), squared, rows=(2,)
    )
    assert found == ((2,), ())


class Factor(nn.Module):
    def forward(self, x):
        return torch.linalg.cholesky(torch.diag_embed(x)).sum(-1)


def test_a_decomposition_that_raises_for_most_copies_gives_the_column():
    inputs = table()
    bad = inputs.clone()
    bad[2, 0] = -1.0
    found = places_to_blame(
        "forward", (2,), (bad, torch.ones(8, 3)), None, Factor(), squared
    )
    assert found == ((2,), (0,))


def test_the_search_for_columns_keeps_the_random_state():
    inputs = table()
    inputs[2, 0] = -1.0
    module = nn.Sequential(LogOfFirst(), nn.Dropout(0.5))
    torch.manual_seed(1)
    outputs = module(inputs)
    state = torch.get_rng_state()
    places_to_blame("forward", (), (inputs, None), outputs, module, squared)
    assert torch.equal(torch.get_rng_state(), state)
