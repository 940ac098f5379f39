from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sknan._utils.tree import tree_map
from sknan.nets import TensorBatches, TensorTable

sizes = st.integers(1, 12)
lengths = st.integers(0, 40)


def numbered_table(n):
    """Each row of every leaf holds its own number."""
    X = {"a": torch.arange(n), "b": (torch.arange(n).reshape(-1, 1).float(),)}
    return TensorTable(X, torch.arange(n))


def rows_of(batches):
    rows = []
    for X, y in batches:
        assert torch.equal(X["a"], y)
        assert torch.equal(X["b"][0].flatten().long(), y)
        rows.append(y.tolist())
    return rows


@given(lengths, sizes, st.booleans(), st.integers(0, 5))
def test_every_row_comes_exactly_once_in_a_pass(n, size, shuffle, seed):
    torch.manual_seed(seed)
    batches = TensorBatches(numbered_table(n), size, shuffle=shuffle)
    for _ in range(2):
        rows = rows_of(batches)
        assert sorted(chain.from_iterable(rows)) == list(range(n))
        if not shuffle:
            assert list(chain.from_iterable(rows)) == list(range(n))


@given(lengths, sizes, st.booleans(), st.booleans(), st.booleans())
def test_batches_have_the_sizes_that_were_asked_for(n, size, shuffle, drop, merge):
    torch.manual_seed(0)
    batches = TensorBatches(
        numbered_table(n), size, shuffle=shuffle, drop_last=drop, merge_lone_row=merge
    )
    expected = [size] * (n // size) + ([n % size] if n % size and not drop else [])
    if merge and len(expected) > 1 and expected[-1] == 1:
        expected[-2:] = [expected[-2] + 1]
    assert [len(rows) for rows in rows_of(batches)] == expected
    assert len(batches) == len(expected)


@given(lengths, sizes, st.booleans())
def test_unshuffled_batches_are_those_of_a_data_loader(n, size, drop):
    X, y = torch.randn(n, 2), torch.arange(n)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(X, y), batch_size=size, drop_last=drop
    )
    batches = TensorBatches(TensorTable(X, y), size, drop_last=drop)
    for batch, (expected_X, expected_y) in zip(batches, loader, strict=True):
        assert torch.equal(batch[0], expected_X)
        assert torch.equal(batch[1], expected_y)


def test_only_a_last_lone_row_is_merged():
    batches = TensorBatches(numbered_table(7), 3, merge_lone_row=True)
    assert rows_of(batches) == [[0, 1, 2], [3, 4, 5, 6]]
    assert rows_of(TensorBatches(numbered_table(1), 3, merge_lone_row=True)) == [[0]]


def test_a_row_that_is_dropped_is_not_merged():
    batches = TensorBatches(numbered_table(7), 3, merge_lone_row=True, drop_last=True)
    assert rows_of(batches) == [[0, 1, 2], [3, 4, 5]]


def test_each_pass_has_an_order_of_its_own_and_the_seed_decides_it():
    batches = TensorBatches(numbered_table(50), 50, shuffle=True)
    torch.manual_seed(0)
    first, second = rows_of(batches), rows_of(batches)
    assert first != second
    torch.manual_seed(0)
    assert [rows_of(batches), rows_of(batches)] == [first, second]


def test_batches_in_order_draw_no_random_number():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    rows_of(TensorBatches(numbered_table(5), 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_module_that_works_in_place_does_not_damage_the_table(shuffle):
    torch.manual_seed(0)
    X, y = torch.ones(6, 2), torch.ones(6)
    for batch_X, batch_y in TensorBatches(TensorTable(X, y), 4, shuffle=shuffle):
        batch_X.fill_(torch.nan)
        batch_y.fill_(torch.nan)
    assert torch.equal(X, torch.ones(6, 2))
    assert torch.equal(y, torch.ones(6))


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match="batch_size") as caught:
        TensorBatches(numbered_table(3), size)
    assert str(caught.value) == f"batch_size must be at least 1, got {size}."


def test_leaves_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="one number of rows") as caught:
        TensorTable({"a": torch.zeros(3), "b": torch.zeros(2)}, torch.zeros(3))
    assert str(caught.value) == "X and y must have one number of rows, got [2, 3]."


def test_a_table_is_a_data_set():
    table = TensorTable(torch.arange(6).reshape(3, 2), torch.arange(3))
    assert len(table) == 3
    X, y = table[1]
    assert X.tolist() == [2, 3]
    assert y.item() == 1
    loader = torch.utils.data.DataLoader(table, batch_size=2)
    assert [batch[1].tolist() for batch in loader] == [[0, 1], [2]]
    X, y = table[torch.tensor([2, 0])]
    assert X.tolist() == [[4, 5], [0, 1]]


def test_a_view_gives_the_batches_of_a_subset_and_copies_nothing():
    X, index = torch.randn(40, 3), torch.randperm(40)[:25]
    table = TensorTable({"a": X, "b": X[:, 0]}, torch.arange(40), columns=["x"] * 3)
    view, subset = table.view(index), table.subset(index)
    assert len(view) == 25
    assert view.columns == subset.columns
    assert view.numbers.tolist() == subset.numbers.tolist() == index.tolist()
    for shuffle in (False, True):
        passes = []
        for rows in (view, subset):
            batches = TensorBatches(rows, 4, shuffle=shuffle)
            torch.manual_seed(0)
            passes.append([(b["a"], b["b"], y, batches.latest) for b, y in batches])
        for ours, theirs in zip(*passes, strict=True):
            assert all(map(torch.equal, ours, theirs))
    assert torch.equal(view.X["a"], subset.X["a"])
    assert torch.equal(view.y, subset.y)

    few = torch.tensor([3, 0])
    assert view.view(few).numbers.tolist() == index[few].tolist()
    assert view.subset(few).y.tolist() == index[few].tolist()
    X[index[0]] = 7.0  # it sees what becomes of the table
    assert view.rows(0)[0]["a"].tolist() == [7.0] * 3


def test_a_tree_keeps_its_shape():
    data = {"a": (1, [2, 3]), "b": 4}
    assert tree_map(lambda leaf: leaf * 10, data) == {"a": (10, (20, 30)), "b": 40}
