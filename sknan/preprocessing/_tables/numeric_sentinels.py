"""Search for numeric sentinels by their frequency and their distance from the rest."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Number of rows in the sample that is searched for frequent values, quantiles,
# categories and formats.
SAMPLE_SIZE = 1 << 16

# Number of known values below which distances and frequencies mean nothing.
_FEW = 20

# Maximum number of different sentinels of a column.
_MAX_SENTINELS = 8


def _repeated(digit: str, lengths: Iterable[int], last: str = "") -> set[float]:
    return {float(digit * (n - len(last)) + last) for n in lengths}


# Numbers that people and programs write for a missing value.
_CODES = {
    *_repeated("9", range(3, 16)),
    *(-v for v in _repeated("9", range(2, 16))),
    *(999.9, 999.99, 9999.9, 9999.99, -99.9, -99.99, -999.9, -999.99, -999.25),
    *(-9999.9, -9999.99, -32768.0, 32767.0, 65535.0),
    *(-(2.0**31), 2.0**31 - 1, 2.0**32 - 1, -(2.0**63), 2.0**63, 2.0**64),
    *(sign * 10.0**n for sign in (1, -1) for n in (20, 30, 36, 37)),
    *(sign * float(np.finfo(t).max) for sign in (1, -1) for t in ("f4", "f8")),
    9.969209968386869e36,  # netCDF
}

# Codes with so few digits that true values may be equal to them.
_SHORT_CODES = {99.0, 99.9, 99.99, -9.0, -1.0}

# Codes that occur together with one of the above: "not asked", "refused", "not known".
_COMPANIONS = {
    *(v for last in "678" for v in _repeated("9", range(2, 7), last)),
    *(-v for last in "678" for v in _repeated("9", range(2, 7), last)),
    *(sign * v for sign in (1, -1) for d in "78" for v in _repeated(d, range(2, 6))),
    *(-8.0, -7.0, -2.0, -3.0),
}

# Type of code of a number. The strongest type comes last, so that it wins.
_CODE_TYPES = {
    **dict.fromkeys(_COMPANIONS, "companion"),
    **dict.fromkeys(_SHORT_CODES, "short code"),
    **dict.fromkeys(_CODES, "code"),
}


_NUMBERS = (int, float, np.integer, np.floating)


class Sentinel(NamedTuple):
    """A value that seems to mean a missing value.

    Attributes
    ----------
    value : object
        Value as written in the column.
    n_cells : int
        Number of cells with this value.
    distance : float
        Distance from the nearest other value, in interquartile ranges of the other
        values; NaN for text.
    """

    value: Any
    n_cells: int
    distance: float = math.nan


@lru_cache(maxsize=4)
def sample_rows(n_rows: int, size: int = SAMPLE_SIZE) -> NDArray[np.int64] | None:
    """Return the sorted rows of a sample, always the same, or None for all rows."""
    if n_rows <= size:
        return None
    # One random row from each of `size` equal parts is cheap to draw and in order.
    offsets = np.arange(size) + np.random.default_rng(0).random(size)
    return (offsets * (n_rows / size)).astype(np.int64)


def find_numeric_sentinels(
    cells: NDArray[Any],
    *,
    n_zeros: int = 0,
    known: Sequence[Any] = (),
    codes: Collection[float] | None = None,
) -> list[Sentinel]:
    """Find the sentinels among finite numbers; see :func:`suspected_sentinels`.

    Parameters
    ----------
    cells : ndarray of shape (n_values,), int or float
        Finite values of a column.
    n_zeros : int, default=0
        Number of further zeros, which are not among the cells.
    known : sequence, default=()
        Sentinels of other columns.
    codes : collection of float or None, default=None
        The only values that can be sentinels; None for no restriction.

    Returns
    -------
    list of Sentinel
        Sentinels in no particular order.
    """
    if cells.size + n_zeros < _FEW or not cells.size:
        return []
    with np.errstate(over="ignore", invalid="ignore"):
        return _SentinelSearch(cells, n_zeros, known, codes).run()


class _Histogram(NamedTuple):
    """Distinct numbers in ascending order, as float64, and their counts."""

    values: NDArray[np.float64]
    counts: NDArray[np.int64]

    def count(self, value: float) -> int:
        i = int(np.searchsorted(self.values, value))
        is_present = i < len(self.values) and self.values[i] == value
        return int(self.counts[i]) if is_present else 0

    def without(self, removed: Iterable[float]) -> _Histogram:
        kept = ~np.isin(self.values, list(removed))
        return _Histogram(self.values[kept], self.counts[kept])

    def including(self, values: Iterable[float]) -> _Histogram:
        """Add the values that the sample has missed, with a count of 1."""
        new = sorted(v for v in set(values) if not self.count(v))
        i = np.searchsorted(self.values, new)
        return _Histogram(np.insert(self.values, i, new), np.insert(self.counts, i, 1))

    def quantile(self, fraction: float) -> float:
        ranks = np.cumsum(self.counts)
        return float(self.values[np.searchsorted(ranks, fraction * ranks[-1])])

    def range_within(self, share: float) -> float:
        return self.quantile(1 - share) - self.quantile(share)

    def spread(self) -> float:
        """Interquartile range; if that is 0, without the most frequent value."""
        few = self.without([self.values[self.counts.argmax()]])
        for part in (self, few):
            if len(part.values) > 1 and (spread := part.range_within(0.25)) > 0:
                return spread
        return self.range_within(0)

    def gap(self, value: float) -> float:
        """Distance between ``value`` and the nearest value of the histogram."""
        return float(np.abs(self.values - value).min())

    def count_around(self, value: float) -> int:
        """Largest count of the three values that are nearest to ``value``."""
        near = np.argsort(np.abs(self.values - value), kind="stable")[:3]
        return int(self.counts[near].max())

    def has_gap_around(self, value: float) -> bool:
        """Whether the gap next to ``value`` is five times the mean of the next gaps."""
        distances = np.sort(np.abs(self.values - value))[:10]
        nearest, farthest = float(distances[0]), float(distances[-1])
        return nearest >= 5 * (farthest - nearest) / (len(distances) - 1)


class _SentinelSearch:
    """Search of a column, which tests candidates until no further sentinel is found."""

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
        self.known = {float(v) for v in known if isinstance(v, _NUMBERS)}
        self.only_codes = codes is not None
        code_types = _CODE_TYPES if codes is None else dict.fromkeys(codes, "code")
        # Codes are rounded to the dtype of the column.
        self.code_types = {
            float(cells.dtype.type(v)): name
            for v, name in code_types.items()
            if _fits(v, cells)
        }
        rows = sample_rows(
            cells.size, max(1, SAMPLE_SIZE * cells.size // self.n_values)
        )
        sample = cells if rows is None else cells[rows]
        values, counts = np.unique(sample, return_counts=True)
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
            group = self._next(self.histogram.without(found), list(found))
            if not group:
                break
            found |= group
        # Values are returned in the dtype of the column, with all digits.
        return [
            Sentinel(
                self.cells[self.cells == value][0].item(), self.count(value), distance
            )
            for value, distance in found.items()
        ]

    def _next(self, rest: _Histogram, found: list[float]) -> dict[float, float]:
        """Return the distance of the next sentinel and of its companions, by value."""
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
        """Yield the extremes, the most frequent value, and codes with companions."""
        if not len(rest.values):
            return
        is_code = np.isin(rest.values, list(self.code_types)) & (rest.counts > 1)
        codes = rest.values[is_code].tolist()
        mode = float(rest.values[rest.counts.argmax()])
        ends = [float(rest.values[0]), float(rest.values[-1])]
        known = [v for v in self.known if rest.count(v)]
        single = dict.fromkeys([*ends, mode, *known, *codes])
        yield from ([v] for v in single if self.code_types.get(v) != "companion")
        for code in codes:
            if self.code_types[code] != "companion":
                others = [v for v in codes if v != code and _have_same_format(v, code)]
                others.sort(key=lambda v: -abs(v))
                for n in range(len(others), 0, -1):
                    yield [code, *others[:n]]

    def count(self, value: float) -> int:
        """Count a value in the whole column."""
        if value not in self._counts:
            n_implicit = self.n_zeros if value == 0 else 0
            self._counts[value] = int((self.cells == value).sum()) + n_implicit
        return self._counts[value]

    def _completed(self, others: _Histogram, suspects: list[float]) -> _Histogram:
        """Add the values next to the suspects, which a sample may have missed."""
        rest = self.cells[~np.isin(self.cells, np.array(suspects))]
        if not rest.size:
            return others  # only implicit zeros
        missed = [float(rest.min()), float(rest.max())]
        for value in suspects:
            below, above = rest[rest < value], rest[rest > value]
            missed += [float(below.max())] if below.size else []
            missed += [float(above.min())] if above.size else []
        return others.including(missed)

    def _is_suspect(self, value: float, others: _Histogram) -> bool:
        """Whether a value seems to be no true value of the column."""
        if self.count(value) < 2 or value == 0:
            return False
        evidence = _Evidence(value, others, self)
        if self.only_codes:
            return bool(evidence.code_type) and evidence.is_enough and evidence.is_far
        return evidence.is_huge or (
            evidence.is_enough
            and (
                (evidence.is_far and evidence.is_convincing_code)
                or evidence.is_unusual_negative
                or evidence.is_isolated_mode
                or (value in self.known and evidence.is_extreme)
            )
        )


class _Evidence:
    """Evidence for one suspect: type of code, frequency, distance from the others."""

    def __init__(
        self, value: float, others: _Histogram, search: _SentinelSearch
    ) -> None:
        self.value, self.others = value, others
        is_price = _is_price(value, others)
        self.code_type = "" if is_price else search.code_types.get(value, "")
        self.count, n_values = search.count(value), search.n_values
        self.share = self.count / n_values
        # The counts of the others are counts in the sample, too.
        self.sample_count = search.histogram.count(value)
        self.gap, self.spread = others.gap(value), others.spread()
        self.is_alone = self.gap >= 0.25 * abs(value - others.quantile(0.5))
        self.is_enough = self.count >= max(3, min(_FEW, math.ceil(0.0005 * n_values)))
        self.is_varied = len(others.values) >= 10

    @property
    def is_huge(self) -> bool:
        """Whether the value is a million times as large as all others."""
        ends = (self.others.quantile(0.005), self.others.quantile(0.995))
        size = max(map(abs, ends)) or float(np.abs(self.others.values).max())
        return self.is_alone and abs(self.value) >= max(1e9, 1e6 * size)

    @property
    def is_far(self) -> bool:
        """Whether the gap to the others is large compared with their spread."""
        core = self.others.range_within(0.005)
        return self.is_alone and self.gap >= max(3 * self.spread, 0.5 * core)

    @property
    def is_convincing_code(self) -> bool:
        """Whether it is a code; a short code must be farther than the others' range."""
        is_beyond = self.gap >= self.others.range_within(0)
        return self.code_type == "code" or bool(self.code_type and is_beyond)

    @property
    def is_unusual_negative(self) -> bool:
        """Whether it is the only negative value, and a code or unusually frequent."""
        if not (self.value < 0 <= self.others.values[0] and self.is_varied):
            return False
        around = self.others.count_around(self.value)
        is_frequent = self.count >= 10 and self.share >= 0.005
        has_gap = self.others.has_gap_around(self.value)
        if self.code_type == "code":
            is_peak = self.share >= 0.001 and self.sample_count >= 3 * around
            return has_gap or is_peak
        factor = 1 if has_gap else 3
        if self.code_type and is_frequent and self.sample_count >= factor * around:
            return True
        is_most = self.sample_count >= 10 * int(self.others.counts.max())
        return is_frequent and is_most and self.gap >= 0.5 * self.spread

    @property
    def is_isolated_mode(self) -> bool:
        """Whether the value is the most frequent one, and very far from all others."""
        is_frequent = self.count >= 10 and 0.005 <= self.share <= 0.5
        is_most = self.sample_count >= 3 * int(self.others.counts.max())
        full_range = self.others.range_within(0)
        is_distant = self.gap >= max(10 * self.spread, 3 * full_range)
        is_isolated = self.is_alone and self.is_varied and is_distant
        return is_isolated and is_frequent and is_most

    @property
    def is_extreme(self) -> bool:
        """Whether the value is outside the range of the others, beyond a gap."""
        low, high = self.others.values[0], self.others.values[-1]
        is_outside = not low < self.value < high
        return is_outside and abs(self.value) >= 10 and self.gap >= 0.5 * self.spread


def _fits(value: float, cells: NDArray[Any]) -> bool:
    """Return whether a number is representable in the dtype of the cells."""
    if cells.dtype.kind == "f":
        return abs(value) <= float(np.finfo(cells.dtype).max)
    limits = np.iinfo(cells.dtype)
    return value.is_integer() and limits.min <= int(value) <= limits.max


def _is_price(value: float, others: _Histogram) -> bool:
    """Return whether other values end in nines too, as prices do."""
    whole = np.round(np.abs(others.values) * (100 if value % 1 else 1))
    ends_alike = (whole % 100 == 99).mean() >= 0.1 or (whole % 10 == 9).mean() >= 0.5
    return value > 0 and bool(ends_alike)


def _have_same_format(value: float, code: float) -> bool:
    """Return whether two numbers have the same sign and number of digits."""
    return (value < 0) == (code < 0) and len(f"{value:g}") == len(f"{code:g}")
