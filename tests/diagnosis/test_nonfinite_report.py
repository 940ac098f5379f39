"""Text, table and fields of a report."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from sknan.diagnosis import NonFiniteReport

REPORT = NonFiniteReport(
    "forward",
    "activation",
    "2 of 8 outputs are <non-finite>.",
    "Use another.",
    module="act",
    operation="aten.log",
    source="net.py:7",
    epoch=1,
    batch=2,
    rows=(3, 4),
    columns=("pay",),
    rows_in="data",
    recovery="The batch was left out.",
)


def test_the_text_has_failure_place_evidence_and_action():
    assert str(REPORT) == (
        "Non-finite output of aten.log in 'act' (net.py:7) at epoch 1, batch 2. 2 of 8 "
        "outputs are <non-finite>. To blame: rows 3, 4, column pay. Use another."
    )


def test_the_text_counts_rows_beyond_the_tenth():
    text = str(NonFiniteReport("loss", "loss", "E.", "A.", rows=tuple(range(30))))
    assert text == (
        "Non-finite loss. E. To blame: rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more "
        "of the batch. A."
    )


def test_the_text_has_no_place_if_none_is_known():
    report = NonFiniteReport("backward", "gradient", "It is NaN.", "Clip it.")
    assert report.place == ""
    assert str(report) == "Non-finite gradient. It is NaN. Clip it."


@pytest.mark.parametrize(
    ("phase", "what"),
    [
        ("input", "Non-finite input"),
        ("forward", "Non-finite output"),
        ("loss", "Non-finite loss"),
        ("backward", "Non-finite gradient"),
        ("step", "Training diverged"),
    ],
)
def test_each_phase_prints_as_a_sentence(phase, what):
    report = NonFiniteReport(
        phase, "data", "So it is.", "Do it.", module="layer.0", epoch=1, batch=2
    )
    assert str(report) == f"{what} in 'layer.0' at epoch 1, batch 2. So it is. Do it."


def test_a_report_cannot_be_changed():
    report = NonFiniteReport("loss", "loss", "It is inf.", "Bound it.")
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.phase = "step"


def test_reports_can_be_compared_hashed_and_pickled():
    report = NonFiniteReport("loss", "loss", "It is inf.", "Bound it.", rows=(1, 2))
    assert pickle.loads(pickle.dumps(report)) == report
    assert len({report, dataclasses.replace(report)}) == 1
    assert dataclasses.asdict(report)["rows"] == (1, 2)


def test_the_html_table_is_escaped_and_omits_unknown_fields():
    html = REPORT._repr_html_()
    assert html.startswith("<table><caption>Non-finite output</caption>")
    assert "2 of 8 outputs are &lt;non-finite&gt;." in html
    assert "The batch was left out." in html
    short = NonFiniteReport("loss", "loss", "E.", "A.")._repr_html_()
    assert "operation" not in short
    assert "what was done" not in short


def test_the_fields_of_a_report_are_plain_data():
    fields = REPORT.to_dict()
    assert json.loads(json.dumps(fields)) == fields
    assert fields["rows"] == [3, 4]
    assert "capsule" not in fields
