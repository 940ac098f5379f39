"""Faults of a column of text: numbers, dates, spellings and too many categories."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sknan.inspection._audit._column_profile import MIN_ROWS
from sknan.inspection._audit._finding import Observation
from sknan.inspection._audit._formatting import number, quantity, quoted, share
from sknan.preprocessing._tables.cell_texts import as_numbers
from sknan.preprocessing._tables.date_format import CLOCK, MIN_SHARE, MONTH, are_dates
from sknan.preprocessing._tables.number_format import NumberFormat
from sknan.preprocessing._tables.sentinels import is_word_for_missing

# Columns with more categories than this have too many for one column each.
_MANY_CATEGORIES = 40

# More distinct texts are not compared for different spellings.
_MAX_SPELLINGS = 1000

# Columns with at most this many distinct texts hold categories, not amounts.
_FEW_CATEGORIES = 10

# Numbers with more different units are names, such as 12a and 12b.
_MAX_UNITS = 2

_DAY_AND_MONTH = re.compile(r"(\d{1,2})[/.-](\d{1,2})[/.-]\d{2,4}(?:\D.*)?")
_TIME = re.compile(
    rf"{CLOCK}|\d{{4}}[ -]?q[1-4]|q[1-4][ -]\d{{4}}|\d{{4}}-?w\d{{2}}|\d{{4}}-\d{{2}}"
    rf"|{MONTH}[ -]\d{{2,4}}",
    re.IGNORECASE,
)
_NUMBER = r"[-+]?(?:\d{1,3}(?:[,' \u00a0.]\d{3})+|\d+)(?:[.,]\d+)?"
_WRITTEN = re.compile(
    rf"[$€£¥<>≤≥~]?\s?\(?{_NUMBER}\)?\s?([a-z%°$€£¥][a-z%°/²³.]*)?(?:\s[a-z]+)?",
    re.IGNORECASE,
)


class Categories(NamedTuple):
    """Distinct cells of a column of text, with their frequencies.

    Attributes
    ----------
    texts : list of str
        Distinct texts, with the most frequent first.
    counts : ndarray of int
        Number of sampled cells with each text.
    """

    texts: list[str]
    counts: NDArray[np.int64]

    @property
    def n_cells(self) -> int:
        """Number of cells with one of the texts."""
        return int(self.counts.sum())

    def where(self, mask: Sequence[bool] | NDArray[np.bool_]) -> Categories:
        """Return the categories selected by a mask."""
        kept = np.flatnonzero(np.asarray(mask, dtype=bool))
        return Categories([self.texts[i] for i in kept], self.counts[kept])

    @property
    def number_format(self) -> NumberFormat | None:
        """Format in which ``tabular_pipeline`` reads written numbers, if it does."""
        counts: Counter[str] = Counter()
        for text, count in zip(self.texts, self.counts.tolist(), strict=True):
            if not is_word_for_missing(text):
                counts[text.strip()] += count
        return NumberFormat.of_texts(counts)

    def matching(self, pattern: re.Pattern[str]) -> Categories:
        """Return the categories whose whole text matches a pattern."""
        return self.where([bool(pattern.fullmatch(t.strip())) for t in self.texts])


def numbers_in(
    categories: Categories, format_: NumberFormat | None = None
) -> NDArray[np.float64]:
    """Convert each text to a number, or to NaN if it is not a number."""
    texts = pd.Series(categories.texts, dtype=object).str.strip()
    return as_numbers(texts) if format_ is None else format_.numbers_of(texts)


def observations_in_text(
    categories: Categories, *, is_sample: bool = False, is_category: bool = False
) -> list[Observation]:
    """Return the faults of a column of text, except for its words for missing.

    A sample may lack some of the texts. A column whose dtype is categorical is not read
    as numbers or dates. The observations have no name and position of the column.
    """
    known = categories.where([not is_word_for_missing(t) for t in categories.texts])
    if not known.texts:
        return []
    formats = () if is_category else (_numbers, _written_numbers, _dates)
    for detect in formats:
        observation = detect(known)
        if observation is not None:
            return [observation]
    found = (_spelling(known), _many_categories(known, is_sample))
    return [observation for observation in found if observation is not None]


def _numbers(known: Categories) -> Observation | None:
    is_number = ~np.isnan(numbers_in(known))
    found = known.where(is_number)
    if found.n_cells < MIN_SHARE * known.n_cells:
        return None
    words = known.where(~is_number)
    if words.texts and known.number_format is not None:
        return None
    if words.texts:
        detail = _beside_others("numbers", found, words)
        return Observation("numbers and words", words.n_cells, detail)
    with_leading_zero = known.matching(re.compile(r"0\d+"))
    if with_leading_zero.texts:
        detail = f"digits with leading zeros {_such_as(with_leading_zero)}"
        return Observation("codes", known.n_cells, detail)
    return Observation("numbers as text", found.n_cells, _such_as(found))


def _written_numbers(known: Categories) -> Observation | None:
    format_ = known.number_format
    if format_ is None:
        return _unclear_numbers(known)
    numbers = numbers_in(known, format_)
    is_number = ~np.isnan(numbers)
    found, others = known.where(is_number), known.where(~is_number)
    is_written = np.isnan(numbers_in(found))
    written, example = found.where(is_written), numbers[is_number][is_written][0]
    detail = f"{_such_as(written)}, read as {number(example)}"
    if others.texts:
        detail = _beside_others("numbers", found, others, detail)
    return Observation("written numbers", found.n_cells, detail)


def _unclear_numbers(known: Categories) -> Observation | None:
    found = known.matching(_WRITTEN)
    is_few = len(known.texts) <= _FEW_CATEGORIES
    if is_few or found.n_cells < MIN_SHARE * known.n_cells:
        return None
    matches = [_WRITTEN.fullmatch(text.strip()) for text in found.texts]
    units = {match[1].lower() for match in matches if match and match[1]}
    if len(units) > _MAX_UNITS:
        return None
    written = found.where(np.isnan(numbers_in(found)))
    return Observation("unclear numbers", found.n_cells, _such_as(written))


def _dates(known: Categories) -> Observation | None:
    is_date = are_dates(pd.Series(known.texts, dtype=object))
    dates = known.where(is_date)
    if dates.n_cells >= MIN_SHARE * known.n_cells:
        others = known.where(~is_date)
        detail = (
            _beside_others("dates", dates, others) if others.texts else _such_as(dates)
        )
        if _is_ambiguous(dates.texts):
            detail += ": day first or month first?"
        return Observation("dates as text", dates.n_cells, detail)
    times = known.matching(_TIME)
    if times.n_cells >= MIN_SHARE * known.n_cells:
        return Observation("times as text", times.n_cells, _such_as(times))
    return None


def _is_ambiguous(texts: Sequence[str]) -> bool:
    """Return whether all dates can be read with the day or the month first."""
    matches = [_DAY_AND_MONTH.fullmatch(text.strip()) for text in texts]
    numbers = [(int(match[1]), int(match[2])) for match in matches if match]
    return (
        bool(numbers)
        and all(max(pair) <= 12 for pair in numbers)
        and any(first != second for first, second in numbers)
    )


def _spelling(known: Categories) -> Observation | None:
    spellings: dict[str, list[str]] = {}
    for text in known.texts:
        spellings.setdefault(" ".join(text.lower().split()), []).append(text)
    several = [texts for texts in spellings.values() if len(texts) > 1]
    if not several or len(known.texts) > _MAX_SPELLINGS:
        return None
    shown = " and ".join(quoted(text) for text in several[0][:2])
    detail = f"{quantity(len(several), 'category')} in several spellings: {shown}"
    return Observation("spelling", len(several), detail)


def _many_categories(known: Categories, is_sample: bool) -> Observation | None:
    n_texts = len(known.texts)
    if n_texts <= _MANY_CATEGORIES:
        return None
    are_phrases = sum(" " in text for text in known.texts) > 0.1 * n_texts
    if n_texts == known.n_cells >= MIN_ROWS and not are_phrases:
        detail = f"{_such_as(known)}, all different"
        return Observation("identifier", n_texts, detail)
    at_least = "at least " if is_sample else ""
    detail = f"{at_least}{quantity(n_texts, 'category')}"
    return Observation("many levels", n_texts, detail)


def _such_as(categories: Categories) -> str:
    return f"such as {quoted(categories.texts[0])}"


def _beside_others(
    name: str, found: Categories, others: Categories, such_as: str = ""
) -> str:
    """Return the share of the numbers or dates, and the first other texts."""
    shown = ", ".join(quoted(text) for text in others.texts[:3])
    more = ", ..." if len(others.texts) > 3 else ""
    part = share(found.n_cells, found.n_cells + others.n_cells)
    return f"{part} {name} {such_as or _such_as(found)}, others {shown}{more}"
