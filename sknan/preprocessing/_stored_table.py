"""Tables in temporary files, from which networks are trained in bounded memory."""

from __future__ import annotations

import mmap
import tempfile
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sknan.preprocessing._chunks import NO_ROWS, as_chunks


class StoredTable(NamedTuple):
    """A table in a temporary memory map, with its targets in memory.

    Attributes
    ----------
    X : ndarray or DataFrame of shape (n_rows, n_columns)
        Numbers in a file without a name, which the system deletes with the array.
    y : ndarray of shape (n_rows,) or (n_rows, n_targets)
        Targets.
    chunk : ndarray of int of shape (n_rows,) or None
        Number of the chunk of each row, from 0. None for a table in memory.
    """

    X: Any
    y: Any
    chunk: np.ndarray | None


def stored_chunks(X: Any, y: Any = None) -> StoredTable:
    """Return a table and its target; write one in chunks to a temporary memory map.

    Training draws its batches from all rows, which chunks in their order would not
    allow.
    """
    chunks = as_chunks(X, y)
    if chunks is None:
        return StoredTable(X, y, None)
    targets: list[Any] = []
    sizes: list[int] = []
    names: list[Any] | None = None
    with _MappedRows() as rows:
        for table, target in chunks.pairs():
            if not sizes and isinstance(table, pd.DataFrame):
                names = list(table.columns)
            rows.write(np.asarray(table))
            targets.append(np.array(target))  # a view would keep the whole chunk
            sizes.append(len(table))
        if not sizes:
            raise ValueError(NO_ROWS)
        cells = rows.read()
    is_known = targets[0].ndim > 0
    return StoredTable(
        cells if names is None else pd.DataFrame(cells, columns=names, copy=False),
        np.concatenate(targets) if is_known else None,
        np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
    )


def joined_rows(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the rows of two arrays of one dtype, in a memory map if the first is."""
    owner: Any = first
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    if not isinstance(owner, mmap.mmap):
        return np.concatenate([first, second])
    with _MappedRows() as rows:
        rows.write(first)
        rows.write(second)
        return rows.read()


class _MappedRows:
    """Rows of numbers that are written to a temporary file and read as an array.

    The dtype is float32 if the first rows have it, and float64 otherwise, because
    float32 does not resolve large integers.
    """

    def __enter__(self) -> _MappedRows:
        self._file = tempfile.TemporaryFile()
        self._n_rows, self._shape = 0, tuple[int, ...]()
        self._dtype: np.dtype[Any] = np.dtype(np.float64)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, rows: np.ndarray) -> None:
        if not self._n_rows:
            self._shape = rows.shape[1:]
            if rows.dtype == np.float32:
                self._dtype = rows.dtype
        np.ascontiguousarray(rows, dtype=self._dtype).tofile(self._file)
        self._n_rows += len(rows)

    def read(self) -> np.ndarray:
        self._file.flush()
        # joblib would look for the name of the file of a np.memmap, which has none.
        cells = np.frombuffer(mmap.mmap(self._file.fileno(), 0), self._dtype)
        return cells.reshape(self._n_rows, *self._shape)
