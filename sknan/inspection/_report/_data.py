"""Sections of a report about the data: audit and imputation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from sknan.inspection._audit._run import audit
from sknan.inspection._audit._table_audit import HEADS, TableAudit
from sknan.inspection._audit_display import AuditDisplay
from sknan.inspection._report._html import (
    cut_table,
    drawn,
    element,
    section,
    table,
    value_text,
)
from sknan.preprocessing._imputer import NaNImputer


def data_sections(estimator: Any, X: Any, y: Any) -> Iterator[str]:
    """Return the sections about the table, if any, and about the imputers, if any.

    Parameters
    ----------
    estimator : estimator, net, ensemble, Pipeline or search
        Fitted model.
    X : DataFrame, array, sparse matrix or list of rows, or None
        Table to audit.
    y : Series, array-like of shape (n_samples,) or None
        Target of its rows.

    Yields
    ------
    str
    """
    found = None if X is None else audit(X, y)
    if found is not None:
        rows = [(f.severity, f.title, f.evidence, f.action) for f in found]
        parts = [element("p", found.summary), table(rows, HEADS)]
        if found.statistics:
            parts.append(
                drawn(
                    lambda: AuditDisplay.from_audit(found), "Missing cells and scales"
                )
            )
        yield section("Data", parts)
    imputers = list(_imputers_in(getattr(estimator, "best_estimator_", estimator)))
    if imputers:
        yield section("Imputation", [_imputation(step, found) for step in imputers])


def _imputers_in(model: Any) -> Iterator[NaNImputer]:
    steps: list[Any] = []
    if isinstance(model, NaNImputer):
        yield model
    elif isinstance(model, Pipeline):
        steps = [step for _, step in model.steps]
    elif isinstance(model, ColumnTransformer):
        steps = [step for _, step, _ in model.transformers_]
    for step in steps:
        yield from _imputers_in(step)


def _imputation(imputer: NaNImputer, found: TableAudit | None) -> str:
    """Return the fill values, those with the most cells to fill first."""
    fills = list(imputer.statistics_)
    names = list(getattr(imputer, "feature_names_in_", range(len(fills))))
    counts = _cells_to_fill(names, found)
    text = f"NaNImputer, strategy {imputer.strategy!r}"
    heads = ["column", "filled with"]
    rows = [(name, value_text(v)) for name, v in zip(names, fills, strict=True)]
    if counts is None:
        text += ": the fill value of each column."
        return element("p", text) + cut_table(rows, heads)
    order = sorted(range(len(fills)), key=lambda place: -counts[place])
    filled = [(*rows[place], counts[place]) for place in order if counts[place]]
    text += f": {sum(counts)} cells filled in {len(filled)} columns."
    return element("p", text) + cut_table(filled, [*heads, "cells in the table above"])


def _cells_to_fill(names: Sequence[Any], found: TableAudit | None) -> list[int] | None:
    """Return the number of missing and infinite cells in each column of an imputer.

    None if the audited table lacks a column of the imputer.
    """
    if found is None or not names:
        return None
    columns = {column["column"]: column for column in found.statistics}
    if set(names) - set(columns):
        return None
    return [
        round(found.n_rows * (columns[name]["missing"] + columns[name]["infinite"]))
        for name in names
    ]
