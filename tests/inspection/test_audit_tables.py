"""Faults of a table as a whole that an audit finds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from audit_helpers import N, kinds_of, normal, rng

from sknan import audit
from sknan.inspection._audit import _tables
from sknan.inspection._audit._finding import Observation
from sknan.inspection._audit._remedies import REMEDIES, Remedy


def test_columns_that_differ_only_in_names_are_duplicates():
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
        "duplicated column": "2 columns: 'level' ('rank' under other names), 'again' "
        "(equals 'x')."
    }


def test_numbers_that_differ_are_not_duplicates():
    group = rng().integers(0, 5, N)
    means = rng().normal(size=(3, 5))
    frame = pd.DataFrame({"a": means[0][group], "b": means[1][group]})
    assert kinds_of(frame) == {}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_duplicated_rows_with_noise_of_rounding_are_found(scale):
    frame = pd.DataFrame({"x": normal() * scale, "z": rng().random(N)})
    frame = pd.concat([frame, frame[:30]], ignore_index=True)
    frame.loc[N:, "x"] += rng().normal(size=30) * scale * 1e-9
    frame.loc[N + 20 :, "x"] = frame.loc[20:29, "x"].to_numpy()
    found = kinds_of(frame)["duplicated rows"]
    assert found == "9.1 %, 20 rows only up to a millionth."
    apart = frame.assign(x=frame["x"] + np.arange(len(frame)) // N * scale * 1e-4)
    assert "duplicated rows" not in kinds_of(apart)


def test_duplicated_rows_are_counted_and_their_targets_compared():
    frame = pd.DataFrame({"x": normal(), "t": rng().choice(["a", "b"], N)})
    frame.iloc[-10:] = frame.iloc[:10].to_numpy()
    assert kinds_of(frame) == {"duplicated rows": "3.3 %."}
    y = np.arange(N) % 2
    assert kinds_of(frame, y) == {"duplicated rows": "3.3 %."}
    y[-1] = 1 - y[-1]
    assert kinds_of(frame, y) == {
        "duplicated rows": "3.3 %; 2 rows have a duplicate with another target."
    }


def test_duplicates_that_cannot_be_avoided_are_no_fault():
    assert kinds_of(rng().integers(0, 2, size=(N, 3))) == {}


def test_column_names_must_be_unique_strings():
    frame = pd.DataFrame(rng().normal(size=(N, 3)), columns=["a", "b", "a"])
    assert kinds_of(frame) == {"column names": "'a' (also the name of column 0)."}
    frame.columns = ["a", 1, None]
    assert kinds_of(frame) == {
        "column names": "2 columns: 1 (a name of type int), None (a name of type "
        "NoneType)."
    }
    frame.columns = [5, 6, 7]
    assert kinds_of(frame) == {}


def test_scales_that_differ_or_are_large_are_found():
    X = rng().normal(size=(N, 2)) * [1, 1e5]
    assert kinds_of(X) == {"scale": "interquartile range 1.443 in 0, 1.266e+05 in 1."}
    assert kinds_of(X[:, 1:]) == {"scale": "quartiles of up to 6.758e+04 in 0."}


def test_a_table_without_rows_or_columns_has_no_data():
    assert str(audit(np.zeros((0, 3)))) == (
        "0 rows, 3 columns.\n\nBreaks training\n  no data: 0 rows, 3 columns.\n"
        "      -> Pass a table with at least one row and one column."
    )
    assert kinds_of(pd.DataFrame({"a": []}), []) == {"no data": "0 rows, 1 column."}
    assert kinds_of(pd.DataFrame(index=range(3)), [0, 1, 0]) == {
        "no data": "3 rows, 0 columns."
    }
    assert len(audit(pd.DataFrame({"a": []})).to_frame("columns")) == 0


def test_more_columns_than_rows_are_found():
    assert kinds_of(rng().normal(size=(30, 40))) == {
        "more columns than rows": "40 columns, 30 rows."
    }


def test_a_new_kind_of_finding_is_a_remedy_and_a_detector(monkeypatch):
    def prime_size(table, profiles):
        if all(table.n_rows % divisor for divisor in range(2, table.n_rows)):
            yield Observation("prime size", table.n_rows, f"{table.n_rows} rows")

    remedy = Remedy("notice", by_pipeline=False, action="Add or drop one row.")
    monkeypatch.setitem(REMEDIES["X"], "prime size", remedy)
    monkeypatch.setattr(_tables, "DETECTORS", (*_tables.DETECTORS, prime_size))
    assert kinds_of(rng().normal(size=(N, 3))) == {}
    (finding,) = audit(rng().normal(size=(307, 3)))
    assert str(finding) == "prime size: 307 rows. Add or drop one row."
    assert finding.severity == "notice"


def test_rows_with_the_largest_numbers_are_duplicates_without_a_warning():
    frame = pd.DataFrame(rng().normal(size=(20, 2)))  # numbers that are rounded
    frame.iloc[1, 0] = np.finfo(float).max
    frame = pd.concat([frame, frame[1:2]])
    assert "duplicated rows" in {finding.kind for finding in audit(frame)}
