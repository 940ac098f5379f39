"""What an audit says that tabular_pipeline does, it does."""

import numpy as np
import pandas as pd
import pytest

from sknan import StableNetRegressor, audit, tabular_pipeline
from sknan.inspection._audit._remedies import REMEDIES

N = 200


def rng():
    return np.random.default_rng(0)


def some(values, others, n=10):
    """A column of which the first cells are others."""
    cells = list(values)
    cells[:n] = list(others) * (n // len(others))
    return cells


DIGITS = list(map(str, rng().integers(20, 90, size=N)))
DAYS = pd.date_range("2020-01-01", periods=N)
NORMAL = rng().normal(size=N).tolist()
LEVELS = rng().choice(["red", "blue", "green"], size=N).tolist()

# By kind, a column of which it is said.
COLUMNS = {
    "empty": [np.nan] * N,
    "missing": some(NORMAL, [np.nan]),
    "infinite": some(NORMAL, [np.inf]),
    "beyond float32": some(NORMAL, [1e300]),
    "numbers as text": DIGITS,
    "dates as text": DAYS.strftime("%d.%m.%Y").tolist(),
    "mixed types": some(LEVELS, [1]),
    "written numbers": [f"${value}.50" for value in DIGITS],
    "sentinel": some(rng().integers(20, 90, size=N).tolist(), [-999]),
    "lone outlier": [1e6, *NORMAL[1:]],
    "heavy tail": np.exp(6 * rng().normal(size=N)).tolist(),
    "scale": [1e6 * value for value in NORMAL],
    "missing goes with the target": some(NORMAL, [np.nan], n=60),
    "missing category": some(LEVELS, [None]),
    "word for missing": some(LEVELS, ["?"]),
    "numbers and words": some(DIGITS, ["refused"]),
    "codes": [f"{int(digits):05d}" for digits in DIGITS],
    "times as text": [f"{hour % 24:02d}:30" for hour in range(N)],
    "many levels": [f"level {i % 50}" for i in range(N)],
    "dates": DAYS,
    "constant": [3.0] * N,
}

# The columns that are made of one, before scaling and after.
DATES = ["x_year", "x_month", "x_day", "x_total_seconds"]
OUTCOMES = {
    "empty": [],
    "numbers as text": ["x"],
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


def test_every_remedy_that_names_the_pipeline_is_held_against_it():
    named = {k for k, r in REMEDIES["X"].items() if "tabular_pipeline" in r.action}
    assert named == set(COLUMNS)


@pytest.mark.parametrize("kind", COLUMNS)
def test_the_audit_finds_it(kind):
    X = pd.DataFrame({"x": COLUMNS[kind], "n": NORMAL[::-1]})
    found = audit(X, target())
    about = [finding for finding in found if "x" in finding.columns]
    assert kind in [finding.kind for finding in (found if kind == "scale" else about)]


@pytest.mark.parametrize("kind", COLUMNS)
def test_nothing_is_left_that_breaks_a_training(kind):
    out, _ = prepared(kind)
    assert np.isfinite(out.to_numpy()).all()
    assert (out.abs() < 10).all(axis=None)
    assert set(out.dtypes) <= {np.dtype("float32")}


@pytest.mark.parametrize("kind", OUTCOMES)
def test_the_columns_are_those_that_it_says(kind):
    out, _ = prepared(kind)
    assert sorted(out.columns) == sorted(OUTCOMES[kind])


@pytest.mark.parametrize("kind", ["missing", "infinite", "beyond float32", "sentinel"])
def test_the_median_is_filled_in(kind):
    _, steps = prepared(kind)
    known = pd.Series(COLUMNS[kind])[10:]
    filled = steps[:3].transform(pd.DataFrame({"x": COLUMNS[kind], "n": NORMAL}))
    np.testing.assert_allclose(filled["x"][:10], known.median(), rtol=1e-6)
    assert filled["missingindicator_x"].tolist() == [1.0] * 10 + [0.0] * (N - 10)


def test_sentinels_are_left_unless_they_are_looked_for():
    out, _ = prepared("sentinel", sentinels=None)
    assert list(out.columns) == ["x"]
    out, _ = prepared("word for missing", sentinels=None)
    assert sorted(out.columns) == ["x_?", "x_blue", "x_green", "x_red"]


@pytest.mark.parametrize("kind", ["written numbers", "times as text", "many levels"])
def test_levels_are_columns_of_0_and_1_up_to_max_levels_and_else_letters(kind):
    n_levels = len(set(COLUMNS[kind]))
    out, steps = prepared(kind, max_levels=n_levels)
    assert sorted(out.columns) == sorted(f"x_{level}" for level in set(COLUMNS[kind]))
    assert steps["clean"].kinds_["x"] == "categories"
    out, _ = prepared(kind, max_levels=n_levels - 1, random_state=0)
    assert set(out.columns) == {f"x_{i:02d}" for i in range(30)}
    max_levels = tabular_pipeline()["encode"].cardinality_threshold - 1
    assert f"more than {max_levels} " in REMEDIES["X"]["many levels"].action


def test_numbers_that_are_constant_become_0():
    out, _ = prepared("constant")
    assert (out["x"] == 0).all()


def test_columns_are_scaled_and_what_is_far_out_is_bounded():
    out, _ = prepared("scale")
    assert out["x"].abs().median() < 1
    out, _ = prepared("lone outlier")
    assert out["x"].max() == out["x"][0] < 10


def test_the_regressor_answers_in_the_units_of_y():
    y = 1e6 + 1e4 * np.array(NORMAL)
    X = pd.DataFrame({"x": NORMAL})
    net = StableNetRegressor(max_epochs=50, random_state=0)
    assert tabular_pipeline(net).fit(X, y).score(X, y) > 0.9
