"""What must hold before training: finite tables, known names. One message per fault.

Ground floor: imports nothing from sknan but the exceptions. Each message says what was
found, where (column by name, row by position counted from 0), and what to do.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from sknan.exceptions import NonFiniteDataError

__all__ = [
    "DROP_ROWS",
    "FLOAT32_MAX",
    "FLOAT64_MAX",
    "already_valid_array",
    "check_finite",
    "check_range",
    "column_name",
    "count_nonfinite",
    "did_you_mean",
    "first_text_cell",
]

FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT64_MAX = float(np.finfo(np.float64).max)

_FLOATS = (np.dtype(np.float64), np.dtype(np.float32))

# What to do about a target that is missing.
DROP_ROWS = (
    "A row without a finite target cannot be learnt from: "
    "leave those rows out of X and y."
)

# A message that lists more columns than this is a list nobody reads.
_MAX_LISTED = 8


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Sentence that proposes the nearest known name, or an empty string.

    Parameters
    ----------
    name : str
        What was given.
    known : iterable of str
        What would have been understood.

    Returns
    -------
    str
        ``" Did you mean 'x'?"`` with its leading blank, or ``""``.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def column_name(index: int, names: Sequence[Any] | None) -> str:
    """How a column is called in messages: its quoted label, or its position."""
    return f"{index}" if names is None else f"{str(names[index])!r}"


def check_range(name: str, value: float, high: float = math.inf) -> None:
    """Refuse a value that is not strictly between 0 and the bound."""
    if not 0.0 < value < high:
        rule = "above 0 and finite" if high == math.inf else f"between 0 and {high:g}"
        raise ValueError(f"{name} must be {rule}, got {value!r}.")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _in_words(count: int, kind: str) -> str:
    """Such as ``"2 NaN values"`` or ``"1 value beyond float32"``."""
    if kind.startswith("beyond"):
        return f"{_plural(count, 'value')} {kind}"
    return _plural(count, f"{kind} value")


def _is_within(values: np.ndarray, limit: float) -> bool:
    """Whether every value is finite and at most ``limit`` in size."""
    if values.size == 0:
        return True
    # Minimum and maximum pass a NaN on and cannot overflow, as a sum could.
    low, high = float(values.min()), float(values.max())
    return low >= -limit and high <= limit


def count_nonfinite(
    values: np.ndarray, limit: float = FLOAT32_MAX
) -> tuple[dict[str, int], np.ndarray]:
    """Count what is not finite, or too large, by kind.

    Parameters
    ----------
    values : ndarray of float
        Any shape.
    limit : float, default=FLOAT32_MAX
        Largest size that counts as finite.

    Returns
    -------
    counts : dict of str to int
        Keys ``"NaN"``, ``"inf"`` and ``"beyond float32"``; kinds that do not occur are
        left out.
    bad : ndarray of bool
        Mask of the shape of ``values``.
    """
    missing = np.isnan(values)
    infinite = np.isinf(values)
    # As float64, since the limit may not fit a narrower dtype.
    beyond = ~missing & ~infinite & (np.abs(values, dtype=np.float64) > limit)
    kinds = {"NaN": missing, "inf": infinite, "beyond float32": beyond}
    counts = {kind: int(mask.sum()) for kind, mask in kinds.items() if mask.any()}
    return counts, missing | infinite | beyond


def _places(bad: np.ndarray, names: Sequence[Any] | None) -> str:
    """The columns (with counts and first rows) in which ``bad`` holds."""
    if bad.ndim == 0:
        return ""
    if bad.ndim == 1:
        rows = np.flatnonzero(bad)
        listed = ", ".join(str(row) for row in rows[:_MAX_LISTED])
        more = ", ..." if len(rows) > _MAX_LISTED else ""
        return f" at row{'s' if len(rows) > 1 else ''} {listed}{more}"
    if bad.ndim > 2:
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        return f"; the first is at index {first}"
    per_column = bad.sum(axis=0)
    columns = np.flatnonzero(per_column)
    listed = ", ".join(
        f"{column_name(j, names)} ({per_column[j]}, first at row {bad[:, j].argmax()})"
        for j in columns[:_MAX_LISTED]
    )
    n_unlisted = len(columns) - _MAX_LISTED
    tail = f" and {n_unlisted} more" if n_unlisted > 0 else ""
    return f" in {len(columns)} of {_plural(bad.shape[1], 'column')}: {listed}{tail}"


def check_finite(
    values: Any,
    *,
    name: str,
    remedy: str,
    columns: Sequence[Any] | None = None,
    limit: float = FLOAT32_MAX,
) -> None:
    """Refuse a table that holds NaN, infinities or values that overflow float32.

    Parameters
    ----------
    values : ndarray or Tensor
        Any shape; anything but floating-point numbers passes.
    name : str
        ``"X"`` or ``"y"``, for the message.
    remedy : str
        Last sentence of the message: what to do.
    columns : sequence of str or None, default=None
        Labels of the columns of a two-dimensional ``values``.
    limit : float, default=FLOAT32_MAX
        Largest size that counts as finite.

    Raises
    ------
    NonFiniteDataError
        Naming counts by kind, the columns, the first row of each, and the remedy.
    """
    if isinstance(values, torch.Tensor):
        if not values.is_floating_point():
            return
        values = values.detach().cpu()
        if values.dtype is torch.bfloat16:  # unknown to NumPy
            values = values.float()
        values = values.numpy()
    values = np.asarray(values)
    if values.dtype.kind != "f" or _is_within(values, limit):
        return
    counts, bad = count_nonfinite(values, limit)
    found = " and ".join(_in_words(count, kind) for kind, count in counts.items())
    raise NonFiniteDataError(
        f"{name} contains {found}{_places(bad, columns)}. {remedy}"
    )


def first_text_cell(X: Any, columns: Sequence[Any] | None) -> str | None:
    """Where the first cell stands that no number can be made of, or None.

    Parameters
    ----------
    X : array-like or DataFrame of shape (n_samples, n_features) or (n_samples,)
        What could not be converted.
    columns : sequence of str or None
        Labels of the columns.

    Returns
    -------
    str or None
        As in ``"'red' at row 3, column 'colour'"``.
    """
    table = np.asarray(X, dtype=object)
    if table.ndim not in (1, 2):
        return None
    for j in range(1 if table.ndim == 1 else table.shape[1]):
        for i, cell in enumerate(table if table.ndim == 1 else table[:, j]):
            if isinstance(cell, (str, bytes)):
                try:
                    float(cell)
                except ValueError:
                    place = "" if table.ndim == 1 else column_name(j, columns)
                    return f"{cell!r} at row {i}{place and f', column {place}'}"
    return None


def already_valid_array(
    X: Any, estimator: Any, dtypes: Sequence[np.dtype[Any]] = _FLOATS
) -> np.ndarray | None:
    """The array that ``validate_data`` of scikit-learn would give, if it is no work.

    One row takes longer through all of its checks than through a small network, and a
    row of a DataFrame ten times as long. What it would neither change nor refuse nor
    warn of needs none of them; all else is left to it, messages included.

    Parameters
    ----------
    X : object
        What was given to a fitted estimator.
    estimator : estimator
        With ``n_features_in_``, and ``feature_names_in_`` where it has seen names.
    dtypes : sequence of dtype, default=float64 and float32
        Those that need no conversion.

    Returns
    -------
    ndarray of shape (n_samples, n_features) or None
        At least one row; maybe ``X`` itself or its memory. None where validation has
        something to do.
    """
    names = getattr(estimator, "feature_names_in_", None)
    table = X
    if type(X) is pd.DataFrame:
        columns = X.columns.tolist()
        if (
            names is None
            or columns != names.tolist()
            or {*map(type, columns)} != {str}
            or not {*X.dtypes} <= {*dtypes}
        ):
            return None
        table = X.to_numpy()
    elif type(X) is not np.ndarray or names is not None:
        return None
    is_plain = (
        table.dtype in dtypes
        and table.ndim == 2
        and len(table) > 0
        and table.shape[1] == estimator.n_features_in_
    )
    return table if is_plain else None
