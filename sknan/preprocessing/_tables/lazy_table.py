"""Tables of any library, read one column at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from sknan._utils.validation import column_name
from sknan.preprocessing._kernels.column_means import columns_of
from sknan.preprocessing._tables.plain_cells import plain_cells
from sknan.preprocessing._tables.typed_column import (
    ColumnContent,
    TypedColumn,
    frame_from_arrow,
    is_polars,
    read_column,
)


class LazyTable(NamedTuple):
    """A table whose columns are read on demand.

    Attributes
    ----------
    n_rows, n_columns : int
        Shape of the table.
    labels : sequence or None
        Labels of the columns; None if the table has no labels.
    read : callable
        Function that reads the column at a position.
    array : ndarray or None
        The whole table if it is an array of numbers, else None.
    frame : DataFrame or None
        The whole table if it is a DataFrame of pandas, else None.
    is_sparse : bool
        Whether the table is sparse, with implicit zeros.
    left_out : int or None
        Position of a column that is left out, such as the target.
    """

    n_rows: int
    n_columns: int
    labels: Sequence[Any] | None
    read: Callable[[int], TypedColumn]
    array: NDArray[Any] | None = None
    frame: pd.DataFrame | None = None
    is_sparse: bool = False
    left_out: int | None = None

    def columns(self) -> Iterator[TypedColumn]:
        """Iterate over all columns; columns of a C-ordered array are copied."""
        if self.array is not None:
            for j, cells in enumerate(columns_of(self.array)):
                yield _of_numbers(j, cells)
            return
        for j in range(self.n_columns + (self.left_out is not None)):
            if j != self.left_out:
                yield self.read(j)

    def plain_numbers(self) -> list[bool]:
        """Return whether each column has a NumPy dtype of numbers or booleans."""
        if self.array is not None:
            return [self.array.dtype.kind != "c"] * self.n_columns
        if self.frame is None:
            return [False] * self.n_columns
        dtypes = list(self.frame.dtypes)
        return [isinstance(t, np.dtype) and t.kind in "biuf" for t in dtypes]

    def block(self, positions: Sequence[int]) -> NDArray[np.float64]:
        """Return a copy of columns of plain numbers."""
        if self.array is not None:
            return self.array[:, positions].astype(np.float64)
        if self.frame is not None and positions:
            return np.array(self.frame.iloc[:, positions], dtype=np.float64)
        return np.empty((self.n_rows, 0))

    def objects(self, positions: Sequence[int]) -> NDArray[np.object_] | None:
        """Return columns of a DataFrame of pandas as Python's objects.

        None for any other table, or if pandas cannot convert the cells.
        """
        if self.frame is None:
            return None
        try:
            if len(positions) == self.frame.shape[1]:  # which saves a copy
                return np.asarray(self.frame.to_numpy(object)[:, positions])
            return np.asarray(self.frame.iloc[:, positions].to_numpy(object))
        except NotImplementedError:  # pandas cannot read views of pyarrow
            return None

    def without(self, position: int) -> LazyTable:
        """Return the table without one column; the other positions do not change."""
        return self._replace(n_columns=self.n_columns - 1, left_out=position)


def read_table(X: Any, reader: str = "audit") -> LazyTable:
    """Return a reader of the columns of a table.

    Parameters
    ----------
    X : DataFrame, ndarray, sparse matrix or sequence
        Two-dimensional table.
    reader : str, default="audit"
        Name of the caller, for messages.

    Returns
    -------
    LazyTable

    Raises
    ------
    ValueError
        If ``X`` does not have two dimensions.
    TypeError
        If ``X`` is no table.
    """
    if isinstance(X, (np.ma.MaskedArray, Tensor)) or _is_structured(X):
        X = plain_cells(X)
    if isinstance(X, pd.DataFrame):
        return _of_frame(X)
    if is_polars(X):
        return _of_polars(X, reader)
    if sparse.issparse(X):
        return _of_sparse(X, reader)
    if hasattr(X, "to_pandas"):
        return read_table(frame_from_arrow(X), reader)
    if isinstance(X, (str, bytes)) or not (
        hasattr(X, "__array__") or isinstance(X, Iterable)
    ):
        raise TypeError(
            f"{reader} takes a table, got {type(X).__name__}. Pass a DataFrame, an "
            "array or a list of rows."
        )
    if hasattr(X, "__array__"):
        given, X = X, np.asarray(X)
        _check_dimensions(given, X.ndim, reader)
        if X.dtype.kind in "biufc":
            return _of_array(X)
        # Read column by column, so that text in one column leaves the others numeric.
        return _of_frame(_frame_of(X), is_named=False)
    if isinstance(X, dict):
        if X and not any(map(_is_row, X.values())):
            _check_dimensions(X, 1, reader)
        return _of_frame(_frame_of(X))
    rows = list(X)
    if rows and not _is_row(rows[0]):
        _check_dimensions(X, 1, reader)
    is_named = bool(rows) and isinstance(rows[0], dict)
    return _of_frame(_frame_of(rows), is_named=is_named)


def _frame_of(X: Any) -> pd.DataFrame:
    """Return a DataFrame of an array, a dict or a list of rows."""
    if isinstance(X, dict):
        X = {name: _without_tensor(cells) for name, cells in X.items()}
    elif isinstance(X, list):
        X = [_without_tensor(cells) for cells in X]
    try:
        return pd.DataFrame(X)
    except OverflowError:  # pandas 2 tries to convert integers beyond float64
        return pd.DataFrame(X, dtype=object)


def _without_tensor(cells: Any) -> Any:
    return plain_cells(cells) if isinstance(cells, Tensor) else cells


def _is_structured(X: Any) -> bool:
    return isinstance(X, np.ndarray) and X.dtype.names is not None


def _is_row(cells: Any) -> bool:
    return isinstance(cells, Iterable) and not isinstance(cells, (str, bytes))


def _check_dimensions(X: Any, n_dimensions: int, reader: str) -> None:
    if n_dimensions != 2:
        if isinstance(X, pd.Series):
            column, row = "X.to_frame()", "X.to_frame().T"
        elif hasattr(X, "reshape"):
            column, row = "X.reshape(-1, 1)", "X.reshape(1, -1)"
        elif isinstance(X, dict):
            column, row = "[[cell] for cell in X.values()]", "[X]"
        else:
            column, row = "[[cell] for cell in X]", "[X]"
        raise ValueError(
            f"{reader} takes a table with rows and columns, got {n_dimensions} "
            f"dimension{'' if n_dimensions == 1 else 's'}. Reshape your data: "
            f"{column} if it is one column, {row} if it is one row."
        )


def _of_frame(X: pd.DataFrame, *, is_named: bool = True) -> LazyTable:
    # The labels of a frame that was made without names are positions.
    positions = pd.RangeIndex(X.shape[1])
    is_numbered = isinstance(X.columns, pd.RangeIndex) and X.columns.equals(positions)
    labels = list(X.columns) if is_named and not is_numbered else None

    def read(j: int) -> TypedColumn:
        label = j if labels is None else labels[j]
        return read_column(X.iloc[:, j], j, label, column_name(j, labels))

    return LazyTable(len(X), X.shape[1], labels, read, frame=X)


def _of_polars(X: Any, reader: str) -> LazyTable:
    if not hasattr(X, "get_columns"):
        raise TypeError(
            f"{reader} takes a table in memory, got a polars {type(X).__name__}. Pass "
            "X.collect() of a LazyFrame, X.to_frame() of a Series."
        )
    labels = list(X.columns)

    def read(j: int) -> TypedColumn:
        series = X.to_series(j)
        return read_column(series, j, labels[j], column_name(j, labels))

    return LazyTable(X.height, X.width, labels, read)


def _of_array(X: NDArray[Any]) -> LazyTable:
    def read(j: int) -> TypedColumn:
        return _of_numbers(j, np.ascontiguousarray(X[:, j]))

    return LazyTable(X.shape[0], X.shape[1], None, read, array=X)


def _of_numbers(position: int, cells: NDArray[Any], n_zeros: int = 0) -> TypedColumn:
    kinds: dict[str, ColumnContent] = {"b": "flags", "c": "complex"}
    holds = kinds.get(cells.dtype.kind, "numbers")
    name, dtype = column_name(position, None), str(cells.dtype)
    return TypedColumn(position, position, name, dtype, holds, cells, n_zeros)


def _of_sparse(X: Any, reader: str) -> LazyTable:
    _check_dimensions(X, X.ndim, reader)
    by_column = sparse.csc_array(X)
    by_column.sum_duplicates()
    if by_column.dtype == bool:
        by_column = by_column.astype(np.int8)

    def read(j: int) -> TypedColumn:
        start, stop = by_column.indptr[j : j + 2]
        stored = by_column.data[start:stop]
        return _of_numbers(j, stored, X.shape[0] - len(stored))

    return LazyTable(X.shape[0], X.shape[1], None, read, is_sparse=True)
