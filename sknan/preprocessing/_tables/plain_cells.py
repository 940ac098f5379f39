"""Preparation of tables and targets for a cast to numbers.

A cast of NumPy turns a missing date into a huge number, reads the values that a mask
hides, and fails at ``pandas.NA``. Here every missing cell becomes NaN and every date
becomes an object. The cast then gives the right number, or it fails at a cell that a
message can name.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from sknan._utils.validation import FLOAT64_MAX, array_of, column_name
from sknan.preprocessing._tables.typed_column import (
    frame_from_arrow,
    frame_from_polars,
    holds_large_integers,
    is_polars,
    series_from_polars,
)

# Remedy for a table with other cells than numbers, without its period.
ENCODE = "Encode the table first, for example with skrub.TableVectorizer()"

_MISSING = (type(None), type(pd.NA), type(pd.NaT), type(np.ma.masked))

# Types of cells that a cast reads as they are.
_CASTABLE = {float, bool, str, np.float64, np.float32, np.bool_}

# Parts of the messages of casts that fail.
_CAST_FAILED = ("could not convert", "real number, not", "setting an array element")


def plain_cells(values: Any) -> Any:
    """Return a table or target with NaN for missing cells and objects for dates.

    Parameters
    ----------
    values : array-like, DataFrame or sparse matrix
        Table or target of any library.

    Returns
    -------
    array-like, DataFrame or sparse matrix
        ``values`` itself if it has only numbers of NumPy's dtypes or is sparse. A
        structured array becomes a DataFrame.
    """
    if isinstance(values, Tensor):
        return array_of(values, "The table or target")
    if isinstance(values, np.ndarray):
        return _plain_array(values)
    if isinstance(values, pd.DataFrame):
        return _plain_frame(values)
    if is_polars(values) and hasattr(values, "get_columns"):
        return _plain_frame(frame_from_polars(values))
    if is_polars(values) and hasattr(values, "to_numpy"):
        values = series_from_polars(values)
    if isinstance(values, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        return _plain_array(np.asarray(values))
    if isinstance(values, (list, tuple)):
        try:
            cells = np.asarray(values)
        except (ValueError, TypeError):  # rows of different lengths
            return values
        if cells.dtype.kind in "US":  # NumPy makes text of the numbers among text
            cells = np.array(values, dtype=object)
        return _plain_array(cells)
    if hasattr(values, "to_pandas") and not is_polars(values):
        return plain_cells(frame_from_arrow(values))
    return values


@contextlib.contextmanager
def name_unfit_cell(
    name: str, values: Any, owner: str, remedy: str, for_dates: str = ""
) -> Iterator[None]:
    """Replace an error of a cast inside the block by one that names the first cell.

    Parameters
    ----------
    name : str
        Name of the input for the message, ``"X"`` or ``"y"``.
    values : array-like or DataFrame
        Input that the block converts to numbers.
    owner : str
        What needs numbers, such as the class name of an estimator.
    remedy : str
        Last sentence of the message.
    for_dates : str, default=""
        Last sentence if the cell is a date or a duration; ``remedy`` if empty.

    Raises
    ------
    ValueError
        If the block fails because a cell is text, a date or a duration.
    TypeError
        If the block fails because a cell is another object.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        is_cast = any(part in str(error) for part in _CAST_FAILED)
        found = _first_unfit_cell(values) if is_cast else None
        if found is None:
            raise
        cell, place = found
        kind = kind_of(cell)
        if kind is None:
            raise TypeError(
                f"{name} contains an object of type {type(cell).__name__}{place}, but "
                f"{owner} needs numbers: {str(error).rstrip('.')}. Convert it to a "
                "number, or leave the column out."
            ) from None
        is_text = kind == "text"
        shown = repr(cell) if is_text else f"{cell}"
        raise ValueError(
            f"{name} contains {kind}, first {shown}{place}, but {owner} needs numbers. "
            f"{remedy if is_text else for_dates or remedy}"
        ) from None


@contextlib.contextmanager
def name_marker(marker: Any) -> Iterator[None]:
    """Say in scikit-learn's error for NaN and infinities what marks missing cells."""
    try:
        yield
    except ValueError as error:
        found = str(error).partition("\n")[0].rstrip(".")
        if not found.startswith("Input X contains"):
            raise
        raise ValueError(
            f"{found}. Missing cells are marked by missing_values={marker!r}: replace "
            f"these cells by {marker!r}, or pass missing_values=numpy.nan, for which "
            f"{marker!r} is a known value."
        ) from None


def _plain_array(values: NDArray[Any]) -> Any:
    if values.dtype.names is not None:
        return _frame_of_fields(values)
    if isinstance(values, np.ma.MaskedArray):
        values = _without_mask(values)
    if values.dtype.kind in "Mm":
        as_objects = pd.Series(values.ravel()).astype(object).to_numpy()
        values = as_objects.reshape(values.shape)
    if values.dtype.kind != "O" or {*map(type, values.flat)} <= _CASTABLE:
        return values
    return np.frompyfunc(_plain_cell, 1, 1)(values)


def _frame_of_fields(values: NDArray[Any]) -> pd.DataFrame:
    """Return a structured array as a table with a column for each field."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    fields = {name: values[name] for name in values.dtype.names or ()}
    several = [n for n, v in fields.items() if v.ndim != 1 or v.dtype.names is not None]
    if several:
        raise ValueError(
            f"Field {several[0]!r} of the structured array does not hold one value for "
            "each row. Pass a DataFrame with a column for each value."
        )
    return pd.DataFrame({name: _plain_array(cells) for name, cells in fields.items()})


def _without_mask(values: np.ma.MaskedArray[Any, Any]) -> NDArray[Any]:
    mask, cells = np.ma.getmaskarray(values), np.asarray(values.data)
    if mask.any():
        kind = cells.dtype.kind
        wide: Any = cells.dtype if kind == "f" else float if kind in "biu" else object
        cells = cells.astype(wide)
        cells[mask] = np.nan
    return cells


def _plain_frame(frame: pd.DataFrame) -> pd.DataFrame:
    plain = frame
    for j, dtype in enumerate(frame.dtypes):
        is_numpy = isinstance(dtype, np.dtype) and dtype.kind in "biuf"
        if not is_numpy and not isinstance(dtype, pd.SparseDtype):
            if plain is frame:
                plain = frame.copy(deep=False)
            plain.isetitem(j, _plain_column(frame.iloc[:, j]))
    return plain


def _plain_column(column: pd.Series) -> pd.Series:
    if holds_large_integers(column):
        cells = _plain_array(column.astype(object).to_numpy())
    elif pd.api.types.is_bool_dtype(column.dtype):
        cells = column.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        cells = _plain_array(np.asarray(column))
    # pandas would make dates of the objects again.
    return pd.Series(cells, index=column.index, dtype=cells.dtype)


def _plain_cell(cell: Any) -> Any:
    """Return a cell that a cast reads rightly or refuses."""
    if isinstance(cell, _MISSING):
        return np.nan
    if isinstance(cell, (np.datetime64, np.timedelta64)):  # a cast reads 2020 as 50
        is_date = isinstance(cell, np.datetime64)
        return _plain_cell(pd.Timestamp(cell) if is_date else pd.Timedelta(cell))
    if isinstance(cell, decimal.Decimal) and cell.is_nan():
        return np.nan
    if isinstance(cell, int) and abs(cell) > FLOAT64_MAX:
        return np.inf if cell > 0 else -np.inf
    return cell


def _first_unfit_cell(values: Any) -> tuple[Any, str] | None:
    """Return the first cell that cannot be converted to a number, with its place."""
    table = plain_cells(values)
    names = list(table.columns) if isinstance(table, pd.DataFrame) else None
    if names is None:
        table = np.asarray(table)
    if table.ndim not in (1, 2):
        return None
    for j in range(table.shape[1] if table.ndim == 2 else 1):
        column = table
        if table.ndim == 2:
            column = table[:, j] if names is None else np.asarray(table.iloc[:, j])
        if column.dtype.kind in "biufc":
            continue
        for i, cell in enumerate(column.tolist()):
            try:
                float(cell)
            except (TypeError, ValueError):
                place = "" if table.ndim == 1 else f", column {column_name(j, names)}"
                return cell, f" at row {i}{place}"
    return None


def has_dates(table: Any) -> bool:
    """Return whether the first cells that are no numbers are dates or durations."""
    found = _first_unfit_cell(table)
    return found is not None and kind_of(found[0]) in ("dates", "durations")


def kind_of(cell: Any) -> str | None:
    """Return whether a cell is text, a date or a duration, in words; or None."""
    cell = _plain_cell(cell)
    if isinstance(cell, (str, bytes)):
        return "text"
    if isinstance(cell, (datetime.date, pd.Period)):
        return "dates"
    return "durations" if isinstance(cell, datetime.timedelta) else None
