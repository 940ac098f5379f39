"""Frequent values of numbers at which the target differs from that of close values.

A network is smooth in its inputs. It hardly learns that those who declare a capital
gain of 7 688 differ from those who declare 7 300, or that a school differs from the one
with the next number. Such a value needs an input of its own.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, norm, rankdata
from sklearn.linear_model import Ridge
from torch import Tensor

from sknan.preprocessing._scaler import SafeScaler
from sknan.preprocessing._tables.numeric_sentinels import SAMPLE_SIZE, sample_rows
from sknan.preprocessing._tables.plain_cells import plain_cells

# Distance of close values, in units of `SafeScaler`. The network has up to some three
# waves in such a unit. With 0.17, fewer values of `adult` and `project_star` are found.
_DISTANCE = 0.1

# Least number of rows with a value, and of rows with values close to it.
_MIN_ROWS = 10

# Least number of rows times the variance of a class, for which the test is exact
# enough: with shuffled targets, a value was found in 0 % (`adult`), 3 % (`sick`) and
# 7 % (`birds_phase`) of 40 tests.
_MIN_VARIANCE = 2.0

# Expected share of values without an effect among those that are found, and the
# probability to find any if there are none (Benjamini and Hochberg 1995).
_FALSE_SHARE = 0.01

# Where several values of a column matter, each of its most frequent values becomes a
# column that occurs in this number of rows: on `adult`, ten rows are worse than four.
_MIN_ROWS_OF_OTHERS, _MOST_OTHERS = 4, 254

# Targets with more distinct numbers are ranked, others are classes.
_MOST_CLASSES = 20

# Numbers of cells that are read of a large table, so that it takes a second at most.
_MOST_CELLS, _MIN_SAMPLE = 1 << 22, 1 << 12


def single_values(
    encoded: NDArray[Any], n_numbers: int, y: Any
) -> list[tuple[int, float]]:
    """Find values of columns whose rows have another target than rows close to them.

    What a linear model with squares explains is subtracted from the target. At each
    value, the mean of the rest is compared with a line through that of the other values
    at a distance of up to 0.1 interquartile ranges. If several values of a column
    differ, all its frequent values are returned.

    Parameters
    ----------
    encoded : ndarray of shape (n_samples, n_columns)
        Columns of numbers, followed by encoded categories. Of many rows, a sample is
        read.
    n_numbers : int
        Number of columns of numbers.
    y : array-like of shape (n_samples,) or (n_samples, n_targets)
        Classes or numbers.

    Returns
    -------
    list of (int, float)
        Number of the column, and value, which is compared in float32. The list is empty
        if ``y`` has another number of rows.
    """
    y = np.asarray(plain_cells(y) if isinstance(y, Tensor) else y)
    if y.ndim not in (1, 2) or len(y) != len(encoded):
        return []  # the estimator refuses it
    most = min(SAMPLE_SIZE, max(_MIN_SAMPLE, _MOST_CELLS // encoded.shape[1]))
    rows = sample_rows(len(y), most)
    cells, y = (encoded, y) if rows is None else (encoded[rows], y[rows])
    columns = y.reshape(len(y), -1).T[:_MOST_CLASSES]
    T = np.concatenate([_target_columns(column) for column in columns], axis=1)
    if not T.shape[1]:
        return []
    scaled = SafeScaler().fit_transform(cells)
    numbers = scaled[:, :n_numbers]
    filled = np.nan_to_num(np.concatenate([scaled, numbers**2], axis=1))
    T = T - Ridge().fit(filled, T).predict(filled).reshape(T.shape)
    found: list[tuple[int, float]] = []
    p_values = [np.zeros(0)]
    for j in range(n_numbers):
        known = np.abs(cells[:, j]) <= np.finfo(np.float32).max
        values, p = _tests(cells[known, j], numbers[known, j], T[known])
        found += [(j, value) for value in values]
        p_values.append(p)
    adjusted = false_discovery_control(np.concatenate(p_values)) if found else []
    found = [pair for pair, p in zip(found, adjusted, strict=True) if p < _FALSE_SHARE]
    n_found = Counter(j for j, _ in found)
    chosen = [(j, value) for j, value in found if n_found[j] == 1]
    for j in (j for j, n in n_found.items() if n > 1):
        chosen += [(j, value) for value in _frequent(cells[:, j])]
    return chosen


def _frequent(cells: NDArray[Any]) -> list[float]:
    """Return the most frequent finite values of a column."""
    cells = cells[np.abs(cells) <= np.finfo(np.float32).max]
    _, first, counts = np.unique(
        cells.astype(np.float32), return_index=True, return_counts=True
    )
    most = np.argsort(-counts, kind="stable")[:_MOST_OTHERS]
    most = np.sort(most[counts[most] >= _MIN_ROWS_OF_OTHERS])
    values: list[float] = cells[first[most]].tolist()
    return values


def _target_columns(y: NDArray[Any]) -> NDArray[np.float64]:
    """Return an indicator of each class, or the standardized ranks of numbers."""
    is_number = y.dtype.kind in "fiub"
    classes, codes, counts = np.unique(
        y if is_number else y.astype(str), return_inverse=True, return_counts=True
    )
    if is_number and len(classes) > _MOST_CLASSES:
        ranks = rankdata(codes)
        found: NDArray[np.float64] = ((ranks - ranks.mean()) / ranks.std())[:, None]
        return found
    # For two classes, a second indicator would be redundant.
    most = _MOST_CLASSES if len(classes) > 2 else len(classes) - 1
    frequent = np.argsort(-counts, kind="stable")[:most]
    indicators: NDArray[np.float64] = (codes[:, None] == frequent).astype(np.float64)
    return indicators


def _tests(
    cells: NDArray[Any], scaled: NDArray[Any], T: NDArray[Any]
) -> tuple[list[float], NDArray[np.float64]]:
    """Return the frequent values of a column that have close ones, and p-values."""
    values, first, codes, counts = np.unique(
        cells.astype(np.float32),
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    tested = np.flatnonzero(counts >= _MIN_ROWS)
    if not len(tested):
        return [], np.zeros(0)
    n_targets, z = T.shape[1], scaled[first, None]
    of_value = [np.bincount(codes, t, len(values)) for t in (*T.T, *(T * T).T)]
    n, sums = counts[:, None], np.stack(of_value, axis=1)
    by_value = np.hstack([n, n * z, n * z * z, sums, z * sums[:, :n_targets]])
    until = np.zeros((len(values) + 1, by_value.shape[1]))
    np.cumsum(by_value, axis=0, out=until[1:])
    start = np.searchsorted(z[:, 0], z[tested, 0] - _DISTANCE, "left")
    stop = np.searchsorted(z[:, 0], z[tested, 0] + _DISTANCE, "right")
    close = until[stop] - until[start]
    others = close - by_value[tested]
    at = z[tested]
    k = 3 + n_targets
    # Least squares of a line through the other values, at the tested one.
    n0, s1, s2 = others[:, :1], others[:, 1:2], others[:, 2:3]
    n1, n2 = s1 - at * n0, s2 - 2 * at * s1 + at * at * n0
    t0 = others[:, 3:k]
    t1 = others[:, k + n_targets :] - at * t0
    determinant = n0 * n2 - n1 * n1
    usable = ((n0 >= _MIN_ROWS) & (determinant > 1e-9 * n0 * n2))[:, 0]
    determinant = np.where(usable[:, None], determinant, 1.0)
    line = (n2 * t0 - n1 * t1) / determinant
    mean, square = close[:, 3:k] / close[:, :1], close[:, k:-n_targets] / close[:, :1]
    variance = square - mean * mean
    n_rows = n[tested]
    is_exact = n_rows * variance >= _MIN_VARIANCE
    error = np.sqrt(np.where(is_exact, variance, 1.0) * (1 / n_rows + n2 / determinant))
    deviation = np.abs(sums[tested, :n_targets] / n_rows - line) / error
    largest = np.where(is_exact, deviation, 0.0)[usable].max(axis=1)
    found = cells[first[tested[usable]]].tolist()
    return found, np.minimum(1.0, 2 * n_targets * norm.sf(largest))
