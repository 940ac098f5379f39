"""Scores and calibration for the rows that a report was given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sknan._utils.html import element, table
from sknan.inspection._report._evaluation import MAX_GROUPS, Evaluation, Numbers, Row
from sknan.inspection._report._html import cut_table, section

# Resamples for an interval, and groups into which the rows are divided for them.
_N_RESAMPLES = _N_GROUPS = 1000

# Groups of a table of calibration, and the least number of rows in one.
_N_BINS = _MIN_PER_BIN = 10

_TINY = float(np.finfo(np.float64).tiny)
_EPS = float(np.finfo(np.float32).eps)

# A variance below this share of the mean square is the rounding error of a constant.
_ROUNDING = 1e-12


def score_table(found: Evaluation) -> str:
    """Return a table of scores with their intervals, and one of the classes."""
    is_regression = found.probabilities is None
    scores = _scores_of_numbers if is_regression else _scores_of_classes
    n = len(found.names)
    by = "mean (R2) or median" if is_regression else "share of each class"
    by = "quantiles" if found.levels is not None else by
    by = "share of each label" if found.is_multilabel else by
    text = f"The last column has the score of a constant: the {by} of these rows."
    if is_regression and n > MAX_GROUPS:
        text += f" The first {MAX_GROUPS} of {n} targets are listed."
    heads = ["score", "value", "95 % interval", "constant"]
    parts = [table(list(scores(found)), heads), element("p", text)]
    if not is_regression:
        kind = "label" if found.is_multilabel else "class"
        heads = [kind, "rows", "recall", "95 % interval", "precision", "95 % interval"]
        parts.append(cut_table(list(_scores_by_class(found)), heads))
    return "".join(parts)


def _scores_of_classes(found: Evaluation) -> Iterator[Row]:
    p = np.clip(np.asarray(found.probabilities), _EPS, 1.0)
    shares = found.is_class.mean(axis=0)
    if found.is_multilabel:
        counts = np.unique(found.target, axis=0, return_counts=True)[1]
        most = _digits(counts.max() / len(found.target))
        yield ("accuracy (all labels of a row)", *_share(found.hits), most)
        p = np.where(found.is_class, p, np.maximum(1.0 - p, _EPS))
        losses = -np.log(p).mean(axis=1)
        constant = np.mean(stats.entropy([shares, 1.0 - shares]))
        name = "mean log-loss of the labels"
        yield (*_resampled(name, losses, _mean), _digits(constant))
        return
    yield ("accuracy", *_share(found.hits), _digits(shares.max()))
    if not found.unseen.any():
        losses = -np.log(np.maximum((p * found.is_class).sum(axis=1), _EPS))
        row = _resampled("log-loss", losses, _mean)
        yield (*row, _digits(stats.entropy(shares)))


def _scores_by_class(found: Evaluation) -> Iterator[Row]:
    """Yield recall and precision of each class or label."""
    columns = zip(found.names, found.is_class.T, found.is_predicted.T, strict=True)
    for name, is_class, is_predicted in columns:
        shares = [
            _share(is_true) if len(is_true) else ("-", "-")
            for is_true in (is_predicted[is_class], is_class[is_predicted])
        ]
        yield (name, str(int(is_class.sum())), *shares[0], *shares[1])


def _scores_of_numbers(found: Evaluation) -> Iterator[Row]:
    """Yield scores of each target, since targets may have different units."""
    n = found.target.shape[1]
    for j, name in enumerate(found.names[:MAX_GROUPS]):
        y, p = found.target[:, j], found.predicted[:, j]
        of = f" of {name}" if n > 1 else ""
        # In a unit of the target, no square overflows.
        unit = max(np.abs(y).max(), np.abs(p).max(), _TINY)
        if found.levels is not None:
            losses, constant = (
                _pinball(y / unit, of_row / unit, found.levels)
                for of_row in (p, np.quantile(y, found.levels))
            )
            row = _resampled(f"mean pinball loss{of}", losses * unit, _mean)
            yield (*row, _digits(constant.mean() * unit))
            continue
        errors, centered = y / unit - p / unit, y / unit - (y / unit).mean()
        parts = np.column_stack([errors**2, centered, centered**2])
        if np.isfinite(_r2(parts.mean(axis=0))):
            yield (*_resampled(f"R2{of}", parts, _r2), "0")
        row = _resampled(f"mean absolute error{of}", np.abs(errors) * unit, _mean)
        deviations = np.abs(y / unit - np.median(y / unit))
        yield (*row, _digits(deviations.mean() * unit))


def _pinball(y: Numbers, predicted: Numbers, levels: Numbers) -> Numbers:
    errors = y[:, None] - predicted
    return np.asarray(np.maximum(levels * errors, (levels - 1) * errors).mean(axis=1))


def _digits(value: float) -> str:
    """Return four digits, without an exponent up to a million."""
    return f"{float(f'{value:.4g}'):g}"


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
    value = _digits(score(values.mean(axis=0)))
    if n < 2:
        return name, value, "-"
    low, high = np.nanquantile(score(means), [0.025, 0.975])
    return name, value, f"{_digits(low)} to {_digits(high)}"


def _share(is_true: NDArray[np.bool_], z: float = 1.96) -> Row:
    """Return a share of independent rows with the interval of Wilson (1927)."""
    n, p = is_true.size, float(is_true.mean())
    center = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((center + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return _digits(p), f"{_digits(max(low, 0.0))} to {_digits(min(high, 1.0))}"


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
    groups = names[:MAX_GROUPS]
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
        mean = _digits(predicted[rows].mean())
        if observed.dtype == bool:
            yield mean, *_share(observed[rows]), str(len(rows))
            continue
        center, unit = observed[rows].mean(), np.abs(observed).max() or 1.0
        error = 1.96 * stats.sem(observed[rows] / unit) * unit
        ends = f"{_digits(center - error)} to {_digits(center + error)}"
        yield mean, _digits(center), ends, str(len(rows))
