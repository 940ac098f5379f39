"""Columns of unusual and random types, also of other types at predict time."""

import contextlib
import datetime
import fractions
import traceback
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing.parametric import dataframes

import sknan
from sknan import StableNetClassifier
from sknan.estimators import tabular_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::sknan.exceptions.ChangedColumnWarning")

N = 40

COLUMNS = {
    "bytes": [b"a", b"b"] * 20,
    "period": pd.period_range("2020-01", periods=N, freq="M"),
    "interval": pd.interval_range(0, N),
    "time": [datetime.time(1)] * N,
    "date": [datetime.date(2020, 1, 1)] * N,
    "far date": [datetime.date(9999, 12, 31)] * N,
    "categories of integers": pd.Categorical([0, 1] * 20),
    "categories of dates": pd.Categorical(pd.date_range("2020", periods=N)),
    "fractions": [fractions.Fraction(1, 3)] * N,
    "blank": [""] * N,
    "float16": np.arange(N, dtype="f2"),
    "huge": pd.Series([10**400, -(10**400)] * 20, dtype=object),
    "unsigned": np.full(N, 2**64 - 1, dtype="u8"),
    "sparse": pd.arrays.SparseArray(np.zeros(N)),
    "two zones": [pd.Timestamp("2020", tz="UTC"), pd.Timestamp("2020")] * 20,
    "distinct text": [f"{i} {i * 7}" for i in range(N)],
    "no date": [pd.NaT] * N,
    "string": pd.array(["a", None] * 20, dtype="string"),
    "nullable": pd.array([1.5, None] * 20, dtype="Float64"),
    "booleans and words": [True, "x"] * 20,
    "durations": pd.to_timedelta([1, None] * 20, unit="s"),
    "two formats": ["2020-01-05 10:00", "31/12/2020"] * 20,
}


@pytest.mark.parametrize("name", COLUMNS)
def test_any_column_gives_finite_predictions_even_if_its_type_changes(name):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({name: COLUMNS[name], "number": rng.normal(size=N)})
    model = tabular_pipeline(random_state=0).set_params(net__estimator__max_epochs=1)
    model.fit(X, rng.integers(0, 2, size=N))
    assert np.isfinite(model.predict_proba(X)).all()
    for other in ("word", 1.5, pd.Timestamp("2020"), None):
        changed = X.assign(**{name: other})
        assert np.isfinite(model.predict_proba(changed)).all()


# -- random tables ---------------------------------------------------------------------

REGULAR = {
    "floats": st.floats(-1e3, 1e3),
    "wide floats": st.floats(),
    "singles": st.floats(width=32),
    "integers": st.integers(-1000, 1000),
    "huge integers": st.integers(),
    "booleans": st.booleans(),
    "letters": st.sampled_from(["red", "blue", "NA", "unknown"]),
    "text": st.text(max_size=4),
    "digits": st.integers(-99, 99).map(str),
    "decimals": st.decimals(allow_nan=False, allow_infinity=False, places=2),
    "dates": st.datetimes(),
    "days": st.dates().map(str),
    "durations": st.timedeltas(),
    "zoned": st.datetimes(timezones=st.just(datetime.UTC)),
    "nothing": st.none(),
}

DAMAGE = st.sampled_from(
    [
        *(np.nan, np.inf, -np.inf, 1e300, -1e39, None, pd.NA, pd.NaT, "", " ", "?"),
        *("N/A", "word", "-999", "1e999", "inf", -999, 10**400, True, b"bytes"),
        *(pd.Timestamp("2020"), pd.Timedelta(1), Decimal("NaN")),
        *(fractions.Fraction(1, 3), np.float16(1), np.datetime64("NaT", "s"), [1], 1j),
    ]
)

DTYPES = st.sampled_from(
    [None, None, object, "category", "string", "Float64", "Int64", "boolean", "float16"]
)


def columns(kind, n_rows):
    """Strategy for cells of one kind, damage to some of them, and a dtype."""
    cells = st.lists(REGULAR[kind], min_size=n_rows, max_size=n_rows)
    damage = st.dictionaries(st.integers(0, n_rows - 1), DAMAGE, max_size=2)
    return st.tuples(cells, damage, DTYPES)


def frame_of(drawn):
    frame = {}
    for i, (cells, damage, dtype) in drawn.items():
        cells = [damage.get(j, cell) for j, cell in enumerate(cells)]
        column = pd.Series(cells, dtype=object)
        # Not every cell can be converted to every dtype.
        wrong = contextlib.suppress(TypeError, ValueError, ArithmeticError)
        with wrong, np.errstate(all="ignore"):
            column = column.astype(dtype) if dtype else column.infer_objects()
        frame[i] = column
    return pd.DataFrame(frame)


def tables(kinds, n_rows):
    return st.fixed_dictionaries(
        {f"x{i}": columns(kind, n_rows) for i, kind in enumerate(kinds)}
    )


KIND = st.sampled_from(list(REGULAR))

# Tables to fit and to predict, of the same kinds and of other kinds.
TABLES = st.lists(st.tuples(KIND, KIND), min_size=1, max_size=3).flatmap(
    lambda pairs: st.tuples(
        tables([first for first, _ in pairs], 12),
        tables([first for first, _ in pairs], 3),
        tables([other for _, other in pairs], 3),
    )
)


def is_refused_by_sknan(error):
    """Whether sknan raised the error, and not numpy, pandas or torch."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    is_of_sknan = Path(last.filename).is_relative_to(Path(sknan.__file__).parent)
    return is_of_sknan and isinstance(error, (ValueError, TypeError))


def check_predictions_are_finite(train, *others):
    net = StableNetClassifier(max_epochs=1, batch_size=8, random_state=0)
    model = tabular_pipeline(net, random_state=0)
    try:
        model.fit(train, np.arange(len(train)) % 2)
    except Exception as error:
        if not is_refused_by_sknan(error):
            raise
        return
    for table in (train, *others):
        try:
            output = model.predict_proba(table)
        except Exception as error:
            if not is_refused_by_sknan(error):
                raise
        else:
            assert np.isfinite(output).all()


@settings(max_examples=40, derandomize=True)
@given(TABLES)
def test_random_pandas_tables_give_finite_predictions_or_an_error_of_sknan(drawn):
    train, *others = map(frame_of, drawn)
    check_predictions_are_finite(train, *others)


@settings(
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.data_too_large],
)
@given(
    dataframes(
        min_cols=1,
        max_cols=3,
        min_size=8,
        max_size=8,
        allow_null=True,
        excluded_dtypes=[pl.List, pl.Array, pl.Struct],
    )
)
def test_random_polars_tables_give_finite_predictions_or_an_error_of_sknan(table):
    check_predictions_are_finite(table, table.reverse().head(3))


@pytest.mark.parametrize(
    "cells",
    [
        pl.Series([[1, 2], None]),
        pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int8, 2)),
        pl.Series([{"a": 1}, {"a": 2}]),
    ],
)
def test_nested_columns_of_polars_are_refused(cells):
    with pytest.raises(ValueError, match="Unpack them") as caught:
        tabular_pipeline().fit(pl.DataFrame({"x": cells}), [0, 1])
    assert str(caught.value) == (
        "Column 'x' contains lists, dicts or arrays. Unpack them into columns of their "
        "own."
    )
