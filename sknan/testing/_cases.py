"""Healthy tables, and cases with one fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_regressor
from sklearn.utils import get_tags

_N_TRAINING, _N_NEW = 96, 48

# Cells with a fault. Two of them are in one column, where they can cancel or overflow.
_CELLS = ((5, 1), (17, 1), (40, 3))


@dataclass(frozen=True)
class Table:
    """Training rows, and healthy rows for the evaluation.

    Parameters
    ----------
    X, X_new : ndarray or DataFrame of shape (n_samples, n_features)
        Training rows and new rows.
    y, y_new : ndarray of shape (n_samples,)
        Targets: class codes 0 and 1, or numbers.
    """

    X: Any
    y: NDArray[Any]
    X_new: Any
    y_new: NDArray[Any]

    def map(self, change: Callable[[Any], Any]) -> Table:
        """Apply a function to the training rows and to the new rows."""
        return replace(self, X=change(self.X), X_new=change(self.X_new))


@dataclass(frozen=True)
class Case:
    """One fault, and the expected reaction of an estimator.

    Parameters
    ----------
    what : str
        Description of the data, to follow "fitted on" and "given" in messages.
    words : tuple of str
        Words of which a refusal must contain one. If empty, the input must be accepted.
    table : Table
        Training data, with the fault if ``fit`` meets it.
    X_faulty : ndarray or None, default=None
        New rows with the fault, if predict methods meet it.
    params : mapping, default={}
        Parameters to set on the estimator.
    sample_weight : ndarray of shape (n_samples,) or None, default=None
        Sample weights for ``fit``.
    keeps_score : bool, default=False
        Whether the fault affects so little data that the score must be kept.
    has_empty_column : bool, default=False
        Whether a column has no value, so that no statistic exists for it.
    """

    what: str
    words: tuple[str, ...]
    table: Table
    X_faulty: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    sample_weight: NDArray[np.float64] | None = None
    keeps_score: bool = False
    has_empty_column: bool = False


def healthy_table(estimator: Any) -> Table:
    """Return data that any estimator can learn, with four informative columns.

    The values are float64 but exactly representable in float32, so that casting the
    table does not change it.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(_N_TRAINING + _N_NEW, 4))
    if is_regressor(estimator):
        noise = rng.normal(size=len(X))
        y = 3.0 + X @ np.array([1.5, -1.0, 1.0, -1.5]) + 0.1 * noise
    else:
        y = np.arange(len(X)) % 2
        X += np.outer(2 * y - 1, [1.0, -1.0, 1.0, -1.0])
    tags = get_tags(estimator)
    if tags.input_tags.positive_only:
        X -= X.min()
    if tags.target_tags.positive_only:
        y = y - y.min() + 1
    X = X.astype(np.float32).astype(np.float64)
    if not tags.target_tags.single_output:
        y = y[:, None]
    n = _N_TRAINING
    return Table(X[:n], y[:n], X[n:], y[n:])


def nearest_to_zero(X: NDArray[Any]) -> list[tuple[int, int]]:
    """Return the three cells of column 1 that are nearest to zero."""
    return [(int(row), 1) for row in np.sort(np.abs(X[:, 1]).argsort()[:3])]


def with_cells(
    X: NDArray[Any],
    values: Sequence[float],
    cells: Sequence[tuple[int, int]] = _CELLS,
) -> tuple[NDArray[Any], str]:
    """Return a copy with the values in some cells in turn, and their description."""
    damaged = X.copy()
    for i, (row, column) in enumerate(cells):
        damaged[row, column] = values[i % len(values)]
    row, column = cells[0]
    return damaged, f"in {len(cells)} cells, first at row {row}, column {column}"
