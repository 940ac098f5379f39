"""Faults of a table as a whole: its shape, column names, duplicates and scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sknan.inspection._audit._column_profile import ColumnProfile
from sknan.inspection._audit._columns import codes_of
from sknan.inspection._audit._finding import Observation
from sknan.inspection._audit._formatting import number, quantity, share
from sknan.preprocessing._tables.lazy_table import LazyTable
from sknan.preprocessing._tables.numeric_sentinels import sample_rows

# Columns with more categories are not compared under other names.
_FEW_CATEGORIES = 50

# Ratio of two interquartile ranges from which scales differ, and size of the quartiles
# from which a scale is large.
_LARGE = 1e3

_Profiles = Sequence[ColumnProfile]


def observations_in_table(
    table: LazyTable, profiles: _Profiles
) -> Iterator[Observation]:
    """Run all detectors of faults that concern more than one column."""
    if not table.n_rows or not table.n_columns:
        yield Observation("no data", 1.0, size_in_words(table))
        return
    for detect in DETECTORS:
        yield from detect(table, profiles)


def size_in_words(table: LazyTable) -> str:
    """Return the size of a table, such as ``"3 rows, 2 columns"``."""
    return f"{quantity(table.n_rows, 'row')}, {quantity(table.n_columns, 'column')}"


def _column_names(table: LazyTable, profiles: _Profiles) -> Iterator[Observation]:
    labels = table.labels
    if labels is None:
        return
    kind = "column names"
    first: dict[Any, int] = {}
    for j, label in enumerate(labels):
        if first.setdefault(label, j) != j:
            detail = f"also the name of column {first[label]}"
            yield Observation(kind, 1.0, detail, repr(str(label)), label, j)
    others = [j for j, label in enumerate(labels) if not isinstance(label, str)]
    if 0 < len(others) < len(labels):
        for j in others:
            label = labels[j]
            detail = f"a name of type {type(label).__name__}"
            yield Observation(kind, 0.0, detail, str(label), label, j)


def _scales(table: LazyTable, profiles: _Profiles) -> Iterator[Observation]:
    by_spread = {p.q3 - p.q1: p for p in profiles if p.q3 > p.q1}
    if not by_spread:
        return
    least, most = min(by_spread), max(by_spread)
    by_size = {max(abs(p.q1), abs(p.q3)): p for p in by_spread.values()}
    size = max(by_size)
    if most >= _LARGE * least:
        detail = (
            f"interquartile range {number(least)} in {by_spread[least].name}, "
            f"{number(most)} in {by_spread[most].name}"
        )
        yield Observation("scale", most / least, detail)
    elif size >= _LARGE:
        detail = f"quartiles of up to {number(size)} in {by_size[size].name}"
        yield Observation("scale", size, detail)


def _shape(table: LazyTable, profiles: _Profiles) -> Iterator[Observation]:
    if table.n_columns > table.n_rows:
        size = f"{quantity(table.n_columns, 'column')}, {quantity(table.n_rows, 'row')}"
        yield Observation(
            "more columns than rows", table.n_columns / table.n_rows, size
        )


# -- duplicated columns --------------------------------------------------------------


def _duplicated_columns(table: LazyTable, profiles: _Profiles) -> Iterator[Observation]:
    by_key: dict[bytes, list[ColumnProfile]] = {}
    for profile in profiles:
        if profile.key and profile.top_share < 1:
            by_key.setdefault(profile.key, []).append(profile)
    for candidates in by_key.values():
        # A column of numbers is the original: it also has a meaning for new values.
        first, *others = sorted(candidates, key=lambda p: p.holds != "numbers")
        if others:
            yield from _duplicates_of(table, first, others)


def _duplicates_of(
    table: LazyTable, first: ColumnProfile, others: _Profiles
) -> Iterator[Observation]:
    """Compare whole columns whose keys are equal."""
    codes, values = codes_of(table.read(first.position))
    for other in others:
        if other.key_values != first.key_values and (
            # All columns without repeated values have the same codes.
            len(other.key_values) > _FEW_CATEGORIES or other.holds == "numbers"
        ):
            continue
        other_codes, other_values = codes_of(table.read(other.position))
        if not np.array_equal(codes, other_codes):
            continue
        is_same = values == other_values
        detail = (
            f"equals {first.name}" if is_same else f"{first.name} under other names"
        )
        yield other.observation("duplicated column", 1.0, detail)


DETECTORS: tuple[Callable[[LazyTable, _Profiles], Iterator[Observation]], ...] = (
    _column_names,
    _duplicated_columns,
    _scales,
    _shape,
)


# -- duplicated rows -----------------------------------------------------------------


def duplicated_rows(
    table: LazyTable, profiles: _Profiles, y: NDArray[Any] | None
) -> Iterator[Observation]:
    """Observe rows that are equal except for identifiers, and if their targets differ.

    ``y`` is None unless there is exactly one target.
    """
    sample = sample_rows(table.n_rows)
    n_sampled = table.n_rows if sample is None else len(sample)
    # In one column of a long table, rounded numbers are equal by chance.
    distinct = [
        p for p in profiles if p.holds == "numbers" and 2 * p.n_distinct > n_sampled
    ]
    rows, groups = _find_duplicates(table, profiles, rounded=len(distinct) > 1)
    if not rows.size:
        return
    n_duplicates = rows.size - np.unique(groups).size
    detail = share(n_duplicates, table.n_rows)
    exact, exact_groups = _find_duplicates(table, profiles, rounded=False)
    n_rounded = n_duplicates - exact.size + np.unique(exact_groups).size
    if n_rounded:
        detail += f", {quantity(n_rounded, 'row')} only up to a millionth"
    if names := [profile.name for profile in profiles if profile.has("identifier")]:
        detail += f", apart from {', '.join(names[:3])}{', ...' if names[3:] else ''}"
    if y is not None:
        pairs = pd.DataFrame({"group": groups, "y": y[rows]})
        n_targets = pairs.groupby("group")["y"].nunique(dropna=False)
        n_differ = int((pairs["group"].map(n_targets) > 1).sum())
        if n_differ:
            differing = quantity(n_differ, "row")
            detail += f"; {differing} have a duplicate with another target"
    yield Observation("duplicated rows", n_duplicates / table.n_rows, detail)


def _find_duplicates(
    table: LazyTable, profiles: _Profiles, *, rounded: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows that are equal to others in all columns, and the group of each.

    Identifiers are not compared: they number the rows, and duplicates with them.
    Columns with the most distinct values are compared first, and each column is read
    only in rows that are equal so far. A column without repeated values therefore ends
    the search. The result is empty if the rows cannot be compared or if there are more
    rows than combinations of values.
    """
    rows = np.arange(table.n_rows)
    groups = np.zeros(table.n_rows, dtype=np.int64)
    profiles = [profile for profile in profiles if not profile.has("identifier")]
    is_comparable = not (table.is_sparse or any(p.holds == "nested" for p in profiles))
    n_combinations = math.prod(1.0 + p.n_distinct for p in profiles)
    if not is_comparable or n_combinations <= table.n_rows:
        return rows[:0], groups[:0]
    order = sorted(
        (p for p in profiles if p.top_share < 1), key=lambda p: -p.n_distinct
    )
    for profile in order:
        column = table.read(profile.position)
        if rounded and column.cells.dtype.kind == "f":
            column = column._replace(cells=_rounded(column.cells, profile))
        codes, values = codes_of(column, rows)
        # Missing cells have the code -1.
        groups, _ = pd.factorize(groups * (len(values) + 1) + codes)
        is_repeated = np.bincount(groups)[groups] > 1
        rows, groups = rows[is_repeated], groups[is_repeated]
        if not rows.size:
            break
    return rows, groups


def _rounded(cells: NDArray[Any], profile: ColumnProfile) -> NDArray[Any]:
    """Round numbers to a millionth of their size, or of the interquartile range."""
    cells = cells.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of infinities
        has_fractions = bool(np.nan_to_num(cells % 1).any())
    if not has_fractions:  # numbers and codes of whole units
        return cells
    size = np.fmax(np.abs(cells), profile.q3 - profile.q1)
    _, exponents = np.frexp(size)
    digits = np.round(np.ldexp(cells, 20 - exponents))
    with np.errstate(over="ignore"):  # of the largest numbers, to infinity
        rounded: NDArray[Any] = np.ldexp(digits, exponents - 20)
    return rounded + 0.0
