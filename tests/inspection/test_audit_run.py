"""Tables and targets of all types as arguments of audit."""

from __future__ import annotations

import datetime
import pickle
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from audit_helpers import N, kinds_of, normal, objects, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from sknan import audit


def test_the_findings_do_not_depend_on_the_type_of_the_table():
    X = rng().normal(size=(N, 3))
    X[:20, 1] = np.nan
    X[3, 2] = np.inf
    expected = {"missing": "1 (6.7 %).", "infinite": "2 (1 of 300)."}
    pl = pytest.importorskip("polars")
    named = pl.DataFrame({str(j): X[:, j] for j in range(3)})
    assert kinds_of(X) == expected
    assert kinds_of(np.asfortranarray(X)) == expected
    assert kinds_of(X.astype("float32")) == expected
    assert kinds_of(X.astype(object)) == expected
    assert kinds_of(X.tolist()) == expected
    assert kinds_of(pd.DataFrame(X)) == expected
    assert kinds_of(named) == {"missing": "'1' (6.7 %).", "infinite": "'2' (1 of 300)."}
    assert kinds_of(sparse.csr_matrix(X)) == expected


def test_zeros_of_a_sparse_matrix_are_values():
    X = sparse.random_array((N, 4), density=0.05, rng=0, format="lil")
    X[:10, 1] = -999
    X[:, 2] = 0
    X[5, 2] = 3.0
    X[:, 3] = 0
    X[0, 0] = np.nan
    assert kinds_of(X.tocsr()) == {
        "missing": "0 (1 of 300).",
        "sentinel": "1 (-999 in 3.3 %).",
        "constant": "3 (always 0).",
    }
    flags = np.eye(40, 3, dtype=bool)
    flags[0, 0] = False
    assert kinds_of(sparse.csr_matrix(flags)) == {"constant": "0 (always 0)."}


def test_lists_of_rows_or_records_are_tables():
    rows = [[i, "a" if i % 3 else None] for i in range(60)]
    expected = "1 (33 %)."
    assert kinds_of(rows)["missing category"] == expected
    records = [{"n": i, "t": t} for i, t in rows]
    assert kinds_of(records)["missing category"] == "'t' (33 %)."


RESHAPE = (
    "Reshape your data: X.reshape(-1, 1) if it is one column, X.reshape(1, -1) if it "
    "is one row."
)
NO_TABLE = "Pass a DataFrame, an array or a list of rows."


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (3, TypeError, f"audit takes a table, got int. {NO_TABLE}"),
        (
            "x",
            TypeError,
            "X is the text or path 'x', not a table. To read Parquet files, pass "
            "iter_chunks('x') of sknan.preprocessing.",
        ),
        (
            np.zeros(3),
            ValueError,
            f"audit takes a table with rows and columns, got 1 dimension. {RESHAPE}",
        ),
        *(
            (
                X,
                ValueError,
                "audit takes a table with rows and columns, got 1 dimension. Reshape "
                f"your data: {column} if it is one column, {row} if it is one row.",
            )
            for X, column, row in (
                ([1, "a"], "[[cell] for cell in X]", "[X]"),
                (("a", 1), "[[cell] for cell in X]", "[X]"),
                ({"n": 1, "t": "a"}, "[[cell] for cell in X.values()]", "[X]"),
                (pd.Series([1, "a"], ["n", "t"]), "X.to_frame()", "X.to_frame().T"),
            )
        ),
        (
            np.zeros((2, 2, 2)),
            ValueError,
            f"audit takes a table with rows and columns, got 3 dimensions. {RESHAPE}",
        ),
    ],
)
def test_an_X_that_is_not_a_table_is_refused(X, error, message):
    with pytest.raises(error) as caught:
        audit(X)
    assert str(caught.value) == message


def test_a_lazy_frame_is_refused():
    pl = pytest.importorskip("polars")
    with pytest.raises(TypeError) as caught:
        audit(pl.LazyFrame({"a": [1]}))
    assert str(caught.value) == (
        "audit takes a table in memory, got a polars LazyFrame. Pass X.collect() of a "
        "LazyFrame, X.to_frame() of a Series."
    )


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1, 2], "X has 300 rows, and y has 2. Pass one target for each row."),
        (
            "payd",
            "y='payd' is not a column of X. Did you mean 'pay'? Pass the name of a "
            "column, or the target itself.",
        ),
        ("age", "y='age' is the name of columns 0, 1. Pass the target itself."),
    ],
)
def test_a_target_that_does_not_fit_is_refused(y, message):
    frame = pd.DataFrame(rng().normal(size=(N, 3)), columns=["age", "age", "pay"])
    with pytest.raises(ValueError, match=r"y|columns") as caught:
        audit(frame, y)
    assert str(caught.value) == message


def test_a_scalar_target_is_refused():
    with pytest.raises(TypeError) as caught:
        audit(np.zeros((3, 2)), 5)
    assert str(caught.value) == (
        "y must be the target of each row, or the name of a column, got int. Pass a "
        "Series, an array or a list."
    )


def test_a_target_by_name_needs_column_names():
    with pytest.raises(ValueError, match="no column names") as caught:
        audit(np.zeros((3, 2)), "pay")
    assert str(caught.value) == (
        "y='pay' is not a column of X. X has no column names. Pass the name of a "
        "column, or the target itself."
    )


def test_in_a_long_table_faults_are_counted_in_all_rows():
    n = 100_000
    frame = pd.DataFrame({"x": rng().normal(size=n), "t": rng().choice(["a", "b"], n)})
    frame.loc[[17, 18], "x"] = [np.nan, np.inf]
    frame.loc[1000:1099, "x"] = -999
    frame.loc[n - 1, "t"] = None
    frame.loc[n - 2] = frame.loc[n - 3].to_numpy()
    frame["y"] = np.arange(n) % 2
    found = audit(frame, "y")
    assert found.summary == (
        "100 000 rows, 2 columns: 1 of numbers, 1 of text. Target: 2 classes, the "
        "rarest is 0 (50 %). Quartiles, categories and formats are those of 65 536 "
        "rows."
    )
    assert {f.kind: f.evidence for f in found} == {
        "missing": "'x' (1 of 100 000).",
        "infinite": "'x' (1 of 100 000).",
        "sentinel": "'x' (-999 in 0.1 %).",
        "missing category": "'t' (1 of 100 000).",
        "duplicated rows": found.findings[-1].evidence,
    }
    frame = frame.drop(index=range(1000, 1100))
    assert kinds_of(frame, "y")["duplicated rows"] == (
        "1 of 99 900; 2 rows have a duplicate with another target."
    )


DTYPES = {
    "float": st.floats(),
    "huge": st.floats(allow_nan=False),
    "int": st.integers(-(2**63), 2**63 - 1),
    "flag": st.booleans(),
    "text": st.text(max_size=5),
    "word": st.sampled_from(
        ["?", "", "NA", "unknown", "1", "-999", "2020-01-01", "1,5"]
    ),
    "date": st.datetimes(),
    "day": st.dates(),
    "span": st.timedeltas(datetime.timedelta(-99), datetime.timedelta(99)),
    "complex": st.complex_numbers(),
    "decimal": st.decimals(),
    "list": st.lists(st.integers(0, 9), max_size=2),
    "any": st.one_of(
        st.none(),
        st.integers(),
        st.floats(),
        st.text(max_size=3),
        st.booleans(),
        st.binary(max_size=2),
        st.dates(),
    ),
}
POLARS = ("float", "huge", "int", "flag", "text", "word", "date", "day", "span", "list")


@st.composite
def columns(draw, kinds=tuple(DTYPES)):
    """Draw lists of cells of equal length, with some cells missing."""
    n_rows = draw(st.integers(0, 25))
    n_times = draw(st.sampled_from([1, 1, 9]))
    chosen = draw(st.lists(st.sampled_from(kinds), max_size=4))
    made = []
    for kind in chosen:
        cell = DTYPES[kind]
        if draw(st.booleans()):
            cell = st.one_of(st.none(), cell)
        made.append(draw(st.lists(cell, min_size=n_rows, max_size=n_rows)) * n_times)
    return n_rows * n_times, made


def check(frame, y, n_columns):
    found = audit(frame, y)
    assert str(found)
    assert found._repr_html_()
    assert all(f.evidence.endswith(".") for f in found)
    rows, shown = found.to_frame(), found.to_frame("columns")
    assert len(shown) in (0, n_columns)
    assert rows["position"].dropna().between(0, n_columns - 1).all()
    shares = shown[["missing", "infinite", "beyond_float32"]].to_numpy(float)
    assert ((shares >= 0) & (shares <= 1)).all()
    assert pickle.loads(pickle.dumps(found)) == found


@given(columns(), st.integers(0, 3))
@settings(max_examples=60)
def test_any_frame_of_pandas_can_be_audited(made, target):
    n_rows, cells = made
    frame = pd.DataFrame(index=range(n_rows))
    for j, column in enumerate(cells):
        series = pd.Series(column, dtype=object, index=frame.index)
        # With the dtype that pandas infers, or as objects.
        frame[f"c{j}"] = series.infer_objects() if (j + target) % 2 else series
    y = frame.iloc[:, target] if target < len(cells) else None
    check(frame, y, len(cells))


@given(columns(POLARS), st.integers(0, 3))
@settings(max_examples=40)
def test_any_frame_of_polars_can_be_audited(made, target):
    pl = pytest.importorskip("polars")
    _, cells = made
    frame = pl.DataFrame({f"c{j}": column for j, column in enumerate(cells)})
    y = frame.to_series(target) if target < len(cells) else None
    check(frame, y, len(cells))


def dtypes_of_pandas():
    numbers = [1.5, None, 2.0] * 20
    yield from (pd.array([1, None, 2] * 20, dtype) for dtype in ("Int8", "UInt64"))
    yield pd.array(numbers, "Float32")
    yield pd.array([True, None, False] * 20, "boolean")
    yield pd.array(["a", None, "b"] * 20, "string")
    yield pd.Categorical([1, None, 2] * 20)
    yield pd.Categorical([pd.Timestamp("2020"), None, pd.Timestamp("2021")] * 20)
    yield pd.period_range("2020", periods=60, freq="M")
    yield pd.interval_range(0, 60, 60)
    yield pd.date_range("2020", periods=60, tz="Europe/Rome")
    yield pd.arrays.SparseArray([0, 0, 1] * 20)
    yield objects(datetime.time(1, 2), None, n=60)
    yield objects(datetime.datetime(2020, 1, 1), n=60)
    yield objects(np.arange(2), None, n=60)
    yield objects(pd.DataFrame, object(), n=60)
    pa = pytest.importorskip("pyarrow")
    by_type = {
        pa.int32(): [1, None, 2],
        pa.string(): ["a", None, "b"],
        pa.list_(pa.int64()): [[1], None, [2]],
        pa.decimal128(10, 2): [Decimal("1.5"), None, Decimal(2)],
        pa.timestamp("us", tz="UTC"): [pd.Timestamp("2020", tz="UTC"), None, None],
        pa.date32(): [datetime.date(2020, 1, 1), None, None],
        pa.duration("us"): [pd.Timedelta("1s"), None, None],
        pa.bool_(): [True, None, False],
        pa.struct([("a", pa.int64())]): [{"a": 1}, None, {"a": 2}],
        pa.dictionary(pa.int32(), pa.string()): ["a", None, "b"],
    }
    for kind, cells in by_type.items():
        yield pd.array(cells * 20, pd.ArrowDtype(kind))


def test_every_dtype_of_pandas_can_be_audited():
    for cells in dtypes_of_pandas():
        series = pd.Series(cells)
        found = audit(pd.DataFrame({"x": series, "other": normal(60)}), series)
        (shown,) = found.to_frame("columns").iloc[:1].to_dict("records")
        assert shown["missing"] == series.isna().mean()
        assert shown["dtype"] == str(series.dtype)


def test_every_dtype_of_polars_can_be_audited():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(
        {
            "null": pl.Series([None] * 60, dtype=pl.Null),
            "category": pl.Series(["a", "b", None] * 20, dtype=pl.Categorical),
            "enum": pl.Series(["a", "b", None] * 20, dtype=pl.Enum(["a", "b"])),
            "decimal": pl.Series([Decimal("1.5"), None, None] * 20),
            "bytes": pl.Series([b"a", b"b", None] * 20),
            "struct": [{"a": 1}] * 60,
            "array": pl.Series([[1, 2]] * 60, dtype=pl.Array(pl.Int64, 2)),
            "time": [datetime.time(1, 2), datetime.time(3), None] * 20,
            "object": pl.Series([object()] * 60, dtype=pl.Object),
            "zoned": pl.Series(
                [datetime.datetime(2020, 1, 1)] * 60
            ).dt.replace_time_zone("UTC"),
            "int128": pl.Series([2**100, 1, None] * 20, dtype=pl.Int128),
        }
    )
    shown = audit(frame, frame["category"]).to_frame("columns").set_index("column")
    assert shown["missing"].to_dict() == {
        name: frame[name].null_count() / 60 for name in frame.columns
    }
    assert shown["holds"].to_dict() == {
        **{"null": "nothing", "category": "categories", "enum": "categories"},
        **{"decimal": "numbers", "bytes": "text", "struct": "nested"},
        **{"array": "nested", "time": "objects", "object": "opaque", "zoned": "dates"},
        "int128": "numbers",
    }


def test_invalid_options_are_refused():
    with pytest.raises(ValueError, match="task") as caught:
        audit(np.ones((3, 1)), task=["auto"])
    assert str(caught.value) == (
        "task must be one of 'auto', 'classification', 'regression', got ['auto']. Did "
        "you mean 'auto'?"
    )
    with pytest.raises(ValueError, match="verbose") as caught:
        audit(np.ones((3, 1)), verbose="yes")
    assert str(caught.value) == (
        "The 'verbose' parameter of audit must be an integer of at least 0, got 'yes'."
    )
