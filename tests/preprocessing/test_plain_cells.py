"""Missing markers, dates and objects in imputer, scaler, networks and targets."""

from __future__ import annotations

import decimal
import math

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from sknan import (
    BatchedGridSearchCV,
    GuardedNetRegressor,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetRegressor,
    audit,
    tabular_pipeline,
)
from sknan.exceptions import NonFiniteDataError
from sknan.preprocessing import TableCleaner, iter_chunks
from sknan.preprocessing._tables.lazy_table import read_table
from sknan.preprocessing._tables.typed_column import read_column

ENCODE = "Encode the table first, for example with skrub.TableVectorizer()"

DAYS = pd.Series(pd.to_datetime(["2020-01-01", None, "2020-01-03", "2020-01-01"]))
DATES = [None if pd.isna(day) else day.date() for day in DAYS]

# One column of dates in the types in which tables bring it.
DATED_TABLES = {
    "array": DAYS.to_numpy()[:, None],
    "array of objects": np.array(list(DAYS.to_numpy()), dtype=object)[:, None],
    "list": [[day] for day in DATES],
    "list of NumPy": [[day] for day in DAYS.to_numpy()],
    "dates": pd.DataFrame({"day": DATES}),
    "column": pd.DataFrame({"day": DAYS}),
    "beside numbers": pd.DataFrame({"n": [1.0, 2.0, 3.0, 4.0], "day": DAYS}),
    "zone": pd.DataFrame({"day": DAYS.dt.tz_localize("Europe/Paris")}),
    "category": pd.DataFrame({"day": pd.Categorical(DAYS)}),
    "arrow": pd.DataFrame({"day": DAYS.astype(pd.ArrowDtype(pa.timestamp("us")))}),
    "arrow table": pa.table({"day": DAYS}),
    "polars": pl.DataFrame({"day": DATES}),
}


def message_of(error, function, *args):
    with pytest.raises(error) as caught:
        function(*args)
    return str(caught.value)


# -- dates ---------------------------------------------------------------------------


@pytest.mark.parametrize("table", DATED_TABLES.values(), ids=DATED_TABLES)
def test_dates_are_never_cast_to_numbers(table):
    for model in (NaNImputer(), SafeScaler(), StableNetClassifier()):
        message = message_of(ValueError, model.fit, table, [0, 1, 0, 1])
        assert message.startswith("X contains dates, first 2020-01-01")
        assert " at row 0, column " in message
    for strategy in ("most_frequent", "median"):
        filled = NaNImputer(strategy=strategy).fit_transform(table)
        assert {str(day)[:10] for day in filled[:, -1]} == {"2020-01-01", "2020-01-03"}
        assert str(filled[1, -1])[:10] == "2020-01-01"


def test_the_message_about_dates_names_the_column_and_the_remedy_works():
    table = pd.DataFrame({"n": [1.0, 2.0], "day": DAYS[:2]})
    assert message_of(ValueError, NaNImputer(strategy="mean").fit, table) == (
        "X contains dates, first 2020-01-01 00:00:00 at row 0, column 'day', but "
        f"NaNImputer(strategy='mean') needs numbers. {ENCODE}, or pass "
        "strategy='most_frequent' or 'median'."
    )
    from skrub import TableVectorizer

    assert NaNImputer().fit(TableVectorizer().fit_transform(table))


def test_the_median_of_dates_is_a_date_of_the_column():
    days = [pd.Timestamp(2020, 1, day) for day in (9, 2, 4, 5)]
    table = pd.DataFrame(
        {"n": [1, 2, None, 5], "day": [*days[:3], None], "took": [None, *days[:3]]}
    )
    table["took"] -= days[0]
    imputer = NaNImputer(strategy="median", add_indicator=True).fit(table)
    assert imputer.statistics_.tolist() == [2.0, days[2], days[2] - days[0]]
    filled = imputer.transform(table)
    assert filled[2].tolist() == [2.0, days[2], days[1] - days[0], 1.0, 0.0, 0.0]
    even = NaNImputer(strategy="median").fit(pd.DataFrame({"day": days}))
    assert even.statistics_.tolist() == [days[2]]
    assert imputer.fit(table[["n"]]).statistics_.dtype == "float64"


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (["a", None, "b"], "it contains text"),
        (
            [DAYS[0], None, DAYS[0] - DAYS[0]],
            "'<' not supported between instances of 'Timedelta' and 'Timestamp'",
        ),
    ],
)
def test_a_column_beside_dates_without_a_median_is_refused(cells, reason):
    table = pd.DataFrame({"day": DAYS[:3], "x": pd.Series(cells, dtype=object)})
    assert message_of(ValueError, NaNImputer(strategy="median").fit, table) == (
        f"Column 'x' of X has no median: {reason}. Convert its values to one type, "
        "numbers or dates, or pass strategy='most_frequent'."
    )


def test_medians_of_dates_are_not_learned_in_parts():
    imputer = NaNImputer(strategy="median")
    table = pd.DataFrame({"day": DAYS})
    assert message_of(ValueError, imputer.partial_fit, table) == (
        "partial_fit learns medians of numbers, and dates were passed. Pass the whole "
        "table to fit, or convert the dates to numbers."
    )


def test_durations_are_refused():
    table = pd.DataFrame({"took": DAYS - DAYS[0]})
    assert message_of(ValueError, SafeScaler().fit, table) == (
        "X contains durations, first 0 days 00:00:00 at row 0, column 'took', but "
        f"SafeScaler needs numbers. {ENCODE}."
    )


def test_a_missing_date_is_flagged():
    imputer = NaNImputer(strategy="most_frequent", add_indicator=True)
    flags = imputer.fit_transform(pd.DataFrame({"day": DAYS}))[:, 1]
    assert flags.tolist() == [0, 1, 0, 0]


def test_a_column_in_which_every_date_is_missing_is_empty():
    table = pd.DataFrame({"n": [1.0, 2.0], "day": pd.to_datetime([None, None])})
    with pytest.warns(UserWarning, match=r"observed values: \['day'\]"):
        assert NaNImputer().fit_transform(table).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("cell", [{"a": 1}, {1}, [1, 2], 1j, object()])
def test_an_object_that_is_no_number_is_named(cell):
    table = pd.DataFrame({"n": [1.0, 2.0], "x": pd.Series([3, cell], dtype=object)})
    start = (
        f"X contains an object of type {type(cell).__name__} at row 1, column 'x', but "
        "SafeScaler needs numbers: "
    )
    message = message_of(TypeError, SafeScaler().fit, table)
    assert message.startswith(start)
    assert message.endswith(". Convert it to a number, or leave the column out.")


# -- missing markers -----------------------------------------------------------------


@pytest.mark.parametrize(
    "marker",
    [None, math.nan, pd.NA, pd.NaT, np.datetime64("NaT", "s"), decimal.Decimal("NaN")],
)
@pytest.mark.parametrize("kind", [np.array, pd.DataFrame, list])
def test_every_marker_among_objects_is_missing(marker, kind):
    rows = [[1.0], [marker], [3.0]]
    table = rows if kind is list else kind(rows, dtype=object)
    for strategy, value in (("mean", 2.0), ("median", 2.0), ("zero", 0.0)):
        filled = NaNImputer(strategy=strategy).fit_transform(table)
        assert filled.dtype == np.float64
        assert filled.ravel().tolist() == [1.0, value, 3.0]
    assert np.isnan(SafeScaler().fit_transform(table)[:, 0]).tolist() == [0, 1, 0]


@pytest.mark.parametrize("strategy", ["auto", "mean", "zero", "most_frequent"])
@pytest.mark.parametrize("marker", [None, pd.NA, math.nan])
def test_none_and_na_as_missing_values_are_the_same_as_nan(strategy, marker):
    table = np.array([[1.0], [None], [3.0], [np.nan], [1.0]], dtype=object)
    expected = NaNImputer(strategy=strategy, add_indicator=True).fit_transform(table)
    imputer = NaNImputer(
        missing_values=marker, strategy=strategy, add_indicator=True
    ).fit(table)
    assert imputer.transform(table).tolist() == expected.tolist()
    numbers = table.astype(float)
    np.testing.assert_array_equal(imputer.fit_transform(numbers), expected)


@settings(max_examples=40)
@given(st.data())
def test_masked_cells_are_missing_and_their_values_unread(data):
    kind = data.draw(st.sampled_from(["f8", "f4", "i8", "i2", "u1", "?", "O"]))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=6, max_size=6)))
    mask = mask.reshape(3, 2)
    cells = np.array([[1, 0], [1, 1], [0, 1]]).astype(kind)
    dtype = np.float32 if kind == "f4" else np.float64
    expected = np.where(mask, dtype(np.nan), cells.astype(dtype))
    table = np.ma.array(cells, mask=mask)
    for model in (NaNImputer(strategy="mean", keep_empty_features=True), SafeScaler()):
        np.testing.assert_array_equal(
            model.fit_transform(table), model.fit_transform(expected)
        )


def test_a_masked_text_is_missing():
    table = np.ma.array([["hidden"], ["red"], ["red"]], mask=[[1], [0], [0]])
    filled = NaNImputer(strategy="most_frequent").fit_transform(table)
    assert filled.tolist() == [["red"], ["red"], ["red"]]


def test_networks_refuse_masked_cells_by_place():
    X = np.ma.array([[1e30, 1.0], [2.0, 3.0]], mask=[[1, 0], [0, 0]])
    assert message_of(NonFiniteDataError, StableNetClassifier().fit, X, [0, 1]) == (
        "X contains 1 NaN value in 1 of 2 columns: 0 (1, first at row 0). Impute "
        "first: make_pipeline(NaNImputer(), SafeScaler(), StableNetClassifier())."
    )


# -- types of tables -----------------------------------------------------------------


def test_a_structured_array_is_a_table_of_its_fields():
    rows = [(1.0, 4), (np.nan, 5), (3.0, 6)]
    table = np.array(rows, dtype=[("price", "f8"), ("count", "i4")])
    imputer = NaNImputer().fit(table)
    assert imputer.feature_names_in_.tolist() == ["price", "count"]
    for same in (table, table.reshape(-1, 1)):
        assert imputer.transform(same).tolist() == [[1, 4], [2, 5], [3, 6]]


@pytest.mark.parametrize("dtype", [[("b", "f8"), ("c", "f8")], ("f8", 2)])
def test_a_structured_array_with_several_values_in_a_field_is_refused(dtype):
    table = np.zeros(3, dtype=[("a", *dtype) if "f8" in dtype else ("a", dtype)])
    for transformer in (NaNImputer(), SafeScaler(), TableCleaner()):
        with pytest.raises(ValueError, match="structured") as caught:
            transformer.fit(table)
        assert str(caught.value) == (
            "Field 'a' of the structured array does not hold one value for each row. "
            "Pass a DataFrame with a column for each value."
        )


@pytest.mark.parametrize(
    "strategy", ["auto", "mean", "zero", "most_frequent", "constant"]
)
@pytest.mark.parametrize(
    "convert",
    [np.array, list, pd.DataFrame, lambda X: pd.DataFrame(X).astype("boolean")],
)
def test_tables_of_booleans_become_zeros_and_ones(strategy, convert):
    table = convert([[True, False], [False, True], [True, True]])
    filled = NaNImputer(strategy=strategy).fit_transform(table)
    assert filled.dtype == np.float64
    assert filled.tolist() == [[1, 0], [0, 1], [1, 1]]


@pytest.mark.parametrize("convert", [np.array, list])
def test_text_of_numpy_is_filled(convert):
    table = convert([["red"], ["?"], ["red"]])
    imputer = NaNImputer(missing_values="?", strategy="most_frequent")
    assert imputer.fit_transform(table).tolist() == [["red"], ["red"], ["red"]]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.int64, 2**53 + 1), (np.int64, -(2**63)), (np.uint64, 2**64 - 1)],
)
def test_the_most_frequent_of_large_integers_is_exact(dtype, value):
    table = np.array([[value, 7], [value, 7], [1, 7], [5, 1]], dtype=dtype)
    imputer = NaNImputer(missing_values=1, strategy="most_frequent").fit(table)
    filled = imputer.transform(table)
    assert filled.dtype == dtype
    assert filled.tolist() == [[value, 7], [value, 7], [value, 7], [5, 7]]


@pytest.mark.parametrize(
    "convert",
    [
        lambda cells: pd.DataFrame({"a": pd.array(cells, dtype="Int64")}),
        lambda cells: pd.DataFrame({"a": pd.array(cells, dtype="int64[pyarrow]")}),
        lambda cells: pa.table({"a": pa.array(cells)}),
        lambda cells: pl.DataFrame({"a": cells}),
    ],
)
def test_large_integers_beside_missing_values_are_filled_exactly(convert):
    value = 2**53 + 1
    imputer = NaNImputer(strategy="most_frequent")
    filled = imputer.fit_transform(convert([value, None, value]))
    assert filled.tolist() == [[value]] * 3
    small = imputer.fit_transform(convert([1, None, 1]))
    assert small.dtype == np.float64
    assert small.tolist() == [[1.0]] * 3


def test_integers_and_decimals_of_any_size_are_read():
    table = np.array(
        [[10**400], [decimal.Decimal("1.5")], [-(10**400)], [3]], dtype=object
    )
    assert NaNImputer().fit_transform(table).ravel().tolist() == [2.25, 1.5, 2.25, 3.0]
    frame = pd.DataFrame(table[1:2], columns=["d"]).convert_dtypes(
        dtype_backend="pyarrow"
    )
    assert NaNImputer().fit_transform(frame).tolist() == [[1.5]]


# -- fill values ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float32", 1e39),
        ("float32", -1e308),
        ("float16", 1e5),
        ("int8", 300),
        ("uint8", 256),
        ("float64", math.inf),
        ("object", math.nan),
        ("object", pd.NA),
    ],
)
def test_a_fill_value_beyond_the_dtype_of_the_table_is_refused(dtype, value):
    table = np.array([[1], [2]]).astype(dtype)
    imputer = NaNImputer(strategy="constant", fill_value=value)
    assert message_of(ValueError, imputer.fit, table) == (
        f"fill_value must be finite and fit the output's dtype, {dtype}, got {value!r}."
    )


@pytest.mark.parametrize("table_type", [np.array, pd.DataFrame])
def test_a_fill_value_that_fits_only_the_output_is_filled(table_type):
    table = table_type(np.array([[1.0], [np.nan]], dtype=np.float32))
    imputer = NaNImputer(strategy="constant", fill_value=1e39, dtype="float64")
    assert imputer.fit_transform(table).ravel().tolist() == [1.0, 1e39]


@pytest.mark.parametrize(
    ("dtype", "value"), [("int64", 0.5), ("uint8", -1), ("float32", "red")]
)
def test_a_fill_value_of_another_kind_is_refused(dtype, value):
    imputer = NaNImputer(strategy="constant", fill_value=value, missing_values=7)
    assert message_of(ValueError, imputer.fit, np.array([[1], [7]], dtype)) == (
        f"fill_value={value!r} cannot be cast to the input data that is "
        f"dtype('{dtype}'). Pass a value of the same kind as the table."
    )


def test_a_fill_value_keeps_the_dtype_of_unsigned_integers():
    table = np.array([[1], [7]], dtype=np.uint8)
    imputer = NaNImputer(strategy="constant", fill_value=200, missing_values=7)
    filled = imputer.fit_transform(table)
    assert filled.dtype == np.uint8
    assert filled.tolist() == [[1], [200]]


# -- targets -------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(60, 2))
DROP_ROWS = (
    "A row without a finite target cannot be used for training: remove these rows from "
    "X and y."
)


@pytest.mark.parametrize("dtype", ["Int64", "int64[pyarrow]", "int64"])
@pytest.mark.parametrize("shape", [pd.Series, pd.DataFrame, pd.array])
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_large_integers_as_labels_stay_distinct(dtype, shape):
    labels = np.tile([2**60, 2**60 + 1, 5], 20)
    y = shape(labels).astype(dtype)
    net = StableNetClassifier(max_epochs=1).fit(X, y)
    assert net.classes_.tolist() == [5, 2**60, 2**60 + 1]


# Polars 1.20 has no unsigned integers of 128 bits.
@pytest.mark.parametrize("dtype", [pl.Int128, getattr(pl, "UInt128", pl.Int128)])
def test_integers_of_128_bits_are_targets_if_they_fit_64(dtype):
    y = pl.Series([2**60, 2**60 + 1] * 30, dtype=dtype)
    net = StableNetClassifier(max_epochs=1).fit(X, y, groups=y)
    assert net.classes_.tolist() == [2**60, 2**60 + 1]
    assert net.score(X, y) == net.score(X, y.to_frame()) == net.score(X, y.to_list())
    in_chunks = StableNetClassifier(max_epochs=1).fit(iter_chunks(X, y, chunk_size=40))
    assert in_chunks.classes_.tolist() == [2**60, 2**60 + 1]
    regressor = StableNetRegressor(max_epochs=1).fit(X, y, sample_weight=y)
    assert regressor.score(X, y) == regressor.score(X, y.to_list())
    net = StableNetClassifier(max_epochs=1, random_state=0)
    search = BatchedGridSearchCV(net, {"lr": [0.01]}, cv=2).fit(X, y)
    assert search.classes_.tolist() == [2**60, 2**60 + 1]
    assert search.best_score_ == search.fit(X, y.to_list()).best_score_
    huge = pl.Series([2**70, 1] * 30, dtype=dtype)
    assert message_of(ValueError, net.fit, X, huge) == (
        "Unknown label type: y contains labels of type int, first "
        "1180591620717411303424 at row 0. Labels must be text, or booleans or integers "
        "of at most 64 bits: convert them, for example by [str(label) for label in y]."
    )


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["2020-01-01", "NaT"] * 30, dtype="datetime64[D]"),
        np.ma.array(["a", "b"] * 30, mask=[0, 1] * 30),
        pd.Series([True, None] * 30, dtype="boolean"),
        pd.Series(["a", None] * 30, dtype="string"),
        pd.Categorical(["a", None] * 30),
    ],
)
def test_missing_labels_of_every_kind_are_refused_by_row(labels):
    assert message_of(NonFiniteDataError, StableNetClassifier().fit, X, labels) == (
        f"y contains 30 missing labels (None, NaN or NaT), first at row 1. {DROP_ROWS}"
    )


@pytest.mark.parametrize("Estimator", [StableNetClassifier, StableNetRegressor])
@pytest.mark.parametrize(
    "y",
    [
        np.ma.array([0, 1] * 30, mask=[0] * 59 + [1]),
        pd.Series([0, 1] * 29 + [0, None], dtype="Int64"),
        pd.Series([0, 1] * 29 + [0, None], dtype="int64[pyarrow]"),
    ],
)
def test_missing_numbers_of_targets_are_refused_by_row(Estimator, y):
    assert message_of(NonFiniteDataError, Estimator().fit, X, y) == (
        f"y contains 1 NaN value at row 59. {DROP_ROWS}"
    )


def test_masked_weights_are_refused_by_row():
    weights = np.ma.array(np.ones(60), mask=[0] * 59 + [1])
    fit = StableNetClassifier().fit
    assert message_of(NonFiniteDataError, fit, X, [0, 1] * 30, weights) == (
        "sample_weight contains 1 NaN value at row 59. Give rows that must not count "
        "the weight 0."
    )


@pytest.mark.parametrize("name", ["X", "y"])
def test_skorch_nets_refuse_masked_cells(name):
    cells = X.astype(np.float32)
    data = {"X": cells, "y": cells}
    data[name] = np.ma.array(cells, mask=np.eye(60, 2))
    net = GuardedNetRegressor(torch.nn.Linear(2, 2), verbose=0)
    message = message_of(NonFiniteDataError, net.fit, data["X"], data["y"])
    assert message.startswith(
        f"{name} contains 2 NaN values in 2 of 2 columns: 0 (1, first at row 0), 1 (1, "
        "first at row 1)."
    )


def test_none_and_na_among_numbers_of_a_target_are_refused_by_row():
    y = np.array([0.5, 1.5] * 30, dtype=object)
    y[7], y[9] = pd.NA, None
    assert message_of(NonFiniteDataError, StableNetRegressor().fit, X, y) == (
        f"y contains 2 NaN values at rows 7, 9. {DROP_ROWS}"
    )


@pytest.mark.parametrize(
    "kind", [pd.Series, pl.Series, np.array, pa.array, pd.DatetimeIndex]
)
def test_dates_as_a_numeric_target_are_refused(kind):
    y = kind(pd.date_range("2020-01-01", periods=60).to_numpy())
    assert message_of(ValueError, StableNetRegressor().fit, X, y) == (
        "y contains dates, first 2020-01-01 00:00:00 at row 0, but StableNetRegressor "
        "needs numbers. Pass numbers, or labels to StableNetClassifier."
    )


NUMBERS = [[1.0, 2.0], [3.0, 4.5], [-1.0, 0.5], [2.0, 8.0]]
READERS = {
    "table": read_table,
    "rows": lambda t: read_table(list(t)),
    "columns": lambda t: read_table({"a": t[:, 0], "b": t[:, 1]}),
}


@pytest.mark.parametrize("kind", ["bfloat16", "gradient"])
def test_any_tensor_is_read_as_the_array_of_its_numbers(kind):
    tensor = torch.tensor(NUMBERS, requires_grad=kind == "gradient")
    tensor = tensor if kind == "gradient" else tensor.bfloat16()
    for read in READERS.values():
        columns = [column.cells for column in read(tensor).columns()]
        np.testing.assert_array_equal(np.column_stack(columns), NUMBERS)
    np.testing.assert_array_equal(read_column(tensor[:, 0]).cells, [1, 3, -1, 2])
    table = np.array(NUMBERS, np.float32)
    assert str(audit(tensor, tensor[:, 0])) == str(audit(table, table[:, 0]))
    model = tabular_pipeline(StableNetRegressor(max_epochs=1, random_state=0))
    expected = clone(model).fit(table, table[:, 0]).predict(table)
    found = model.fit(tensor, tensor[:, 0]).predict(tensor)
    np.testing.assert_array_equal(found, expected)
