"""The sections of a report about the data, and about each incident."""

from __future__ import annotations

import linecache
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from sknan.diagnosis._report import NonFiniteReport
from sknan.inspection._audit._run import audit
from sknan.inspection._audit._table_audit import TableAudit
from sknan.inspection._audit_display import AuditDisplay
from sknan.inspection._report._html import cut_table, drawn, element, section, table
from sknan.preprocessing._imputer import NaNImputer

__all__ = ["data_section", "incident_section", "value_text"]

# Kinds of incidents that are told in full.
_N_INCIDENTS = 20

# Lines of the source around the one that failed.
_N_AROUND = 2


def data_section(estimator: Any, X: Any, y: Any) -> Iterator[str]:
    found = None
    if X is not None:
        found = audit(X, y)
        parts = [element("p", found.summary), _findings(found)]
        if found.statistics:
            parts.append(
                drawn(
                    lambda: AuditDisplay.from_audit(found), "Missing cells and scales"
                )
            )
        yield section("What was in the data", parts)
    imputers = list(_imputers_in(getattr(estimator, "best_estimator_", estimator)))
    if imputers:
        yield section(
            "What was imputed", [_filled(imputer, found) for imputer in imputers]
        )


def _findings(found: TableAudit) -> str:
    heads = ("severity", "finding", "where", "what is done, or what to do")
    rows = [(f.severity, f.title, f.evidence, f.action) for f in found]
    return table(rows, heads) if rows else ""


def _imputers_in(model: Any) -> Iterator[NaNImputer]:
    if isinstance(model, NaNImputer):
        yield model
    elif isinstance(model, Pipeline):
        for _, step in model.steps:
            yield from _imputers_in(step)
    elif isinstance(model, ColumnTransformer):
        for _, step, _ in model.transformers_:
            yield from _imputers_in(step)


def _filled(imputer: NaNImputer, found: TableAudit | None) -> str:
    """Each column's filling, those first that had something to fill."""
    fills = list(imputer.statistics_)
    names = list(getattr(imputer, "feature_names_in_", range(len(fills))))
    counts = _cells_to_fill(names, found)
    kind = f"NaNImputer, strategy {imputer.strategy!r}"
    if counts is None:
        rows: list[Any] = [
            (name, value_text(fill)) for name, fill in zip(names, fills, strict=True)
        ]
        heads = ["column", "filled with"]
        text = f"{kind}: what is missing in a column is filled with these."
    else:
        order = sorted(range(len(fills)), key=lambda place: -counts[place])
        rows = [
            (names[place], value_text(fills[place]), counts[place])
            for place in order
            if counts[place]
        ]
        heads = ["column", "filled with", "cells of the table above"]
        text = f"{kind}: {sum(counts)} cells filled in {len(rows)} columns."
    return element("p", text) + cut_table(rows, heads)


def _cells_to_fill(names: Sequence[Any], found: TableAudit | None) -> list[int] | None:
    """Cells of each column that count as missing, if the table is the imputer's."""
    if found is None or not names:
        return None
    columns = {column["column"]: column for column in found.statistics}
    if set(names) - set(columns):
        return None
    return [
        round(found.n_rows * (columns[name]["missing"] + columns[name]["infinite"]))
        for name in names
    ]


def value_text(value: Any) -> str:
    if value is np.ma.masked:
        return "-"
    is_float = isinstance(value, (float, np.floating))
    return f"{value:.6g}" if is_float else str(value)


def incident_section(reports: Sequence[NonFiniteReport]) -> Iterator[str]:
    if not reports:
        yield section("Incidents", [element("p", "None: no step failed.")])
        return
    alike: dict[Any, list[NonFiniteReport]] = {}
    for each in reports:
        kind = (each.phase, each.cause, each.operation, each.source, each.module)
        alike.setdefault(kind, []).append(each)
    told = [_incident(*each) for each in list(alike.values())[:_N_INCIDENTS]]
    n_left = len(alike) - len(told)
    if n_left:
        words = f"{n_left} other kinds of incident in nonfinite_reports_."
        told.append(element("p", words, "quiet"))
    yield section(f"Incidents: {len(reports)}", told)


def _incident(found: NonFiniteReport, *others: NonFiniteReport) -> str:
    """The first of its kind in full, and where the others were."""
    blamed = [
        ("rows", ", ".join(map(str, found.rows[:10]))),
        ("columns", ", ".join(map(str, found.columns[:10]))),
    ]
    rows = [
        ("cause", found.cause.replace("_", " ")),
        *[(name, text) for name, text in blamed if text],
        ("evidence", found.evidence),
        ("what was done", found.recovery or "training stopped"),
        ("remedy", found.action),
    ]
    if others:
        places = "; ".join(each.place for each in others[:10])
        more = f"; and {len(others) - 10} more" if len(others) > 10 else ""
        rows.append(
            (
                "again, once" if len(others) == 1 else f"again, {len(others)} times",
                f"{places}{more}",
            )
        )
    head = f"<p>{element('b', found.headline, 'what')}</p>"
    return f'<div class="incident">{head}{_lines(found.source)}{table(rows)}</div>'


def _lines(source: str | None) -> str:
    """The line that failed and those around it, where the file is there to read."""
    if source is None:
        return ""
    name, _, number = source.rpartition(":")
    if not number.isdigit():
        return ""
    failed = int(number)
    around = range(max(1, failed - _N_AROUND), failed + _N_AROUND + 1)
    lines = [(n, linecache.getline(name, n).rstrip()) for n in around]
    if not any(text for n, text in lines if n == failed):
        return ""
    shown = [f"{'>' if n == failed else ' '} {n:4d}  {text}" for n, text in lines]
    return element("pre", "\n".join(shown))
