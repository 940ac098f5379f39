"""What an audit has found, and the words for it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sknan.inspection._audit._remedies import ORDER, REMEDIES, SEVERITIES, Severity

__all__ = [
    "Finding",
    "Trait",
    "group_by_kind",
    "in_order",
    "number",
    "percent",
    "quantity",
    "quoted",
    "share",
]

# A sentence that lists more columns than this is a list nobody reads.
_MAX_LISTED = 5
_MAX_LENGTH = 160

# Characters of a cell that are shown.
_MAX_TEXT = 40


class Trait(NamedTuple):
    """One thing found in one column, before like ones are gathered.

    Attributes
    ----------
    kind : str
        A key of the remedies.
    name : str
        How the column is called in a sentence; empty for the whole table.
    value : float
        By which the worst comes first.
    detail : str
        The numbers, in a few words.
    label, position : object
        The column; None for the whole table.
    """

    kind: str
    name: str
    value: float
    detail: str
    label: Any = None
    position: int | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that an audit has found, in one or several columns.

    Parameters
    ----------
    where : {"X", "y"}
        In the table, or in its target.
    kind : str
        What it is, such as ``"missing"`` or ``"heavy tail"``.
    severity : {"breaks training", "hurts", "notice"}
        What a network fitted to the table as it stands would come to.
    columns : tuple
        Labels of the columns, their positions where they have none, the worst first;
        empty where it is about the table as a whole, or about y.
    positions : tuple of int
        Positions of these columns, counted from 0.
    values : tuple of float
        A number for each column, or one in all: cells, shares, interquartile ranges,
        levels, as the kind has it.
    details : tuple of str
        The same in words.
    evidence : str
        One sentence with the columns and numbers, the first few where there are many.
    action : str
        What ``tabular_pipeline`` does about it, or what you should.
    by_pipeline : bool
        Whether the pipeline does it.
    """

    where: Literal["X", "y"]
    kind: str
    severity: Severity
    columns: tuple[Any, ...]
    positions: tuple[int, ...]
    values: tuple[float, ...]
    details: tuple[str, ...]
    evidence: str
    action: str
    by_pipeline: bool

    def __str__(self) -> str:
        return f"{self.title}: {self.evidence} {self.action}"

    @property
    def title(self) -> str:
        """The kind, and whether it is the target's."""
        return f"target {self.kind}" if self.where == "y" else self.kind

    def _repr_html_(self) -> str:
        """One row of a table, for notebooks."""
        text = html.escape(f"{self.severity}: {self}")
        return f"<p>{text}</p>"


def quantity(count: float, noun: str) -> str:
    """Such as ``"1 row"`` or ``"1 000 rows"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}".replace(",", " ")


def percent(part: float) -> str:
    """A share from 0 to 1 in percent, in two digits; near the ends in as many as tell.

    Examples
    --------
    >>> percent(0.1987), percent(0.061), percent(0.9956), percent(1.0), percent(0.0)
    ('20 %', '6.1 %', '99.56 %', '100 %', '0 %')
    """
    if not 0 < part < 1:
        return f"{100 * part:.0f} %"
    return f"{100 * part:.4g} %" if part > 0.99 else f"{100 * part:.2g} %"


def share(count: int, total: int) -> str:
    """How many of all, in percent, or as they are where that would say nothing.

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
    """Text as it is written in code, cut off where it is long.

    Examples
    --------
    >>> quoted("red"), quoted("a" * 100)
    ("'red'", "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...'")
    """
    return repr(text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 3]}...")


def number(value: float) -> str:
    """A number in four digits, whole ones as they are up to a million."""
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.4g}"


def group_by_kind(traits: Iterable[Trait], where: Literal["X", "y"]) -> list[Finding]:
    """One finding for each kind, the worst column first."""
    by_kind: dict[str, list[Trait]] = {}
    for trait in traits:
        by_kind.setdefault(trait.kind, []).append(trait)
    found = []
    for kind, alike in by_kind.items():
        remedy = REMEDIES[where][kind]
        alike.sort(key=lambda trait: -trait.value)
        columns = [trait for trait in alike if trait.position is not None]
        found.append(
            Finding(
                where,
                kind,
                remedy.severity,
                tuple(trait.label for trait in columns),
                tuple(int(trait.position or 0) for trait in columns),
                tuple(float(trait.value) for trait in alike),
                tuple(trait.detail for trait in alike),
                _evidence(alike),
                remedy.action,
                remedy.by_pipeline,
            )
        )
    return in_order(found)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, those of the target before the others."""
    return sorted(
        findings,
        key=lambda f: (
            SEVERITIES.index(f.severity),
            f.where == "X",
            ORDER[f.where, f.kind],
        ),
    )


def _evidence(alike: Sequence[Trait]) -> str:
    parts = [
        f"{trait.name} ({trait.detail})" if trait.name else trait.detail
        for trait in alike[:_MAX_LISTED]
    ]
    while len(parts) > 1 and sum(map(len, parts)) > _MAX_LENGTH:
        parts.pop()
    n_more = len(alike) - len(parts)
    more = f" and {quantity(n_more, 'more column')}" if n_more > 0 else ""
    count = f"{quantity(len(alike), 'column')}: " if len(alike) > 1 else ""
    return f"{count}{', '.join(parts)}{more}."
