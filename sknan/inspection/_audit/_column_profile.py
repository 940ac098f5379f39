"""Statistics of one column, with the faults observed in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sknan.inspection._audit._finding import Observation
from sknan.inspection._audit._formatting import number, quoted, share
from sknan.preprocessing._tables.numeric_sentinels import Sentinel, sample_rows
from sknan.preprocessing._tables.typed_column import ColumnContent

# A column is nearly constant if one value has this share of the known values.
_NEARLY_ALL = 0.99

# Least number of rows for an identifier or a nearly constant column.
MIN_ROWS = 50

# Number of sentinels of a column that are listed.
_MAX_SHOWN = 3


@dataclass
class ColumnProfile:
    """Statistics of one column, with the faults observed in it.

    Attributes
    ----------
    position, label, name, dtype, holds
        The same as in :class:`~sknan.preprocessing._tables.typed_column.TypedColumn`.
    n_rows, n_missing, n_infinite, n_beyond : int
        Number of all cells, of missing ones, of infinite ones, and of finite ones
        beyond float32.
    n_distinct : int
        Number of distinct known values in the sample.
    top_share : float
        Share of the most frequent value among the known ones.
    low, q1, median, q3, high : float
        Extremes and quartiles of the finite numbers without sentinels. The quartiles
        are those of the sample.
    extent : float
        Distance of the farthest number from the quartiles, in interquartile ranges.
    sentinels : list of Sentinel
        Suspected sentinels.
    observations : list of Observation
        Faults observed in the column.
    missing_rows : ndarray of bool or None
        Mask of the missing cells among the sampled rows. None if no cell is missing or
        the table is sparse.
    key : bytes
        Fingerprint of a few cells. Columns that differ only by the names of their
        categories have the same one. Empty in a sparse table.
    key_values : tuple
        Distinct values of these cells, in order of appearance.
    """

    position: int
    label: Any
    name: str
    dtype: str
    holds: ColumnContent
    n_rows: int
    n_missing: int = 0
    n_infinite: int = 0
    n_beyond: int = 0
    n_distinct: int = 0
    top_share: float = math.nan
    low: float = math.nan
    q1: float = math.nan
    median: float = math.nan
    q3: float = math.nan
    high: float = math.nan
    extent: float = math.nan
    sentinels: list[Sentinel] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    missing_rows: NDArray[np.bool_] | None = None
    key: bytes = b""
    key_values: tuple[Any, ...] = ()

    @property
    def n_known(self) -> int:
        """Number of cells that are not missing."""
        return self.n_rows - self.n_missing

    @property
    def is_nearly_constant(self) -> bool:
        """Whether all known values are equal, or nearly all."""
        return self.top_share >= _NEARLY_ALL

    def observation(self, kind: str, value: float, detail: str) -> Observation:
        """Return an observation about this column, without adding it."""
        return Observation(kind, value, detail, self.name, self.label, self.position)

    def add(self, kind: str, value: float, detail: str) -> None:
        """Add an observation."""
        self.observations.append(self.observation(kind, value, detail))

    def has(self, *kinds: str) -> bool:
        """Return whether a fault of one of these kinds has been observed."""
        return any(observation.kind in kinds for observation in self.observations)

    def add_sentinels(self, found: Sequence[Sentinel], kind: str = "sentinel") -> None:
        """Add suspected sentinels, and one observation about them if there are any."""
        if not found:
            return
        self.sentinels = [*self.sentinels, *found]
        n_cells = sum(sentinel.n_cells for sentinel in found)
        shown = [
            f"{_in_words(s.value)} in {share(s.n_cells, self.n_rows)}" for s in found
        ]
        self.add(kind, n_cells / self.n_rows, ", ".join(shown[:_MAX_SHOWN]))

    def add_top(self, top: str, n_top: int, n_values: int) -> None:
        """Store the share of the most frequent value, observed if nearly all have it.

        ``n_top`` of ``n_values`` known cells have it.
        """
        self.top_share = n_top / n_values
        if n_top == n_values:
            where = " where known" if n_values < self.n_rows else ""
            self.add("constant", 1.0, f"always {top}{where}")
        elif self.is_nearly_constant and n_values >= MIN_ROWS:
            detail = f"{top} except in {share(n_values - n_top, n_values)}"
            self.add("near-constant", self.top_share, detail)


def sampled(array: NDArray[Any]) -> NDArray[Any]:
    """Return the elements of an array with one for each row in the sampled rows."""
    rows = sample_rows(len(array))
    return array if rows is None else array[rows]


def _in_words(sentinel: Any) -> str:
    if isinstance(sentinel, str):
        return quoted(sentinel)
    if isinstance(sentinel, pd.Timestamp):
        return f"{sentinel:%Y-%m-%d}"
    return number(sentinel)
