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

from sknan.preprocessing._tables.typed_column import dates_of_objects

# Share of the known cells of a text column that must be numbers, or dates, for the
# column to be read as such.
MIN_SHARE = 0.9

MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:\s?[ap]\.?m\.?)?"
_ZONE = r"(?:\s?(?:z|utc|[+-]\d{2}:?\d{2}))?"
_DATE = re.compile(
    rf"(?P<day>\d{{4}}-\d{{1,2}}-\d{{1,2}}|\d{{4}}/\d{{1,2}}/\d{{1,2}}"
    rf"|\d{{1,2}}(?P<mark>[/.-])\d{{1,2}}(?P=mark)(?:\d{{4}}|\d{{2}})"
    rf"|\d{{1,2}}[ -]{MONTH}[ -]\d{{2,4}}|{MONTH} \d{{1,2}},? \d{{4}})"
    rf"(?:[t ]\s?{CLOCK}{_ZONE})?",
    re.IGNORECASE,
)

# Formats of dates in addition to ISO 8601 and those that skrub finds.
_FORMATS = (
    *("%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y"),
    *("%d-%b-%Y", "%d-%b-%y", "%d/%m/%y", "%m/%d/%y", "%d.%m.%y"),
    *("%Y-%m-%d %I:%M %p", "%m/%d/%Y %I:%M %p", "%m/%d/%Y %I:%M:%S %p"),
)

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
    parser : ToDatetime or None
        skrub's parser of text that is not in ISO 8601.
    first, last : float
        Seconds since 1970 of the earliest and the latest date in ``fit``.
    """

    zone: tzinfo | None = None
    parser: Any = None
    first: float = np.nan
    last: float = np.nan

    @classmethod
    def of_text(cls, texts: pd.Series) -> DateFormat | None:
        """Return the format of text, or None if less than nine in ten cells have one.

        Parameters
        ----------
        texts : Series
            Known cells, each as often as it occurs.
        """
        found = cls._of_all(texts.drop_duplicates())
        if found is None:
            is_date = are_dates(texts)
            if MIN_SHARE <= is_date.mean() < 1:
                found = cls._of_all(texts[is_date].drop_duplicates())
        return found

    @classmethod
    def _of_all(cls, texts: pd.Series) -> DateFormat | None:
        """Return the format that all texts have, or None if there is no such format."""
        with contextlib.suppress(ValueError, OverflowError):
            iso = dates_of_objects(texts.map(in_whole_minutes), format="ISO8601")
            return cls(iso.dt.tz)
        # Imported here, since skrub takes three times as long to import as sknan.
        from skrub import ToDatetime

        for format_ in (None, *_FORMATS):
            parser = ToDatetime(format=format_)
            # The text may have another format, or several formats.
            with contextlib.suppress(ValueError, OverflowError):
                return cls(parser.fit_transform(texts).dt.tz, parser)
        return None

    def learn_range(self, dates: pd.Series) -> None:
        """Learn the range of the dates in ``fit``, which gives the unit of numbers."""
        seconds = _seconds(dates.dropna())
        if len(seconds):
            self.first, self.last = float(seconds.min()), float(seconds.max())

    def of_dates(self, dates: pd.Series) -> pd.Series:
        """Return dates as local times of the zone, without the zone."""
        is_aware = dates.dt.tz is not None
        if is_aware or self.zone is not None:
            aware = dates if is_aware else dates.dt.tz_localize("UTC")
            dates = aware.dt.tz_convert(self.zone or "UTC").dt.tz_localize(None)
        return dates.astype("datetime64[us]").reset_index(drop=True)

    def of_text_or_numbers(self, texts: pd.Series) -> pd.Series:
        """Return dates of text in the format of ``fit``, in ISO 8601, or of numbers.

        Numbers are the seconds, milliseconds, microseconds or nanoseconds since 1970.
        """
        iso = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
        dates = self.of_dates(iso)
        if self.parser is not None:
            dates = self.of_dates(self.parser.transform(texts)).fillna(dates)
        if dates.isna().sum() > texts.isna().sum():
            rest = texts.mask(dates.notna())
            iso = rest.map(in_whole_minutes)
            iso = pd.to_datetime(iso, format="ISO8601", errors="coerce", utc=True)
            dates = dates.fillna(self.of_dates(iso))
            numbers = pd.to_numeric(rest, errors="coerce")
            dates = dates.fillna(self.of_numbers(numbers.to_numpy(np.float64)))
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
        seconds = np.where(near[best], numbers / _PER_SECOND[best], np.nan)
        dates = pd.to_datetime(pd.Series(np.round(seconds * 1e6)), unit="us", utc=True)
        return self.of_dates(dates)

    def change_of_zone(self, aware: pd.Series | None, name: str) -> str:
        """Return a sentence if one of two columns has a time zone, unless it is UTC.

        Parameters
        ----------
        aware : Series or None
            Dates of a later column, if they have a zone.
        name : str
            Name of the column.
        """
        zone = None if aware is None else aware.dt.tz
        if (zone is None) == (self.zone is None) or _is_utc(zone or self.zone):
            return ""
        if zone is None:
            return (
                f"Column {name!r} has no time zone, and had {self.zone} in fit: its "
                f"times are read as UTC. Localize it: dt.tz_localize('{self.zone}')."
            )
        return (
            f"Column {name!r} has the time zone {zone}, and had none in fit: its times "
            "are converted to UTC. Pass dt.tz_localize(None) if fit had local times."
        )


def are_dates(texts: pd.Series) -> NDArray[np.bool_]:
    """Return whether each text is a date that exists, in any format."""
    found = [_DATE.fullmatch(text.strip()) for text in texts]
    days = pd.Series([match and match["day"] for match in found], dtype=object)
    known = days.dropna().drop_duplicates()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # day or month first
        dates = pd.to_datetime(known, format="mixed", errors="coerce")
    return np.asarray(days.isin(known[dates.notna()]))


def in_whole_minutes(text: Any) -> Any:
    """Return a date with seconds in its UTC offset, which pandas refuses, in UTC."""
    if isinstance(text, str) and _OFFSET_WITH_SECONDS.search(text):
        with contextlib.suppress(ValueError, OverflowError):
            return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    return text


def epochs_of(date: pd.Timestamp) -> list[float]:
    """Return the numbers of time units since 1970 by which a date is given."""
    return [date.timestamp() * unit for unit in _PER_SECOND]


def _is_utc(zone: tzinfo | None) -> bool:
    days = (datetime(2020, month, 1, tzinfo=zone) for month in (1, 7))
    return not any(day.utcoffset() for day in days)


def _seconds(dates: pd.Series) -> pd.Series:
    return dates.astype("datetime64[us]").astype(np.int64) / 1e6
