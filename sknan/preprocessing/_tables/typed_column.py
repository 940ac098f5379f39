"""One column of any table, with what its cells are."""

from __future__ import annotations

import datetime
import decimal
import numbers
from collections import Counter
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["ColumnContent", "TypedColumn", "is_polars", "read_column", "types_in"]

ColumnContent = Literal[
    "numbers",
    "flags",
    "text",
    "categories",
    "dates",
    "durations",
    "mixed",
    "nested",
    "complex",
    "objects",
    "nothing",
]

_NESTED = (list, tuple, dict, set, frozenset, np.ndarray, pd.Series, pd.DataFrame)

# What pandas calls the cells of a column of objects, where it is sure.
_OBJECTS: dict[str, ColumnContent] = {
    "string": "text",
    "bytes": "objects",
    "integer": "numbers",
    "floating": "numbers",
    "mixed-integer-float": "numbers",
    "decimal": "numbers",
    "boolean": "flags",
    "complex": "complex",
    "datetime64": "dates",
    "datetime": "dates",
    "date": "dates",
    "timedelta64": "durations",
    "timedelta": "durations",
    "time": "objects",
    "period": "objects",
    "interval": "objects",
    "empty": "nothing",
}


class TypedColumn(NamedTuple):
    """One column of a table.

    Attributes
    ----------
    position : int
        Counted from 0.
    label : object
        As in the table; its position where the table has no labels.
    name : str
        How it is called in a sentence.
    dtype : str
        As the table calls it.
    holds : str
        What its cells are.
    cells : ndarray or Series
        Numbers, complex numbers, flags (float where some are missing), dates and
        durations (NaT where missing) as an array; anything else as a Series.
    n_zeros : int
        Zeros of a sparse column that are not among the cells.
    """

    position: int
    label: Any
    name: str
    dtype: str
    holds: ColumnContent
    cells: Any
    n_zeros: int = 0


def is_polars(X: Any) -> bool:
    """Whether something is of polars, without importing that."""
    return type(X).__module__.partition(".")[0] == "polars"


def read_column(
    series: Any, position: int = 0, label: Any = 0, name: str = "0"
) -> TypedColumn:
    """One column with what it holds.

    Parameters
    ----------
    series : Series of pandas or polars, or 1-dimensional array-like
        Its cells.
    position : int, default=0
        Where it stands in its table.
    label : object, default=0
        What it is called there.
    name : str, default="0"
        What it is called in a sentence.

    Returns
    -------
    TypedColumn
    """
    if is_polars(series):
        dtype = str(series.dtype)
        series = _from_polars(series)
    else:
        if not isinstance(series, pd.Series):
            series = _as_series(series)
        dtype = str(series.dtype)
    holds, cells = _cells_of(series)
    return TypedColumn(position, label, name, dtype, holds, cells)


def _as_series(values: Any) -> pd.Series:
    if isinstance(values, np.ndarray) or hasattr(values, "__array__"):
        values = np.asarray(values)
        return pd.Series(values if values.ndim == 1 else list(values))
    values = list(values)
    # Without this a list of lists would become several columns.
    if any(isinstance(value, _NESTED) for value in values):
        cells = np.empty(len(values), dtype=object)
        cells[:] = values
        return pd.Series(cells, dtype=object)
    return pd.Series(values, dtype=object if not values else None)


def _from_polars(series: Any) -> pd.Series:
    """The same cells in pandas, without pyarrow."""
    dtype = series.dtype
    name = type(dtype).__name__ if not isinstance(dtype, type) else dtype.__name__
    if name in ("Categorical", "Enum"):
        return pd.Series(pd.Categorical(series.to_list()))
    if name == "Boolean" and not series.null_count():
        return pd.Series(series.to_numpy())
    if dtype.is_numeric() and name not in ("Decimal", "Int128", "UInt128"):
        return pd.Series(series.to_numpy())
    if name in ("Date", "Datetime", "Duration"):
        return pd.Series(series.to_numpy())
    return pd.Series(series.to_list(), dtype=object)


def _cells_of(series: pd.Series) -> tuple[ColumnContent, Any]:
    dtype = series.dtype
    if isinstance(dtype, pd.SparseDtype):
        return _cells_of(series.sparse.to_dense())
    if isinstance(dtype, pd.CategoricalDtype):
        return "categories", series
    if isinstance(dtype, pd.PeriodDtype):
        return "dates", series.dt.to_timestamp().to_numpy()
    if isinstance(dtype, pd.IntervalDtype):
        return "objects", series
    if isinstance(dtype, pd.StringDtype):
        return "text", series
    if pd.api.types.is_bool_dtype(dtype):
        if series.isna().any():
            return "flags", series.to_numpy(dtype=np.float64, na_value=np.nan)
        return "flags", series.to_numpy(dtype=bool)
    if pd.api.types.is_complex_dtype(dtype):
        return "complex", series.to_numpy()
    if pd.api.types.is_numeric_dtype(dtype):
        return "numbers", _numbers_of(series)
    if isinstance(dtype, (np.dtype, pd.DatetimeTZDtype)) and dtype.kind == "M":
        return "dates", _dates_of(series)
    if pd.api.types.is_timedelta64_dtype(dtype):
        return "durations", series.to_numpy()
    if dtype != np.dtype(object):
        series = series.astype(object)  # text, dates, lists of pyarrow, and others
    return _cells_of_objects(series)


def _numbers_of(series: pd.Series) -> NDArray[Any]:
    if isinstance(series.dtype, np.dtype):
        return np.asarray(series.to_numpy())
    if series.isna().any():
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    numpy_dtype = getattr(series.dtype, "numpy_dtype", np.dtype(np.float64))
    if numpy_dtype.kind not in "iuf":
        numpy_dtype = np.dtype(np.float64)  # decimals of pyarrow
    return np.asarray(series.to_numpy(dtype=numpy_dtype))


def _dates_of(series: pd.Series) -> NDArray[Any]:
    """Days and times as the clock says."""
    if getattr(series.dtype, "tz", None) is not None:
        series = series.dt.tz_localize(None)
    return np.asarray(series.to_numpy())


def _cells_of_objects(series: pd.Series) -> tuple[ColumnContent, Any]:
    said = pd.api.types.infer_dtype(series, skipna=True)
    holds = _OBJECTS.get(said) or _by_types(series)
    if holds == "flags":
        flags = np.array([np.nan if pd.isna(c) else bool(c) for c in series])
        return holds, flags if np.isnan(flags).any() else flags.astype(bool)
    if holds == "numbers":
        return holds, np.fromiter(map(_as_float, series), np.float64, len(series))
    if holds == "complex":
        return holds, np.array([np.nan if _is_na(c) else c for c in series])
    if holds in ("dates", "durations"):
        convert = pd.to_datetime if holds == "dates" else pd.to_timedelta
        try:
            converted = convert(series)
        except (ValueError, TypeError, OverflowError):
            return "objects", series  # dates with and without a time zone, or too far
        return (
            _cells_of(converted) if converted.dtype != object else ("objects", series)
        )
    return holds, series


def _by_types(series: pd.Series) -> ColumnContent:
    """What a column of objects holds that pandas has no word for."""
    kinds = types_in(series)
    if not kinds:
        return "nothing"
    if "container" in kinds:
        return "nested"
    return "numbers" if set(kinds) == {"number"} else "mixed"


def types_in(series: pd.Series) -> Counter[str]:
    """How many cells are numbers, text, flags, dates and others."""
    kinds: Counter[str] = Counter()
    by_type = Counter(map(type, series))
    for cls, count in by_type.items():
        kinds[_kind_of(cls)] += count
    missing = int(series.isna().sum())
    # NaN is a float, which counts as a number; None, NA and NaT are types of their own.
    nans = missing - kinds.pop("missing", 0)
    if nans > 0:
        kinds["number"] -= nans
    return +kinds


def _kind_of(cls: type) -> str:
    if issubclass(cls, (type(None), type(pd.NA), type(pd.NaT))):
        return "missing"
    if issubclass(cls, (bool, np.bool_)):
        return "flag"
    if issubclass(cls, (numbers.Complex, decimal.Decimal, np.number)):
        is_complex = issubclass(cls, (complex, np.complexfloating))
        return "complex number" if is_complex else "number"
    if issubclass(cls, str):
        return "string"
    if issubclass(cls, _NESTED):
        return "container"
    if issubclass(cls, (datetime.date, np.datetime64)):
        return "date"
    return cls.__name__


def _is_na(cell: Any) -> bool:
    return cell is None or cell is pd.NA or cell is pd.NaT or cell != cell


def _as_float(cell: Any) -> float:
    """A number as float64; infinite where it is too large, NaN where it is missing."""
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return np.nan
    try:
        return float(cell)
    except OverflowError:
        return np.inf if cell > 0 else -np.inf
    except (TypeError, ValueError):
        return np.nan
