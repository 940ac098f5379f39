"""What in a table would break or hurt the training of a network: audit."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from sknan._utils.progress import advance, progress
from sknan._utils.validation import did_you_mean
from sknan.inspection._audit._column_profile import ColumnFacts
from sknan.inspection._audit._columns import read_facts
from sknan.inspection._audit._finding import (
    Finding,
    Trait,
    group_by_kind,
    in_order,
    quantity,
)
from sknan.inspection._audit._remedies import SEVERITIES, Severity
from sknan.inspection._audit._tables import (
    copied_rows,
    count_kinds,
    on_copied_rows,
    traits_of_table,
)
from sknan.inspection._audit._target import (
    Target,
    Task,
    read_target,
    traits_with_target,
)
from sknan.preprocessing._tables.lazy_table import LazyTable, read_table
from sknan.preprocessing._tables.numeric_sentinels import SAMPLE_SIZE
from sknan.preprocessing._tables.sentinels import (
    known_sentinels,
    suspected_sentinels,
    table_sentinels,
)
from sknan.preprocessing._tables.typed_column import TypedColumn, read_column

__all__ = ["Finding", "TableAudit", "audit", "suspected_sentinels", "table_sentinels"]

_WIDTH = 80

_TASKS = ("auto", "classification", "regression")


@dataclass(frozen=True, repr=False)
class TableAudit:
    """What was found in a table: to print, to show, to sort and to filter.

    Made by :func:`audit`.

    Parameters
    ----------
    findings : tuple of Finding
        The worst first, each kind once with all its columns.
    n_rows, n_columns : int
        Size of the table.
    summary : str
        What the table and the target hold, in two or three sentences.
    statistics : tuple of dict
        One per column, as in ``to_frame("columns")``.
    sentinels : dict
        Suspected sentinels by column: label (position, where there are no labels) to
        a list of values as they stand in the table, the most frequent first.

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
        # An audit without findings is still one.
        return True

    def of_severity(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings that are so bad.

        Parameters
        ----------
        severity : {"breaks training", "hurts", "notice"}
            How bad.

        Returns
        -------
        tuple of Finding
        """
        return tuple(f for f in self.findings if f.severity == severity)

    def to_frame(self, of: Literal["findings", "columns"] = "findings") -> pd.DataFrame:
        """The audit as a table.

        Parameters
        ----------
        of : {"findings", "columns"}, default="findings"
            One row for each finding in each column, or one for each column of the
            table, whether something was found in it or not.

        Returns
        -------
        DataFrame
            Of findings: ``severity``, ``where`` ("X" or "y"), ``kind``, ``column`` and
            ``position`` (None for the table as a whole), ``value``, ``detail``,
            ``action`` and ``by_pipeline``. Of columns: ``column``, ``dtype``,
            ``holds``, shares from 0 to 1 (``missing``, ``infinite``,
            ``beyond_float32``, ``top_share`` of the most frequent value among the known
            ones), ``n_levels``, ``low``, ``q1``, ``median``, ``q3``, ``high`` and
            ``extent`` (how many interquartile ranges the farthest value lies beyond the
            quartiles) without sentinels, ``sentinels``, ``severity`` (the worst) and
            ``kinds`` of what was found.
        """
        if of == "columns":
            return pd.DataFrame(list(self.statistics), columns=list(_STATISTICS))
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
        """The same as a table, for notebooks; in the colours of the page."""
        rows = "".join(
            f"<tr><td style='{_CELL}'>{html.escape(finding.severity)}</td>"
            f"<td style='{_CELL}'><b>{html.escape(finding.title)}</b></td>"
            f"<td style='{_CELL}'>{html.escape(finding.evidence)}</td>"
            f"<td style='{_CELL}'>{html.escape(finding.action)}</td></tr>"
            for finding in self.findings
        )
        heads = "".join(
            f"<th style='{_CELL}'>{name}</th>"
            for name in ("severity", "finding", "where", "what is done, or what to do")
        )
        table = f"<table><tr>{heads}</tr>{rows}</table>" if rows else ""
        return f"<div><p>{html.escape(self.summary)}</p>{table}</div>"


_CELL = "text-align:left; vertical-align:top"

_COLUMNS = [
    *("severity", "where", "kind", "column", "position", "value", "detail", "action"),
    "by_pipeline",
]

_STATISTICS: dict[str, Callable[[ColumnFacts], Any]] = {
    "column": lambda facts: facts.label,
    "dtype": lambda facts: facts.dtype,
    "holds": lambda facts: facts.holds,
    "missing": lambda facts: facts.n_missing / facts.n_rows,
    "infinite": lambda facts: facts.n_infinite / facts.n_rows,
    "beyond_float32": lambda facts: facts.n_beyond / facts.n_rows,
    "n_levels": lambda facts: facts.n_levels,
    "top_share": lambda facts: facts.top_share,
    "low": lambda facts: facts.low,
    "q1": lambda facts: facts.q1,
    "median": lambda facts: facts.median,
    "q3": lambda facts: facts.q3,
    "high": lambda facts: facts.high,
    "extent": lambda facts: facts.extent,
    "sentinels": lambda facts: [sentinel.value for sentinel in facts.sentinels],
    "severity": lambda facts: None,
    "kinds": lambda facts: [],
}


def _wrapped(text: str, first: str = "", others: str = "") -> list[str]:
    """Lines of a paragraph, none beginning with a percent sign."""
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
    about = (finding.severity, finding.where, finding.kind)
    done = (finding.action, finding.by_pipeline)
    columns = zip(finding.columns, finding.positions, strict=True)
    places: list[tuple[Any, int | None]] = list(columns)
    places = places or [(None, None)] * len(finding.details)
    for place, value, detail in zip(
        places, finding.values, finding.details, strict=True
    ):
        yield (*about, *place, value, detail, *done)


def audit(
    X: Any, y: Any = None, *, task: Task = "auto", verbose: int | bool = 0
) -> TableAudit:
    """What in a table would break or hurt the training of a network.

    Nothing is changed, and nothing but the table looked at: what is found is told with
    its numbers, how bad it is, and what :func:`tabular_pipeline` does about it or what
    you should.

    Parameters
    ----------
    X : DataFrame, array, sparse matrix or list of rows, (n_samples, n_features)
        The table, of pandas, polars, numpy or SciPy, as it is: with holes, text, dates
        and whatever else.

    y : Series, array-like of shape (n_samples,) or str, default=None
        The target, or the name of the column of ``X`` that is the target. Several
        targets, as columns, are looked at one by one.

    task : {"auto", "classification", "regression"}, default="auto"
        How the target is to be taken. ``"auto"`` takes text, flags, categories and
        whole numbers of at most 20 different values, each ten times on average, for
        classes.

    verbose : int or bool, default=0
        1 shows a bar over the columns in a terminal or a notebook, and nothing in a
        log.

    Returns
    -------
    TableAudit
        Prints as a short text, shows as a table in notebooks, and gives a DataFrame.

    Raises
    ------
    TypeError
        If ``X`` is no table.
    ValueError
        If it does not have two dimensions, ``y`` is of another length or the name of no
        column or of several, or ``task`` is none of the three.

    See Also
    --------
    suspected_sentinels : The values of one column that seem to stand for "missing".
    table_sentinels : The same for all columns of a table.

    Notes
    -----
    Cells that are missing, infinite or beyond float32, sentinels, extremes, constant
    columns and copies of columns and rows are counted in all rows. Of a table of more
    than 65 536 rows a sample, the same each time, tells quartiles, levels, formats of
    text and what goes with the target; the result says so. Columns are read one at a
    time: beside the table there is memory for a few of them.

    In sparse matrices what is not stored is 0, and copies and missing cells are not
    held against other columns.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from sknan import audit
    >>> rng = np.random.default_rng(0)
    >>> frame = pd.DataFrame({"age": rng.integers(18, 90, 300), "city": "Rome"})
    >>> frame.loc[:19, "age"] = -999
    >>> frame["pay"] = rng.normal(size=300)
    >>> frame.loc[5, "pay"] = np.inf
    >>> print(audit(frame, np.where(frame["pay"] > 0, "yes", "no")))
    300 rows, 3 columns: 2 of numbers, 1 of text. Target: 2 classes, 'yes' the
    rarest (45 %).
    <BLANKLINE>
    Breaks training
      infinite: 'pay' (1 of 300).
          -> tabular_pipeline counts infinities as missing.
    <BLANKLINE>
    Hurts
      sentinel: 'age' (-999 in 6.7 %).
          -> tabular_pipeline(sentinels='auto') counts them as missing: see that
             they are.
    <BLANKLINE>
    Notice
      constant: 'city' (always 'Rome').
          -> Nothing can be learnt from them; tabular_pipeline makes numbers among
             them 0.
    """
    if task not in _TASKS:
        known = ", ".join(map(repr, _TASKS))
        hint = did_you_mean(str(task), _TASKS)
        raise ValueError(f"task must be one of {known}, got {task!r}.{hint}")
    table = read_table(X)
    if isinstance(y, str):
        position = _position_of(table, y)
        column = table.read(position)._replace(name="")
        targets = [read_target(column, task)]
        table = table.without(position)
    else:
        targets = [read_target(c, task) for c in _columns_of_target(y, table.n_rows)]
    facts: list[ColumnFacts] = []
    if table.n_rows:
        with progress("Audit", table.n_columns, "columns", verbose=verbose):
            for column in table.columns():
                facts.append(read_facts(column, table.n_rows))
                advance(1)
        _look_again(table, facts)
    findings = group_by_kind(_traits_of_columns(table, facts, targets), "X")
    findings += group_by_kind(
        [trait for target in targets for trait in target.traits], "y"
    )
    findings = in_order(findings)
    sentinels: dict[Any, list[Any]] = {}
    for fact in facts:
        if fact.sentinels:
            found = sentinels.setdefault(fact.label, [])
            found += [s.value for s in fact.sentinels if s.value not in found]
    return TableAudit(
        tuple(findings),
        table.n_rows,
        table.n_columns,
        _summary(table, facts, targets, findings),
        tuple(_statistics(facts, findings)),
        sentinels,
    )


def _position_of(table: LazyTable, name: str) -> int:
    """Where the column stands that is the target."""
    labels = [] if table.labels is None else list(table.labels)
    is_text = [isinstance(label, str) for label in labels]
    positions = [j for j, label in enumerate(labels) if is_text[j] and label == name]
    if len(positions) == 1:
        return positions[0]
    if positions:
        places = ", ".join(map(str, positions))
        raise ValueError(
            f"y={name!r} is the name of columns {places}. Pass the target itself."
        )
    names = [label for j, label in enumerate(labels) if is_text[j]]
    hint = did_you_mean(name, names) if names else " X has no column names."
    raise ValueError(
        f"y={name!r} is no column of X.{hint} Pass the name of a column, or the target "
        "itself."
    )


def _columns_of_target(y: Any, n_rows: int) -> list[TypedColumn]:
    if y is None:
        return []
    if not hasattr(y, "__len__") or getattr(y, "ndim", 1) == 0:
        raise TypeError(
            f"y is the target of each row, or the name of a column, got "
            f"{type(y).__name__}. Pass a Series, an array or a list."
        )
    n_given = len(y)
    is_table = getattr(y, "ndim", 1) == 2 or hasattr(y, "columns")
    columns = list(read_table(y).columns()) if is_table else [read_column(y)]
    if n_given != n_rows:
        raise ValueError(
            f"X has {quantity(n_rows, 'row')}, and y has {n_given}. Pass one target "
            "for each row."
        )
    if len(columns) == 1:
        return [columns[0]._replace(name="")]
    return columns


def _look_again(table: LazyTable, facts: list[ColumnFacts]) -> None:
    """What is a sentinel in several columns needs less evidence in the others."""
    known = known_sentinels(fact.sentinels for fact in facts)
    for at, fact in enumerate(facts):
        is_candidate = fact.holds == "numbers" and not fact.sentinels
        if is_candidate and (fact.low in known or fact.high in known):
            facts[at] = read_facts(table.read(fact.position), fact.n_rows, known)


def _traits_of_columns(
    table: LazyTable, facts: Sequence[ColumnFacts], targets: Sequence[Target]
) -> Iterator[Trait]:
    for fact in facts:
        yield from fact.traits
    yield from traits_of_table(table, facts)
    if not facts:
        return
    target = targets[0] if len(targets) == 1 else None
    if target is not None:
        yield from traits_with_target(table, facts, target)
    copies = copied_rows(table, facts)
    if copies is not None:
        values = None if target is None else target.values
        yield from on_copied_rows(copies, table.n_rows, values)


def _summary(
    table: LazyTable,
    facts: Sequence[ColumnFacts],
    targets: Sequence[Target],
    findings: Sequence[Finding],
) -> str:
    """Size and contents, how many findings of what severity, and what was sampled."""
    size = f"{quantity(table.n_rows, 'row')}, {quantity(table.n_columns, 'column')}"
    parts = [f"{size}: {count_kinds(facts)}." if facts else f"{size}."]
    if targets:
        texts = "; ".join(target.text for target in targets[:3])
        more = f" and {len(targets) - 3} more" if len(targets) > 3 else ""
        parts.append(f"Target: {texts}{more}.")
    if table.n_rows > SAMPLE_SIZE:
        n_sampled = quantity(SAMPLE_SIZE, "row")
        parts.append(f"Quartiles, levels and formats are those of {n_sampled}.")
    if not findings:
        parts.append("Nothing found that would break or hurt training.")
    return " ".join(parts)


def _statistics(
    facts: Sequence[ColumnFacts], findings: Sequence[Finding]
) -> Iterator[dict[str, Any]]:
    about: dict[int, list[Finding]] = {}
    for finding in findings:
        for position in finding.positions if finding.where == "X" else ():
            about.setdefault(position, []).append(finding)
    for fact in facts:
        row = {name: of(fact) for name, of in _STATISTICS.items()}
        found = about.get(fact.position, [])
        row["severity"] = found[0].severity if found else None
        row["kinds"] = [finding.kind for finding in found]
        yield row
