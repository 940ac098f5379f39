"""Columns whose numbers float32 cannot separate, such as hours on a large offset."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sknan.preprocessing._tables.numeric_sentinels import sample_rows

# Steps of float32 that the interquartile range needs for sufficient precision.
_MIN_STEPS = 100


def float32_step(low: float, high: float) -> float | None:
    """Return the spacing of float32 if it is too coarse for a spread, else None.

    Parameters
    ----------
    low, high : float
        Quartiles of a column.
    """
    step = float(np.spacing(np.float32(max(abs(low), abs(high)))))
    return step if 0 < high - low < _MIN_STEPS * step else None


def offset_of(cells: NDArray[Any]) -> float:
    """Return the median of a column that is too fine for float32, else 0.

    Parameters
    ----------
    cells : ndarray of shape (n_samples,)
        Floats, NaN included. Of many, a sample is read.
    """
    rows = sample_rows(len(cells))
    cells = cells if rows is None else cells[rows]
    known = np.abs(cells) <= np.finfo(np.float32).max
    if cells.dtype.itemsize <= 4 or not known.any():
        return 0.0
    cells = cells[known]
    low, middle, high = np.quantile(cells, [0.25, 0.5, 0.75], method="lower")
    if low == high:  # as in SafeScaler
        low, high = cells.min(), cells.max()
    return 0.0 if float32_step(low, high) is None else float(middle)
