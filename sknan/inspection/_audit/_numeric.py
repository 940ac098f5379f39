"""What an audit finds in a column of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sknan._utils.validation import FLOAT32_MAX
from sknan.inspection._audit._column_profile import FEW_ROWS, ColumnFacts
from sknan.inspection._audit._finding import number, share
from sknan.preprocessing._tables.numeric_sentinels import (
    find_numeric_sentinels,
    sample_rows,
)
from sknan.preprocessing._tables.typed_column import TypedColumn

__all__ = ["read_numbers", "read_numbers_in_text"]

# Extremes this many interquartile ranges beyond the quartiles are far: an exponential
# column of a billion rows has none.
_FAR = 20.0

# A single cell is a lone outlier so many of them from the next one.
_LONE = 5.0

# Fewer known values say nothing of a shape.
_FEW = 20


def read_numbers(facts: ColumnFacts, column: TypedColumn, known: Sequence[Any]) -> None:
    """All that is found in a column of numbers or durations.

    Parameters
    ----------
    facts : ColumnFacts
        To which it is added.
    column : TypedColumn
        As it was read.
    known : sequence
        Sentinels of other columns.
    """
    cells = column.cells
    if column.holds == "durations":
        cells = cells / np.timedelta64(1, "s")
    finite = _read_nonfinite(facts, cells)
    if not finite.size + column.n_zeros:
        return
    found = find_numeric_sentinels(finite, n_zeros=column.n_zeros, known=known)
    if found:
        facts.note_sentinels(found)
        finite = finite[~np.isin(finite, [s.value for s in found])]
    _read_shape(facts, finite, column.n_zeros)
    if finite.size == facts.n_rows and not facts.has("constant"):
        _read_precision(facts, finite.dtype)
        if column.holds == "numbers":
            _read_order(facts, finite)


def _read_nonfinite(facts: ColumnFacts, cells: NDArray[Any]) -> NDArray[Any]:
    """Count what is infinite or beyond float32; what is neither, and not missing."""
    if cells.dtype.kind != "f" or not cells.size:
        return cells
    low, high = float(cells.min()), float(cells.max())
    if low >= -FLOAT32_MAX and high <= FLOAT32_MAX:
        return cells
    finite = cells[np.isfinite(cells)]
    facts.n_infinite = cells.size - finite.size - facts.n_missing
    if facts.n_infinite:
        n_below = int(np.isneginf(cells).sum())
        signs = f", {n_below} of them negative" if n_below else ""
        detail = f"{share(facts.n_infinite, facts.n_rows)}{signs}"
        facts.note("infinite", facts.n_infinite, detail)
    if finite.dtype.itemsize > 4 and finite.size:
        size = max(abs(float(finite.min())), abs(float(finite.max())))
        if size > FLOAT32_MAX:
            is_within = np.abs(finite) <= FLOAT32_MAX
            facts.n_beyond = int(finite.size - is_within.sum())
            detail = f"{share(facts.n_beyond, facts.n_rows)}, up to {number(size)}"
            facts.note("beyond float32", facts.n_beyond, detail)
            return np.asarray(finite[is_within])
    return np.asarray(finite)


def _read_shape(facts: ColumnFacts, finite: NDArray[Any], n_zeros: int) -> None:
    """Quartiles, extremes and frequent values of finite numbers, without sentinels."""
    if not finite.size + n_zeros:
        return
    rows = sample_rows(finite.size)
    few = finite if rows is None else finite[rows]
    if n_zeros:
        n_few = max(1, round(n_zeros * few.size / max(1, finite.size)))
        few = np.concatenate([few, np.zeros(min(n_few, 1 << 20), few.dtype)])
    levels, counts = np.unique(few, return_counts=True)
    top = float(levels[counts.argmax()])
    facts.n_levels = len(levels)
    facts.top_share = float(counts.max() / counts.sum())
    ends = [finite.min(), finite.max()] if finite.size else []
    ends += [0] if n_zeros else []
    facts.low, facts.high = float(min(ends)), float(max(ends))
    # Of a sparse column it goes without saying.
    if facts.is_constant and (not n_zeros or facts.low == facts.high):
        n_top = int((finite == top).sum()) + (n_zeros if top == 0 else 0)
        facts.note_top(number(top), n_top, finite.size + n_zeros)
    _read_quartiles(facts, few.astype(np.float64, copy=False), top, finite)


def _read_quartiles(
    facts: ColumnFacts,
    few: NDArray[np.float64],
    top: float,
    finite: NDArray[Any],
) -> None:
    facts.q1, facts.median, facts.q3 = np.quantile(few, (0.25, 0.5, 0.75)).tolist()
    first, third, of = facts.q1, facts.q3, ""
    low, high = facts.low, facts.high
    if first == third:
        # What is nearly always 0 is judged by what it is otherwise.
        few, finite = few[few != top], finite[finite != top]
        if few.size and finite.size:
            first, third = np.quantile(few, (0.25, 0.75)).tolist()
            low, high = float(finite.min()), float(finite.max())
            of = f" of what is not {number(top)}"
    spread = third - first
    if few.size < _FEW or not spread > 0 or facts.n_levels < 3:
        return
    above, below = (high - third) / spread, (first - low) / spread
    facts.extent = max(above, below, 0.0)
    extreme = high if above >= below else low
    detail = f"{number(extreme)} is {facts.extent:.0f} IQRs out{of}"
    following = _if_alone(finite, extreme, spread, facts.extent)
    if following is not None:
        detail += f", the next one is {number(following)}"
        facts.note("lone outlier", facts.extent, detail)
    elif facts.extent >= _FAR:
        facts.note("heavy tail", facts.extent, detail)


def _if_alone(
    finite: NDArray[Any], extreme: float, spread: float, extent: float
) -> float | None:
    """The value next to an extreme that is far from it, though not from all others."""
    if extent < _LONE:
        return None
    others = finite[finite != extreme]
    is_rare = finite.size - others.size <= 2
    if not others.size:
        return None
    following = float(others.max() if extreme > others[0] else others.min())
    gap = abs(extreme - following) / spread
    is_alone = gap >= max(_LONE, 0.5 * extent) and extent - gap < _FAR
    return following if is_rare and is_alone else None


def _read_order(facts: ColumnFacts, finite: NDArray[Any]) -> None:
    """Whether whole numbers count the rows, or tell them apart by name."""
    rows = sample_rows(finite.size)
    n_few = finite.size if rows is None else len(rows)
    if facts.n_levels < n_few or finite.size < FEW_ROWS:
        return
    if any((part % 1).any() for part in (finite[:FEW_ROWS], finite)):
        return
    label = str(facts.label).lower()
    is_named = label in ("id", "index", "unnamed: 0") or label.endswith(("_id", " id"))
    is_counted = facts.high - facts.low == finite.size - 1
    is_in_order = bool((finite[1:] > finite[:-1]).all())
    if is_named or is_counted or is_in_order:
        how = "in order" if is_in_order else "never the same"
        ends = f"{number(facts.low)} to {number(facts.high)}"
        facts.note("identifier", finite.size, f"{ends}, {how}")


def _read_precision(facts: ColumnFacts, dtype: np.dtype[Any]) -> None:
    """Whether float32 can tell the numbers apart."""
    size, spread = max(abs(facts.q1), abs(facts.q3)), facts.q3 - facts.q1
    step = float(np.spacing(np.float32(size)))
    if dtype.itemsize > 4 and 0 < spread < 100 * step:
        detail = f"quartiles {number(spread)} apart, float32 steps {number(step)} there"
        facts.note("float32 precision", step / spread, detail)


def read_numbers_in_text(facts: ColumnFacts, numbers: NDArray[np.float64]) -> None:
    """Sentinels and extremes of numbers that are kept as text.

    Parameters
    ----------
    facts : ColumnFacts
        To which they are added.
    numbers : ndarray of float
        Those of the sample.
    """
    numbers = numbers[np.isfinite(numbers)]
    found = find_numeric_sentinels(numbers)
    if found:
        facts.note_sentinels(found)
        numbers = numbers[~np.isin(numbers, [s.value for s in found])]
    if numbers.size:
        facts.low, facts.high = float(numbers.min()), float(numbers.max())
        values, counts = np.unique(numbers, return_counts=True)
        _read_quartiles(facts, numbers, float(values[counts.argmax()]), numbers)
