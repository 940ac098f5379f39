"""Tables in temporary files."""

import mmap

import numpy as np
import pandas as pd
import pytest
from joblib import Parallel, delayed

from sknan.preprocessing import iter_chunks
from sknan.preprocessing._stored_table import joined_rows, stored_chunks


def mapped(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(getattr(array, "obj", array), mmap.mmap)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_chunks_are_stored_with_their_numbers(dtype):
    X = np.arange(14).astype(dtype).reshape(7, 2)
    stored = stored_chunks(iter_chunks(pd.DataFrame(X), X[:, 0], chunk_size=3))
    assert mapped(stored.X.to_numpy())
    np.testing.assert_array_equal(stored.X, X)
    np.testing.assert_array_equal(stored.y, X[:, 0])
    assert stored.X.to_numpy().dtype == ("float32" if dtype == "float32" else "float64")
    assert stored.chunk.tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_rows_are_joined_in_a_map_if_the_first_are_in_one(tmp_path):
    X = np.arange(8, dtype="float32").reshape(4, 2)
    in_map = stored_chunks(iter_chunks(pd.DataFrame(X))).X.to_numpy()
    np.save(tmp_path / "X.npy", X)
    of_user = np.load(tmp_path / "X.npy", mmap_mode="r")
    for first in (X, in_map, in_map[:], of_user):
        joined = joined_rows(first, X[:1])
        np.testing.assert_array_equal(joined, X[[0, 1, 2, 3, 0]])
        assert mapped(joined) == mapped(first)


def test_workers_receive_rows_in_a_map():
    # From a megabyte on, joblib passes arrays in files.
    X = np.zeros((150_000, 2), dtype="float32")
    in_map = stored_chunks(iter_chunks(pd.DataFrame(X))).X
    (shape,) = Parallel(n_jobs=2)([delayed(np.shape)(in_map)])
    assert shape == X.shape
