"""Validation of tables, names and ranges, with messages that name the place.

Each message says what was found, where (columns by name, rows by position counted from
0), and what to do.
"""

from __future__ import annotations

import difflib
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import pandas as pd
import torch

from sknan.exceptions import NonFiniteDataError

FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT64_MAX = float(np.finfo(np.float64).max)

_NUMPY_FLOATS = (torch.float64, torch.float32, torch.float16)
_FLOATS = (np.dtype(np.float64), np.dtype(np.float32))

# Number of values, such as those of a row, for which the calls take most of the time.
_FEW = 2**10

# A test of a parameter, and the same in words for the message.
Rule = tuple[Callable[[Any], bool], str]

# Largest number of columns or rows that a message lists.
_MAX_LISTED = 8


def drop_rows(name: str, use: str = "used for training") -> str:
    """Return the remedy for missing targets.

    Parameters
    ----------
    name : {"y", "y_val"}
        Name of the targets.
    use : str, default="used for training"
        What cannot be done with these rows.
    """
    return (
        f"A row without a finite target cannot be {use}: remove these rows "
        f"from {name.replace('y', 'X', 1)} and {name}."
    )


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a real number that a float can hold, and not a bool.

    Parameters
    ----------
    value : object
        Any value.

    Returns
    -------
    bool
    """
    if isinstance(value, numbers.Rational) and not isinstance(value, bool):
        return -FLOAT64_MAX <= value <= FLOAT64_MAX  # type: ignore[operator]
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of at most 64 bits, and not a bool.

    Parameters
    ----------
    value : object
        Any value.

    Returns
    -------
    bool
    """
    is_plain = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_plain and -(2**63) <= value < 2**64


def is_flag(value: Any) -> bool:
    """Whether a value is True or False, also those of NumPy."""
    return isinstance(value, (bool, np.bool_))


def is_one_of(value: Any, names: Iterable[str]) -> bool:
    """Whether a value is one of some strings.

    An array has no truth value to compare, and a list no hash.

    Parameters
    ----------
    value : object
        Any value.
    names : iterable of str
        Strings.

    Returns
    -------
    bool
    """
    return isinstance(value, str) and value in names


FLAG: Rule = is_flag, "True or False"
COUNT: Rule = lambda v: is_integer(v) and v >= 1, "an integer of at least 1"
VERBOSE: Rule = (
    lambda v: is_flag(v) or (is_integer(v) and v >= 0),
    "an integer of at least 0",
)
PATH: Rule = lambda v: isinstance(v, (str, os.PathLike)), "a path"


def check_parameter(owner: str, name: str, value: Any, rule: Rule) -> None:
    """Raise an error if a parameter breaks its rule.

    Parameters
    ----------
    owner : str
        Name of the class or function that has the parameter.
    name : str
        Name of the parameter.
    value : object
        Its value.
    rule : tuple of callable and str
        Test of the value, and the same in words.

    Raises
    ------
    ValueError
        If the test fails. The message contains owner, name, rule and value.
    """
    is_valid, words = rule
    if not is_valid(value):
        raise ValueError(
            f"The {name!r} parameter of {owner} must be {words}, got {value!r}."
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence that proposes the nearest known name, or an empty string.

    Parameters
    ----------
    name : str
        Unknown name.
    known : iterable of str
        Known names.

    Returns
    -------
    str
        ``" Did you mean 'x'?"`` with a leading space, or ``""``.
    """
    nearest = nearest_name(name, known)
    return f" Did you mean {nearest!r}?" if nearest else ""


def meant_by_word(name: str, words: Mapping[str, str]) -> str:
    """Return a sentence as `did_you_mean`, for the first word that the name contains.

    Parameters
    ----------
    name : str
        Unknown name, such as one that another library uses.
    words : mapping of str to str
        Known name for each word of lower-case letters and digits.

    Returns
    -------
    str
        ``" Did you mean 'x'?"`` with a leading space, or ``""``.
    """
    plain = re.sub("[^a-z0-9]", "", name.lower())
    known = next((words[word] for word in words if word in plain), None)
    return f" Did you mean {known!r}?" if known else ""


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the nearest known name, or None if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def column_name(index: int, names: Sequence[Any] | None) -> str:
    """Return the name of a column in messages: the quoted label, or the position."""
    return f"{index}" if names is None else f"{str(names[index])!r}"


def check_range(name: str, value: Any, high: float = math.inf) -> None:
    """Raise ``ValueError`` unless a value is a number with ``0 < value < high``."""
    if not (is_number(value) and 0.0 < value < high):
        rule = "above 0 and finite" if high == math.inf else f"between 0 and {high:g}"
        raise ValueError(f"{name} must be {rule}, got {value!r}.")


def check_bounds(low: Any, high: Any) -> None:
    """Raise ``ValueError`` unless two numbers are finite and the first one is less."""
    if not (is_number(low) and is_number(high) and -math.inf < low < high < math.inf):
        raise ValueError(
            f"low must be less than high and both finite, got {low!r} and {high!r}."
        )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _in_words(count: int, kind: str) -> str:
    """Return a phrase such as ``"2 NaN values"`` or ``"1 value beyond float32"``."""
    if kind.startswith("beyond"):
        return f"{_plural(count, 'value')} {kind}"
    return _plural(count, f"{kind} value")


def is_within(values: np.ndarray, limit: float = FLOAT32_MAX) -> bool:
    """Whether every value is finite and has a magnitude of at most ``limit``."""
    # A sum of squares below the square of the limit bounds each of a few values at
    # once. Minimum and maximum propagate NaN and cannot overflow, as a sum could.
    if values.size <= _FEW and float(np.vdot(values, values)) < limit * limit:
        return True
    low = float(np.minimum.reduce(values, axis=None, initial=0.0))
    high = float(np.maximum.reduce(values, axis=None, initial=0.0))
    return low >= -limit and high <= limit


def count_nonfinite(
    values: np.ndarray, limit: float = FLOAT32_MAX
) -> tuple[dict[str, int], np.ndarray]:
    """Count the values that are non-finite or too large, by kind.

    Parameters
    ----------
    values : ndarray of float
        Values of any shape.
    limit : float, default=FLOAT32_MAX
        Largest magnitude that counts as finite.

    Returns
    -------
    counts : dict of str to int
        Keys are ``"NaN"``, ``"inf"`` and ``"beyond float32"``. Kinds that do not occur
        are omitted.
    bad : ndarray of bool
        Mask of the counted values, with the shape of ``values``.
    """
    missing = np.isnan(values)
    infinite = np.isinf(values)
    # In float64, because the limit may not fit into a narrower dtype.
    beyond = ~missing & ~infinite & (np.abs(values, dtype=np.float64) > limit)
    kinds = {"NaN": missing, "inf": infinite, "beyond float32": beyond}
    counts = {kind: int(mask.sum()) for kind, mask in kinds.items() if mask.any()}
    return counts, missing | infinite | beyond


def listed_columns(columns: Sequence[int], names: Sequence[Any] | None = None) -> str:
    """Return the names of some columns for a message, up to a largest number."""
    listed = ", ".join(column_name(j, names) for j in columns[:_MAX_LISTED])
    return listed + (", ..." if len(columns) > _MAX_LISTED else "")


def places(bad: np.ndarray, names: Sequence[Any] | None) -> str:
    """Return the columns in which ``bad`` is true, with counts and first rows."""
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


def check_dense(tensor: torch.Tensor, name: str) -> None:
    """Raise ``TypeError`` for a nested or sparse tensor, and for one of float8."""
    is_float8 = tensor.is_floating_point() and tensor.dtype.itemsize == 1
    if is_float8 or tensor.is_nested or tensor.layout is not torch.strided:
        raise TypeError(
            f"{name} is a nested or sparse tensor, or of type float8. Pass "
            "to_padded_tensor(0.0), to_dense() or float() of it."
        )


def array_of(tensor: torch.Tensor, name: str) -> np.ndarray:
    """Return a tensor as an array, or raise an error that names it.

    Parameters
    ----------
    tensor : Tensor
        Tensor. A narrow type that NumPy lacks, such as bfloat16, becomes float32.
    name : str
        Name of the tensor in the message, such as ``"X"``.
    """
    check_dense(tensor, name)
    is_known = not tensor.is_floating_point() or tensor.dtype in _NUMPY_FLOATS
    array: np.ndarray = (tensor if is_known else tensor.float()).numpy(force=True)
    return array


def check_finite(
    values: Any,
    *,
    name: str,
    remedy: str,
    columns: Sequence[Any] | None = None,
    limit: float = FLOAT32_MAX,
) -> None:
    """Raise an error if a table contains NaN, infinities or values beyond float32.

    Parameters
    ----------
    values : ndarray or Tensor
        Values of any shape. Dtypes other than floating point are not checked.
    name : str
        Name of the table in the message, such as ``"X"``.
    remedy : str
        Last sentence of the message.
    columns : sequence of str or None, default=None
        Labels of the columns of a two-dimensional ``values``.
    limit : float, default=FLOAT32_MAX
        Largest magnitude that counts as finite.

    Raises
    ------
    NonFiniteDataError
        If a value is not finite. The message gives counts by kind, the columns, the
        first row of each, and the remedy.
    """
    if isinstance(values, torch.Tensor):
        check_dense(values, name)
        if not values.is_floating_point():
            return
        values = array_of(values, name)
    values = np.asarray(values)
    if values.dtype.kind != "f" or is_within(values, limit):
        return
    counts, bad = count_nonfinite(values, limit)
    found = " and ".join(_in_words(count, kind) for kind, count in counts.items())
    raise NonFiniteDataError(f"{name} contains {found}{places(bad, columns)}. {remedy}")


def already_valid_array(
    X: Any, estimator: Any, dtypes: Sequence[np.dtype[Any]] = _FLOATS
) -> np.ndarray | None:
    """Return ``X`` as an array if scikit-learn's ``validate_data`` would not change it.

    For one row, the checks of ``validate_data`` take longer than the forward pass of a
    small network, and for a row of a DataFrame ten times as long. They can be skipped
    for input that they would neither convert nor refuse nor warn about.

    Parameters
    ----------
    X : object
        Input of a method of a fitted estimator.
    estimator : estimator
        Fitted estimator with ``n_features_in_``, and with ``feature_names_in_`` if it
        was fitted on a DataFrame.
    dtypes : sequence of dtype, default=float64 and float32
        Dtypes that need no conversion.

    Returns
    -------
    ndarray of shape (n_samples, n_features) or None
        Array with at least one row, which may share memory with ``X``; None if
        ``validate_data`` must be called.
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
