"""Unit and separators of a column of written numbers, learned in fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sknan.preprocessing._tables.cell_texts import as_numbers
from sknan.preprocessing._tables.date_format import MIN_SHARE

# Currencies with the largest turnover (BIS survey of 2022), and usual abbreviations.
_CODES = (
    "AED|ARS|AUD|BGN|BHD|BRL|CAD|CHF|CLP|CNY|COP|CZK|DKK|EUR|GBP|HKD|HUF|IDR|ILS|INR"
    "|JPY|KRW|MXN|MYR|NOK|NZD|PEN|PHP|PLN|RON|RUB|SAR|SEK|SGD|THB|TRY|TWD|USD|ZAR"
    "|Fr|kr|Rp|Rs"
)
_CURRENCY = r"$¢£¤¥฿\u20a0-\u20cf"
_SIGN, _LETTER = rf"[{_CURRENCY}%‰]", r"[^\W\d_]"
_IS_CURRENCY = re.compile(rf"{_LETTER}{{0,3}}[{_CURRENCY}]|{_CODES}")
_BLANKS = " \u00a0\u2009\u202f"
_QUOTES = "'\u2019"

# A word before a number is a name ("item 7", "A12"), a word after it is a unit.
_CELL = re.compile(
    rf"(?P<sign>[-+\u2212]?)[{_BLANKS}]?"
    rf"(?P<prefix>(?:{_LETTER}{{0,3}}{_SIGN}{_LETTER}{{0,3}}|(?:{_CODES})\.?)?)"
    rf"[{_BLANKS}]?(?P<second>[-+\u2212]?)"
    rf"(?P<body>[.,]?\d(?:[\d.,{_QUOTES}{_BLANKS}]*\d)?(?:[eE][-+]?\d+)?)"
    rf"[{_BLANKS}]?(?P<suffix>(?:(?:{_LETTER}|{_SIGN}|°)\D*)?)"
)
_IN_PARENTHESES = re.compile(r"([^()\d]*)\(([^()]*)\)([^()\d]*)")
_PLURAL = re.compile(rf"(?<={_LETTER}{_LETTER})s$")

# Digits by decimal separator: the other separators group three digits each. Leading
# zeros are those of codes.
_DIGITS = {
    decimal: re.compile(
        rf"(?:[1-9]\d{{0,2}}([{other}{_QUOTES}{_BLANKS}])\d{{3}}(?:\1\d{{3}})*"
        rf"|0|[1-9]\d*)?(?:[{decimal}]\d+)?(?:[eE][-+]?\d+)?"
    )
    for decimal, other in (".,", ",.")
}
_AS_PYTHON = {
    decimal: str.maketrans({**dict.fromkeys(f".,{_QUOTES}{_BLANKS}", ""), decimal: "."})
    for decimal in _DIGITS
}


class _Cell(NamedTuple):
    """A written number: whether it is negative, its digits and its unit."""

    is_negative: bool
    body: str
    unit: str
    in_parentheses: bool


@dataclass
class NumberFormat:
    """Unit and decimal separator of a column of written numbers.

    The decimal separator is the one that reads more cells. If dot and comma read as
    many, as in "5 kg" and "1.234 kg", then three digits after a separator are
    thousands: decimals would occur with fewer digits, too.

    Attributes
    ----------
    unit : str
        Unit before or after the numbers, such as ``"$"``, ``"%"`` or ``"kg"``; "" if
        there is none. Cells without a unit are read, too; those of another one are not.
    decimal : {".", ","}
        Decimal separator. The other one, blanks and apostrophes separate thousands.
    """

    unit: str = ""
    decimal: str = "."

    @classmethod
    def of_texts(
        cls, counts: Mapping[str, int], n_numbers: int = 0
    ) -> NumberFormat | None:
        """Return the format of text, or None if less than nine in ten cells have it.

        Parameters
        ----------
        counts : mapping of str to int
            Number of cells with each text, which has no spaces around it.
        n_numbers : int, default=0
            Number of further cells, which are numbers and no text.

        Returns
        -------
        NumberFormat or None
            Also None if the format reads no more cells than plain numbers have.
        """
        n_left, cells = sum(counts.values()) + n_numbers, Counter[_Cell]()
        enough = MIN_SHARE * n_left
        for text, count in counts.items():
            cell = _parsed(text)
            if cell is not None:
                cells[cell] += count
                continue
            n_left -= count
            if n_left < enough:
                return None
        unit = _unit_of(cells)
        formats = [cls(unit, decimal) for decimal in _DIGITS]
        read = [{c: n for c, n in cells.items() if f._reads(c)} for f in formats]
        sizes = [
            (sum(r.values()), -sum(n for c, n in r.items() if f.decimal in c.body))
            for f, r in zip(formats, read, strict=True)
        ]
        best = sizes.index(max(sizes))
        texts = pd.Series(list(counts), dtype=object)
        n_plain = np.array([*counts.values()])[~np.isnan(as_numbers(texts))].sum()
        n_read = sizes[best][0]
        is_better = n_read + n_numbers >= enough and n_read > n_plain
        if not is_better or (not unit and _are_codes(read[best])):
            return None
        return formats[best]

    def _reads(self, cell: _Cell) -> bool:
        is_of_unit = cell.unit in ("", self.unit)
        return is_of_unit and _DIGITS[self.decimal].fullmatch(cell.body) is not None

    def numbers_of(self, texts: pd.Series) -> NDArray[np.float64]:
        """Return the number in each text, or NaN where it has another format.

        Parameters
        ----------
        texts : Series
            Texts and missing values.
        """
        numbers = {text: self._number(text) for text in texts.dropna().unique()}
        return np.array([numbers.get(text, np.nan) for text in texts], dtype=np.float64)

    def _number(self, text: str) -> float:
        cell = _parsed(text)
        if cell is None or not self._reads(cell):
            return np.nan
        number = float(cell.body.translate(_AS_PYTHON[self.decimal]))
        return -number if cell.is_negative else number


def _unit_of(cells: Counter[_Cell]) -> str:
    """Return the most frequent unit, or "" if too many cells have none."""
    units = Counter({"": 0})
    for cell, count in cells.items():
        units[cell.unit] += count
    unit, n_cells = max(units.items(), key=lambda item: (item[0] != "", item[1]))
    # A number beside 5 % or 5 kg may have another unit; one beside $5 is an amount.
    is_of_all = n_cells >= MIN_SHARE * units.total()
    return unit if is_of_all or _IS_CURRENCY.fullmatch(unit) else ""


def _are_codes(cells: Iterable[_Cell]) -> bool:
    """Return whether numbers are labels "(1)", or codes "10 115" of one length."""
    bodies = [cell.body for cell in cells]
    lengths = {sum(map(str.isdigit, body)) for body in bodies}
    has_comma = any(mark in body for body in bodies for mark in f",{_QUOTES}")
    is_of_one_length = len(lengths) == 1 and not has_comma
    return is_of_one_length or all(cell.in_parentheses for cell in cells)


def _parsed(text: str) -> _Cell | None:
    """Return the parts of a written number, or None if a text is none."""
    parts = _IN_PARENTHESES.fullmatch(text)
    found = _CELL.fullmatch("-" + "".join(parts.groups()) if parts else text)
    if found is None or (found["sign"] and found["second"]):
        return None
    unit = (found["prefix"] + found["suffix"]).strip().rstrip(".")
    is_negative = (found["sign"] or found["second"]) in ("-", "\u2212")
    return _Cell(is_negative, found["body"], _PLURAL.sub("", unit), parts is not None)
