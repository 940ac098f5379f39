"""Healthy tables, and the same tables with one fault in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_regressor
from sklearn.utils import get_tags

__all__ = [
    "Case",
    "Table",
    "healthy_table",
    "nearest_to_zero",
    "with_cells",
]

_N_TRAINING, _N_NEW = 96, 48

# Few, in two columns, and two of them in one, so that they can cancel or overflow.
_CELLS = ((5, 1), (17, 1), (40, 3))


@dataclass(frozen=True)
class Table:
    """Rows to train on, and healthy rows to be judged by.

    Parameters
    ----------
    X, X_new : ndarray or DataFrame of shape (n_samples, n_features)
        Training rows and new ones.
    y, y_new : ndarray of shape (n_samples,)
        Their targets: class codes 0 and 1, or numbers.
    """

    X: Any
    y: NDArray[Any]
    X_new: Any
    y_new: NDArray[Any]

    def map(self, change: Callable[[Any], Any]) -> Table:
        """The same change to the training rows and to the new ones."""
        return replace(self, X=change(self.X), X_new=change(self.X_new))


@dataclass(frozen=True)
class Case:
    """One fault, and what is expected of an estimator that meets it.

    Parameters
    ----------
    what : str
        The fault in words, to stand after "fitted on" and "given".
    words : tuple of str
        Of which a refusal must hold one; none if such input must be accepted.
    table : Table
        With the fault, if it is one of ``fit``.
    X_faulty : ndarray or None, default=None
        New rows with a fault that is one of ``predict``.
    params : mapping, default={}
        Parameters of the estimator to set.
    sample_weight : ndarray of shape (n_samples,) or None, default=None
        Passed to ``fit``.
    keeps_score : bool, default=False
        Whether the fault is confined to so little that what can be learnt remains.
    has_empty_column : bool, default=False
        Whether a column has no value at all, so that none can be learnt for it.
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
    """A task that any estimator can learn: four columns that all matter.

    The numbers are those of float32, held as float64: a table cast to float32 is equal.
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
    """The three cells of column 1 in which a tiny number changes least."""
    return [(int(row), 1) for row in np.sort(np.abs(X[:, 1]).argsort()[:3])]


def with_cells(
    X: NDArray[Any],
    values: Sequence[float],
    cells: Sequence[tuple[int, int]] = _CELLS,
) -> tuple[NDArray[Any], str]:
    """A copy with the values in some cells, in turn, and where the first one is."""
    damaged = X.copy()
    for i, (row, column) in enumerate(cells):
        damaged[row, column] = values[i % len(values)]
    row, column = cells[0]
    return damaged, f"in {len(cells)} cells, first at row {row}, column {column}"
