"""What an audit finds in the target, and in columns that know too much of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from sknan._utils.validation import FLOAT32_MAX
from sknan.inspection._audit._column_profile import ColumnFacts
from sknan.inspection._audit._columns import key_rows, read_facts
from sknan.inspection._audit._finding import (
    Trait,
    number,
    percent,
    quantity,
    quoted,
    share,
)
from sknan.inspection._audit._tables import codes_of
from sknan.preprocessing._tables.lazy_table import LazyTable
from sknan.preprocessing._tables.numeric_sentinels import sample_rows
from sknan.preprocessing._tables.sentinels import is_word_for_missing
from sknan.preprocessing._tables.typed_column import TypedColumn

__all__ = ["Target", "Task", "read_target", "traits_with_target"]

Task = Literal["auto", "classification", "regression"]

# Whole numbers with more levels, or fewer rows to each, are amounts.
_MAX_CLASSES = 20
_ROWS_PER_CLASS = 10

# Five folds want as many of each class.
_N_FOLDS = 5

# The largest class over the smallest.
_IMBALANCED = 10

_SKEWED = 1.5

# A value that is so frequent among numbers is a class of its own.
_FREQUENT = 0.2

# Missing cells tell the target if their share differs by so much between classes, or
# so many more pairs of rows are in order than not; and goes with it from here on.
_TELLS = 0.95
_GOES_WITH = 0.2
_FEW = 10
_FEW_PAIRS = 50
_SIGNIFICANT = 5.0

# Of the order of two columns, for them to be one.
_SAME_ORDER = 0.9999


@dataclass
class Target:
    """The target in figures, and what is found in it.

    Attributes
    ----------
    column : TypedColumn
        As it was read.
    task : {"classification", "regression"} or None
        How it is taken; None where it can be neither.
    missing : ndarray of bool
        Which are not known: NaN and infinite ones.
    numbers : ndarray of float or None
        Of a regression.
    codes : ndarray of int or None
        Of a classification, -1 where missing.
    labels : tuple of str
        The classes.
    text : str
        What it is, in a few words.
    traits : list of Trait
        What is found.
    """

    column: TypedColumn
    task: Literal["classification", "regression"] | None
    missing: NDArray[np.bool_]
    numbers: NDArray[np.float64] | None = None
    codes: NDArray[np.int64] | None = None
    labels: tuple[str, ...] = ()
    text: str = ""
    traits: list[Trait] = field(default_factory=list)

    @property
    def values(self) -> NDArray[Any]:
        """Numbers, codes, or whether it is missing."""
        if self.numbers is not None:
            return self.numbers
        return self.missing if self.codes is None else self.codes

    def note(self, kind: str, value: float, detail: str) -> None:
        """Remember what is found."""
        name = self.column.name
        where = (self.column.label, self.column.position) if name else ()
        self.traits.append(Trait(kind, name, value, detail, *where))


def read_target(column: TypedColumn, task: Task) -> Target:
    """All that is found in the target on its own.

    Parameters
    ----------
    column : TypedColumn
        As it was read.
    task : {"auto", "classification", "regression"}
        How to take it.

    Returns
    -------
    Target
    """
    n_rows = len(column.cells)
    facts = read_facts(column, n_rows)
    missing = np.zeros(n_rows, dtype=bool)
    if facts.n_missing:
        missing = np.asarray(pd.isna(column.cells))
    target = Target(column, None, missing)
    if facts.n_missing:
        target.note("missing", facts.n_missing, share(facts.n_missing, n_rows))
    if not facts.n_known:
        target.text = "nothing known"
    elif column.holds in ("nested", "complex", "dates", "mixed"):
        target.text = {"mixed": "mixed types"}.get(column.holds, column.holds)
        target.note("not learnable", facts.n_known, f"it holds {target.text}")
    elif _is_regression(facts, column, task):
        _read_numbers(target, facts)
    else:
        _read_classes(target, facts)
    return target


def _is_regression(facts: ColumnFacts, column: TypedColumn, task: Task) -> bool:
    if task != "auto":
        return task == "regression"
    if column.holds == "text":
        return facts.has("numbers as text") and facts.n_levels > _MAX_CLASSES
    if column.holds not in ("numbers", "durations"):
        return False
    cells = column.cells
    is_whole = cells.dtype.kind in "iu"
    if cells.dtype.kind == "f":
        finite = cells[np.isfinite(cells)]
        is_whole = bool((finite == np.floor(finite)).all())
    is_few = facts.n_levels <= min(_MAX_CLASSES, facts.n_known / _ROWS_PER_CLASS)
    return not (is_whole and (is_few or facts.n_levels <= 2))


def _read_numbers(target: Target, facts: ColumnFacts) -> None:
    cells = target.column.cells
    if not isinstance(cells, np.ndarray):
        cells = cells.astype(object)
        example = str(cells.dropna().iloc[0])
        cells = pd.to_numeric(cells, errors="coerce").to_numpy(float, na_value=np.nan)
        if np.isnan(cells).all():
            target.text = target.column.holds
            target.note("not learnable", facts.n_known, f"it holds {target.text}")
            return
        target.note("numbers as text", facts.n_known, f"such as {quoted(example)}")
    elif cells.dtype.kind == "m":
        cells = cells / np.timedelta64(1, "s")
    target.task = "regression"
    target.numbers = cells.astype(np.float64)
    target.missing = ~np.isfinite(target.numbers)
    for trait in facts.traits:
        if trait.kind in _SHARED:
            target.note(trait.kind, trait.value, trait.detail)
    target.text = f"{number(facts.low)} to {number(facts.high)}, regression"
    if not facts.low < facts.high:
        target.text = "one value" if facts.low == facts.high else "nothing finite"
        return
    if facts.top_share >= _FREQUENT and facts.n_levels > _MAX_CLASSES:
        value = _top(target.numbers)
        n_top = int((target.numbers == value).sum())
        detail = f"{number(value)} in {share(n_top, facts.n_known)}"
        target.note("one value", facts.top_share, detail)
    skewness = _skewness(target.numbers, [s.value for s in facts.sentinels])
    if abs(skewness) >= _SKEWED and not facts.has("heavy tail", "lone outlier"):
        target.note("skew", abs(skewness), f"skewness {number(skewness)}")
    spread = facts.q3 - facts.q1
    if spread > 0 and not 0.01 <= max(spread, abs(facts.median)) < 100:
        detail = f"median {number(facts.median)}, quartiles {number(spread)} apart"
        target.note("scale", spread, detail)


# What is said of a column of numbers goes for a target too.
_SHARED = (
    *("infinite", "beyond float32", "float32 precision", "constant", "sentinel"),
    *("heavy tail", "lone outlier"),
)


def _top(numbers: NDArray[np.float64]) -> float:
    values, counts = np.unique(_sample(numbers), return_counts=True)
    return float(values[counts.argmax()])


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    rows = sample_rows(len(array))
    return array if rows is None else array[rows]


def _skewness(numbers: NDArray[np.float64], sentinels: Sequence[float]) -> float:
    few = _sample(numbers)
    few = few[np.abs(few) <= FLOAT32_MAX]
    few = few[~np.isin(few, list(sentinels))]
    if few.size < _FEW or few.min() == few.max():
        return 0.0
    few = few / np.abs(few).max()  # whose cubes cannot overflow
    deviation = few - few.mean()
    spread = math.sqrt(float((deviation**2).mean()))
    return float((deviation**3).mean()) / spread**3 if spread > 1e-12 else 0.0


def _read_classes(target: Target, facts: ColumnFacts) -> None:
    target.task = "classification"
    column = target.column
    if facts.n_infinite:
        target.note("infinite", facts.n_infinite, share(facts.n_infinite, facts.n_rows))
        target.missing = ~np.isfinite(column.cells)
        column = column._replace(cells=np.where(target.missing, np.nan, column.cells))
    codes, labels = codes_of(column)
    target.codes = codes
    target.labels = tuple(_label(label, column.holds) for label in labels)
    counts = np.bincount(codes[codes >= 0], minlength=len(labels))
    known = int(counts.sum())
    if not known:
        target.text = "nothing finite"
        return
    most, least = int(counts.argmax()), int(counts.argmin())
    target.text = (
        f"{len(labels)} classes, {target.labels[least]} the rarest "
        f"({share(int(counts[least]), known)})"
    )
    words = [i for i, label in enumerate(labels) if is_word_for_missing(label)]
    for i in words:
        shown = f"{target.labels[i]} in {share(int(counts[i]), known)}"
        target.note("sentinel", counts[i] / known, shown)
    if len(labels) == 1:
        target.text = "one class"
        target.note("constant", 1.0, f"always {target.labels[0]}")
    elif len(labels) > max(_MAX_CLASSES, known / 2):
        detail = f"{len(labels)} classes in {quantity(known, 'row')}"
        target.note("nearly all distinct", len(labels) / known, detail)
    else:
        _note_rare(target, counts)
        if counts[most] >= _IMBALANCED * counts[least]:
            detail = (
                f"{target.labels[most]} in {share(int(counts[most]), known)}, "
                f"{target.labels[least]} in {share(int(counts[least]), known)}"
            )
            target.note("imbalance", counts[most] / counts[least], detail)


def _label(label: Any, holds: str) -> str:
    if isinstance(label, str):
        return quoted(label)
    return str(bool(label)) if holds == "flags" else number(label)


def _note_rare(target: Target, counts: NDArray[np.int64]) -> None:
    is_rare = (counts > 1) & (counts < _N_FOLDS)
    for kind, rare in (
        ("single-member classes", counts == 1),
        ("rare classes", is_rare),
    ):
        found = np.flatnonzero(rare)
        if found.size:
            shown = ", ".join(target.labels[i] for i in found[:3])
            more = ", ..." if found.size > 3 else ""
            detail = f"{found.size} of {len(counts)}: {shown}{more}"
            target.note(kind, found.size, detail)


# -- columns that know of it ---------------------------------------------------------


def traits_with_target(
    table: LazyTable, facts: Sequence[ColumnFacts], target: Target
) -> Iterator[Trait]:
    """Columns that are the target again, or whose missing cells tell of it.

    Parameters
    ----------
    table : LazyTable
        As it was read.
    facts : sequence of ColumnFacts
        Of all its columns.
    target : Target
        As it was read.

    Yields
    ------
    Trait
    """
    if target.task is None or table.is_sparse:
        return
    few = target.values[key_rows(table.n_rows)]
    key = pd.factorize(few)[0].tobytes()
    missing = _sample(target.missing)
    known = ~missing
    values = _sample(target.values)[known]
    ranks = stats.rankdata(values) if target.numbers is not None else None
    for fact in facts:
        detail = _how_equal(table, fact, target, key, few)
        if detail:
            yield _trait("copy of the target", fact, 1.0, detail)
        if fact.missing_rows is None:
            continue
        detail = _how_alike(fact.missing_rows, missing)
        if detail:
            yield _trait("missing with the target", fact, 1.0, detail)
        holes = fact.missing_rows[known]
        if min(holes.sum(), holes.size - holes.sum()) < _FEW:
            continue
        if ranks is None:
            strength, detail = _by_class(holes, values, target.labels)
        else:
            strength, detail = _by_rank(holes, values, ranks)
        if strength >= _TELLS:
            yield _trait("missing tells the target", fact, strength, detail)
        elif strength >= _GOES_WITH:
            yield _trait("missing goes with the target", fact, strength, detail)


def _trait(kind: str, fact: ColumnFacts, value: float, detail: str) -> Trait:
    return Trait(kind, fact.name, value, detail, fact.label, fact.position)


def _how_equal(
    table: LazyTable, fact: ColumnFacts, target: Target, key: bytes, few: NDArray[Any]
) -> str:
    """In what way a column is the target, in words; empty if it is not."""
    if not fact.key or not fact.top_share < 1:
        return ""
    if target.codes is not None:
        if fact.key != key:
            return ""
        codes, _ = codes_of(table.read(fact.position))
        return "class by class" if np.array_equal(codes, target.codes) else ""
    if fact.holds != "numbers":
        return ""
    codes = np.frombuffer(fact.key, dtype=np.int64)
    numbers = np.array([*fact.levels, np.nan], dtype=np.float64)[codes]
    both = np.isfinite(numbers) & np.isfinite(few)
    numbers, few = numbers[both], few[both]
    if numbers.size < _FEW_PAIRS or len(np.unique(few)) < _FEW:
        return ""
    if np.array_equal(numbers, few):
        return "equal to it"
    ranks = (stats.rankdata(numbers), stats.rankdata(few))
    if ranks[0].min() == ranks[0].max():
        return ""
    correlation = abs(float(np.corrcoef(*ranks)[0, 1]))
    return "in the very order" if correlation >= _SAME_ORDER else ""


def _how_alike(holes: NDArray[np.bool_], missing: NDArray[np.bool_]) -> str:
    """Whether a column is missing where the target is, in words."""
    n_both, n_any = int((holes & missing).sum()), int((holes | missing).sum())
    if n_both < _FEW or n_both < _TELLS * n_any:
        return ""
    return f"{share(n_both, n_any)} of the rows where either is missing"


def _by_class(
    holes: NDArray[np.bool_], codes: NDArray[np.int64], labels: Sequence[str]
) -> tuple[float, str]:
    """How far the share of missing cells differs between a class and the others."""
    n_rows = np.bincount(codes, minlength=len(labels)).astype(np.float64)
    n_holes = np.bincount(codes, weights=holes, minlength=len(labels))
    n_others, total = holes.size - n_rows, holes.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        inside, outside = n_holes / n_rows, (holes.sum() - n_holes) / n_others
        error = np.sqrt(total * (1 - total) * (1 / n_rows + 1 / n_others))
        difference = np.abs(inside - outside)
        is_sure = difference >= _SIGNIFICANT * error
    is_sure &= np.minimum(n_rows, n_others) >= _FEW
    if not is_sure.any():
        return 0.0, ""
    at = int(np.where(is_sure, difference, -1.0).argmax())
    detail = (
        f"in {percent(inside[at])} of {labels[at]}, {percent(outside[at])} of others"
    )
    return float(difference[at]), detail


def _by_rank(
    holes: NDArray[np.bool_], values: NDArray[np.float64], ranks: NDArray[np.float64]
) -> tuple[float, str]:
    """How many more pairs of a missing and a known cell are in order than not."""
    n_holes, n_rows = int(holes.sum()), holes.size
    n_pairs = n_holes * (n_rows - n_holes)
    excess = float(ranks[holes].sum()) - n_holes * (n_rows + 1) / 2
    error = math.sqrt(n_pairs * (n_rows + 1) / 12)
    if abs(excess) < _SIGNIFICANT * error:
        return 0.0, ""
    inside, outside = np.median(values[holes]), np.median(values[~holes])
    detail = f"y around {number(inside)} there, {number(outside)} elsewhere"
    return 2 * abs(excess) / n_pairs, detail
