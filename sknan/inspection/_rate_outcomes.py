"""What became of each learning rate, read off a range test or a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sknan._engine.range_test import LearningRateRange

__all__ = [
    "Fate",
    "LearningRateCurve",
    "curves_of_range",
    "curves_of_search",
    "name_of_metric",
    "name_of_rate",
    "results_of",
]

Fate = Literal["", "stable", "unstable", "rescued", "diverged"]


@dataclass(frozen=True, eq=False)
class LearningRateCurve:
    """Loss or score at each of some rates, all else being equal.

    Parameters
    ----------
    name : str
        What the curve is called in a legend.
    rates : ndarray of shape (n_rates,)
        Ascending.
    values : ndarray of shape (n_rates,)
        Loss or score; NaN where there is none.
    fates : tuple of {"", "stable", "unstable", "rescued", "diverged"}
        What became of each; "" where nobody knows.
    spread : ndarray of shape (n_rates,) or None, default=None
        Standard deviation over the folds.
    effective_lr : ndarray of shape (n_rates,) or None, default=None
        Rate at which the guard ended; NaN where nobody knows.
    """

    name: str
    rates: np.ndarray
    values: np.ndarray
    fates: tuple[Fate, ...]
    spread: np.ndarray | None = None
    effective_lr: np.ndarray | None = None


def curves_of_range(found: LearningRateRange) -> list[LearningRateCurve]:
    """Losses at the end of a range test, on held-out rows first."""
    frame = found.to_frame()
    fates = tuple(_fate_in_range(row) for row in frame.itertuples())
    losses = [
        ("held-out rows", frame["valid_loss"].to_numpy(float)),
        ("training rows", frame["train_loss"].to_numpy(float)),
    ]
    return [
        LearningRateCurve(name, found.rates, loss, fates)
        for name, loss in losses
        if found.valid_losses.size or name == "training rows"
    ]


def _fate_in_range(row: Any) -> Fate:
    if row.is_stable:
        return "stable"
    return "diverged" if isinstance(row.ended_at, (int, np.integer)) else "unstable"


def results_of(search: Any) -> Mapping[str, Any]:
    results = getattr(search, "cv_results_", None)
    if results is None:
        raise TypeError(
            "from_search draws a fitted search or its cv_results_, and "
            f"{type(search).__name__} has no cv_results_. Fit it first."
        )
    found: Mapping[str, Any] = results
    return found


def name_of_rate(results: Mapping[str, Any], param: str | None) -> str:
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
    """One curve for each setting of the other parameters."""
    groups: dict[str, dict[float, int]] = {}
    for place, candidate in enumerate(results["params"]):
        if param not in candidate:
            continue
        others = {name: v for name, v in candidate.items() if name != param}
        name = ", ".join(
            f"{name.rpartition('__')[2]}={_shown(v)}" for name, v in others.items()
        )
        # A halving search comes back to a candidate with more resources: the last.
        groups.setdefault(name, {})[float(candidate[param])] = place
    curves = []
    rates = _column(results, "effective_lr")
    recoveries = _column(results, "n_recoveries")
    for name, places in groups.items():
        order = [places[rate] for rate in sorted(places)]
        mean = np.asarray(results[f"mean_{value}"], dtype=float)[order]
        counts = [None if recoveries is None else recoveries[i] for i in order]
        curves.append(
            LearningRateCurve(
                name or value.removeprefix("test_"),
                np.array(sorted(places)),
                mean,
                tuple(map(_fate_in_search, mean, counts)),
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
    """A column of the search's, NaN where it is masked."""
    if name not in results:
        return None
    column = np.ma.asarray(results[name])
    filled: np.ndarray = np.ma.filled(column.astype(float), np.nan)
    return filled


def _fate_in_search(mean: float, n_recoveries: float | None) -> Fate:
    if not np.isfinite(mean):
        return "diverged"
    if n_recoveries is None:
        return ""
    if np.isnan(n_recoveries):
        return "diverged"
    return "rescued" if n_recoveries else "stable"
