"""Search for sentinels: numbers, dates and words that mean a missing value."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sknan.preprocessing._tables.lazy_table import read_table
from sknan.preprocessing._tables.numeric_sentinels import (
    Sentinel,
    find_numeric_sentinels,
    sample_rows,
)
from sknan.preprocessing._tables.typed_column import TypedColumn, read_column

# Texts that have no other meaning than a missing value.
_SIGNS = {
    *("", "?", "??", "???", "n/a", "n.a.", "n.a", "na", "nan", "nat", "null", "<na>"),
    *("#n/a", "#n/a n/a", "#na", "-nan", "1.#qnan", "-1.#qnan", "1.#ind", "-1.#ind"),
    *("#value!", "#div/0!", "#ref!", "#name?", "#null!", "#num!", "(null)", "<null>"),
    *("0000-00-00", "0000-00-00 00:00:00", "0000/00/00", "00/00/0000", "00.00.0000"),
    *(".", "..", "...", "-", "--", "---", "_", "(blank)", "<blank>", "<missing>"),
}

# Words that rarely have another meaning, if they repeat at least three times.
_WORDS = {
    *("unknown", "unk", "missing", "not available", "not known", "undefined", "blank"),
    *("unspecified", "not specified", "not recorded", "not reported", "not stated"),
    *("no data", "missing value", "missing data", "(missing)", "(unknown)", "empty"),
    *("<unknown>", "(empty)", "<empty>", "data not available", "unavailable"),
}
_ENOUGH_WORDS = 3
WORDS_FOR_MISSING = frozenset(_SIGNS | _WORDS)

# A number that is a sentinel in this many columns needs less evidence in others.
_COLUMNS_OF_SENTINEL = 2

# First and last dates of calendars, databases and spreadsheets.
_DATES = (
    *("0001-01-01", "1753-01-01", "1800-01-01", "1899-12-30", "1899-12-31"),
    *("1900-01-01", "1900-01-02", "1901-01-01", "1904-01-01", "1960-01-01"),
    *("1969-12-31", "1970-01-01", "2099-12-31", "2100-01-01", "2200-01-01"),
    *("2262-04-11", "2999-12-31", "3000-01-01", "9999-01-01", "9999-12-31"),
)


def suspected_sentinels(column: Any, *, known: Sequence[Any] = ()) -> list[Any]:
    """Find values of a column that seem to mean a missing value.

    A value is judged by the content of its column, never by itself: a number must
    repeat exactly, and must be far from all others or be the only negative one. If in
    doubt, a value is not reported, since replacing a true value would lose it.

    Parameters
    ----------
    column : Series of pandas or polars, or 1-dimensional array-like
        Numbers, dates or text.

    known : sequence, default=()
        Sentinels of other columns of the table, for which less evidence suffices.

    Returns
    -------
    list
        The suspected values as written in the column, the most frequent first.

    See Also
    --------
    table_sentinels : Find the sentinels of all columns of a table.
    audit : Find sentinels and other problems of a table.

    Notes
    -----
    A number is suspected in four cases:

    - It repeats and is a million times as large as all others, such as 1e20.
    - It is a common code (-999, 9999, the limits of an integer type), it repeats, and
      its distance from all others is at least three times their interquartile range,
      half their range, and a quarter of its distance from their median. For a code of
      two digits the distance must exceed the whole range of the others.
    - It is the only negative number among at least ten different ones. It is then
      suspected if it is a code that is separated by a gap, if it is -1, -9 or a similar
      number and three times as frequent as the numbers next to it, or if it is any
      number that is ten times as frequent as every other number.
    - It is not a common code, but makes up between one in 200 and half of all values,
      is three times as frequent as every other number, and its distance from the others
      is at least ten interquartile ranges and three times their range.

    0 is never suspected, since it often means "none". In a column of more than 65 536
    values, frequencies are estimated from a fixed sample; counts and distances are
    exact.

    A date is suspected if it is the first or last date of a calendar or of a
    spreadsheet, and as far from the other dates as a code must be. Text is suspected if
    it is a sign such as ``"?"`` or ``"N/A"``, or a word such as ``"unknown"`` that
    occurs three times.

    Examples
    --------
    >>> import numpy as np
    >>> from sknan.inspection import suspected_sentinels
    >>> age = np.random.default_rng(0).integers(18, 90, size=500)
    >>> age[:25] = -999
    >>> suspected_sentinels(age)
    [-999]
    >>> suspected_sentinels(["red", "?", "blue", "Unknown", "Unknown", "Unknown"])
    ['Unknown', '?']
    >>> suspected_sentinels([0, 1, 1, 0, 1, 9] * 20)  # 9 may be a true value
    []
    """
    found = find_sentinels(read_column(column), known=known)
    return [sentinel.value for sentinel in found]


def table_sentinels(X: Any) -> list[list[Any]]:
    """Find values that seem to mean a missing value, in each column of a table.

    The rules are those of :func:`suspected_sentinels`, but less evidence suffices for a
    number that is a sentinel in two other columns.

    Parameters
    ----------
    X : DataFrame, array, sparse matrix or list of rows, (n_samples, n_features)
        Table to search.

    Returns
    -------
    list of list
        Suspected values of each column, in the order of the columns. The list of a
        column without sentinels is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from sknan.inspection import table_sentinels
    >>> X = np.random.default_rng(0).normal(20, 5, size=(300, 2))
    >>> X[:30, 1] = -200
    >>> table_sentinels(X)
    [[], [-200.0]]
    """
    table = read_table(X)
    if not table.n_rows:
        return [[] for _ in range(table.n_columns)]
    found = sentinels_of(table.columns(), table.read)
    return [[sentinel.value for sentinel in of_column] for of_column in found]


def sentinels_of(
    columns: Iterable[TypedColumn], read: Callable[[int], TypedColumn]
) -> list[list[Sentinel]]:
    """Find the sentinels of each column, given the sentinels of the other columns.

    Parameters
    ----------
    columns : iterable of TypedColumn
        All columns of a table.
    read : callable
        Function that reads the column at a position again.

    Returns
    -------
    list of list of Sentinel
    """
    found = [find_sentinels(column) for column in columns]
    known = known_sentinels(found)
    for j, sentinels in enumerate(found):
        if known and not sentinels:
            found[j] = find_sentinels(read(j), known=known)
    return found


def known_sentinels(found: Iterable[Sequence[Sentinel]]) -> list[float]:
    """Return the numbers that are sentinels of at least two columns.

    Parameters
    ----------
    found : iterable of sequences of Sentinel
        Sentinels of each column.

    Returns
    -------
    list of float
    """
    values = [s.value for of_column in found for s in of_column]
    counts = Counter(v for v in values if isinstance(v, (int, float)))
    return [value for value, n in counts.items() if n >= _COLUMNS_OF_SENTINEL]


def find_sentinels(column: TypedColumn, *, known: Sequence[Any] = ()) -> list[Sentinel]:
    """Find the sentinels of a column, the most frequent first.

    Parameters
    ----------
    column : TypedColumn
        Column to search.
    known : sequence, default=()
        Sentinels of other columns.

    Returns
    -------
    list of Sentinel
    """
    cells, found = column.cells, list[Sentinel]()
    if column.holds == "numbers":
        if cells.dtype.kind == "f":
            cells = cells[np.isfinite(cells)]
        found = find_numeric_sentinels(cells, n_zeros=column.n_zeros, known=known)
    elif column.holds == "dates":
        found = _date_sentinels(cells)
    elif column.holds in ("text", "categories", "mixed"):
        found = _text_sentinels(cells)
    return sorted(found, key=lambda sentinel: -sentinel.n_cells)


def _date_sentinels(cells: NDArray[Any]) -> list[Sentinel]:
    days = cells[~np.isnat(cells)].astype("datetime64[D]")
    numbers = days.astype(np.int64)
    codes = [float(np.datetime64(day, "D").astype(np.int64)) for day in _DATES]
    return [
        Sentinel(pd.Timestamp(np.datetime64(s.value, "D")), s.n_cells, s.distance)
        for s in find_numeric_sentinels(numbers, codes=codes)
    ]


def is_word_for_missing(category: Any) -> TypeGuard[str]:
    """Return whether a category is a sign or a word for a missing value."""
    if not isinstance(category, str):
        return False
    return category.strip().lower() in WORDS_FOR_MISSING


def _text_sentinels(cells: pd.Series) -> list[Sentinel]:
    rows = sample_rows(len(cells))
    few = (cells if rows is None else cells.iloc[rows]).tolist()
    counts = Counter(cell for cell in few if isinstance(cell, str))
    if rows is not None:
        for word in filter(is_word_for_missing, counts):
            counts[word] = int((cells == word).sum())
    return [Sentinel(word, counts[word]) for word in missing_words(counts)]


def missing_words(counts: Mapping[str, int]) -> list[str]:
    """Return the categories of a column of text that mean a missing value.

    Parameters
    ----------
    counts : mapping of str to int
        Number of cells of each category.

    Returns
    -------
    list of str
        Categories in the order of ``counts``.
    """
    categories = list(counts)
    found = []
    for category in filter(is_word_for_missing, categories):
        plain = category.strip().lower()
        if plain == "na" and _are_codes_of_two_letters(categories):
            continue  # Namibia, or sodium
        if plain == "-" and "+" in map(str.strip, categories):
            continue  # a negative test result
        if plain in _SIGNS or counts[category] >= _ENOUGH_WORDS:
            found.append(category)
    return found


def _are_codes_of_two_letters(categories: Sequence[str]) -> bool:
    n_codes = sum(
        re.fullmatch(r"[A-Za-z]{2}", category) is not None for category in categories
    )
    return n_codes >= 3 and n_codes >= 0.8 * len(categories)
