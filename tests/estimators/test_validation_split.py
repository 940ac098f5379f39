"""Validation splits: those of scikit-learn, and the folds of an ensemble."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from sknan.estimators._validation_split import ValidationFold, random_split


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(2, 40), min_size=2, max_size=6),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_stratified_split_equals_that_of_train_test_split(counts, share, seed):
    codes = np.random.default_rng(seed).permutation(
        np.repeat(np.arange(len(counts)) * 2, counts)  # only even codes occur
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
def test_a_split_equals_that_of_train_test_split(n_rows, data):
    n_valid = data.draw(st.integers(1, n_rows - 1))
    seed = data.draw(st.integers(0, 2**31 - 1))

    train, valid = random_split(n_rows, n_valid, seed)

    expected = train_test_split(np.arange(n_rows), test_size=n_valid, random_state=seed)
    np.testing.assert_array_equal(train, np.sort(expected[0]))
    np.testing.assert_array_equal(valid, np.sort(expected[1]))


@pytest.mark.parametrize("n_classes", [3, 300, 70_000])
def test_a_stratified_split_of_many_classes_equals_that_of_train_test_split(n_classes):
    codes = np.repeat(np.arange(n_classes), 4)

    _, valid = random_split(len(codes), n_classes, 0, codes)

    _, expected = train_test_split(
        np.arange(len(codes)), test_size=n_classes, random_state=0, stratify=codes
    )
    np.testing.assert_array_equal(valid, np.sort(expected))


@pytest.mark.parametrize("n_rows", [5, 23, 100])
def test_folds_have_equal_sizes_and_are_disjoint(n_rows):
    folds = [ValidationFold(i, 5, seed=3).split(n_rows) for i in range(5)]
    held = np.concatenate([valid for _, valid in folds])
    assert len(set(held)) == len(held) == n_rows // 5 * 5
    for train, valid in folds:
        assert len(valid) == n_rows // 5
        assert sorted([*train, *valid]) == list(range(n_rows))


def test_folds_contain_each_class_in_proportion():
    codes = np.repeat([0, 1, 2], [100, 50, 12])
    np.random.default_rng(0).shuffle(codes)
    for i in range(5):
        train, valid = ValidationFold(i, 5, seed=0).split(len(codes), codes)
        assert abs(np.bincount(codes[valid]) - [20, 10, 2.4]).max() <= 1
        assert np.bincount(codes[train]).min() > 0
