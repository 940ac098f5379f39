"""Effects of tabular_pipeline that the remedies of an audit promise."""

import numpy as np
import pandas as pd
import pytest

from sknan import StableNetRegressor, audit, tabular_pipeline
from sknan.inspection._audit._remedies import REMEDIES

N = 200


def rng():
    return np.random.default_rng(0)


def replaced(values, others, n=10):
    """Return the values with the first cells replaced."""
    cells = list(values)
    cells[:n] = list(others) * (n // len(others))
    return cells


DIGITS = list(map(str, rng().integers(20, 90, size=N)))
DAYS = pd.date_range("2020-01-01", periods=N)
NORMAL = rng().normal(size=N).tolist()
LEVELS = rng().choice(["red", "blue", "green"], size=N).tolist()

# A column for each kind of finding whose remedy names the pipeline.
COLUMNS = {
    "empty": [np.nan] * N,
    "missing": replaced(NORMAL, [np.nan]),
    "infinite": replaced(NORMAL, [np.inf]),
    "beyond float32": replaced(NORMAL, [1e300]),
    "numbers as text": DIGITS,
    "dates as text": DAYS.strftime("%d.%m.%Y").tolist(),
    "mixed types": replaced(LEVELS, [1]),
    "written numbers": replaced([f"${value}.50" for value in DIGITS], ["7 kg"]),
    "unclear numbers": [
        f"{value} {'kg' if i % 2 else 'g'}" for i, value in enumerate(DIGITS)
    ],
    "sentinel": replaced(rng().integers(20, 90, size=N).tolist(), [-999]),
    "lone outlier": [1e6, *NORMAL[1:]],
    "heavy tail": np.exp(6 * rng().normal(size=N)).tolist(),
    "scale": [1e6 * value for value in NORMAL],
    "float32 precision": [1e12 + value for value in NORMAL],
    "missing goes with the target": replaced(NORMAL, [np.nan], n=60),
    "missing category": replaced(LEVELS, [None]),
    "word for missing": replaced(LEVELS, ["?"]),
    "numbers and words": replaced(DIGITS, ["refused"]),
    "codes": [f"{int(digits):05d}" for digits in DIGITS],
    "times as text": [f"{hour % 24:02d}:30" for hour in range(N)],
    "many levels": [f"level {i % 50}" for i in range(N)],
    "dates": DAYS,
    "constant": [3.0] * N,
}

# Columns into which the pipeline converts one column.
DATES = ["x_year", "x_month", "x_day", "x_total_seconds"]
OUTCOMES = {
    "empty": [],
    "numbers as text": ["x"],
    "written numbers": ["x", "x_word_nan", "missingindicator_x"],
    "dates as text": DATES,
    "mixed types": ["x_1", "x_blue", "x_green", "x_red"],
    "missing category": ["x_blue", "x_green", "x_red", "x_nan"],
    "word for missing": ["x_blue", "x_green", "x_red", "x_nan"],
    "numbers and words": ["x", "x_word_nan", "missingindicator_x"],
    "codes": ["x"],
    "dates": DATES,
    "constant": ["x"],
    "lone outlier": ["x"],
    "heavy tail": ["x"],
    "scale": ["x"],
    "float32 precision": ["x"],
    "missing": ["x", "missingindicator_x"],
    "infinite": ["x", "missingindicator_x"],
    "beyond float32": ["x", "missingindicator_x"],
    "sentinel": ["x", "missingindicator_x"],
    "missing goes with the target": ["x", "missingindicator_x"],
}


def prepared(kind, **parameters):
    X = pd.DataFrame({"x": COLUMNS[kind], "n": NORMAL[::-1]})
    steps = tabular_pipeline(**parameters)[:-1]
    out = pd.DataFrame(steps.fit_transform(X))
    out.columns = steps.get_feature_names_out()
    return out.drop(columns="n"), steps


def target():
    y = rng().integers(0, 2, size=N)
    y[:60] = rng().random(60) < 0.95
    return y


def test_every_remedy_that_names_the_pipeline_is_tested():
    named = {k for k, r in REMEDIES["X"].items() if "tabular_pipeline" in r.action}
    assert named == set(COLUMNS)


@pytest.mark.parametrize("kind", COLUMNS)
def test_the_audit_finds_each_kind(kind):
    X = pd.DataFrame({"x": COLUMNS[kind], "n": NORMAL[::-1]})
    found = audit(X, target())
    about = [finding for finding in found if "x" in finding.columns]
    assert kind in [finding.kind for finding in (found if kind == "scale" else about)]


@pytest.mark.parametrize("kind", COLUMNS)
def test_the_pipeline_removes_all_values_that_break_a_training(kind):
    out, _ = prepared(kind)
    assert np.isfinite(out.to_numpy()).all()
    assert (out.abs() < 10).all(axis=None)
    assert set(out.dtypes) <= {np.dtype("float32")}


@pytest.mark.parametrize("kind", OUTCOMES)
def test_the_output_columns_are_those_of_the_remedy(kind):
    out, _ = prepared(kind)
    assert sorted(out.columns) == sorted(OUTCOMES[kind])


@pytest.mark.parametrize("kind", ["missing", "infinite", "beyond float32", "sentinel"])
def test_missing_values_are_replaced_by_the_median(kind):
    _, steps = prepared(kind)
    known = pd.Series(COLUMNS[kind])[10:]
    filled = steps[:3].transform(pd.DataFrame({"x": COLUMNS[kind], "n": NORMAL}))
    np.testing.assert_allclose(filled["x"][:10], known.median(), rtol=1e-6)
    assert filled["missingindicator_x"].tolist() == [1.0] * 10 + [0.0] * (N - 10)


def test_sentinels_are_kept_with_sentinels_none():
    out, _ = prepared("sentinel", sentinels=None)
    assert list(out.columns) == ["x"]
    out, _ = prepared("word for missing", sentinels=None)
    assert sorted(out.columns) == ["x_?", "x_blue", "x_green", "x_red"]


@pytest.mark.parametrize("kind", ["unclear numbers", "times as text", "many levels"])
def test_categories_are_indicator_columns_up_to_max_levels_and_otherwise_words(kind):
    n_levels = len(set(COLUMNS[kind]))
    out, steps = prepared(kind, max_levels=n_levels)
    assert sorted(out.columns) == sorted(f"x_{level}" for level in set(COLUMNS[kind]))
    assert steps["clean"].kinds_["x"] == "categories"
    out, _ = prepared(kind, max_levels=n_levels - 1)
    common_word = {"many levels": "level", "times as text": "30"}.get(kind, "kg")
    assert f"x_{common_word}" in out.columns
    assert f"x_{COLUMNS[kind][0]}" not in out.columns
    max_levels = tabular_pipeline()["encode"].vectorizer.cardinality_threshold - 1
    assert f"more than {max_levels} " in REMEDIES["X"]["many levels"].action


def test_constant_numbers_become_0():
    out, _ = prepared("constant")
    assert (out["x"] == 0).all()


def test_columns_are_scaled_and_outliers_are_bounded():
    out, _ = prepared("scale")
    assert out["x"].abs().median() < 1
    out, _ = prepared("lone outlier")
    assert out["x"].max() == out["x"][0] < 10
    out, _ = prepared("float32 precision")
    assert out["x"].nunique() > 0.9 * N


def test_predictions_are_in_the_units_of_y():
    y = 1e6 + 1e4 * np.array(NORMAL)
    X = pd.DataFrame({"x": NORMAL})
    net = StableNetRegressor(max_epochs=50, random_state=0)
    assert tabular_pipeline(net).fit(X, y).score(X, y) > 0.9
