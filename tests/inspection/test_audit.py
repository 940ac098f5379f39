"""What is found in tables with real faults, and how it is told."""

from __future__ import annotations

import datetime
import json
import pickle
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from sknan import audit
from sknan.inspection import table_sentinels
from sknan.inspection._audit._remedies import REMEDIES

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SUITE = DATA / "datasets.json"
TABLES = json.loads(SUITE.read_text())["datasets"] if SUITE.exists() else []

N = 300


def rng():
    return np.random.default_rng(0)


def normal(n=N):
    return rng().normal(size=n)


def objects(*cells, n=N):
    column = np.empty(n, dtype=object)
    column[:] = (list(cells) * n)[:n]
    return column


def kinds_of(X, y=None, where="X", **options):
    """Kind of each finding, with its evidence."""
    found = audit(X, y, **options)
    return {f.kind: f.evidence for f in found if f.where == where}


def found_in(cells):
    """What is found in one column beside a sound one."""
    frame = pd.DataFrame({"x": cells, "other": normal(len(cells))})
    return {f.kind: f.evidence for f in audit(frame) if f.columns != ("other",)}


# -- the whole of it -----------------------------------------------------------------


def damaged():
    frame = pd.DataFrame(
        {
            "age": rng().integers(18, 90, size=N).astype(float),
            "pay": rng().lognormal(3, 1, size=N),
            "rate": [f"{value:.1f}" for value in normal()],
            "town": rng().choice(["Rome", "Oslo", "?"], size=N),
        }
    )
    frame.loc[:29, "age"] = -999
    frame.loc[40:59, "age"] = np.nan
    frame.loc[3, "pay"] = np.inf
    frame.loc[4, "pay"] = 1e200
    frame["wage"] = frame["pay"]
    return frame


TEXT = """\
300 rows, 5 columns: 3 of numbers, 2 of text. Target: 2 classes, 'yes' the
rarest (5 %).

Breaks training
  missing: 'age' (6.7 %).
      -> tabular_pipeline fills in the median, and says where by indicator
         columns.
  infinite: 2 columns: 'pay' (1 of 300), 'wage' (1 of 300).
      -> tabular_pipeline counts infinities as missing.
  beyond float32: 2 columns: 'pay' (1 of 300, up to 1e+200), 'wage' (1 of 300,
      up to 1e+200).
      -> They become infinite in float32; tabular_pipeline counts them as
         missing.
  numbers as text: 'rate' (such as '-0.5').
      -> tabular_pipeline reads them as numbers.

Hurts
  target imbalance: 'no' in 95 %, 'yes' in 5 %.
      -> Stratify splits, score by average precision or log-loss instead of
         accuracy, and try class_weight='balanced'.
  sentinel: 'age' (-999 in 10 %).
      -> tabular_pipeline(sentinels='auto') counts them as missing: see that
         they are.

Notice
  word for missing: 'town' ('?' in 38 %).
      -> tabular_pipeline(sentinels='auto') counts them as missing.
  duplicated column: 'wage' (equals 'pay').
      -> Leave them out: the others say as much."""


def test_an_audit_prints_what_where_how_bad_and_what_is_done():
    y = np.where(np.arange(N) < 15, "yes", "no")
    found = audit(damaged(), y)
    assert str(found) == TEXT
    assert repr(found) == TEXT


def test_a_sound_table_is_called_so():
    found = audit(rng().normal(size=(N, 3)), np.arange(N) % 2)
    assert str(found) == (
        "300 rows, 3 columns: 3 of numbers. Target: 2 classes, 0 the rarest (50 %).\n"
        "Nothing found that would break or hurt training."
    )
    assert len(found) == 0
    assert found  # an audit all the same
    assert found.to_frame().empty


def test_the_table_for_notebooks_escapes_and_names_no_colour():
    frame = pd.DataFrame({"<b>": objects(None, "<i>", "a")})
    html = audit(frame)._repr_html_()
    assert "&#x27;&lt;b&gt;&#x27; (33 %)." in html
    assert "<b>missing category</b>" in html
    assert "<i>" not in html
    assert "color" not in html
    assert "background" not in html
    assert "<table>" not in audit(rng().normal(size=(N, 3)))._repr_html_()


def test_the_findings_as_a_frame_have_a_row_for_each_column():
    frame = audit(damaged()).to_frame()
    assert list(frame.columns) == [
        *("severity", "where", "kind", "column", "position", "value", "detail"),
        *("action", "by_pipeline"),
    ]
    infinite = frame[frame["kind"] == "infinite"]
    assert infinite["column"].tolist() == ["pay", "wage"]
    assert infinite["position"].tolist() == [1, 4]
    assert infinite["value"].tolist() == [1.0, 1.0]
    assert infinite["by_pipeline"].all()
    assert set(frame.loc[frame["severity"] == "notice", "kind"]) == {
        *("word for missing", "duplicated column"),
    }


def test_the_columns_as_a_frame_have_their_figures():
    frame = audit(damaged()).to_frame("columns").set_index("column")
    age, pay = frame.loc["age"], frame.loc["pay"]
    assert (age["missing"], pay["infinite"]) == (20 / N, 1 / N)
    assert pay["beyond_float32"] == 1 / N
    assert age["sentinels"] == [-999.0]
    known = damaged()["age"].where(damaged()["age"] > 0)
    assert age["low"] == known.min()
    assert age["high"] == known.max()
    assert age["median"] == known.median()
    assert (age["severity"], frame.loc["town", "severity"]) == (
        "breaks training",
        "notice",
    )
    assert age["kinds"] == ["missing", "sentinel"]
    assert frame.loc["town", "holds"] == "text"


def test_a_finding_says_it_in_one_sentence():
    finding = next(f for f in audit(damaged()) if f.kind == "infinite")
    assert str(finding) == (
        "infinite: 2 columns: 'pay' (1 of 300), 'wage' (1 of 300). tabular_pipeline "
        "counts infinities as missing."
    )
    assert finding.columns == ("pay", "wage")
    assert finding._repr_html_().startswith("<p>breaks training: infinite: 2 columns")


def test_findings_are_sorted_and_filtered_by_severity():
    found = audit(damaged())
    order = [f.severity for f in found]
    assert order == sorted(order, key=["breaks training", "hurts", "notice"].index)
    hurting = found.of_severity("hurts")
    assert [f.kind for f in hurting] == ["sentinel"]


def test_of_many_columns_the_worst_are_named_and_the_others_counted():
    X = rng().normal(size=(N, 12))
    for j in range(10):
        X[: 10 * (j + 1), j] = np.nan
    assert kinds_of(X) == {
        "missing": "10 columns: 9 (33 %), 8 (30 %), 7 (27 %), 6 (23 %), 5 (20 %) and "
        "5 more columns."
    }
    found = audit(X).findings[0]
    assert found.columns == (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)


def test_the_sentinels_of_an_audit_are_those_of_the_table():
    frame = damaged()
    frame["code"] = np.where(np.arange(N) < 20, 9999, rng().integers(0, 50, N))
    assert audit(frame).sentinels == {"age": [-999.0], "town": ["?"], "code": [9999]}
    by_column = dict(zip(frame, table_sentinels(frame), strict=True))
    assert {k: v for k, v in by_column.items() if v} == audit(frame).sentinels


def test_an_audit_changes_nothing_and_can_be_pickled():
    frame, y = damaged(), pd.Series(normal())
    before = frame.copy(), y.copy()
    found = audit(frame, y)
    pd.testing.assert_frame_equal(frame, before[0])
    pd.testing.assert_series_equal(y, before[1])
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert str(again) == str(found)


def test_every_remedy_says_who_acts():
    for remedies in REMEDIES.values():
        for kind, remedy in remedies.items():
            does = remedy.action.startswith(
                ("tabular_pipeline", "StableNetRegressor", "Nothing can", "They become")
            )
            assert does == remedy.by_pipeline, kind
            assert remedy.action.endswith((".", "?"))


# -- columns -------------------------------------------------------------------------


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
        (np.r_[np.zeros(N - 2), 1, 2], "near-constant", "'x' (0 but for 2 of 300)."),
        (
            np.r_[np.ones(N - 1, bool), False],
            "near-constant",
            "'x' (True but for 1 of 300).",
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
            "'x' (30 is 21 IQRs out, the next one is 3.066).",
        ),
        (normal() ** 5, "heavy tail", "'x' (-289.2 is 901 IQRs out)."),
        (
            1e9 + normal(),
            "float32 precision",
            "'x' (quartiles 1.386 apart, float32 steps 64 there).",
        ),
        (np.arange(N), "identifier", "'x' (0 to 299, in order)."),
        (rng().permutation(N), "identifier", "'x' (0 to 299, never the same)."),
        (
            np.cumsum(rng().integers(1, 9, N)).astype("u4"),
            "identifier",
            "'x' (7 to 1417, in order).",
        ),
        ([f"u{i}" for i in range(N)], "identifier", "'x' ('u0', never the same)."),
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
    "written numbers": [f"${value:,.2f}" for value in rng().lognormal(8, 1, N)],
    "numbers and words": [*(f"{value:.2f}" for value in normal(N - 9)), *["low"] * 9],
    "codes": [f"{value:05d}" for value in rng().integers(0, 99999, N)],
    "dates as text": [f"{day:%Y-%m-%d}" for day in pd.date_range("2020", periods=N)],
    "times as text": [f"{hour}:30" for hour in rng().integers(0, 24, N)],
    "many levels": [f"word {value}" for value in rng().integers(0, 50, N)],
    "spelling": rng().choice(["Yes", "yes ", "no"], N),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_text_is_read_as_what_it_is(kind, library):
    pl = pytest.importorskip("polars")
    make = {"pandas": pd.DataFrame, "polars": pl.DataFrame}[library]
    frame = make({"x": TEXTS[kind], "other": normal()})
    assert list(kinds_of(frame)) == [kind]
    assert (audit(frame).to_frame("columns")["dtype"][0]) in ("str", "String")


@pytest.mark.parametrize(
    ("cells", "evidence"),
    [
        ([f"{i % 28 + 1}.{i % 12 + 1}.2020" for i in range(N)], "such as '1.1.2020'"),
        (
            [f"0{i % 9 + 1}/0{i % 5 + 1}/2020" for i in range(N)],
            "such as '01/01/2020': the day or the month first?",
        ),
        (
            [f"{i % 28 + 1} Mar 2020 10:00" for i in range(N)],
            "such as '1 Mar 2020 10:00'",
        ),
    ],
)
def test_dates_that_can_be_read_in_two_ways_are_asked_about(cells, evidence):
    assert found_in(cells) == {"dates as text": f"'x' ({evidence})."}


@pytest.mark.parametrize(
    "cells",
    [
        rng().choice(["36 months", "60 months"], N),
        rng().choice(["0-9", "10-19", "20-29"], N),
        rng().choice([f"{i}{c}" for i in range(9) for c in "abcd"], N),
        rng().choice(["1.2.3", "1.10.0"], N),
        rng().choice(["none", "some"], N),
    ],
)
def test_categories_are_left_alone(cells):
    assert found_in(cells) == {}


def test_numbers_as_text_have_sentinels_and_tails_too():
    cells = [str(value) for value in rng().integers(5, 50, N)]
    cells[:15] = ["-999"] * 15
    cells[20:23] = ["?"] * 3
    assert found_in(cells) == {
        "numbers as text": "'x' (such as '-999').",
        "sentinel": "'x' (-999 in 5 %).",
        "word for missing": "'x' ('?' in 1 %).",
    }


def test_long_text_is_cut_off():
    assert found_in(["a" * 1000] * N) == {
        "constant": "'x' (always 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...')."
    }


def test_what_is_nearly_always_zero_is_judged_by_what_it_is_otherwise():
    cells = np.where(np.arange(N) % 5, 0.0, 100 + normal())
    assert "heavy tail" not in found_in(cells)
    cells[5] = 190.0
    assert found_in(cells)["lone outlier"].startswith("'x' (190 is ")
    assert (
        "IQRs out of what is not 0, the next one is 10"
        in (found_in(cells)["lone outlier"])
    )


def test_a_column_of_decimals_is_one_of_numbers():
    cells = objects(*(Decimal(i) / 7 for i in range(40)))
    assert (
        audit(pd.DataFrame({"x": cells})).to_frame("columns")["holds"][0] == "numbers"
    )


# -- the table -----------------------------------------------------------------------


def test_columns_that_are_others_in_other_words_are_copies():
    level = rng().choice(["low", "mid", "top"], N)
    frame = pd.DataFrame(
        {
            "level": level,
            "rank": pd.Series(level).map({"low": 1, "mid": 2, "top": 3}),
            "x": normal(),
            "again": normal(),
            "nearly": np.r_[normal()[:-1], 0.0],
        }
    )
    assert kinds_of(frame) == {
        "duplicated column": "2 columns: 'level' ('rank' in other words), 'again' "
        "(equals 'x')."
    }


def test_numbers_are_no_copies_of_each_other_in_other_words():
    group = rng().integers(0, 5, N)
    means = rng().normal(size=(3, 5))
    frame = pd.DataFrame({"a": means[0][group], "b": means[1][group]})
    assert kinds_of(frame) == {}


def test_rows_that_repeat_are_counted_and_their_targets_compared():
    frame = pd.DataFrame({"x": normal(), "t": rng().choice(["a", "b"], N)})
    frame.iloc[-10:] = frame.iloc[:10].to_numpy()
    assert kinds_of(frame) == {"duplicated rows": "3.3 %."}
    y = np.arange(N) % 2
    assert kinds_of(frame, y) == {"duplicated rows": "3.3 %."}
    y[-1] = 1 - y[-1]
    assert kinds_of(frame, y) == {
        "duplicated rows": "3.3 %; 2 rows with an equal of another target."
    }


def test_copies_that_cannot_be_avoided_are_not_told():
    assert kinds_of(rng().integers(0, 2, size=(N, 3))) == {}


def test_names_must_be_strings_of_their_own():
    frame = pd.DataFrame(rng().normal(size=(N, 3)), columns=["a", "b", "a"])
    assert kinds_of(frame) == {"column names": "'a' (the name of column 0 too)."}
    frame.columns = ["a", 1, None]
    assert kinds_of(frame) == {
        "column names": "2 columns: 1 (a name of type int), None (a name of type "
        "NoneType)."
    }
    frame.columns = [5, 6, 7]
    assert kinds_of(frame) == {}


def test_columns_of_different_scale_are_compared():
    X = rng().normal(size=(N, 2)) * [1, 1e5]
    assert kinds_of(X) == {"scale": "quartiles lie 1.443 apart in 0, 1.266e+05 in 1."}
    assert kinds_of(X[:, 1:]) == {"scale": "quartiles of up to 6.758e+04 in 0."}


def test_a_table_without_rows_or_columns_says_so():
    assert str(audit(np.zeros((0, 3)))) == (
        "0 rows, 3 columns.\n\nBreaks training\n  no data: 0 rows, 3 columns.\n"
        "      -> Pass a table with at least one row and one column."
    )
    assert kinds_of(pd.DataFrame({"a": []}), []) == {"no data": "0 rows, 1 column."}
    assert kinds_of(pd.DataFrame(index=range(3)), [0, 1, 0]) == {
        "no data": "3 rows, 0 columns."
    }
    assert len(audit(pd.DataFrame({"a": []})).to_frame("columns")) == 0


def test_more_columns_than_rows_are_pointed_out():
    assert kinds_of(rng().normal(size=(30, 40))) == {
        "more columns than rows": "40 columns, 30 rows."
    }


# -- the target ----------------------------------------------------------------------


def kinds_of_target(y, **options):
    return kinds_of({"x": normal(len(y))}, y, where="y", **options)


@pytest.mark.parametrize(
    ("y", "kind", "evidence"),
    [
        (np.r_[np.nan, normal(N - 1)], "missing", "1 of 300."),
        (objects("a", "b", None), "missing", "33 %."),
        (np.r_[np.inf, normal(N - 1)], "infinite", "1 of 300."),
        (np.r_[np.inf, np.arange(N - 1) % 2], "infinite", "1 of 300."),
        (np.r_[1e39, normal(N - 1)], "beyond float32", "1 of 300, up to 1e+39."),
        (np.full(N, 3.5), "constant", "always 3.5."),
        (np.full(N, "a"), "constant", "always 'a'."),
        (np.r_[np.full(9, -999.0), normal(N - 9)], "sentinel", "-999 in 3 %."),
        (
            [*["?"] * 9, *rng().choice(["a", "b"], N - 9)],
            "sentinel",
            "'?' in 3 %.",
        ),
        (
            ["a", "b", *["c", "d"] * 149],
            "single-member classes",
            "2 of 4: 'a', 'b'.",
        ),
        (["b"] * 4 + ["c"] * (N - 4), "rare classes", "1 of 2: 'b'."),
        (
            np.r_[np.ones(20, int), np.zeros(N - 20, int)],
            "imbalance",
            "0 in 93 %, 1 in 6.7 %.",
        ),
        (
            [f"name {i}" for i in range(N)],
            "nearly all distinct",
            "300 classes in 300 rows.",
        ),
        (np.exp(normal()), "skew", "skewness 4.521."),
        (normal() ** 5, "heavy tail", "-289.2 is 901 IQRs out."),
        (np.where(np.arange(N) % 3, np.exp(normal()), 0), "one value", "0 in 33 %."),
        (normal() * 1e5, "scale", "median -7652, quartiles 1.386e+05 apart."),
        ([f"{value:.2f}" for value in normal()], "numbers as text", "such as '0.13'."),
        (pd.date_range("2020", periods=N), "not learnable", "it holds dates."),
        (objects(1, "a"), "not learnable", "it holds mixed types."),
        (objects([1], [2]), "not learnable", "it holds nested."),
    ],
)
def test_a_fault_of_the_target_is_found(y, kind, evidence):
    assert kinds_of_target(y)[kind] == evidence


@pytest.mark.parametrize(
    ("y", "summary"),
    [
        (np.arange(N) % 3, "3 classes, 0 the rarest (33 %)"),
        (np.arange(N) % 2 > 0, "2 classes, False the rarest (50 %)"),
        (pd.array([True, None, False] * 100), "2 classes, True the rarest (50 %)"),
        (pd.Categorical(["a", "b", "b"] * 100), "2 classes, 'a' the rarest (33 %)"),
        (rng().integers(0, 25, N), "0 to 24, regression"),
        (np.arange(N) % 2 + 0.5, "0.5 to 1.5, regression"),
        (np.full(N, np.nan), "nothing known"),
    ],
)
def test_the_task_is_told_from_the_target(y, summary):
    frame = pd.DataFrame({"x": normal()})
    assert f"Target: {summary}." in audit(frame, y).summary


def test_the_task_can_be_given():
    y = np.arange(N) % 5
    assert "regression" in audit({"x": normal()}, y, task="regression").summary
    assert kinds_of_target(["a", "b"] * 9, task="regression") == {
        "not learnable": "it holds text."
    }
    y = rng().integers(0, 25, N)
    assert "25 classes" in audit({"x": normal()}, y, task="classification").summary
    with pytest.raises(ValueError, match="task must be one of") as caught:
        audit({"x": normal()}, y, task="regresion")
    assert str(caught.value) == (
        "task must be one of 'auto', 'classification', 'regression', got 'regresion'. "
        "Did you mean 'regression'?"
    )


def test_the_target_may_be_a_column_by_name():
    frame = damaged()
    apart = audit(frame.drop(columns="town"), frame["town"])
    assert audit(frame, "town").summary == apart.summary
    pl = pytest.importorskip("polars")
    assert audit(pl.from_dicts(frame.to_dict("records")), "town").summary == (
        apart.summary
    )


def test_several_targets_are_looked_at_one_by_one():
    y = pd.DataFrame({"a": normal() * 1e5, "b": np.arange(N) % 2})
    found = audit({"x": normal()}, y)
    assert found.summary == (
        "300 rows, 1 column: 1 of numbers. Target: -3.106e+05 to 3.066e+05, "
        "regression; 2 classes, 0 the rarest (50 %)."
    )
    assert [str(f) for f in found] == [
        "target scale: 'a' (median -7652, quartiles 1.386e+05 apart). "
        "StableNetRegressor standardises y and answers in its units; other networks "
        "need TransformedTargetRegressor."
    ]
    assert found.findings[0].columns == ("a",)


def test_missing_cells_that_go_with_the_target_are_found():
    y = normal()
    x = rng().permutation(y)
    holes = x.copy()
    holes[(y > 0) & (np.arange(N) % 3 > 0)] = np.nan
    assert kinds_of({"x": holes}, y)["missing goes with the target"].startswith(
        "'x' (y"
    )
    labels = np.where(y > 0, "up", "down")
    assert kinds_of({"x": holes}, labels)["missing goes with the target"] == (
        "'x' (in 69 % of 'up', 0 % of others)."
    )
    told = np.where(y > 0, np.nan, x)
    assert kinds_of({"x": told}, labels)["missing tells the target"] == (
        "'x' (in 100 % of 'up', 0 % of others)."
    )
    assert "missing tells the target" in kinds_of({"x": told}, y)
    blind = np.where(np.arange(N) % 3 == 0, np.nan, x)
    assert list(kinds_of({"x": blind}, labels)) == ["missing"]
    assert list(kinds_of({"x": blind}, y)) == ["missing"]


def test_a_column_that_is_known_only_where_the_target_is_may_be_made_from_it():
    y = normal()
    y[:40] = np.nan
    frame = pd.DataFrame({"tax": np.where(np.isnan(y), np.nan, rng().random(N))})
    assert kinds_of(frame, y) == {
        "missing": "'tax' (13 %).",
        "missing with the target": "'tax' (100 % of the rows where either is missing).",
    }


def test_a_column_that_is_the_target_again_is_found():
    y = normal()
    frame = pd.DataFrame({"x": rng().permutation(y), "y": y, "exp": np.exp(y)})
    assert kinds_of(frame, y)["copy of the target"] == (
        "2 columns: 'y' (equal to it), 'exp' (in the very order)."
    )
    labels = np.where(y > 0, "up", "down")
    frame = pd.DataFrame({"x": rng().permutation(y), "up": y > 0})
    assert kinds_of(frame, labels) == {"copy of the target": "'up' (class by class)."}


# -- all kinds of tables -------------------------------------------------------------


def test_the_same_table_in_other_forms_is_found_the_same():
    X = rng().normal(size=(N, 3))
    X[:20, 1] = np.nan
    X[3, 2] = np.inf
    expected = {"missing": "1 (6.7 %).", "infinite": "2 (1 of 300)."}
    pl = pytest.importorskip("polars")
    named = pl.DataFrame({str(j): X[:, j] for j in range(3)})
    assert kinds_of(X) == expected
    assert kinds_of(np.asfortranarray(X)) == expected
    assert kinds_of(X.astype("float32")) == expected
    assert kinds_of(X.astype(object)) == expected
    assert kinds_of(X.tolist()) == expected
    assert kinds_of(pd.DataFrame(X)) == expected
    assert kinds_of(named) == {"missing": "'1' (6.7 %).", "infinite": "'2' (1 of 300)."}
    assert kinds_of(sparse.csr_matrix(X)) == expected


def test_zeros_of_a_sparse_matrix_are_values():
    X = sparse.random_array((N, 4), density=0.05, rng=0, format="lil")
    X[:10, 1] = -999
    X[:, 2] = 0
    X[5, 2] = 3.0
    X[:, 3] = 0
    X[0, 0] = np.nan
    assert kinds_of(X.tocsr()) == {
        "missing": "0 (1 of 300).",
        "sentinel": "1 (-999 in 3.3 %).",
        "constant": "3 (always 0).",
    }
    flags = np.eye(40, 3, dtype=bool)
    flags[0, 0] = False
    assert kinds_of(sparse.csr_matrix(flags)) == {"constant": "0 (always 0)."}


def test_lists_of_rows_and_of_records_are_tables():
    rows = [[i, "a" if i % 3 else None] for i in range(60)]
    expected = "1 (33 %)."
    assert kinds_of(rows)["missing category"] == expected
    records = [{"n": i, "t": t} for i, t in rows]
    assert kinds_of(records)["missing category"] == "'t' (33 %)."


RESHAPE = (
    "Reshape your data: X.reshape(-1, 1) if it is one column, X.reshape(1, -1) if it "
    "is one row."
)
NO_TABLE = "Pass a DataFrame, an array or a list of rows."


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (3, TypeError, f"audit takes a table, got int. {NO_TABLE}"),
        ("x", TypeError, f"audit takes a table, got str. {NO_TABLE}"),
        (
            np.zeros(3),
            ValueError,
            f"audit takes a table with rows and columns, got 1 dimension. {RESHAPE}",
        ),
        (
            [1, 2],
            ValueError,
            f"audit takes a table with rows and columns, got 1 dimension. {RESHAPE}",
        ),
        (
            np.zeros((2, 2, 2)),
            ValueError,
            f"audit takes a table with rows and columns, got 3 dimensions. {RESHAPE}",
        ),
    ],
)
def test_what_is_no_table_is_refused(X, error, message):
    with pytest.raises(error) as caught:
        audit(X)
    assert str(caught.value) == message


def test_what_is_no_table_in_memory_is_refused():
    pl = pytest.importorskip("polars")
    with pytest.raises(TypeError) as caught:
        audit(pl.LazyFrame({"a": [1]}))
    assert str(caught.value) == (
        "audit takes a table in memory, got a polars LazyFrame. Pass X.collect() of a "
        "LazyFrame, X.to_frame() of a Series."
    )


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1, 2], "X has 300 rows, and y has 2. Pass one target for each row."),
        (
            "payd",
            "y='payd' is no column of X. Did you mean 'pay'? Pass the name of a "
            "column, or the target itself.",
        ),
        ("age", "y='age' is the name of columns 0, 1. Pass the target itself."),
    ],
)
def test_a_target_that_does_not_fit_is_refused(y, message):
    frame = pd.DataFrame(rng().normal(size=(N, 3)), columns=["age", "age", "pay"])
    with pytest.raises(ValueError, match=r"y|columns") as caught:
        audit(frame, y)
    assert str(caught.value) == message


def test_a_target_that_is_none_is_refused():
    with pytest.raises(TypeError) as caught:
        audit(np.zeros((3, 2)), 5)
    assert str(caught.value) == (
        "y is the target of each row, or the name of a column, got int. Pass a Series, "
        "an array or a list."
    )


def test_a_name_needs_a_table_with_names():
    with pytest.raises(ValueError, match="no column names") as caught:
        audit(np.zeros((3, 2)), "pay")
    assert str(caught.value) == (
        "y='pay' is no column of X. X has no column names. Pass the name of a column, "
        "or the target itself."
    )


def test_of_a_long_table_a_sample_tells_shapes_and_all_rows_are_counted():
    n = 100_000
    frame = pd.DataFrame({"x": rng().normal(size=n), "t": rng().choice(["a", "b"], n)})
    frame.loc[[17, 18], "x"] = [np.nan, np.inf]
    frame.loc[1000:1099, "x"] = -999
    frame.loc[n - 1, "t"] = None
    frame.loc[n - 2] = frame.loc[n - 3].to_numpy()
    frame["y"] = np.arange(n) % 2
    found = audit(frame, "y")
    assert found.summary == (
        "100 000 rows, 2 columns: 1 of numbers, 1 of text. Target: 2 classes, 0 the "
        "rarest (50 %). Quartiles, levels and formats are those of 65 536 rows."
    )
    assert {f.kind: f.evidence for f in found} == {
        "missing": "'x' (1 of 100 000).",
        "infinite": "'x' (1 of 100 000).",
        "sentinel": "'x' (-999 in 0.1 %).",
        "missing category": "'t' (1 of 100 000).",
        "duplicated rows": found.findings[-1].evidence,
    }
    frame = frame.drop(index=range(1000, 1100))
    assert kinds_of(frame, "y")["duplicated rows"] == (
        "1 of 99 900; 2 rows with an equal of another target."
    )


DTYPES = {
    "float": st.floats(),
    "huge": st.floats(allow_nan=False),
    "int": st.integers(-(2**63), 2**63 - 1),
    "flag": st.booleans(),
    "text": st.text(max_size=5),
    "word": st.sampled_from(
        ["?", "", "NA", "unknown", "1", "-999", "2020-01-01", "1,5"]
    ),
    "date": st.datetimes(),
    "day": st.dates(),
    "span": st.timedeltas(datetime.timedelta(-99), datetime.timedelta(99)),
    "complex": st.complex_numbers(),
    "decimal": st.decimals(),
    "list": st.lists(st.integers(0, 9), max_size=2),
    "any": st.one_of(
        st.none(),
        st.integers(),
        st.floats(),
        st.text(max_size=3),
        st.booleans(),
        st.binary(max_size=2),
        st.dates(),
    ),
}
POLARS = ("float", "huge", "int", "flag", "text", "word", "date", "day", "span", "list")


@st.composite
def columns(draw, kinds=tuple(DTYPES)):
    """Lists of cells, all of one length, some of them missing."""
    n_rows = draw(st.integers(0, 25))
    n_times = draw(st.sampled_from([1, 1, 9]))
    chosen = draw(st.lists(st.sampled_from(kinds), max_size=4))
    made = []
    for kind in chosen:
        cell = DTYPES[kind]
        if draw(st.booleans()):
            cell = st.one_of(st.none(), cell)
        made.append(draw(st.lists(cell, min_size=n_rows, max_size=n_rows)) * n_times)
    return n_rows * n_times, made


def check(frame, y, n_columns):
    found = audit(frame, y)
    assert str(found)
    assert found._repr_html_()
    assert all(f.evidence.endswith(".") for f in found)
    rows, shown = found.to_frame(), found.to_frame("columns")
    assert len(shown) in (0, n_columns)
    assert rows["position"].dropna().between(0, n_columns - 1).all()
    shares = shown[["missing", "infinite", "beyond_float32"]].to_numpy(float)
    assert ((shares >= 0) & (shares <= 1)).all()
    assert pickle.loads(pickle.dumps(found)) == found


@given(columns(), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_frame_of_pandas_is_too_odd(made, target):
    n_rows, cells = made
    frame = pd.DataFrame(index=range(n_rows))
    for j, column in enumerate(cells):
        series = pd.Series(column, dtype=object, index=frame.index)
        # As pandas would read them, or as they are.
        frame[f"c{j}"] = series.infer_objects() if (j + target) % 2 else series
    y = frame.iloc[:, target] if target < len(cells) else None
    check(frame, y, len(cells))


@given(columns(POLARS), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_no_frame_of_polars_is_too_odd(made, target):
    pl = pytest.importorskip("polars")
    _, cells = made
    frame = pl.DataFrame({f"c{j}": column for j, column in enumerate(cells)})
    y = frame.to_series(target) if target < len(cells) else None
    check(frame, y, len(cells))


def dtypes_of_pandas():
    numbers = [1.5, None, 2.0] * 20
    yield from (pd.array([1, None, 2] * 20, dtype) for dtype in ("Int8", "UInt64"))
    yield pd.array(numbers, "Float32")
    yield pd.array([True, None, False] * 20, "boolean")
    yield pd.array(["a", None, "b"] * 20, "string")
    yield pd.Categorical([1, None, 2] * 20)
    yield pd.Categorical([pd.Timestamp("2020"), None, pd.Timestamp("2021")] * 20)
    yield pd.period_range("2020", periods=60, freq="M")
    yield pd.interval_range(0, 60, 60)
    yield pd.date_range("2020", periods=60, tz="Europe/Rome")
    yield pd.arrays.SparseArray([0, 0, 1] * 20)
    yield objects(datetime.time(1, 2), None, n=60)
    yield objects(datetime.datetime(2020, 1, 1), n=60)
    yield objects(np.arange(2), None, n=60)
    yield objects(pd.DataFrame, object(), n=60)
    pa = pytest.importorskip("pyarrow")
    by_type = {
        pa.int32(): [1, None, 2],
        pa.string(): ["a", None, "b"],
        pa.list_(pa.int64()): [[1], None, [2]],
        pa.decimal128(10, 2): [Decimal("1.5"), None, Decimal(2)],
        pa.timestamp("us", tz="UTC"): [pd.Timestamp("2020", tz="UTC"), None, None],
        pa.date32(): [datetime.date(2020, 1, 1), None, None],
        pa.duration("us"): [pd.Timedelta("1s"), None, None],
        pa.bool_(): [True, None, False],
        pa.struct([("a", pa.int64())]): [{"a": 1}, None, {"a": 2}],
        pa.dictionary(pa.int32(), pa.string()): ["a", None, "b"],
    }
    for kind, cells in by_type.items():
        yield pd.array(cells * 20, pd.ArrowDtype(kind))


def test_every_dtype_of_pandas_is_read():
    for cells in dtypes_of_pandas():
        series = pd.Series(cells)
        found = audit(pd.DataFrame({"x": series, "other": normal(60)}), series)
        (shown,) = found.to_frame("columns").iloc[:1].to_dict("records")
        assert shown["missing"] == series.isna().mean()
        assert shown["dtype"] == str(series.dtype)


def test_every_dtype_of_polars_is_read():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(
        {
            "null": pl.Series([None] * 60, dtype=pl.Null),
            "category": pl.Series(["a", "b", None] * 20, dtype=pl.Categorical),
            "enum": pl.Series(["a", "b", None] * 20, dtype=pl.Enum(["a", "b"])),
            "decimal": pl.Series([Decimal("1.5"), None, None] * 20),
            "bytes": pl.Series([b"a", b"b", None] * 20),
            "struct": [{"a": 1}] * 60,
            "array": pl.Series([[1, 2]] * 60, dtype=pl.Array(pl.Int64, 2)),
            "time": [datetime.time(1, 2), datetime.time(3), None] * 20,
            "object": pl.Series([object()] * 60, dtype=pl.Object),
            "zoned": pl.Series(
                [datetime.datetime(2020, 1, 1)] * 60
            ).dt.replace_time_zone("UTC"),
            "int128": pl.Series([2**100, 1, None] * 20, dtype=pl.Int128),
        }
    )
    shown = audit(frame, frame["category"]).to_frame("columns").set_index("column")
    assert shown["missing"].to_dict() == {
        name: frame[name].null_count() / 60 for name in frame.columns
    }
    assert shown["holds"].to_dict() == {
        **{"null": "nothing", "category": "categories", "enum": "categories"},
        **{"decimal": "numbers", "bytes": "objects", "struct": "nested"},
        **{"array": "nested", "time": "objects", "object": "mixed", "zoned": "dates"},
        "int128": "numbers",
    }


# -- real tables ---------------------------------------------------------------------

FOUND = {
    "titanic": {
        "missing": "'age' (20 %).",
        "heavy tail": "'fare' (512.3 is 21 IQRs out).",
        "missing goes with the target": "'deck' (in 88 % of 0, 60 % of others).",
        "missing category": "3 columns: 'deck' (77 %), 'embarked' (2 of 891), "
        "'embark_town' (2 of 891).",
        "duplicated column": "2 columns: 'class' ('pclass' in other words), "
        "'embark_town' ('embarked' in other words).",
        "duplicated rows": "13 %; 43 rows with an equal of another target.",
    },
    "sick": {
        "empty": "'TBG' (no known value).",
        "imbalance": "'negative' in 94 %, 'sick' in 6.1 %.",
        "lone outlier": "'age' (455 is 13 IQRs out, the next one is 94).",
        "constant": "'TBG measured' (always 'f').",
    },
    "adult": {
        "sentinel": "'capital-gain' (99999 in 0.47 %).",
        "word for missing": "3 columns: 'occupation' ('?' in 5.9 %), 'workclass' ('?' "
        "in 5.8 %), 'native-country' ('?' in 1.6 %).",
        "duplicated column": "'education' ('education-num' in other words).",
    },
    "auto_imports": {
        "numbers as text": "5 columns: 'horsepower' (such as '68'), 'peak-rpm' (such "
        "as '5500'), 'bore' (such as '3.62'), 'stroke' (such as '3.40'), "
        "'normalized-losses' (such as '161').",
        "skew": "skewness 1.796.",
    },
    "air_quality": {"times as text": "'Time' (such as '18:00:00')."},
    "taxis": {
        "one value": "0 in 36 %.",
        "many levels": "2 columns: 'dropoff_zone' (193 levels), 'pickup_zone' (181 "
        "levels).",
    },
    "meta": {"heavy tail": "'Bin' (43 is 42 IQRs out)."},
}


@pytest.mark.skipif(not TABLES, reason="../shared/data is not on this machine")
@pytest.mark.parametrize("name", [table["name"] for table in TABLES])
def test_in_real_tables_what_is_known_of_them_is_found_and_little_else(name):
    table = next(table for table in TABLES if table["name"] == name)
    frame = pd.read_csv(DATA / table["file"])
    found = audit(frame, table["target"])
    evidence = {f.kind: f.evidence for f in found}
    assert FOUND.get(name, {}).items() <= evidence.items()
    assert len(found) <= 12
    # Numeric sentinels: those that the description names, and no others.
    known = table["sentinels"]
    for column, values in found.sentinels.items():
        numbers = [value for value in values if not isinstance(value, str)]
        assert set(numbers) <= set(known.get(column, known.get("*", [])))
        assert set(values) - set(numbers) <= set(table["na_values"])
    for column in known:
        if column == "*":
            numeric = frame.drop(columns=table["target"]).select_dtypes("number")
            assert set(found.sentinels) == set(numeric)
        else:
            assert found.sentinels[column] == known[column]
