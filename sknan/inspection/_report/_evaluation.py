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
from sknan._utils.validation import FLOAT64_MAX, check_finite
from sknan.exceptions import NonFiniteDataError
from sknan.inspection._audit._formatting import quantity
from sknan.inspection._report._html import cut_table, section, value_text
from sknan.nets._curves import last_of, networks_of, skorch_net_of
from sknan.preprocessing._tables.plain_cells import plain_cells

Numbers = NDArray[np.float64]
Row = tuple[str, ...]

# Resamples for an interval, and groups into which the rows are divided for them.
_N_RESAMPLES = _N_GROUPS = 1000

# Groups of a table of calibration, and the least number of rows in one.
_N_BINS = _MIN_PER_BIN = 10

# Rows of a batch whose drift is to be noticed, the share of batches without drift of
# which any quantity is outside its limits, and the least number of rows for limits.
_BATCH, _FALSE_ALARMS, _MIN_ROWS = 1000, 0.01, 50

_MAX_GROUPS, _MAX_COLUMNS = 10, 100

# A less frequent category is not named, since it may identify a row.
_MIN_SHARE = 0.05

_TINY = float(np.finfo(np.float64).tiny)
_EPS = float(np.finfo(np.float32).eps)

# A variance below this share of the mean square is the rounding error of a constant.
_ROUNDING = 1e-12


class Evaluation(NamedTuple):
    """Targets and predictions of rows.

    Attributes
    ----------
    target : ndarray of shape (n_samples, n_targets)
        Labels or numbers.
    predicted : ndarray of shape (n_samples, n_targets[, n_levels])
        Predictions.
    names : list of str
        Names of the classes, of the labels per row, or of the targets.
    probabilities : ndarray of shape (n_samples, n_classes) or None
        Probabilities of the classes; None for numbers.
    is_class : ndarray of bool of shape (n_samples, n_classes)
        Whether the row has each class.
    levels : ndarray of shape (n_levels,) or None
        Quantiles that are predicted.
    """

    target: NDArray[Any]
    predicted: NDArray[Any]
    names: list[str]
    probabilities: Numbers | None = None
    is_class: NDArray[np.bool_] = np.zeros(0, dtype=bool)
    levels: NDArray[np.float64] | None = None

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Whether all labels of each row are predicted."""
        return np.asarray((self.target == self.predicted).all(axis=1))

    @property
    def is_multilabel(self) -> bool:
        """Whether a row may have several labels."""
        return self.probabilities is not None and self.target.shape[1] > 1

    @property
    def unseen(self) -> NDArray[np.bool_]:
        """Whether the label of each row is one that ``fit`` has not seen."""
        if self.probabilities is None or self.is_multilabel:
            return np.zeros(len(self.target), dtype=bool)
        return np.asarray(~self.is_class.any(axis=1))

    @property
    def is_scored(self) -> bool:
        """Whether the score of the model is defined on these rows."""
        if self.probabilities is not None:
            return True
        return len(self.target) > 1 and bool((np.ptp(self.target, axis=0) > 0).all())


def names_of_columns(y: Any, n: int, kind: str) -> list[str]:
    """Return the names of the columns of ``y``, or numbers if it has none."""
    columns = list(getattr(y, "columns", ()))
    return list(map(str, columns)) or [f"{kind} {i}" for i in range(n)]


def target_of(estimator: Any, X: Any, y: Any) -> NDArray[Any]:
    """Return the target as an array with a column for each target or label.

    Raises
    ------
    NonFiniteDataError
        If a value is missing or not finite.
    ValueError
        If ``y`` has not one value for each row and each target of the model.
    """
    last = last_of(estimator)
    network = next(iter(networks_of(estimator).values()))
    names, remedy = getattr(y, "columns", None), "Remove these rows from X and y."
    y = y.toarray() if sparse.issparse(y) else y
    if hasattr(last, "classes_"):
        is_pandas = isinstance(y, (pd.Series, pd.DataFrame))
        found = np.asarray(y if is_pandas else plain_cells(y))
        if (missing := pd.isna(found)).any():
            row = int(np.argwhere(missing)[0, 0])
            raise NonFiniteDataError(
                f"y contains {quantity(int(missing.sum()), 'missing label')}, first at "
                f"row {row}. {remedy}"
            )
        is_multilabel = getattr(network, "_is_multilabel", False)
        n_columns = len(last.classes_) if is_multilabel else 1
    else:
        found = np.asarray(plain_cells(y)).astype(np.float64)
        check_finite(found, name="y", remedy=remedy, columns=names, limit=FLOAT64_MAX)
        n_columns = math.prod(getattr(network, "_target_shape", found.shape[1:]))
    n_rows = len(found)
    if hasattr(X, "shape") or hasattr(X, "__len__"):
        n_rows = X.shape[0] if hasattr(X, "shape") else len(X)
    if len(found) != n_rows:
        raise ValueError(
            f"X has {quantity(n_rows, 'row')}, and y has {len(found)}. Pass one target "
            "for each row."
        )
    found = found.reshape(n_rows, -1)
    if found.shape[1] != n_columns:
        raise ValueError(
            f"y has {quantity(found.shape[1], 'column')}, but the model was fitted on "
            f"{n_columns}. Pass the target of fit for the rows of X."
        )
    return found


def evaluate(estimator: Any, X: Any, y: Any) -> Evaluation:
    """Predict rows with a fitted model."""
    target = target_of(estimator, X, y)
    predicted = np.asarray(estimator.predict(X))
    classes = getattr(last_of(estimator), "classes_", None)
    if classes is not None:
        p = np.asarray(estimator.predict_proba(X), dtype=np.float64)
        names = list(map(str, classes))
        is_class = target == np.asarray(classes)
        if target.shape[1] > 1:
            names = names_of_columns(y, target.shape[1], "label")
            is_class = target == 1
        return Evaluation(target, predicted.reshape(target.shape), names, p, is_class)
    levels = quantiles_of(estimator)
    shape = target.shape if levels is None else (*target.shape, len(levels))
    predicted = predicted.astype(np.float64).reshape(shape)
    names = names_of_columns(y, target.shape[1], "target")
    return Evaluation(target, predicted, names, levels=levels)


def quantiles_of(estimator: Any) -> NDArray[np.float64] | None:
    """Return the quantiles that a regressor predicts, or None."""
    net = skorch_net_of(next(iter(networks_of(estimator).values())))
    levels = levels_of(net.criterion_)
    return None if levels is None else np.atleast_1d(np.asarray(levels, np.float64))


# -- scores --------------------------------------------------------------------------


def score_table(found: Evaluation) -> str:
    """Return a table of scores with their 95 % intervals."""
    scores = _scores_of_numbers if found.probabilities is None else _scores_of_classes
    found_table = table(list(scores(found)), ["score", "value", "95 % interval"])
    n = len(found.names)
    if found.probabilities is not None or n <= _MAX_GROUPS:
        return found_table
    text = f"The first {_MAX_GROUPS} of {n} targets are listed."
    return found_table + element("p", text)


def _scores_of_classes(found: Evaluation) -> Iterator[Row]:
    p = np.clip(np.asarray(found.probabilities), _EPS, 1.0)
    if found.is_multilabel:
        p = np.where(found.is_class, p, np.maximum(1.0 - p, _EPS))
        yield ("accuracy (all labels of a row)", *_share(found.hits))
        losses = -np.log(p).mean(axis=1)
        yield _resampled("mean log-loss of the labels", losses, _mean)
        return
    yield ("accuracy", *_share(found.hits))
    if not found.unseen.any():
        losses = -np.log(np.maximum((p * found.is_class).sum(axis=1), _EPS))
        yield _resampled("log-loss", losses, _mean)


def _scores_of_numbers(found: Evaluation) -> Iterator[Row]:
    """Yield scores of each target, since targets may have different units."""
    n = found.target.shape[1]
    for j, name in enumerate(found.names[:_MAX_GROUPS]):
        y, p = found.target[:, j], found.predicted[:, j]
        of = f" of {name}" if n > 1 else ""
        # In a unit of the target, no square overflows.
        unit = max(np.abs(y).max(), np.abs(p).max(), _TINY)
        if found.levels is not None:
            errors, levels = y[:, None] / unit - p / unit, found.levels
            losses = np.maximum(levels * errors, (levels - 1) * errors).mean(axis=1)
            yield _resampled(f"mean pinball loss{of}", losses * unit, _mean)
            continue
        errors, centered = y / unit - p / unit, y / unit - (y / unit).mean()
        parts = np.column_stack([errors**2, centered, centered**2])
        if np.isfinite(_r2(parts.mean(axis=0))):
            yield _resampled(f"R2{of}", parts, _r2)
        losses = np.abs(errors) * unit
        yield _resampled(f"mean absolute error{of}", losses, _mean)


def _mean(means: Numbers) -> Any:
    return means[..., 0]


def _r2(means: Numbers) -> Any:
    """Return R2 of means of squared errors, targets and their squares.

    It is NaN for a constant target, which also some resamples of few rows have.
    """
    residual, mean, square = np.moveaxis(means, -1, 0)
    variance = square - mean**2
    variance = np.where(variance > _ROUNDING * square, variance, np.nan)
    return 1.0 - residual / variance


def _resampled(name: str, values: Numbers, score: Callable[[Numbers], Any]) -> Row:
    """Return a function of the means of values, with its bootstrap interval.

    Many rows are divided into groups at random, which are drawn as a whole.
    """
    values = values.reshape(len(values), -1)
    rng, n = np.random.default_rng(0), len(values)
    n_groups = min(n, _N_GROUPS)
    starts = np.arange(n_groups) * n // n_groups
    sums = np.add.reduceat(values[rng.permutation(n)], starts)
    sizes = np.diff(starts, append=n)
    draws = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), _N_RESAMPLES)
    means = (draws @ sums) / (draws @ sizes)[:, None]
    value = f"{score(values.mean(axis=0)):.4g}"
    if n < 2:
        return name, value, "-"
    low, high = np.nanquantile(score(means), [0.025, 0.975])
    return name, value, f"{low:.4g} to {high:.4g}"


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
    p, observed, names = found.probabilities, found.is_class, found.names
    heads, kind = ["predicted", "observed", "95 % interval", "rows"], "target"
    if found.levels is not None:
        text = "Share of the targets that are at most the predicted quantile."
        heads[0] = "quantile"
    elif p is None:
        text = "Mean prediction and mean target, by groups of ascending predictions."
        p, observed = found.predicted, found.target
    else:
        kind = "label" if found.is_multilabel else "class"
        if kind == "class" and len(names) == 2:
            p, observed, names = p[:, 1:], observed[:, 1:], names[1:]
        of = f"{names[0]}" if len(names) == 1 else f"each {kind}"
        text = "Mean probability and observed share, by groups of ascending "
        text += f"probability of {of}."
    groups = names[:_MAX_GROUPS]
    rows: list[Row] = []
    for j, name in enumerate(groups):
        if p is not None:
            of_group = _bins(p[:, j], observed[:, j])
        else:
            of_group = _shares_of_quantiles(found, j)
        rows += ((name, *row) if len(names) > 1 else row for row in of_group)
    if len(names) > 1:
        heads = [kind, *heads]
        text += f" Each row is counted once for each {kind}."
    if len(names) > len(groups):
        text += f" The first {len(groups)} of {len(names)} are listed."
    parts = [element("p", text), cut_table(rows, heads)]
    return section("Calibration", parts) if rows else ""


def _shares_of_quantiles(found: Evaluation, j: int) -> Iterator[Row]:
    """Yield the share of the values of a target below each of its quantiles."""
    is_below = found.target[:, j, None] <= found.predicted[:, j]
    for level, below in zip(np.asarray(found.levels), is_below.T, strict=True):
        yield (f"{level:g}", *_share(below), str(len(below)))


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
        text += (
            " This holds for the predictions and the accuracy only if the model was "
            "not trained on the rows given to this report."
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
        frequent = labels.value_counts().index[:_MAX_GROUPS]
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
