"""Text with units and separators: read as numbers in one format, or left as it is."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sknan.exceptions import ChangedColumnWarning
from sknan.preprocessing import TableCleaner


def table(cells):
    return pd.DataFrame({"x": pd.Series(cells, dtype=object)})


def kind_of(cells):
    return TableCleaner().fit(table(cells)).kinds_["x"]


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["$1,200", "$950.50", "-$3", "$-4", "$ 5"], [1200, 950.5, -3, -4, 5]),
        (["$5", "5", 5], [5, 5, 5]),
        (["€5", "5 €", "5€"], [5, 5, 5]),
        (["CHF 1'200.50", "350 CHF"], [1200.5, 350]),
        (["Rs. 500", "Rs 1,000"], [500, 1000]),
        (["12 %", "3.5%", "%7"], [12, 3.5, 7]),
        (["(350)", "1,200", "2"], [-350, 1200, 2]),
        (["($3.50)", "$(4)", "$ 5"], [-3.5, -4, 5]),
        (["12 kg", "3 kg"], [12, 3]),
        (["1 year", "3 years"], [1, 3]),
        (["\u22125,5 °C", "21 °C"], [-5.5, 21]),
        (["1 200,50 €", "3,5 €"], [1200.5, 3.5]),
        (["1\u202f200,5", "1\u00a0200", "12 500"], [1200.5, 1200, 12500]),
        (["1.200,00", "350,00"], [1200, 350]),
        (["1.234.567", "2.345"], [1234567, 2345]),
        (["950", "1,200"], [950, 1200]),
        (["1,5E-05", "2,5", "1e3"], [1.5e-5, 2.5, 1000]),
        ([1.234, "1.200,50", 7, "3,5"], [1.234, 1200.5, 7, 3.5]),
        # Three digits after each separator are thousands, unless another cell decides.
        (["1,234", "2,345"], [1234, 2345]),
        (["1,234", "3,5"], [1.234, 3.5]),
        (["1,234", "0,123"], [1.234, 0.123]),
        (["1.234 kg", "5 kg"], [1234, 5]),
        (["1.234 kg", "0.5 kg"], [1.234, 0.5]),
    ],
)
def test_written_numbers_of_one_format_are_numbers(cells, numbers):
    cleaner = TableCleaner(sentinels=None)
    read = cleaner.fit_transform(table(cells * 5))["x"]
    assert cleaner.kinds_ == {"x": "numbers"}
    assert read.tolist() == numbers * 5
    for cell, number in zip(cells, numbers, strict=True):
        assert cleaner.transform(table([cell]))["x"].tolist() == [number]


@pytest.mark.parametrize(
    "cells",
    [
        ["12 kg", "900 g"],
        ["$5", "5 €"],
        ["5 %", "5"],
        ["5 mW", "5 MW"],
        ["$5M", "$600K"],
        ["<5", "7"],
        ["50+", "1,000+"],
        ["3,5", "1,234,567"],
        ["A12", "A7"],
        ["item 7", "item 8"],
        ["007 kg", "008 kg"],
        ["(1)", "(2)"],
        ["10 115", "20 117"],
        ["555 123 456", "555 123 457"],
        ["192.168.100.101", "192.168.100.102"],
    ],
)
def test_text_of_no_common_format_stays_as_it_is(cells):
    assert kind_of(cells * 5) == "categories"


def test_other_cells_are_words_up_to_one_in_ten():
    cells = [*["$1,200", "$3"] * 9, "900 g", "free"]
    cleaner = TableCleaner(sentinels=None)
    read = cleaner.fit_transform(table(cells))
    assert cleaner.kinds_ == {"x": "numbers and words"}
    assert read["x"].tolist()[:18] == [1200, 3] * 9
    assert read["x_word"].tolist()[18:] == ["900 g", "free"]
    assert read.notna().sum().tolist() == [18, 2]
    assert kind_of([*cells, "free"]) == "categories"
    # Plain numbers, of which a few have separators.
    assert kind_of([*map(str, range(950, 999)), "1,200"]) == "numbers"
    assert kind_of([*range(950, 999), "free"]) == "numbers and words"


def test_another_unit_at_predict_time_is_missing_with_a_warning():
    cleaner = TableCleaner().fit(table([f"1.{i},5 €" for i in range(200, 250)]))
    served = table(["1.200 €", "7 $", "3,5", 1.5, None])
    with pytest.warns(ChangedColumnWarning) as caught:
        read = cleaner.transform(served)["x"]
    np.testing.assert_array_equal(read, [1200, np.nan, 3.5, 1.5, np.nan])
    assert [str(warning.message) for warning in caught] == [
        "1 of the 4 values of column 'x' cannot be read as numbers, which it had in "
        "fit, for example '7 $': they count as missing."
    ]
    assert cleaner.transform(pd.DataFrame({"x": [2.5, 3]}))["x"].tolist() == [2.5, 3]


def written(number, decimal, thousands, unit, style):
    """Return a number with all digits that float64 needs, in a format."""
    whole, _, fraction = format(abs(Decimal(repr(number))), "f").partition(".")
    digits = f"{int(whole):,}".replace(",", thousands)
    digits += decimal + fraction if fraction.strip("0") else ""
    is_negative = number < 0
    return style[is_negative].format(digits, unit)


STYLES = [
    ("{0}{1}", "-{0}{1}"),
    ("{0} {1}", "({0} {1})"),
    ("{0}\u00a0{1}", "\u2212{0}\u00a0{1}"),
    ("{1}{0}", "({1}{0})"),
    ("{1} {0}", "-{1} {0}"),
    ("+{1}{0}", "{1}-{0}"),
]
SEPARATORS = [".,", ". ", ".'", ".", ",.", ", ", ",\u202f", ",\u2019", ","]


@settings(max_examples=100)
@given(
    st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=8),
    st.sampled_from(SEPARATORS),
    st.sampled_from(["", "$", "%", "EUR", "kg", "km/h", "R$"]),
    st.sampled_from(STYLES),
)
def test_numbers_in_any_format_are_read_exactly(numbers, separators, unit, style):
    is_prefix = style[0].startswith(("{1}", "+"))
    assume(unit not in ("kg", "km/h") or not is_prefix)
    # Both separators decide which is which.
    numbers = [*(number + 0.0 for number in numbers), 1234567.25, 0.5]
    form = (separators[0], separators[1:], unit, style)
    cells = [written(number, *form).strip() for number in numbers]
    cleaner = TableCleaner(sentinels=None)
    assert cleaner.fit_transform(table(cells))["x"].tolist() == numbers
    assert cleaner.transform(table(cells[-2:]))["x"].tolist() == numbers[-2:]


CODES = [
    "A{0}",
    "{2}-{0}",
    "{0}{2}",
    "{0}{2}{1}",
    "ID{0}",
    "item {0}",
    "No. {0}",
    "#{0}",
    "0{0} kg",
    "1.{0}.{1}",
    "10.{0}.{1}.{0}",
    "{0}:{1:02d}",
    "{0}-{1}",
    "{0}/{1}",
    "{0} {1:02d}",
    "+49 {0} {1:04d}",
    "{0}.{1:03d}.{0:04d}",
    "<{0}",
    "{0}+",
    "{0} x {1}",
]


@settings(max_examples=60)
@given(
    st.sampled_from(CODES),
    st.lists(
        st.tuples(st.integers(1, 99), st.integers(0, 59)), min_size=9, max_size=19
    ),
)
def test_codes_are_no_numbers(pattern, pairs):
    cells = [
        pattern.format(first, second, "ABC"[i % 3])
        for i, (first, second) in enumerate([*pairs, (7, 30)])
    ]
    assert not kind_of(cells).startswith("numbers")
