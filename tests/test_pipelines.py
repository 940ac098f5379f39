"""From raw tables to predictions in one call: tabular_pipeline."""

import pickle
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from sknan.pipelines import tabular_pipeline

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
            "huge": [10**400, *range(N - 1)],
            7: rng.normal(size=N),
        }
    )
    return frame, rng.integers(0, 2, size=N)


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_a_messy_frame_is_fitted_and_predicted(kind):
    X, y = messy()
    model = tiny(kind).fit(X, y)
    output = model.predict_proba(X) if kind == "classifier" else model.predict(X)
    assert np.isfinite(output).all()
    assert model["clean"].sentinels_ == {"age": [-999], "written": ["?"]}
    assert model["clean"].dropped_ == ["empty"]
    names = model[:-1].get_feature_names_out()
    assert {"age", "city_Rome", "when_year", "day_year", "written"} <= set(names)
    assert list(model["net"].feature_names_in_) == list(names)


def test_columns_are_found_by_name_and_read_as_in_fit():
    X, y = messy()
    model = tiny().fit(X, y)
    expected = model.predict_proba(X)
    np.testing.assert_array_equal(model.predict_proba(X[X.columns[::-1]]), expected)
    as_text = X.assign(age=X["age"].astype(str), pay=X["pay"].astype(str))
    np.testing.assert_array_equal(model.predict_proba(as_text), expected)
    changed = X.assign(age=np.nan, city="Never seen", when="no date", flag="perhaps")
    assert np.isfinite(model.predict_proba(changed)).all()


def test_arrays_lists_and_polars_are_taken():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(N, 3)), rng.integers(0, 2, size=N)
    names = ["x0", "x1", "x2"]
    tables = [X, X.tolist(), pd.DataFrame(X), pl.DataFrame(X, schema=names)]
    first, *others = (tiny().fit(table, y).predict_proba(table) for table in tables)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_pickle_clone_and_search():
    X, y = messy()
    model = tiny().fit(X, y)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict_proba(X), model.predict_proba(X))
    again = clone(model).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    search = GridSearchCV(tiny(), {"net__estimator__lr": [1e-3, 1e-2]}, cv=2).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_any_estimator_can_stand_at_the_end():
    X, y = messy()
    model = tabular_pipeline(LogisticRegression(max_iter=1000)).fit(X, y)
    assert np.isfinite(model.predict_proba(X)).all()


def test_sentinels_can_be_given_or_left():
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
            "Column 'pay' holds lists, dicts or arrays. Unpack them into columns of "
            "their own.",
        ),
        (
            lambda X: X.assign(pay=1j),
            "Complex data not supported: column 'pay' holds complex numbers. Split it "
            "into real and imaginary part.",
        ),
    ],
)
def test_a_table_unlike_that_of_fit_is_refused(change, message):
    X, y = messy()
    model = tiny().fit(X, y)
    with pytest.raises(ValueError, match=r"X |olumn|estimator") as caught:
        model.predict(change(X))
    assert str(caught.value) == message


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match=r"X |olumn|estimator") as caught:
        tabular_pipeline("regresor")
    assert str(caught.value) == (
        "The 'estimator' parameter of tabular_pipeline must be 'classifier', "
        "'regressor' or an estimator. Got 'regresor' instead. Did you mean "
        "'regressor'?"
    )


def test_rows_keep_their_place_whatever_the_index():
    # A split leaves labels in disorder, by which rows were once looked up.
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": ["x", "y", "x", "y"]})
    shuffled = table.iloc[[3, 1, 0, 2]]
    model = tabular_pipeline()
    steps = model[:2].fit(table)
    expected = np.asarray(steps.transform(table))[[3, 1, 0, 2]]
    assert np.array_equal(np.asarray(steps.transform(shuffled)), expected)
    assert list(model[0].transform(shuffled).index) == [3, 1, 0, 2]
