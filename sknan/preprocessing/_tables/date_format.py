"""Format, time zone and range of a column of dates, learned in fit."""

from __future__ import annotations

import contextlib
import re
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.api import guess_datetime_format

from sknan._utils.outside import is_of_signal, unless
from sknan._utils.warn import warn

# Share of the known cells of a text column that must be numbers, or dates, for the
# column to be read as such.
MIN_SHARE = 0.9

MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sep(?:t(?:ember)?)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:\s?[ap]\.?m\.?)?"
_ZONE = r"(?:\s?(?:z|utc|[+-]\d{2}:?\d{2}))?"
_DATE = re.compile(
    rf"(?P<day>\d{{4}}-\d{{1,2}}-\d{{1,2}}|\d{{4}}/\d{{1,2}}/\d{{1,2}}"
    rf"|\d{{1,2}}(?P<mark>[/.-])\d{{1,2}}(?P=mark)(?:\d{{4}}|\d{{2}})"
    rf"|\d{{1,2}}[ -]{MONTH}[ -]\d{{2,4}}|{MONTH} \d{{1,2}},? \d{{4}})"
    rf"(?:[t ]\s?{CLOCK}{_ZONE})?",
    re.IGNORECASE,
)

_CLOCK_AND_ZONE = re.compile(rf"[t ]\s?{CLOCK}({_ZONE}(?::\d\d)?)\s*$", re.IGNORECASE)

# Format of pandas for all dates in ISO 8601.
ISO = "ISO8601"

# Year of two digits after day and month, and the half of the day after the time.
_SHORT_YEAR = re.compile(
    r"^(\d{1,2}([/. -])(?:\d{1,2}|[a-z]{3,9})\2)(\d\d)(?!\d)", re.I
)
_HALF_OF_DAY = re.compile(r"(\s?)([ap])\.?m\b\.?", re.I)
_WORD = re.compile(rf"\b({MONTH})(?![a-z])|([ap])\.?m\b\.?", re.I)
_HOURS = re.compile(r"%H(:%M(?::%S(?:\.%f)?)?)")

# Day and month in any order before the year. By mark between them, whether the day is
# first, with an example: both if dates contradict each other, none if nothing decides.
_DAY_AND_MONTH = re.compile(r"(\d{1,2})([/.-])(\d{1,2})\2\d")
_Orders = dict[str, dict[bool, str]]

# Texts with digits at the same places, of which formats are guessed until one is known.
_MOST_TRIES = 10

# Years before 1678 and after 2261, which pandas 2 cannot read. The calendar repeats
# itself after 400 years.
_FAR_YEAR = re.compile(r"(?<!\d)(?!0000)([01]\d{3}|2[2-9]\d\d|[3-9]\d{3})(?!\d)")
_FIRST_NEAR_YEAR, _CYCLE, _DAYS_OF_CYCLE = 1700, 400, 146_097

# Years that 64 bits of microseconds represent, before and after 0.
_LAST_YEAR = 290_000

# Units of a number of seconds since 1970 in JSON and databases.
_PER_SECOND = (1.0, 1e3, 1e6, 1e9)

# UTC offset with seconds: local time before the standard zones, Paris until 1911.
_OFFSET_WITH_SECONDS = re.compile(r"[+-]\d\d:\d\d:\d\d$")

_TEN_YEARS = 315_576_000.0


@dataclass
class DateFormat:
    """Format, time zone and range of a column of dates, by which others are read.

    Times without a zone are UTC, as in skrub's ``ToDatetime``.

    Attributes
    ----------
    zone : tzinfo or None
        Time zone of the column in ``fit``; None if it had none.
    formats : tuple of str
        Formats of text, by which text is read one after the other.
    first, last : float
        Seconds since 1970 of the earliest and the latest date in ``fit``.
    """

    zone: tzinfo | None = None
    formats: tuple[str, ...] = ()
    first: float = np.nan
    last: float = np.nan

    @classmethod
    def of_text(cls, texts: pd.Series, column: str = "") -> DateFormat | None:
        """Return the formats of text, or None if less than nine in ten cells have one.

        Parameters
        ----------
        texts : Series
            Known cells, each as often as it occurs.
        column : str, default=""
            Name of the column, for a warning if nine in ten cells are dates, but too
            many have no known format, or some the day first and others the month.
            Without a name there is no warning.
        """
        counts = texts.value_counts(sort=False)
        distinct = pd.Series(counts.index, dtype=object).map(as_pandas_reads)
        if distinct.empty:
            return None
        format_, is_read = _best_format(distinct, distinct.iloc[0])
        if is_read.all():
            return cls(_zone_of(distinct, format_), (format_,))
        is_date = are_dates(distinct)
        weights, enough = counts.to_numpy(), MIN_SHARE * counts.sum()
        if weights[is_date].sum() < enough:
            return None
        dates = distinct[is_date]
        orders = _orders_by_mark(dates)
        both = next((texts for texts in orders.values() if len(texts) == 2), None)
        if both:
            first, second = both.values()
            problem = (
                f"with the day first and with the month first, for example {first!r} "
                f"and {second!r}"
            )
        else:
            found, unread = cls._of_dates_by_shape(dates, orders)
            if weights[is_date].sum() - weights[unread.index].sum() >= enough:
                return found
            problem = f"of unknown formats, for example {unread.iloc[0]!r}"
        if column:
            warn(
                f"Column {column!r} contains dates {problem}: they count as "
                "categories. Convert the column to dates first, for example by "
                "pandas.to_datetime(column, format=...)."
            )
        return None

    @classmethod
    def _of_dates_by_shape(
        cls, texts: pd.Series, orders: _Orders
    ) -> tuple[DateFormat, pd.Series]:
        """Return formats of dates, and the texts that have none.

        Texts with digits at the same places usually have the same format.
        """
        formats: list[str] = []
        zones: set[tzinfo | None] = set()
        shapes = texts.map(lambda text: re.sub(r"\d", "0", text))
        rest, unread = texts, []
        while len(rest):
            counts = shapes[rest.index].value_counts()
            same = rest[shapes[rest.index] == counts.index[0]]
            for text in same.iloc[:: -(-len(same) // _MOST_TRIES)]:
                format_, is_read = _best_format(rest, text, orders)
                if is_read.any():
                    formats.append(format_)
                    zones.add(_zone_of(rest[is_read], format_))
                    rest = rest[~is_read]
                    break
            else:
                unread.append(same)
                rest = rest.drop(same.index)
        left = pd.concat(unread).sort_index() if unread else rest
        return cls(zones.pop() if len(zones) == 1 else UTC, tuple(formats)), left

    def learn_range(self, dates: pd.Series) -> None:
        """Learn the range of the dates in ``fit``, which gives the unit of numbers."""
        seconds = _seconds(dates.dropna())
        if len(seconds):
            self.first, self.last = float(seconds.min()), float(seconds.max())

    def of_dates(self, dates: pd.Series) -> pd.Series:
        """Return dates as local times of the zone, without the zone.

        Dates that microseconds cannot represent are missing.
        """
        if dates.dt.unit in ("s", "ms"):
            dates = dates.mask(dates.dt.year.abs() > _LAST_YEAR)
        is_aware = dates.dt.tz is not None
        if is_aware or self.zone is not None:
            aware = dates if is_aware else dates.dt.tz_localize("UTC")
            dates = aware.dt.tz_convert(self.zone or "UTC").dt.tz_localize(None)
        return dates.astype("datetime64[us]").reset_index(drop=True)

    def of_text_or_numbers(self, texts: pd.Series) -> pd.Series:
        """Return dates of text in the format of ``fit``, in ISO 8601, or of numbers.

        Numbers are the seconds, milliseconds, microseconds or nanoseconds since 1970.
        """
        texts = texts.reset_index(drop=True)
        dates = pd.Series(np.full(len(texts), "NaT", "datetime64[us]"))
        for format_ in dict.fromkeys((*self.formats, ISO)):
            rest = texts[dates.isna() & texts.notna()]
            if rest.empty:
                return dates
            dates[rest.index] = self.of_dates(read_dates(rest, format_)).to_numpy()
        rest = texts[dates.isna() & texts.notna()]
        iso = self.of_dates(read_dates(rest.map(as_pandas_reads), ISO))
        numbers = pd.to_numeric(rest, errors="coerce").to_numpy(np.float64)
        dates[rest.index] = iso.fillna(self.of_numbers(numbers)).to_numpy()
        return dates

    def of_numbers(self, numbers: NDArray[np.float64]) -> pd.Series:
        """Return dates of the unit in which most are near those of ``fit``."""
        margin = max(self.last - self.first, _TEN_YEARS)
        near = [
            np.abs(numbers / unit - (self.first + self.last) / 2)
            <= (self.last - self.first) / 2 + margin
            for unit in _PER_SECOND
        ]
        best = int(np.argmax([known.sum() for known in near]))
        dates = np.full(len(numbers), "NaT", "datetime64[us]")
        seconds = numbers[near[best]] / _PER_SECOND[best]
        dates[near[best]] = np.round(seconds * 1e6).astype("datetime64[us]")
        return self.of_dates(pd.Series(dates).dt.tz_localize("UTC"))

    def change_of_zone(self, aware: pd.Series | None, name: str) -> str:
        """Return a sentence if one of two columns has a time zone, unless it is UTC.

        Parameters
        ----------
        aware : Series or None
            Dates of a later column, if they have a zone.
        name : str
            Name of the column.
        """
        return self._change(None if aware is None else aware.dt.tz, name)

    def change_of_offset(self, texts: pd.Series, name: str) -> str:
        """Return a sentence if only text or only the column in ``fit`` has UTC offsets.

        Parameters
        ----------
        texts : Series
            Texts of a later column. Those without a time of day do not count.
        name : str
            Name of the column.
        """
        found = texts.dropna().map(_CLOCK_AND_ZONE.search).dropna()
        zones = found.map(lambda match: match[1].strip().upper())
        is_other = zones.str.strip("UTCZ+-:0") != ""
        chosen = zones[is_other] if self.zone is None else zones[zones == ""]
        if chosen.empty:
            return ""
        change = self._change(
            chosen.iloc[0] or None, name, "pandas.to_datetime(column)."
        )
        if not change or len(chosen) == len(zones):
            return change
        verb = "has" if len(chosen) == 1 else "have"
        some = f"{len(chosen)} of the {len(zones)} times of column {name!r} {verb}"
        each = "column.map(pandas.Timestamp).map(lambda t: "
        if self.zone is None:
            return (
                f"{some} a time zone, such as {chosen.iloc[0]}, and none had one in "
                "fit: they are converted to UTC. If fit had local times, pass "
                f"{each}t.tz_localize(None))."
            )
        return (
            f"{some} no time zone, and the column had {self.zone} in fit: they are "
            f"read as UTC. Localize them: {each}t if t.tz else t.tz_localize("
            f"'{self.zone}'))."
        )

    def _change(self, zone: tzinfo | str | None, name: str, read: str = "") -> str:
        """Return a sentence if one of two columns has a zone, unless it is UTC."""
        aware = self.zone if zone is None else zone
        is_utc = not isinstance(aware, str) and _is_utc(aware)
        if (zone is None) == (self.zone is None) or is_utc:
            return ""
        if zone is None:
            return (
                f"Column {name!r} has no time zone, and had {self.zone} in fit: its "
                f"times are read as UTC. Localize it: {read}dt.tz_localize("
                f"'{self.zone}')."
            )
        return (
            f"Column {name!r} has the time zone {zone}, and had none in fit: its times "
            f"are converted to UTC. Pass {read}dt.tz_localize(None) if fit had local "
            "times."
        )


def read_dates(texts: pd.Series, format_: str) -> pd.Series:
    """Return the dates of texts in UTC, NaT where a text has another format.

    Parameters
    ----------
    texts : Series
        Texts and missing values.
    format_ : str
        Format of ``pandas.to_datetime``.
    """
    if "%b" in format_ or "%p" in format_:
        texts = texts.map(as_pandas_reads)

    def read(texts: pd.Series) -> NDArray[np.datetime64]:
        dates = pd.to_datetime(texts, format=format_, errors="coerce", utc=True)
        return np.array(dates.dt.tz_localize(None), dtype="datetime64[us]")

    dates = read(texts)
    unread = [(i, texts.iloc[i]) for i in np.flatnonzero(np.isnat(dates))]
    years = [(i, _FAR_YEAR.search(t)) for i, t in unread if isinstance(t, str)]
    far = {i: year for i, year in years if year}
    if far:
        number = np.array([int(year[0]) for year in far.values()])
        near = (number - _FIRST_NEAR_YEAR) % _CYCLE + _FIRST_NEAR_YEAR
        moved = [
            f"{year.string[: year.start()]}{n}{year.string[year.end() :]}"
            for year, n in zip(far.values(), near, strict=True)
        ]
        days = (number - near) // _CYCLE * _DAYS_OF_CYCLE
        dates[list(far)] = read(pd.Series(moved)) + days.astype("timedelta64[D]")
    return pd.Series(dates, texts.index).dt.tz_localize("UTC")


def are_dates(texts: pd.Series) -> NDArray[np.bool_]:
    """Return whether each text is a date that exists, in any format."""
    found = [_DATE.fullmatch(text.strip()) for text in texts]
    days = pd.Series([match and match["day"] for match in found], dtype=object)
    known = days.dropna().drop_duplicates()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # day or month first
        dates = read_dates(known, "mixed")
    return np.asarray(days.isin(known[dates.notna()]))


def _orders_by_mark(texts: pd.Series) -> _Orders:
    """Return whether the day is first, with an example, for each mark of dates.

    A day above 12 decides it, also for the marks of the other dates.
    """
    orders: _Orders = {}
    for text in texts:
        found = _DAY_AND_MONTH.match(text)
        if found:
            first, second = int(found[1]), int(found[3])
            of_mark = orders.setdefault(found[2], {})
            if (first > 12) != (second > 12):
                of_mark.setdefault(first > 12, text)
    decided = {first: t for of_mark in orders.values() for first, t in of_mark.items()}
    if len(decided) == 1:
        return dict.fromkeys(orders, decided)
    return orders


def _best_format(
    texts: pd.Series, text: str, orders: _Orders | None = None
) -> tuple[str, NDArray[np.bool_]]:
    """Return a format of one text that reads most texts, and which it reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # another order than that guessed
        formats = dict.fromkeys([ISO, *_guessed_formats(text, orders or {})])
    one = pd.Series([text], dtype=object)
    best, most = ISO, np.zeros(len(texts), dtype=bool)
    for format_ in formats:
        if read_dates(one, format_).notna().all():
            is_read = read_dates(texts, format_).notna().to_numpy()
            if is_read.sum() > most.sum():
                best, most = format_, is_read
            if most.all():
                break
    return best, most


def _guessed_formats(text: str, orders: _Orders) -> list[str]:
    """Return formats of a text, first in the order of day and month that is usual.

    The day is first before a dot, unless other dates have the month first.
    """
    found = _DAY_AND_MONTH.match(text)
    usual = bool(found and found[2] == ".")
    known = list(orders.get(found[2], ())) if found else []
    half = _HALF_OF_DAY.search(text)
    plain = _SHORT_YEAR.sub(r"\g<1>20\3", _HALF_OF_DAY.sub("", text))
    plain = _FAR_YEAR.sub("2000", plain, count=1)
    is_short = bool(_SHORT_YEAR.search(text))
    formats = []
    for day_first in known or (usual, not usual):
        format_ = guess_datetime_format(plain, dayfirst=day_first) or ""
        if is_short:
            format_ = format_.replace("%Y", "%y")
        if half:
            format_ = _HOURS.sub(rf"%I\1{half[1]}%p", format_)
        formats.append(format_)
    return formats


def _zone_of(texts: pd.Series, format_: str) -> tzinfo | None:
    """Return the time zone of texts, UTC if they have several UTC offsets."""
    read = pd.to_datetime(texts, format=format_, errors="coerce", utc=True)
    near = texts[read.notna()]
    with warnings.catch_warnings():
        # For several UTC offsets, where pandas 3 raises ValueError, pandas 2 warns.
        warnings.simplefilter("error", FutureWarning)
        try:
            dates = pd.to_datetime(near, format=format_)
        except unless(is_of_signal, ValueError, FutureWarning):
            return UTC
    zone: tzinfo | None = dates.dt.tz if len(near) else None
    return zone


def as_pandas_reads(text: Any) -> Any:
    """Return a date with Sep for Sept. and PM for p.m., which pandas cannot read.

    One with seconds in its UTC offset becomes one in UTC.
    """
    if not isinstance(text, str):
        return text
    if _OFFSET_WITH_SECONDS.search(text):
        with contextlib.suppress(ValueError, OverflowError):
            return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    return _WORD.sub(
        lambda word: word[1][:3].capitalize() if word[1] else f"{word[2]}M", text
    )


def epochs_of(date: pd.Timestamp) -> list[float]:
    """Return the numbers of time units since 1970 by which a date is given."""
    return [date.timestamp() * unit for unit in _PER_SECOND]


def _is_utc(zone: tzinfo | None) -> bool:
    days = (datetime(2020, month, 1, tzinfo=zone) for month in (1, 7))
    return not any(day.utcoffset() for day in days)


def _seconds(dates: pd.Series) -> pd.Series:
    return dates.astype("datetime64[us]").astype(np.int64) / 1e6
