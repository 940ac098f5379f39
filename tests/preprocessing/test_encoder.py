"""Encoding of the columns that are not numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from sknan import StableNetClassifier, StableNetRegressor, tabular_pipeline
from sknan.preprocessing import iter_chunks


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
