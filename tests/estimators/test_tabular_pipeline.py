"""Behavior of tabular_pipeline on raw tables."""

import datetime
import json
import pickle
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from sknan import (
    BatchedGridSearchCV,
    NonFiniteDataError,
    NonFiniteTrainingError,
    StableNetClassifier,
    StableNetRegressor,
)
from sknan.estimators import tabular_pipeline
from sknan.exceptions import ChangedColumnWarning
from sknan.preprocessing import TableCleaner

N = 60


def tiny(kind="classifier", **parameters):
    pipeline = tabular_pipeline(kind, random_state=0, **parameters)
    return pipeline.set_params(net__estimator__max_epochs=2)


def messy():
    rng = np.random.default_rng(0)
    age = rng.integers(18, 90, size=N)
    age[:10] = -999
    pay = rng.normal(size=N)
    pay[:3] = [np.nan, np.inf, 1e300]
    frame = pd.DataFrame(
        {
            "age": age,
            "pay": pay,
            "empty": np.nan,
            "written": ["?", *map(str, range(N - 1))],
            "city": rng.choice(["Rome", "Oslo", None], size=N),
            "when": pd.date_range("2020-01-01", periods=N, tz="Europe/Rome"),
            "day": pd.date_range("2020-01-01", periods=N).strftime("%Y-%m-%d"),
            "flag": pd.array(rng.choice([True, False, None], size=N), dtype="boolean"),
            "count": pd.array([None, *range(N - 1)], dtype="Int64"),
            "exact": [Decimal(i) for i in range(N)],
            "lasted": pd.to_timedelta(range(N), unit="h"),
            "mixed": ["a", 1, 2.5] * (N // 3),
            "huge": pd.Series([10**400, *range(N - 1)], dtype=object),
            7: rng.normal(size=N),
        }
    )
    return frame, rng.integers(0, 2, size=N)


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_a_messy_frame_gives_finite_predictions(kind):
    X, y = messy()
    model = tiny(kind).fit(X, y)
    output = model.predict_proba(X) if kind == "classifier" else model.predict(X)
    assert np.isfinite(output).all()
    assert model["clean"].sentinels_ == {"age": [-999], "written": ["?"]}
    assert model["clean"].dropped_ == ["empty"]
    names = model[:-1].get_feature_names_out()
    assert {"age", "city_Rome", "when_year", "day_year", "written"} <= set(names)
    assert list(model["net"].feature_names_in_) == list(names)


def test_columns_are_found_by_name_and_converted_as_in_fit():
    X, y = messy()
    model = tiny().fit(X, y)
    expected = model.predict_proba(X)
    np.testing.assert_array_equal(model.predict_proba(X[X.columns[::-1]]), expected)
    as_text = X.assign(age=X["age"].astype(str), pay=X["pay"].astype(str))
    np.testing.assert_array_equal(model.predict_proba(as_text), expected)
    changed = X.assign(age=np.nan, city="Never seen", when="no date", flag="perhaps")
    with pytest.warns(ChangedColumnWarning) as caught:
        assert np.isfinite(model.predict_proba(changed)).all()
    named = [[c for c in X if f"'{c}'" in str(w.message)] for w in caught]
    assert named == [["city", "when", "flag"]]


def test_arrays_lists_and_polars_are_accepted():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(N, 3)), rng.integers(0, 2, size=N)
    names = ["x0", "x1", "x2"]
    tables = [X, X.tolist(), pd.DataFrame(X), pl.DataFrame(X, schema=names)]
    first, *others = (tiny().fit(table, y).predict_proba(table) for table in tables)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_rows_of_several_types_are_converted_column_by_column():
    rows = [[i, "red" if i % 3 else None, f"{i}.5", i % 2 == 0] for i in range(N)]
    first, *others = (
        TableCleaner().fit_transform(table)
        for table in (rows, np.array(rows, dtype=object), pd.DataFrame(rows))
    )
    assert [str(dtype) for dtype in first.dtypes] == [
        *("float64", "category", "float64", "float64")
    ]
    for other in others:
        pd.testing.assert_frame_equal(other, first)


def test_the_pipeline_can_be_pickled_cloned_and_searched():
    X, y = messy()
    model = tiny().fit(X, y)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict_proba(X), model.predict_proba(X))
    again = clone(model).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    search = GridSearchCV(tiny(), {"net__estimator__lr": [1e-3, 1e-2]}, cv=2).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_any_estimator_can_be_the_last_step():
    X, y = messy()
    model = tabular_pipeline(LogisticRegression(max_iter=1000)).fit(X, y)
    assert np.isfinite(model.predict_proba(X)).all()


def test_sentinels_can_be_given_or_kept():
    X, y = messy()
    kept = tiny(sentinels=None).fit(X, y)
    assert kept["clean"].transform(X)["age"].min() == -999
    given = tiny(sentinels={"age": [-999]}).fit(X, y)
    assert given["clean"].transform(X)["age"].isna().sum() == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda X: X.drop(columns="age"),
            "X lacks column 'age' seen in fit. Pass every column that fit was given; "
            "one whose values are unknown may be all missing.",
        ),
        (
            lambda X: X.assign(more=1),
            "X has column 'more' not seen in fit. Leave out what fit was not given.",
        ),
        (
            lambda X: pd.concat([X, X[["age"]]], axis=1),
            "X has more than one column of the name 'age'. Name every column by a "
            "string of its own.",
        ),
        (
            lambda X: X.assign(pay=[[1, 2]] * N),
            "Column 'pay' contains lists, dicts or arrays. Unpack them into columns of "
            "their own.",
        ),
        (
            lambda X: X.assign(pay=1j),
            "Complex data not supported: column 'pay' contains complex numbers. Split "
            "it into real and imaginary part.",
        ),
    ],
)
def test_a_table_that_does_not_match_that_of_fit_is_refused(change, message):
    X, y = messy()
    model = tiny().fit(X, y)
    with pytest.raises(ValueError, match=r"X |olumn|estimator") as caught:
        model.predict(change(X))
    assert str(caught.value) == message


ESTIMATOR = (
    "The 'estimator' parameter of tabular_pipeline must be 'classifier', 'regressor' "
    "or an estimator. Got "
)
IMPUTE = (
    "The 'impute' parameter of tabular_pipeline must be one of 'auto', 'mean', "
    "'median', 'zero', 'most_frequent', 'constant' or a callable. Got "
)
SENTINELS = (
    "The 'sentinels' parameter of tabular_pipeline must be 'auto', None, a list of "
    "values or a dict of such lists. Got "
)
LEVELS = (
    "The 'max_levels' parameter of tabular_pipeline must be an integer of at least 1. "
    "Got "
)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        (
            {"estimator": "regresor"},
            ValueError,
            ESTIMATOR + "'regresor' instead. Did you mean 'regressor'?",
        ),
        ({"estimator": 3}, TypeError, ESTIMATOR + "3 instead."),
        ({"estimator": None}, TypeError, ESTIMATOR + "None instead."),
        (
            {"estimator": LogisticRegression},
            TypeError,
            ESTIMATOR + f"{LogisticRegression!r} instead. Pass an instance: "
            "LogisticRegression().",
        ),
        (
            {"impute": "meen"},
            ValueError,
            IMPUTE + "'meen' instead. Did you mean 'mean'?",
        ),
        (
            {"preset": "fastest"},
            ValueError,
            "The 'preset' parameter of tabular_pipeline must be one of 'fast', "
            "'balanced', 'best'. Got 'fastest' instead. Did you mean 'fast'?",
        ),
        (
            {"preset": "best", "estimator": LogisticRegression()},
            ValueError,
            "tabular_pipeline got preset='best' and an estimator. A preset chooses the "
            "settings of 'classifier' or 'regressor': set those of your estimator.",
        ),
        ({"impute": None}, ValueError, IMPUTE + "None instead."),
        ({"sentinels": "?"}, ValueError, SENTINELS + "'?' instead."),
        ({"sentinels": -999}, ValueError, SENTINELS + "-999 instead."),
        ({"sentinels": {"a": "NA"}}, ValueError, SENTINELS + "{'a': 'NA'} instead."),
        ({"max_levels": 0}, ValueError, LEVELS + "0 instead."),
        ({"max_levels": 2.5}, ValueError, LEVELS + "2.5 instead."),
        ({"max_levels": True}, ValueError, LEVELS + "True instead."),
        (
            {"random_state": "x"},
            ValueError,
            "The 'random_state' parameter of tabular_pipeline must be an integer from "
            "0 to 2**32 - 1, a numpy.random.RandomState or None, got 'x'.",
        ),
        (
            {"preset": ["fast"]},
            ValueError,
            "The 'preset' parameter of tabular_pipeline must be one of 'fast', "
            "'balanced', 'best'. Got ['fast'] instead. Did you mean 'fast'?",
        ),
    ],
)
def test_invalid_parameters_are_refused_at_construction(parameters, error, message):
    with pytest.raises(error) as caught:
        tabular_pipeline(**parameters)
    assert str(caught.value) == message


def test_a_preset_sets_the_number_of_networks_and_their_epochs():
    nets = [tabular_pipeline(preset=p)["net"] for p in ("fast", "balanced", "best")]
    sizes = [(net.n_estimators, net.estimator.max_epochs) for net in nets]
    assert sizes == [(2, 15), (5, "auto"), (10, 40)]
    default = tabular_pipeline()["net"].get_params()
    balanced = nets[1].get_params()
    del default["estimator"], balanced["estimator"]
    assert default == balanced


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (
            3,
            TypeError,
            "tabular_pipeline takes a table, got int. Pass a DataFrame, an array or a "
            "list of rows.",
        ),
        (
            np.zeros(3),
            ValueError,
            "tabular_pipeline takes a table with rows and columns, got 1 dimension. "
            "Reshape your data: X.reshape(-1, 1) if it is one column, X.reshape(1, -1) "
            "if it is one row.",
        ),
        (
            pl.LazyFrame({"a": [1]}),
            TypeError,
            "tabular_pipeline takes a table in memory, got a polars LazyFrame. Pass "
            "X.collect() of a LazyFrame, X.to_frame() of a Series.",
        ),
        (
            sparse.csr_array(np.eye(3)),
            TypeError,
            "tabular_pipeline reads dense tables, and sparse data was passed. Pass "
            "X.toarray().",
        ),
        (
            pd.DataFrame({"a": []}),
            ValueError,
            "Found a table with 0 sample(s) (shape=(0, 1)) while a minimum of 1 is "
            "required. Pass a table with at least one row and one column.",
        ),
        (
            pd.DataFrame({"a": [None, "?"], "b": [np.nan, np.inf]}),
            ValueError,
            "None of the 2 columns holds a value that is not missing. Pass at least "
            "one column with known values.",
        ),
    ],
)
def test_an_input_that_is_not_a_table_is_refused(X, error, message):
    with pytest.raises(error) as caught:
        tabular_pipeline().fit(X, [0, 1, 0])
    assert str(caught.value) == message


def test_sentinels_can_be_an_array():
    table = pd.DataFrame({"a": [1.0, -9.0, 3.0, -8.0]})
    pipeline = tabular_pipeline("regressor", sentinels=np.array([-9.0, -8.0]))
    assert pipeline["clean"].fit(table).sentinels_ == {"a": [-9.0, -8.0]}


def test_sentinels_of_an_unknown_column_are_refused():
    X, y = messy()
    with pytest.raises(ValueError, match="Name columns of X") as caught:
        tiny(sentinels={"ago": [-999]}).fit(X, y)
    assert (
        str(caught.value) == "sentinels names column 'ago' not in X. Name columns of X."
    )


# -- sentinels and column types --------------------------------------------------------


def cleaned(cells, later=None, **parameters):
    """Return the cleaned column, of fit or of a later table, and the cleaner."""
    X = pd.DataFrame({"x": cells, "n": np.arange(len(cells))})
    cleaner = TableCleaner(**parameters).fit(X)
    if later is not None:
        X = pd.DataFrame({"x": later, "n": range(len(later))})
    return cleaner.transform(X).drop(columns="n"), cleaner


DIGITS = [str(i) for i in range(20, 80)]


def test_words_among_numbers_become_a_column_of_their_own():
    result, cleaner = cleaned([*DIGITS, "refused", "<5"])
    assert cleaner.kinds_["x"] == "numbers and words"
    assert list(result.columns) == ["x", "x_word"]
    assert list(cleaner.get_feature_names_out()) == ["x", "x_word", "n"]
    assert result["x"].tolist()[:60] == list(map(float, DIGITS))
    assert result["x"].isna().tolist() == [False] * 60 + [True] * 2
    assert result["x_word"].tolist()[60:] == ["refused", "<5"]
    assert result["x_word"][:60].isna().all()


def test_the_column_of_words_gets_an_unused_name():
    X = pd.DataFrame({"x": [*DIGITS, "refused"], "x_word": 1.0})
    result = TableCleaner().fit_transform(X)
    assert list(result.columns) == ["x", "x_word_", "x_word"]


def test_text_with_fewer_numbers_is_categorical():
    result, cleaner = cleaned(["1", "2", "red"] * 20)
    assert cleaner.kinds_["x"] == "categories"
    assert set(result["x"]) == {"1", "2", "red"}


def test_sentinels_among_digits_are_found():
    result, cleaner = cleaned([*DIGITS, *["-999"] * 6, "?", "N/A"])
    assert cleaner.kinds_["x"] == "numbers"
    assert cleaner.sentinels_ == {"x": ["?", "N/A", -999.0]}
    assert result["x"].isna().tolist() == [False] * 60 + [True] * 8
    later = cleaner.transform(pd.DataFrame({"x": [-999, 21], "n": 0}))["x"]
    assert later.isna().tolist() == [True, False]


def test_sentinels_among_dates_are_found():
    days = pd.date_range("2020", periods=60).strftime("%Y-%m-%d").tolist()
    result, _ = cleaned([*days, *["9999-12-31"] * 6])
    assert result["x"].isna().sum() == 6


def test_sentinels_among_durations_are_found():
    result, cleaner = cleaned(pd.to_timedelta([-999] * 6 + list(range(60)), unit="s"))
    assert cleaner.sentinels_ == {"x": [-999.0]}
    assert result["x"].isna().sum() == 6


@pytest.mark.parametrize("word", ["?", "N/A", "unknown", " Missing ", "", None])
def test_a_word_for_missing_that_occurs_after_fit_is_missing(word):
    result, _ = cleaned(["red", "blue", "green"] * 20, [word, "red", "new"])
    assert result["x"].isna().tolist() == [True, False, False]


def test_a_word_that_is_a_category_in_fit_remains_one():
    # Two occurrences are too few for a sentinel.
    result, _ = cleaned(["red", "blue"] * 30 + ["unknown"] * 2, ["unknown", "?"])
    assert result["x"].isna().tolist() == [False, True]
    countries = ["DE", "FR", "IT", "ES"] * 15
    for cells in (countries, [*countries, "NA"]):
        result, _ = cleaned(cells, ["NA", "?"])
        assert result["x"].isna().tolist() == [False, True]


def test_without_sentinels_no_value_is_one():
    result, _ = cleaned(["red", "?", "unknown"] * 20, sentinels=None)
    assert set(result["x"]) == {"red", "?", "unknown"}
    names = tabular_pipeline(sentinels=None)[:2].fit(
        pd.DataFrame({"x": ["red", "?", "NA"] * 20})
    )
    assert list(names.get_feature_names_out()) == ["x_?", "x_NA", "x_red"]


def test_given_sentinels_apply_to_cells_of_any_type():
    result, _ = cleaned([*DIGITS, "-1"], sentinels=[-1])
    assert result["x"].isna().sum() == 1
    result, _ = cleaned(["a", "b", "-1"] * 20, sentinels=[-1])
    assert result["x"].isna().sum() == 20
    days = pd.date_range("2020-01-01", periods=60)
    result, _ = cleaned(days, sentinels={"x": [datetime.date(2020, 1, 2)]})
    assert result["x"].isna().sum() == 1


def test_booleans_can_be_words_or_numbers_after_fit():
    flags = [True, False, None] * 20
    for later in (["True", "False", "?"], [1, 0, None], [True, False, None]):
        result, _ = cleaned(flags, later)
        np.testing.assert_array_equal(result["x"], [1.0, 0.0, np.nan])


@pytest.mark.parametrize(
    "form",
    ["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%y", "%d %b %Y", "%B %d, %Y", "%Y-%m-%d %I:%M %p"],
)
def test_dates_of_many_formats_are_parsed(form):
    days = pd.date_range("2020-01-01", periods=100)
    result, cleaner = cleaned(days.strftime(form))
    assert cleaner.kinds_["x"] == "dates"
    assert (result["x"] == days).all()


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%d/%m/%Y", "%d %b %Y"])
@pytest.mark.parametrize("odd", ["0000-00-00", "00/00/0000", "not yet", "31/02/2021"])
def test_odd_cells_among_dates_are_missing(form, odd):
    days = pd.date_range("2020-01-20", periods=60, freq="9D")
    cells = [odd if i % 20 == 0 else day for i, day in enumerate(days.strftime(form))]
    cleaner = TableCleaner()
    read = cleaner.fit_transform(pd.DataFrame({"d": cells}))["d"]
    assert cleaner.kinds_ == {"d": "dates"}
    assert cleaner.sentinels_ == {"d": [odd]}
    assert read.isna().tolist() == [i % 20 == 0 for i in range(60)]
    assert (read.dropna() == days[read.notna()]).all()


@pytest.mark.parametrize(
    "cells",
    [
        ["2020-01-05"] * 44 + ["not yet"] * 6,  # less than nine in ten
        ["12-05-33", "07-88-12"] * 25,
        ["v2020-01-05", "v2021-02-07"] * 25,
        ["2019a", "2020a", "2021"] * 17,
        ["2009-10", "2010-11", "2011-12"] * 16 + ["2012-13"] * 2,  # seasons
    ],
)
def test_codes_and_few_dates_stay_categories(cells):
    cleaner = TableCleaner().fit(pd.DataFrame({"d": cells}))
    assert cleaner.kinds_ == {"d": "categories"}


# -- with scikit-learn -----------------------------------------------------------------


def test_the_cleaner_passes_the_checks_of_scikit_learn():
    results = check_estimator(TableCleaner(), on_skip=None, on_fail=None)
    failed = [r["check_name"] for r in results if r["status"] == "failed"]
    assert failed == []
    assert len(results) > 30


@pytest.mark.parametrize("container", ["pandas", "polars", "default"])
def test_set_output_chooses_the_container(container):
    X, _ = messy()
    steps = tabular_pipeline()[:-1].set_output(transform=container)
    out = steps.fit_transform(X)
    kinds = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "default": np.ndarray}
    assert isinstance(out, kinds[container])
    assert np.isfinite(np.asarray(out)).all()
    if container != "default":
        assert list(out.columns) == list(steps.get_feature_names_out())


def test_a_batched_search_over_the_pipeline_equals_the_plain_one():
    X, y = messy()
    net = StableNetClassifier(max_epochs=3, random_state=0)
    grid = {"net__lr": [1e-3, 1e-2], "impute__strategy": ["median", "zero"]}
    plain, batched = (
        search(tabular_pipeline(net), grid, cv=2, scoring="neg_log_loss").fit(X, y)
        for search in (GridSearchCV, BatchedGridSearchCV)
    )
    assert all(batched.cv_results_["stacked"])
    np.testing.assert_allclose(
        batched.cv_results_["mean_test_score"],
        plain.cv_results_["mean_test_score"],
        rtol=1e-5,
    )
    assert batched.best_params_ == plain.best_params_
    np.testing.assert_allclose(
        batched.predict_proba(X), plain.predict_proba(X), atol=1e-5
    )


class Squares(nn.Linear):
    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)

    def forward(self, X):
        return super().forward(X * X)


def test_a_report_names_the_column_of_the_table():
    X, y = messy()
    X = X[["city", "pay"]].replace(np.inf, 1e30)
    net = StableNetClassifier(Squares, on_nonfinite="raise", random_state=0)
    model = tabular_pipeline(net).set_params(scale="passthrough")
    with pytest.raises(NonFiniteTrainingError) as caught:
        model.fit(X, y)
    assert caught.value.report.columns == ("pay",)
    assert caught.value.report.cause == "data"


def test_a_pipeline_without_an_imputer_says_which_column_is_missing():
    X, y = messy()
    net = StableNetClassifier(max_epochs=1)
    model = tabular_pipeline(net).set_params(impute="passthrough")
    with pytest.raises(NonFiniteDataError) as caught:
        model.fit(X[["city", "pay"]], y)
    assert str(caught.value) == (
        "X contains 3 NaN values in 1 of 4 columns: 'pay' (3, first at row 0). Impute "
        "first: make_pipeline(NaNImputer(), SafeScaler(), StableNetClassifier())."
    )


def test_rows_keep_their_position_for_any_index():
    # After a split, the labels of the index are not in order.
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": ["x", "y", "x", "y"]})
    shuffled = table.iloc[[3, 1, 0, 2]]
    model = tabular_pipeline()
    steps = model[:2].fit(table)
    expected = np.asarray(steps.transform(table))[[3, 1, 0, 2]]
    assert np.array_equal(np.asarray(steps.transform(shuffled)), expected)
    assert list(model[0].transform(shuffled).index) == [3, 1, 0, 2]


# -- real tables -----------------------------------------------------------------------

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def real_tables():
    listed = DATA / "datasets.json"
    found = json.loads(listed.read_text())["datasets"] if listed.exists() else []
    return {table["name"]: table for table in found} or {"none": None}


@pytest.mark.parametrize("reading", ["as described", "as it comes"])
@pytest.mark.parametrize("name", real_tables())
def test_a_real_table_is_fitted_and_predicted_without_a_warning(name, reading):
    entry = real_tables()[name]
    if entry is None:
        pytest.skip("the real tables are not at shared/data/")
    if reading == "as it comes":
        table = pd.read_csv(DATA / entry["file"])
    else:
        words = ["", *entry["na_values"]]
        table = pd.read_csv(
            DATA / entry["file"], keep_default_na=False, na_values=words
        )
        categories = [c for c in entry["categorical_columns"] if c != entry["target"]]
        table = table.astype(dict.fromkeys(categories, "category"))
    table = table.dropna(subset=entry["target"])
    table = table.sample(min(len(table), 600), random_state=0)
    y = table.pop(entry["target"])
    is_regression = entry["task"] == "regression"
    network = StableNetRegressor if is_regression else StableNetClassifier
    model = tabular_pipeline(network(max_epochs=1, random_state=0), random_state=0)
    # One target of this table is 12 000, at a median of 10.
    is_extreme = name == "meta"
    with pytest.warns(match="^y contains outliers") if is_extreme else nullcontext():
        model.fit(table.iloc[::2], y.iloc[::2])
    predict = model.predict if is_regression else model.predict_proba
    assert np.isfinite(predict(table.iloc[1::2])).all()
