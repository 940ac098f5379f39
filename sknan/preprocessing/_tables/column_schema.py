"""What the columns of a table were in fit, by which others of their names are read."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sknan._utils.validation import FLOAT32_MAX
from sknan.preprocessing._tables.sentinels import (
    is_word_for_missing,
    sentinels_of,
    words_among,
)
from sknan.preprocessing._tables.typed_column import TypedColumn

__all__ = ["Kind", "LearntColumn", "learn_columns"]

Kind = Literal["numbers", "numbers and words", "dates", "categories"]

# A column of text is one of numbers, and some words, if so many of its known cells are
# numbers: as the audit has it.
_MOST = 0.9

_TEXT = ("text", "categories", "mixed", "objects")

# Of dates, beside those that skrub finds.
_FORMATS = (
    *("%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y"),
    *("%d-%b-%Y", "%d-%b-%y", "%d/%m/%y", "%m/%d/%y", "%d.%m.%y"),
    *("%Y-%m-%d %I:%M %p", "%m/%d/%Y %I:%M %p", "%m/%d/%Y %I:%M:%S %p"),
)

# Words for missing that are levels beside some others: Namibia, a result.
_AMBIGUOUS = ("na", "-")


@dataclass
class LearntColumn:
    """What a column was in ``fit``, by which another of its name is read.

    Attributes
    ----------
    name : str
        What it is called.
    held : str
        Content of the column in ``fit``, as in `TypedColumn`.
    kind : {"numbers", "numbers and words", "dates", "categories"}
        What it is read as.
    sentinels : list
        Values that count as missing.
    spared : frozenset of str or None
        Words for missing, in lower case, that are levels of the column nevertheless;
        all others count as missing, even those that ``fit`` has not seen. None if
        only ``sentinels`` count.
    parser : ToDatetime or None
        skrub's, fitted to the format of dates that came as text.
    """

    name: str
    held: str
    kind: Kind = "categories"
    sentinels: list[Any] = field(default_factory=list)
    spared: frozenset[str] | None = None
    parser: Any = None

    def read(self, column: TypedColumn) -> list[pd.Series]:
        """Cells of a column as what the column was in ``fit``.

        Parameters
        ----------
        column : TypedColumn
            Of whatever kind.

        Returns
        -------
        list of Series
            One; of numbers and words two, each missing where the other is known.
        """
        if self.kind == "dates":
            return [self._dates(column)]
        if self.kind == "categories":
            return [self._known_texts(column)]
        numbers = self._numbers(column)
        for sentinel in self.sentinels:
            if isinstance(sentinel, (int, float, np.number)):
                numbers[numbers == float(sentinel)] = np.nan
        # What becomes infinite in float32 is as unknown as what is infinite.
        numbers[~(np.abs(numbers) <= FLOAT32_MAX)] = np.nan
        read = [pd.Series(numbers)]
        if self.kind == "numbers and words":
            texts = self._known_texts(column)
            read.append(texts.mask(~np.isnan(_as_numbers(texts))))
        return read

    def as_values(self, column: TypedColumn) -> TypedColumn:
        """The column as one of numbers or dates, in which sentinels can be sought."""
        if self.kind == "categories":
            return column._replace(holds="nothing")
        if self.kind == "dates":
            return column._replace(holds="dates", cells=self._dates(column).to_numpy())
        if column.holds in ("numbers", "flags"):
            return column
        return column._replace(holds="numbers", cells=self._numbers(column))

    def learn_texts(self, column: TypedColumn) -> None:
        """Find out what a column of text is.

        Parameters
        ----------
        column : TypedColumn
            In ``fit``.
        """
        if column.holds not in ("text", "mixed"):
            return
        texts = self._known_texts(column).dropna()
        part = np.mean(~np.isnan(_as_numbers(texts))) if len(texts) else 1.0
        if part >= _MOST:
            self.kind = "numbers" if part == 1 else "numbers and words"
            return
        # Here, since importing it takes three times as long as the whole of sknan.
        from skrub import ToDatetime

        levels = texts.drop_duplicates().rename(self.name)
        for format_ in (None, *_FORMATS):
            parser = ToDatetime(format=format_)
            try:
                parser.fit_transform(levels)
            except (ValueError, OverflowError):
                continue  # another format, or several
            self.kind, self.parser = "dates", parser
            return

    def learn_words(self, column: TypedColumn) -> None:
        """Find out which words stand for missing.

        Parameters
        ----------
        column : TypedColumn
            In ``fit``.
        """
        counts = Counter(text for text in _texts_of(column) if text is not None)
        self.sentinels = words_among(counts)
        gone = set(map(_plain, self.sentinels))
        levels = {_plain(text) for text in counts if is_word_for_missing(text)}
        # Those that would be levels if they were there.
        levels |= {
            word
            for word in _AMBIGUOUS
            if word not in map(_plain, words_among({**counts, word: 1}))
        }
        self.spared = frozenset(levels - gone)

    def _numbers(self, column: TypedColumn) -> NDArray[np.float64]:
        cells = column.cells
        if column.holds in ("numbers", "flags"):
            return np.array(cells, dtype=np.float64)
        if column.holds == "durations":
            seconds = pd.Series(pd.to_timedelta(cells)).dt.total_seconds()
            return np.array(seconds, dtype=np.float64)
        if column.holds == "dates":
            return np.full(len(cells), np.nan)
        texts = self._known_texts(column)
        if self.held == "flags":
            texts = texts.replace({"True": "1", "False": "0"})
        return _as_numbers(texts)

    def _dates(self, column: TypedColumn) -> pd.Series:
        if column.holds == "dates":
            dates = pd.Series(column.cells)
        elif column.holds in ("text", "categories") and self.parser is not None:
            texts = self._known_texts(column).rename(self.name)
            dates = self.parser.transform(texts)
        else:
            dates = pd.Series(pd.NaT, index=range(len(column.cells)))
        if getattr(dates.dtype, "tz", None) is not None:
            dates = dates.dt.tz_localize(None)
        dates = dates.astype("datetime64[us]").reset_index(drop=True)
        days = (datetime.date, np.datetime64)
        gone = [pd.Timestamp(v) for v in self.sentinels if isinstance(v, days)]
        return dates.mask(dates.isin(gone)) if gone else dates

    def _known_texts(self, column: TypedColumn) -> pd.Series:
        """Cells as text, missing where that stands for missing."""
        gone = set(map(_text_of, self.sentinels)) | {""}
        texts = _texts_of(column)
        known = {text: text for text in texts if text is not None and text not in gone}
        if self.spared is not None:
            spared = self.spared
            known = {
                text: text
                for text in known
                if not is_word_for_missing(text) or _plain(text) in spared
            }
        cells = [known.get(text, np.nan) for text in texts]  # type: ignore[arg-type]
        return pd.Series(cells, dtype=object)


def learn_columns(
    columns: Sequence[TypedColumn],
    names: Sequence[str],
    sentinels: Sequence[Iterable[Any]] | None,
) -> list[LearntColumn]:
    """What the columns of a table are.

    Parameters
    ----------
    columns : sequence of TypedColumn
        Neither nested nor complex.
    names : sequence of str
        What each is called.
    sentinels : sequence of iterables, or None
        Values of each that count as missing; None to find them.

    Returns
    -------
    list of LearntColumn
    """
    learnt = []
    for j, (name, column) in enumerate(zip(names, columns, strict=True)):
        its = LearntColumn(name, column.holds)
        if sentinels is not None:
            its.sentinels = list(sentinels[j])
        elif column.holds in _TEXT:
            its.learn_words(column)
        if column.holds == "dates":
            its.kind = "dates"
        elif column.holds in _TEXT:
            its.learn_texts(column)
        else:
            its.kind = "numbers"
        learnt.append(its)
    if sentinels is None:
        values = [
            its.as_values(column) for its, column in zip(learnt, columns, strict=True)
        ]
        found = sentinels_of(values, values.__getitem__)
        for its, of_column in zip(learnt, found, strict=True):
            its.sentinels += [sentinel.value for sentinel in of_column]
    return learnt


def _as_numbers(texts: pd.Series) -> NDArray[np.float64]:
    parsed = pd.to_numeric(texts, errors="coerce")
    return np.array(parsed.to_numpy(dtype=np.float64, na_value=np.nan))


def _texts_of(column: TypedColumn) -> list[str | None]:
    """Cells as text, None where missing; the same for a level of whatever type."""
    cells = column.cells
    if column.holds == "flags":
        # With some missing they have become numbers.
        return [None if cell != cell else str(bool(cell)) for cell in cells]
    cells = list(cells.astype(object) if isinstance(cells, pd.Series) else cells)
    if column.holds == "text":
        levels = {cell: _text_of(cell) for cell in set(cells)}
        return [levels[cell] for cell in cells]
    return [_text_of(cell) for cell in cells]


def _text_of(cell: Any) -> str | None:
    """A level by one name, be it read as 3, 3.0 or "3"."""
    if cell is None or cell is pd.NA or cell is pd.NaT or cell != cell:
        return None
    if isinstance(cell, (float, np.floating)) and float(cell).is_integer():
        return str(int(cell))
    return str(cell).strip()


def _plain(text: str) -> str:
    return text.strip().lower()
