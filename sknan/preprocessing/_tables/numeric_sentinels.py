"""Numbers that stand for "missing": how often they repeat, and how far out they lie."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["SAMPLE_SIZE", "Sentinel", "find_numeric_sentinels", "sample_rows"]

# Rows in which frequent values, quantiles, levels and formats are looked up.
SAMPLE_SIZE = 1 << 16

# Fewer known values tell nothing of what is far or frequent.
_FEW = 20

# At most so many different sentinels are sought in a column.
_MAX_SENTINELS = 8


def _repeated(digit: str, lengths: Iterable[int], last: str = "") -> set[float]:
    return {float(digit * (n - len(last)) + last) for n in lengths}


# What people and programs write for "missing", if it repeats and lies far out.
_CODES = {
    *_repeated("9", range(3, 16)),
    *(-v for v in _repeated("9", range(2, 16))),
    *(999.9, 999.99, 9999.9, 9999.99, -99.9, -99.99, -999.9, -999.99, -999.25),
    *(-9999.9, -9999.99, -32768.0, 32767.0, 65535.0),
    *(-(2.0**31), 2.0**31 - 1, 2.0**32 - 1, -(2.0**63), 2.0**63, 2.0**64),
    *(sign * 10.0**n for sign in (1, -1) for n in (20, 30, 36, 37)),
    *(sign * float(np.finfo(t).max) for sign in (1, -1) for t in ("f4", "f8")),
    9.969209968386869e36,  # of netCDF
}

# The same, of so few digits that true values look like them.
_SHORT_CODES = {99.0, 99.9, 99.99, -9.0, -1.0}

# Beside one of these: not asked, refused, does not know.
_COMPANIONS = {
    *(v for last in "678" for v in _repeated("9", range(2, 7), last)),
    *(-v for last in "678" for v in _repeated("9", range(2, 7), last)),
    *(sign * v for sign in (1, -1) for d in "78" for v in _repeated(d, range(2, 6))),
    *(-8.0, -7.0, -2.0, -3.0),
}

# Strength of a value's looks, the strongest last so that it wins.
_LOOKS = {
    **dict.fromkeys(_COMPANIONS, "companion"),
    **dict.fromkeys(_SHORT_CODES, "short code"),
    **dict.fromkeys(_CODES, "code"),
}


class Sentinel(NamedTuple):
    """A value under suspicion.

    Attributes
    ----------
    value : object
        As it stands in the column.
    n_cells : int
        How often.
    distance : float
        How many interquartile ranges of the others lie between it and the nearest of
        them; NaN for text.
    """

    value: Any
    n_cells: int
    distance: float = math.nan


@lru_cache(maxsize=4)
def sample_rows(n_rows: int, size: int = SAMPLE_SIZE) -> NDArray[np.int64] | None:
    """Rows to look at: a sample in order, the same each time, or None for all."""
    if n_rows <= size:
        return None
    # One row at random out of each stretch: drawn at no cost, and in order.
    offsets = np.arange(size) + np.random.default_rng(0).random(size)
    return (offsets * (n_rows / size)).astype(np.int64)


def find_numeric_sentinels(
    cells: NDArray[Any],
    *,
    n_zeros: int = 0,
    known: Sequence[Any] = (),
    codes: Collection[float] | None = None,
) -> list[Sentinel]:
    """The sentinels among finite numbers; see :func:`suspected_sentinels`.

    Parameters
    ----------
    cells : ndarray of shape (n_values,), int or float
        Finite.
    n_zeros : int, default=0
        Zeros that are not among them.
    known : sequence, default=()
        Sentinels of other columns.
    codes : collection of float or None, default=None
        The only values that can be sentinels; None for all that may be.

    Returns
    -------
    list of Sentinel
        In no order.
    """
    if cells.size + n_zeros < _FEW or not cells.size:
        return []
    with np.errstate(over="ignore", invalid="ignore"):
        return _Search(cells, n_zeros, known, codes).run()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating))


class _Histogram(NamedTuple):
    """Distinct numbers in order, as float64, and how many of each there are."""

    values: NDArray[np.float64]
    counts: NDArray[np.int64]

    def count(self, value: float) -> int:
        at = int(np.searchsorted(self.values, value))
        is_there = at < len(self.values) and self.values[at] == value
        return int(self.counts[at]) if is_there else 0

    def without(self, gone: Iterable[float]) -> _Histogram:
        kept = ~np.isin(self.values, list(gone))
        return _Histogram(self.values[kept], self.counts[kept])

    def including(self, values: Iterable[float]) -> _Histogram:
        """With these values too, once each, where a sample has missed them."""
        new = sorted(v for v in set(values) if not self.count(v))
        at = np.searchsorted(self.values, new)
        return _Histogram(
            np.insert(self.values, at, new), np.insert(self.counts, at, 1)
        )

    def quantile(self, fraction: float) -> float:
        ranks = np.cumsum(self.counts)
        return float(self.values[np.searchsorted(ranks, fraction * ranks[-1])])

    def range_within(self, share: float) -> float:
        return self.quantile(1 - share) - self.quantile(share)

    def spread(self) -> float:
        """Interquartile range; where that is 0, of all but the most frequent value."""
        few = self.without([self.values[self.counts.argmax()]])
        for part in (self, few):
            if len(part.values) > 1 and (spread := part.range_within(0.25)) > 0:
                return spread
        return self.range_within(0)

    def gap(self, value: float) -> float:
        """Distance to the nearest other value."""
        return float(np.abs(self.values - value).min())

    def count_around(self, value: float) -> int:
        """The largest count of the three nearest values."""
        near = np.argsort(np.abs(self.values - value), kind="stable")[:3]
        return int(self.counts[near].max())

    def is_off(self, value: float) -> bool:
        """Whether a gap sets the value apart, five times as wide as those beyond."""
        away = np.sort(np.abs(self.values - value))[:10]
        return float(away[0]) >= 5 * float(away[-1] - away[0]) / (len(away) - 1)


class _Search:
    """Candidates put to the test one after another, until none is left."""

    def __init__(
        self,
        cells: NDArray[Any],
        n_zeros: int,
        known: Sequence[Any],
        codes: Collection[float] | None,
    ) -> None:
        self.cells = cells
        self.n_values = cells.size + n_zeros
        self.n_zeros = n_zeros
        self.known = {float(v) for v in known if _is_number(v)}
        self.only_codes = codes is not None
        looks = _LOOKS if codes is None else dict.fromkeys(codes, "code")
        # As the dtype of the column rounds them.
        self.looks = {
            float(cells.dtype.type(v)): name
            for v, name in looks.items()
            if _fits(v, cells)
        }
        rows = sample_rows(
            cells.size, max(1, SAMPLE_SIZE * cells.size // self.n_values)
        )
        few = cells if rows is None else cells[rows]
        values, counts = np.unique(few, return_counts=True)
        histogram = _Histogram(values.astype(np.float64), counts)
        if n_zeros:
            share = counts.sum() / cells.size
            histogram = histogram.including([0.0])
            histogram.counts[histogram.values == 0] += int(n_zeros * share)
        self.is_exact = cells.size == counts.sum()
        self.histogram = histogram.including([float(cells.min()), float(cells.max())])
        self._counts: dict[float, int] = {}

    def run(self) -> list[Sentinel]:
        found: dict[float, float] = {}
        while len(found) < _MAX_SENTINELS:
            rest = self.histogram.without(found)
            group = self._next(rest, list(found))
            if not group:
                break
            found |= group
        # As it stands in the column: whole where that is, and to the last digit.
        return [
            Sentinel(
                self.cells[self.cells == value][0].item(), self._count(value), distance
            )
            for value, distance in found.items()
        ]

    def _next(self, rest: _Histogram, found: list[float]) -> dict[float, float]:
        """One sentinel, or one with its companions: value to distance."""
        for group in self._groups(rest):
            others = rest.without(group)
            if others.counts.sum() < _FEW or len(others.values) < 2:
                continue
            if not all(self._is_suspect(v, others) for v in group):
                continue
            if not self.is_exact:
                others = self._completed(others, [*group, *found])
                if not all(self._is_suspect(v, others) for v in group):
                    continue
            return {v: others.gap(v) / others.spread() for v in group}
        return {}

    def _groups(self, rest: _Histogram) -> Iterator[list[float]]:
        """The extremes, the most frequent, and what looks like a code."""
        if not len(rest.values):
            return
        is_coded = np.isin(rest.values, list(self.looks)) & (rest.counts > 1)
        coded = rest.values[is_coded].tolist()
        mode = float(rest.values[rest.counts.argmax()])
        ends = [float(rest.values[0]), float(rest.values[-1])]
        known = [v for v in self.known if rest.count(v)]
        alone = dict.fromkeys([*ends, mode, *known, *coded])
        yield from ([v] for v in alone if self.looks.get(v) != "companion")
        for leader in coded:
            if self.looks[leader] != "companion":
                beside = [v for v in coded if v != leader and _are_kin(v, leader)]
                beside.sort(key=lambda v: -abs(v))
                for n in range(len(beside), 0, -1):
                    yield [leader, *beside[:n]]

    def _count(self, value: float) -> int:
        """How often the value is in the whole column."""
        if value not in self._counts:
            n_hidden = self.n_zeros if value == 0 else 0
            self._counts[value] = int((self.cells == value).sum()) + n_hidden
        return self._counts[value]

    def _completed(self, others: _Histogram, gone: list[float]) -> _Histogram:
        """The others, with those next to the suspects that a sample has missed."""
        exactly = self.cells[~np.isin(self.cells, np.array(gone))]
        if not exactly.size:
            return others  # zeros that are not stored
        missed = [float(exactly.min()), float(exactly.max())]
        for value in gone:
            below, above = exactly[exactly < value], exactly[exactly > value]
            missed += [float(below.max())] if below.size else []
            missed += [float(above.min())] if above.size else []
        return others.including(missed)

    def _is_suspect(self, value: float, others: _Histogram) -> bool:
        """Whether a value is none of the others' kind."""
        count = self._count(value)
        if count < 2 or value == 0:
            return False
        case = _Case(
            value,
            "" if _is_price(value, others) else self.looks.get(value, ""),
            count,
            self.n_values,
            self.histogram.count(value),
            others,
        )
        if self.only_codes:
            return bool(case.looks) and case.is_enough and case.is_far
        return case.is_huge or (
            case.is_enough
            and (
                (case.is_far and case.looks_like_a_code)
                or case.is_odd_negative
                or case.is_in_another_world
                or (value in self.known and case.is_extreme)
            )
        )


class _Case:
    """A value, how it looks, how often it is, and what the others are like."""

    def __init__(
        self,
        value: float,
        looks: str,
        count: int,
        n_values: int,
        seen: int,
        others: _Histogram,
    ) -> None:
        self.value, self.looks, self.others = value, looks, others
        self.count, self.share = count, count / n_values
        # How often in the sample, to be held against the counts of the others.
        self.seen = seen
        self.gap, self.spread = others.gap(value), others.spread()
        self.is_alone = self.gap >= 0.25 * abs(value - others.quantile(0.5))
        self.is_enough = count >= max(3, min(_FEW, math.ceil(0.0005 * n_values)))
        self.is_varied = len(others.values) >= 10

    @property
    def is_huge(self) -> bool:
        """A million times as large as all others."""
        ends = (self.others.quantile(0.005), self.others.quantile(0.995))
        size = max(map(abs, ends)) or float(np.abs(self.others.values).max())
        return self.is_alone and abs(self.value) >= max(1e9, 1e6 * size)

    @property
    def is_far(self) -> bool:
        """Apart from the others by more than they are from each other."""
        core = self.others.range_within(0.005)
        return self.is_alone and self.gap >= max(3 * self.spread, 0.5 * core)

    @property
    def looks_like_a_code(self) -> bool:
        """A short one only where it is farther out than the others reach."""
        is_beyond = self.gap >= self.others.range_within(0)
        return self.looks == "code" or bool(self.looks and is_beyond)

    @property
    def is_odd_negative(self) -> bool:
        """The only one below zero, and a code, or far more frequent than others."""
        if not (self.value < 0 <= self.others.values[0] and self.is_varied):
            return False
        around = self.others.count_around(self.value)
        is_frequent = self.count >= 10 and self.share >= 0.005
        is_off = self.others.is_off(self.value)
        if self.looks == "code":
            is_peak = self.share >= 0.001 and self.seen >= 3 * around
            return is_off or is_peak
        if self.looks and is_frequent and self.seen >= (1 if is_off else 3) * around:
            return True
        is_most = self.seen >= 10 * int(self.others.counts.max())
        return is_frequent and is_most and self.gap >= 0.5 * self.spread

    @property
    def is_in_another_world(self) -> bool:
        """Frequent, and so far out that no value between is ever taken."""
        is_frequent = self.count >= 10 and 0.005 <= self.share <= 0.5
        is_most = self.seen >= 3 * int(self.others.counts.max())
        full_range = self.others.range_within(0)
        is_gone = self.gap >= max(10 * self.spread, 3 * full_range)
        return self.is_alone and self.is_varied and is_frequent and is_most and is_gone

    @property
    def is_extreme(self) -> bool:
        """The first or last value, with a gap before the others."""
        low, high = self.others.values[0], self.others.values[-1]
        is_outside = not low < self.value < high
        return is_outside and abs(self.value) >= 10 and self.gap >= 0.5 * self.spread


def _fits(value: float, cells: NDArray[Any]) -> bool:
    """Whether the dtype of the cells can hold a number."""
    if cells.dtype.kind == "f":
        return abs(value) <= float(np.finfo(cells.dtype).max)
    limits = np.iinfo(cells.dtype)
    return value.is_integer() and limits.min <= int(value) <= limits.max


def _is_price(value: float, others: _Histogram) -> bool:
    """Whether others end in nines too, as prices do."""
    whole = np.round(np.abs(others.values) * (100 if value % 1 else 1))
    ends_alike = (whole % 100 == 99).mean() >= 0.1 or (whole % 10 == 9).mean() >= 0.5
    return value > 0 and bool(ends_alike)


def _are_kin(value: float, code: float) -> bool:
    """Whether they have the same sign and as many digits."""
    return (value < 0) == (code < 0) and len(f"{value:g}") == len(f"{code:g}")
