"""Faults of single columns that an audit finds."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from audit_helpers import N, found_in, kinds_of, normal, objects, rng

from sknan import audit


@pytest.mark.parametrize(
    ("cells", "kind", "evidence"),
    [
        (np.full(N, np.nan), "empty", "'x' (no known value)."),
        (objects(None), "empty", "'x' (no known value)."),
        (objects(pd.NaT, None), "empty", "'x' (no known value)."),
        (np.r_[np.nan, normal(N - 1)], "missing", "'x' (1 of 300)."),
        (pd.array([None, 1, 2] * 100, "Int64"), "missing", "'x' (33 %)."),
        (pd.array([None, 1.5, 2] * 100, "Float64"), "missing", "'x' (33 %)."),
        (objects(None, True, False), "missing", "'x' (33 %)."),
        (pd.Series(["a", None, "b"] * 100), "missing category", "'x' (33 %)."),
        (pd.Categorical(["a", None] * 150), "missing category", "'x' (50 %)."),
        (
            np.r_[np.inf, -np.inf, normal(N - 2)],
            "infinite",
            "'x' (2 of 300, 1 of them negative).",
        ),
        (objects(10**400, *range(9)), "infinite", "'x' (10 %)."),
        (
            np.r_[normal(N - 1), -1e200],
            "beyond float32",
            "'x' (1 of 300, up to 1e+200).",
        ),
        (np.full(N, 7.0), "constant", "'x' (always 7)."),
        (objects("a", None), "constant", "'x' (always 'a' where known)."),
        (np.r_[np.zeros(N - 2), 1, 2], "near-constant", "'x' (0 except in 2 of 300)."),
        (
            np.r_[np.ones(N - 1, bool), False],
            "near-constant",
            "'x' (True except in 1 of 300).",
        ),
        (
            objects(1, "a", 2.5, True, None),
            "mixed types",
            "'x' (120 numbers, 60 strings, 60 flags).",
        ),
        (objects([1], {"a": 2}, None), "nested", "'x' (200 cells)."),
        (normal() + 1j, "complex", "'x' (300 cells)."),
        (
            np.r_[normal(N - 1), 30.0],
            "lone outlier",
            "'x' (30 is 21 IQRs beyond the quartiles, the next value is 3.066).",
        ),
        (normal() ** 5, "heavy tail", "'x' (-289.2 is 901 IQRs beyond the quartiles)."),
        (
            1e9 + normal(),
            "float32 precision",
            "'x' (interquartile range 1.386, float32 spacing 64).",
        ),
        (np.arange(N), "identifier", "'x' (0 to 299, in order)."),
        (rng().permutation(N), "identifier", "'x' (0 to 299, all different)."),
        (
            np.cumsum(rng().integers(1, 9, N)).astype("u4"),
            "identifier",
            "'x' (7 to 1417, in order).",
        ),
        (
            [f"u{i}" for i in range(N)],
            "identifier",
            "'x' (such as 'u0', all different).",
        ),
        (
            pd.date_range("2020-01-01", periods=N),
            "dates",
            "'x' (2020-01-01 to 2020-10-26).",
        ),
    ],
)
def test_a_fault_of_one_column_is_found(cells, kind, evidence):
    assert found_in(cells)[kind] == evidence


TEXTS = {
    "numbers as text": [f"{value:.2f}" for value in normal()],
    "written numbers": [f"${value:,.2f}" for value in rng().lognormal(size=N)],
    "unclear numbers": [f"{value} {'kg' if value % 3 else 'g'}" for value in range(N)],
    "numbers and words": [*(f"{value:.2f}" for value in normal(N - 9)), *["low"] * 9],
    "codes": [f"{value:05d}" for value in rng().integers(0, 99999, N)],
    "dates as text": [f"{day:%Y-%m-%d}" for day in pd.date_range("2020", periods=N)],
    "times as text": [f"{hour}:30" for hour in rng().integers(0, 24, N)],
    "many levels": [f"word {value}" for value in rng().integers(0, 50, N)],
    "spelling": rng().choice(["Yes", "yes ", "no"], N),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_the_format_of_text_is_recognized(kind, library):
    pl = pytest.importorskip("polars")
    make = {"pandas": pd.DataFrame, "polars": pl.DataFrame}[library]
    frame = make({"x": TEXTS[kind], "other": normal()})
    assert list(kinds_of(frame)) == [kind]
    assert (audit(frame).to_frame("columns")["dtype"][0]) in ("object", "str", "String")


@pytest.mark.parametrize(
    ("cells", "evidence"),
    [
        ([f"{i % 28 + 1}.{i % 12 + 1}.2020" for i in range(N)], "such as '1.1.2020'"),
        (
            [f"0{i % 9 + 1}/0{i % 5 + 1}/2020" for i in range(N)],
            "such as '01/01/2020': day first or month first?",
        ),
        (
            [f"{i % 28 + 1} Mar 2020 10:00" for i in range(N)],
            "such as '1 Mar 2020 10:00'",
        ),
        (
            [*(f"2020-03-{i % 28 + 1:02d}" for i in range(N - 9)), *["not yet"] * 9],
            "97 % dates such as '2020-03-01', others 'not yet'",
        ),
    ],
)
def test_the_order_of_day_and_month_is_questioned_if_ambiguous(cells, evidence):
    assert found_in(cells) == {"dates as text": f"'x' ({evidence})."}


@pytest.mark.parametrize(
    "cells",
    [
        rng().choice(["36 months", "5 years"], N),
        rng().choice(["0-9", "10-19", "20-29"], N),
        rng().choice([f"{i}{c}" for i in range(9) for c in "abcd"], N),
        rng().choice(["1.2.3", "1.10.0"], N),
        rng().choice(["none", "some"], N),
    ],
)
def test_categories_that_look_like_numbers_or_dates_are_no_fault(cells):
    assert found_in(cells) == {}


def test_sentinels_are_found_among_numbers_as_text():
    cells = [str(value) for value in rng().integers(5, 50, N)]
    cells[:15] = ["-999"] * 15
    cells[20:23] = ["?"] * 3
    assert found_in(cells) == {
        "numbers as text": "'x' (such as '-999').",
        "sentinel": "'x' (-999 in 5 %).",
        "word for missing": "'x' ('?' in 1 %).",
    }


@pytest.mark.parametrize(
    ("cells", "evidence"),
    [
        (["1.200,50 €", "3,5 €"], "such as '1.200,50 €', read as 1200"),
        (["36 months", "60 months"], "such as '36 months', read as 36"),
        (
            [*["12 kg", "7 kg"] * 9, "900 g", "7"],
            "95 % numbers such as '12 kg', read as 12, others '900 g'",
        ),
    ],
)
def test_written_numbers_are_shown_as_they_are_read(cells, evidence):
    assert found_in(cells * 15)["written numbers"] == f"'x' ({evidence})."


def test_sentinels_are_found_among_written_numbers():
    cells = [f"${value}.50" for value in rng().integers(5, 50, N)]
    cells[:15] = ["-$999"] * 15
    assert found_in(cells)["sentinel"] == "'x' (-999 in 5 %)."


def test_long_text_is_cut_off():
    assert found_in(["a" * 1000] * N) == {
        "constant": "'x' (always 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...')."
    }


def test_outliers_of_a_column_that_is_mostly_zero_are_those_of_its_other_values():
    cells = np.where(np.arange(N) % 5, 0.0, 100 + normal())
    assert "heavy tail" not in found_in(cells)
    cells[5] = 190.0
    assert found_in(cells)["lone outlier"].startswith("'x' (190 is ")
    assert (
        "IQRs beyond the quartiles of values other than 0, the next value is 10"
        in found_in(cells)["lone outlier"]
    )


def test_a_column_of_decimals_holds_numbers():
    cells = objects(*(Decimal(i) / 7 for i in range(40)))
    assert (
        audit(pd.DataFrame({"x": cells})).to_frame("columns")["holds"][0] == "numbers"
    )


def test_a_signaling_nan_of_a_decimal_is_missing():
    # Comparing it with anything raises, itself included.
    cells = objects(*(Decimal(i) / 7 for i in range(39)), Decimal("sNaN"))
    assert "missing" in found_in(cells)
