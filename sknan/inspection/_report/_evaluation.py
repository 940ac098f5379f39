"""Scores, calibration and limits of drift for the rows that a report was given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse, stats

from sknan._engine.prediction import levels_of
from sknan._utils.html import element, table
from sknan.inspection._report._html import cut_table, section, value_text
from sknan.nets._curves import last_of, networks_of, skorch_net_of

Numbers = NDArray[np.float64]
Row = tuple[str, ...]

# Resamples for an interval, and groups into which the rows are divided for them.
_N_RESAMPLES = _N_GROUPS = 1000

# Groups of a table of calibration, and the least number of rows in one.
_N_BINS = _MIN_PER_BIN = 10

# Rows of a batch whose drift is to be noticed, the share of batches without drift of
# which any quantity is outside its limits, and the least number of rows for limits.
_BATCH, _FALSE_ALARMS, _MIN_ROWS = 1000, 0.01, 50

_MAX_CLASSES, _MAX_COLUMNS = 10, 100

# A less frequent category is not named, since it may identify a row.
_MIN_SHARE = 0.05

_TINY = float(np.finfo(np.float64).tiny)
_EPS = float(np.finfo(np.float32).eps)


class Evaluation(NamedTuple):
    """Targets and predictions of rows.

    Attributes
    ----------
    target : ndarray of shape (n_samples, n_targets)
        Labels or numbers.
    predicted : ndarray of shape (n_samples, n_targets[, n_levels])
        Predictions.
    classes : list or None
        Labels of the classes; None for numbers.
    probabilities : ndarray of shape (n_samples, n_classes) or None
        Probabilities of the classes; None for numbers.
    is_class : ndarray of bool of shape (n_samples, n_classes)
        Whether the row has each class.
    levels : sequence of float or None
        Quantiles that are predicted, if there are several.
    """

    target: NDArray[Any]
    predicted: NDArray[Any]
    classes: list[Any] | None = None
    probabilities: Numbers | None = None
    is_class: NDArray[np.bool_] = np.zeros(0, dtype=bool)
    levels: Any = None

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Whether all labels of each row are predicted."""
        return np.asarray((self.target == self.predicted).all(axis=1))


def evaluate(estimator: Any, X: Any, y: Any) -> Evaluation:
    """Predict rows with a fitted model."""
    target = np.asarray(y.toarray() if sparse.issparse(y) else y)
    target = target.reshape(len(target), -1)
    predicted = np.asarray(estimator.predict(X))
    classes = getattr(last_of(estimator), "classes_", None)
    if classes is not None:
        found = np.asarray(estimator.predict_proba(X), dtype=np.float64)
        is_class = target == (1 if target.shape[1] > 1 else np.asarray(classes))
        predicted = predicted.reshape(target.shape)
        return Evaluation(target, predicted, list(classes), found, is_class)
    net = skorch_net_of(next(iter(networks_of(estimator).values())))
    levels = levels_of(net.criterion_)
    target, predicted = target.astype(np.float64), predicted.astype(np.float64)
    if np.ndim(levels) == 0:
        return Evaluation(target, predicted.reshape(target.shape))
    predicted = predicted.reshape(*target.shape, len(levels))
    return Evaluation(target, predicted, levels=levels)


# -- scores --------------------------------------------------------------------------


def score_table(found: Evaluation) -> str:
    """Return a table of scores with their 95 % intervals."""
    scores = _scores_of_numbers if found.probabilities is None else _scores_of_classes
    return table(list(scores(found)), ["score", "value", "95 % interval"])


def _scores_of_classes(found: Evaluation) -> Iterator[Row]:
    p = np.clip(np.asarray(found.probabilities), _EPS, 1.0)
    if found.target.shape[1] > 1:
        p = np.where(found.is_class, p, np.maximum(1.0 - p, _EPS))
        losses = -np.log(p).mean(axis=1)
    else:
        losses = -np.log(np.maximum((p * found.is_class).sum(axis=1), _EPS))
    yield ("accuracy", *_share(found.hits))
    yield _resampled("log-loss", losses[:, None], lambda means: means[..., 0])


def _scores_of_numbers(found: Evaluation) -> Iterator[Row]:
    # In a unit of the target, no square overflows.
    unit = np.maximum(np.abs(found.target).max(axis=0), _TINY)
    y, n = found.target / unit, found.target.shape[1]
    if found.levels is not None:
        errors = y[:, :, None] - found.predicted / unit[:, None]
        levels = np.asarray(found.levels)
        losses = np.maximum(levels * errors, (levels - 1) * errors).mean(axis=2)
        yield _resampled("mean pinball loss", losses * unit, lambda m: m.mean(axis=-1))
        return
    errors, centered = y - found.predicted / unit, y - y.mean(axis=0)

    def r2(means: Numbers) -> Any:
        residual, mean, square = (means[..., i * n : (i + 1) * n] for i in range(3))
        return (1.0 - residual / np.maximum(square - mean**2, _TINY)).mean(axis=-1)

    yield _resampled("R2", np.hstack([errors**2, centered, centered**2]), r2)
    losses = np.abs(errors) * unit
    yield _resampled("mean absolute error", losses, lambda m: m.mean(axis=-1))


def _resampled(name: str, values: Numbers, score: Callable[[Numbers], Any]) -> Row:
    """Return a function of the means of values, with its bootstrap interval.

    Many rows are divided into groups at random, which are drawn as a whole.
    """
    rng, n = np.random.default_rng(0), len(values)
    n_groups = min(n, _N_GROUPS)
    starts = np.arange(n_groups) * n // n_groups
    sums = np.add.reduceat(values[rng.permutation(n)], starts)
    sizes = np.diff(starts, append=n)
    draws = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), _N_RESAMPLES)
    means = (draws @ sums) / (draws @ sizes)[:, None]
    low, high = np.quantile(score(means), [0.025, 0.975])
    return name, f"{score(values.mean(axis=0)):.4g}", f"{low:.4g} to {high:.4g}"


def _share(is_true: NDArray[np.bool_], z: float = 1.96) -> Row:
    """Return a share of independent rows with the interval of Wilson (1927)."""
    n, p = is_true.size, float(is_true.mean())
    center = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((center + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return f"{p:.4g}", f"{max(low, 0.0):.4g} to {min(high, 1.0):.4g}"


# -- calibration ---------------------------------------------------------------------


def calibration_section(found: Evaluation) -> str:
    """Return the section that compares predictions with what was observed, or ""."""
    p, observed, classes = found.probabilities, found.is_class, found.classes or []
    if found.levels is not None:
        text = "Share of the targets that are at most the predicted quantile."
        at_most = found.target[:, :, None] <= found.predicted
        levels = enumerate(found.levels)
        rows = [(f"{q:g}", *_share(at_most[..., i]), "") for i, q in levels]
    elif p is None:
        text = "Mean prediction and mean target, by groups of ascending predictions."
        rows = list(_bins(found.predicted.ravel(), found.target.ravel()))
    else:
        text = "Mean probability and observed share, by groups of ascending "
        is_pair = found.target.shape[1] == 1 and len(classes) == 2
        if is_pair:
            p, observed = p[:, 1:], observed[:, 1:]
        text += f"probability of {classes[1] if is_pair else 'each class'}."
        rows = list(_bins(p.ravel(), observed.ravel()))
    heads = ["predicted", "observed", "95 % interval", "rows"]
    parts = [element("p", text), table(rows, heads)]
    return section("Calibration", parts) if rows else ""


def _bins(predicted: Numbers, observed: NDArray[Any]) -> Iterator[Row]:
    n_bins = min(_N_BINS, len(predicted) // _MIN_PER_BIN)
    order = np.argsort(predicted, kind="stable")
    for rows in np.array_split(order, n_bins) if n_bins > 1 else ():
        mean = f"{predicted[rows].mean():.4g}"
        if observed.dtype == bool:
            yield mean, *_share(observed[rows]), str(len(rows))
            continue
        center, unit = observed[rows].mean(), np.abs(observed).max() or 1.0
        error = 1.96 * stats.sem(observed[rows] / unit) * unit
        ends = f"{center - error:.4g} to {center + error:.4g}"
        yield mean, f"{center:.4g}", ends, str(len(rows))


# -- drift ---------------------------------------------------------------------------


def drift_section(frame: pd.DataFrame, found: Evaluation | None) -> str:
    """Return the section with the limits of a batch from the same population, or "".

    Parameters
    ----------
    frame : DataFrame of shape (n_samples, n_columns)
        Rows of the report, as the model reads them.
    found : Evaluation or None
        Targets and predictions of the rows.
    """
    if len(frame) < _MIN_ROWS:
        return ""
    frame = frame.iloc[:, :_MAX_COLUMNS]
    n_limits = 4 * frame.shape[1] + 2 * _MAX_CLASSES
    rows = list(_limits(frame, found, float(stats.norm.isf(_FALSE_ALARMS / n_limits))))
    text = (
        f"Limits for a batch of {_BATCH} new rows. Of the batches from the population "
        f"of the {len(frame)} rows given to this report, at most about "
        f"{100 * _FALSE_ALARMS:.0f} % are outside any of them."
    )
    heads = ["quantity", "here", "lower limit", "upper limit"]
    return section("Drift", [element("p", text), cut_table(rows, heads)])


def _limits(frame: pd.DataFrame, found: Evaluation | None, z: float) -> Iterator[Row]:
    """Yield the name, the value and the limits of each quantity."""
    for name, column in frame.items():
        known = column.dropna()
        yield f"{name}: missing cells", *_limits_of_share(column.isna(), z)
        if column.dtype.kind in "fiuM" and len(known):
            yield f"{name}: median", *_limits_of_median(known, z)
            continue
        for top, share in known.astype(str).value_counts(normalize=True)[:1].items():
            if share >= _MIN_SHARE:
                is_top = column.astype(str) == top
                yield f"{name}: share of {top}", *_limits_of_share(is_top, z)
    if found is None:
        return
    if found.probabilities is None:
        for j, values in enumerate(found.predicted.reshape(len(frame), -1).T):
            name = f"prediction {j}" if found.predicted[0].size > 1 else "prediction"
            yield f"{name}: median", *_limits_of_median(pd.Series(values), z)
        return
    predicted = pd.Series(found.predicted.astype(str)[:, 0])
    if found.target.shape[1] == 1:
        for label in predicted.value_counts().index[:_MAX_CLASSES]:
            name = f"prediction: share of {label}"
            yield name, *_limits_of_share(predicted == label, z)
    yield "accuracy", *_limits_of_share(found.hits, z)


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
