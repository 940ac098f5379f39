"""Validation splits: those of scikit-learn, and the folds of an ensemble."""

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from sknan.estimators._validation_split import HoldOut, ValidationFold


def test_a_split_keeps_the_shares_of_the_classes_where_that_is_possible():
    codes = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 50, 10]))

    train, valid = HoldOut(0.1, is_classification=True).split(codes, 3)

    expected = train_test_split(
        np.arange(160), test_size=16, random_state=3, stratify=codes
    )
    np.testing.assert_array_equal(train, np.sort(expected[0]))
    np.testing.assert_array_equal(valid, np.sort(expected[1]))


@pytest.mark.parametrize("codes", [[0] * 30 + [1], list(range(10)) * 2])
def test_a_split_ignores_classes_that_are_too_many_or_too_small(codes):
    train, valid = HoldOut(0.1, is_classification=True).split(np.array(codes), 3)

    expected = train_test_split(
        np.arange(len(codes)), test_size=len(valid), random_state=3
    )
    np.testing.assert_array_equal(train, np.sort(expected[0]))
    np.testing.assert_array_equal(valid, np.sort(expected[1]))


def test_a_split_that_leaves_no_row_is_refused():
    with pytest.raises(ValueError, match="leaves none") as refused:
        HoldOut(0.9, is_classification=False).split(np.ones(3), 0)
    assert str(refused.value) == (
        "validation_fraction=0.9 holds out 3 of 3 rows, which leaves none to train on. "
        "Lower it, or set early_stopping=False."
    )


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
