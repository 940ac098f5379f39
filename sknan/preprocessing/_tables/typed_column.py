"""Columns of any table, with the type of their content."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import numbers
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from sknan._utils.outside import is_of_signal, unless
from sknan._utils.validation import array_of

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
    "opaque",
    "nothing",
]

# Text of an object by its place in memory, which is another one in each process.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

_NESTED = (list, tuple, dict, set, frozenset, np.ndarray, pd.Series, pd.DataFrame)

# Types of the cells of a column of objects. The first match counts: bool is a number.
_TYPES: dict[str, tuple[type, ...]] = {
    "missing": (type(None), type(pd.NA), type(pd.NaT)),
    "flag": (bool, np.bool_),
    "complex number": (complex, np.complexfloating),
    "number": (numbers.Complex, decimal.Decimal, np.number),
    "string": (str,),
    "container": _NESTED,
    "date": (datetime.date, np.datetime64),
}

# Content of a column of objects by the name that pandas infers.
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


# Up to here float64 represents every integer.
_EXACT = 2**53

# Types of pandas for integers of Arrow beside missing values.
_LARGE = {
    "int64": lambda _: pd.Int64Dtype(),
    "uint64": lambda _: pd.UInt64Dtype(),
}


class TypedColumn(NamedTuple):
    """A column of a table with the type of its content.

    Attributes
    ----------
    position : int
        Position in the table, counted from 0.
    label : object
        Label in the table, or the position if the table has no labels.
    name : str
        Name for messages.
    dtype : str
        Name of the dtype in the table.
    holds : str
        Type of the content.
    cells : ndarray or Series
        An array for numbers, complex numbers, flags (float if some are missing), dates
        and durations (NaT for missing values); a Series for any other content.
    n_zeros : int
        Number of zeros of a sparse column that are not among the cells.
    aware : Series or None
        Dates with their time zone, if they have one. The cells are local times.
    """

    position: int
    label: Any
    name: str
    dtype: str
    holds: ColumnContent
    cells: Any
    n_zeros: int = 0
    aware: pd.Series | None = None


def is_polars(X: Any) -> bool:
    """Return whether an object is from polars, without importing polars."""
    return type(X).__module__.partition(".")[0] == "polars"


def read_column(
    series: Any, position: int = 0, label: Any = 0, name: str = "0"
) -> TypedColumn:
    """Read a column and find the type of its content.

    Parameters
    ----------
    series : Series of pandas or polars, or 1-dimensional array-like
        Cells of the column.
    position : int, default=0
        Position in the table.
    label : object, default=0
        Label in the table.
    name : str, default="0"
        Name for messages.

    Returns
    -------
    TypedColumn
    """
    if is_polars(series):
        dtype = str(series.dtype)
        series = series_from_polars(series)
    else:
        if not isinstance(series, pd.Series):
            series = _as_series(series)
        dtype = str(series.dtype)
    holds, cells = _cells_of(series)
    aware = None
    if holds == "dates" and isinstance(cells, pd.Series):
        aware, cells = cells, cells.dt.tz_localize(None).to_numpy()
    return TypedColumn(position, label, name, dtype, holds, cells, aware=aware)


def _as_series(values: Any) -> pd.Series:
    if isinstance(values, Tensor):
        values = array_of(values, "The table or target")
    if isinstance(values, np.ma.MaskedArray):
        mask, values = np.ma.getmaskarray(values), values.data.astype(object)
        values[mask] = None
    if hasattr(values, "__array__"):
        values = np.asarray(values)
        return pd.Series(values if values.ndim == 1 else list(values))
    values = list(values)
    # pandas would make several columns of a list of lists.
    if any(isinstance(value, _NESTED) for value in values):
        cells = np.empty(len(values), dtype=object)
        cells[:] = values
        return pd.Series(cells, dtype=object)
    return pd.Series(values, dtype=object if not values else None)


def frame_from_polars(X: Any) -> pd.DataFrame:
    """Convert a polars DataFrame to pandas, without pyarrow."""
    return pd.DataFrame({series.name: series_from_polars(series) for series in X})


def frame_from_arrow(X: Any) -> Any:
    """Convert a table of pyarrow, or of any library with ``to_pandas``, to pandas."""
    try:
        frame = X.to_pandas()
    except ValueError:  # pandas has no category that is null
        return X.to_pandas(types_mapper=pd.ArrowDtype)
    for j, column in enumerate(getattr(X, "columns", ())):
        if getattr(column, "null_count", 0) and str(column.type) in _LARGE:
            cells = column.to_pandas(types_mapper=_LARGE[str(column.type)])
            if holds_large_integers(cells):
                frame.isetitem(j, cells)
    return frame


def holds_large_integers(column: pd.Series) -> bool:
    """Return whether float64 would round integers beside missing values."""
    dtype = column.dtype
    if isinstance(dtype, np.dtype) or not pd.api.types.is_integer_dtype(dtype):
        return False
    known = column.dropna()
    is_rounded = len(known) and max(-int(known.min()), int(known.max())) > _EXACT
    return bool(is_rounded) and len(known) < len(column)


def stacked_frames(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of several tables or Series, with all digits of large integers.

    Beside missing values, small integers in some tables may be floats.
    """
    large = {
        name: dtype
        for frame in frames
        if isinstance(frame, pd.DataFrame)
        for name, dtype in frame.dtypes.items()
        if isinstance(dtype, (pd.Int64Dtype, pd.UInt64Dtype))
    }
    if large:
        with contextlib.suppress(TypeError, KeyError):  # fractions, other columns
            frames = [frame.astype(large) for frame in frames]
    return pd.concat(frames, ignore_index=True)


@contextlib.contextmanager
def name_clash(files: Any) -> Iterator[None]:
    """Name the column of which a cell cannot be converted to its type in all files."""
    from pyarrow import ArrowInvalid, ArrowNotImplementedError, ArrowTypeError

    try:
        yield
    except (ArrowInvalid, ArrowNotImplementedError, ArrowTypeError) as error:
        for fragment in files.get_fragments():
            for field in fragment.physical_schema:
                at = files.schema.get_field_index(field.name)
                known = field.type if at < 0 else files.schema.types[at]
                if field.type != known and str(known) in str(error):
                    raise ValueError(
                        f"Column {field.name!r} is of type {known} in one file and of "
                        f"type {field.type} in another: {error}. Write it with one "
                        "type to all files."
                    ) from error
        raise


def series_from_polars(series: Any) -> pd.Series:
    """Convert a polars Series to pandas, without pyarrow."""
    dtype = series.dtype
    name = type(dtype).__name__ if not isinstance(dtype, type) else dtype.__name__
    if name in ("Categorical", "Enum"):
        return pd.Series(pd.Categorical(series.to_list()))
    is_number = dtype.is_numeric() and name not in ("Decimal", "Int128", "UInt128")
    is_full_flag = name == "Boolean" and not series.null_count()
    is_large = name in ("Int64", "UInt64") and 0 < series.null_count() < len(series)
    if is_large and max(-series.min(), series.max()) > _EXACT:
        return pd.Series(series.to_list(), dtype=name)
    if is_number or is_full_flag or name in ("Date", "Datetime", "Duration"):
        cells = pd.Series(series.to_numpy())
        zone = getattr(dtype, "time_zone", None)
        return cells.dt.tz_localize("UTC").dt.tz_convert(zone) if zone else cells
    cells = pd.Series(series.to_list(), dtype=object)
    return cells.infer_objects() if "Int128" in name else cells


def _cells_of(series: pd.Series) -> tuple[ColumnContent, Any]:
    dtype = series.dtype
    if isinstance(dtype, pd.SparseDtype):
        return _cells_of(series.sparse.to_dense())
    if isinstance(dtype, pd.ArrowDtype) and not _has_cells_of_pandas(dtype):
        cells = series.array.__arrow_array__().to_pylist()
        return _cells_of_objects(pd.Series(cells, dtype=object))
    if isinstance(dtype, pd.CategoricalDtype):
        is_object = dtype.categories.dtype == object
        holds = _by_types(pd.Series(dtype.categories)) if is_object else "nothing"
        return holds if holds in ("nested", "opaque") else "categories", series
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
        return "dates", series.to_numpy() if series.dt.tz is None else series
    if pd.api.types.is_timedelta64_dtype(dtype):
        return "durations", series.to_numpy()
    if dtype != np.dtype(object):
        series = series.astype(object)  # pyarrow's text, dates and lists, for example
    return _cells_of_objects(series)


def _has_cells_of_pandas(dtype: pd.ArrowDtype) -> bool:
    try:
        return dtype.type is not None
    except NotImplementedError:  # views, run-end encoded and extension types
        return False


def _numbers_of(series: pd.Series) -> NDArray[Any]:
    if isinstance(series.dtype, np.dtype):
        return np.asarray(series.to_numpy())
    if series.isna().any():
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    numpy_dtype = getattr(series.dtype, "numpy_dtype", np.dtype(np.float64))
    if numpy_dtype.kind not in "iuf":
        numpy_dtype = np.dtype(np.float64)  # pyarrow's decimals
    return np.asarray(series.to_numpy(dtype=numpy_dtype))


def _cells_of_objects(series: pd.Series) -> tuple[ColumnContent, Any]:
    try:
        series.isna()
    except decimal.InvalidOperation:  # pandas cannot compare a signaling NaN
        series = series.map(lambda cell: np.nan if _is_signaling(cell) else cell)
        return _cells_of(series)
    inferred = pd.api.types.infer_dtype(series, skipna=True)
    if inferred == "bytes":
        with contextlib.suppress(UnicodeDecodeError):
            return "text", series.map(bytes.decode, na_action="ignore")
    holds = _OBJECTS.get(inferred) or _by_types(series)
    if holds == "flags":
        flags = np.array([np.nan if pd.isna(c) else bool(c) for c in series])
        return holds, flags if np.isnan(flags).any() else flags.astype(bool)
    if holds == "numbers":
        return holds, np.fromiter(map(_as_float, series), np.float64, len(series))
    if holds == "complex":
        return holds, np.array([np.nan if is_missing(c) else c for c in series])
    if holds in ("dates", "durations"):
        convert = _dates_of_objects if holds == "dates" else pd.to_timedelta
        try:
            return _cells_of(convert(series))
        except unless(is_of_signal, ValueError, TypeError, OverflowError):
            # Before 1677 or after 2262, in pandas 2.
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                return _cells_of(_in_microseconds(series, holds))
            return "objects", series
    return holds, series


def _dates_of_objects(series: pd.Series) -> pd.Series:
    """Convert objects to dates: in UTC if there are several zones or UTC offsets."""
    # pandas 2 would only warn of them, and filters of warnings concern all threads.
    zones = {str(zone) for cell in series if (zone := getattr(cell, "tzinfo", None))}
    try:
        return pd.to_datetime(series, utc=len(zones) > 1)
    except ValueError:  # some have none
        return pd.to_datetime(series, utc=True)


def _in_microseconds(series: pd.Series, holds: ColumnContent) -> pd.Series:
    """Convert objects to dates in UTC, or to durations."""
    zones = [getattr(cell, "tzinfo", None) for cell in series]
    cells = [
        cell if zone is None else cell.astimezone(datetime.UTC).replace(tzinfo=None)
        for cell, zone in zip(series.mask(series.isna(), None), zones, strict=True)
    ]
    dtype = "datetime64[us]" if holds == "dates" else "timedelta64[us]"
    found = pd.Series(np.array(cells, dtype=dtype))
    return found.dt.tz_localize("UTC") if any(zones) else found


def _is_signaling(cell: Any) -> bool:
    return isinstance(cell, decimal.Decimal) and cell.is_snan()


def _by_types(series: pd.Series) -> ColumnContent:
    """Return the content of a column of objects for which pandas infers no type."""
    kinds = types_in(series)
    if not kinds:
        return "nothing"
    if "container" in kinds:
        return "nested"
    if any(map(is_opaque, {type(cell): cell for cell in series}.values())):
        return "opaque"
    return "numbers" if set(kinds) == {"number"} else "mixed"


def is_opaque(cell: Any) -> bool:
    """Return whether an object has no text but its place in memory."""
    return not isinstance(cell, str) and bool(_ADDRESS.search(str(cell)))


def is_container(cell: Any) -> bool:
    """Return whether an object is a list, an array or another container."""
    return _kind_of(type(cell)) == "container"


def types_in(series: pd.Series) -> Counter[str]:
    """Count the numbers, strings, flags, dates and other types in a column."""
    kinds: Counter[str] = Counter()
    by_type = Counter(map(type, series))
    for cls, count in by_type.items():
        kinds[_kind_of(cls)] += count
    missing = int(series.isna().sum())
    # NaN is a float and counted as a number; None, NA and NaT have separate types.
    nans = missing - kinds.pop("missing", 0)
    if nans > 0:
        kinds["number"] -= nans
    return +kinds


def _kind_of(cls: type) -> str:
    if hasattr(cls, "__array__") and not issubclass(cls, np.generic):
        return "container"
    kinds = (kind for kind, types in _TYPES.items() if issubclass(cls, types))
    return next(kinds, cls.__name__)


def is_missing(cell: Any) -> bool:
    """Return whether a cell is None, NA, NaT or NaN."""
    return cell is None or cell is pd.NA or cell is pd.NaT or cell != cell


def _as_float(cell: Any) -> float:
    """Convert a cell to float64: infinite if it is too large, NaN if it is missing."""
    if is_missing(cell):
        return np.nan
    try:
        return float(cell)
    except OverflowError:
        return np.inf if cell > 0 else -np.inf
    except (TypeError, ValueError):
        return np.nan
