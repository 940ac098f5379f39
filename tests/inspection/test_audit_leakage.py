"""Columns that reveal the target."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from audit_helpers import N, kinds_of, normal, rng
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

from sknan import audit


def test_missing_cells_that_depend_on_the_target_are_found():
    y = normal()
    x = rng().permutation(y)
    related = x.copy()
    related[(y > 0) & (np.arange(N) % 3 > 0)] = np.nan
    assert kinds_of({"x": related}, y)["missing goes with the target"].startswith(
        "'x' (median y"
    )
    labels = np.where(y > 0, "up", "down")
    assert kinds_of({"x": related}, labels)["missing goes with the target"] == (
        "'x' (in 69 % of 'up', 0 % of others)."
    )
    revealed = np.where(y > 0, np.nan, x)
    assert kinds_of({"x": revealed}, labels)["missing tells the target"] == (
        "'x' (in 100 % of 'up', 0 % of others)."
    )
    assert "missing tells the target" in kinds_of({"x": revealed}, y)
    unrelated = np.where(np.arange(N) % 3 == 0, np.nan, x)
    assert list(kinds_of({"x": unrelated}, labels)) == ["missing"]
    assert list(kinds_of({"x": unrelated}, y)) == ["missing"]


def test_a_column_that_is_missing_where_the_target_is_may_be_derived_from_it():
    y = normal()
    y[:40] = np.nan
    frame = pd.DataFrame({"tax": np.where(np.isnan(y), np.nan, rng().random(N))})
    assert kinds_of(frame, y) == {
        "missing": "'tax' (13 %).",
        "missing with the target": "'tax' (both are missing in 100 % of the rows "
        "where either is).",
    }


def test_a_copy_of_the_target_is_found():
    y = normal()
    frame = pd.DataFrame({"x": rng().permutation(y), "y": y, "exp": np.exp(y)})
    assert kinds_of(frame, y)["copy of the target"] == (
        "2 columns: 'y' (equal to it), 'exp' (in the same order)."
    )
    labels = np.where(y > 0, "up", "down")
    frame = pd.DataFrame({"x": rng().permutation(y), "up": y > 0})
    assert kinds_of(frame, labels) == {
        "copy of the target": "'up' (one value for each class)."
    }


def table_with(column, n=1000):
    return pd.DataFrame(rng().normal(size=(n, 2)), columns=["a", "b"]).assign(x=column)


def noise(size, n=1000):
    return np.random.default_rng(1).normal(0, size, n)


@pytest.mark.parametrize("n", [100, 1000, 5000])
@pytest.mark.parametrize("of", [lambda y: y, lambda y: -y, lambda y: 100 + y])
def test_a_noisy_copy_of_two_classes_is_found(n, of):
    y = (rng().random(n) < 0.2).astype(int)
    x = of(y + noise(0.05, n))
    assert kinds_of(table_with(x, n), y) == {
        "predicts the target": "'x' (AUC of 1.000 alone)."
    }
    labels = np.where(y, "yes", "no")
    assert "predicts the target" in kinds_of(table_with(x, n), labels)
    finding = next(iter(audit(table_with(x, n), y)))
    assert (finding.severity, finding.columns) == ("hurts", ("x",))


@pytest.mark.parametrize(
    ("of", "found"),
    [
        (lambda y: y + noise(0.05), "'x' (R2 of 0.997 alone)."),
        (lambda y: np.exp(y).round(1), "'x' (R2 of 0.998 alone)."),
    ],
)
def test_a_column_from_which_a_number_follows_is_found(of, found):
    y = normal(1000)
    assert kinds_of(table_with(of(y)), y)["predicts the target"] == found


def test_a_copy_with_some_other_values_is_found():
    y = normal(1000)
    x = np.where(np.arange(1000) % 20 == 0, noise(1.0), y)
    assert kinds_of(table_with(x), y) == {
        "copy of the target": "'x' (equal to it in 95 %)."
    }
    labels = rng().integers(0, 3, size=1000)
    names = np.array(["red", "blue", "green"])
    x = np.where(np.arange(1000) % 20 == 0, "red", names[labels])
    assert kinds_of(table_with(x), labels) == {
        "copy of the target": "'x' (one value for each class, in 96 %)."
    }


def amounts(random, part, n=2000):
    return np.where(random.random(n) < part, random.lognormal(7, 1, n).round(2), 0)


def clipped(random, n=2000):
    return np.minimum(random.normal(size=n), -1.04)


def test_columns_that_mostly_hold_the_same_value_are_no_copies():
    random = rng()
    y = amounts(random, 0.05)
    X = {"claim": amounts(random, 0.08), "liens": random.poisson(0.08, 2000)}
    X["flag"] = (random.random(2000) < 0.1) * 1
    X["never with it"] = np.where(y > 0, 0, amounts(random, 0.1))
    assert "copy of the target" not in kinds_of(X, y)
    X["copy"] = np.where(np.arange(2000) % 20 == 0, random.normal(size=2000), y)
    assert kinds_of(X, y)["copy of the target"] == "'copy' (equal to it in 95 %)."
    X = {"a": clipped(random), "b": clipped(random)}
    assert "copy of the target" not in kinds_of(X, clipped(random))


def test_categories_finer_than_the_classes_are_found():
    labels = rng().integers(0, 4, size=1000)
    x = [f"{'abcd'[label]}{i % 3}" for i, label in enumerate(labels)]
    assert kinds_of(table_with(x), labels) == {
        "predicts the target": "'x' (AUC of 1.000 alone)."
    }


@pytest.mark.parametrize(
    "load", [load_iris, load_wine, load_breast_cancer, load_digits]
)
def test_good_features_of_real_tables_are_no_leaks(load):
    X, y = load(return_X_y=True, as_frame=True)
    assert not {"predicts the target", "copy of the target"} & {*kinds_of(X, y)}


def test_identifiers_and_related_columns_are_no_leaks():
    y = normal(1000)
    X = table_with(y + noise(0.3)).assign(key=[f"k{i}" for i in range(1000)])
    assert "predicts the target" not in kinds_of(X, y)
    labels = np.where(y > 0, "up", "down")
    X["flag"] = (y + noise(0.5)) > 0
    assert not {"predicts the target", "copy of the target"} & {*kinds_of(X, labels)}


@pytest.mark.parametrize(
    "of",
    [
        lambda x: pd.Series(x).map(str),
        lambda x: pd.Series(x).map(lambda cell: str(cell).encode()),
        lambda x: pd.to_timedelta(x, unit="h"),
    ],
)
def test_a_noisy_copy_in_another_type_is_found(of):
    y = normal(1000)
    X = table_with(of(y + noise(0.05)))
    assert kinds_of(X, y)["predicts the target"] == "'x' (R2 of 0.997 alone)."


def test_missing_cells_in_any_column_that_reveal_the_target_are_found():
    y = rng().random(1000) < 0.3
    X = pd.DataFrame(rng().normal(size=(1000, 8)))
    X = X.mask(y[:, None] & (np.arange(8) == rng().integers(8, size=(1000, 1))))
    assert kinds_of(X, y)["missing tells the target"] == (
        "a missing cell in any column (in 0 % of False, 100 % of others)."
    )


@pytest.mark.parametrize("number", [lambda i: f"u{i}", int])
def test_duplicates_with_identifiers_of_their_own_are_found(number):
    X = table_with(normal(1000))
    X = pd.concat([X, X[:300]]).assign(id=[number(i) for i in range(1300)])
    y = np.arange(1300) % 1000 % 2
    assert kinds_of(X, y)["duplicated rows"] == "23 %, apart from 'id'."
    y[1299] = 1 - y[1299]
    assert (
        "2 rows have a duplicate with another target"
        in (kinds_of(X, y)["duplicated rows"])
    )


@pytest.mark.parametrize(
    "of",
    [pd.Series, lambda d: d.strftime("%Y-%m-%d"), lambda d: d.strftime("%m/%d/%Y")],
)
def test_dates_that_predict_the_target_are_found(of):
    days = pd.Timestamp("2020-01-01") + pd.to_timedelta(
        rng().integers(999, size=N), "D"
    )
    labels = np.where(days > pd.Timestamp("2021-06-01"), "late", "early")
    found = kinds_of({"day": of(days)}, labels)["predicts the target"]
    assert found == "'day' (AUC of 1.000 alone)."
    assert "predicts the target" not in kinds_of(
        {"day": of(days)}, rng().permutation(labels)
    )


@pytest.mark.parametrize("n_rows", [600, 2700])
@pytest.mark.parametrize("number", [lambda i: f"u{i}", int])
def test_groups_of_rows_with_one_target_are_found(number, n_rows):
    group = rng().permutation(np.arange(n_rows) // 3)
    X = table_with(normal(n_rows), n_rows).assign(person=[number(i) for i in group])
    for y in (rng().normal(size=n_rows)[group], rng().integers(0, 3, n_rows)[group]):
        assert kinds_of(X, y)["groups with one target"] == (
            f"'person' ({n_rows // 3} values in several rows, 100 % with one target)."
        )
        assert "groups with one target" not in kinds_of(X, rng().permutation(y))


def test_groups_of_which_most_have_nearly_one_target_are_found():
    group = np.arange(1800) // 3
    y = (rng().normal(size=1800)[group]) + rng().normal(0, 1e-4, size=1800)
    y[::300] = 1e6
    X = table_with(normal(1800), 1800).assign(person=group)
    assert kinds_of(X, y)["groups with one target"] == (
        "'person' (600 values in several rows, 99 % with nearly one target)."
    )


def test_related_columns_are_no_groups_because_of_sentinels_of_the_target():
    random = rng()
    y = random.gamma(4, 2.5, size=4000).round(1)
    sensor = (10 * y + random.normal(0, 30, size=4000)).round()
    y[:200] = sensor[:200] = -200
    for target in (y, y.astype(str)):
        found = kinds_of(table_with(sensor, 4000), target)
        assert not {"groups with one target", "predicts the target"} & {*found}


def test_groups_of_a_target_of_almost_one_value_are_not_found_by_chance():
    X = table_with(normal(1800), 1800).assign(person=np.arange(1800) // 3)
    for y in (amounts(rng(), 0.03, 1800), rng().random(1800) < 0.03):
        assert "groups with one target" not in kinds_of(X, y)
