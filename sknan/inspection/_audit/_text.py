"""What an audit finds in a column of text: numbers, dates and words for missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sknan.inspection._audit._finding import quantity, quoted, share
from sknan.preprocessing._tables.sentinels import is_word_for_missing

__all__ = ["Levels", "Note", "notes_on_text", "numbers_in"]

# From here on skrub encodes a column by its letters.
_MANY_LEVELS = 40

# A column is taken for numbers or dates if so many of its known cells are.
_MOST = 0.9

# Fewer levels than these are categories, whatever they look like.
_FEW_LEVELS = 10

# Numbers in more units are names.
_MAX_UNITS = 2

# Rows of an identifier, at least.
_FEW_ROWS = 50

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:\s?[ap]\.?m\.?)?"
_ZONE = r"(?:\s?(?:z|utc|[+-]\d{2}:?\d{2}))?"
_DATE = re.compile(
    rf"(?:\d{{4}}-\d{{1,2}}-\d{{1,2}}|\d{{4}}/\d{{1,2}}/\d{{1,2}}"
    rf"|\d{{1,2}}([/.-])\d{{1,2}}\1(?:\d{{4}}|\d{{2}})"
    rf"|\d{{1,2}}[ -]{_MONTH}[ -]\d{{2,4}}|{_MONTH} \d{{1,2}},? \d{{4}})"
    rf"(?:[t ]\s?{_CLOCK}{_ZONE})?",
    re.IGNORECASE,
)
_DAY_AND_MONTH = re.compile(r"(\d{1,2})[/.-](\d{1,2})[/.-]\d{2,4}(?:\D.*)?")
_TIME = re.compile(
    rf"{_CLOCK}|\d{{4}}[ -]?q[1-4]|q[1-4][ -]\d{{4}}|\d{{4}}-?w\d{{2}}|\d{{4}}-\d{{2}}"
    rf"|{_MONTH}[ -]\d{{2,4}}",
    re.IGNORECASE,
)
_NUMBER = r"[-+]?(?:\d{1,3}(?:[,' \u00a0.]\d{3})+|\d+)(?:[.,]\d+)?"
_WRITTEN = re.compile(
    rf"[$€£¥<>≤≥~]?\s?\(?{_NUMBER}\)?\s?([a-z%°$€£¥][a-z%°/²³.]*)?(?:\s[a-z]+)?",
    re.IGNORECASE,
)


class Levels(NamedTuple):
    """Distinct cells of text, and how often they are.

    Attributes
    ----------
    texts : list of str
        The most frequent first.
    counts : ndarray of int
        How often, in the sample.
    """

    texts: list[str]
    counts: NDArray[np.int64]

    @property
    def n_cells(self) -> int:
        """How many cells these are."""
        return int(self.counts.sum())

    def where(self, holds: Sequence[bool] | NDArray[np.bool_]) -> Levels:
        """Those for which something holds."""
        kept = np.flatnonzero(np.asarray(holds, dtype=bool))
        return Levels([self.texts[i] for i in kept], self.counts[kept])

    def matching(self, pattern: re.Pattern[str]) -> Levels:
        """Those that are of one form throughout."""
        return self.where([bool(pattern.fullmatch(t.strip())) for t in self.texts])


class Note(NamedTuple):
    """A kind of finding, its value and its numbers in words."""

    kind: str
    value: float
    detail: str


def numbers_in(levels: Levels) -> NDArray[np.float64]:
    """The number that each level is, NaN where it is none."""
    parsed = pd.to_numeric(pd.Series(levels.texts, dtype=object), errors="coerce")
    return np.asarray(parsed.to_numpy(dtype=np.float64, na_value=np.nan))


def notes_on_text(
    levels: Levels, *, is_sample: bool = False, is_category: bool = False
) -> list[Note]:
    """What there is to say of a column of text.

    Parameters
    ----------
    levels : Levels
        Its distinct known cells.
    is_sample : bool, default=False
        Whether there may be others.
    is_category : bool, default=False
        Whether the column is declared as one of categories, which is not read as
        numbers or dates.

    Returns
    -------
    list of Note
        Those on words for missing are left to the caller, who counts them.
    """
    known = levels.where([not is_word_for_missing(text) for text in levels.texts])
    if not known.texts:
        return []
    forms = () if is_category else (_as_numbers, _as_written_numbers, _as_dates)
    for form in forms:
        notes = form(known)
        if notes:
            return notes
    return [*_on_spelling(known), *_on_levels(known, is_sample)]


def _as_numbers(known: Levels) -> list[Note]:
    is_number = ~np.isnan(numbers_in(known))
    found = known.where(is_number)
    if found.n_cells < _MOST * known.n_cells:
        return []
    example = f"such as {quoted(found.texts[0])}"
    words = known.where(~is_number)
    if words.texts and len(words.matching(_WRITTEN).texts) == len(words.texts):
        return []
    if words.texts:
        others = ", ".join(quoted(text) for text in words.texts[:3])
        more = ", ..." if len(words.texts) > 3 else ""
        part = share(found.n_cells, known.n_cells)
        detail = f"{part} numbers {example}, others {others}{more}"
        return [Note("numbers and words", words.n_cells, detail)]
    led_by_zero = known.matching(re.compile(r"0\d+"))
    if led_by_zero.texts:
        detail = f"digits with leading zeros {_such_as(led_by_zero)}"
        return [Note("codes", known.n_cells, detail)]
    return [Note("numbers as text", found.n_cells, example)]


def _as_written_numbers(known: Levels) -> list[Note]:
    found = known.matching(_WRITTEN)
    if len(known.texts) <= _FEW_LEVELS or found.n_cells < _MOST * known.n_cells:
        return []
    matches = [_WRITTEN.fullmatch(text.strip()) for text in found.texts]
    units = {match[1].lower() for match in matches if match and match[1]}
    if len(units) > _MAX_UNITS:
        return []  # names, such as 12a, 12b
    written = found.where(np.isnan(numbers_in(found)))
    return [Note("written numbers", found.n_cells, _such_as(written))]


def _as_dates(known: Levels) -> list[Note]:
    for kind, pattern in (("dates as text", _DATE), ("times as text", _TIME)):
        found = known.matching(pattern)
        if found.n_cells >= _MOST * known.n_cells:
            detail = _such_as(found)
            if kind == "dates as text" and _is_ambiguous(found.texts):
                detail += ": the day or the month first?"
            return [Note(kind, found.n_cells, detail)]
    return []


def _is_ambiguous(texts: Iterable[str]) -> bool:
    """Whether all dates can be read both ways, and differ so."""
    pairs = [_DAY_AND_MONTH.fullmatch(text.strip()) for text in texts]
    numbers = [(int(pair[1]), int(pair[2])) for pair in pairs if pair]
    return (
        bool(numbers)
        and all(max(pair) <= 12 for pair in numbers)
        and any(first != second for first, second in numbers)
    )


def _on_spelling(known: Levels) -> list[Note]:
    plain: dict[str, list[str]] = {}
    for text in known.texts:
        plain.setdefault(" ".join(text.lower().split()), []).append(text)
    twins = [texts for texts in plain.values() if len(texts) > 1]
    if not twins or len(known.texts) > 1000:
        return []
    shown = " and ".join(quoted(text) for text in twins[0][:2])
    detail = f"{quantity(len(twins), 'level')} in several spellings: {shown}"
    return [Note("spelling", len(twins), detail)]


def _on_levels(known: Levels, is_sample: bool) -> list[Note]:
    n_levels = len(known.texts)
    if n_levels <= _MANY_LEVELS:
        return []
    are_words = sum(" " in text for text in known.texts) > 0.1 * n_levels
    if n_levels == known.n_cells >= _FEW_ROWS and not are_words:
        detail = f"{quoted(known.texts[0])}, never the same"
        return [Note("identifier", n_levels, detail)]
    at_least = "at least " if is_sample else ""
    return [Note("many levels", n_levels, f"{at_least}{quantity(n_levels, 'level')}")]


def _such_as(levels: Levels) -> str:
    return f"such as {quoted(levels.texts[0])}"
