"""Result of an audit: text, notebook display, data frames and sentinels."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
from audit_helpers import N, damaged, kinds_of, normal, objects, rng

from sknan import audit
from sknan.inspection import table_sentinels
from sknan.inspection._audit._remedies import REMEDIES

TEXT = """\
300 rows, 5 columns: 3 of numbers, 2 of text. Target: 2 classes, the rarest is
'yes' (5 %).

Breaks training
  missing: 'age' (6.7 %).
      -> tabular_pipeline fills in the median and adds indicator columns.
  infinite: 2 columns: 'pay' (1 of 300), 'wage' (1 of 300).
      -> tabular_pipeline treats infinities as missing.
  beyond float32: 2 columns: 'pay' (1 of 300, up to 1e+200), 'wage' (1 of 300,
      up to 1e+200).
      -> They become infinite in float32; tabular_pipeline treats them as
         missing.
  numbers as text: 'rate' (such as '-0.5').
      -> tabular_pipeline reads them as numbers.

Hurts
  target imbalance: 'no' in 95 %, 'yes' in 5 %.
      -> Stratify splits, score by average precision or log-loss instead of
         accuracy, and try class_weight='balanced'.
  sentinel: 'age' (-999 in 10 %).
      -> tabular_pipeline(sentinels='auto') treats them as missing: check that
         they are.

Notice
  word for missing: 'town' ('?' in 38 %).
      -> tabular_pipeline(sentinels='auto') treats them as missing.
  duplicated column: 'wage' (equals 'pay').
      -> Drop them: the other columns hold the same information."""


def test_an_audit_prints_each_finding_with_severity_and_action():
    y = np.where(np.arange(N) < 15, "yes", "no")
    found = audit(damaged(), y)
    assert str(found) == TEXT
    assert repr(found) == TEXT


def test_a_table_without_faults_has_no_findings():
    found = audit(rng().normal(size=(N, 3)), np.arange(N) % 2)
    assert str(found) == (
        "300 rows, 3 columns: 3 of numbers. Target: 2 classes, the rarest is 0 "
        "(50 %).\n"
        "Nothing found that would break or hurt training."
    )
    assert len(found) == 0
    assert found  # An audit without findings is true, too.
    assert found.to_frame().empty


def test_the_table_for_notebooks_is_escaped_and_sets_no_color():
    frame = pd.DataFrame({"<b>": objects(None, "<i>", "a")})
    html = audit(frame)._repr_html_()
    assert "&#x27;&lt;b&gt;&#x27; (33 %)." in html
    assert ">missing category</td>" in html
    assert "<i>" not in html
    assert "color" not in html
    assert "background" not in html
    assert "<table>" not in audit(rng().normal(size=(N, 3)))._repr_html_()


def test_the_frame_of_findings_has_a_row_for_each_column():
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


def test_the_frame_of_columns_has_their_statistics():
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


def test_a_finding_prints_its_evidence_and_action():
    finding = next(f for f in audit(damaged()) if f.kind == "infinite")
    assert str(finding) == (
        "infinite: 2 columns: 'pay' (1 of 300), 'wage' (1 of 300). tabular_pipeline "
        "treats infinities as missing."
    )
    assert finding.columns == ("pay", "wage")
    assert finding._repr_html_().startswith("<p>breaks training: infinite: 2 columns")


def test_findings_are_sorted_and_filtered_by_severity():
    found = audit(damaged())
    order = [f.severity for f in found]
    assert order == sorted(order, key=["breaks training", "hurts", "notice"].index)
    hurting = found.of_severity("hurts")
    assert [f.kind for f in hurting] == ["sentinel"]


def test_many_columns_are_named_worst_first_and_the_rest_counted():
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


def test_every_action_names_the_pipeline_if_it_acts():
    for remedies in REMEDIES.values():
        for kind, remedy in remedies.items():
            does = remedy.action.startswith(
                ("tabular_pipeline", "StableNetRegressor", "Nothing can", "They become")
            )
            assert does == remedy.by_pipeline, kind
            assert remedy.action.endswith((".", "?"))
