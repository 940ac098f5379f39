"""Dense tables read and written in blocks that fit a core's cache.

What is done to a block of many short rows is done to few long ones instead: numpy's
inner loops pay for each row anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Block", "KnownMask", "PerColumn", "Workspace", "blocks", "fill", "where"]

# Cells of a block: a few arrays of as many float32 stay in a core's second cache, and
# the long rows of a block are so few that a byte counts them.
_BLOCK_CELLS = 1 << 16

# Rows of a narrow table are joined until they are about this long.
_WIDTH = 1 << 10

# Up to here blocks cost more than they save.
_FEW_CELLS = 1 << 12


class Block(NamedTuple):
    """Some rows of some columns, several rows joined to each long row.

    Attributes
    ----------
    columns : slice
        Which columns these are: all of them, or one.
    cells : ndarray of shape (n_long_rows, n_joined * n_columns)
        What was read, contiguous.
    out : ndarray of the same shape
        Where to write, contiguous.
    """

    columns: slice
    cells: NDArray[Any]
    out: NDArray[Any]

    def per_column(self, long_row: NDArray[Any]) -> NDArray[Any]:
        """Sums by column of something for each place in a long row."""
        n_columns = self.columns.stop - self.columns.start
        return np.asarray(long_row.reshape(-1, n_columns).sum(axis=0))

    def count_true(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How often the mask holds in each column."""
        n_true = np.add.reduce(mask.view(np.uint8), axis=0, dtype=np.uint8)
        return self.per_column(n_true.astype(np.int64))


def blocks(
    X: NDArray[Any], out: NDArray[Any] | None = None, n_cells: int = _BLOCK_CELLS
) -> Iterator[Block]:
    """Blocks of a table in the order of memory, copied where it has gaps.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_columns)
        In C or Fortran order, strided, or a memory map.
    out : ndarray of the same shape, default=None
        Where the ``out`` of the blocks goes; may be ``X`` itself. With None the blocks
        are to be read alone.
    n_cells : int, default=65536
        About how many cells a block has at most.

    Yields
    ------
    Block
        Each cell of the table is in one of them.
    """
    n_rows, n_columns = X.shape
    guide = X if out is None else out
    by_column = guide.flags.f_contiguous and not guide.flags.c_contiguous
    # Columns of a short table would make too many blocks.
    width = 1 if by_column and n_rows >= _WIDTH else n_columns
    joined = max(1, _WIDTH // width)
    step = joined * max(1, n_cells // (joined * width))
    whole = n_rows // joined * joined
    ends = [*range(0, whole, step), whole, n_rows]
    for first in range(0, n_columns, width):
        columns = slice(first, first + width)
        for start, stop in itertools.pairwise(ends):
            if start == stop:
                continue
            shape = (-1, min(joined, stop - start) * width)
            cells = np.ascontiguousarray(X[start:stop, columns]).reshape(shape)
            if out is None:
                yield Block(columns, cells, cells)
                continue
            place = out[start:stop, columns]
            written = np.ascontiguousarray(place).reshape(shape)
            yield Block(columns, cells, written)
            if not np.may_share_memory(place, written):
                place[...] = written.reshape(place.shape)


class PerColumn:
    """A value for each column, laid along the long rows of a block.

    Parameters
    ----------
    values : ndarray of shape (n_columns,) or (n_kinds, n_columns)
        Of several kinds several rows are laid.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values
        self._at: tuple[int, int] | None = None
        self._row = values

    def along(self, block: Block) -> NDArray[Any]:
        """The values as one long row."""
        return self._repeated(block, block.cells.shape[1])

    def at(self, block: Block, places: NDArray[np.intp]) -> Any:
        """The values for some of the cells, laid out one after the other."""
        if block.columns.stop - block.columns.start == 1:
            return self._values[..., block.columns.start]
        return self._repeated(block, block.cells.size)[..., places]

    def _repeated(self, block: Block, size: int) -> NDArray[Any]:
        if self._at != (block.columns.start, size):
            values = self._values[..., block.columns]
            n_columns = values.shape[-1]
            if size == n_columns:
                return values
            self._at = (block.columns.start, size)
            self._row = np.tile(values, size // n_columns)
        return self._row


class Workspace:
    """Memory that is used again from block to block."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, Any], NDArray[Any]] = {}

    def like(self, cells: NDArray[Any], name: str, dtype: DTypeLike) -> NDArray[Any]:
        """An array of any content and the shape of ``cells``."""
        kept = self._kept.get((name, dtype))
        if kept is None or kept.size < cells.size:
            kept = self._kept[name, dtype] = np.empty(cells.size, dtype)
        return kept[: cells.size].reshape(cells.shape)


class KnownMask(NamedTuple):
    """Which cells of a table of floats hold a value.

    Attributes
    ----------
    marker : float
        What marks a missing value. NaN, and infinities are missing too.
    limit : float
        Largest size of a value.
    """

    marker: float = math.nan
    limit: float = math.inf

    def __call__(
        self, cells: NDArray[Any], out: NDArray[np.bool_] | None = None
    ) -> NDArray[np.bool_]:
        """A mask of the shape of ``cells``, written to ``out`` if given."""
        is_narrow = self.limit < float(np.finfo(cells.dtype).max)
        if math.isnan(self.marker) and not is_narrow:
            return np.asarray(np.isfinite(cells, out=out))
        if is_narrow:  # no comparison holds for NaN
            limit = cells.dtype.type(self.limit)
            out = np.less_equal(cells, limit, out=out)
            out &= np.greater_equal(cells, -limit)
            if not math.isnan(self.marker):
                out &= np.not_equal(cells, self.marker)
            return out
        return np.asarray(np.not_equal(cells, self.marker, out=out))


def where(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Where a mask holds, as places in its cells laid out one after the other."""
    flat = mask.reshape(-1)
    n_true = np.count_nonzero(flat)
    # Up to a tenth numpy looks for the next one from each to each, which takes twice
    # the time of its other way unless they are far apart.
    if not flat.size // 50 < n_true <= flat.size // 10 + 1:
        return flat.nonzero()[0]
    padded = np.ones(flat.size + flat.size // 8, dtype=np.bool_)
    padded[: flat.size] = flat
    return padded.nonzero()[0][:n_true]


def fill(
    X: NDArray[Any], values: NDArray[Any], known: KnownMask, out: NDArray[Any]
) -> None:
    """Replace what is not known in a copy of a table by a value of its column.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_columns), float
        The table.
    values : ndarray of shape (n_columns,)
        Of the dtype of ``out``.
    known : KnownMask
        Which cells stay.
    out : ndarray of the shape of ``X``, float
        The copy, or ``X`` itself. Nothing but the replaced cells is written.
    """
    if X.size <= _FEW_CELLS:
        np.copyto(out, values, where=~known(X))
        return
    scratch, filling = Workspace(), PerColumn(values)
    for block in blocks(X, out):
        gone = known(block.cells, scratch.like(block.cells, "known", np.bool_))
        places = where(np.logical_not(gone, out=gone))
        block.out.reshape(-1)[places] = filling.at(block, places)
