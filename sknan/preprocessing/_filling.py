"""Replacement of missing cells by the statistics of their columns."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from sknan._utils.validation import FLOAT64_MAX
from sknan.preprocessing._kernels.blocks import KnownMask, fill

__all__ = ["fill_floats", "fill_in_place", "is_float_array", "unfit_cells"]


def is_float_array(X: Any) -> bool:
    """Return whether ``X`` is a dense array of floats."""
    return isinstance(X, np.ndarray) and X.dtype.kind == "f"


def fill_floats(
    X: NDArray[Any],
    values: NDArray[Any],
    known: KnownMask,
    dtype: np.dtype[Any],
    *,
    in_place: bool,
) -> NDArray[Any]:
    """Return a dense table of floats, filled in place or in a copy.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_columns), float
        Table with missing values.
    values : ndarray of shape (n_columns,)
        Fill value of each column.
    known : KnownMask
        Mask of the cells that are kept.
    dtype : dtype
        Dtype of the result.
    in_place : bool
        Whether ``X`` may be overwritten.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
    """
    values = _rounded(values, X.dtype).astype(dtype, copy=False)
    if X.dtype == dtype:
        out = X if in_place and X.flags.writeable else np.array(X, order="K")
    else:
        with np.errstate(over="ignore"):  # numbers that overflow are replaced below
            out = X.astype(dtype, order="K", subok=False)
    # The copy was just written, so reading it is faster than reading the original.
    fill(out if X.dtype == dtype else X, values, known, out)
    return out


def fill_in_place(X: Any, values: NDArray[Any], missing: NDArray[np.bool_]) -> None:
    """Fill a sparse matrix, or a dense table of objects or integers, in place.

    Parameters
    ----------
    X : ndarray or CSC matrix of shape (n_rows, n_columns)
        Table with missing values.
    values : ndarray of shape (n_columns,)
        Fill value of each column.
    missing : ndarray of bool
        Mask of the missing cells, or of the missing entries of the sparse matrix.
    """
    values = _rounded(values, X.dtype)
    if sparse.issparse(X):
        columns = np.repeat(np.arange(X.shape[1]), np.diff(X.indptr))
        X.data[missing] = values[columns[missing]]
    else:
        np.copyto(X, values, where=missing)


def unfit_cells(
    cells: NDArray[Any], dtype: np.dtype[Any] | None, *, everything: bool
) -> NDArray[np.bool_]:
    """Return the mask of the numbers that are too large for a dtype.

    Parameters
    ----------
    cells : ndarray
        Cells of any dtype.
    dtype : dtype or None
        Float dtype of the output; None for the dtype of the cells.
    everything : bool
        Whether all markers of missing values in a table of objects count as unfit, too:
        None, NaN, ``pandas.NA`` and NaT.

    Returns
    -------
    ndarray of bool
    """
    if cells.dtype.kind == "O":
        largest = FLOAT64_MAX if dtype is None else float(np.finfo(dtype).max)
        exceeds = np.frompyfunc(_exceeds, 2, 1)
        with np.errstate(invalid="ignore"):  # a comparison with NaN is false
            unfit = np.asarray(exceeds(cells, largest), dtype=bool)
        return unfit | np.asarray(pd.isna(cells)) if everything else unfit
    if cells.dtype.kind != "f":
        return np.zeros(1, dtype=bool)
    # Compared in the dtype of the cells. A larger limit would become infinite in that
    # dtype, and no number exceeds infinity.
    largest = float(np.finfo(cells.dtype).max)
    if dtype is not None:
        largest = min(largest, float(np.finfo(dtype).max))
    return np.asarray(np.abs(cells) > cells.dtype.type(largest))


def _exceeds(cell: Any, largest: float) -> bool:
    return isinstance(cell, numbers.Real) and abs(float(cell)) > largest


def _rounded(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert fill values to the dtype of a table, without an overflow."""
    if dtype.kind == "f" and values.dtype.kind == "f" and dtype != values.dtype:
        largest = float(np.finfo(dtype).max)
        values = np.minimum(np.maximum(values, -largest), largest)
    return values.astype(dtype, copy=False)
