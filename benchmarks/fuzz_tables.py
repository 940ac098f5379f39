"""Random tables and targets for `benchmarks.fuzz`, clean or dirty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from scipy import sparse

LABELS: list[list[Any]] = [[0, 1, 2], ["a", "b", "c"], [-1.0, 2.0, 7.0]]
UNUSUAL_LABELS: list[list[Any]] = [
    [0, "b", "c"],
    [1, 1, 1],
    [0, 1, None],
    [0.0, np.nan, 1.0],
    [b"a", b"b", b"c"],
    [True, "x", 2.5],
]
CELLS: list[list[Any]] = [
    ["red", "blue", None],
    ["1.5", "2", "?"],
    ["2020-01-05", "2021-03-01", None],
    list(pd.date_range("2020", periods=5)),
    [pd.Timestamp("2020").date(), pd.Timestamp("2021").date()],
    [True, False],
    [pd.Timedelta(1, "h"), pd.NaT],
    [1.5, "word", None, pd.NA],
]
EMPTY: list[list[Any]] = [[None], [np.nan], [pd.NaT], [""]]


class RandomTable:
    """Table of numbers, its damage and its container.

    Parameters
    ----------
    rng : Generator
        Source of all choices.
    is_dirty : bool
        Whether cells are missing, infinite, huge, tiny, constant or duplicated.
    """

    def __init__(self, rng: np.random.Generator, is_dirty: bool) -> None:
        self.rng = rng
        few = rng.random() < 0.1
        n_rows = int(rng.integers(1, 8) if few else rng.integers(8, 60))
        X = rng.normal(size=(n_rows, int(rng.integers(1, 7))))
        self.values = X.sum(1) + 0.1 * rng.normal(size=n_rows)
        self.X = X
        for _ in range(int(rng.integers(1, 4)) if is_dirty else 0):
            with np.errstate(over="ignore"):
                place, value = self._damage()
            X[place] = value

    def one_of(self, things: Any) -> Any:
        """Return one of some things."""
        return things[int(self.rng.integers(len(things)))]

    def _damage(self) -> tuple[Any, Any]:
        X, n_rows, n_columns = self.X, *self.X.shape
        row, column = int(self.rng.integers(n_rows)), int(self.rng.integers(n_columns))
        huge = [1e20, 1e30, -3.4e38, 1e39, 1e300, -1.7e308]
        return self.one_of(
            [
                (self.rng.random(X.shape) < 0.2, np.nan),
                ((row, column), self.one_of([np.inf, -np.inf])),
                ((row, column), self.one_of(huge)),
                ((slice(None), column), self.one_of([0.0, 1.0, 1e6, 1e-40, np.nan])),
                ((row, slice(None)), self.one_of([0.0, 1e25, np.nan])),
                ((slice(None), column), X[:, 0]),
                ((...,), X * self.one_of([1e-40, 1e3, 1e12, 1e30]) + 2000),
            ]
        )

    def contained(self, has_text: bool, is_sparse: bool) -> Any:
        """Return the table in a random container, with other columns in a frame."""
        kinds = ["f8", "f8", "f4", "f2", "i8", "list", "pandas", "polars"]
        kind = self.one_of([*kinds, "csr"] if is_sparse else kinds)
        if has_text:
            kind = self.one_of(["pandas", "polars"])
        if kind == "list":
            return self.X.tolist()
        if kind == "csr":
            return sparse.csr_array(
                np.where(self.rng.random(self.X.shape) < 0.5, self.X, 0)
            )
        if kind not in ("pandas", "polars"):
            with np.errstate(all="ignore"):
                return self.X.astype(kind)
        frame = pd.DataFrame(self.X, columns=list("abcdef")[: self.X.shape[1]])
        for name in frame.columns[: self.rng.integers(1, 4)] if has_text else ():
            several = self.one_of(CELLS * 4 + EMPTY)
            cells = [
                several[i] for i in self.rng.integers(len(several), size=len(frame))
            ]
            dtype = self.one_of([None, None, object, "category"])
            frame[name] = pd.Series(cells, dtype=dtype)
        if kind == "polars":
            try:
                return pl.from_pandas(frame)
            except Exception:  # polars has no columns of several types
                return frame
        return frame

    def labels(self, is_unusual: bool) -> np.ndarray:
        """Return labels, which may be unusable."""
        codes = np.digitize(self.values, self.one_of([[0.0], [-0.5, 0.5]]))
        if self.rng.random() < 0.05:
            return np.column_stack([codes > 0, self.values > 1]).astype(int)
        labels = self.one_of(UNUSUAL_LABELS if is_unusual else LABELS)
        dtype = object if len({*map(type, labels)}) > 1 else None
        return np.array([labels[code] for code in codes], dtype=dtype)

    def numbers(self, is_unusual: bool) -> np.ndarray:
        """Return numeric targets, which may be huge, constant or missing."""
        y = self.values * self.one_of([1.0, 1.0, 1e3])
        if is_unusual:
            y = self.values * self.one_of([0.0, 1e-30, 1e12, 1e30, 1e300])
            y = y + self.one_of([0.0, 1.0, -1e12])
            if self.rng.random() < 0.5:
                y[0] = self.one_of([np.nan, np.inf, 1e30, 1.7e308])
        return np.column_stack([y, -y]) if self.rng.random() < 0.1 else y
