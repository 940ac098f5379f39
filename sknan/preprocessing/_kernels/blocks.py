"""Blockwise reading and writing of dense tables, in blocks that fit a core's cache.

numpy's inner loops have a fixed cost for each row. Several short rows of a block are
therefore joined to one long row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sknan._utils.validation import FLOAT64_MAX

# Approximate length of the parts of a long row, by which columns are summed: sums of
# many short rows are faster. It is no power of two, since rows at a distance of a power
# of two are stored in the same few lines of a cache.
_PART = 1000

# Approximate length of a long row. NumPy copies the values that it repeats along the
# rows of a block if there are less than half as many.
_WIDTH = 8 * _PART

# Number of cells in a block. Two float32 arrays of this size fit the second-level cache
# of a core, and a block has so few parts that one byte can count them.
_BLOCK_CELLS = 125 * _PART

# Number of cells up to which blocks and calls of torch cost more than they save.
FEW_CELLS = 1 << 12


class Block(NamedTuple):
    """Some rows of some columns, with several rows joined to each long row.

    Attributes
    ----------
    columns : slice
        Columns of the block: all columns of the table, or one.
    cells : ndarray of shape (n_long_rows, n_joined * n_columns)
        Cells of the table, contiguous.
    out : ndarray of the same shape
        Cells of the output, contiguous.
    n_parts : int
        Number of parts of a long row, each with the same number of rows.
    """

    columns: slice
    cells: NDArray[Any]
    out: NDArray[Any]
    n_parts: int = 1

    def parts(self, cells: NDArray[Any]) -> NDArray[Any]:
        """Return the parts of the long rows of an array, one below the other."""
        return cells.reshape(self.n_parts * len(cells), -1)

    def by_column(self, part: NDArray[Any]) -> NDArray[Any]:
        """Sum the entries of a part that belong to the same column."""
        n_columns = self.columns.stop - self.columns.start
        return np.asarray(np.add.reduce(part.reshape(-1, n_columns), axis=0))

    def count_true(self, mask: NDArray[np.bool_]) -> NDArray[np.int64] | int:
        """Count the true entries of a mask in each column."""
        if self.columns.stop - self.columns.start == 1:
            return int(np.count_nonzero(mask))
        n_true = np.add.reduce(self.parts(mask.view(np.uint8)), dtype=np.uint8)
        return self.by_column(n_true.astype(np.int64))


def blocks(X: NDArray[Any], out: NDArray[Any] | None = None) -> Iterator[Block]:
    """Iterate over the blocks of a table in memory order.

    A block is a view of the table, or a copy where the table is not contiguous.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_columns)
        Table in C or Fortran order, with strides, or memory-mapped.
    out : ndarray of the same shape, default=None
        Output table, which may be ``X`` itself. None if the blocks are only read.

    Yields
    ------
    Block
        Each cell of the table is in exactly one block.
    """
    n_rows, n_columns = X.shape
    guide = X if out is None else out
    by_column = guide.flags.f_contiguous and not guide.flags.c_contiguous
    # In a short table one block for each column would be too many blocks.
    width = 1 if by_column and n_rows >= _PART else n_columns
    in_part = n_parts = 1
    if width > 1:
        in_part = max(1, _PART // width)
        n_parts = max(1, min(8, _WIDTH // (in_part * width)))
    joined = in_part * n_parts
    step = joined * max(1, _BLOCK_CELLS // (joined * width))
    whole = n_rows // joined * joined
    ends = [*range(0, whole, step), whole, n_rows]
    for first in range(0, n_columns, width):
        columns = slice(first, first + width)
        for start, stop in itertools.pairwise(ends):
            if start == stop:
                continue
            shape, parts = ((-1, joined * width), n_parts)
            if stop - start < joined:
                shape, parts = ((1, -1), 1)
            cells = np.ascontiguousarray(X[start:stop, columns]).reshape(shape)
            if out is None:
                yield Block(columns, cells, cells, parts)
                continue
            target = out[start:stop, columns]
            written = np.ascontiguousarray(target).reshape(shape)
            yield Block(columns, cells, written, parts)
            if not np.may_share_memory(target, written):
                target[...] = written.reshape(target.shape)


class PerColumn:
    """Values of the columns, repeated along the long rows of a block.

    Parameters
    ----------
    values : ndarray of shape (n_columns,) or (n_kinds, n_columns)
        One or several values for each column.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values
        # First column and size of a long row, and the row. Threads may share this.
        self._last: tuple[tuple[int, int] | None, NDArray[Any]] = (None, values)

    def along(self, block: Block) -> NDArray[Any]:
        """Return the values for each entry of a long row."""
        size = block.cells.shape[1]
        key, row = self._last
        if key != (block.columns.start, size):
            values = self._values[..., block.columns]
            n_columns = values.shape[-1]
            if n_columns in (1, size):
                return values
            row = np.tile(values, size // n_columns)
            self._last = (block.columns.start, size), row
        return row

    def where(self, block: Block, mask: NDArray[np.bool_]) -> NDArray[Any]:
        """Return the values for the true cells of a mask of the block."""
        row = self.along(block)
        return np.broadcast_to(row[..., None, :], (*row.shape[:-1], *mask.shape))[
            ..., mask
        ]


class KnownMask(NamedTuple):
    """Mask of the cells of a float table that have a known value.

    Attributes
    ----------
    marker : float
        Marker of missing values. If it is NaN, infinities are missing too.
    limit : float
        Largest absolute value that is not missing.
    """

    marker: float = math.nan
    limit: float = math.inf

    def is_isfinite(self, dtype: np.dtype[Any]) -> bool:
        """Return whether the known values of a table are the finite ones."""
        return math.isnan(self.marker) and not self._is_narrow(dtype)

    def _is_narrow(self, dtype: np.dtype[Any]) -> bool:
        is_narrow = self.limit < FLOAT64_MAX
        return is_narrow and self.limit < float(np.finfo(dtype).max)

    def __call__(self, cells: NDArray[Any]) -> NDArray[np.bool_]:
        """Return the mask of ``cells``."""
        if self.is_isfinite(cells.dtype):
            return np.asarray(np.isfinite(cells))
        if not self._is_narrow(cells.dtype):
            return np.asarray(cells != self.marker)
        # Every comparison with NaN is false.
        limit = cells.dtype.type(self.limit)
        known = np.asarray((cells <= limit) & (cells >= -limit))
        return known if math.isnan(self.marker) else known & (cells != self.marker)


def places_of(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the flat places of the few true entries of a contiguous mask.

    ``numpy.flatnonzero`` branches on each entry if less than a tenth are true. Eight at
    a time, more than a tenth are.
    """
    entries = mask.reshape(-1)
    if entries.size % 8:
        return np.flatnonzero(entries)
    eights = entries.view(np.uint64)
    starts = np.flatnonzero(eights != 0)
    places = np.flatnonzero(eights[starts].view(np.bool_))
    starts -= np.arange(starts.size)
    starts *= 8
    places += starts[places >> 3]
    return places


def zero_outside(mask: NDArray[np.bool_], cells: NDArray[Any]) -> NDArray[Any]:
    """Return contiguous float cells where a mask is true, and zeros elsewhere.

    A masked copy branches on each cell, and the processor predicts branches on random
    missing values wrongly. A product of the cells, read as integers, and the mask takes
    a fraction of the time.
    """
    integers = f"i{cells.itemsize}"
    return np.asarray((cells.view(integers) * mask).view(cells.dtype))


def fill_outside(
    mask: NDArray[np.bool_],
    cells: NDArray[Any],
    row: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write the cells where a mask is true, and those of a row elsewhere.

    The arrays are contiguous and of one float dtype. ``out`` may be ``cells``, and
    ``row`` may have a single value.
    """
    integers = f"i{cells.itemsize}"
    target, other = out.view(integers), row.view(integers)
    np.bitwise_xor(cells.view(integers), other, out=target)
    target *= mask
    target ^= other


def fill(
    X: NDArray[Any], values: NDArray[Any], known: KnownMask, out: NDArray[Any]
) -> None:
    """Write a table in which each missing cell has the value of its column.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_columns), float
        Table with missing values.
    values : ndarray of shape (n_columns,)
        Fill value of each column, in the dtype of ``out``.
    known : KnownMask
        Mask of the cells that are kept.
    out : ndarray of the shape of ``X``, float
        Output, which may be ``X`` itself. If its dtype is another one, it contains the
        converted table.
    """
    is_same = X.dtype == out.dtype
    if X.size <= FEW_CELLS:
        missing = ~known(X)
        if is_same and out is not X:
            out[...] = X
        np.copyto(out, values, where=missing)
        return
    fill_values = PerColumn(values)
    for block in blocks(X, out):
        cells = block.cells if is_same else block.out
        is_known = known(block.cells)
        if not is_known.all():
            fill_outside(is_known, cells, fill_values.along(block), block.out)
        elif is_same and out is not X:
            block.out[...] = cells
