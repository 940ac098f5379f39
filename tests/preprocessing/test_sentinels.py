"""Search for sentinels: values that are found, and true values that are not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sknan.inspection import suspected_sentinels, table_sentinels

RNG = np.random.default_rng(0)
AGES = RNG.integers(0, 90, size=1000)
MEASURED = RNG.normal(20, 5, size=1000)
POSITIVE = RNG.lognormal(3, 1, size=1000)


def mixed_with(values, *pairs):
    """Return the values shuffled with other values, each repeated as often as given."""
    others = [np.full(n, value) for value, n in pairs]
    return np.random.default_rng(1).permutation(np.concatenate([values, *others]))


# -- numbers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "sentinel", "count"),
    [
        (AGES, -999, 20),
        (AGES, 999, 5),
        (AGES, -1, 60),
        (AGES, -99, 10),
        (MEASURED, -999.25, 10),
        (MEASURED, -200.0, 30),
        (MEASURED, 1e20, 2),
        (MEASURED, 9.969209968386869e36, 4),
        (MEASURED, 99999.0, 10),
        (POSITIVE, -200.0, 40),
        (RNG.integers(1950, 2020, size=1000), 9999, 5),
        (RNG.integers(0, 2, size=1000), 999, 20),
        (RNG.integers(1, 6, size=1000), 99, 20),
        (RNG.integers(0, 28, size=1000), 999, 9000),
        (np.where(RNG.random(1000) < 0.9, 0, POSITIVE), 99999.0, 10),
        (RNG.integers(0, 100, 1000, dtype=np.int32), -(2**31), 5),
        (RNG.integers(0, 100, 1000), 2**63 - 1, 5),
        (RNG.integers(0, 100, 1000, dtype=np.uint16), 65535, 5),
    ],
)
def test_values_that_repeat_far_from_the_others_are_suspected(values, sentinel, count):
    column = mixed_with(values, (sentinel, count)).astype(values.dtype)
    assert suspected_sentinels(column) == [sentinel]


def test_a_value_that_rounds_to_a_code_is_suspected():
    column = mixed_with(MEASURED, (-999.9, 20)).astype("float32")
    assert suspected_sentinels(column) == [float(np.float32(-999.9))]


def test_related_codes_are_found_the_most_frequent_first():
    survey = mixed_with(AGES, (997, 10), (998, 30), (999, 20))
    assert suspected_sentinels(survey) == [998, 999, 997]
    assert suspected_sentinels(mixed_with(AGES, (-8, 40), (-9, 30))) == [-8, -9]
    assert suspected_sentinels(mixed_with(AGES, (-999, 9), (9999, 8))) == [-999, 9999]


@pytest.mark.parametrize(
    ("values", "count"),
    [
        pytest.param(
            mixed_with(AGES, (99, 20)), 0, id="within the range of the others"
        ),
        pytest.param(
            mixed_with(AGES, (-1, 5)), 0, id="no more frequent than adjacent values"
        ),
        pytest.param(mixed_with(AGES, (999, 2)), 0, id="only twice"),
        pytest.param(mixed_with(MEASURED, (1e20, 1)), 0, id="once"),
        pytest.param(RNG.choice([-1, 0, 1], 500), 0, id="three values"),
        pytest.param(
            np.where(RNG.random(999) < 0.6, 0, 1000 + MEASURED[:999]),
            0,
            id="0 for none",
        ),
        pytest.param(RNG.choice([199, 299, 499, 999, 1999, 9999], 500), 0, id="prices"),
        pytest.param(np.minimum(POSITIVE, 60), 0, id="cut off at a limit"),
        pytest.param(
            mixed_with(RNG.choice([10, 20, 50, 100], 900), (5000, 9)), 0, id="amounts"
        ),
        pytest.param(RNG.lognormal(0, 2, 8000).round(), 0, id="a long tail"),
        pytest.param([0, 999] * 200, 0, id="two values"),
        pytest.param([1, 2, 3, 4, 5, -999, -999, -999], 0, id="too few to tell"),
    ],
)
def test_true_values_are_not_suspected(values, count):
    assert len(suspected_sentinels(values)) == count


def test_a_sentinel_of_other_columns_needs_less_evidence():
    column = mixed_with(RNG.normal(700, 200, 1000).round(), (-200.0, 4))
    assert suspected_sentinels(column) == []
    assert suspected_sentinels(column, known=[-200]) == [-200.0]
    assert suspected_sentinels(MEASURED, known=[-200]) == []
    near = mixed_with(RNG.normal(0, 200, 1000).round(), (-200.0, 4))
    assert suspected_sentinels(near, known=[-200]) == []


def test_sentinels_of_two_columns_are_found_in_a_third():
    X = RNG.normal(20, 5, size=(1000, 4))
    X[:50, :2] = -200
    X[:, 2] = RNG.normal(700, 200, 1000).round()
    X[:4, 2] = -200
    assert table_sentinels(X) == [[-200.0], [-200.0], [-200.0], []]
    assert table_sentinels(X[:, 2:]) == [[], []]
    assert table_sentinels(X[:0]) == [[], [], [], []]


def test_missing_and_infinite_cells_are_ignored():
    column = mixed_with(MEASURED, (-999.0, 20), (np.nan, 50), (np.inf, 30))
    assert suspected_sentinels(column) == [-999.0]
    assert suspected_sentinels(np.full(50, np.nan)) == []
    assert suspected_sentinels([]) == []


def test_a_long_column_is_sampled_but_counted_exactly():
    column = RNG.normal(size=300_000)
    column[::1000] = -999
    column[7] = -998.5  # the sample may not contain this row
    assert suspected_sentinels(column) == []
    column[7] = 0
    assert suspected_sentinels(column) == [-999.0]


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40),
    st.sampled_from(["f8", "f4", "f2"]),
    st.integers(1, 30),
)
@settings(max_examples=100)
def test_a_suspected_value_repeats_in_the_column(values, dtype, n_times):
    with np.errstate(over="ignore"):
        column = np.repeat(np.array(values, dtype=dtype), n_times)
    found = suspected_sentinels(column)
    assert len(set(found)) == len(found)
    for value in found:
        assert np.isfinite(value)
        assert value != 0
        assert (column == value).sum() >= 2


# -- dates and text ------------------------------------------------------------------


def test_the_first_date_of_a_calendar_is_suspected():
    days = pd.date_range("2015-01-01", periods=400)
    column = pd.Series([*days, *[pd.Timestamp("1900-01-01")] * 9])
    assert suspected_sentinels(column) == [pd.Timestamp("1900-01-01")]
    births = pd.Series(pd.date_range("1890-01-01", periods=900, freq="MS"))
    births[:9] = pd.Timestamp("1900-01-01")
    assert suspected_sentinels(births) == []


@pytest.mark.parametrize(
    ("categories", "found"),
    [
        (["1", "2", "?"], ["?"]),
        (["red", "N/A", "blue", " "], ["N/A", " "]),
        (["red", "Unknown", "blue"], ["Unknown"]),
        (["none", "some", "other", "no"], []),
        (["US", "DE", "NA", "FR"], []),
        (["+", "-"], []),
        (["a", "b", "-"], ["-"]),
    ],
)
def test_words_for_missing_values_depend_on_the_other_categories(categories, found):
    column = categories * 5
    assert suspected_sentinels(column) == found
    assert suspected_sentinels(pd.Series(column, dtype="category")) == found
    pl = pytest.importorskip("polars")
    assert suspected_sentinels(pl.Series(column)) == found
    assert suspected_sentinels(pl.Series(column, dtype=pl.Categorical)) == found


def test_a_word_that_occurs_once_is_not_suspected():
    assert suspected_sentinels(["Ann", "Unknown", "Bob", "Cy"] + ["Di"] * 30) == []
