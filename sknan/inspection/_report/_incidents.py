"""Section of a report about the steps that failed."""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from typing import Any

from sknan.diagnosis._report import NonFiniteReport
from sknan.inspection._report._html import element, section, table

# Number of kinds of incidents that are shown in full.
_MAX_KINDS = 20

# Number of items of a list that are shown.
_MAX_LISTED = 10

# Number of source lines shown before and after the one that failed.
_N_CONTEXT = 2


def incident_section(reports: Sequence[NonFiniteReport]) -> str:
    """Return the section with one box for each kind of incident.

    Parameters
    ----------
    reports : sequence of NonFiniteReport
        All reports of a training.

    Returns
    -------
    str
    """
    if not reports:
        return section("Incidents", [element("p", "None: no step failed.")])
    by_kind: dict[Any, list[NonFiniteReport]] = {}
    for each in reports:
        kind = (each.phase, each.cause, each.operation, each.source, each.module)
        by_kind.setdefault(kind, []).append(each)
    boxes = [_box(*group) for group in list(by_kind.values())[:_MAX_KINDS]]
    n_left = len(by_kind) - len(boxes)
    if n_left:
        text = f"{n_left} other kinds of incidents are in nonfinite_reports_."
        boxes.append(element("p", text, "quiet"))
    return section(f"Incidents: {len(reports)}", boxes)


def _box(first: NonFiniteReport, *others: NonFiniteReport) -> str:
    """Return the first incident of a kind in full, with the places of the others."""
    culprits = [("rows", first.rows), ("columns", first.columns)]
    rows = [
        ("cause", first.cause.replace("_", " ")),
        *(
            (name, ", ".join(map(str, found[:_MAX_LISTED])))
            for name, found in culprits
            if len(found)
        ),
        ("evidence", first.evidence),
        ("recovery", first.recovery or "None: training stopped."),
        ("remedy", first.action),
    ]
    if others:
        places = "; ".join(each.place for each in others[:_MAX_LISTED])
        n_left = len(others) - _MAX_LISTED
        more = f"; and {n_left} more" if n_left > 0 else ""
        times = "once" if len(others) == 1 else f"{len(others)} times"
        rows.append((f"repeated {times}", f"{places}{more}"))
    head = f"<p>{element('b', first.headline, 'what')}</p>"
    return f'<div class="incident">{head}{_source(first.source)}{table(rows)}</div>'


def _source(source: str | None) -> str:
    """Return the failed line with the lines around it, if the file can be read."""
    name, _, number = (source or "").rpartition(":")
    if not number.isdigit():
        return ""
    failed = int(number)
    around = range(max(1, failed - _N_CONTEXT), failed + _N_CONTEXT + 1)
    lines = {n: linecache.getline(name, n).rstrip() for n in around}
    if not lines[failed]:
        return ""
    shown = [
        f"{'>' if n == failed else ' '} {n:4d}  {text}" for n, text in lines.items()
    ]
    return element("pre", "\n".join(shown))
