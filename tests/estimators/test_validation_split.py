"""Rows held out of a training: scikit-learn's choice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from sknan.estimators._validation_split import random_split


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(2, 40), min_size=2, max_size=6),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**31 - 1),
)
def test_each_class_is_random_split_as_train_test_split_does(counts, share, seed):
    codes = np.random.default_rng(seed).permutation(
        np.repeat(np.arange(len(counts)) * 2, counts)  # not each code need occur
    )
    n_rows = len(codes)
    n_valid = int(np.clip(np.ceil(share * n_rows), len(counts), n_rows - len(counts)))

    train, valid = random_split(n_rows, n_valid, seed, codes)

    expected = train_test_split(
        np.arange(n_rows), test_size=n_valid, random_state=seed, stratify=codes
    )
    np.testing.assert_array_equal(train, np.sort(expected[0]))
    np.testing.assert_array_equal(valid, np.sort(expected[1]))


@settings(deadline=None)
@given(n_rows=st.integers(2, 500), data=st.data())
def test_rows_are_random_split_as_train_test_split_does(n_rows, data):
    n_valid = data.draw(st.integers(1, n_rows - 1))
    seed = data.draw(st.integers(0, 2**31 - 1))

    train, valid = random_split(n_rows, n_valid, seed)

    expected = train_test_split(np.arange(n_rows), test_size=n_valid, random_state=seed)
    np.testing.assert_array_equal(train, np.sort(expected[0]))
    np.testing.assert_array_equal(valid, np.sort(expected[1]))


@pytest.mark.parametrize("n_classes", [3, 300, 70_000])
def test_many_classes_are_random_split_as_train_test_split_does(n_classes):
    codes = np.repeat(np.arange(n_classes), 4)

    _, valid = random_split(len(codes), n_classes, 0, codes)

    _, expected = train_test_split(
        np.arange(len(codes)), test_size=n_classes, random_state=0, stratify=codes
    )
    np.testing.assert_array_equal(valid, np.sort(expected))
