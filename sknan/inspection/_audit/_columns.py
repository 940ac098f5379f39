"""Profile of one column of any type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sknan.inspection._audit._column_profile import ColumnProfile, sampled
from sknan.inspection._audit._formatting import quantity, quoted, share
from sknan.inspection._audit._numeric import profile_numbers, profile_numbers_in_text
from sknan.inspection._audit._text import Categories, numbers_in, observations_in_text
from sknan.preprocessing._tables.numeric_sentinels import sample_rows
from sknan.preprocessing._tables.sentinels import find_sentinels
from sknan.preprocessing._tables.typed_column import (
    ColumnContent,
    TypedColumn,
    types_in,
)

# Number of rows in the key of a column.
_N_KEY_ROWS = 1024


def profile_column(
    column: TypedColumn, n_rows: int, known: Sequence[Any] = ()
) -> ColumnProfile:
    """Return the profile of a column, with the faults that it shows by itself.

    ``known`` has the sentinels of other columns.
    """
    profile = ColumnProfile(*column[:5], n_rows)
    _add_missing(profile, column)
    if not profile.n_known:
        profile.add("empty", 1.0, "no known value")
    elif column.holds in ("nested", "complex", "opaque"):
        profile.add(column.holds, profile.n_known, quantity(profile.n_known, "cell"))
    else:
        _add_key(profile, column)
        if column.holds in ("numbers", "durations"):
            profile_numbers(profile, column, known)
        elif column.holds == "dates":
            _profile_dates(profile, column)
        elif column.holds == "flags":
            _add_top(profile, column.cells[~np.isnan(column.cells)].astype(bool))
        else:
            _profile_text(profile, column)
    return profile


def key_rows(n_rows: int) -> NDArray[np.int64]:
    """Return rows over all of the table that show whether two columns may be equal."""
    return np.unique(np.linspace(0, n_rows - 1, _N_KEY_ROWS).astype(np.int64))


def as_text(cells: pd.Series, holds: ColumnContent) -> pd.Series:
    """Return cells as text, with missing cells as they are."""
    if holds == "text":
        return cells
    return cells.astype(object).map(str, na_action="ignore")


def codes_of(
    column: TypedColumn, rows: Any = slice(None)
) -> tuple[NDArray[np.int64], tuple[Any, ...]]:
    """Return the code of the value in each cell, -1 where missing, and all values.

    The distinct values are in order of appearance.
    """
    if isinstance(column.cells, np.ndarray):
        cells = column.cells[rows]
    else:
        cells = as_text(column.cells.iloc[rows], column.holds)
    codes, values = pd.factorize(cells)
    return codes, tuple(np.asarray(values).tolist())


def _add_missing(profile: ColumnProfile, column: TypedColumn) -> None:
    cells, kind_of_dtype = column.cells, column.cells.dtype.kind
    if kind_of_dtype in "biu":
        return
    # The minimum is NaN if any cell is, and is much cheaper than a mask.
    if kind_of_dtype in "fc" and not (cells.size and np.isnan(cells.min())):
        return
    missing = np.asarray(pd.isna(cells))
    profile.n_missing = int(missing.sum())
    if not 0 < profile.n_missing < profile.n_rows:
        return
    is_category = column.holds in ("text", "categories", "objects", "mixed", "nested")
    kind = "missing category" if is_category else "missing"
    part = profile.n_missing / profile.n_rows
    profile.add(kind, part, share(profile.n_missing, profile.n_rows))
    if len(missing) == profile.n_rows:
        profile.missing_rows = sampled(missing)


def _add_key(profile: ColumnProfile, column: TypedColumn) -> None:
    if len(column.cells) == profile.n_rows:
        codes, profile.key_values = codes_of(column, key_rows(profile.n_rows))
        profile.key = codes.tobytes()


def _profile_dates(profile: ColumnProfile, column: TypedColumn) -> None:
    profile.add_sentinels(find_sentinels(column))
    known = column.cells[~np.isnat(column.cells)]
    first, last = (str(day)[:10] for day in (known.min(), known.max()))
    profile.add("dates", profile.n_known, f"{first} to {last}")
    _add_top(profile, known)


def _add_top(profile: ColumnProfile, known: NDArray[Any]) -> None:
    """Add the most frequent date or flag, and the number of distinct ones."""
    values, counts = np.unique(sampled(known), return_counts=True)
    profile.n_distinct = len(values)
    top = values[counts.argmax()]
    # Of a time, only the day is shown.
    profile.add_top(str(top)[:10], int((known == top).sum()), known.size)


def _profile_text(profile: ColumnProfile, column: TypedColumn) -> None:
    rows = sample_rows(profile.n_rows)
    sample = column.cells if rows is None else column.cells.iloc[rows]
    sample = as_text(sample, column.holds)
    # Series.value_counts fails on text that cannot be encoded.
    frequent = Counter(sample[sample.notna()].tolist()).most_common()
    counts = np.array([count for _, count in frequent], dtype=np.int64)
    categories = Categories([text for text, _ in frequent], counts)
    if not categories.texts:
        return  # The few known cells are not in the sample.
    profile.n_distinct = len(categories.texts)
    profile.add_sentinels(find_sentinels(column), "word for missing")
    if column.holds == "mixed":
        types = types_in(column.cells).most_common()
        shown = ", ".join(quantity(count, name) for name, count in types)
        profile.add("mixed types", profile.n_known - types[0][1], shown)
        return
    for observation in observations_in_text(
        categories,
        is_sample=rows is not None,
        is_category=column.holds == "categories",
    ):
        profile.add(observation.kind, observation.value, observation.detail)
    if profile.has("numbers as text", "written numbers"):
        is_written = profile.has("written numbers")
        format_ = categories.number_format if is_written else None
        numbers = numbers_in(categories, format_)
        profile_numbers_in_text(profile, np.repeat(numbers, categories.counts))
    top, n_top = categories.texts[0], int(categories.counts[0])
    profile.top_share = float(n_top / categories.counts.sum())
    if profile.is_nearly_constant:
        if rows is not None:
            n_top = int((as_text(column.cells, column.holds) == top).sum())
        profile.add_top(quoted(top), n_top, profile.n_known)
