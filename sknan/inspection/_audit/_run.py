"""Audit of a table and its target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from sknan._utils.progress import advance, progress
from sknan._utils.validation import VERBOSE, check_parameter, did_you_mean, is_one_of
from sknan.inspection._audit._column_profile import ColumnProfile
from sknan.inspection._audit._columns import profile_column
from sknan.inspection._audit._finding import Finding, Observation, group_by_kind
from sknan.inspection._audit._formatting import quantity
from sknan.inspection._audit._leakage import observations_of_leakage
from sknan.inspection._audit._remedies import SEVERITIES
from sknan.inspection._audit._table_audit import TableAudit, statistics_of
from sknan.inspection._audit._tables import (
    duplicated_rows,
    observations_in_table,
    size_in_words,
)
from sknan.inspection._audit._target import Target, Task, profile_target
from sknan.preprocessing._chunks import as_chunks
from sknan.preprocessing._tables.lazy_table import LazyTable, read_table
from sknan.preprocessing._tables.numeric_sentinels import SAMPLE_SIZE
from sknan.preprocessing._tables.sentinels import known_sentinels
from sknan.preprocessing._tables.typed_column import TypedColumn, read_column

_TASKS = ("auto", "classification", "regression")


def audit(
    X: Any, y: Any = None, *, task: Task = "auto", verbose: int | bool = 0
) -> TableAudit:
    """Find what in a table would break or hurt the training of a network.

    The table is not changed, and no model is fitted. Each finding has its numbers, a
    severity, and either what :func:`tabular_pipeline` does about it or what you should
    do.

    Parameters
    ----------
    X : DataFrame, array, sparse matrix, list or chunks, (n_samples, n_features)
        Table of pandas, polars, numpy or SciPy. It needs no preparation: missing
        values, text, dates and nested cells are allowed. Of chunks, which
        :func:`~sknan.preprocessing.iter_chunks` gives, random rows are audited.

    y : Series, array-like of shape (n_samples,) or str, default=None
        Target, or name of the column of ``X`` that is the target. If it has several
        columns, each is audited as a target.

    task : {"auto", "classification", "regression"}, default="auto"
        Task of the network. With ``"auto"``, text, booleans and categories are classes,
        and so are integers with at most 20 distinct values that occur ten times on
        average.

    verbose : int or bool, default=0
        1 shows a progress bar over the columns in a terminal or a notebook, but not in
        a log.

    Returns
    -------
    TableAudit
        Prints as a short text, is displayed as a table in notebooks, and converts to a
        DataFrame.

    Raises
    ------
    TypeError
        If ``X`` is not a table.
    ValueError
        If ``X`` does not have two dimensions, ``y`` has a different length or is the
        name of no column or of several, or ``task`` is unknown.

    See Also
    --------
    suspected_sentinels : Values of one column that probably mean "missing".
    table_sentinels : The same for all columns of a table.

    Notes
    -----
    Missing and infinite cells, cells beyond float32, sentinels, extremes, constant
    columns, and duplicated columns and rows are counted in all rows. Quartiles,
    categories, formats of text and relations to the target come from a sample if the
    table has more than 65 536 rows. The sample is the same each time, and the summary
    mentions it. Columns are read one at a time, so the audit needs memory for only a
    few columns in addition to the table.

    In sparse matrices, cells that are not stored are 0. Duplicates, and relations of
    missing cells to other columns, are not searched there.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from sknan import audit
    >>> rng = np.random.default_rng(0)
    >>> frame = pd.DataFrame({"age": rng.integers(18, 90, 300), "city": "Rome"})
    >>> frame.loc[:19, "age"] = -999
    >>> frame["pay"] = rng.normal(size=300)
    >>> frame.loc[5, "pay"] = np.inf
    >>> print(audit(frame, rng.choice(["yes", "no"], size=300)))
    300 rows, 3 columns: 2 of numbers, 1 of text. Target: 2 classes, the rarest is
    'no' (50 %).
    <BLANKLINE>
    Breaks training
      infinite: 'pay' (1 of 300).
          -> tabular_pipeline treats infinities as missing.
    <BLANKLINE>
    Hurts
      sentinel: 'age' (-999 in 6.7 %).
          -> tabular_pipeline(sentinels='auto') treats them as missing: check that
             they are.
    <BLANKLINE>
    Notice
      constant: 'city' (always 'Rome').
          -> Nothing can be learned from them; tabular_pipeline sets numeric ones to
             0.
    """
    if not is_one_of(task, _TASKS):
        known = ", ".join(map(repr, _TASKS))
        hint = did_you_mean(str(task), _TASKS)
        raise ValueError(f"task must be one of {known}, got {task!r}.{hint}")
    check_parameter("audit", "verbose", verbose, VERBOSE)
    origin = ""
    if (chunks := as_chunks(X)) is not None:
        X, y = chunks.with_target(y).sampled_rows()
        if len(X) < chunks.n_rows:
            origin = f"A random sample of {quantity(chunks.n_rows, 'row')}. "
    table = read_table(X)
    if isinstance(y, str):
        position = _position_of(table, y)
        target_columns = [table.read(position)._replace(name="")]
        table = table.without(position)
    else:
        target_columns = _columns_of_target(y, table.n_rows)
    targets = [profile_target(column, task) for column in target_columns]
    profiles = _profile_columns(table, verbose)
    findings = group_by_kind([o for t in targets for o in t.observations], "y")
    findings += group_by_kind(_observations_in_X(table, profiles, targets), "X")
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    sentinels: dict[Any, list[Any]] = {}
    for profile in profiles:
        if profile.sentinels:
            values = sentinels.setdefault(profile.label, [])
            values += [s.value for s in profile.sentinels if s.value not in values]
    return TableAudit(
        tuple(findings),
        table.n_rows,
        table.n_columns,
        origin + _summary(table, profiles, targets, findings),
        tuple(statistics_of(profiles, findings)),
        sentinels,
    )


def _position_of(table: LazyTable, name: str) -> int:
    """Return the position of the column that is the target."""
    labels = {
        j: label for j, label in enumerate(table.labels or []) if isinstance(label, str)
    }
    positions = [j for j, label in labels.items() if label == name]
    if len(positions) == 1:
        return positions[0]
    if positions:
        places = ", ".join(map(str, positions))
        raise ValueError(
            f"y={name!r} is the name of columns {places}. Pass the target itself."
        )
    names = list(labels.values())
    hint = did_you_mean(name, names) if names else " X has no column names."
    raise ValueError(
        f"y={name!r} is not a column of X.{hint} Pass the name of a column, or the "
        "target itself."
    )


def _columns_of_target(y: Any, n_rows: int) -> list[TypedColumn]:
    if y is None:
        return []
    if not hasattr(y, "__len__") or getattr(y, "ndim", 1) == 0:
        raise TypeError(
            "y must be the target of each row, or the name of a column, got "
            f"{type(y).__name__}. Pass a Series, an array or a list."
        )
    is_table = getattr(y, "ndim", 1) == 2 or hasattr(y, "columns")
    columns = list(read_table(y).columns()) if is_table else [read_column(y)]
    if len(y) != n_rows:
        raise ValueError(
            f"X has {quantity(n_rows, 'row')}, and y has {len(y)}. Pass one target "
            "for each row."
        )
    if len(columns) == 1:
        return [columns[0]._replace(name="")]
    return columns


def _profile_columns(table: LazyTable, verbose: int | bool) -> list[ColumnProfile]:
    profiles: list[ColumnProfile] = []
    if not table.n_rows:
        return profiles
    with progress("Audit", table.n_columns, "columns", verbose=verbose):
        for column in table.columns():
            profiles.append(profile_column(column, table.n_rows))
            advance(1)
    # A sentinel of several columns needs less evidence in the others.
    known = known_sentinels(profile.sentinels for profile in profiles)
    for i, profile in enumerate(profiles):
        is_candidate = profile.holds == "numbers" and not profile.sentinels
        if is_candidate and (profile.low in known or profile.high in known):
            column = table.read(profile.position)
            profiles[i] = profile_column(column, table.n_rows, known)
    return profiles


def _observations_in_X(
    table: LazyTable, profiles: Sequence[ColumnProfile], targets: Sequence[Target]
) -> Iterator[Observation]:
    for profile in profiles:
        yield from profile.observations
    yield from observations_in_table(table, profiles)
    y = None
    if profiles and len(targets) == 1:
        yield from observations_of_leakage(table, profiles, targets[0])
        y = targets[0].values
    yield from duplicated_rows(table, profiles, y)


def _summary(
    table: LazyTable,
    profiles: Sequence[ColumnProfile],
    targets: Sequence[Target],
    findings: Sequence[Finding],
) -> str:
    """Describe the table and the target, and mention a sample or a lack of findings."""
    counts = Counter(profile.holds for profile in profiles).most_common()
    kinds = ", ".join(
        f"{count} empty" if kind == "nothing" else f"{count} of {kind}"
        for kind, count in counts
    )
    size = size_in_words(table)
    parts = [f"{size}: {kinds}." if kinds else f"{size}."]
    if targets:
        texts = "; ".join(target.text for target in targets[:3])
        more = f" and {len(targets) - 3} more" if len(targets) > 3 else ""
        parts.append(f"Target: {texts}{more}.")
    if table.n_rows > SAMPLE_SIZE:
        n_sampled = quantity(SAMPLE_SIZE, "row")
        parts.append(f"Quartiles, categories and formats are those of {n_sampled}.")
    if not findings:
        parts.append("Nothing found that would break or hurt training.")
    return " ".join(parts)
