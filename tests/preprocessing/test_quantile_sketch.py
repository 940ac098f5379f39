"""Quantiles of a table in chunks, within the stated error for every table."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from test_quantiles import COLUMNS

from sknan import NaNImputer, SafeScaler
from sknan.preprocessing._kernels.blocks import KnownMask
from sknan.preprocessing._kernels.quantile_sketch import N_POINTS, QuantileSketch

FRACTIONS = [0.0, 0.01, 0.25, 0.5, 0.75, 1.0]


def table(n_rows, dtype=np.float64, share_missing=0.0):
    rng = np.random.default_rng(0)
    columns = [make(rng, n_rows) for make in COLUMNS.values()]
    with np.errstate(over="ignore"):
        X = np.stack(columns, axis=1).astype(dtype)
    X[rng.random(X.shape) < share_missing] = np.nan
    return X


def sketch_of(X, n_rows, n_collected=None):
    sketch = QuantileSketch(X.shape[1])
    sketch.n_collected = n_collected or sketch.n_collected
    for start in range(0, len(X), n_rows):
        sketch.add(X[start : start + n_rows], KnownMask())
    return sketch


def errors_of(X, sketch):
    """Return how far each quantile is from its rank, in shares of the known values."""
    found = sketch.quantiles(FRACTIONS).low
    errors = np.zeros((len(FRACTIONS), X.shape[1]))
    for j, column in enumerate(X.T):
        known = np.sort(column[np.isfinite(column)])
        assert sketch.n_known[j] == known.size
        for q, fraction in enumerate(FRACTIONS):
            if not known.size:
                assert math.isnan(found[q, j])
                continue
            rank = (known.size - 1) * fraction
            first = np.searchsorted(known, found[q, j], "left")
            last = np.searchsorted(known, found[q, j], "right") - 1
            assert first <= last  # a value of the table
            distance = max(0.0, first - rank - 1, rank - last - 1)
            errors[q, j] = distance / known.size
    return errors


@pytest.mark.parametrize(
    ("dtype", "share_missing", "n_rows"),
    [(np.float64, 0.0, 100_000), (np.float32, 0.5, 777), (np.float64, 0.99, 5000)],
)
def test_ranks_are_within_the_stated_error(dtype, share_missing, n_rows):
    X = table(100_000, dtype, share_missing)
    sketch = sketch_of(X, n_rows, 2 * N_POINTS)
    errors = errors_of(X, sketch)
    bound = (1 + math.log2(len(X) / sketch.n_collected)) / N_POINTS
    assert errors.max() <= bound
    # The offsets are random: errors partly cancel.
    assert errors.max() <= 2 / N_POINTS
    assert (errors[[0, -1]] == 0).all()


@pytest.mark.parametrize("n_rows", [1000, 100_000])
def test_an_imputed_table_has_a_sketch_without_a_second_pass(n_rows):
    X = table(n_rows, share_missing=0.3)
    imputer = NaNImputer(strategy="median", add_indicator=True, dtype="float32")
    for chunk in np.array_split(X, 3):
        imputer.partial_fit(chunk)
    with pytest.warns(UserWarning, match="without any observed values"):
        filled = imputer.transform(X)
    sketch = imputer._sketch_of_output()
    assert errors_of(filled, sketch).max() <= 2 / N_POINTS
    np.testing.assert_array_equal(sketch.smallest, filled.min(axis=0))
    np.testing.assert_array_equal(sketch.largest, filled.max(axis=0))


def test_the_memory_does_not_grow_with_the_rows():
    X = np.random.default_rng(0).normal(size=(400_000, 1))
    sizes = [
        len(pickle.dumps(sketch_of(X[:n], 4096, 2 * N_POINTS)))
        for n in (4096 * 31, 4096 * 95)
    ]
    assert sizes[1] < 1.5 * sizes[0]


@pytest.mark.parametrize("n_rows", [90, 1000])
def test_few_rows_in_chunks_give_the_result_of_fit(n_rows):
    X = table(1000, np.float32)
    X[:, 3] = np.arange(1000) == 5  # its spread is its range
    scaler, imputer = SafeScaler(), NaNImputer(keep_empty_features=True)
    whole = clone(scaler).fit(X), clone(imputer).fit(X)
    for start in range(0, len(X), n_rows):
        scaler.partial_fit(X[start : start + n_rows])
        imputer.partial_fit(X[start : start + n_rows])
    np.testing.assert_array_equal(scaler.center_, whole[0].center_)
    np.testing.assert_array_equal(scaler.scale_, whole[0].scale_)
    np.testing.assert_array_equal(imputer.statistics_, whole[1].statistics_)
    np.testing.assert_array_equal(imputer.transform(X), whole[1].transform(X))


def test_many_rows_in_chunks_are_scaled_nearly_as_in_fit():
    X = np.random.default_rng(0).normal(size=(100_000, 100))
    scaler = SafeScaler()
    for chunk in np.array_split(X, 7):
        scaler = pickle.loads(pickle.dumps(scaler.partial_fit(chunk)))
    whole = SafeScaler().fit(X)
    np.testing.assert_allclose(scaler.center_, whole.center_, atol=0.005)
    np.testing.assert_allclose(scaler.scale_, whole.scale_, rtol=0.005)
    constant = SafeScaler(quantile_range=(0, 100))
    constant.partial_fit([[2.0], [2.0]]).partial_fit([[2.0]])
    assert constant.transform([[2.0], [3.0]]).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(
    "estimator", [SafeScaler(), NaNImputer(), NaNImputer(strategy="median")]
)
def test_chunks_after_fit_begin_anew(estimator):
    with pytest.warns(UserWarning, match="anew") as caught:
        estimator.fit([[1.0], [2.0]]).partial_fit([[3.0]]).partial_fit([[7.0]])
    assert [str(warning.message) for warning in caught] == [
        "partial_fit begins anew, because fit keeps nothing that it could continue. To "
        "learn from all chunks, pass each of them to partial_fit."
    ]
    learned = estimator.center_ if hasattr(estimator, "center_") else None
    assert (estimator.statistics_ if learned is None else learned).tolist() == [5.0]
    with pytest.raises(ValueError, match="X has 2 features"):
        clone(estimator).partial_fit([[1.0]]).partial_fit([[3.0, 4.0]])
