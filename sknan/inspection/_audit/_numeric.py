"""Statistics and faults of a column of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sknan._utils.validation import FLOAT32_MAX
from sknan.inspection._audit._column_profile import MIN_ROWS, ColumnProfile, sampled
from sknan.inspection._audit._formatting import number, share
from sknan.preprocessing._tables.float32_offset import float32_step
from sknan.preprocessing._tables.numeric_sentinels import (
    find_numeric_sentinels,
    sample_rows,
)
from sknan.preprocessing._tables.typed_column import TypedColumn

# Interquartile ranges beyond the quartiles from which a tail is heavy. An exponential
# column of a billion rows has no such value.
_HEAVY_TAIL = 20.0

# Interquartile ranges between a lone outlier and the next value.
_LONE = 5.0

# Fewer known values do not show the shape of a distribution.
_MIN_VALUES = 20


def profile_numbers(
    profile: ColumnProfile, column: TypedColumn, known: Sequence[Any]
) -> None:
    """Add statistics and faults of a column of numbers or durations to its profile.

    ``known`` has the sentinels of other columns.
    """
    cells = column.cells
    if column.holds == "durations":
        cells = cells / np.timedelta64(1, "s")
    finite = _add_nonfinite(profile, cells)
    finite = _without_sentinels(profile, finite, column.n_zeros, known)
    _add_distribution(profile, finite, column.n_zeros)
    if finite.size == profile.n_rows and not profile.has("constant"):
        _add_precision(profile, finite.dtype)
        if column.holds == "numbers":
            _add_identifier(profile, finite)


def profile_numbers_in_text(
    profile: ColumnProfile, numbers: NDArray[np.float64]
) -> None:
    """Add sentinels, quartiles and extremes of numbers that are stored as text."""
    finite = _without_sentinels(profile, numbers[np.isfinite(numbers)])
    if finite.size:
        profile.low, profile.high = float(finite.min()), float(finite.max())
        values, counts = np.unique(finite, return_counts=True)
        _add_quartiles(profile, finite, float(values[counts.argmax()]), finite)


def _without_sentinels(
    profile: ColumnProfile,
    finite: NDArray[Any],
    n_zeros: int = 0,
    known: Sequence[Any] = (),
) -> NDArray[Any]:
    """Add suspected sentinels to the profile, and return the other numbers."""
    found = find_numeric_sentinels(finite, n_zeros=n_zeros, known=known)
    profile.add_sentinels(found)
    return finite[~np.isin(finite, [s.value for s in found])] if found else finite


def _add_nonfinite(profile: ColumnProfile, cells: NDArray[Any]) -> NDArray[Any]:
    """Count infinite cells and cells beyond float32, and return the others."""
    if cells.dtype.kind != "f" or not cells.size:
        return cells
    low, high = float(cells.min()), float(cells.max())
    if low >= -FLOAT32_MAX and high <= FLOAT32_MAX:
        return cells
    finite: NDArray[Any] = cells[np.isfinite(cells)]
    profile.n_infinite = cells.size - finite.size - profile.n_missing
    if profile.n_infinite:
        n_below = int(np.isneginf(cells).sum())
        signs = f", {n_below} of them negative" if n_below else ""
        detail = f"{share(profile.n_infinite, profile.n_rows)}{signs}"
        profile.add("infinite", profile.n_infinite, detail)
    size = float(np.abs(finite).max(initial=0.0))
    if size > FLOAT32_MAX:
        is_within = np.abs(finite) <= FLOAT32_MAX
        profile.n_beyond = int(finite.size - is_within.sum())
        detail = f"{share(profile.n_beyond, profile.n_rows)}, up to {number(size)}"
        profile.add("beyond float32", profile.n_beyond, detail)
        finite = finite[is_within]
    return finite


def _add_distribution(
    profile: ColumnProfile, finite: NDArray[Any], n_zeros: int
) -> None:
    """Add quartiles, extremes and the most frequent value of finite numbers."""
    if not finite.size + n_zeros:
        return
    sample = sampled(finite)
    if n_zeros:
        n_sampled = max(1, round(n_zeros * sample.size / max(1, finite.size)))
        zeros = np.zeros(min(n_sampled, 1 << 20), sample.dtype)
        sample = np.concatenate([sample, zeros])
    values, counts = np.unique(sample, return_counts=True)
    top = float(values[counts.argmax()])
    profile.n_distinct = len(values)
    profile.top_share = float(counts.max() / counts.sum())
    extremes = [finite.min(), finite.max()] if finite.size else []
    extremes += [0] if n_zeros else []
    profile.low, profile.high = float(min(extremes)), float(max(extremes))
    # A sparse column is expected to be nearly constant.
    if profile.is_nearly_constant and (not n_zeros or profile.low == profile.high):
        n_top = int((finite == top).sum()) + (n_zeros if top == 0 else 0)
        profile.add_top(number(top), n_top, finite.size + n_zeros)
    _add_quartiles(profile, sample.astype(np.float64, copy=False), top, finite)


def _add_quartiles(
    profile: ColumnProfile,
    sample: NDArray[np.float64],
    top: float,
    finite: NDArray[Any],
) -> None:
    """Add the quartiles, and a lone outlier or a heavy tail beyond them."""
    quartiles = np.quantile(sample, (0.25, 0.5, 0.75)).tolist()
    profile.q1, profile.median, profile.q3 = quartiles
    first, third, subset = profile.q1, profile.q3, ""
    low, high = profile.low, profile.high
    if first == third:
        # A column that is mostly 0 is judged by its other values.
        sample, finite = sample[sample != top], finite[finite != top]
        if sample.size and finite.size:
            first, third = np.quantile(sample, (0.25, 0.75)).tolist()
            low, high = float(finite.min()), float(finite.max())
            subset = f" of values other than {number(top)}"
    spread = third - first
    if sample.size < _MIN_VALUES or not spread > 0 or profile.n_distinct < 3:
        return
    above, below = (high - third) / spread, (first - low) / spread
    profile.extent = max(above, below, 0.0)
    extreme = high if above >= below else low
    detail = f"{number(extreme)} is {profile.extent:.0f} IQRs beyond the quartiles"
    detail += subset
    next_value = _next_to_lone_outlier(finite, extreme, spread, profile.extent)
    if next_value is not None:
        detail += f", the next value is {number(next_value)}"
        profile.add("lone outlier", profile.extent, detail)
    elif profile.extent >= _HEAVY_TAIL:
        profile.add("heavy tail", profile.extent, detail)


def _next_to_lone_outlier(
    finite: NDArray[Any], extreme: float, spread: float, extent: float
) -> float | None:
    """Return the value next to an extreme that is a lone outlier, else None."""
    if extent < _LONE:
        return None
    others = finite[finite != extreme]
    if not others.size or finite.size - others.size > 2:
        return None
    next_value = float(others.max() if extreme > others[0] else others.min())
    gap = abs(extreme - next_value) / spread
    is_alone = gap >= max(_LONE, 0.5 * extent) and extent - gap < _HEAVY_TAIL
    return next_value if is_alone else None


def _add_identifier(profile: ColumnProfile, finite: NDArray[Any]) -> None:
    """Observe distinct integers that are named, numbered or sorted as identifiers."""
    rows = sample_rows(finite.size)
    n_sampled = finite.size if rows is None else len(rows)
    if profile.n_distinct < n_sampled or finite.size < MIN_ROWS:
        return
    if any((part % 1).any() for part in (finite[:MIN_ROWS], finite)):
        return
    label = str(profile.label).lower()
    is_named = label in ("id", "index", "unnamed: 0") or label.endswith(("_id", " id"))
    is_numbered = profile.high - profile.low == finite.size - 1
    is_sorted = bool((finite[1:] > finite[:-1]).all())
    if is_named or is_numbered or is_sorted:
        order = "in order" if is_sorted else "all different"
        extremes = f"{number(profile.low)} to {number(profile.high)}"
        profile.add("identifier", finite.size, f"{extremes}, {order}")


def _add_precision(profile: ColumnProfile, dtype: np.dtype[Any]) -> None:
    """Observe numbers that are so close together that float32 cannot separate them."""
    step = float32_step(profile.q1, profile.q3)
    if dtype.itemsize > 4 and step is not None:
        spread = profile.q3 - profile.q1
        detail = f"interquartile range {number(spread)}, float32 spacing {number(step)}"
        profile.add("float32 precision", step / spread, detail)
