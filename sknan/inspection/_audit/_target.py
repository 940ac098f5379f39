"""Statistics and faults of the target."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sknan._utils.validation import FLOAT32_MAX
from sknan.inspection._audit._column_profile import ColumnProfile, sampled
from sknan.inspection._audit._columns import codes_of, profile_column
from sknan.inspection._audit._finding import Observation
from sknan.inspection._audit._formatting import number, quantity, quoted, share
from sknan.preprocessing._tables.sentinels import is_word_for_missing
from sknan.preprocessing._tables.typed_column import TypedColumn

Task = Literal["auto", "classification", "regression"]

# Integers with more distinct values, or fewer rows per value, are treated as amounts.
_MAX_CLASSES = 20
_ROWS_PER_CLASS = 10

# Number of folds that a cross-validation usually has.
_N_FOLDS = 5

# Smallest ratio of the largest to the smallest class that counts as imbalance.
_IMBALANCED = 10

# Smallest skewness that is reported.
_SKEWED = 1.5

# Share of the rows from which a number is frequent enough to be modeled separately.
_FREQUENT = 0.2

# Fewer values have no meaningful skewness.
_MIN_VALUES = 10

# Kinds that a numeric target has in common with a column of numbers.
_SHARED = (
    *("infinite", "beyond float32", "float32 precision", "constant", "sentinel"),
    *("heavy tail", "lone outlier"),
)

# Contents that a network cannot learn, in words.
_NOT_LEARNABLE = {
    "nested": "nested values",
    "complex": "complex numbers",
    "opaque": "objects without a text form (__str__)",
    "dates": "dates",
    "mixed": "mixed types",
}


@dataclass
class Target:
    """Statistics of the target, with the faults observed in it.

    Attributes
    ----------
    column : TypedColumn
        The target, as read.
    task : {"classification", "regression"} or None
        Task of a network with this target; None if it fits neither.
    missing : ndarray of bool
        Mask of the missing and infinite cells.
    numbers : ndarray of float or None
        Numbers of a regression.
    codes : ndarray of int or None
        Class of each row, -1 where missing.
    labels : tuple of str
        The classes in words.
    sentinels : list of float
        Suspected sentinels among the numbers.
    text : str
        Description of the target in a few words.
    observations : list of Observation
        Faults observed in the target.
    """

    column: TypedColumn
    task: Literal["classification", "regression"] | None
    missing: NDArray[np.bool_]
    numbers: NDArray[np.float64] | None = None
    codes: NDArray[np.int64] | None = None
    labels: tuple[str, ...] = ()
    sentinels: list[float] = field(default_factory=list)
    text: str = ""
    observations: list[Observation] = field(default_factory=list)

    @property
    def values(self) -> NDArray[Any]:
        """Numbers of a regression, else class codes, else the mask of missing cells."""
        if self.numbers is not None:
            return self.numbers
        return self.missing if self.codes is None else self.codes

    def add(self, kind: str, value: float, detail: str) -> None:
        """Add an observation, without a column name if there is only one target."""
        name = self.column.name
        where = (self.column.label, self.column.position) if name else ()
        self.observations.append(Observation(kind, value, detail, name, *where))


def profile_target(column: TypedColumn, task: Task) -> Target:
    """Return statistics of a target, with the faults that can be found without X."""
    n_rows = len(column.cells)
    profile = profile_column(column, n_rows)
    target = Target(column, None, np.asarray(pd.isna(column.cells)))
    if profile.n_missing:
        target.add("missing", profile.n_missing, share(profile.n_missing, n_rows))
    if not profile.n_known:
        target.text = "no known value"
    elif column.holds in _NOT_LEARNABLE:
        _add_not_learnable(target, profile, _NOT_LEARNABLE[column.holds])
    elif _is_regression(profile, column, task):
        _profile_numbers(target, profile)
    else:
        _profile_classes(target, profile)
    return target


def _add_not_learnable(target: Target, profile: ColumnProfile, contents: str) -> None:
    target.text = contents
    target.add("not learnable", profile.n_known, f"it contains {contents}")


def _is_regression(profile: ColumnProfile, column: TypedColumn, task: Task) -> bool:
    if task != "auto":
        return task == "regression"
    if column.holds == "text":
        return profile.has("numbers as text") and profile.n_distinct > _MAX_CLASSES
    if column.holds not in ("numbers", "durations"):
        return False
    cells = column.cells
    is_integer = cells.dtype.kind in "iu"
    if cells.dtype.kind == "f":
        finite = cells[np.isfinite(cells)]
        is_integer = bool((finite == np.floor(finite)).all())
    max_classes = min(_MAX_CLASSES, profile.n_known / _ROWS_PER_CLASS)
    return not (is_integer and profile.n_distinct <= max(2, max_classes))


# -- regression ----------------------------------------------------------------------


def _profile_numbers(target: Target, profile: ColumnProfile) -> None:
    cells = target.column.cells
    if not isinstance(cells, np.ndarray):
        cells = cells.astype(object)
        example = str(cells.dropna().iloc[0])
        cells = pd.to_numeric(cells, errors="coerce").to_numpy(float, na_value=np.nan)
        if np.isnan(cells).all():
            _add_not_learnable(target, profile, target.column.holds)
            return
        target.add("numbers as text", profile.n_known, f"such as {quoted(example)}")
    elif cells.dtype.kind == "m":
        cells = cells / np.timedelta64(1, "s")
    target.task = "regression"
    target.numbers = cells.astype(np.float64)
    target.missing = ~np.isfinite(target.numbers)
    found = [sentinel.value for sentinel in profile.sentinels]
    target.sentinels = [value for value in found if not isinstance(value, str)]
    for kind, value, detail, *_ in profile.observations:
        if kind in _SHARED:
            target.add(kind, value, detail)
    target.text = f"{number(profile.low)} to {number(profile.high)}, regression"
    if not profile.low < profile.high:
        is_constant = profile.low == profile.high
        target.text = "one value" if is_constant else "no finite value"
        return
    _add_frequent_value(target, profile)
    skewness = _skewness(target.numbers, target.sentinels)
    if abs(skewness) >= _SKEWED and not profile.has("heavy tail", "lone outlier"):
        target.add("skew", abs(skewness), f"skewness {number(skewness)}")
    spread = profile.q3 - profile.q1
    if spread > 0 and not 0.01 <= max(spread, abs(profile.median)) < 100:
        median = number(profile.median)
        detail = f"median {median}, interquartile range {number(spread)}"
        target.add("scale", spread, detail)


def _add_frequent_value(target: Target, profile: ColumnProfile) -> None:
    if profile.top_share < _FREQUENT or profile.n_distinct <= _MAX_CLASSES:
        return
    numbers = target.values
    values, counts = np.unique(sampled(numbers), return_counts=True)
    top = float(values[counts.argmax()])
    n_top = int((numbers == top).sum())
    detail = f"{number(top)} in {share(n_top, profile.n_known)}"
    target.add("one value", profile.top_share, detail)


def _skewness(numbers: NDArray[np.float64], sentinels: Collection[float]) -> float:
    sample = sampled(numbers)
    sample = sample[np.abs(sample) <= FLOAT32_MAX]
    sample = sample[~np.isin(sample, list(sentinels))]
    if sample.size < _MIN_VALUES or sample.min() == sample.max():
        return 0.0
    sample = sample / np.abs(sample).max()  # Cubes of larger numbers could overflow.
    deviation = sample - sample.mean()
    spread = math.sqrt(float((deviation**2).mean()))
    return float((deviation**3).mean()) / spread**3 if spread > 1e-12 else 0.0


# -- classification ------------------------------------------------------------------


def _profile_classes(target: Target, profile: ColumnProfile) -> None:
    target.task = "classification"
    column, n_infinite = target.column, profile.n_infinite
    if n_infinite:
        target.add("infinite", n_infinite, share(n_infinite, profile.n_rows))
        target.missing = ~np.isfinite(column.cells)
        column = column._replace(cells=np.where(target.missing, np.nan, column.cells))
    target.codes, classes = codes_of(column)
    target.labels = tuple(_in_words(label, column.holds) for label in classes)
    counts = np.bincount(target.codes[target.codes >= 0], minlength=len(classes))
    n_known = int(counts.sum())
    if not n_known:
        target.text = "no finite value"
        return
    shown = [
        (label, share(int(count), n_known))
        for label, count in zip(target.labels, counts, strict=True)
    ]
    rarest, part = shown[int(counts.argmin())]
    target.text = f"{len(classes)} classes, the rarest is {rarest} ({part})"
    for i, label in enumerate(classes):
        if is_word_for_missing(label):
            target.add("sentinel", counts[i] / n_known, " in ".join(shown[i]))
    if len(classes) == 1:
        target.text = "one class"
        target.add("constant", 1.0, f"always {target.labels[0]}")
    elif len(classes) > max(_MAX_CLASSES, n_known / 2):
        detail = f"{len(classes)} classes in {quantity(n_known, 'row')}"
        target.add("nearly all distinct", len(classes) / n_known, detail)
    else:
        _add_rare_classes(target, counts)
        ratio = counts.max() / counts.min()
        if ratio >= _IMBALANCED:
            extremes = shown[int(counts.argmax())], shown[int(counts.argmin())]
            detail = ", ".join(" in ".join(extreme) for extreme in extremes)
            target.add("imbalance", ratio, detail)


def _in_words(label: Any, holds: str) -> str:
    if isinstance(label, str):
        return quoted(label)
    return str(bool(label)) if holds == "flags" else number(label)


def _add_rare_classes(target: Target, counts: NDArray[np.int64]) -> None:
    masks = {
        "single-member classes": counts == 1,
        "rare classes": (counts > 1) & (counts < _N_FOLDS),
    }
    for kind, mask in masks.items():
        found = np.flatnonzero(mask)
        if found.size:
            shown = ", ".join(target.labels[i] for i in found[:3])
            more = ", ..." if found.size > 3 else ""
            detail = f"{found.size} of {len(counts)}: {shown}{more}"
            target.add(kind, found.size, detail)
