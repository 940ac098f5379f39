"""A column in figures, with what is found in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sknan.inspection._audit._finding import Trait, number, quoted, share
from sknan.preprocessing._tables.numeric_sentinels import Sentinel

__all__ = ["FEW_ROWS", "ColumnFacts"]

# A column is near-constant if one value has this share of what is known.
_NEARLY_ALL = 0.99

# Rows of an identifier, or of a column that is nearly constant, at least.
FEW_ROWS = 50

# So many sentinels of a column are told.
_MAX_SHOWN = 3


@dataclass
class ColumnFacts:
    """A column in figures, and what is found in it.

    Attributes
    ----------
    position, label, name, dtype, holds
        As in :class:`~sknan.preprocessing._tables.typed_column.TypedColumn`.
    n_rows, n_missing, n_infinite, n_beyond : int
        Cells; the last are finite and beyond float32.
    n_levels : int
        Distinct known values in the sample.
    top_share : float
        Share of the most frequent one among the known values.
    low, q1, median, q3, high : float
        Of the finite numbers without sentinels; quartiles of the sample.
    extent : float
        How many interquartile ranges the farthest lies beyond the quartiles.
    sentinels : list of Sentinel
        The suspected ones.
    traits : list of Trait
        What is found.
    missing_rows : ndarray of bool or None
        Which rows of the sample are missing; None where none is, or in a sparse table.
    key : bytes
        Equal for columns whose key rows are equal up to names; empty in a sparse table.
    levels : tuple
        The names.
    """

    position: int
    label: Any
    name: str
    dtype: str
    holds: str
    n_rows: int
    n_missing: int = 0
    n_infinite: int = 0
    n_beyond: int = 0
    n_levels: int = 0
    top_share: float = math.nan
    low: float = math.nan
    q1: float = math.nan
    median: float = math.nan
    q3: float = math.nan
    high: float = math.nan
    extent: float = math.nan
    sentinels: list[Sentinel] = field(default_factory=list)
    traits: list[Trait] = field(default_factory=list)
    missing_rows: NDArray[np.bool_] | None = None
    key: bytes = b""
    levels: tuple[Any, ...] = ()

    @property
    def n_known(self) -> int:
        """Cells that are not missing."""
        return self.n_rows - self.n_missing

    @property
    def is_constant(self) -> bool:
        """Whether one value is all there is, or nearly."""
        return self.top_share >= _NEARLY_ALL

    def note(self, kind: str, value: float, detail: str) -> None:
        """Remember what is found."""
        where = (self.label, self.position)
        self.traits.append(Trait(kind, self.name, value, detail, *where))

    def has(self, *kinds: str) -> bool:
        """Whether one of these has been found."""
        return any(trait.kind in kinds for trait in self.traits)

    def note_sentinels(self, found: Sequence[Sentinel], kind: str = "sentinel") -> None:
        """Remember what seems to stand for missing."""
        self.sentinels = [*self.sentinels, *found]
        n_cells = sum(sentinel.n_cells for sentinel in found)
        shown = [
            f"{_in_words(s.value)} in {share(s.n_cells, self.n_rows)}" for s in found
        ]
        self.note(kind, n_cells / self.n_rows, ", ".join(shown[:_MAX_SHOWN]))

    def note_top(self, top: str, n_top: int, n_values: int) -> None:
        """Remember how often the most frequent value is, which may be all there is."""
        self.top_share = n_top / n_values
        if n_top == n_values:
            where = " where known" if n_values < self.n_rows else ""
            self.note("constant", 1.0, f"always {top}{where}")
        elif self.is_constant and n_values >= FEW_ROWS:
            detail = f"{top} but for {share(n_values - n_top, n_values)}"
            self.note("near-constant", self.top_share, detail)


def _in_words(sentinel: Any) -> str:
    if isinstance(sentinel, str):
        return quoted(sentinel)
    if isinstance(sentinel, pd.Timestamp):
        return f"{sentinel:%Y-%m-%d}"
    return number(sentinel)
