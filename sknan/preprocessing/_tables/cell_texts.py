"""Texts of the cells of a column, and the values in them."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sknan.preprocessing._tables.date_format import (
    ISO,
    as_pandas_reads,
    epochs_of,
    read_dates,
)
from sknan.preprocessing._tables.typed_column import TypedColumn, is_missing

# Text of durations in Python, pandas and ISO 8601, and of dates in ISO 8601.
_DURATION = re.compile(r"^-?(?:p\d|pt\d|\d+ days?\b|\d+:\d\d:\d\d)")
_DATE = re.compile(r"^\d{4}-\d\d-\d\d")
_SPANS = (datetime.timedelta, np.timedelta64)
# pandas 2 reads some numbers to within a unit of the last digit only.
_LARGEST = repr(float(np.finfo(np.float32).max))
_IS_EXACT = pd.to_numeric(_LARGEST) == float(_LARGEST)


def as_numbers(texts: pd.Series) -> NDArray[np.float64]:
    """Return the number in each text, or NaN."""
    parsed = pd.to_numeric(texts, errors="coerce")
    numbers = np.array(parsed.to_numpy(dtype=np.float64, na_value=np.nan))
    if not _IS_EXACT:
        is_number = ~np.isnan(numbers)
        numbers[is_number] = texts[is_number].astype(object).astype(np.float64)
    return numbers


def values_of(texts: pd.Index) -> list[Any]:
    """Return the number, flag, duration in seconds or date in each text, or None."""
    lower = pd.Series(texts, dtype=object).str.lower()
    numbers = as_numbers(lower.replace({"true": "1", "false": "0"}))
    values = [None if number != number else number for number in numbers.tolist()]
    for i, text in enumerate(lower):
        if _DURATION.search(text):
            span = pd.to_timedelta(text.upper(), errors="coerce")
            values[i] = None if span is pd.NaT else span.total_seconds()
    dates = pd.Series(texts, dtype=object)[lower.str.contains(_DATE)]
    for i, date in read_dates(dates.map(as_pandas_reads), ISO).dropna().items():
        values[i] = date
    return values


def texts_by_value(texts: pd.Index) -> dict[Any, str]:
    """Return the text of each value that only one has, by the epochs of a date, too."""
    pairs = [
        (key, text)
        for value, text in zip(values_of(texts), texts, strict=True)
        for key in (
            {value, *epochs_of(value)}
            if isinstance(value, pd.Timestamp)
            else {value} - {None}
        )
    ]
    counts = Counter(key for key, _ in pairs)
    return {key: text for key, text in pairs if counts[key] == 1}


def texts_of(column: TypedColumn) -> list[str | None]:
    """Return the cells as text, or None where missing, for any type of category."""
    cells = column.cells if column.aware is None else column.aware
    if column.holds == "flags":
        # A column of flags with missing cells is stored as floats.
        return [None if cell != cell else str(bool(cell)) for cell in cells]
    cells = list(cells.astype(object) if isinstance(cells, pd.Series) else cells)
    if column.holds == "text":
        texts = {cell: text_of(cell) for cell in set(cells)}
        return [texts[cell] for cell in cells]
    if column.holds in ("mixed", "durations"):  # as numbers of seconds
        cells = [
            _seconds_of(cell) if isinstance(cell, _SPANS) else cell for cell in cells
        ]
    return [text_of(cell) for cell in cells]


def _seconds_of(span: datetime.timedelta | np.timedelta64) -> float:
    # A span of Python may be longer than pandas can represent.
    if isinstance(span, datetime.timedelta):
        return span.total_seconds()
    seconds: float = pd.Timedelta(span).total_seconds()
    return seconds


def text_of(cell: Any) -> str | None:
    """Return one text for a category, whether it is read as 3, 3.0 or "3"."""
    if is_missing(cell):
        return None
    if isinstance(cell, (float, np.floating)) and float(cell).is_integer():
        return str(int(cell))
    if isinstance(cell, np.timedelta64):
        cell = pd.Timedelta(cell)
    if isinstance(cell, bytes):
        cell = cell.decode(errors="backslashreplace")
    text = str(cell).strip()
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which Arrow cannot store
        text = text.encode(errors="backslashreplace").decode()
    return text


def plain(text: str) -> str:
    """Return a text in lower case and without spaces around it."""
    return text.strip().lower()
