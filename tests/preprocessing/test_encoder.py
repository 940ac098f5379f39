"""Encoding of the columns that are not numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from sknan import StableNetClassifier, StableNetRegressor, tabular_pipeline
from sknan.preprocessing import iter_chunks
from sknan.preprocessing._sources import sources_of


def prepared(X, **options):
    steps = tabular_pipeline(StableNetClassifier(), **options)[:2]
    return steps.fit_transform(X), steps


def test_numbers_stay_and_other_columns_follow():
    X = pd.DataFrame(
        {
            "k": ["u", "v", "w"] * 20,
            "n": np.arange(60.0),
            "day": pd.date_range("2020-01-01", periods=60),
        }
    )
    encoded, steps = prepared(X)
    assert list(encoded.columns) == [
        *("n", "k_u", "k_v", "k_w"),
        *("day_year", "day_month", "day_day", "day_total_seconds"),
    ]
    assert list(encoded.columns) == list(steps.get_feature_names_out())
    pd.testing.assert_series_equal(encoded["n"], X["n"])
    assert encoded.loc[4, ["k_u", "k_v", "k_w", "day_day"]].tolist() == [0, 1, 0, 5]
    shuffled = X.sample(frac=1, random_state=0)[["day", "n", "k"]]
    again = steps.transform(shuffled)
    pd.testing.assert_frame_equal(again, encoded.loc[shuffled.index])


def test_a_column_of_numbers_may_have_the_name_of_a_category():
    X = pd.DataFrame({"k": ["u", "v", "w"] * 20, "k_u": np.arange(60.0)})
    encoded, _ = prepared(X)
    assert list(encoded.columns) == ["k_u", "k_u_", "k_v", "k_w"]


def test_numbers_that_float32_cannot_separate_are_centered_in_float64():
    hours = np.arange(60.0)
    X = pd.DataFrame({"id": 1e12 + hours, "time": 1.7e9 + 120 * hours, "n": hours})
    X.loc[0, ["id", "time"]] = [np.nan, 0.0]
    encoded, steps = prepared(X)
    np.testing.assert_array_equal(encoded["id"][1:], hours[1:] - 30)
    np.testing.assert_array_equal(encoded["time"][1:], 120 * (hours[1:] - 29))
    np.testing.assert_array_equal(encoded["n"], hours)
    pd.testing.assert_frame_equal(steps.transform(X[3:4]), encoded[3:4])
    few = pd.DataFrame({"x": np.r_[np.full(90, 1e12), 1e12 + np.arange(1, 11)]})
    np.testing.assert_array_equal(prepared(few)[0]["x"], few["x"] - 1e12)


def numbers_with_a_target(effect, n_rows=1500):
    """Return numbers of 60 values, also on a large offset, and a noisy target."""
    rng = np.random.default_rng(0)
    value = rng.integers(0, 60, n_rows).astype(float)
    X = pd.DataFrame({"n": value, "time": 1.7e9 + 60 * rng.permutation(value)})
    X["k"] = rng.choice(["u", "v"], n_rows)
    X.loc[::40, "n"] = np.nan
    noise = 0.3 * rng.standard_normal(n_rows)
    return X, np.sin(value / 10) + effect(value) + noise


EACH = np.random.default_rng(1).standard_normal(60)


@pytest.mark.parametrize(
    ("effect", "values"),
    [
        (lambda value: 0 * value, []),
        (lambda value: value**2 / 100, []),
        (lambda value: 2.0 * (value == 7), [7]),
        (lambda value: EACH[value.astype(int)], range(60)),
    ],
)
def test_values_with_a_target_unlike_that_of_close_ones_become_columns(effect, values):
    X, y = numbers_with_a_target(effect)
    steps = tabular_pipeline(StableNetRegressor())[:2]
    encoded = steps.fit_transform(X, y)
    names = [f"n_{value}" for value in values]
    assert list(encoded.columns) == ["n", "time", "k_v", *names]
    for name, value in zip(names, values, strict=True):
        np.testing.assert_array_equal(encoded[name], X["n"] == value)
    pd.testing.assert_frame_equal(steps.transform(X), encoded)
    later = steps.transform(X.astype({"n": "float32"}))[:9]
    np.testing.assert_array_equal(later, encoded[:9])
    rows = [steps.transform(X.iloc[[i]]) for i in range(9)]
    pd.testing.assert_frame_equal(pd.concat(rows), encoded[:9])
    sources = sources_of(steps, list(X)).inputs
    assert sources == [(0,), (1,), (2,), *[(0,)] * len(names)]


@pytest.mark.parametrize("target", ["numbers", "two targets", "two texts", "texts"])
def test_single_values_matter_to_targets_of_any_kind(target):
    X, y = numbers_with_a_target(lambda value: 2.0 * np.isin(value, [7, 29, 41]))
    seconds = 1.7e9 + 60 * 20
    later = y + 4.0 * (X["time"] == seconds)
    y = {
        "numbers": pl.Series(later),
        "two targets": np.stack([y, later], axis=1),
        "two texts": np.where(later > 1.5, "high", "low"),
        "texts": np.select([later > 1.5, later > 0.5], ["a", "b"], "c").astype(object),
    }[target]
    steps = tabular_pipeline(StableNetRegressor())[:2].fit(X, y)
    found = steps.get_feature_names_out().tolist()
    of_n = [f"n_{value}" for value in range(60)]
    # Too few rows are "high" at other times to test the thirteen of one time.
    of_time = [] if target == "two texts" else ["time_1700001200"]
    assert found == ["n", "time", "k_v", *of_time, *of_n]
    in_chunks = tabular_pipeline(StableNetRegressor())[:2]
    in_chunks.fit(iter_chunks(X, np.asarray(y), chunk_size=400))
    assert in_chunks.get_feature_names_out().tolist() == found
    steps.set_params(encode__single_values=False).fit(X, y)
    assert steps.get_feature_names_out().tolist() == ["n", "time", "k_v"]


@pytest.mark.parametrize("cells", [np.arange(60.0), ["u", "v", "w"] * 20])
def test_a_table_may_have_only_numbers_or_only_categories(cells):
    X = pd.DataFrame({"x": cells}, index=range(60, 0, -1))
    encoded, steps = prepared(X)
    pd.testing.assert_frame_equal(steps.transform(X), encoded)
    assert encoded.index.equals(X.index)
    net = StableNetClassifier(max_epochs=1, random_state=0)
    assert tabular_pipeline(net).fit(X, [0, 1] * 30).predict(X).shape == (60,)


def test_columns_of_many_categories_are_encoded_by_their_words():
    X = pd.DataFrame({"k": ["u", "v", None] * 20, "t": [f"t{i}" for i in range(60)]})
    encoded, _ = prepared(X, max_levels=50)
    assert list(encoded.columns[:5]) == ["k_u", "k_v", "k_nan", "t_0", "t_1"]
    encoded, _ = prepared(X, max_levels=60)
    assert len(encoded.columns) == 63


def test_single_rows_are_encoded_as_the_whole_table():
    cells = ["u", "v", " v", "?", None, np.nan, "NULL", "new", "w"]
    X = pd.DataFrame(
        {"k": cells * 9, "n": np.arange(81.0), "b": ["yes", "no", None] * 27}
    )
    _, steps = prepared(X[X["k"] != "new"])
    later = pd.concat(
        [X, X.assign(k=[3, True, "u"] * 27, b="other")], ignore_index=True
    )
    whole = steps.transform(later)
    rows = [steps.transform(later.iloc[[i]]) for i in range(len(later))]
    pd.testing.assert_frame_equal(pd.concat(rows), whole)
    assert whole.loc[[0, 3, 7], "k_u":"k_nan"].to_numpy().tolist() == [
        *([1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0])
    ]


@pytest.mark.parametrize("seen", [[], [None]])
@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, list])
def test_a_single_row_may_miss_its_category(kind, seen):
    cities = ["Rome", "Oslo"] * 20 + seen
    X = pd.DataFrame({"age": np.arange(len(cities), dtype=float), "city": cities})
    _, steps = prepared(X)

    def transformed(rows):
        return steps.transform(rows if kind is list else kind(rows))

    missing = ["N/A", "", "unknown", "?", "NULL", " na ", "-", None]
    rows = [{"age": 3.0, "city": word} for word in [*missing, "Rome"]]
    single = [transformed([row]).to_numpy() for row in rows]
    np.testing.assert_array_equal(np.vstack(single), transformed(rows))


def test_a_table_in_chunks_may_start_with_a_missing_category():
    X = pl.DataFrame({"x": range(40), "k": ["?", *["a", "b"] * 19, "a"]})
    y = np.arange(40.0)
    net = StableNetRegressor(max_epochs=1, random_state=0)
    model = tabular_pipeline(net).fit(iter_chunks(X, y, chunk_size=10))
    assert np.isfinite(model.predict(X)).all()


def test_a_container_in_a_row_of_categories_is_refused():
    X = pd.DataFrame({"k": ["u", "v"] * 9, "n": np.arange(18.0)})
    _, steps = prepared(X)
    row = X.iloc[[0]].astype({"k": object})
    row.at[0, "k"] = np.zeros(2)
    with pytest.raises(ValueError, match="Column 'k' contains lists, dicts or arrays"):
        steps.transform(row)
