"""Quantiles by sampling, which are exact for every table and every sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sknan.preprocessing._kernels.blocks import KnownMask
from sknan.preprocessing._kernels.quantiles import _filled_brackets, bracketing_values

NAN, INF = np.nan, np.inf
N_ROWS = 20_011  # enough rows for sampling, and no round number

COLUMNS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "ordered": lambda rng, n: np.arange(n, dtype=float),
    "falling": lambda rng, n: -np.arange(n, dtype=float),
    "periodic": lambda rng, n: np.arange(n) % 17.0,
    "constant": lambda rng, n: np.full(n, 0.1),
    "rare": lambda rng, n: (rng.random(n) < 0.001).astype(float),
    "even": lambda rng, n: (np.arange(n) % 2).astype(float),
    "digits": lambda rng, n: rng.integers(0, 10, n).astype(float),
    "heavy": lambda rng, n: rng.standard_cauchy(n),
    "empty": lambda rng, n: np.full(n, NAN),
    "nearly empty": lambda rng, n: np.where(np.arange(n) == n // 3, 5.0, NAN),
    "infinite": lambda rng, n: rng.choice([-INF, INF, 1.0, 2.0, NAN], n),
    "two steps": lambda rng, n: np.where(np.arange(n) < n // 2, -1e300, 1e300),
}


def check(table, fractions):
    found = bracketing_values(table, fractions, KnownMask())
    for j, column in enumerate(table.T):
        known = np.sort(column[np.isfinite(column)])
        assert found.n_known[j] == known.size
        for q, fraction in enumerate(fractions):
            if not known.size:
                assert math.isnan(found.low[q, j])
                continue
            rank = (known.size - 1) * fraction
            assert found.low[q, j] == known[math.floor(rank)]
            assert found.high[q, j] == known[math.ceil(rank)]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share_missing", [0.0, 0.1, 0.99])
def test_the_values_agree_with_a_sorted_table(order, dtype, share_missing):
    rng = np.random.default_rng(0)
    columns = [make(rng, N_ROWS) for make in COLUMNS.values()]
    with np.errstate(over="ignore"):
        table = np.array(np.stack(columns, axis=1), dtype=dtype, order=order)
    table[rng.random(table.shape) < share_missing] = NAN
    check(table, [0.5])
    check(table, [0.0, 0.25, 0.5, 0.75, 1.0])


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
    st.sampled_from([1, 2, 5, 30, 1000, 10**6]),
    st.integers(16_300, 17_500),
)
def test_any_quantile_of_any_number_of_distinct_values(seed, fractions, n_values, n):
    rng = np.random.default_rng(seed)
    table = rng.integers(0, n_values, (n, 2)) / 7
    table[rng.random(table.shape) < rng.random()] = NAN
    check(table, fractions)


def test_an_unrepresentative_sample_changes_nothing():
    # The sampled rows are the same in each call; here they get other values.
    size = int(2 * N_ROWS ** (2 / 3))
    jitter = np.random.default_rng(0).random(size)
    drawn = ((np.arange(size) + jitter) * (N_ROWS / size)).astype(int)
    table = np.random.default_rng(1).normal(size=(N_ROWS, 2))
    table[drawn] += 100.0
    table[drawn, 1] = 100.0
    check(table, [0.25, 0.5, 0.75])


def test_columns_of_few_values_are_not_ranked_whole():
    columns = [COLUMNS[name] for name in ("constant", "rare", "even", "periodic")]
    rng, n_known = np.random.default_rng(0), np.zeros(4, dtype=np.int64)
    table = np.stack([make(rng, N_ROWS) for make in columns], axis=1)
    bracket, *_ = _filled_brackets(table, [0.5], KnownMask(), n_known)
    found = [bracket.find(N_ROWS // 2, j, N_ROWS) for j in range(4)]
    assert found == np.median(table, axis=0).tolist()


def test_another_marker_counts_as_missing():
    table = np.random.default_rng(0).normal(size=(N_ROWS, 1))
    table[:9000] = 0.0
    found = bracketing_values(table, [0.5], KnownMask(marker=0.0))
    assert found.low[0, 0] <= np.median(table[9000:]) <= found.high[0, 0]
    assert found.n_known[0] == N_ROWS - 9000
