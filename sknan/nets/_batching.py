"""Mini-batches cut from whole tensors.

A ``DataLoader`` fetches single rows and stacks them again, which costs more than the
training step of a small network. A table that fits in memory is already a tensor: a
batch of it is one slice, or one gather by shuffled indices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from sknan._utils.tree import tree_leaves, tree_map

# Rows are gathered for several batches at once, because a gather per batch costs more.
# Such a block fits in the cache (1 MB of float32), and batches are views of it.
_VALUES_PER_BLOCK = 2**18


def _drawn_seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_().item())


class TensorTable(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Dataset of whole tensors, with the rows of ``X`` and of ``y``.

    Parameters
    ----------
    X, y : Tensor, or nested tuples or dicts of Tensor
        Inputs and targets; each leaf has the shape (n_samples, ...).
    numbers : Tensor of shape (n_samples,) or None, default=None
        Row numbers in the caller's data. None means all rows in order.
    columns : sequence of str or None, default=None
        Names of the columns of ``X``.

    Raises
    ------
    ValueError
        If the leaves differ in their number of rows.
    """

    def __init__(
        self,
        X: Any,
        y: Any,
        numbers: Tensor | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        lengths = {len(leaf) for leaf in tree_leaves((X, y))}
        if len(lengths) != 1:
            raise ValueError(
                f"X and y must have one number of rows, got {sorted(lengths)}."
            )
        self._leaves = (X, y)
        self._length = lengths.pop()
        self._numbers = torch.arange(self._length) if numbers is None else numbers
        self._chosen: Tensor | None = None
        self.columns = columns

    @property
    def X(self) -> Any:
        """Inputs; for a view, a copy of its rows."""
        return self._whole(0)

    @property
    def y(self) -> Any:
        """Targets; for a view, a copy of its rows."""
        return self._whole(1)

    def _whole(self, index: int) -> Any:
        leaves, chosen = self._leaves[index], self._chosen
        return leaves if chosen is None else tree_map(lambda t: t[chosen], leaves)

    @property
    def numbers(self) -> Tensor:
        """Row numbers in the caller's data."""
        chosen = self._chosen
        return self._numbers if chosen is None else self._numbers[chosen]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        return self.rows(index)

    def rows(self, index: Any) -> tuple[Any, Any]:
        """Return rows by a slice, an integer or an index tensor."""
        chosen = index if self._chosen is None else self._chosen[index]
        X, y = tree_map(lambda leaf: leaf[chosen], self._leaves)
        return X, y

    def subset(self, index: Tensor) -> TensorTable:
        """Return a table with copies of the rows at ``index``."""
        return TensorTable(*self.rows(index), self.numbers[index], self.columns)

    def view(self, index: Tensor) -> TensorTable:
        """Return a table of the rows at ``index`` that gathers them at each access."""
        table = TensorTable(*self._leaves, self._numbers, self.columns)
        table._chosen = index if self._chosen is None else self._chosen[index]
        table._length = len(index)
        return table


def batch_bounds(
    n_rows: int, size: int, *, drop_last: bool = False, merge_lone_row: bool = False
) -> list[tuple[int, int]]:
    """Return start and stop of each batch of a pass; see :class:`TensorBatches`."""
    bounds = [(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
    if drop_last and bounds and bounds[-1][1] - bounds[-1][0] < size:
        bounds.pop()
    if merge_lone_row and len(bounds) > 1:
        start, stop = bounds[-1]
        if stop - start == 1:
            bounds[-2:] = [(bounds[-2][0], stop)]
    return bounds


@dataclass(eq=False)
class TensorBatches:
    """Batches of a :class:`TensorTable`, shuffled anew in each pass.

    Parameters
    ----------
    dataset : TensorTable
        Rows to iterate over.
    batch_size : int
        Number of rows in a batch. The last batch may be shorter.
    shuffle : bool, default=False
        Whether to draw a new order from torch's global generator for each pass.
    drop_last : bool, default=False
        Whether to omit a last batch that is shorter than ``batch_size``.
    like_loader : bool, default=False
        Whether to draw from torch's global generator the same numbers as a
        ``DataLoader`` of these rows. A seeded training then uses the same batches and
        the same dropout masks.
    merge_lone_row : bool, default=False
        Whether to append a last batch of a single row to the previous batch, because
        batch normalization has no variance over one row.

    Raises
    ------
    ValueError
        If ``batch_size`` is below 1.

    Notes
    -----
    Yields ``(X, y)`` with leaves of shape (n_rows, ...); ``latest`` has their row
    numbers. Batches never share memory with the table, so a module that works in place
    cannot damage the caller's arrays. Batches may share memory with each other.
    """

    dataset: TensorTable
    batch_size: int
    _: KW_ONLY
    shuffle: bool = False
    drop_last: bool = False
    like_loader: bool = False
    merge_lone_row: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        self._order: Tensor | None = None
        self._latest: slice | None = None

    def bounds(self) -> list[tuple[int, int]]:
        """Return the first and last-plus-one position of each batch in a pass."""
        return batch_bounds(
            len(self.dataset),
            self.batch_size,
            drop_last=self.drop_last,
            merge_lone_row=self.merge_lone_row,
        )

    def __len__(self) -> int:
        return len(self.bounds())

    @property
    def latest(self) -> Tensor | None:
        """Row numbers of the batch that was yielded last."""
        if self._latest is None:
            return None
        numbers = self.dataset.numbers
        order = self._order
        return numbers[self._latest if order is None else order[self._latest]]

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        table, generator = self.dataset, None
        if self.like_loader:
            _drawn_seed()  # a loader draws a seed for its workers, if any or not
        self._order = None  # frees the old order before the new one is drawn
        if self.shuffle:
            if self.like_loader:  # a loader's sampler seeds a separate generator
                generator = torch.Generator().manual_seed(_drawn_seed())
            self._order = torch.randperm(len(table), generator=generator)
        bounds = self.bounds()
        per_row = sum(leaf.numel() for leaf in tree_leaves(table.rows(slice(0, 1))))
        per_block = max(1, _VALUES_PER_BLOCK // max(1, per_row * self.batch_size))
        for block in range(0, len(bounds), per_block):
            block_bounds = bounds[block : block + per_block]
            first, last = block_bounds[0][0], block_bounds[-1][1]
            if self._order is None:
                rows = tree_map(torch.clone, table.rows(slice(first, last)))
            else:
                rows = table.rows(self._order[first:last])
            for start, stop in block_bounds:
                self._latest = slice(start, stop)
                batch = slice(start - first, stop - first)
                yield tree_map(lambda leaf, batch=batch: leaf[batch], rows)  # type: ignore[misc]
