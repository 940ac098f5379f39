"""Severity and remedy of each kind of finding.

The kinds are listed in the order in which findings of one severity are shown.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

Severity = Literal["breaks training", "hurts", "notice"]

SEVERITIES: tuple[Severity, ...] = ("breaks training", "hurts", "notice")


class Remedy(NamedTuple):
    """Severity of a kind of finding, and what is done about it.

    Attributes
    ----------
    severity : {"breaks training", "hurts", "notice"}
        Effect on training.
    by_pipeline : bool
        Whether ``tabular_pipeline`` takes care of it.
    action : str
        What the pipeline does, or what the user should do.
    """

    severity: Severity
    by_pipeline: bool
    action: str


# The names in ``_solved`` are for faults that ``tabular_pipeline`` takes care of.
_breaks = partial(Remedy, "breaks training", False)
_breaks_solved = partial(Remedy, "breaks training", True)
_hurts = partial(Remedy, "hurts", False)
_hurts_solved = partial(Remedy, "hurts", True)
_notice = partial(Remedy, "notice", False)
_notice_solved = partial(Remedy, "notice", True)

_IN_X = {
    "no data": _breaks("Pass a table with at least one row and one column."),
    "column names": _breaks("Give each column a unique string as its name."),
    "nested": _breaks("Unpack lists, dicts and other containers into columns."),
    "complex": _breaks("Split into real and imaginary part, or magnitude and angle."),
    "opaque": _breaks(
        "Convert the objects, which have no text form (__str__), to numbers or text."
    ),
    "mixed types": _breaks(
        "Convert each column to one type: pd.to_numeric(..., errors='coerce') for "
        "numbers, .astype(str) for text. tabular_pipeline treats all cells as text."
    ),
    "unclear numbers": _breaks(
        "Convert them to numbers of one unit if they are amounts; tabular_pipeline "
        "treats such cells as text."
    ),
    "empty": _breaks_solved("tabular_pipeline drops them."),
    "missing": _breaks_solved(
        "tabular_pipeline fills in the median and adds indicator columns."
    ),
    "infinite": _breaks_solved("tabular_pipeline treats infinities as missing."),
    "beyond float32": _breaks_solved(
        "They become infinite in float32; tabular_pipeline treats them as missing."
    ),
    "numbers as text": _breaks_solved("tabular_pipeline reads them as numbers."),
    "written numbers": _breaks_solved(
        "tabular_pipeline reads them as numbers, without the unit; cells of another "
        "unit count as words."
    ),
    "dates as text": _breaks_solved(
        "tabular_pipeline reads them as dates, unless the day is first in some and the "
        "month in others, and converts them to numbers; other cells count as missing."
    ),
    "copy of the target": _hurts(
        "Drop it, unless its values will be known at prediction time."
    ),
    "predicts the target": _hurts(
        "It needs no other column: find out how it is made, and drop it, unless its "
        "values will be known at prediction time."
    ),
    "groups with one target": _hurts(
        "Keep rows of the same value on one side of a split: pass the column as groups "
        "to fit and to sklearn.model_selection.GroupKFold, and drop it from X."
    ),
    "missing tells the target": _hurts(
        "Find out why. If cells are filled in only after the target is known, drop "
        "the column."
    ),
    "missing with the target": _hurts(
        "It may be derived from the target: drop it, unless its values will be known "
        "at prediction time."
    ),
    "identifier": _hurts(
        "Drop columns that only distinguish rows: what is learned from them does not "
        "apply to new rows."
    ),
    "sentinel": _hurts_solved(
        "tabular_pipeline(sentinels='auto') treats them as missing: check that they "
        "are."
    ),
    "lone outlier": _hurts_solved(
        "tabular_pipeline bounds it softly (SafeScaler); set it to missing if it is a "
        "mistake."
    ),
    "heavy tail": _hurts_solved(
        "tabular_pipeline bounds extreme values softly (SafeScaler)."
    ),
    "scale": _hurts_solved("tabular_pipeline scales each column."),
    "float32 precision": _hurts_solved(
        "tabular_pipeline subtracts the median of these columns in float64. In another "
        "pipeline do so before any other step: float32 keeps seven digits."
    ),
    "missing goes with the target": _notice_solved(
        "tabular_pipeline keeps this information in indicator columns. Check that the "
        "reasons are the same at prediction time."
    ),
    "missing category": _notice_solved(
        "tabular_pipeline makes missing a separate category."
    ),
    "word for missing": _notice_solved(
        "tabular_pipeline(sentinels='auto') treats them as missing."
    ),
    "spelling": _notice(
        "Use one spelling for each category; .str.strip().str.lower() is a start."
    ),
    "numbers and words": _notice(
        "Decide what the words mean; tabular_pipeline adds them as categories to the "
        "numbers."
    ),
    "codes": _notice(
        "Convert them with .astype('category') if their leading zeros have a meaning: "
        "tabular_pipeline reads them as numbers."
    ),
    "times as text": _notice(
        "Convert them to numbers (an hour, a quarter) if their order matters; "
        "tabular_pipeline treats them as categories, but months as in 2020-05 as dates."
    ),
    "many levels": _notice_solved(
        "tabular_pipeline makes a column of each category, and if there are more than "
        "255 categories a column of each frequent word."
    ),
    "dates": _notice_solved("tabular_pipeline converts them to numbers."),
    "constant": _notice_solved(
        "Nothing can be learned from them; tabular_pipeline sets numeric ones to 0."
    ),
    "near-constant": _notice(
        "Little can be learned from them, and a fold may contain one value only."
    ),
    "duplicated column": _notice(
        "Drop them: the other columns hold the same information."
    ),
    "duplicated rows": _notice(
        "Keep duplicates on one side of a split; otherwise the test rows contain rows "
        "seen in training."
    ),
    "more columns than rows": _notice(
        "A network can memorize such a table: cross-validate, and try fewer columns."
    ),
}

_IN_Y = {
    "missing": _breaks("Drop these rows from X and y."),
    "infinite": _breaks("Drop these rows from X and y, or repair their source."),
    "beyond float32": _breaks("Divide y by a power of ten, or predict its logarithm."),
    "not learnable": _breaks("Pass one number or one label per row."),
    "numbers as text": _breaks("Convert y to numbers first: pd.to_numeric(y)."),
    "constant": _breaks("There is nothing to learn: pass another target."),
    "sentinel": _hurts(
        "If they mean missing, drop these rows from X and y: otherwise a network "
        "learns to predict them."
    ),
    "single-member classes": _hurts(
        "Merge them with others or drop them: such a class cannot be in both the "
        "training and the test set, and a stratified split raises an error."
    ),
    "rare classes": _hurts(
        "Five stratified folds need five rows of each: merge classes, or use fewer "
        "folds."
    ),
    "imbalance": _hurts(
        "Stratify splits, score by average precision or log-loss instead of accuracy, "
        "and try class_weight='balanced'."
    ),
    "lone outlier": _hurts(
        "Drop the row if it is a mistake. Otherwise pass criterion='huber', or "
        "transform y if it is beyond some 300 IQRs "
        "(sklearn.compose.TransformedTargetRegressor)."
    ),
    "heavy tail": _hurts(
        "Transform the target (sklearn.compose.TransformedTargetRegressor), or pass "
        "criterion='huber'."
    ),
    "float32 precision": _hurts(
        "Subtract the smallest value first, in float64: float32 keeps seven digits."
    ),
    "nearly all distinct": _hurts(
        "Such classes cannot be learned. Did you mean another column, or regression?"
    ),
    "skew": _notice(
        "Try sklearn.compose.TransformedTargetRegressor with np.log1p and np.expm1, or "
        "with a QuantileTransformer."
    ),
    "one value": _notice(
        "Two models may work better: one predicts whether y has this value, the other "
        "its size if not."
    ),
    "scale": _notice_solved(
        "StableNetRegressor standardizes y and predicts in its units; other networks "
        "need TransformedTargetRegressor."
    ),
}

REMEDIES: dict[str, dict[str, Remedy]] = {"X": _IN_X, "y": _IN_Y}
