"""Faults of the target that an audit finds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from audit_helpers import N, damaged, kinds_of, normal, objects, rng

from sknan import audit


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
        (normal() ** 5, "heavy tail", "-289.2 is 901 IQRs beyond the quartiles."),
        (np.where(np.arange(N) % 3, np.exp(normal()), 0), "one value", "0 in 33 %."),
        (normal() * 1e5, "scale", "median -7652, interquartile range 1.386e+05."),
        ([f"{value:.2f}" for value in normal()], "numbers as text", "such as '0.13'."),
        (pd.date_range("2020", periods=N), "not learnable", "it contains dates."),
        (objects(1, "a"), "not learnable", "it contains mixed types."),
        (objects([1], [2]), "not learnable", "it contains nested values."),
    ],
)
def test_a_fault_of_the_target_is_found(y, kind, evidence):
    assert kinds_of_target(y)[kind] == evidence


@pytest.mark.parametrize(
    ("y", "summary"),
    [
        (np.arange(N) % 3, "3 classes, the rarest is 0 (33 %)"),
        (np.arange(N) % 2 > 0, "2 classes, the rarest is False (50 %)"),
        (pd.array([True, None, False] * 100), "2 classes, the rarest is True (50 %)"),
        (pd.Categorical(["a", "b", "b"] * 100), "2 classes, the rarest is 'a' (33 %)"),
        (rng().integers(0, 25, N), "0 to 24, regression"),
        (np.arange(N) % 2 + 0.5, "0.5 to 1.5, regression"),
        (np.full(N, np.nan), "no known value"),
    ],
)
def test_the_task_is_inferred_from_the_target(y, summary):
    frame = pd.DataFrame({"x": normal()})
    assert f"Target: {summary}." in audit(frame, y).summary


def test_the_task_can_be_given():
    y = np.arange(N) % 5
    assert "regression" in audit({"x": normal()}, y, task="regression").summary
    assert kinds_of_target(["a", "b"] * 9, task="regression") == {
        "not learnable": "it contains text."
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
    separate = audit(frame.drop(columns="town"), frame["town"])
    assert audit(frame, "town").summary == separate.summary
    pl = pytest.importorskip("polars")
    assert audit(pl.from_dicts(frame.to_dict("records")), "town").summary == (
        separate.summary
    )


def test_several_targets_are_audited_one_by_one():
    y = pd.DataFrame({"a": normal() * 1e5, "b": np.arange(N) % 2})
    found = audit({"x": normal()}, y)
    assert found.summary == (
        "300 rows, 1 column: 1 of numbers. Target: -3.106e+05 to 3.066e+05, "
        "regression; 2 classes, the rarest is 0 (50 %)."
    )
    assert [str(f) for f in found] == [
        "target scale: 'a' (median -7652, interquartile range 1.386e+05). "
        "StableNetRegressor standardizes y and predicts in its units; other networks "
        "need TransformedTargetRegressor."
    ]
    assert found.findings[0].columns == ("a",)
