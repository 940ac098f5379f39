"""Checks for finite values, and the wording of their messages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sknan._utils.validation import (
    FLOAT32_MAX,
    FLOAT64_MAX,
    check_finite,
    column_name,
    count_nonfinite,
    did_you_mean,
)
from sknan.exceptions import NonFiniteDataError

REMEDY = "Impute first."
EXTREMES = [0.0, -0.0, 5e-324, FLOAT32_MAX, -FLOAT32_MAX, 1e39, -1e308]

cells = st.floats() | st.sampled_from([*EXTREMES, math.nan, math.inf, -math.inf])
tables = hnp.arrays(
    np.float64, hnp.array_shapes(max_dims=3, min_side=0), elements=cells
)
limits = st.sampled_from([FLOAT32_MAX, FLOAT64_MAX, 1.0])


def message_of(values, **options):
    with pytest.raises(NonFiniteDataError) as caught:
        check_finite(values, **{"name": "X", "remedy": REMEDY, **options})
    return str(caught.value)


@given(tables, limits)
def test_counts_agree_with_numpy(values, limit):
    counts, bad = count_nonfinite(values, limit)
    expected = {
        "NaN": int(np.isnan(values).sum()),
        "inf": int(np.isinf(values).sum()),
        "beyond float32": int(((np.abs(values) > limit) & np.isfinite(values)).sum()),
    }
    assert counts == {kind: count for kind, count in expected.items() if count}
    np.testing.assert_array_equal(bad, ~(np.abs(values) <= limit))


@given(tables, limits)
@example(np.array([math.nan]), FLOAT32_MAX)
@example(np.array([[FLOAT32_MAX, -FLOAT32_MAX]]), FLOAT32_MAX)
@example(np.array([FLOAT64_MAX, FLOAT64_MAX]), FLOAT64_MAX)
def test_a_table_is_refused_if_and_only_if_a_cell_is_not_finite_or_too_large(
    values, limit
):
    if bool((np.abs(values) <= limit).all()):
        check_finite(values, name="X", remedy=REMEDY, limit=limit)
    else:
        message = message_of(values, limit=limit)
        assert message.startswith("X contains ")
        assert message.endswith(REMEDY)


@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.sampled_from([1.0, math.nan, math.inf]),
    ).filter(lambda values: not np.isfinite(values).all())
)
def test_the_message_names_every_column_with_its_count_and_first_row(values):
    bad = ~np.isfinite(values)
    counts = {
        "NaN value": np.isnan(values).sum(),
        "inf value": np.isinf(values).sum(),
    }
    found = " and ".join(
        f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in counts.items() if n
    )
    places = [
        f"{j} ({column.sum()}, first at row {list(column).index(True)})"
        for j, column in enumerate(bad.T)
        if column.any()
    ]
    n_columns = values.shape[1]
    assert message_of(values) == (
        f"X contains {found} in {len(places)} of {n_columns} "
        f"column{'s' if n_columns > 1 else ''}: {', '.join(places)}. Impute first."
    )


def test_one_nan_in_a_table_is_named_by_column_and_row():
    values = np.ones((4, 3))
    values[2, 1] = np.nan
    assert message_of(values, columns=["age", "pay", "size"]) == (
        "X contains 1 NaN value in 1 of 3 columns: 'pay' (1, first at row 2). "
        "Impute first."
    )


def test_all_three_kinds_are_counted():
    values = np.array([[np.nan, 1e39, 1.0], [np.inf, -1e300, 2.0], [np.nan, 3.0, 4.0]])
    assert message_of(values) == (
        "X contains 2 NaN values and 1 inf value and 2 values beyond float32 in 2 of 3 "
        "columns: 0 (3, first at row 0), 1 (2, first at row 0). Impute first."
    )


def test_column_labels_of_other_types_are_quoted_as_strings():
    values = np.array([[np.nan, np.inf]])
    assert message_of(values, columns=[np.int64(7), None]) == (
        "X contains 1 NaN value and 1 inf value in 2 of 2 columns: "
        "'7' (1, first at row 0), 'None' (1, first at row 0). Impute first."
    )


def test_a_long_list_of_columns_is_shortened():
    values = np.full((1, 11), np.nan)
    listed = ", ".join(f"{j} (1, first at row 0)" for j in range(8))
    assert message_of(values) == (
        f"X contains 11 NaN values in 11 of 11 columns: {listed} and 3 more. "
        "Impute first."
    )


def test_eight_columns_are_listed_in_full():
    values = np.full((1, 8), np.nan)
    listed = ", ".join(f"{j} (1, first at row 0)" for j in range(8))
    assert message_of(values) == (
        f"X contains 8 NaN values in 8 of 8 columns: {listed}. Impute first."
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, np.nan], "y contains 1 NaN value at row 1. Impute first."),
        (
            [np.inf, 1.0, -np.inf],
            "y contains 2 inf values at rows 0, 2. Impute first.",
        ),
        (
            [np.nan] * 9,
            "y contains 9 NaN values at rows 0, 1, 2, 3, 4, 5, 6, 7, .... "
            "Impute first.",
        ),
    ],
)
def test_a_vector_is_described_by_rows(values, expected):
    assert message_of(np.array(values), name="y") == expected


def test_an_array_of_more_dimensions_is_described_by_the_first_index():
    values = np.ones((2, 3, 4))
    values[1, 2, 3] = np.nan
    assert message_of(values, name="X['image']") == (
        "X['image'] contains 1 NaN value; the first is at index (1, 2, 3). "
        "Impute first."
    )


def test_a_single_number_is_described_without_a_position():
    assert message_of(np.array(np.nan)) == "X contains 1 NaN value. Impute first."


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("limit", [FLOAT32_MAX, FLOAT64_MAX])
def test_every_float_dtype_of_numpy_is_checked(dtype, limit):
    values = np.array([[1.0, 2.0]], dtype)
    check_finite(values, name="X", remedy=REMEDY, limit=limit)
    values[0, 1] = np.nan
    assert message_of(values, limit=limit) == (
        "X contains 1 NaN value in 1 of 2 columns: 1 (1, first at row 0). Impute first."
    )


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_every_float_dtype_of_torch_is_checked(dtype):
    values = torch.ones(3, 2, dtype=dtype, requires_grad=True)
    check_finite(values, name="X", remedy=REMEDY)
    values = values.detach()
    values[1, 0] = -torch.inf
    assert message_of(values) == (
        "X contains 1 inf value in 1 of 2 columns: 0 (1, first at row 1). Impute first."
    )


@pytest.mark.parametrize(
    "values",
    [
        np.array([[1, 2]]),
        np.array([True]),
        np.array(["nan", "inf"]),
        np.array([None, np.nan], dtype=object),
        torch.tensor([1, 2]),
        torch.zeros(0, 3),
        np.zeros((0, 3)),
        np.zeros((3, 0)),
    ],
)
def test_arrays_of_other_types_and_empty_arrays_pass(values):
    check_finite(values, name="X", remedy=REMEDY)


def test_the_check_does_not_change_the_values():
    values = np.array([[np.nan, 1e39]])
    before = values.copy()
    message_of(values)
    np.testing.assert_array_equal(values, before)


def test_the_largest_float32_passes_and_the_next_float64_does_not():
    check_finite(np.array([[FLOAT32_MAX]]), name="X", remedy=REMEDY)
    beyond = np.nextafter(FLOAT32_MAX, np.inf)
    assert message_of(np.array([[beyond]])) == (
        "X contains 1 value beyond float32 in 1 of 1 column: 0 (1, first at row 0). "
        "Impute first."
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("hubber", " Did you mean 'huber'?"), ("zzz", ""), ("", "")],
)
def test_the_most_similar_name_is_suggested(name, expected):
    assert did_you_mean(name, ["huber", "mse"]) == expected


def test_a_column_is_named_by_its_label_or_its_position():
    assert column_name(1, None) == "1"
    assert column_name(1, ["a", "b"]) == "'b'"
