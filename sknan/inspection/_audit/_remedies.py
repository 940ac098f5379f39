"""Kinds of findings: how bad they are, and what is to be done about them."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["ORDER", "REMEDIES", "SEVERITIES", "Remedy", "Severity"]

Severity = Literal["breaks training", "hurts", "notice"]

SEVERITIES: tuple[Severity, ...] = ("breaks training", "hurts", "notice")


class Remedy(NamedTuple):
    """How bad a kind of finding is, and what is to be done about it."""

    severity: Severity
    by_pipeline: bool
    action: str


def _breaks(action: str, *, by_pipeline: bool = False) -> Remedy:
    return Remedy("breaks training", by_pipeline, action)


def _hurts(action: str, *, by_pipeline: bool = False) -> Remedy:
    return Remedy("hurts", by_pipeline, action)


def _notice(action: str, *, by_pipeline: bool = False) -> Remedy:
    return Remedy("notice", by_pipeline, action)


# In the order in which findings of one severity are told.
_IN_X = {
    "no data": _breaks("Pass a table with at least one row and one column."),
    "column names": _breaks("Name every column by a string of its own."),
    "nested": _breaks("Unpack lists, dicts and the like into columns of their own."),
    "complex": _breaks("Split into real and imaginary part, or size and angle."),
    "mixed types": _breaks(
        "Bring each column to one type: pd.to_numeric(..., errors='coerce') for "
        "numbers, .astype(str) for text. tabular_pipeline takes all cells for text, "
        "and reads that."
    ),
    "written numbers": _breaks(
        "Strip signs and units before pd.to_numeric; tabular_pipeline takes such "
        "cells for text."
    ),
    "empty": _breaks("tabular_pipeline drops them.", by_pipeline=True),
    "missing": _breaks(
        "tabular_pipeline fills in the median, and says where by indicator columns.",
        by_pipeline=True,
    ),
    "infinite": _breaks(
        "tabular_pipeline counts infinities as missing.", by_pipeline=True
    ),
    "beyond float32": _breaks(
        "They become infinite in float32; tabular_pipeline counts them as missing.",
        by_pipeline=True,
    ),
    "numbers as text": _breaks(
        "tabular_pipeline reads them as numbers.", by_pipeline=True
    ),
    "dates as text": _breaks(
        "tabular_pipeline reads them as dates if all are of one format, and makes "
        "numbers of these.",
        by_pipeline=True,
    ),
    "copy of the target": _hurts(
        "Leave it out, unless it will be known when you predict."
    ),
    "missing tells the target": _hurts(
        "Find out why. If cells are filled in only once the target is known, leave "
        "the column out."
    ),
    "missing with the target": _hurts(
        "It may be made from the target: leave it out, unless it will be known when "
        "you predict."
    ),
    "identifier": _hurts(
        "Leave out what only tells rows apart: nothing of it holds for new ones."
    ),
    "sentinel": _hurts(
        "tabular_pipeline(sentinels='auto') counts them as missing: see that they are.",
        by_pipeline=True,
    ),
    "lone outlier": _hurts(
        "tabular_pipeline bounds it softly (SafeScaler); make it missing if it is a "
        "mistake.",
        by_pipeline=True,
    ),
    "heavy tail": _hurts(
        "tabular_pipeline bounds what is far out softly (SafeScaler).",
        by_pipeline=True,
    ),
    "scale": _hurts("tabular_pipeline scales each column.", by_pipeline=True),
    "float32 precision": _hurts(
        "Subtract the smallest value, in float64, before anything else: float32 keeps "
        "seven digits."
    ),
    "missing goes with the target": _notice(
        "tabular_pipeline keeps it as indicator columns. See that the reasons are the "
        "same when you predict.",
        by_pipeline=True,
    ),
    "missing category": _notice(
        "tabular_pipeline makes missing a level of its own.", by_pipeline=True
    ),
    "word for missing": _notice(
        "tabular_pipeline(sentinels='auto') counts them as missing.", by_pipeline=True
    ),
    "spelling": _notice(
        "Bring each level to one spelling: .str.strip().str.lower() for a start."
    ),
    "numbers and words": _notice(
        "Decide what the words stand for; tabular_pipeline makes levels of them, "
        "beside the numbers."
    ),
    "codes": _notice(
        "Make them categories, .astype('category'), if their leading zeros mean "
        "something: tabular_pipeline reads them as numbers."
    ),
    "times as text": _notice(
        "Make numbers of them (an hour, a quarter) if their order matters; "
        "tabular_pipeline takes them for categories."
    ),
    "many levels": _notice(
        "tabular_pipeline makes a column of each level, and of more than 255 levels "
        "encodes their letters.",
        by_pipeline=True,
    ),
    "dates": _notice("tabular_pipeline makes numbers of them.", by_pipeline=True),
    "constant": _notice(
        "Nothing can be learnt from them; tabular_pipeline makes numbers among them 0.",
        by_pipeline=True,
    ),
    "near-constant": _notice(
        "Little can be learnt from them, and a fold may see one value only."
    ),
    "duplicated column": _notice("Leave them out: the others say as much."),
    "duplicated rows": _notice(
        "Keep copies on one side of a split, or scores count what was seen before."
    ),
    "more columns than rows": _notice(
        "A network can learn such a table by heart: see that scores are "
        "cross-validated, and try fewer columns."
    ),
}

_IN_Y = {
    "missing": _breaks("Leave these rows out of X and y."),
    "infinite": _breaks("Leave these rows out of X and y, or mend what made them."),
    "beyond float32": _breaks("Divide y by a power of ten, or learn its logarithm."),
    "not learnable": _breaks("Pass one number or one label per row."),
    "numbers as text": _breaks("Bring y to numbers first: pd.to_numeric(y)."),
    "constant": _breaks("There is nothing to learn: pass another target."),
    "sentinel": _hurts(
        "If they stand for missing, leave these rows out of X and y: a network would "
        "learn to predict them."
    ),
    "single-member classes": _hurts(
        "Merge them with others or leave them out: such a class cannot be in both "
        "training and test, and a stratified split refuses."
    ),
    "rare classes": _hurts(
        "Five stratified folds want five of each: merge classes, or use fewer folds."
    ),
    "imbalance": _hurts(
        "Stratify splits, score by average precision or log-loss instead of accuracy, "
        "and try class_weight='balanced'."
    ),
    "lone outlier": _hurts(
        "Leave the row out if it is a mistake; else pass criterion='huber', or beyond "
        "some 300 IQRs transform y (sklearn.compose.TransformedTargetRegressor)."
    ),
    "heavy tail": _hurts(
        "Learn a transformed target (sklearn.compose.TransformedTargetRegressor), or "
        "pass criterion='huber'."
    ),
    "float32 precision": _hurts(
        "Subtract the smallest value before, in float64: float32 keeps seven digits."
    ),
    "nearly all distinct": _hurts(
        "Such classes cannot be learnt; was another column meant, or regression?"
    ),
    "skew": _notice(
        "Try sklearn.compose.TransformedTargetRegressor with np.log1p and np.expm1, or "
        "with a QuantileTransformer."
    ),
    "one value": _notice(
        "Two models may serve better: whether it is this value, and how much if not."
    ),
    "scale": _notice(
        "StableNetRegressor standardises y and answers in its units; other networks "
        "need TransformedTargetRegressor.",
        by_pipeline=True,
    ),
}

REMEDIES: dict[str, dict[str, Remedy]] = {"X": _IN_X, "y": _IN_Y}
ORDER = {
    (where, kind): place
    for where, remedies in REMEDIES.items()
    for place, kind in enumerate(remedies)
}
