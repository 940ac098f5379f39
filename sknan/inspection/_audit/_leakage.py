"""Columns from which a network could read the target: copies and missing cells."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from sknan.inspection._audit._column_profile import ColumnProfile, sampled
from sknan.inspection._audit._columns import codes_of, key_rows
from sknan.inspection._audit._finding import Observation
from sknan.inspection._audit._formatting import number, percent, quantity, share
from sknan.inspection._audit._one_column import ROWS_PER_CATEGORY, score_of_column
from sknan.inspection._audit._target import Target
from sknan.preprocessing._tables.date_format import DateFormat
from sknan.preprocessing._tables.lazy_table import LazyTable
from sknan.preprocessing._tables.number_format import NumberFormat

# Strengths from which missing cells reveal the target, and from which they are related
# to it. The strength is the difference between the share of missing cells in a class
# and in the other classes, or the rank correlation with the target of a regression.
_REVEALS = 0.95
_IS_RELATED = 0.2

# Standard errors from which a relation is significant.
_SIGNIFICANT = 5.0

# Fewer missing cells, or fewer rows of a class, show no relation.
_MIN_CELLS = 10

# Fewer rows do not show that two columns have the same order.
_MIN_PAIRS = 50

# Share of equal values from which a column is a copy of the target, and share of the
# values of a column with one target from which rows are grouped by it. Both are counted
# beyond chance.
_IS_COPY = 0.8

# Targets are nearly equal if at most this share of the rows is between them.
_NEARLY_EQUAL = 0.01

# Rank correlation from which two columns have the same order.
_SAME_ORDER = 0.9999


def observations_of_leakage(
    table: LazyTable, profiles: Sequence[ColumnProfile], target: Target
) -> Iterator[Observation]:
    """Observe columns that equal the target, or whose missing cells depend on it."""
    if target.task is None or table.is_sparse:
        return
    key_values = target.values[key_rows(table.n_rows)]
    key = pd.factorize(key_values)[0].tobytes()
    if target.numbers is not None:
        are_sentinels = np.isin(key_values, target.sentinels)
        key_values = np.where(are_sentinels, np.nan, key_values)
    missing = sampled(target.missing)
    known = ~missing
    values = sampled(target.values)[known]
    ranks = stats.rankdata(values) if target.numbers is not None else None
    in_any = np.zeros(len(values), dtype=bool)
    strongest = 0.0
    for profile in profiles:
        if detail := _equality(table, profile, target, key, key_values):
            yield profile.observation("copy of the target", 1.0, detail)
        elif detail := _prediction(profile, key_values):
            yield profile.observation("predicts the target", 1.0, detail)
        elif detail := _one_target_per_value(table, profile, target):
            yield profile.observation("groups with one target", 1.0, detail)
        if profile.missing_rows is None:
            continue
        if detail := _missing_together(profile.missing_rows, missing):
            yield profile.observation("missing with the target", 1.0, detail)
        mask = profile.missing_rows[known]
        in_any |= mask
        strength, detail = _relation(mask, values, ranks, target.labels)
        strongest = max(strongest, strength)
        if strength >= _REVEALS:
            yield profile.observation("missing tells the target", strength, detail)
        elif strength >= _IS_RELATED:
            yield profile.observation("missing goes with the target", strength, detail)
    strength, detail = _relation(in_any, values, ranks, target.labels)
    if strength >= _REVEALS > strongest:
        name = "a missing cell in any column"
        yield Observation("missing tells the target", strength, detail, name)


def _relation(
    mask: NDArray[np.bool_],
    values: NDArray[Any],
    ranks: NDArray[np.float64] | None,
    labels: Sequence[str],
) -> tuple[float, str]:
    """Return how strongly missing cells are related to the target, and a detail."""
    if min(mask.sum(), mask.size - mask.sum()) < _MIN_CELLS:
        return 0.0, ""
    if ranks is None:
        return _relation_to_class(mask, values, labels)
    return _relation_to_number(mask, values, ranks)


def _equality(
    table: LazyTable,
    profile: ColumnProfile,
    target: Target,
    key: bytes,
    key_values: NDArray[Any],
) -> str:
    """Return in what way a column is a copy of the target, or "" if it is not."""
    if not profile.key or not profile.top_share < 1:
        return ""
    if target.codes is not None:
        if profile.key == key:
            codes, _ = codes_of(table.read(profile.position))
            if np.array_equal(codes, target.codes):
                return "one value for each class"
        codes = np.frombuffer(profile.key, dtype=np.int64)
        are_known = (codes >= 0) & (key_values >= 0)
        agreed = _agreement(codes[are_known], key_values[are_known])
        return f"one value for each class, in {percent(agreed)}" if agreed else ""
    if profile.holds != "numbers":
        return ""
    numbers = _key_numbers(profile)
    are_known = np.isfinite(numbers) & np.isfinite(key_values)
    numbers, key_values = numbers[are_known], key_values[are_known]
    if numbers.size < _MIN_PAIRS or len(np.unique(key_values)) < _MIN_CELLS:
        return ""
    if _equals(numbers, key_values):
        n_equal = int((numbers == key_values).sum())
        where = "" if n_equal == numbers.size else f" in {share(n_equal, numbers.size)}"
        return f"equal to it{where}"
    if numbers.min() == numbers.max():
        return ""
    correlation = stats.spearmanr(numbers, key_values).statistic
    return "in the same order" if abs(correlation) >= _SAME_ORDER else ""


def _equals(numbers: NDArray[np.float64], key_values: NDArray[np.float64]) -> bool:
    """Return whether a column equals the target in most rows, and not by chance.

    The chance is that of independent columns with the same values (Cohen's kappa). In a
    column of almost one value it is too close to a copy with errors, so that the rows
    apart from the most frequent target are tested as well.
    """
    if (numbers == key_values).mean() < _IS_COPY:
        return False
    codes = pd.factorize(np.concatenate([key_values, numbers]))[0].reshape(2, -1)
    is_rare = codes[0] != np.bincount(codes[0]).argmax()
    for of_target, of_column in (codes, codes[:, is_rare]):
        counts = [
            np.bincount(c, minlength=codes.max() + 1) for c in (of_target, of_column)
        ]
        chance = float(counts[0] @ counts[1]) / of_target.size**2
        if _exceeds_chance((of_target == of_column).mean(), chance):
            return True
    return False


def _exceeds_chance(part: float, chance: float) -> bool:
    """Return whether a share is most of the way from the share by chance to 1."""
    return part - chance >= _IS_COPY * (1 - chance) and chance < 1


def _agreement(codes: NDArray[np.int64], classes: NDArray[np.int64]) -> float:
    """Return the share of rows in which a column is a class by another name, or 0.

    It is 0 unless the column has one value for each class, and agrees much more often
    than by chance.
    """
    n_rows = len(codes)
    codes, classes = (np.unique(v, return_inverse=True)[1] for v in (codes, classes))
    if n_rows < _MIN_PAIRS or codes.max() != classes.max() or not codes.max():
        return 0.0
    counts = np.zeros((classes.max() + 1, classes.max() + 1))
    np.add.at(counts, (codes, classes), 1)
    of_class = counts.argmax(axis=0)
    if len(np.unique(of_class)) < len(of_class):
        return 0.0
    agreed = counts.max(axis=0).sum() / n_rows
    chance = (counts.sum(axis=0) * counts.sum(axis=1)[of_class]).sum() / n_rows**2
    return float(agreed) if _exceeds_chance(agreed, chance) else 0.0


def _key_numbers(profile: ColumnProfile) -> NDArray[np.float64]:
    """Return the numbers or dates of a column, or in its text, in the key's rows."""
    codes = np.frombuffer(profile.key, dtype=np.int64)
    cells = pd.Series(profile.key_values, dtype=object)
    if profile.holds == "dates":
        numbers = np.array(cells, dtype="datetime64[us]").astype(np.float64)
    elif profile.has("dates as text"):
        format_ = DateFormat.of_text(cells.dropna()) or DateFormat()
        dates = format_.of_text_or_numbers(cells)
        numbers = (dates - pd.Timestamp(0)).dt.total_seconds()
    elif profile.has("written numbers"):
        written = NumberFormat.of_texts(Counter(cells.dropna())) or NumberFormat()
        numbers = written.numbers_of(cells)
    else:
        numbers = pd.to_numeric(cells, errors="coerce")
    return np.array([*numbers, np.nan], dtype=np.float64)[codes]


def _prediction(profile: ColumnProfile, key_values: NDArray[Any]) -> str:
    """Return how well a column alone predicts the target, or "" if not almost."""
    has_order = profile.holds in ("numbers", "flags", "durations", "dates")
    in_text = ("numbers as text", "written numbers", "dates as text")
    is_number = has_order or profile.has(*in_text)
    if not profile.key or profile.top_share == 1:
        return ""
    codes = np.frombuffer(profile.key, dtype=np.int64)
    is_class = key_values.dtype.kind in "iu"
    known = key_values >= 0 if is_class else np.isfinite(key_values)
    if known.sum() < _MIN_PAIRS or len(np.unique(key_values[known])) < 2:
        return ""
    numbers = _key_numbers(profile)[known] if is_number else None
    return score_of_column(codes[known], numbers, key_values[known])


def _one_target_per_value(
    table: LazyTable, profile: ColumnProfile, target: Target
) -> str:
    """Return whether rows of the same value have the same target, or ""."""
    codes = np.frombuffer(profile.key, dtype=np.int64)
    # Columns of fewer values predict the target if each has one.
    if not len(codes) or codes.max() < len(codes) / ROWS_PER_CATEGORY:
        return ""
    if profile.holds == "numbers" and any(c % 1 for c in profile.key_values):
        return ""
    groups, _ = codes_of(table.read(profile.position))
    left_out = target.missing | np.isin(target.values, target.sentinels)
    groups = np.where(left_out, -1, groups)
    is_repeated = (groups >= 0) & (np.bincount(groups + 1)[groups + 1] > 1)
    if is_repeated.sum() < max(_MIN_PAIRS, len(groups) / 2):
        return ""
    groups, values = groups[is_repeated], target.values[is_repeated]
    limits = {"one target": 0.0}
    if target.numbers is not None:  # Outliers hardly matter to ranks.
        values = stats.rankdata(values)
        limits["nearly one target"] = _NEARLY_EQUAL * len(values)
    spread = _spread_in_groups(groups, values)
    by_chance = _spread_in_groups(groups, np.random.default_rng(0).permutation(values))
    for words, limit in limits.items():
        part = float((spread <= limit).mean())
        if _exceeds_chance(part, (by_chance <= limit).mean()):
            values_in_words = quantity(len(spread), "value")
            return f"{values_in_words} in several rows, {percent(part)} with {words}"
    return ""


def _spread_in_groups(
    groups: NDArray[np.int64], values: NDArray[Any]
) -> NDArray[np.float64]:
    """Return the range of the values in each group."""
    grouped = pd.Series(values).groupby(groups)
    return np.asarray(grouped.max() - grouped.min(), dtype=np.float64)


def _missing_together(mask: NDArray[np.bool_], target_mask: NDArray[np.bool_]) -> str:
    """Return how often a column is missing where the target is, or "" if rarely."""
    n_both, n_any = int((mask & target_mask).sum()), int((mask | target_mask).sum())
    if n_both < _MIN_CELLS or n_both < _REVEALS * n_any:
        return ""
    return f"both are missing in {share(n_both, n_any)} of the rows where either is"


def _relation_to_class(
    mask: NDArray[np.bool_], codes: NDArray[np.int64], labels: Sequence[str]
) -> tuple[float, str]:
    """Return the largest difference in the share of missing cells, class to others."""
    n_rows = np.bincount(codes, minlength=len(labels)).astype(np.float64)
    n_missing = np.bincount(codes, weights=mask, minlength=len(labels))
    n_others, total = mask.size - n_rows, mask.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        inside, outside = n_missing / n_rows, (mask.sum() - n_missing) / n_others
        error = np.sqrt(total * (1 - total) * (1 / n_rows + 1 / n_others))
        difference = np.abs(inside - outside)
        is_significant = difference >= _SIGNIFICANT * error
    is_significant &= np.minimum(n_rows, n_others) >= _MIN_CELLS
    if not is_significant.any():
        return 0.0, ""
    i = int(np.where(is_significant, difference, -1.0).argmax())
    detail = f"in {percent(inside[i])} of {labels[i]}, {percent(outside[i])} of others"
    return float(difference[i]), detail


def _relation_to_number(
    mask: NDArray[np.bool_], values: NDArray[np.float64], ranks: NDArray[np.float64]
) -> tuple[float, str]:
    """Return the rank-biserial correlation of missing cells with the target."""
    n_missing, n_rows = int(mask.sum()), mask.size
    n_pairs = n_missing * (n_rows - n_missing)
    excess = float(ranks[mask].sum()) - n_missing * (n_rows + 1) / 2
    error = math.sqrt(n_pairs * (n_rows + 1) / 12)
    if abs(excess) < _SIGNIFICANT * error:
        return 0.0, ""
    inside, outside = np.median(values[mask]), np.median(values[~mask])
    detail = f"median y {number(inside)} where missing, {number(outside)} elsewhere"
    return 2 * abs(excess) / n_pairs, detail
