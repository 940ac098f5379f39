"""Schemas of columns, learned in fit, for reading later columns of the same name."""

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
from sknan._utils.warn import warn
from sknan.exceptions import ChangedColumnWarning
from sknan.preprocessing._tables.cell_texts import (
    as_numbers,
    plain,
    text_of,
    texts_by_value,
    texts_of,
    values_of,
)
from sknan.preprocessing._tables.date_format import MIN_SHARE, DateFormat
from sknan.preprocessing._tables.number_format import NumberFormat
from sknan.preprocessing._tables.sentinels import (
    is_word_for_missing,
    missing_words,
    sentinels_of,
)
from sknan.preprocessing._tables.typed_column import TypedColumn

Kind = Literal["numbers", "numbers and words", "dates", "categories"]

# Columns with more distinct cells are encoded by their words, which takes longer.
_MOST_KNOWN = 1000

_NUMERIC = ("numbers", "flags")
_TEXT = ("text", "categories", "mixed", "objects")

# Words for missing values that are true categories in some columns: "NA" for Namibia
# among country codes, "-" for a negative test result.
_AMBIGUOUS = ("na", "-")


@dataclass
class ColumnSchema:
    """Type and sentinels of a column in ``fit``, by which a later column is read.

    Attributes
    ----------
    name : str
        Name of the column.
    holds : str
        Content of the column in ``fit``, as in `TypedColumn`.
    kind : {"numbers", "numbers and words", "dates", "categories"}
        Type in which the column is read.
    sentinels : list
        Values that count as missing.
    kept_words : frozenset of str or None
        Words for missing values, in lower case, that are true categories of this
        column. Every other word for a missing value counts as missing, including those
        that ``fit`` has not seen. None if only ``sentinels`` count as missing.
    dates : DateFormat or None
        Format, zone and range of a column of dates.
    format : NumberFormat or None
        Unit and separators of a column of written numbers. None for plain numbers.
    known : dict of str to int
        For a column of categories, the text of each cell of ``fit``, by its position in
        ``texts``, or -1 where the text means a missing value.
    texts : CategoricalDtype or None
        Texts of ``known``.
    text_of_value : dict of object to str
        For a column of categories, the text in ``fit`` of each number, flag, duration
        or date. Another text for the same value is read as that text.
    are_repeated : bool
        For a column of categories, whether the texts of ``fit`` occur twice or more on
        average.
    """

    name: str
    holds: str
    kind: Kind = "categories"
    sentinels: list[Any] = field(default_factory=list)
    kept_words: frozenset[str] | None = None
    dates: DateFormat | None = None
    format: NumberFormat | None = None
    known: dict[str, int] = field(default_factory=dict)
    texts: pd.CategoricalDtype | None = None
    text_of_value: dict[Any, str] = field(default_factory=dict)
    are_repeated: bool = False

    def read(self, column: TypedColumn) -> list[pd.Series]:
        """Convert the cells of a column to the type of the column in ``fit``.

        Parameters
        ----------
        column : TypedColumn
            Column with any content.

        Returns
        -------
        list of Series
            One Series. For numbers and words there are two, each of which is missing
            where the other one is known.
        """
        if self.dates is not None:
            return [self._dates(column, self.dates)]
        if self.kind == "categories":
            return [self._as_in_fit(self._known_texts(column))]
        numbers = self._numbers(column)
        is_number = ~np.isnan(numbers)
        self.remove_sentinels(numbers)
        remove_infinities(numbers)
        read = [pd.Series(numbers)]
        if self.kind == "numbers and words":
            read.append(self._known_texts(column).mask(is_number))
        return read

    def learn_cells(self, column: TypedColumn) -> None:
        """Store how each cell of a column of categories is read.

        Parameters
        ----------
        column : TypedColumn
            Column given to ``fit``, after kind and sentinels are known.
        """
        if self.kind != "categories" or not isinstance(column.cells, pd.Series):
            return
        cells = pd.Series(column.cells.unique(), dtype=object)
        if len(cells) > _MOST_KNOWN:
            return
        read = pd.Categorical(self._known_texts(column._replace(cells=cells)))
        self.text_of_value = texts_by_value(read.categories)
        pairs = zip(cells, read.codes.tolist(), strict=True)
        self.known = {cell: code for cell, code in pairs if type(cell) is str}
        self.texts = read.dtype
        n_filled = int(column.cells.notna().sum())
        self.are_repeated = 2 * len(read.categories) <= n_filled

    def read_known(self, cells: Iterable[Any]) -> pd.Categorical | None:
        """Return the cells of a column of categories, if ``fit`` has seen all of them.

        The texts are those of :meth:`read`, which takes longer for a few cells.

        Parameters
        ----------
        cells : iterable of object
            Cells of any type.
        """
        if self.texts is None:
            return None
        codes = [
            self.known.get(cell) if type(cell) is str else _code_of_missing(cell)
            for cell in cells
        ]
        if None in codes:
            return None
        return pd.Categorical.from_codes(codes, dtype=self.texts, validate=False)

    def remove_sentinels(self, numbers: NDArray[np.float64]) -> None:
        """Overwrite sentinels by NaN."""
        for sentinel in self.numeric_sentinels:
            numbers[numbers == sentinel] = np.nan

    @property
    def numeric_sentinels(self) -> list[float]:
        """Numbers that count as missing."""
        kinds = (int, float, np.number)
        return [float(value) for value in self.sentinels if isinstance(value, kinds)]

    def change(self, column: TypedColumn, parts: list[pd.Series]) -> str:
        """Return in what way a column cannot be read as in ``fit``, or "" if it can.

        Parameters
        ----------
        column : TypedColumn
            Column given to ``transform``.
        parts : list of Series
            What was read from it.
        """
        format_ = self.dates if column.holds == "dates" else None
        if format_ is not None:
            change = format_.change_of_zone(column.aware, self.name)
        elif self.dates is not None and column.holds not in _NUMERIC:
            change = self.dates.change_of_offset(self._known_texts(column), self.name)
        else:
            change = ""
        if change:
            return change
        if self.kind == "categories":
            return self._unknown(parts[0])
        is_lost = np.logical_and.reduce([part.isna().to_numpy() for part in parts])
        is_number = column.holds in _NUMERIC and self.dates is None
        if is_number or not is_lost.any():
            return ""
        aware = None if column.aware is None else column.aware[is_lost]
        lost = column._replace(cells=column.cells[is_lost], aware=aware)
        # Sentinels and numbers beyond float32 are missing in fit, too.
        dates = None if self.dates is None else self._all_dates(lost, self.dates)
        is_unread = np.asarray(pd.isna(self._numbers(lost) if dates is None else dates))
        if format_ is not None:
            # pandas has no text for some dates beyond microseconds.
            cells = np.asarray(lost.cells)[is_unread]
            texts = pd.Series([str(c) for c in cells if c == c], dtype=object)
        else:
            texts = self._known_texts(lost)[is_unread].dropna()
            texts = texts[~texts.map(is_word_for_missing)]
        if texts.empty:
            return ""
        n_lost, n_read = len(texts), int((~is_lost).sum())
        share = (
            f"{n_lost} of the {n_lost + n_read}" if n_read else f"None of the {n_lost}"
        )
        return (
            f"{share} values of column {self.name!r} can{'not' if n_read else ''} be "
            f"read as {self.kind}, which it had in fit, for example {texts.iloc[0]!r}: "
            "they count as missing."
        )

    def _unknown(self, texts: pd.Series) -> str:
        """Describe a column of which no row has a category of ``fit``.

        One such row is usual, as are new texts if those of ``fit`` were not repeated.
        """
        filled = texts.dropna()
        is_filled = 2 * len(filled) > len(texts) and len(filled) > 1
        if self.texts is None or not self.are_repeated or not is_filled:
            return ""
        known = self.texts.categories
        if filled.iloc[0] in known or filled.isin(known).any():
            return ""
        return (
            f"None of the {len(filled)} values of column {self.name!r} is a category "
            f"that fit has seen, for example {filled.iloc[0]!r}: they count as unknown."
        )

    def as_values(self, column: TypedColumn) -> TypedColumn:
        """Return the column as numbers or dates, for the search for sentinels."""
        if self.kind == "categories":
            return column._replace(holds="nothing")
        if self.dates is not None:
            dates = self._dates(column, self.dates)
            return column._replace(holds="dates", cells=dates.to_numpy())
        if column.holds in _NUMERIC:
            return column
        return column._replace(holds="numbers", cells=self._numbers(column))

    def learn_kind(self, column: TypedColumn) -> None:
        """Find out whether a column contains numbers, dates or categories.

        Parameters
        ----------
        column : TypedColumn
            Column given to ``fit``.
        """
        if column.holds in ("text", "mixed"):
            self._learn_kind_of_text(column)
        elif column.holds == "dates":
            zone = None if column.aware is None else column.aware.dt.tz
            self.dates = DateFormat(zone)
        elif column.holds not in _TEXT:
            self.kind = "numbers"
        if self.dates is not None:
            self.kind = "dates"
            self.dates.learn_range(self._dates(column, self.dates))

    def _learn_kind_of_text(self, column: TypedColumn) -> None:
        texts = self._known_texts(column).dropna()
        share = np.mean(~np.isnan(as_numbers(texts))) if len(texts) else 1.0
        if share < 1:
            written = texts[_is_text(column)[texts.index]]
            n_numbers = len(texts) - len(written)
            self.format = NumberFormat.of_texts(Counter(written), n_numbers)
        if self.format is not None:
            share = np.mean(~np.isnan(self._numbers(column)[texts.index]))
        if share >= MIN_SHARE:
            self.kind = "numbers" if share == 1 else "numbers and words"
            return
        self.dates = DateFormat.of_text(texts, self.name)
        if self.dates is not None:
            texts = texts.drop_duplicates()
            is_date = self.dates.of_text_or_numbers(texts).notna().to_numpy()
            self.sentinels += texts[~is_date].tolist()

    def learn_words(self, column: TypedColumn) -> None:
        """Find out which words mean a missing value.

        Parameters
        ----------
        column : TypedColumn
            Column given to ``fit``.
        """
        counts = Counter(text for text in texts_of(column) if text is not None)
        self.sentinels = missing_words(counts)
        removed = set(map(plain, self.sentinels))
        kept = {plain(text) for text in counts if is_word_for_missing(text)}
        # Words that would be categories if the column contained them.
        kept |= {
            word
            for word in _AMBIGUOUS
            if word not in map(plain, missing_words({**counts, word: 1}))
        }
        self.kept_words = frozenset(kept - removed)

    def _numbers(self, column: TypedColumn) -> NDArray[np.float64]:
        cells = column.cells
        if column.holds in _NUMERIC:
            return np.array(cells, dtype=np.float64)
        if column.holds == "durations":
            seconds = pd.Series(pd.to_timedelta(cells)).dt.total_seconds()
            return np.array(seconds, dtype=np.float64)
        if column.holds == "dates":
            return np.full(len(cells), np.nan)
        texts = self._known_texts(column)
        if self.holds == "flags":
            flags = {"true": "1", "false": "0"}
            texts = texts.map(lambda text: flags.get(str(text).lower(), text))
        numbers = as_numbers(texts)
        if self.format is not None:
            written = self.format.numbers_of(texts.where(_is_text(column)))
            numbers = np.where(np.isnan(written), numbers, written)
        if self.holds == "durations":
            durations = texts.mask(~np.isnan(numbers))
            seconds = pd.to_timedelta(durations, errors="coerce").dt.total_seconds()
            numbers = np.where(np.isnan(numbers), seconds, numbers)
        return numbers

    def _dates(self, column: TypedColumn, format_: DateFormat) -> pd.Series:
        dates = self._all_dates(column, format_)
        days = (datetime.date, np.datetime64)
        missing = [pd.Timestamp(v) for v in self.sentinels if isinstance(v, days)]
        return dates.mask(dates.isin(missing)) if missing else dates

    def _all_dates(self, column: TypedColumn, format_: DateFormat) -> pd.Series:
        """Return the dates of a column, of which sentinels are not removed."""
        if column.holds == "dates":
            cells = pd.Series(column.cells) if column.aware is None else column.aware
            return format_.of_dates(cells)
        if column.holds == "numbers":
            return format_.of_numbers(np.asarray(column.cells, dtype=np.float64))
        return format_.of_text_or_numbers(self._known_texts(column))

    def _as_in_fit(self, texts: pd.Series) -> pd.Series:
        """Return texts that ``fit`` has not seen as those it has seen for their value.

        The same category is "1", "1.0" or "01", "true" or "True" in other types.
        """
        if self.texts is None or not self.text_of_value:
            return texts
        unknown = pd.Index(texts.dropna().unique()).difference(self.texts.categories)
        found = {
            text: self.text_of_value[value]
            for text, value in zip(unknown, values_of(unknown), strict=True)
            if value in self.text_of_value
        }
        return texts.replace(found) if found else texts

    def _known_texts(self, column: TypedColumn) -> pd.Series:
        """Return the cells as text, missing where the text means a missing value."""
        missing = {None, "", *map(text_of, self.sentinels)}
        texts = texts_of(column)
        if self.kept_words is not None:
            words = filter(is_word_for_missing, set(texts))
            missing |= {word for word in words if plain(word) not in self.kept_words}
        cells = [np.nan if text in missing else text for text in texts]
        return pd.Series(cells, dtype=object)


def remove_infinities(numbers: NDArray[np.float64]) -> None:
    """Overwrite infinities, and numbers that become infinite in float32, by NaN."""
    # The largest numbers are found several times as fast as a mask.
    highest = np.fmax.reduce(numbers, axis=None, initial=0.0)
    lowest = np.fmin.reduce(numbers, axis=None, initial=0.0)
    if highest > FLOAT32_MAX or lowest < -FLOAT32_MAX:
        numbers[np.abs(numbers) > FLOAT32_MAX] = np.nan


def warn_of_changes(changes: Sequence[str]) -> None:
    """Give one warning of all columns that changed since ``fit``, if there are any."""
    if changes:
        more = f" {len(changes) - 3} more columns changed." if changes[3:] else ""
        warn(ChangedColumnWarning(" ".join(changes[:3]) + more))


def learn_schemas(
    columns: Sequence[TypedColumn],
    names: Sequence[str],
    sentinels: Sequence[Iterable[Any]] | None,
) -> list[ColumnSchema]:
    """Learn the schema of each column of a table.

    Parameters
    ----------
    columns : sequence of TypedColumn
        Columns without nested or complex content.
    names : sequence of str
        Names of the columns.
    sentinels : sequence of iterables, or None
        Values of each column that count as missing; None to find them.

    Returns
    -------
    list of ColumnSchema
    """
    schemas = []
    for j, (name, column) in enumerate(zip(names, columns, strict=True)):
        schema = ColumnSchema(name, column.holds)
        if sentinels is not None:
            schema.sentinels = list(sentinels[j])
        elif column.holds in _TEXT:
            schema.learn_words(column)
        schema.learn_kind(column)
        schemas.append(schema)
    if sentinels is None:
        values = list(map(ColumnSchema.as_values, schemas, columns))
        found = sentinels_of(values, values.__getitem__)
        for schema, of_column in zip(schemas, found, strict=True):
            schema.sentinels += [sentinel.value for sentinel in of_column]
    return schemas


def _is_text(column: TypedColumn) -> NDArray[np.bool_]:
    """Return which cells are text: the numbers among them have no format."""
    if column.holds == "text":
        return np.ones(len(column.cells), dtype=bool)
    return np.array([isinstance(cell, (str, bytes)) for cell in column.cells])


def _code_of_missing(cell: Any) -> int | None:
    is_nan = isinstance(cell, float) and cell != cell
    return -1 if is_nan or cell is None or cell is pd.NA else None
