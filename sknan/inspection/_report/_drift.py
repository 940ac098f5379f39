"""Limits of drift of columns, predictions and accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from sknan._utils.html import element
from sknan.inspection._report._evaluation import MAX_GROUPS, Evaluation, Row
from sknan.inspection._report._html import cut_table, section, value_text

# Rows of a batch whose drift is to be noticed, the share of batches without drift of
# which any quantity is outside its limits, and the least number of rows for limits.
_BATCH, _FALSE_ALARMS, _MIN_ROWS = 1000, 0.01, 50

_MAX_COLUMNS = 100

# A less frequent category is not named, since it may identify a row.
_MIN_SHARE = 0.05


def drift_section(frame: pd.DataFrame, found: Evaluation | None) -> str:
    """Return the section with the limits of a batch from the same population, or "".

    The frame has the rows of the report, as the model reads them.
    """
    if len(frame) < _MIN_ROWS:
        return ""
    frame = frame.iloc[:, :_MAX_COLUMNS]
    predicted = [] if found is None else _predicted_columns(found)
    # Each quantity of a column, of the predictions, and the accuracy has two limits.
    n_limits = 2 * (2 * frame.shape[1] + len(predicted) + 1)
    rows = list(_limits(frame, found, float(stats.norm.isf(_FALSE_ALARMS / n_limits))))
    text = (
        f"Limits for a batch of {_BATCH} new rows. Of the batches from the population "
        f"of the {len(frame)} rows given to this report, at most about "
        f"{100 * _FALSE_ALARMS:.0f} % are outside any of them."
    )
    if found is not None:
        accuracy = "" if found.probabilities is None else " and the accuracy"
        text += (
            f" This holds for the predictions{accuracy} only if the model was not "
            "trained on the rows given to this report."
        )
    heads = ["quantity", "here", "lower limit", "upper limit"]
    return section("Drift", [element("p", text), cut_table(rows, heads)])


def _limits(frame: pd.DataFrame, found: Evaluation | None, z: float) -> Iterator[Row]:
    """Yield the name, the value and the limits of each quantity."""
    for name, column in frame.items():
        known = column.dropna()
        yield f"{name}: missing cells", *_limits_of_share(column.isna(), z)
        is_number = column.dtype.kind in "fiuM" and known.nunique() > 2
        if is_number:
            yield f"{name}: median", *_limits_of_median(known, z)
            continue
        texts = column.map(value_text, na_action="ignore")
        for top, share in texts.value_counts(normalize=True)[:1].items():
            if share >= _MIN_SHARE:
                is_top = texts == top
                yield f"{name}: share of {top}", *_limits_of_share(is_top, z)
    if found is None:
        return
    for name, values in _predicted_columns(found):
        limits = _limits_of_share if values.dtype == bool else _limits_of_median
        yield name, *limits(pd.Series(values), z)
    if found.probabilities is not None:
        yield "accuracy", *_limits_of_share(found.hits, z)


def _predicted_columns(found: Evaluation) -> list[tuple[str, NDArray[Any]]]:
    """Return the predictions whose medians or shares have limits."""
    n = found.target.shape[1]
    if found.is_multilabel:
        pairs = zip(found.names, found.predicted.T == 1, strict=True)
        listed = [(f"prediction: share of {name}", is_true) for name, is_true in pairs]
    elif found.probabilities is not None:
        labels = pd.Series(found.predicted[:, 0].astype(str))
        frequent = labels.value_counts().index[:MAX_GROUPS]
        listed = [
            (f"prediction: share of {label}", (labels == label).to_numpy())
            for label in frequent
        ]
    else:
        levels = [""]
        if found.levels is not None:
            levels = [f", quantile {level:g}" for level in found.levels]
        names = [
            f"prediction{f' of {name}' if n > 1 else ''}{level}: median"
            for name in found.names
            for level in levels
        ]
        columns = found.predicted.reshape(len(found.target), -1).T
        listed = list(zip(names, columns, strict=True))
    return listed[:_MAX_COLUMNS]


def _limits_of_share(is_true: Any, z: float) -> Row:
    n, n_true = len(is_true), int(np.sum(is_true))
    p = (n_true + 2) / (n + 4)  # a share of 0 here may be a small one elsewhere
    half = z * math.sqrt(p * (1 - p) * (1 / n + 1 / _BATCH))
    low, high = max(p - half, 0.0), min(p + half, 1.0)
    return tuple(f"{100 * share:.1f} %" for share in (n_true / n, low, high))


def _limits_of_median(known: pd.Series, z: float) -> Row:
    half = z * math.sqrt(0.25 * (1 / len(known) + 1 / _BATCH))
    ranks = [0.5, max(0.5 - half, 0.0), min(0.5 + half, 1.0)]
    found = known.quantile(ranks, interpolation="nearest")
    return tuple(value_text(value).removesuffix(" 00:00:00") for value in found)
