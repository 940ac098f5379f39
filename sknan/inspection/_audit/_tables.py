"""What an audit finds in a table as a whole: names, copies, scales."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sknan.inspection._audit._column_profile import ColumnFacts
from sknan.inspection._audit._finding import Trait, number, quantity, share
from sknan.preprocessing._tables.lazy_table import LazyTable
from sknan.preprocessing._tables.typed_column import TypedColumn

__all__ = ["Copies", "codes_of", "copied_rows", "traits_of_table"]

# Columns of more levels are not held to be each other in other words.
_FEW_LEVELS = 50

# Columns put together before rows are compared, while most may be copies.
_AT_ONCE = 8

# Scales differ if quartiles lie this many times as far apart in one column as in
# another, and are large from here on.
_LARGE = 1e3

_ODD = np.uint64(0x9E3779B97F4A7C15)


def traits_of_table(table: LazyTable, facts: Sequence[ColumnFacts]) -> Iterator[Trait]:
    """Whatever concerns more than one column, but for copied rows.

    Parameters
    ----------
    table : LazyTable
        As it was read.
    facts : sequence of ColumnFacts
        Of all its columns.

    Yields
    ------
    Trait
    """
    if not table.n_rows or not table.n_columns:
        size = f"{quantity(table.n_rows, 'row')}, {quantity(table.n_columns, 'column')}"
        yield Trait("no data", "", 1.0, size)
        return
    yield from _on_names(table)
    yield from _on_copies(table, facts)
    yield from _on_scale(facts)
    if table.n_columns > table.n_rows:
        size = f"{quantity(table.n_columns, 'column')}, {quantity(table.n_rows, 'row')}"
        yield Trait("more columns than rows", "", table.n_columns / table.n_rows, size)


def _on_names(table: LazyTable) -> Iterator[Trait]:
    labels = table.labels
    if labels is None:
        return
    first: dict[Any, int] = {}
    for j, label in enumerate(labels):
        if label in first:
            detail = f"the name of column {first[label]} too"
            yield Trait("column names", repr(str(label)), 1.0, detail, label, j)
        first.setdefault(label, j)
    odd = [j for j, label in enumerate(labels) if not isinstance(label, str)]
    if 0 < len(odd) < len(labels):
        for j in odd:
            detail = f"a name of type {type(labels[j]).__name__}"
            yield Trait("column names", str(labels[j]), 0.0, detail, labels[j], j)


def _on_scale(facts: Sequence[ColumnFacts]) -> Iterator[Trait]:
    spread = {f.q3 - f.q1: f for f in facts if f.q3 > f.q1}
    if not spread:
        return
    least, most = min(spread), max(spread)
    sizes = {max(abs(f.q1), abs(f.q3)): f for f in spread.values()}
    size = max(sizes)
    if most >= _LARGE * least:
        few, many = spread[least].name, spread[most].name
        detail = (
            f"quartiles lie {number(least)} apart in {few}, {number(most)} in {many}"
        )
        yield Trait("scale", "", most / least, detail)
    elif size >= _LARGE:
        detail = f"quartiles of up to {number(size)} in {sizes[size].name}"
        yield Trait("scale", "", size, detail)


# -- columns that are others again ---------------------------------------------------


def codes_of(column: TypedColumn) -> tuple[NDArray[np.int64], tuple[Any, ...]]:
    """The levels of a column by number, in order of appearance, and their names."""
    cells = column.cells
    if not isinstance(cells, np.ndarray) and column.holds != "text":
        cells = cells.astype(object).map(str, na_action="ignore")
    codes, levels = pd.factorize(cells)
    return codes, tuple(np.asarray(levels).tolist())


def _on_copies(table: LazyTable, facts: Sequence[ColumnFacts]) -> Iterator[Trait]:
    alike: dict[bytes, list[ColumnFacts]] = {}
    for fact in facts:
        if fact.key and fact.top_share < 1:
            alike.setdefault(fact.key, []).append(fact)
    for candidates in alike.values():
        # Numbers say of new values what names cannot: names are the copies.
        first, *others = sorted(candidates, key=lambda fact: fact.holds != "numbers")
        if others:
            yield from _on_candidates(table, first, others)


def _on_candidates(
    table: LazyTable, first: ColumnFacts, others: Sequence[ColumnFacts]
) -> Iterator[Trait]:
    """Those of the columns that are the first throughout, or in other words."""
    codes, levels = codes_of(table.read(first.position))
    for fact in others:
        if fact.levels != first.levels and (
            # Whatever never repeats has the codes of whatever never repeats.
            len(fact.levels) > _FEW_LEVELS or fact.holds == "numbers"
        ):
            continue
        other_codes, other_levels = codes_of(table.read(fact.position))
        if not np.array_equal(codes, other_codes):
            continue
        is_same = levels == other_levels
        detail = f"equals {first.name}" if is_same else f"{first.name} in other words"
        where = (fact.label, fact.position)
        yield Trait("duplicated column", fact.name, 1.0, detail, *where)


# -- rows that are others again ------------------------------------------------------


class Copies(NamedTuple):
    """Rows that are equal to others.

    Attributes
    ----------
    rows : ndarray of int
        All that have an equal.
    groups : ndarray
        Equal for equal rows.
    """

    rows: NDArray[np.int64]
    groups: NDArray[np.uint64]

    @property
    def n_copies(self) -> int:
        """How many could be left out."""
        return self.rows.size - np.unique(self.groups).size


def copied_rows(table: LazyTable, facts: Sequence[ColumnFacts]) -> Copies | None:
    """Rows that are equal in all columns.

    The columns with most levels come first, and each is read only where rows are still
    equal: one that never repeats leaves nothing to compare.

    Parameters
    ----------
    table : LazyTable
        As it was read.
    facts : sequence of ColumnFacts
        Of all its columns.

    Returns
    -------
    Copies or None
        None where it cannot be told, or copies cannot be avoided.
    """
    if table.is_sparse or any(fact.holds == "nested" for fact in facts):
        return None
    if math.prod(1.0 + fact.n_levels for fact in facts) <= table.n_rows:
        return None  # there are more rows than ways for them to differ
    rows = np.arange(table.n_rows)
    groups = np.zeros(table.n_rows, dtype=np.uint64)
    order = sorted((f for f in facts if f.top_share < 1), key=lambda f: -f.n_levels)
    for n_read, fact in enumerate(order, start=1):
        groups *= _ODD
        groups ^= _hashes(table.read(fact.position), rows)
        groups ^= groups >> np.uint64(29)
        is_late = n_read == len(order) or n_read % _AT_ONCE == 0
        if is_late or n_read <= 2 or rows.size < table.n_rows / 2:
            equal = pd.Series(groups).duplicated(keep=False).to_numpy()
            rows, groups = rows[equal], groups[equal]
        if not rows.size:
            break
    return Copies(rows, groups)


def _hashes(column: TypedColumn, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Equal for equal cells."""
    cells = column.cells
    if not isinstance(cells, np.ndarray):
        column = column._replace(cells=cells.iloc[rows])
        return codes_of(column)[0].astype(np.uint64)
    cells = cells[rows]
    if cells.dtype.kind in "mM":
        return cells.astype(np.int64).view(np.uint64)
    if cells.dtype.kind in "biu":
        return cells.astype(np.uint64)
    if cells.dtype.kind == "c":
        return codes_of(column._replace(cells=cells))[0].astype(np.uint64)
    bits = (cells.astype(np.float64) + 0.0).view(np.uint64)  # -0.0 is 0.0
    bits[np.isnan(cells)] = 1
    # The low bits of whole numbers are 0.
    return bits ^ (bits >> np.uint64(32))


def on_copied_rows(copies: Copies, n_rows: int, y: Any) -> Iterator[Trait]:
    """What there is to say of copied rows, and of their targets where known."""
    n_copies = copies.n_copies
    if not n_copies:
        return
    detail = share(n_copies, n_rows)
    if y is not None:
        pairs = pd.DataFrame({"group": copies.groups, "y": y[copies.rows]})
        n_targets = pairs.groupby("group")["y"].nunique(dropna=False)
        n_torn = int((pairs["group"].map(n_targets) > 1).sum())
        if n_torn:
            detail += f"; {quantity(n_torn, 'row')} with an equal of another target"
    yield Trait("duplicated rows", "", n_copies / n_rows, detail)


def count_kinds(facts: Sequence[ColumnFacts]) -> str:
    """How many columns hold what, as in ``"5 of numbers, 8 of text"``."""
    kinds = Counter(fact.holds for fact in facts)
    return ", ".join(
        f"{count} empty" if kind == "nothing" else f"{count} of {kind}"
        for kind, count in kinds.most_common()
    )
