"""What an audit finds in one column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sknan.inspection._audit._column_profile import ColumnFacts
from sknan.inspection._audit._finding import quantity, quoted, share
from sknan.inspection._audit._numeric import read_numbers, read_numbers_in_text
from sknan.inspection._audit._text import Levels, notes_on_text, numbers_in
from sknan.preprocessing._tables.numeric_sentinels import sample_rows
from sknan.preprocessing._tables.sentinels import find_sentinels
from sknan.preprocessing._tables.typed_column import TypedColumn, types_in

__all__ = ["key_rows", "read_facts"]

# Rows that tell whether two columns may be equal.
_KEY_ROWS = 1024


def key_rows(n_rows: int) -> NDArray[np.int64]:
    """Rows, spread over the table, that tell whether two columns may be equal."""
    return np.unique(np.linspace(0, n_rows - 1, _KEY_ROWS).astype(np.int64))


def read_facts(
    column: TypedColumn, n_rows: int, known: Sequence[Any] = ()
) -> ColumnFacts:
    """All that is found in one column on its own.

    Parameters
    ----------
    column : TypedColumn
        As read from a table.
    n_rows : int
        Of the table.
    known : sequence, default=()
        Sentinels of other columns.

    Returns
    -------
    ColumnFacts
    """
    facts = ColumnFacts(*column[:5], n_rows)
    _read_missing(facts, column)
    if not facts.n_known:
        facts.note("empty", 1.0, "no known value")
    elif column.holds == "nested":
        facts.note("nested", facts.n_known, _cells(facts))
    elif column.holds == "complex":
        facts.note("complex", facts.n_known, _cells(facts))
    elif column.holds in ("numbers", "durations"):
        _read_key(facts, column)
        read_numbers(facts, column, known)
    elif column.holds in ("flags", "dates"):
        _read_key(facts, column)
        _read_plain(facts, column)
    else:
        _read_key(facts, column)
        _read_text(facts, column)
    return facts


def _cells(facts: ColumnFacts) -> str:
    return quantity(facts.n_known, "cell")


def _read_missing(facts: ColumnFacts, column: TypedColumn) -> None:
    missing = _missing(column)
    if missing is None:
        return
    facts.n_missing = int(missing.sum())
    if not 0 < facts.n_missing < facts.n_rows:
        return
    is_category = column.holds in ("text", "categories", "objects", "mixed", "nested")
    kind = "missing category" if is_category else "missing"
    part = facts.n_missing / facts.n_rows
    facts.note(kind, part, share(facts.n_missing, facts.n_rows))
    if len(missing) == facts.n_rows:
        rows = sample_rows(facts.n_rows)
        facts.missing_rows = missing if rows is None else missing[rows]


def _missing(column: TypedColumn) -> NDArray[np.bool_] | None:
    """Which cells are missing; None if none is."""
    cells = column.cells
    if not isinstance(cells, np.ndarray):
        missing = np.asarray(cells.isna())
    elif cells.dtype.kind in "mM":
        missing = np.isnat(cells)
    elif cells.dtype.kind in "fc":
        # The minimum passes a NaN on, for a fraction of a mask's price.
        if not cells.size or not np.isnan(cells.min()):
            return None
        missing = np.isnan(cells)
    else:
        return None
    return missing if missing.any() else None


def _read_key(facts: ColumnFacts, column: TypedColumn) -> None:
    if len(column.cells) != facts.n_rows:
        return
    rows = key_rows(facts.n_rows)
    is_array = isinstance(column.cells, np.ndarray)
    few = column.cells[rows] if is_array else column.cells.iloc[rows]
    if not is_array and column.holds != "text":
        few = few.astype(object).map(str, na_action="ignore")
    codes, levels = pd.factorize(few)
    facts.key, facts.levels = codes.tobytes(), tuple(np.asarray(levels).tolist())


# -- anything else -------------------------------------------------------------------


def _read_plain(facts: ColumnFacts, column: TypedColumn) -> None:
    """Flags and dates, in which only what is frequent matters."""
    cells = column.cells
    if column.holds == "dates":
        found = find_sentinels(column)
        if found:
            facts.note_sentinels(found)
        known = cells[~np.isnat(cells)]
        shown = [str(day)[:10] for day in (known.min(), known.max())]
        facts.note("dates", facts.n_known, f"{shown[0]} to {shown[1]}")
    else:
        known = cells[~np.isnan(cells)] if cells.dtype.kind == "f" else cells
    rows = sample_rows(known.size)
    levels, counts = np.unique(
        known if rows is None else known[rows], return_counts=True
    )
    top = levels[counts.argmax()]
    facts.n_levels = len(levels)
    n_top = int((known == top).sum()) + (column.n_zeros if not top else 0)
    shown_top = str(top)[:10] if column.holds == "dates" else str(bool(top))
    facts.note_top(shown_top, n_top, known.size + column.n_zeros)


def _read_text(facts: ColumnFacts, column: TypedColumn) -> None:
    cells = column.cells
    rows = sample_rows(facts.n_rows)
    few = cells if rows is None else cells.iloc[rows]
    if column.holds != "text":
        few = few.astype(object).map(str, na_action="ignore")
    # pandas would not count text that cannot be encoded.
    frequent = Counter(few[few.notna()].tolist()).most_common()
    counts = np.array([count for _, count in frequent], dtype=np.int64)
    levels = Levels([level for level, _ in frequent], counts)
    if not levels.texts:
        return  # known ones are so few that the sample has none
    facts.n_levels = len(levels.texts)
    found = find_sentinels(column)
    if found:
        facts.note_sentinels(found, "word for missing")
    if column.holds == "mixed":
        _note_types(facts, column)
        return
    is_category = column.holds == "categories"
    notes = notes_on_text(levels, is_sample=rows is not None, is_category=is_category)
    for note in notes:
        facts.note(*note)
    if facts.has("numbers as text"):
        read_numbers_in_text(facts, np.repeat(numbers_in(levels), levels.counts))
    top = levels.texts[0]
    facts.top_share = float(levels.counts[0] / levels.counts.sum())
    if facts.is_constant:
        n_top = int(levels.counts[0]) if rows is None else _count(column, top)
        facts.note_top(quoted(top), n_top, facts.n_known)


def _count(column: TypedColumn, level: str) -> int:
    cells = column.cells
    if column.holds != "text":
        cells = cells.astype(object).map(str, na_action="ignore")
    return int((cells == level).sum())


def _note_types(facts: ColumnFacts, column: TypedColumn) -> None:
    kinds = types_in(column.cells).most_common()
    shown = ", ".join(quantity(count, kind) for kind, count in kinds)
    facts.note("mixed types", facts.n_known - kinds[0][1], shown)
