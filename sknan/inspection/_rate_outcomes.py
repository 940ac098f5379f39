"""Curves over the learning rate, with the outcome of training at each rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sknan._engine.range_test import LearningRateRange

RateOutcome = Literal["", "stable", "unstable", "rescued", "diverged"]


@dataclass(frozen=True, eq=False)
class LearningRateCurve:
    """Loss or score at several learning rates, with all other settings equal.

    Parameters
    ----------
    name : str
        Name of the curve in a legend.
    rates : ndarray of shape (n_rates,)
        Learning rates in ascending order.
    values : ndarray of shape (n_rates,)
        Loss or score at each rate; NaN where there is none.
    fates : tuple of {"", "stable", "unstable", "rescued", "diverged"}
        Outcome of training at each rate; "" where it is unknown.
    spread : ndarray of shape (n_rates,) or None, default=None
        Standard deviation over the folds.
    effective_lr : ndarray of shape (n_rates,) or None, default=None
        Learning rate at the end of training, which the guard may have lowered; NaN
        where it is unknown.
    """

    name: str
    rates: np.ndarray
    values: np.ndarray
    fates: tuple[RateOutcome, ...]
    spread: np.ndarray | None = None
    effective_lr: np.ndarray | None = None


def curves_of_range(found: LearningRateRange) -> list[LearningRateCurve]:
    """Return the losses at the end of a range test, those on held-out rows first."""
    frame = found.to_frame()
    outcomes = tuple(_outcome_in_range(row) for row in frame.itertuples())
    losses = {"training rows": "train_loss"}
    if found.valid_losses.size:
        losses = {"held-out rows": "valid_loss", **losses}
    return [
        LearningRateCurve(name, found.rates, frame[loss].to_numpy(float), outcomes)
        for name, loss in losses.items()
    ]


def _outcome_in_range(row: Any) -> RateOutcome:
    if row.is_stable:
        return "stable"
    return "diverged" if isinstance(row.ended_at, (int, np.integer)) else "unstable"


def results_of(search: Any) -> Mapping[str, Any]:
    """Return ``cv_results_`` of a search, or a mapping as it is."""
    if isinstance(search, Mapping):
        return search
    results = getattr(search, "cv_results_", None)
    if results is None:
        raise TypeError(
            "from_search draws a fitted search or its cv_results_, and "
            f"{type(search).__name__} has no cv_results_. Fit it first."
        )
    return dict(results)


def name_of_rate(results: Mapping[str, Any], param: str | None) -> str:
    """Return the name of the learning rate among the parameters of a search."""
    names = [key[6:] for key in results if key.startswith("param_")]
    rates = [name for name in names if name.rpartition("__")[2] == "lr"]
    if param is None and len(rates) == 1:
        return rates[0]
    if param in names:
        return str(param)
    known = ", ".join(map(repr, names))
    if param is None:
        raise ValueError(
            f"The search has {len(rates)} parameters named lr among {known}. Pass "
            "param, the name of the learning rate."
        )
    raise ValueError(f"param must be one of {known}, got {param!r}.")


def name_of_metric(results: Mapping[str, Any], metric: Any, refit: Any) -> str:
    """Return the metric that is asked for, else the one of refit, else the first."""
    names = [key[10:] for key in results if key.startswith("mean_test_")]
    if metric is None and isinstance(refit, str):
        metric = refit
    if metric is None:
        return names[0]
    if metric not in names:
        known = ", ".join(map(repr, names))
        raise ValueError(f"metric must be one of {known}, got {metric!r}.")
    return str(metric)


def curves_of_search(
    results: Mapping[str, Any], param: str, value: str
) -> list[LearningRateCurve]:
    """Return one curve of a score for each setting of the other parameters."""
    groups: dict[str, dict[float, int]] = {}
    for i, candidate in enumerate(results["params"]):
        others = [
            f"{name.rpartition('__')[2]}={_shown(v)}"
            for name, v in candidate.items()
            if name != param
        ]
        # A halving search repeats candidates with more resources. The last one counts.
        if param in candidate:
            groups.setdefault(", ".join(others), {})[float(candidate[param])] = i
    curves = []
    rates = _column(results, "effective_lr")
    recoveries = _column(results, "n_recoveries")
    for name, indices in groups.items():
        order = [indices[rate] for rate in sorted(indices)]
        mean = np.asarray(results[f"mean_{value}"], dtype=float)[order]
        counts = [None if recoveries is None else recoveries[i] for i in order]
        curves.append(
            LearningRateCurve(
                name or value.removeprefix("test_"),
                np.array(sorted(indices)),
                mean,
                tuple(map(_outcome_in_search, mean, counts)),
                np.asarray(results[f"std_{value}"], dtype=float)[order],
                None if rates is None else rates[order],
            )
        )
    return curves


def _shown(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.3g}"
    return repr(value)


def _column(results: Mapping[str, Any], name: str) -> np.ndarray | None:
    """Return a column of the results with NaN where it is masked, or None."""
    if name not in results:
        return None
    column = np.ma.asarray(results[name])
    return np.ma.filled(column.astype(float), np.nan)


def _outcome_in_search(mean: float, n_recoveries: float | None) -> RateOutcome:
    if not np.isfinite(mean):
        return "diverged"
    if n_recoveries is None:
        return ""
    if np.isnan(n_recoveries):
        return "diverged"
    return "rescued" if n_recoveries else "stable"
