"""Tables in temporary files."""

import numpy as np
import pandas as pd
import pytest

from sknan.preprocessing import iter_chunks
from sknan.preprocessing._stored_table import joined_rows, stored_chunks


def mapped(array):
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_chunks_are_stored_with_their_numbers(dtype):
    X = np.arange(14).astype(dtype).reshape(7, 2)
    stored = stored_chunks(iter_chunks(pd.DataFrame(X), X[:, 0], chunk_size=3))
    assert mapped(stored.X.to_numpy())
    np.testing.assert_array_equal(stored.X, X)
    np.testing.assert_array_equal(stored.y, X[:, 0])
    assert stored.X.to_numpy().dtype == ("float32" if dtype == "float32" else "float64")
    assert stored.chunk.tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_rows_are_joined_in_a_map_if_the_first_are_in_one():
    X = np.arange(8, dtype="float32").reshape(4, 2)
    in_map = stored_chunks(iter_chunks(pd.DataFrame(X))).X.to_numpy()
    for first in (X, in_map, in_map[:]):
        joined = joined_rows(first, X[:1])
        np.testing.assert_array_equal(joined, X[[0, 1, 2, 3, 0]])
        assert mapped(joined) == mapped(first)
