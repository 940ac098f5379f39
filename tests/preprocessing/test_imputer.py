"""NaNImputer: statistics, missing cells, and the differences from SimpleImputer."""

from __future__ import annotations

import math
import pickle
import tracemalloc
import warnings
from fractions import Fraction

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline

from sknan import NaNImputer, StableNetRegressor

NAN, INF = np.nan, np.inf
FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT64_MAX = float(np.finfo(np.float64).max)

# London, Venice, Prague: eggs and milk in USD.
PRICES = np.array([[2.5, 7.9], [NAN, 8.9], [4.6, NAN]])

EXTREMES = [0.0, -0.0, 5e-324, FLOAT64_MAX, -FLOAT64_MAX, FLOAT32_MAX, 1e308, -1e308]
finite = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(EXTREMES)
missing = st.sampled_from([NAN, INF, -INF])
shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)
tables = hnp.arrays(np.float64, shapes, elements=finite | missing)


def message_of(error, function, *args):
    with pytest.raises(error) as caught:
        function(*args)
    return str(caught.value)


# -- the statistics ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "eggs", "milk"),
    [
        ("zero", 0.0, 0.0),
        ("mean", 3.55, 8.4),
        ("median", 3.55, 8.4),
        ("auto", 3.55, 8.4),
        ("most_frequent", 2.5, 7.9),
        ("constant", 0.0, 0.0),
        (np.max, 4.6, 8.9),
    ],
)
def test_the_two_missing_prices_are_filled(strategy, eggs, milk):
    filled = NaNImputer(strategy=strategy).fit_transform(PRICES)
    np.testing.assert_allclose(
        filled, [[2.5, 7.9], [eggs, 8.9], [4.6, milk]], rtol=1e-15
    )


def exact_mean(values):
    return sum(map(Fraction, values)) / len(values)


def exact_median(values):
    ranked = sorted(map(Fraction, values))
    return (ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2


@given(tables, st.sampled_from(["C", "F"]))
def test_statistics_agree_with_exact_fractions(table, order):
    table = np.asarray(table, order=order)
    for strategy, exact in (("mean", exact_mean), ("median", exact_median)):
        found = NaNImputer(strategy=strategy).fit(table).statistics_
        for column, value in zip(table.T, found, strict=True):
            known = column[np.isfinite(column)].tolist()
            if not known:
                assert math.isnan(value)
                continue
            assert min(known) <= value <= max(known)
            # Sums of n float64 err by n units of the last place of their parts.
            size = max(abs(x) for x in known)
            error = abs(Fraction(float(value)) - exact(known))
            assert error <= Fraction(len(known) * 2.0**-52) * Fraction(size) + Fraction(
                5e-324
            )


@given(tables, st.sampled_from(["mean", "median", "zero"]), st.booleans())
def test_only_missing_cells_are_filled_and_all_of_them(table, strategy, keep):
    imputer = NaNImputer(strategy=strategy, keep_empty_features=keep)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipping features")
        filled = imputer.fit_transform(table)
    known = np.isfinite(table)
    kept = np.ones(table.shape[1], bool) if keep else known.any(axis=0)
    assert filled.shape == (len(table), kept.sum())
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(
        filled[known[:, kept]], table[:, kept][known[:, kept]]
    )


def test_the_mean_of_two_cells_of_1e308_is_finite():
    table = np.array([[1e308], [1e308], [NAN]])
    assert NaNImputer(strategy="mean").fit_transform(table).tolist() == [[1e308]] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = SimpleImputer(strategy="mean").fit(table).statistics_
    assert not np.isfinite(reference).any()


@pytest.mark.parametrize("strategy", ["mean", "median"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_statistic_of_a_constant_column_of_largest_numbers_is_that_number(
    strategy, dtype
):
    largest = np.finfo(dtype).max
    table = np.full((7, 3), largest, dtype=dtype)
    table[:, 1] *= -1
    table[::2, 2] *= -1
    table[3] = NAN
    filled = NaNImputer(strategy=strategy).fit_transform(table)
    assert filled.dtype == dtype
    assert filled[3, 0] == largest
    assert filled[3, 1] == -largest
    assert np.isfinite(filled).all()


def test_the_mean_of_float16_is_computed_in_float64():
    table = np.full((5000, 1), 0.1, dtype=np.float16)
    found = NaNImputer(strategy="mean").fit(table).statistics_
    assert found.dtype == np.float64
    assert found[0] == float(np.float16(0.1))


@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent", "constant"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_ordinary_tables_are_filled_as_by_simple_imputer(strategy, dtype):
    rng = np.random.default_rng(0)
    table = rng.integers(-20, 20, size=(50, 6)).astype(dtype)
    if dtype is not np.int64:
        table[rng.random(table.shape) < 0.2] = NAN
    imputer = NaNImputer(strategy=strategy, add_indicator=True).fit(table)
    reference = SimpleImputer(strategy=strategy, add_indicator=True).fit(table)
    found, expected = imputer.transform(table), reference.transform(table)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert imputer.get_feature_names_out().tolist() == (
        reference.get_feature_names_out().tolist()
    )


def test_auto_is_the_median_of_dense_and_the_mean_of_sparse_columns():
    table = np.array([[0.0], [0.0], [1.0], [7.0], [NAN]])
    assert NaNImputer().fit(table).statistics_.tolist() == [0.5]
    assert NaNImputer().fit(sparse.csr_matrix(table)).statistics_.tolist() == [2.0]


# -- sparse --------------------------------------------------------------------------


@given(tables, st.sampled_from(["mean", "median", "zero"]))
def test_sparse_input_gives_the_result_of_the_dense_table(table, strategy):
    rows = sparse.csc_array(table)
    dense = NaNImputer(strategy=strategy, keep_empty_features=True).fit(table)
    from_sparse = NaNImputer(strategy=strategy, keep_empty_features=True).fit(rows)
    # The implicit zeros change the order of summation.
    scale = np.abs(np.where(np.isfinite(table), table, 0.0)).max(axis=0, initial=0.0)
    bound = np.maximum(scale * 2.0**-48, 1e-300)
    error = np.abs(dense.statistics_ / 2 - from_sparse.statistics_ / 2)
    assert np.all(error <= bound)
    filled = from_sparse.transform(rows)
    assert sparse.issparse(filled)
    assert np.isfinite(filled.toarray()).all()


def test_a_sparse_column_of_zeros_is_not_empty():
    table = sparse.csc_array(np.array([[0.0, 1.0], [0.0, NAN]]))
    filled = NaNImputer(strategy="zero").fit_transform(table)
    np.testing.assert_array_equal(filled.toarray(), [[0, 1], [0, 0]])


def test_a_callable_gets_the_implicit_zeros_of_a_sparse_column():
    table = sparse.csc_array(np.array([[0.0], [0.0], [6.0], [NAN]]))
    assert NaNImputer(strategy=np.mean).fit(table).statistics_.tolist() == [2.0]


def test_indicators_of_sparse_input():
    table = sparse.csr_array(np.array([[0.0, 2.0], [NAN, 0.0], [4.0, INF]]))
    filled = NaNImputer(strategy="mean", add_indicator=True, dtype="float32")
    found = filled.fit_transform(table)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(
        found.toarray(), [[0, 2, 0, 0], [2, 0, 1, 0], [4, 1, 0, 1]]
    )


# -- missing values ------------------------------------------------------------------


def test_infinities_are_missing():
    table = np.array([[1.0], [INF], [3.0], [-INF]])
    assert NaNImputer().fit_transform(table).ravel().tolist() == [1, 2, 3, 2]
    flagged = NaNImputer(add_indicator=True).fit_transform(table)
    assert flagged[:, 1].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("dtype", "too_large"), [("float32", 1e39), ("float16", 1e5), (np.float32, -1e200)]
)
def test_numbers_beyond_the_output_are_missing(dtype, too_large):
    table = np.array([[1.0], [too_large], [3.0], [8.0]])
    filled = NaNImputer(dtype=dtype).fit_transform(table)
    assert filled.dtype == np.dtype(dtype)
    assert filled.ravel().tolist() == [1, 3, 3, 8]


def test_large_numbers_are_kept_without_a_dtype():
    table = np.array([[1.0], [1e300], [NAN]])
    assert NaNImputer(strategy="mean").fit_transform(table)[1, 0] == 1e300


def test_integers_beyond_the_dtype_of_the_output_are_missing():
    table = np.array([[1], [100_000], [3]])
    for strategy in ("mean", "most_frequent"):
        filled = NaNImputer(strategy=strategy, dtype="float16").fit_transform(table)
        assert np.isfinite(filled).all()
        assert filled[0, 0] == 1


def test_a_table_of_a_narrower_dtype_than_in_fit_is_filled_within_its_range():
    imputer = NaNImputer(strategy="mean").fit(np.array([[1e300], [1e300]]))
    filled = imputer.transform(np.array([[NAN], [2.0]], dtype=np.float32))
    assert filled.dtype == np.float32
    assert filled.ravel().tolist() == [FLOAT32_MAX, 2.0]


def test_with_another_marker_nothing_else_is_missing():
    table = np.array([[1.0], [-999.0], [3.0]])
    imputer = NaNImputer(missing_values=-999, strategy="mean")
    assert imputer.fit_transform(table).ravel().tolist() == [1, 2, 3]
    for bad, word in ((NAN, "NaN"), (INF, "infinity")):
        table[0] = bad
        assert word in message_of(ValueError, imputer.fit, table)


def test_a_column_that_is_missing_only_in_transform_is_filled():
    imputer = NaNImputer().fit([[1.0, 4.0], [3.0, 8.0]])
    assert imputer.transform([[NAN, INF]]).tolist() == [[2.0, 6.0]]


@pytest.mark.parametrize("strategy", ["mean", "median", "zero", "most_frequent"])
def test_a_column_without_values_is_dropped_or_kept_as_zeros(strategy):
    table = pd.DataFrame({"a": [1.0, 3.0], "empty": [NAN, INF], "b": [NAN, 5.0]})
    imputer = NaNImputer(strategy=strategy).fit(table)
    with pytest.warns(UserWarning, match="Skipping") as caught:
        assert imputer.transform(table).shape == (2, 2)
    assert str(caught[0].message) == (
        "Skipping features without any observed values: ['empty']. At least one "
        f"non-missing value is needed for imputation with strategy='{strategy}'. "
        "keep_empty_features=True keeps them, filled with 0."
    )
    assert caught[0].filename == __file__
    assert imputer.get_feature_names_out().tolist() == ["a", "b"]
    kept = NaNImputer(strategy=strategy, keep_empty_features=True).fit_transform(table)
    assert kept[:, 1].tolist() == [0, 0]


# -- types of tables -----------------------------------------------------------------


def test_pandas_output_keeps_names_and_index():
    table = pd.DataFrame({"eggs": [2.5, NAN, 4.6]}, index=["L", "V", "P"])
    imputer = NaNImputer(add_indicator=True, dtype="float32")
    filled = imputer.set_output(transform="pandas").fit_transform(table)
    assert filled.columns.tolist() == ["eggs", "missingindicator_eggs"]
    assert filled.index.tolist() == ["L", "V", "P"]
    assert set(filled.dtypes) == {np.dtype("float32")}


@pytest.mark.parametrize("library", [pd, pl])
def test_the_name_of_an_indicator_is_not_that_of_a_column(library):
    data = {"missingindicator_a": [1.0, NAN, 3.0], "a": [NAN, 2.0, 4.0]}
    imputer = NaNImputer(add_indicator=True)
    imputer.set_output(transform=library.__name__)
    filled = imputer.fit_transform(library.DataFrame(data))
    assert list(filled.columns) == [
        *data,
        "missingindicator_missingindicator_a",
        "missingindicator_a_",
    ]
    assert list(filled["missingindicator_a_"]) == [1.0, 0.0, 0.0]
    restored = imputer.inverse_transform(filled)
    np.testing.assert_array_equal(restored, np.column_stack([*data.values()]))


def test_polars_output_for_polars_input():
    table = pl.DataFrame({"a": [1.0, None, 5.0], "b": [1, 2, None]})
    filled = NaNImputer().set_output(transform="polars").fit_transform(table)
    assert isinstance(filled, pl.DataFrame)
    assert filled.to_dict(as_series=False) == {"a": [1, 3, 5], "b": [1, 2, 1.5]}


def test_polars_text_is_filled():
    table = pl.DataFrame({"color": ["red", None, "red", "blue"]})
    filled = NaNImputer(strategy="most_frequent").fit_transform(table)
    assert filled.ravel().tolist() == ["red", "red", "red", "blue"]


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "Float32", "boolean"])
@pytest.mark.parametrize("marker", [NAN, pd.NA])
def test_nullable_columns(dtype, marker):
    table = pd.DataFrame({"a": pd.array([1, None, 0], dtype=dtype)})
    filled = NaNImputer(missing_values=marker).fit_transform(table)
    assert filled.ravel().tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("missing_cell", [None, NAN, pd.NA, INF, pd.NaT])
def test_every_missing_value_in_a_column_of_objects_is_filled(missing_cell):
    table = np.array([["red"], [missing_cell], ["red"]], dtype=object)
    filled = NaNImputer(strategy="most_frequent").fit_transform(table)
    assert filled.ravel().tolist() == ["red", "red", "red"]
    filled = NaNImputer(strategy="constant", fill_value="?").fit_transform(table)
    assert filled.ravel().tolist() == ["red", "?", "red"]


def test_numbers_among_objects_can_overflow_too():
    table = np.array([[1.0], [1e39], [1.0]], dtype=object)
    filled = NaNImputer(strategy="most_frequent", dtype="float32").fit_transform(table)
    assert filled.dtype == np.float32
    assert filled.ravel().tolist() == [1, 1, 1]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("strategy", ["mean", "median", "zero", "constant"])
def test_the_table_of_the_caller_does_not_change(order, strategy):
    table = np.array([[1.0, INF], [NAN, 2.0], [3.0, 4.0]], order=order)
    before = table.copy()
    imputer = NaNImputer(strategy=strategy).fit(table)
    imputer.transform(table)
    NaNImputer(strategy=strategy, copy=False).fit(table)  # fit never writes
    np.testing.assert_array_equal(table, before)


def test_without_copy_the_table_is_filled_in_place():
    table = np.array([[1.0, INF], [NAN, 2.0]])
    filled = NaNImputer(copy=False).fit(table).transform(table)
    assert filled is table or np.shares_memory(filled, table)
    assert table.tolist() == [[1.0, 2.0], [1.0, 2.0]]


def test_read_only_tables_are_filled():
    table = PRICES.copy()
    table.flags.writeable = False
    assert np.isfinite(NaNImputer(copy=False).fit_transform(table)).all()


# -- inverse_transform ---------------------------------------------------------------


@given(tables)
def test_inverse_transform_restores_the_missing_values(table):
    imputer = NaNImputer(add_indicator=True, keep_empty_features=True).fit(table)
    back = imputer.inverse_transform(imputer.transform(table))
    np.testing.assert_array_equal(back, np.where(np.isfinite(table), table, NAN))


def test_inverse_transform_restores_dropped_columns_as_missing():
    table = np.array([[1.0, NAN, NAN], [2.0, NAN, 7.0]])
    imputer = NaNImputer(add_indicator=True).fit(table)
    with pytest.warns(UserWarning, match="Skipping"):
        filled = imputer.transform(table)
    np.testing.assert_array_equal(imputer.inverse_transform(filled), table)


def test_inverse_transform_needs_the_indicator_columns():
    imputer = NaNImputer().fit(PRICES)
    assert message_of(ValueError, imputer.inverse_transform, PRICES) == (
        "'inverse_transform' works only when 'NaNImputer' is instantiated with "
        "'add_indicator=True'. Got 'add_indicator=False' instead."
    )
    imputer = NaNImputer(add_indicator=True).fit(PRICES)
    assert message_of(ValueError, imputer.inverse_transform, PRICES) == (
        "X has shape (3, 2), but NaNImputer gives 2 filled and 2 indicator columns. "
        "Pass what transform returned."
    )


# -- refusals ------------------------------------------------------------------------


def test_an_unknown_strategy_is_refused():
    known = "'auto', 'mean', 'median', 'zero', 'most_frequent', 'constant'"
    for strategy, hint in (("medain", " Did you mean 'median'?"), (3, "")):
        assert message_of(ValueError, NaNImputer(strategy=strategy).fit, PRICES) == (
            f"The 'strategy' parameter of NaNImputer must be one of {known} or a "
            f"callable. Got {strategy!r} instead.{hint}"
        )


@pytest.mark.parametrize("dtype", ["int32", "float23", complex, 3])
def test_an_unknown_dtype_is_refused(dtype):
    assert message_of(ValueError, NaNImputer(dtype=dtype).fit, PRICES) == (
        "The 'dtype' parameter of NaNImputer must be one of 'float16', 'float32', "
        f"'float64' or None. Got {dtype!r} instead."
    )


def test_the_message_about_text_names_row_and_column():
    table = pd.DataFrame({"age": [3.0, 4.0], "color": ["1", "red"]})
    assert message_of(ValueError, NaNImputer(strategy="median").fit, table) == (
        "X contains text, first 'red' at row 1, column 'color', but "
        "NaNImputer(strategy='median') needs numbers. Encode the table first, for "
        "example with skrub.TableVectorizer(), or pass strategy='most_frequent'."
    )


def test_text_cannot_be_converted_to_a_float_output():
    table = pd.DataFrame({"color": ["blue", "red"]})
    imputer = NaNImputer(strategy="most_frequent", dtype="float32").fit(table)
    assert message_of(ValueError, imputer.transform, table) == (
        "X contains text, first 'blue' at row 0, column 'color', but "
        "NaNImputer(dtype='float32') needs numbers. Encode the table first, for "
        "example with skrub.TableVectorizer(), or leave dtype=None."
    )


class Thing:
    """Object whose text is its address."""


@pytest.mark.parametrize("strategy", ["most_frequent", "constant"])
@pytest.mark.parametrize("cell", [{"b": 1}, (1, 2), frozenset(), np.ones(2), Thing()])
def test_an_object_that_is_no_value_is_refused(strategy, cell):
    table = pd.DataFrame({"n": [1.0, 2.0], "x": pd.Series([None, cell], dtype=object)})
    assert message_of(TypeError, NaNImputer(strategy=strategy).fit, table) == (
        f"X contains an object of type {type(cell).__name__} at row 1, column 'x', but "
        "the argument must be a string, a number or a date. Convert it, or leave the "
        "column out."
    )


def test_dates_are_filled_only_with_dates():
    day = pd.Timestamp("2020-03-01")
    table = pd.DataFrame({"day": pd.Series([None, day])})
    imputer = NaNImputer(strategy="constant")
    assert message_of(ValueError, imputer.fit, table) == (
        "X contains dates, first 2020-03-01 00:00:00 at row 1, column 'day', but "
        "fill_value='missing_value' is of another kind. Pass a fill_value of this "
        "kind, or fill the column with strategy='most_frequent'."
    )
    for spans in (pd.Series([None, day - day]), pd.Series([pd.Timedelta(1), None])):
        with pytest.raises(ValueError, match="fill_value=0 is of another kind"):
            imputer.set_params(fill_value=0).fit(spans.to_frame())
    for fill_value in (day, np.datetime64("2020-03-01", "us")):
        filled = imputer.set_params(fill_value=fill_value).fit_transform(table)
        assert filled.tolist() == [[day], [day]]
    for other in (pd.Series([None, 2.5]), pd.Series(["red", None])):
        with pytest.raises(ValueError, match="is of another kind"):
            imputer.fit(table.assign(other=other))


@pytest.mark.parametrize(
    "imputer",
    [
        NaNImputer(strategy="median"),
        NaNImputer(strategy="most_frequent"),
        NaNImputer(
            strategy="constant", fill_value=pd.Timestamp("2020-03-01", tz="UTC")
        ),
    ],
)
def test_dates_with_and_without_a_zone_do_not_fill_one_column(imputer):
    days = pd.Series(pd.to_datetime(["2020-03-01", None, "2020-03-01"]))
    naive, aware = days.to_frame("d"), days.dt.tz_localize("Asia/Tokyo").to_frame("d")
    imputer.fit(aware)
    first = "2020-03-01 00:00:00+0" + ("0" if imputer.fill_value else "9") + ":00"
    assert message_of(ValueError, imputer.transform, naive) == (
        f"Column 'd' of X would have dates with a time zone, such as {first}, beside "
        "dates without one, such as 2020-03-01 00:00:00. Pass pandas.to_datetime("
        "column, utc=True) to fit and to transform; a fill_value needs a time zone, "
        "too."
    )
    assert len(imputer.transform(naive.dropna())) == 2
    mixed = pd.DataFrame({"d": [naive["d"][0], aware["d"][0], None]}, dtype=object)
    with pytest.raises(ValueError, match="beside dates without one"):
        imputer.fit(mixed)
    for table in (naive, mixed):
        in_utc = table.apply(pd.to_datetime, utc=True)
        filled = imputer.fit(in_utc).transform(in_utc)
        assert {day.tzinfo is None for day in filled.ravel()} == {False}


@pytest.mark.parametrize("value", [1e39, INF, NAN, "none", [1.0, 2.0]])
@pytest.mark.parametrize("dtype", [float, object])
def test_a_fill_value_that_does_not_fit_is_refused(value, dtype):
    imputer = NaNImputer(strategy="constant", fill_value=value, dtype="float32")
    table = np.array([[2.5, 7.9], [NAN, 8.9]], dtype=dtype)
    message = message_of(ValueError, imputer.fit, table)
    is_text_for_numbers = value == "none" and dtype is float
    assert message == (
        "fill_value='none' cannot be cast to the input data that is dtype('float64'). "
        "Pass a value of the same kind as the table."
        if is_text_for_numbers
        else "fill_value must be finite and fit the output's dtype, float32, got "
        f"{value!r}."
    )


def test_the_default_of_objects_does_not_fill_numbers():
    imputer = NaNImputer(strategy="constant", dtype="float32")
    table = np.array([[2.5], [NAN]], dtype=object)
    assert message_of(ValueError, imputer.fit, table) == (
        "fill_value must be finite and fit the output's dtype, float32, got "
        "'missing_value'."
    )


def test_an_indicator_that_was_not_fitted_is_refused():
    imputer = NaNImputer().partial_fit(PRICES).set_params(add_indicator=True)
    calls = [imputer.transform, imputer.inverse_transform, imputer.partial_fit]
    calls.append(lambda _: imputer.get_feature_names_out())
    for call in calls:
        assert message_of(ValueError, call, PRICES) == (
            "add_indicator was False when NaNImputer was fitted. Fit it again."
        )


def test_sparse_float16_is_refused_because_scipy_has_none():
    table = sparse.csr_array([[0.0, 1.0], [NAN, 0.0]])
    assert message_of(ValueError, NaNImputer(dtype="float16").fit, table) == (
        "X is sparse, but SciPy has no sparse arrays of float16. Pass dtype='float32', "
        "or X.toarray()."
    )


def always_nan(values):
    return NAN


def test_a_callable_that_returns_no_finite_number_is_refused():
    table = pd.DataFrame({"eggs": [2.5, NAN]})
    message = message_of(ValueError, NaNImputer(strategy=always_nan).fit, table)
    assert message == (
        f"strategy {always_nan!r} returned nan for column 'eggs'. It must return a "
        "finite number that fits the output's dtype."
    )


def test_nan_beside_another_marker_is_refused_with_the_marker():
    with pytest.raises(ValueError, match="contains NaN") as caught:
        NaNImputer(missing_values=0).fit([[0.0], [np.nan], [4.0]])
    assert str(caught.value) == (
        "Input X contains NaN. Missing cells are marked by missing_values=0: replace "
        "these cells by 0, or pass missing_values=numpy.nan, for which 0 is a known "
        "value."
    )


def test_an_unfitted_imputer_raises_not_fitted_error():
    with pytest.raises(NotFittedError):
        NaNImputer().transform(PRICES)
    with pytest.raises(NotFittedError):
        NaNImputer().inverse_transform(PRICES)


def test_other_columns_in_transform_are_refused():
    imputer = NaNImputer().fit(pd.DataFrame(PRICES, columns=["eggs", "milk"]))
    assert "feature names" in message_of(
        ValueError, imputer.transform, pd.DataFrame(PRICES, columns=["eggs", "butter"])
    )
    assert "X has 1 features" in message_of(
        ValueError, NaNImputer().fit(PRICES).transform, PRICES[:, :1]
    )


# -- in a pipeline -------------------------------------------------------------------


def test_a_network_trains_on_the_imputed_table():
    table = np.random.default_rng(0).normal(size=(60, 3))
    y = table[:, 0].copy()
    table[::7, 1], table[3, 2], table[5, 2] = NAN, INF, 1e300
    model = make_pipeline(
        NaNImputer(add_indicator=True, dtype="float32"),
        StableNetRegressor(max_epochs=5, random_state=0),
    )
    assert np.isfinite(model.fit(table, y).predict(table)).all()


# -- large tables --------------------------------------------------------------------


def large_table(dtype=np.float64, order="C"):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20_000, 5)) * [1, 1e-3, 50, 1, 1]
    table[:, 3] = rng.integers(0, 4, len(table))
    table[:, 4] = np.sort(table[:, 4])
    table[rng.random(table.shape) < 0.1] = NAN
    return np.array(table, dtype=dtype, order=order)


@pytest.mark.parametrize("strategy", ["mean", "median", "constant"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_tables_are_filled_as_by_simple_imputer(strategy, dtype, order):
    table = large_table(dtype, order)
    imputer = NaNImputer(strategy=strategy, add_indicator=True).fit(table)
    reference = SimpleImputer(strategy=strategy, add_indicator=True).fit(table)
    found, expected = imputer.transform(table), reference.transform(table)
    assert found.dtype == expected.dtype
    # SimpleImputer sums float32 in float32; the next test compares with float64.
    rtol, atol = (2e-4, 1e-5) if dtype == np.float32 else (1e-11, 1e-14)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_mean_of_float32_is_summed_in_float64(order):
    table = large_table(np.float32, order) + np.float32(1000)
    found = NaNImputer(strategy="mean").fit(table).statistics_
    expected = [math.fsum(c[~np.isnan(c)]) / (~np.isnan(c)).sum() for c in table.T]
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["mean", "median", "zero"]),
    st.sampled_from([None, "float32", "float16"]),
    st.sampled_from(["C", "F"]),
    st.sampled_from([(5000, 3), (1500, 40), (3, 3000), (17_000, 1)]),
)
def test_tables_of_many_blocks_are_filled_as_small_ones(
    seed, strategy, dtype, order, shape
):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=shape) * 10.0 ** rng.integers(-3, 7, shape)
    table[rng.random(shape) < rng.random()] = NAN
    table[rng.random(shape) < 0.01] = INF
    table = np.array(table, order=order)
    imputer = NaNImputer(strategy=strategy, dtype=dtype, keep_empty_features=True)
    filled = imputer.fit_transform(table)
    largest = np.finfo(dtype or np.float64).max
    known = np.abs(table) <= largest
    masked = np.where(known, table, NAN)
    statistic = {"mean": np.nanmean, "median": np.nanmedian, "zero": None}[strategy]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # columns without a value
        expected = np.zeros(shape[1])
        if statistic is not None:
            expected = np.nan_to_num(statistic(masked, axis=0))
    scale = np.abs(np.nan_to_num(masked)).max(axis=0, initial=0)
    # Sums of n float64 err by n units of the last place of their parts at worst.
    assert (np.abs(imputer.statistics_ - expected) <= 1e-13 * scale).all()
    cells = np.where(known, table, imputer.statistics_).astype(filled.dtype)
    np.testing.assert_array_equal(filled, cells)


@pytest.mark.parametrize("strategy", ["mean", "median", "zero", "constant"])
def test_strided_tables_are_filled(strategy):
    table = large_table()
    wide = np.full((len(table) * 2, 15), -7.0)
    wide[::2, ::3] = table
    strided = wide[::2, ::3]
    imputer = NaNImputer(strategy=strategy)
    expected = imputer.fit_transform(table)
    np.testing.assert_array_equal(imputer.fit_transform(strided), expected)
    in_place = NaNImputer(strategy=strategy, copy=False).fit(strided)
    assert in_place.transform(strided) is strided
    np.testing.assert_array_equal(strided, expected)
    assert (wide[1::2] == -7).all()
    assert (wide[:, 1::3] == -7).all()


@pytest.mark.parametrize("strategy", ["mean", "median", "zero"])
def test_memory_maps_are_filled_with_little_memory(tmp_path, strategy):
    table = np.random.default_rng(0).normal(size=(200_000, 20))
    table[::7] = NAN
    np.save(tmp_path / "table.npy", table)
    mapped = np.load(tmp_path / "table.npy", mmap_mode="r")
    imputer = NaNImputer(strategy=strategy, copy=False)
    tracemalloc.start()
    imputer.fit(mapped)
    needed = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert needed < 0.2 * table.nbytes
    expected = NaNImputer(strategy=strategy).fit_transform(table)
    filled = np.concatenate([imputer.transform(p) for p in np.split(mapped, 10)])
    np.testing.assert_array_equal(filled, expected)
    assert np.isnan(mapped[0]).all()


def test_a_single_row_is_filled_as_within_a_table():
    table = large_table()
    imputer = NaNImputer().fit(table)
    whole = imputer.transform(table)
    np.testing.assert_array_equal(imputer.transform(table[:1]), whole[:1])
    with pytest.raises(ValueError, match="X has 4 features"):
        imputer.transform(table[:1, :4])
    with pytest.raises(ValueError, match="minimum of 1 is required"):
        imputer.transform(table[:0])


# -- partial_fit ---------------------------------------------------------------------


@given(
    tables,
    st.lists(st.integers(1, 8), max_size=4),
    st.sampled_from(["mean", "zero", "constant"]),
    st.booleans(),
)
def test_chunks_give_the_result_of_the_whole_table(table, cuts, strategy, keep):
    imputer = NaNImputer(
        strategy=strategy, keep_empty_features=keep, add_indicator=True
    )
    whole = clone(imputer).fit(table)
    for part in np.split(table, sorted({cut for cut in cuts if cut < len(table)})):
        imputer.partial_fit(part)
    found, expected = (
        np.array(i.statistics_, dtype=np.float64) for i in (imputer, whole)
    )
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_array_equal(
        imputer.indicator_.features_, whole.indicator_.features_
    )
    # The means of chunks are rounded by n units in the last place of their largest
    # values. Halves are compared, since a difference could overflow.
    size = np.where(np.isfinite(table), np.abs(table), 0).max(axis=0)
    bound = (len(table) * 2.0**-52) * size + 5e-324
    error = np.abs(found / 2 - expected / 2)
    assert (error[~np.isnan(found)] <= bound[~np.isnan(found)]).all()


def test_the_first_chunk_gives_the_result_of_fit():
    table = large_table()
    imputer = NaNImputer(strategy="mean")
    np.testing.assert_array_equal(
        imputer.partial_fit(table).statistics_, clone(imputer).fit(table).statistics_
    )


@pytest.mark.parametrize("convert", [np.asarray, sparse.csc_matrix])
@pytest.mark.parametrize(
    "strategy", ["mean", "median", "zero", "most_frequent", np.max]
)
def test_missing_cells_of_fit_are_counted_by_column(strategy, convert):
    table = np.array([[1.0, np.nan], [np.inf, 3.0], [1.0, np.nan]])
    imputer = NaNImputer(strategy=strategy).fit(convert(table))
    assert imputer.n_missing_.tolist() == [1, 2]
    assert imputer.n_samples_seen_ == 3
    if hasattr(imputer, "partial_fit") and convert is np.asarray:
        chunks = NaNImputer(strategy=strategy)
        chunks.partial_fit(table[:2]).partial_fit(table[2:])
        assert chunks.n_missing_.tolist() == [1, 2]
        assert chunks.n_samples_seen_ == 3


def test_sums_of_chunks_that_cancel_or_overflow_are_exact():
    imputer = NaNImputer(strategy="mean")
    for value in (1e308, 1e308, 1e308, 3.0, -1e308, -1e308, -1e308):
        imputer.partial_fit([[value], [NAN]])
    assert imputer.statistics_.tolist() == [3.0 / 7.0]


def test_partial_fit_continues_after_fit():
    table = large_table()
    whole = NaNImputer(strategy="mean").fit(table)
    imputer = NaNImputer(strategy="mean").fit(table[:9000])
    imputer = pickle.loads(pickle.dumps(imputer.partial_fit(table[9000:15_000])))
    imputer.partial_fit(table[15_000:])
    np.testing.assert_allclose(imputer.statistics_, whole.statistics_, atol=1e-14)
    imputer.fit(table[:1000])  # starts again
    np.testing.assert_array_equal(
        imputer.statistics_,
        NaNImputer(strategy="mean").fit(table[:1000]).statistics_,
    )


def test_chunks_may_be_sparse_or_text():
    imputer = NaNImputer(strategy="mean", dtype="float32")
    imputer.partial_fit(sparse.csr_array(np.array([[0.0, 2.0], [NAN, 0.0]])))
    imputer.partial_fit(np.array([[3.0, 4.0], [6.0, 1e39]]))
    assert imputer.statistics_.tolist() == [3.0, 2.0]
    chunk = sparse.csr_array(np.array([[0.0, 2.0], [NAN, 0.0]]))
    assert NaNImputer().partial_fit(chunk).partial_fit(chunk).statistics_[1] == 1.0
    assert message_of(ValueError, NaNImputer(strategy="median").partial_fit, chunk) == (
        "partial_fit learns medians from dense chunks, and a sparse one was passed. "
        "Pass chunk.toarray(), or strategy='mean'."
    )
    colors = NaNImputer(strategy="constant", fill_value="none")
    colors.partial_fit(pd.DataFrame({"a": [None, None], "b": ["red", None]}))
    assert pd.isna(colors.statistics_).tolist() == [True, False]
    colors.partial_fit(pd.DataFrame({"a": ["blue"], "b": ["red"]}))
    assert colors.statistics_.tolist() == ["none", "none"]


@pytest.mark.parametrize("strategy", ["most_frequent", np.max])
def test_strategies_that_need_all_values_have_no_partial_fit(strategy):
    imputer = NaNImputer(strategy=strategy)
    assert not hasattr(imputer, "partial_fit")
    message = message_of(ValueError, lambda: imputer.partial_fit(PRICES))
    assert message == (
        f"partial_fit cannot learn strategy={strategy!r}: the values of all chunks "
        "would have to be kept. Pass strategy='mean', 'median', 'zero' or 'constant', "
        "or give fit the whole table, as a memory map if it does not fit into memory."
    )


def test_chunks_with_other_columns_or_types_are_refused():
    imputer = NaNImputer(strategy="constant").partial_fit(PRICES)
    assert "X has 1 features" in message_of(
        ValueError, imputer.partial_fit, PRICES[:, :1]
    )
    text = pd.DataFrame({"eggs": ["dear"], "milk": ["cheap"]})
    assert "feature names" in message_of(
        ValueError,
        NaNImputer(strategy="constant").fit(text).partial_fit,
        text[["eggs"]],
    )
    assert message_of(ValueError, imputer.partial_fit, text.to_numpy(dtype=object)) == (
        "A chunk of dtype object came after one of float64. Pass all chunks as "
        "numbers, or all as objects."
    )


def test_a_mean_cannot_continue_from_a_median():
    imputer = NaNImputer(strategy="median").fit(PRICES).set_params(strategy="mean")
    assert message_of(ValueError, imputer.partial_fit, PRICES) == (
        "The imputer was fitted under another strategy, from which no mean can be "
        "continued. Call fit first, or start from clone(imputer)."
    )
