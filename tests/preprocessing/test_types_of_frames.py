"""Frames of any types, served in others that hold the same values, are read alike."""

from __future__ import annotations

import datetime
import decimal
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sknan.exceptions import ChangedColumnWarning
from sknan.preprocessing import TableCleaner

EPOCH = datetime.datetime(1970, 1, 1)


def pandas(dtype, convert=None):
    return "pandas", lambda cells: pd.Series(mapped(cells, convert), dtype=dtype)


def polars(dtype, convert=None):
    return "polars", lambda cells: pl.Series(mapped(cells, convert), dtype=dtype)


def arrow(dtype, convert=None):
    return "arrow", lambda cells: pa.array(mapped(cells, convert), type=dtype)


def in_pandas(dtype, convert=None):
    return pandas(pd.ArrowDtype(dtype), convert)


def records(convert=None):
    return "records", lambda cells: mapped(cells, convert)


def category(convert=None, dtype=object):
    series = pandas(dtype, convert)[1]
    return "pandas", lambda cells: series(cells).astype("category")


def mapped(cells, convert):
    return [c if c is None or convert is None else convert(c) for c in cells]


def texts_of(text):
    """Return the types that hold text, and bytes."""
    return [
        pandas(object, text),
        pandas("string", text),
        pandas(object, lambda cell: text(cell).encode()),
        category(text),
        in_pandas(pa.large_string(), text),
        polars(pl.String, text),
        polars(pl.Categorical, text),
        arrow(pa.string_view(), text),
        ("arrow", lambda c: pa.array(mapped(c, text), pa.string()).dictionary_encode()),
        records(text),
    ]


def aware(date, zone="Asia/Tokyo"):
    return pd.Timestamp(date, tz="UTC").tz_convert(zone)


def in_paris(date):
    """Return text whose UTC offset has seconds before 1911."""
    return aware(date, "Europe/Paris").isoformat()


def epoch(date):
    return (date - EPOCH) // datetime.timedelta(milliseconds=1)


def in_utc(dtype):
    return lambda cells: pl.Series(cells, dtype=dtype).dt.replace_time_zone("UTC")


NUMBERS = [
    pandas(float),
    pandas(object),
    pandas("Float64"),
    pandas(object, np.float64),
    pandas(object, lambda cell: decimal.Decimal(repr(cell))),
    category(dtype=float),
    in_pandas(pa.float64()),
    polars(pl.Float64),
    polars(pl.Object),
    arrow(pa.float64()),
    records(),
    *texts_of(repr),
]
INTEGERS = [
    pandas("Int64"),
    pandas(object, decimal.Decimal),
    category(dtype="Int64"),
    in_pandas(pa.decimal128(25, 2), decimal.Decimal),
    polars(pl.Int64),
    polars(pl.Int128),
    arrow(pa.int64()),
    *texts_of(str),
    *[(container, of) for container, of in NUMBERS if of is not NUMBERS[4][1]],
]
# Numbers in ``fit`` are read as numbers: flags in words are served to flags only.
FLAGS = [
    pandas("boolean"),
    pandas(object),
    pandas(object, np.bool_),
    category(),
    in_pandas(pa.bool_()),
    polars(pl.Boolean),
    arrow(pa.bool_()),
    records(),
    *texts_of(str),
]
SERVED_FLAGS = [*FLAGS, pandas("Int8", int), *texts_of(lambda flag: str(flag).lower())]
WORDS = [*texts_of(str), pandas(object, np.str_), polars(pl.Binary, str.encode)]
DATES = [
    pandas("datetime64[us]"),
    pandas("datetime64[s]"),
    pandas(object),
    pandas(object, np.datetime64),
    pandas(object, aware),
    in_pandas(pa.timestamp("ms")),
    in_pandas(pa.timestamp("us", "Asia/Tokyo"), aware),
    polars(pl.Datetime("ns")),
    ("polars", in_utc(pl.Datetime("us"))),
    arrow(pa.timestamp("s")),
    arrow(pa.timestamp("us", "Asia/Tokyo"), aware),
    records(),
    *texts_of(datetime.datetime.isoformat),
    *texts_of(lambda date: aware(date).isoformat()),
    *texts_of(in_paris),
]
DATE_CATEGORIES = [category(), category(in_paris), category(aware)]
SERVED_DATE_CATEGORIES = [
    *DATE_CATEGORIES,
    *DATES,
    records(epoch),
    arrow(pa.int64(), epoch),
    polars(pl.Int64, epoch),
    *texts_of(lambda date: str(epoch(date))),
]
DURATIONS = [
    pandas("timedelta64[us]"),
    pandas(object),
    in_pandas(pa.duration("us")),
    polars(pl.Duration("ms")),
    arrow(pa.duration("s")),
    records(),
]
SERVED_DURATIONS = [
    *DURATIONS,
    records(datetime.timedelta.total_seconds),
    *texts_of(str),
    *texts_of(lambda span: pd.Timedelta(span).isoformat()),
]

WHOLE_SECONDS = st.integers(-(2 * 10**9), 10**9)
INSTANTS = WHOLE_SECONDS.map(lambda s: EPOCH + datetime.timedelta(seconds=s))
# "0.0" and "-0.0" are two categories of one value.
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False).map(
    lambda x: x + 0.0
)
KINDS = [
    (FLOATS, NUMBERS, NUMBERS),
    (st.integers(-(2**53), 2**53), INTEGERS, INTEGERS),
    (st.booleans(), FLAGS, SERVED_FLAGS),
    (st.sampled_from(["red", " blue", "é", "1", "b,c"]), WORDS, WORDS),
    (INSTANTS, DATES, DATES),
    (INSTANTS, DATE_CATEGORIES, SERVED_DATE_CATEGORIES),
    (
        WHOLE_SECONDS.map(lambda s: datetime.timedelta(seconds=abs(s))),
        DURATIONS,
        SERVED_DURATIONS,
    ),
]

# pandas 2 reads the texts of both numbers inexactly, and that of the second as one
# beyond float32.
LARGE = [6.491652960079215e33, 3.4028234663852886e38]


def frame(container, columns):
    named = {f"c{j}": cells for j, cells in enumerate(columns)}
    if container == "pandas":
        return pd.DataFrame(named)
    if container == "polars":
        return pl.DataFrame(named)
    if container == "arrow":
        return pa.table(named)
    return [dict(zip(named, row, strict=True)) for row in zip(*columns, strict=True)]


@st.composite
def tables(draw):
    """Draw a table in two representations, of the second only some rows."""
    containers = [
        draw(st.sampled_from(["pandas", "polars", "arrow", "records"])) for _ in "ab"
    ]
    can_be_fitted = [kind for kind in KINDS if containers[0] in dict(kind[1])]
    kinds = draw(st.lists(st.sampled_from(can_be_fitted), min_size=1, max_size=2))
    n_served = draw(st.sampled_from([1, 4]))
    pairs = []
    for values, fitted, served in kinds:
        cells = [
            draw(values),
            *draw(st.lists(st.none() | values, min_size=3, max_size=3)),
        ]
        pairs.append(
            [
                draw(st.sampled_from([of for c, of in types if c == container]))(part)
                for types, container, part in zip(
                    (fitted, served), containers, (cells, cells[:n_served]), strict=True
                )
            ]
        )
    return [
        frame(*args) for args in zip(containers, zip(*pairs, strict=True), strict=True)
    ]


@settings(max_examples=300)
@given(tables())
@example(
    [frame("pandas", [of(LARGE)]) for _, of in (category(dtype=float), category(repr))]
)
@example(
    [frame("pandas", [of(LARGE)]) for _, of in (pandas(float), pandas(object, repr))]
)
def test_a_frame_in_other_types_is_read_alike_or_the_column_is_named(drawn):
    fitted, served = drawn
    cleaner = TableCleaner(sentinels=None)
    expected = cleaner.fit_transform(fitted)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = cleaner.transform(served)
    assert {warning.category for warning in caught} <= {ChangedColumnWarning}
    assert len(caught) <= 1
    for name in expected:
        before = expected[name].iloc[: len(read)]
        is_same = (before.astype(object) == read[name].astype(object)) | (
            before.isna() & read[name].isna()
        )
        named = any(repr(name) in str(warning.message) for warning in caught)
        assert is_same.all() or named, (before, read[name])
