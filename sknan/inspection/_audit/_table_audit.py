"""Result of an audit: text, HTML and data frames of the findings."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import pandas as pd

from sknan._utils.html import element, table
from sknan.inspection._audit._column_profile import ColumnProfile
from sknan.inspection._audit._finding import Finding
from sknan.inspection._audit._remedies import SEVERITIES, Severity

# Titles of the columns of a table of findings.
HEADS = ("severity", "finding", "evidence", "action")

_WIDTH = 80

_COLUMNS = [
    *("severity", "where", "kind", "column", "position", "value", "detail", "action"),
    "by_pipeline",
]

_NUMBERS = ("top_share", "low", "q1", "median", "q3", "high", "extent")

# The columns of ``to_frame("columns")``, each with its value for a column of the table.
_STATISTICS: dict[str, Callable[[ColumnProfile], Any]] = {
    "column": lambda profile: profile.label,
    "dtype": lambda profile: profile.dtype,
    "holds": lambda profile: profile.holds,
    "missing": lambda profile: profile.n_missing / profile.n_rows,
    "infinite": lambda profile: profile.n_infinite / profile.n_rows,
    "beyond_float32": lambda profile: profile.n_beyond / profile.n_rows,
    "n_levels": lambda profile: profile.n_distinct,
    **{name: attrgetter(name) for name in _NUMBERS},
    "sentinels": lambda profile: [sentinel.value for sentinel in profile.sentinels],
}


@dataclass(frozen=True, repr=False)
class TableAudit:
    """Findings about a table, which can be printed, displayed, sorted and filtered.

    Returned by :func:`audit`.

    Parameters
    ----------
    findings : tuple of Finding
        One finding for each kind, with all its columns. The worst come first.
    n_rows, n_columns : int
        Size of the table.
    summary : str
        Contents of the table and of the target in two or three sentences.
    statistics : tuple of dict
        Statistics of each column, as in ``to_frame("columns")``.
    sentinels : dict
        Suspected sentinels of each column: its label (or its position if there are no
        labels) and a list of values as they appear in the table, with the most
        frequent first.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from sknan import audit
    >>> rng = np.random.default_rng(0)
    >>> frame = pd.DataFrame({"age": rng.integers(18, 90, size=200)})
    >>> frame.loc[:9, "age"] = -999
    >>> found = audit(frame)
    >>> found.sentinels
    {'age': [-999]}
    >>> found.to_frame()[["severity", "kind", "column", "detail"]]
      severity      kind column       detail
    0    hurts  sentinel    age  -999 in 5 %
    """

    findings: tuple[Finding, ...]
    n_rows: int
    n_columns: int
    summary: str
    statistics: tuple[dict[str, Any], ...] = field(compare=False)
    sentinels: dict[Any, list[Any]]

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __bool__(self) -> bool:
        # Without this, an audit without findings would be falsy.
        return True

    def of_severity(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of one severity.

        Parameters
        ----------
        severity : {"breaks training", "hurts", "notice"}
            Severity of the findings.

        Returns
        -------
        tuple of Finding
        """
        return tuple(f for f in self.findings if f.severity == severity)

    def to_frame(self, of: Literal["findings", "columns"] = "findings") -> pd.DataFrame:
        """Return the findings, or the statistics of all columns, as a data frame.

        Parameters
        ----------
        of : {"findings", "columns"}, default="findings"
            Contents of a row: one finding in one column, or one column of the table,
            with or without findings.

        Returns
        -------
        DataFrame
            Columns for findings: ``severity``, ``where`` ("X" or "y"), ``kind``,
            ``column`` and ``position`` (None for the table as a whole), ``value``,
            ``detail``, ``action`` and ``by_pipeline``. Columns for columns: ``column``,
            ``dtype``, ``holds``; the shares, from 0 to 1, ``missing``, ``infinite``,
            ``beyond_float32`` and ``top_share`` (share of the most frequent value among
            the known ones); ``n_levels`` (number of distinct values); ``low``, ``q1``,
            ``median``, ``q3``, ``high`` and ``extent`` (distance of the farthest value
            from the quartiles in interquartile ranges), all without sentinels;
            ``sentinels``, ``severity`` (the worst) and ``kinds`` of the findings.
        """
        if of == "columns":
            names = [*_STATISTICS, "severity", "kinds"]
            return pd.DataFrame(list(self.statistics), columns=names)
        rows = [row for finding in self.findings for row in _rows_of(finding)]
        frame = pd.DataFrame(rows, columns=_COLUMNS)
        return frame.astype({"position": "Int64"})

    def __str__(self) -> str:
        lines = _wrapped(self.summary)
        for severity in SEVERITIES:
            findings = self.of_severity(severity)
            if findings:
                lines += ["", severity.capitalize()]
            for finding in findings:
                lines += _wrapped(
                    f"{finding.title}: {finding.evidence}", "  ", "      "
                )
                lines += _wrapped(f"-> {finding.action}", "      ", "         ")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the findings as a table for notebooks, without colors."""
        rows = [(f.severity, f.title, f.evidence, f.action) for f in self]
        return f"<div>{element('p', self.summary)}{table(rows, HEADS)}</div>"


def statistics_of(
    profiles: Sequence[ColumnProfile], findings: Sequence[Finding]
) -> Iterator[dict[str, Any]]:
    """Yield the statistics of each column, with the findings about it.

    Findings are sorted by severity.
    """
    by_position: dict[int, list[Finding]] = {}
    for finding in findings:
        for position in finding.positions if finding.where == "X" else ():
            by_position.setdefault(position, []).append(finding)
    for profile in profiles:
        found = by_position.get(profile.position, [])
        yield {
            **{name: value(profile) for name, value in _STATISTICS.items()},
            "severity": found[0].severity if found else None,
            "kinds": [finding.kind for finding in found],
        }


def _wrapped(text: str, first: str = "", others: str = "") -> list[str]:
    """Wrap a paragraph so that no line begins with a percent sign."""
    lines = textwrap.wrap(
        text.replace(" %", "\u00a0%"),
        _WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\u00a0%", " %") for line in lines]


def _rows_of(finding: Finding) -> Iterator[tuple[Any, ...]]:
    none = (None,) * len(finding.details)
    columns, positions = finding.columns or none, finding.positions or none
    cells = zip(columns, positions, finding.values, finding.details, strict=True)
    first = (finding.severity, finding.where, finding.kind)
    for row in cells:
        yield (*first, *row, finding.action, finding.by_pipeline)
