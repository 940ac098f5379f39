"""Numbers, shares and text of findings in words."""

from __future__ import annotations

# Longer cells are cut off.
_MAX_TEXT = 40


def quantity(count: float, noun: str) -> str:
    """Return a count with its noun, in the plural except for 1.

    Examples
    --------
    >>> quantity(1, "row"), quantity(1000, "row"), quantity(2, "category")
    ('1 row', '1 000 rows', '2 categories')
    >>> quantity(2, "array")
    '2 arrays'
    """
    if count != 1:
        is_vowel_y = noun.endswith(("ay", "ey", "oy", "uy"))
        is_y = noun.endswith("y") and not is_vowel_y
        noun = f"{noun[:-1]}ies" if is_y else f"{noun}s"
    return f"{count:,} {noun}".replace(",", " ")


def percent(part: float) -> str:
    """Return a share from 0 to 1 in percent, with more digits above 99 %.

    Examples
    --------
    >>> percent(0.1987), percent(0.061), percent(0.9956), percent(1.0), percent(0.0)
    ('20 %', '6.1 %', '99.56 %', '100 %', '0 %')
    """
    if not 0 < part < 1:
        return f"{100 * part:.0f} %"
    return f"{100 * part:.4g} %" if part > 0.99 else f"{100 * part:.2g} %"


def share(count: int, total: int) -> str:
    """Return a share in percent, or the counts if the share is near 0 or 1.

    Examples
    --------
    >>> share(177, 891), share(2, 891), share(2, 4), share(99999, 100000)
    ('20 %', '2 of 891', '50 %', 'all but 1')
    """
    if count < 10 and count < 0.01 * total:
        return f"{count} of {total:,}".replace(",", " ")
    if 0 < total - count < 1e-4 * total:
        return f"all but {total - count:,}".replace(",", " ")
    return percent(count / total)


def quoted(text: str) -> str:
    """Return text in quotation marks, shortened if it is long.

    Examples
    --------
    >>> quoted("red"), quoted("a" * 100)
    ("'red'", "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...'")
    """
    return repr(text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 3]}...")


def number(value: float) -> str:
    """Return a number with four digits, or all digits of integers below a million."""
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.4g}"
