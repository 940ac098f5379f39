"""Values of a column that stand for "missing": numbers, dates and words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

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

__all__ = [
    "find_sentinels",
    "is_word_for_missing",
    "known_sentinels",
    "sentinels_of",
    "suspected_sentinels",
    "table_sentinels",
    "words_among",
]

# Nobody means anything else by these.
_SIGNS = {
    *("", "?", "??", "???", "n/a", "n.a.", "n.a", "na", "nan", "nat", "null", "<na>"),
    *("#n/a", "#n/a n/a", "#na", "-nan", "1.#qnan", "-1.#qnan", "1.#ind", "-1.#ind"),
    *("#value!", "#div/0!", "#ref!", "#name?", "#null!", "#num!", "(null)", "<null>"),
    *(".", "..", "...", "-", "--", "---", "_", "(blank)", "<blank>", "<missing>"),
}

# And hardly anything else by these, if they repeat.
_WORDS = {
    *("unknown", "unk", "missing", "not available", "not known", "undefined", "blank"),
    *("unspecified", "not specified", "not recorded", "not reported", "not stated"),
    *("no data", "missing value", "missing data", "(missing)", "(unknown)", "empty"),
    *("<unknown>", "(empty)", "<empty>", "data not available", "unavailable"),
}
_ENOUGH_WORDS = 3

# A number is a sentinel of the table if it is one of so many columns.
_COLUMNS_OF_SENTINEL = 2

# Where calendars and spreadsheets begin and end.
_DATES = (
    *("0001-01-01", "1753-01-01", "1800-01-01", "1899-12-30", "1899-12-31"),
    *("1900-01-01", "1900-01-02", "1901-01-01", "1904-01-01", "1960-01-01"),
    *("1969-12-31", "1970-01-01", "2099-12-31", "2100-01-01", "2200-01-01"),
    *("2262-04-11", "2999-12-31", "3000-01-01", "9999-01-01", "9999-12-31"),
)


def suspected_sentinels(column: Any, *, known: Sequence[Any] = ()) -> list[Any]:
    """Values of a column that seem to stand for "missing".

    Suspected from what the column holds, never by their name alone: a number must
    repeat exactly, and lie far from all others or be the only one below zero. True
    values are spared rather than sentinels found, since a true value that is replaced
    is lost.

    Parameters
    ----------
    column : Series of pandas or polars, or 1-dimensional array-like
        Numbers, dates or text.

    known : sequence, default=()
        Sentinels of other columns of the table, for which less evidence suffices.

    Returns
    -------
    list
        The values as they stand in the column, the most frequent first.

    See Also
    --------
    table_sentinels : The same for all columns of a table.
    audit : Looks for sentinels, and for much else.

    Notes
    -----
    A number is suspected if

    - it repeats and is a million times as large as all others (1e20);
    - it looks like a code (-999, 9999, the ends of an integer type), repeats, and is
      apart from all others by three times their interquartile range, by half their
      range and by a quarter of its own distance from their median; codes of two digits
      by their whole range;
    - none of the others, at least ten different ones, is negative, and it is a code
      that a gap sets apart, or -1, -9 or such and three times as frequent as its
      bracketing_values, or any negative number and ten times as frequent as any other;
    - it looks like nothing in particular, but is one in 200 values and at most half of
      them, three times as frequent as any other, and apart by ten interquartile ranges
      and by three times the range of the others.

    0 never is: it may mean none. Of a column of more than 65 536 values a sample, the
    same each time, tells what is frequent; counts and distances are those of all.

    A date is suspected if it is one where calendars or spreadsheets begin or end, and
    lies apart as a code does; text if it is a sign such as ``"?"`` or ``"N/A"``, or a
    word such as ``"unknown"`` three times.

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
    """Values that seem to stand for "missing", for each column of a table.

    As :func:`suspected_sentinels` of each, but that less evidence suffices for what is
    a sentinel in two other columns.

    Parameters
    ----------
    X : DataFrame, array, sparse matrix or list of rows, (n_samples, n_features)
        The table.

    Returns
    -------
    list of list
        One for each column, in their order; empty where nothing is suspected.

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
    """The sentinels of each column, each held against those of the others.

    Parameters
    ----------
    columns : iterable of TypedColumn
        All of a table.
    read : callable
        The column at a position, once more.

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
    """Numbers that are sentinels of so many columns that they may be of others too.

    Parameters
    ----------
    found : iterable of sequences of Sentinel
        Of each column.

    Returns
    -------
    list of float
    """
    values = [s.value for of_column in found for s in of_column]
    counts = Counter(v for v in values if isinstance(v, (int, float)))
    return [value for value, n in counts.items() if n >= _COLUMNS_OF_SENTINEL]


def find_sentinels(column: TypedColumn, *, known: Sequence[Any] = ()) -> list[Sentinel]:
    """The sentinels of a column, the most frequent first.

    Parameters
    ----------
    column : TypedColumn
        As read from a table.
    known : sequence, default=()
        Sentinels of other columns.

    Returns
    -------
    list of Sentinel
    """
    cells = column.cells
    if column.holds == "numbers":
        if cells.dtype.kind == "f":
            cells = cells[np.isfinite(cells)]
        found = find_numeric_sentinels(cells, n_zeros=column.n_zeros, known=known)
    elif column.holds == "dates":
        found = _among_dates(cells)
    elif column.holds in ("text", "categories", "mixed"):
        found = _among_text(cells)
    else:
        found = []
    return sorted(found, key=lambda sentinel: -sentinel.n_cells)


def _among_dates(cells: NDArray[Any]) -> list[Sentinel]:
    days = cells[~np.isnat(cells)].astype("datetime64[D]")
    numbers = days.astype(np.int64)
    codes = [float(np.datetime64(day, "D").astype(np.int64)) for day in _DATES]
    return [
        Sentinel(pd.Timestamp(np.datetime64(s.value, "D")), s.n_cells, s.distance)
        for s in find_numeric_sentinels(numbers, codes=codes)
    ]


def is_word_for_missing(level: Any) -> bool:
    """Whether a sign or a word says that nothing is known."""
    if not isinstance(level, str):
        return False
    plain = level.strip().lower()
    return plain in _SIGNS or plain in _WORDS


def _among_text(cells: pd.Series) -> list[Sentinel]:
    rows = sample_rows(len(cells))
    few = (cells if rows is None else cells.iloc[rows]).tolist()
    counts = Counter(cell for cell in few if isinstance(cell, str))
    if rows is not None:
        for level in filter(is_word_for_missing, counts):
            counts[level] = int((cells == level).sum())
    return [Sentinel(level, counts[level]) for level in words_among(counts)]


def words_among(counts: Mapping[str, int]) -> list[str]:
    """Levels of a column of text that stand for "missing".

    Parameters
    ----------
    counts : mapping of str to int
        How often each level is.

    Returns
    -------
    list of str
        In the order of ``counts``.
    """
    levels = list(counts)
    found = []
    for level in filter(is_word_for_missing, levels):
        plain = level.strip().lower()
        if plain == "na" and _are_codes_of_two_letters(levels):
            continue  # Namibia, or sodium
        if plain == "-" and "+" in map(str.strip, levels):
            continue  # a result
        if plain in _SIGNS or counts[level] >= _ENOUGH_WORDS:
            found.append(level)
    return found


def _are_codes_of_two_letters(levels: Sequence[str]) -> bool:
    n_codes = sum(re.fullmatch(r"[A-Za-z]{2}", level) is not None for level in levels)
    return n_codes >= 3 and n_codes >= 0.8 * len(levels)
