"""Columns that arrive in another type than in fit: the same values, or one warning."""

from __future__ import annotations

import datetime
import decimal
import warnings
import zoneinfo
from email.utils import format_datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sknan import StableNetClassifier, audit, tabular_pipeline
from sknan.exceptions import ChangedColumnWarning
from sknan.preprocessing import TableCleaner


def to_zone(zone):
    return lambda dates: dates.dt.tz_localize("UTC").dt.tz_convert(zone)


def as_arrow(dtype):
    return lambda cells: cells.astype(pd.ArrowDtype(dtype))


def offsets_of_paris(dates):
    """Return objects in the offsets of summer and winter time, without the zone."""
    local = to_zone("Europe/Paris")(dates)
    fixed = [
        cell if pd.isna(cell) else cell.tz_convert(datetime.timezone(cell.utcoffset()))
        for cell in local
    ]
    return pd.Series(fixed, dtype=object)


def epoch(unit):
    return lambda dates: dates.astype(f"datetime64[{unit}]").astype("int64")


def polars(cells):
    return pl.from_pandas(cells.rename("x"))


def iso(dates):
    return dates.map(lambda cell: cell.isoformat())


# The same instants in types that hold them, which are read as dates in fit ...
INSTANTS = {
    "naive": lambda dates: dates,
    "seconds": lambda dates: dates.astype("datetime64[s]"),
    "UTC": to_zone("UTC"),
    "Tokyo": to_zone("Asia/Tokyo"),
    "Paris": to_zone("Europe/Paris"),
    "offsets": offsets_of_paris,
    "objects": lambda dates: dates.astype(object),
    "arrow": as_arrow(pa.timestamp("us")),
    "arrow, zone": as_arrow(pa.timestamp("us", "Asia/Tokyo")),
    "polars": polars,
    "polars, zone": lambda dates: (
        polars(dates).dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    ),
    "ISO": iso,
    "ISO, Z": lambda dates: iso(dates) + "Z",
    "ISO, Tokyo": lambda dates: iso(to_zone("Asia/Tokyo")(dates)),
    "ISO, offsets": lambda dates: iso(offsets_of_paris(dates)),
    "str": lambda dates: dates.astype(str),
    "category": lambda dates: dates.astype(str).astype("category"),
}

# ... or only later.
LATER = INSTANTS | {
    "s": epoch("s"),
    "ms": epoch("ms"),
    "us": epoch("us"),
    "ns": epoch("ns"),
    "floats": lambda dates: epoch("s")(dates).astype(float),
    "text of numbers": lambda dates: epoch("ms")(dates).astype(str),
    "category of dates": lambda dates: dates.astype("category"),
}
del INSTANTS["category"]

NUMBERS = {
    "integers": lambda cells: cells,
    "floats": lambda cells: cells.astype(float),
    "text": lambda cells: cells.astype(str),
    "text of floats": lambda cells: cells.astype(float).astype(str),
    "objects": lambda cells: cells.astype(object),
    "decimals": lambda cells: cells.map(lambda cell: decimal.Decimal(int(cell))),
    "nullable": lambda cells: cells.astype("Int64"),
    "arrow": as_arrow(pa.int64()),
    "arrow decimals": as_arrow(pa.decimal128(25, 2)),
    "polars": polars,
    "polars text": lambda cells: polars(cells.astype(str)),
    "bytes of text": lambda cells: cells.astype(str).astype("string[pyarrow]"),
}

FLAGS = {
    "bool": lambda cells: cells,
    "nullable": lambda cells: cells.astype("boolean"),
    "arrow": as_arrow(pa.bool_()),
    "objects": lambda cells: cells.astype(object),
    "integers": lambda cells: cells.astype(int),
    "JSON": lambda cells: cells.astype(str).str.lower(),
    "text": lambda cells: cells.astype(str),
    "polars": polars,
}

CATEGORIES = {
    "text": lambda cells: cells.astype(str),
    "objects": lambda cells: cells.astype(object),
    "category": lambda cells: cells.astype("category"),
    "string": lambda cells: cells.astype("string"),
    "arrow": as_arrow(pa.string()),
    "polars": polars,
    "polars category": lambda cells: polars(cells).cast(pl.Categorical),
}

DURATIONS = {
    "durations": lambda cells: cells,
    "text": lambda cells: cells.astype(str),
    "objects": lambda cells: cells.astype(object),
    "seconds": lambda cells: cells.dt.total_seconds(),
    "arrow": as_arrow(pa.duration("us")),
    "polars": polars,
}

DAYS = pd.Series(pd.date_range("2020-03-01", periods=60))

instants = st.datetimes(
    datetime.datetime(1980, 1, 1), datetime.datetime(2040, 1, 1)
).map(lambda date: date.replace(microsecond=0))


def table(cells):
    if isinstance(cells, pl.Series):
        return pl.DataFrame({"x": cells})
    return pd.DataFrame({"x": cells})


def read_in_another_type(cells, first, later):
    """Return the column as read in fit, in another type, and the warnings."""
    cleaner = TableCleaner(sentinels=None)
    fitted = cleaner.fit_transform(table(first(cells)))["x"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = cleaner.transform(table(later(cells)))["x"]
    return cleaner.kinds_["x"], fitted, read, [str(w.message) for w in caught]


@settings(max_examples=150)
@given(
    st.lists(instants, min_size=3, max_size=6, unique=True),
    st.sampled_from(list(INSTANTS)),
    st.sampled_from(list(LATER)),
)
def test_dates_are_the_same_instants_in_every_type(cells, first, later):
    cells = pd.Series(cells, dtype="datetime64[us]")
    kind, fitted, read, warned = read_in_another_type(
        cells, INSTANTS[first], LATER[later]
    )
    assert kind == "dates"
    pd.testing.assert_series_equal(read, fitted)
    assert all("zone" in text and "'x'" in text for text in warned)


@settings(max_examples=60)
@given(
    st.lists(st.integers(-(10**9), 10**9), min_size=3, max_size=6),
    st.sampled_from(list(NUMBERS)),
    st.sampled_from(list(NUMBERS)),
)
def test_numbers_are_the_same_in_every_type(cells, first, later):
    kind, fitted, read, warned = read_in_another_type(
        pd.Series(cells), NUMBERS[first], NUMBERS[later]
    )
    assert (kind, warned) == ("numbers", [])
    assert read.tolist() == fitted.tolist() == cells


@pytest.mark.parametrize("later", FLAGS)
@pytest.mark.parametrize("first", ["bool", "nullable", "arrow", "objects", "polars"])
def test_booleans_are_the_same_in_every_type(first, later):
    cells = pd.Series([True, False, True])
    _, fitted, read, warned = read_in_another_type(cells, FLAGS[first], FLAGS[later])
    assert read.tolist() == fitted.tolist() == [1.0, 0.0, 1.0]
    assert warned == []


@pytest.mark.parametrize("later", CATEGORIES)
@pytest.mark.parametrize("first", CATEGORIES)
def test_categories_are_the_same_in_every_type(first, later):
    cells = pd.Series(["red", "blue", "red"])
    read = read_in_another_type(cells, CATEGORIES[first], CATEGORIES[later])
    assert read[2].tolist() == read[1].tolist() == ["red", "blue", "red"]
    assert read[3] == []


@pytest.mark.parametrize("later", DURATIONS)
@pytest.mark.parametrize("first", ["durations", "objects", "arrow", "polars"])
def test_durations_are_the_same_in_every_type(first, later):
    cells = pd.Series(pd.to_timedelta([90, 3600, 86400], unit="s"))
    read = read_in_another_type(cells, DURATIONS[first], DURATIONS[later])
    assert read[2].tolist() == read[1].tolist() == [90.0, 3600.0, 86400.0]
    assert read[3] == []


# -- categories ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fitted", "later"),
    [
        (["1", "2"], [1, 2.0]),
        (["01", "02"], [1, 2]),
        (["1.0", "2.5"], [1, 2.5]),
        (["1", "2"], ["1.0", b"2"]),
        (["true", "false"], [True, False]),
        (["True", "False"], [1, 0]),
        (["1 day, 0:00:00", "0:01:30"], [datetime.timedelta(1), "0 days 00:01:30"]),
        (["P1D", "PT90S"], [86400, 90.0]),
        (["2020-03-01", "2020-03-02T00:00:00Z"], ["2020-03-01T00:00:00", DAYS[1]]),
        (["2019-01-01", "2020-03-01"], [pd.Timestamp("2019"), DAYS[0]]),
        (["2020-01-01"], [pd.Timestamp("2020-01-01 09:00", tz="Asia/Tokyo")]),
        ([b"red", b"blue"], ["red", "blue"]),
    ],
)
def test_a_category_is_the_same_in_every_text_for_its_value(fitted, later):
    category = pd.Series(fitted * 3, dtype=object).astype("category")
    cleaner = TableCleaner(sentinels=None)
    read = cleaner.fit_transform(pd.DataFrame({"x": category}))["x"]
    assert cleaner.kinds_ == {"x": "categories"}
    for n_rows in {1, len(later)}:
        cells = pd.Series(later[:n_rows])
        assert cleaner.transform(table(cells))["x"].tolist() == read[:n_rows].tolist()


def test_a_value_with_several_texts_in_fit_keeps_them_apart():
    category = pd.Series(["1", "01", "1.0", "x"] * 3, dtype="category")
    cleaner = TableCleaner(sentinels=None).fit(pd.DataFrame({"x": category}))
    read = cleaner.transform(table(pd.Series(["01", "1", "1.00", "x"])))["x"]
    assert read.tolist() == ["01", "1", "1.00", "x"]


def test_text_in_bytes_is_text():
    cells = pd.Series([b"1.5", b"2", None] * 10)
    cleaner = TableCleaner().fit(table(cells))
    assert cleaner.kinds_ == {"x": "numbers"}
    assert cleaner.transform(table(pd.Series(["2", 1.5])))["x"].tolist() == [2.0, 1.5]
    cells = pd.Series([b"\xff", b"\xfe"] * 15)
    assert TableCleaner().fit(table(cells)).kinds_ == {"x": "categories"}


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "b"] * 2, type=pa.string_view()),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2] * 2), ["a", None, "b"]),
    ],
)
def test_arrays_of_arrow_that_pandas_cannot_convert_are_read(column):
    X = pa.table({"x": column, "n": range(6)})
    cleaner = TableCleaner()
    frame = X.to_pandas(types_mapper=pd.ArrowDtype)
    for read in (cleaner.fit_transform(X), cleaner.transform(frame)):
        assert read["x"].astype(object).fillna("").tolist() == ["a", "", "b"] * 2
    empty = pa.table({"x": pa.array([None]).dictionary_encode(), "n": [1]})
    assert cleaner.transform(empty)["x"].isna().all()


# -- dates ---------------------------------------------------------------------------


def test_times_of_the_hour_that_occurs_twice_are_kept_apart():
    hours = pd.date_range("2020-10-24 22:00", periods=8, freq="h", tz="UTC")
    paris = pd.DataFrame({"x": hours.tz_convert("Europe/Paris")})
    cleaner = TableCleaner().fit(pd.DataFrame({"x": hours}))
    assert cleaner.transform(paris)["x"].tolist() == list(hours.tz_localize(None))


def test_other_text_than_iso_is_read_in_the_format_of_fit_or_in_iso():
    cleaner = TableCleaner().fit(table(DAYS.dt.strftime("%d.%m.%Y")))
    later = pd.Series(["05.03.2020", "2020-03-05", "2020-03-05T00:00:00Z"])
    dates = cleaner.transform(table(later))["x"]
    assert set(dates) == {pd.Timestamp("2020-03-05")}


@pytest.mark.parametrize(
    "texts",
    [
        ["2020-03-04", "2020-03-04T00:00:00.0", "2020-03-04 00:00"],
        ["2020-03-04 00:00", "04/03/2020", "31/12/2019"],
        ["04.03.2020", "2020-03-04T00:00:00Z", "4 March 2020", "Mar 4, 2020"],
        ["03/04/2020", "12/31/2019", "03/04/2020 12:00 AM", "03/04/20 00:00:00"],
        ["4-Mar-20", "2020/03/04", "2020-03-04T09:00+09:00", "2020-03-04"],
        ["4 MAR 2020", "Mar. 4, 2020", "4-march-20", "31 Dec. 2019"],
    ],
)
def test_dates_of_several_formats_in_one_column_are_dates(texts):
    day, new_year = pd.Timestamp("2020-03-04"), pd.Timestamp("2019-12-31")
    cleaner = TableCleaner()
    for cells in (texts * 5, texts[::-1] * 5):
        fitted = cleaner.fit_transform(table(pd.Series(cells)))["x"]
        assert cleaner.kinds_ == {"x": "dates"}
        assert set(fitted) <= {day, new_year}
    for text in texts:
        later = cleaner.transform(table(pd.Series([text])))["x"]
        assert later.tolist() == [new_year if "31" in text else day]


@pytest.mark.parametrize("format_", ["{} {} 2020", "{}-{}-20", "{1}. {0}, 2020"])
def test_september_has_two_abbreviations(format_):
    days = pd.Series(pd.date_range("2020-08-25", "2020-10-05"))
    texts = [format_.format(d.day, d.strftime("%b")) for d in days]
    later = [text.replace("Sep", "Sept") for text in texts]
    for first, second in ((texts, later), (later, texts)):
        cleaner = TableCleaner().fit(table(pd.Series(first)))
        for cells in (first, second):
            read = cleaner.transform(table(pd.Series(cells)))["x"]
            assert read.tolist() == days.tolist()


@pytest.mark.parametrize("first", ["%d/%m/%Y", "%m/%d/%Y"])
def test_a_day_above_12_decides_the_order_in_the_whole_column(first):
    others = [first.replace("/", "-"), first.lower()]
    others += [first + " %H:%M", first + " %H:%M:%S", first + " %I:%M %p"]
    day = pd.Timestamp("2020-03-05 22:00")
    days = DAYS.dt.strftime(first).tolist()
    for text in map(day.strftime, others):
        for row, cells in ((0, [text, *days]), (-1, [*days, text])):
            cleaner = TableCleaner()
            read = cleaner.fit_transform(table(pd.Series(cells)))["x"]
            assert read.iloc[row].normalize() == day.normalize()
            assert read.notna().all()


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("%Y-%m-%d %H:%M", "2020-01-05 24:00"),
        ("%Y-%m-%d %H:%M", "2020-01-05 12:60"),
        ("%Y-%m-%d %H:%M", "2020-01-05 12:00+99:00"),
        ("%d %b %Y", "31 Sept 2020"),
        ("%m/%d/%Y %I:%M a.m.", "01/05/2020 13:00 p.m."),
    ],
)
def test_a_date_that_does_not_exist_is_missing(format_, text):
    days = DAYS.dt.strftime(format_).tolist()
    for cells in ([text, *days], [*days, text]):
        read = TableCleaner().fit_transform(table(pd.Series(cells)))["x"]
        assert read.isna().to_numpy().nonzero()[0] == [cells.index(text)]


def test_halves_of_the_day_may_have_dots():
    texts = ["01/05/2020 01:00 p.m.", "01/05/2020 01:00 PM", "01/25/2020 01:00 A.M."]
    read = TableCleaner().fit_transform(table(pd.Series(texts * 5)))["x"]
    assert read.dt.hour.tolist() == [13, 13, 1] * 5


ORDERS = "with the day first and with the month first"


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        (
            ["13/02/2020", "02/13/2020"],
            f"{ORDERS}, for example '13/02/2020' and '02/13/2020'",
        ),
        (
            ["01/02/2020", "02/13/2020 10:00", "14/02/2020"],
            f"{ORDERS}, for example '02/13/2020 10:00' and '14/02/2020'",
        ),
        (["2020-01-05 24:00"], "of unknown formats, for example '2020-01-05 24:00'"),
    ],
)
def test_dates_without_a_clear_format_are_categories_with_a_warning(cells, problem):
    with pytest.warns(UserWarning, match="categories") as caught:
        cleaner = TableCleaner().fit(table(pd.Series(cells * 9)))
    assert cleaner.kinds_ == {"x": "categories"}
    assert [str(warning.message) for warning in caught] == [
        f"Column 'x' contains dates {problem}: they count as categories. Convert the "
        "column to dates first, for example by pandas.to_datetime(column, format=...)."
    ]


@pytest.mark.parametrize("zone", [None, datetime.UTC])
def test_dates_of_all_centuries_are_dates_in_every_type(zone):
    years = [1, 1500, 1677, 2020, 2263, 9999] * 4
    dates = [datetime.datetime(year, 2, 28, 5, tzinfo=zone) for year in years]
    expected = np.array([date.replace(tzinfo=None) for date in dates], "M8[us]")
    formats = {
        "objects": dates,
        "ISO": [date.isoformat() for date in dates],
        "days first": [
            date.isoformat()[8:10]
            + f"/02/{date.year:04} 05:00:00{'+00:00' * bool(zone)}"
            for date in dates
        ],
        "polars": pl.Series(dates),
    }
    for first in formats:
        cleaner = TableCleaner(sentinels=None)
        cells = {"x": formats[first]}
        X = (
            pl.DataFrame(cells)
            if first == "polars"
            else pd.DataFrame(cells, dtype=object)
        )
        assert cleaner.fit_transform(X)["x"].tolist() == expected.tolist()
        for cells in (formats[first], formats["objects"], formats["ISO"]):
            read = cleaner.transform([{"x": cell} for cell in cells])["x"]
            np.testing.assert_array_equal(read.to_numpy(), expected)


@pytest.mark.parametrize("unit", ["s", "ms"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_dates_beyond_microseconds_are_missing(unit, zone):
    days = np.array(["2020-01-05", "300000-01-01", "NaT", "-300000-01-01"], "M8[D]")
    days = pd.Series(days.astype(f"M8[{unit}]"))
    if zone is not None:  # pandas 2 cannot localize such dates in other zones than UTC
        days = days.dt.tz_localize("UTC").dt.tz_convert(zone)
    example = days.dt.tz_localize(None).to_numpy()[1]
    cleaner = TableCleaner()
    assert cleaner.fit_transform(table(days))["x"].notna().tolist() == [True, *3 * [0]]
    with pytest.warns(ChangedColumnWarning) as caught:
        assert cleaner.transform(table(days))["x"].notna().sum() == 1
    assert str(caught[0].message) == (
        "2 of the 3 values of column 'x' cannot be read as dates, which it had in fit, "
        f"for example '{example}': they count as missing."
    )


@pytest.mark.parametrize(
    ("zone", "later", "message"),
    [
        (
            "Asia/Tokyo",
            None,
            "Column 'x' has no time zone, and had Asia/Tokyo in fit: its times are "
            "read as UTC. Localize it: dt.tz_localize('Asia/Tokyo').",
        ),
        (
            None,
            "Asia/Tokyo",
            "Column 'x' has the time zone Asia/Tokyo, and had none in fit: its times "
            "are converted to UTC. Pass dt.tz_localize(None) if fit had local times.",
        ),
        ("UTC", None, None),
        (None, "UTC", None),
    ],
)
def test_a_column_that_gains_or_loses_its_zone_is_named(zone, later, message):
    cleaner = TableCleaner().fit(table(DAYS.dt.tz_localize(zone)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cleaner.transform(table(DAYS.dt.tz_localize(later)))
    assert [str(warning.message) for warning in caught] == [message] * bool(message)
    assert all(w.category is ChangedColumnWarning for w in caught)
    assert all(w.filename == __file__ for w in caught)


def test_the_advice_about_a_lost_zone_works():
    tokyo = DAYS.dt.tz_localize("Asia/Tokyo")
    cleaner = TableCleaner().fit(table(tokyo))
    lost = tokyo.dt.tz_localize(None)
    read = cleaner.transform(table(lost.dt.tz_localize("Asia/Tokyo")))
    assert read["x"].tolist() == lost.tolist()


# -- columns that are lost -------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "later", "message"),
    [
        (
            "+05:00",
            "",
            "Column 'x' has no time zone, and had UTC+05:00 in fit: its times are read "
            "as UTC. Localize it: pandas.to_datetime(column).dt.tz_localize("
            "'UTC+05:00').",
        ),
        (
            "",
            "+01:00",
            "Column 'x' has the time zone +01:00, and had none in fit: its times are "
            "converted to UTC. Pass pandas.to_datetime(column).dt.tz_localize(None) if "
            "fit had local times.",
        ),
        ("+05:00", "+01:00", None),
        ("Z", "", None),
        ("", "Z", None),
    ],
)
def test_text_that_gains_or_loses_its_offset_is_named(offset, later, message):
    times = pd.date_range("2020-01-05 10:00", periods=20, freq="17h")
    texts = times.strftime("%Y-%m-%dT%H:%M:%S")
    cleaner = TableCleaner().fit(pd.DataFrame({"x": texts + offset}))
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        cleaner.transform(pd.DataFrame({"x": texts + later}))
    assert [str(w.message) for w in issued] == ([message] if message else [])


@pytest.mark.parametrize(
    ("offset", "message", "localized"),
    [
        (
            "+01:00",
            "10 of the 20 times of column 'x' have no time zone, and the column had "
            "UTC+01:00 in fit: they are read as UTC. Localize them: "
            "column.map(pandas.Timestamp).map(lambda t: t if t.tz else t.tz_localize("
            "'UTC+01:00')).",
            lambda t: t if t.tz else t.tz_localize("UTC+01:00"),
        ),
        (
            "",
            "10 of the 20 times of column 'x' have a time zone, such as +01:00, and "
            "none had one in fit: they are converted to UTC. If fit had local times, "
            "pass column.map(pandas.Timestamp).map(lambda t: t.tz_localize(None)).",
            lambda t: t.tz_localize(None),
        ),
    ],
)
def test_text_of_which_some_has_no_offset_is_counted(offset, message, localized):
    times = pd.date_range("2020-01-05 10:00", periods=20, freq="17h")
    texts = times.strftime("%Y-%m-%dT%H:%M:%S")
    cleaner = TableCleaner().fit(pd.DataFrame({"x": texts + offset}))
    mixed = pd.Series([*(texts[:10] + "+01:00"), *texts[10:], None])
    with pytest.warns(ChangedColumnWarning) as caught:
        cleaner.transform(mixed.to_frame("x"))
    assert [str(w.message) for w in caught] == [message]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cells = mixed.map(pd.Timestamp).map(localized)
        read = cleaner.transform(cells.to_frame("x"))["x"]
    assert read.tolist() == [*times, pd.NaT]


@pytest.mark.parametrize(
    ("first", "later", "kind", "example"),
    [
        (pd.Series([1.5, 2.5, 3.5] * 20), "abc", "numbers", "'abc'"),
        (pd.Series([1.5, 2.5, 3.5] * 20), "1,5", "numbers", "'1,5'"),
        (pd.Series([1, 2, 3] * 20), pd.Timestamp("2020"), "numbers", "'2020-01-01T00"),
        (pd.Series([True, False] * 30), "perhaps", "numbers", "'perhaps'"),
        (DAYS, "soon", "dates", "'soon'"),
        (DAYS, "01/02/2020", "dates", "'01/02/2020'"),
        (DAYS, format_datetime(DAYS[0]), "dates", "'Sun, 01 Mar 2020"),
        (DAYS, 20.5, "dates", "'20.5'"),
        (DAYS, True, "dates", "'True'"),
    ],
)
def test_a_column_of_which_nothing_can_be_read_is_named(first, later, kind, example):
    cleaner = TableCleaner().fit(pd.DataFrame({"x": first, "n": range(60)}))
    changed = pd.DataFrame({"x": [later] * 20, "n": range(20)})
    with pytest.warns(ChangedColumnWarning) as caught:
        read = cleaner.transform(changed)
    assert read["x"].isna().all()
    assert len(caught) == 1
    text = str(caught[0].message)
    start = f"None of the 20 values of column 'x' can be read as {kind}, which it had "
    assert text.startswith(f"{start}in fit, for example {example}")
    assert text.endswith("': they count as missing.")


@pytest.mark.parametrize(
    ("first", "later", "kind", "example"),
    [
        ([1.5, 2.5, 3.5], ["1.5", "abc", None, "?", "1,5"], "numbers", "abc"),
        ([True, False], [True, "perhaps", "no", None], "numbers", "perhaps"),
        (DAYS, [*DAYS[:1], "soon", None, True], "dates", "soon"),
        (pd.to_timedelta([5, 9], unit="s"), ["PT5S", "x", "?", "y"], "numbers", "x"),
    ],
)
def test_cells_that_cannot_be_read_are_counted(first, later, kind, example):
    cleaner = TableCleaner().fit(table(pd.Series(first)))
    with pytest.warns(ChangedColumnWarning) as caught:
        read = cleaner.transform(table(pd.Series(later, dtype=object)))
    assert read["x"].notna().sum() == 1
    assert [str(warning.message) for warning in caught] == [
        f"2 of the 3 values of column 'x' cannot be read as {kind}, which it had in "
        f"fit, for example {example!r}: they count as missing."
    ]


@pytest.mark.parametrize(
    "cell", [None, np.nan, pd.NaT, "", "?", "unknown", -999.0, np.inf]
)
def test_a_column_of_missing_values_gives_no_warning(cell):
    X = pd.DataFrame({"x": [1.0, 2.0, -999.0] * 20, "day": DAYS, "k": ["a", "b"] * 30})
    cleaner = TableCleaner(sentinels={"x": [-999.0]} if cell == -999.0 else "auto")
    cleaner.fit(X)
    missing = None if cell in (-999.0, np.inf) else cell
    read = cleaner.transform(X.assign(x=cell, day=missing, k=missing))
    assert read.isna().all(axis=None)


@pytest.mark.parametrize("word", ["?", "unknown", "hello"])
def test_durations_beside_a_word_are_numbers_of_seconds(word):
    cells = [word] * 4 + [datetime.timedelta(hours=i) for i in range(4, 60)]
    cleaner = TableCleaner()
    read = cleaner.fit_transform(table(pd.Series(cells, dtype=object)))
    assert read["x"].tolist()[4:] == [3600.0 * i for i in range(4, 60)]
    assert list(read.columns) == (["x", "x_word"] if word == "hello" else ["x"])
    later = cleaner.transform(table(pd.Series(cells[4:])))  # of dtype timedelta64
    assert later["x"].tolist() == read["x"].tolist()[4:]
    assert later.iloc[:, 1:].isna().all(axis=None)
    # pandas 2 has no Timedelta of more than 292 years.
    long = pd.Series([datetime.timedelta(days=10**7), cells[5]], dtype=object)
    assert cleaner.transform(table(long))["x"].tolist() == [864e9, 5 * 3600.0]


def test_text_that_has_no_utf8_is_a_category():
    X = table(pd.Series(["\ud800", "b", "c"] * 20, dtype=object))
    read = TableCleaner().fit_transform(X)
    assert read["x"].tolist()[:3] == [r"\ud800", "b", "c"]


def test_numbers_that_are_missing_in_fit_too_give_no_warning():
    cleaner = TableCleaner().fit(table(pd.Series([1e300, 1.5, 2.5])))
    assert cleaner.transform(table(pd.Series(["1e300"])))["x"].isna().all()


def test_several_lost_columns_give_one_warning():
    X = pd.DataFrame({name: [1.5, 2.5] for name in "abcde"})
    cleaner = TableCleaner().fit(X)
    with pytest.warns(ChangedColumnWarning) as caught:
        cleaner.transform(pd.DataFrame({name: ["word"] for name in "abcde"}))
    assert len(caught) == 1
    assert str(caught[0].message) == (
        " ".join(
            f"None of the 1 values of column '{name}' can be read as numbers, which it "
            "had in fit, for example 'word': they count as missing."
            for name in "abc"
        )
        + " 2 more columns changed."
    )


def test_a_column_of_unknown_categories_is_named():
    X = pd.DataFrame({"k": ["u", "v"] * 30, "n": range(60)})
    net = StableNetClassifier(max_epochs=1, random_state=0)
    pipe = tabular_pipeline(net).fit(X, [0, 1] * 30)
    with pytest.warns(ChangedColumnWarning) as caught:
        pipe.predict(X.head(4).assign(k=[0, 1, 0, None]))
    assert [str(w.message) for w in caught] == [
        "None of the 3 values of column 'k' is a category that fit has seen, for "
        "example '0': they count as unknown."
    ]
    pipe.predict(X.head(4).assign(k=["u", "new", "new", "new"]))
    pipe.predict(X.head(4).assign(k=["new", None, None, None]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChangedColumnWarning)
        with pytest.raises(ChangedColumnWarning):
            pipe.predict(X.head(4).assign(k="z"))


def test_several_changed_columns_give_one_warning():
    X = pd.DataFrame({name: ["u", "v"] * 9 for name in "ab"} | {"n": range(18)})
    prepare = tabular_pipeline()[:2].fit(X)
    with pytest.warns(ChangedColumnWarning) as caught:
        prepare.transform(X.assign(a="new", b="other", n=["1", "many"] * 9))
    assert [str(warning.message) for warning in caught] == [
        "None of the 18 values of column 'a' is a category that fit has seen, for "
        "example 'new': they count as unknown. None of the 18 values of column 'b' is "
        "a category that fit has seen, for example 'other': they count as unknown. 9 "
        "of the 18 values of column 'n' cannot be read as numbers, which it had in "
        "fit, for example 'many': they count as missing."
    ]


def test_new_texts_in_a_column_without_repeated_texts_are_no_change():
    names = [f"name {i} of many" for i in range(30)]
    cleaner = TableCleaner().fit(table(pd.Series(names)))
    read = cleaner.transform(table(pd.Series(["another", "one"])))
    assert read["x"].tolist() == ["another", "one"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_category_of_dates_is_known_by_its_epoch(unit):
    dates = pd.Series(DAYS[:3].tolist() * 4)
    cleaner = TableCleaner().fit(table(dates.astype("category")))
    number = int((dates[0] - pd.Timestamp(0)) // pd.Timedelta(1, unit))
    for cell in (number, str(number)):
        assert cleaner.transform(table(pd.Series([cell])))["x"][0] == str(dates[0])


def test_utc_offsets_with_seconds_are_read():
    # The time zones of pandas 2 have offsets in whole minutes.
    paris = zoneinfo.ZoneInfo("Europe/Paris")
    dates = pd.Series(pd.date_range("1910-01-01", periods=30, tz=paris))
    texts = dates.map(pd.Timestamp.isoformat)
    assert texts[0] == "1910-01-01T00:00:00+00:09:21"
    cleaner = TableCleaner().fit(table(dates))
    expected = cleaner.transform(table(dates))["x"].tolist()
    assert cleaner.transform(table(texts))["x"].tolist() == expected
    in_utc = TableCleaner().fit(table(texts))
    assert in_utc.transform(table(dates))["x"].tolist() == (
        dates.dt.tz_convert("UTC").dt.tz_localize(None).tolist()
    )


# -- objects and other tables ----------------------------------------------------------


class Thing:
    """Object whose text is its address."""


@pytest.mark.parametrize("cell", [Thing(), Thing, lambda x: x, iter([])])
def test_objects_without_a_text_are_refused(cell):
    X = pd.DataFrame({"t": pd.Series(["a", cell] * 3, dtype=object), "x": range(6)})
    if isinstance(cell, type):  # a class has a text
        assert TableCleaner().fit(X).kinds_["t"] == "categories"
        return
    with pytest.raises(ValueError, match="without a text") as caught:
        TableCleaner().fit(X)
    assert str(caught.value) == (
        f"Column 't' contains objects without a text form (__str__), first {cell} at "
        "row 1. Convert them to numbers or text, or leave the column out."
    )
    for dtype in (object, "category"):
        with pytest.raises(ValueError, match="without a text"):
            TableCleaner().fit(X.astype({"t": dtype}))
    found = {finding.kind: finding for finding in audit(X)}
    assert str(found["opaque"].columns) == "('t',)"
    assert found["opaque"].severity == "breaks training"


def test_arrays_of_any_library_in_cells_are_refused():
    cells = pd.Series([torch.ones(1), torch.ones(2)] * 3, dtype=object)
    with pytest.raises(ValueError, match="lists, dicts or arrays"):
        TableCleaner().fit(pd.DataFrame({"t": cells}))


def test_structured_and_masked_arrays_are_tables():
    rows = [(1.0, "red", True), (2.0, "blue", False)] * 20
    X = np.array(rows, dtype=[("size", "f8"), ("color", "U4"), ("flag", "?")])
    cleaner = TableCleaner().fit(X)
    assert cleaner.kinds_ == {
        "size": "numbers",
        "color": "categories",
        "flag": "numbers",
    }
    assert "40 rows, 3 columns" in str(audit(X))
    masked = np.ma.array([[1e30, 1.0], [2.0, 3.0]], mask=[[1, 0], [0, 0]])
    assert np.isnan(TableCleaner().fit_transform(masked)).to_numpy().sum() == 1
    y = np.ma.array([0, 1] * 20, mask=[0, 0, 0, 1] * 10)
    assert "target missing: 25 %" in str(audit(X, y))


def test_integers_beyond_float64_are_read_from_every_container():
    rows = [[10**400, 1.0], [5, 2.0]] * 9
    by_name = {"a": [row[0] for row in rows], "b": [row[1] for row in rows]}
    frame = pd.DataFrame(rows, columns=["a", "b"], dtype=object)
    expected = TableCleaner().fit_transform(frame).to_numpy()
    for X in (rows, np.array(rows, dtype=object), by_name):
        read = TableCleaner().fit_transform(X)
        np.testing.assert_array_equal(read.to_numpy(), expected)
    with pytest.raises(
        ValueError, match=r"^Unknown label type: y .* type int, first 10"
    ):
        StableNetClassifier().fit(np.eye(18), by_name["a"])


# Of convert_dtypes of pandas 2, on 1e300.
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_columns_of_numbers_are_read_at_once_as_one_by_one():
    X = pd.DataFrame(
        {
            "k": ["u", "v"] * 30,
            "x": [1.5, -999.0, np.inf, 1e300, np.nan, 2.5] * 10,
            "flag": [True, False] * 30,
            "n": np.arange(60, dtype="int8"),
            "day": DAYS,
            "half": np.arange(60, dtype="float16"),
        }
    )
    cleaner = TableCleaner(sentinels={"x": [-999]})
    fitted = cleaner.fit_transform(X)
    assert list(fitted) == list(X)
    assert fitted["x"].notna().tolist() == [True, False, False, False, False, True] * 10
    for other in (X, X.astype(object), X[list(X)[::-1]], X.convert_dtypes()):
        pd.testing.assert_frame_equal(cleaner.transform(other), fitted)
    numbers = X[["x", "n", "half"]].to_numpy()
    cleaner = TableCleaner(sentinels=[-999])
    pd.testing.assert_frame_equal(
        cleaner.fit_transform(numbers), cleaner.transform(numbers)
    )


def test_a_wide_table_keeps_the_order_of_its_columns():
    X = pd.DataFrame(np.arange(3000.0).reshape(20, 150)).add_prefix("n")
    X.insert(70, "k", list("uvuw") * 5)
    cleaner = TableCleaner()
    fitted = cleaner.fit_transform(X)
    assert list(fitted) == list(X)
    pd.testing.assert_frame_equal(cleaner.transform(X), fitted)
