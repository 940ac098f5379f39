"""Observations in single columns, and the findings that group them by kind."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sknan.inspection._audit._formatting import quantity
from sknan.inspection._audit._remedies import REMEDIES, Severity

# Limits on the columns and characters that one sentence lists.
_MAX_LISTED = 5
_MAX_LENGTH = 160


class Observation(NamedTuple):
    """A fault that was observed in one column or in the table as a whole.

    Attributes
    ----------
    kind : str
        A key of ``REMEDIES``.
    value : float
        Size of the fault. The largest is listed first.
    detail : str
        The numbers in a few words.
    name : str, default=""
        Name of the column in a sentence; empty for the table as a whole.
    label, position : object, default=None
        Label and position of the column; None for the table as a whole.
    """

    kind: str
    value: float
    detail: str
    name: str = ""
    label: Any = None
    position: int | None = None


@dataclass(frozen=True)
class Finding:
    """One kind of fault that an audit has found, in one or several columns.

    Parameters
    ----------
    where : {"X", "y"}
        Whether it was found in the table or in its target.
    kind : str
        Kind of fault, such as ``"missing"`` or ``"heavy tail"``.
    severity : {"breaks training", "hurts", "notice"}
        Effect on a network that is fitted to the table without preparation.
    columns : tuple
        Labels of the columns, or their positions if they have no labels, with the
        worst first. Empty if the finding is about the table as a whole or about y.
    positions : tuple of int
        Positions of these columns, counted from 0.
    values : tuple of float
        One number for each column, or one in total. The kind decides what is measured:
        a number of cells, a share, interquartile ranges, or a number of categories.
    details : tuple of str
        The same in words.
    evidence : str
        Sentence with the columns and their numbers. Of many columns it names the
        first few.
    action : str
        What ``tabular_pipeline`` does about it, or what the user should do.
    by_pipeline : bool
        Whether ``tabular_pipeline`` takes care of it.
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
        """Kind of fault, preceded by "target" for one in y."""
        return f"target {self.kind}" if self.where == "y" else self.kind

    def _repr_html_(self) -> str:
        """Return the finding as a paragraph, for notebooks."""
        text = html.escape(f"{self.severity}: {self}")
        return f"<p>{text}</p>"


def group_by_kind(
    observations: Iterable[Observation], where: Literal["X", "y"]
) -> list[Finding]:
    """Group observations into findings, in the order of REMEDIES and of size."""
    by_kind: dict[str, list[Observation]] = {}
    for observation in observations:
        by_kind.setdefault(observation.kind, []).append(observation)
    findings = []
    for kind in sorted(by_kind, key=list(REMEDIES[where]).index):
        group, remedy = by_kind[kind], REMEDIES[where][kind]
        group.sort(key=lambda observation: -observation.value)
        columns = [o for o in group if o.position is not None]
        findings.append(
            Finding(
                where,
                kind,
                remedy.severity,
                tuple(o.label for o in columns),
                tuple(int(o.position or 0) for o in columns),
                tuple(float(o.value) for o in group),
                tuple(o.detail for o in group),
                _evidence(group),
                remedy.action,
                remedy.by_pipeline,
            )
        )
    return findings


def _evidence(group: Sequence[Observation]) -> str:
    parts = [f"{o.name} ({o.detail})" if o.name else o.detail for o in group]
    del parts[_MAX_LISTED:]
    while len(parts) > 1 and sum(map(len, parts)) > _MAX_LENGTH:
        parts.pop()
    n_more = len(group) - len(parts)
    more = f" and {quantity(n_more, 'more column')}" if n_more > 0 else ""
    count = f"{quantity(len(group), 'column')}: " if len(group) > 1 else ""
    return f"{count}{', '.join(parts)}{more}."
