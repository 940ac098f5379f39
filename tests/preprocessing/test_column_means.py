"""Means of chunks: equal to the exact mean, in any order of the chunks."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sknan.preprocessing._kernels.column_means import RunningMeans

finite = st.floats(allow_nan=False, allow_infinity=False)


def running_means(chunks):
    parts = [RunningMeans(np.array([mean]), np.array([n])) for mean, n in chunks]
    for part in parts[1:]:
        parts[0].add(part)
    return parts[0]


@given(st.lists(st.tuples(finite, st.integers(1, 10**9)), min_size=2, max_size=9))
def test_the_running_mean_is_the_exact_mean_in_any_order(chunks):
    total = sum(Fraction(mean) * n for mean, n in chunks)
    exact = float(total / sum(n for _, n in chunks))
    assert running_means(chunks).means.tolist() == [exact]
    assert running_means(chunks[::-1]).means.tolist() == [exact]


def test_values_of_very_different_sizes_cancel_exactly():
    # The sum of two float64, as in compensated summation, would give 0.
    chunks = [(value, 1) for value in (1e300, 1e200, 1.0, -1e300, -1e200)]
    assert running_means(chunks).means.tolist() == [0.2]


def test_chunks_without_a_value_change_nothing():
    found = running_means([(math.nan, 0), (3.0, 2), (math.nan, 0), (6.0, 1)])
    assert found.means.tolist() == [4.0]
    assert found.counts.tolist() == [3]
