"""Display of loss or score over the learning rate, with the outcome at each rate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from sknan._engine.range_test import LearningRateRange
from sknan.inspection._plotting import (
    COLORS,
    INK,
    as_text,
    axes_of,
    legend_above,
    scale_for,
    style_of,
)
from sknan.inspection._rate_outcomes import (
    LearningRateCurve,
    RateOutcome,
    curves_of_range,
    curves_of_search,
    name_of_metric,
    name_of_rate,
    results_of,
)

# Outcomes from unknown to worst. A rate is shaded by the worst of its candidates.
_OUTCOMES: tuple[RateOutcome, ...] = ("", "stable", "unstable", "rescued", "diverged")

# Zones differ in lightness and hatching as well as in color.
_ZONES: dict[str, dict[str, Any]] = {
    "stable": {"facecolor": (COLORS[4], 0.10)},
    "unstable": {"facecolor": (COLORS[3], 0.25), "hatch": ".."},
    "rescued": {"facecolor": (COLORS[1], 0.25), "hatch": "//"},
    "diverged": {"facecolor": (COLORS[2], 0.35), "hatch": "xx"},
}

# More curves are drawn in gray, except for the best one.
_MAX_STYLED = 6

# The axis reaches this many times the spread of the better half of the values beyond
# that half. The spread counts as at least this share of the best value.
_SPREAD = 4.0
_MIN_SPREAD = 0.25

_CHOSEN: dict[str, Any] = {"color": INK, "linestyle": (0, (6, 2)), "linewidth": 1.2}


class LearningRateDisplay:
    """Loss or score over the learning rate, with the outcome of training at each rate.

    Created by :meth:`from_range` or :meth:`from_search`.

    Parameters
    ----------
    curves : sequence of LearningRateCurve
        One or more curves.
    value_name : str
        Label of the vertical axis.
    greater_is_better : bool, default=False
        Whether the values are scores rather than losses.
    chosen : float or None, default=None
        Suggested or best learning rate, which is marked by a vertical line.
    chosen_name : str, default="suggestion"
        Name of this line in the legend.

    Attributes
    ----------
    ax_ : Axes
        Axes of the display.
    figure_ : Figure
        Figure of these axes.

    See Also
    --------
    sknan.find_learning_rate : Short trainings at many learning rates.
    sknan.BatchedGridSearchCV : A search that reports the outcome of each candidate.

    Notes
    -----
    The background shows the outcome at each learning rate:

    - *stable*: the loss fell, and no step failed;
    - *unstable* (range test only): the loss fell less, and no step failed;
    - *rescued*: a step failed, and training continued, possibly at a lower learning
      rate, which a thin line connects to the point;
    - *diverged*: there is no model.

    A rate with several candidates shows the worst outcome among them. The searches of
    scikit-learn do not record recoveries, so only rates without a score are shaded.

    Values far from the better half of the values are off the scale, and are marked at
    the edge.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sknan import LearningRateDisplay, StableNetClassifier, find_learning_rate
    >>> X, y = load_iris(return_X_y=True)
    >>> found = find_learning_rate(StableNetClassifier(random_state=0), X, y)
    >>> LearningRateDisplay.from_range(found).ax_.get_xlabel()
    'learning rate'
    """

    ax_: Any
    figure_: Any

    def __init__(
        self,
        curves: Sequence[LearningRateCurve],
        *,
        value_name: str,
        greater_is_better: bool = False,
        chosen: float | None = None,
        chosen_name: str = "suggestion",
    ) -> None:
        self.curves = curves
        self.value_name = value_name
        self.greater_is_better = greater_is_better
        self.chosen = chosen
        self.chosen_name = chosen_name

    @classmethod
    def from_range(
        cls, found: LearningRateRange, *, ax: Any = None
    ) -> LearningRateDisplay:
        """Draw the result of a range test.

        Parameters
        ----------
        found : LearningRateRange
            Result of ``find_learning_rate``, or ``learning_rate_range_`` of an
            estimator with ``lr="auto"``.
        ax : Axes or None, default=None
            Axes to draw on. None makes a figure.

        Returns
        -------
        LearningRateDisplay
        """
        if not isinstance(found, LearningRateRange):
            raise TypeError(
                "from_range draws a LearningRateRange, as find_learning_rate returns, "
                f"got {type(found).__name__}."
            )
        display = cls(
            curves_of_range(found),
            value_name="loss at the end of the test",
            chosen=found.suggestion,
        )
        return display.plot(ax)

    @classmethod
    def from_search(
        cls,
        search: Any,
        *,
        param: str | None = None,
        metric: str | None = None,
        ax: Any = None,
    ) -> LearningRateDisplay:
        """Draw the results of a search over learning rates.

        Parameters
        ----------
        search : search or mapping
            Fitted search of this package or of scikit-learn, or its ``cv_results_``.
        param : str or None, default=None
            Name of the learning rate among the parameters. None selects the parameter
            named ``lr`` or ending in ``__lr``.
        metric : str or None, default=None
            Name of the metric to draw. None selects the metric of ``refit``, or the
            first if there is none.
        ax : Axes or None, default=None
            Axes to draw on. None makes a figure.

        Returns
        -------
        LearningRateDisplay

        Raises
        ------
        TypeError
            If ``search`` has no ``cv_results_``.
        ValueError
            If the parameter or the metric does not exist.
        """
        results = results_of(search)
        param = name_of_rate(results, param)
        metric = name_of_metric(results, metric, getattr(search, "refit", None))
        curves = curves_of_search(results, param, f"test_{metric}")
        best = getattr(search, "best_index_", None)
        chosen = None if best is None else results["params"][best].get(param)
        return cls(
            curves,
            value_name=f"mean {metric} on the test folds",
            greater_is_better=True,
            chosen=None if chosen is None else float(chosen),
            chosen_name="best",
        ).plot(ax)

    def plot(self, ax: Any = None) -> LearningRateDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : Axes or None, default=None
            Axes to draw on. None makes a figure.

        Returns
        -------
        LearningRateDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        (axes,) = axes_of(ax, [3.4], 6.4, "LearningRateDisplay.plot")
        values = [curve.values for curve in self.curves]
        scale = "linear" if self.greater_is_better else scale_for(values)
        axes.set(xscale="log", yscale=scale)
        limits = _limits(values, self.greater_is_better, is_log=scale == "log")
        zones = self._draw_zones(axes)
        if len(self.curves) > _MAX_STYLED:
            self._draw_many(axes)
        else:
            for i, curve in enumerate(self.curves):
                _draw_curve(axes, curve, style_of(i), is_only=len(self.curves) == 1)
        if limits is None:
            axes.set_yticks([])
        else:
            axes.set_ylim(*limits)
        self._mark_values_off_scale(axes, limits or (0.0, 1.0))
        if self.chosen is not None:
            label = f"{self.chosen_name} {float(f'{self.chosen:.2g}'):g}"
            axes.axvline(self.chosen, label=label, **_CHOSEN)
        axes.set(xlabel="learning rate", ylabel=self.value_name)
        axes.grid(alpha=0.25)
        legend_above(axes, zones)
        self.ax_, self.figure_ = axes, axes.figure
        return self

    def _draw_zones(self, ax: Any) -> dict[str, Any]:
        """Shade adjacent rates of the same outcome; return legend handles by label."""
        zones: dict[str, Any] = {}
        worst: dict[float, RateOutcome] = {}
        for curve in self.curves:
            for rate, outcome in zip(curve.rates.tolist(), curve.fates, strict=True):
                worst[rate] = max(worst.get(rate, ""), outcome, key=_OUTCOMES.index)
        rates = sorted(worst)
        edges = np.log10(rates)
        step = np.diff(edges).mean() / 2 if len(rates) > 1 else 0.5
        middle = (edges[1:] + edges[:-1]) / 2
        edges = 10 ** np.concatenate([[edges[0] - step], middle, [edges[-1] + step]])
        ax.set_xlim(edges[0], edges[-1])
        are_same = all(curve.fates == self.curves[0].fates for curve in self.curves)
        for outcome, group in groupby(range(len(rates)), lambda i: worst[rates[i]]):
            indices = list(group)
            if outcome:
                is_plain = are_same or outcome == "stable"
                label = outcome if is_plain else f"some {outcome}"
                ends = edges[indices[0]], edges[indices[-1] + 1]
                zones[label] = _shade(ax, ends, **_ZONES[outcome])
        return zones

    def _draw_many(self, ax: Any) -> None:
        """Draw the curve with the best value in black and the others in gray."""
        sign = 1.0 if self.greater_is_better else -1.0
        signed = [sign * curve.values for curve in self.curves]
        tops = [values[np.isfinite(values)].max(initial=-np.inf) for values in signed]
        best = int(np.argmax(tops))
        others = {"color": "0.45", "linewidth": 0.7}
        label = f"{len(self.curves) - 1} others"
        for i, curve in enumerate(self.curves):
            if i != best:
                ax.plot(curve.rates, curve.values, label=label, **others)
        style = {**style_of(0), "linewidth": 2.2}
        _draw_curve(ax, self.curves[best], style, is_only=False)

    def _mark_values_off_scale(self, ax: Any, limits: tuple[float, float]) -> None:
        """Mark values beyond the limits, and missing values, at the edge."""
        low, high = limits
        over = ax.get_xaxis_transform()
        style = {"linestyle": "none", "color": INK, "transform": over, "zorder": 4}
        for curve in self.curves:
            marks = [
                ("^", 0.97, curve.values > high, "off the scale"),
                ("v", 0.03, curve.values < low, "off the scale"),
                ("x", 0.03, ~np.isfinite(curve.values), "no value"),
            ]
            for marker, y, mask, label in marks:
                if mask.any():
                    y_values = np.full(mask.sum(), y)
                    ax.plot(curve.rates[mask], y_values, marker, label=label, **style)


def _shade(
    ax: Any, ends: tuple[float, float], *, facecolor: Any, hatch: str | None = None
) -> Any:
    """Shade a zone and return legend handles for it.

    The hatching is a separate patch, because SVG applies the opacity of the face to it.
    """
    face = ax.axvspan(*ends, facecolor=facecolor, edgecolor="none", zorder=0)
    if hatch is None:
        return face
    style = {"facecolor": "none", "edgecolor": "0.7", "linewidth": 0.0, "zorder": 0}
    return face, ax.axvspan(*ends, hatch=hatch, **style)


def _draw_curve(
    ax: Any, curve: LearningRateCurve, style: dict[str, Any], *, is_only: bool
) -> None:
    """Draw a curve; the only one also with its spread and its effective rates."""
    rates, values, spread = curve.rates, curve.values, curve.spread
    ax.plot(rates, values, label=as_text(curve.name), **style)
    is_rescued = np.array([outcome == "rescued" for outcome in curve.fates])
    hollow = {"markerfacecolor": "white", "markeredgecolor": style["color"]}
    points = {"marker": style["marker"], "linestyle": "none", "markersize": 6, **hollow}
    ax.plot(rates[is_rescued], values[is_rescued], zorder=3, **points)
    if not is_only:
        return
    if spread is not None:
        area = {"color": COLORS[0], "alpha": 0.2, "linewidth": 0}
        ax.fill_between(rates, values - spread, values + spread, **area)
    if curve.effective_lr is None:
        return
    left = ax.get_xlim()[0]
    for i in np.flatnonzero(is_rescued & np.isfinite(curve.effective_lr)):
        lowered, value = max(float(curve.effective_lr[i]), left), values[i]
        line = {"color": INK, "linewidth": 0.7, "zorder": 1}
        ax.plot([lowered, rates[i]], [value, value], **line)
        label = "rate after recovery"
        ax.plot(lowered, value, "<", color=INK, markersize=4, label=label)


def _limits(
    values: Sequence[np.ndarray], greater_is_better: bool, *, is_log: bool
) -> tuple[float, float] | None:
    """Return limits of the vertical axis that omit values far from the better half."""
    pooled = np.concatenate([np.ravel(v) for v in values])
    pooled = pooled[np.isfinite(pooled)]
    if not len(pooled):
        return None
    if is_log:
        pooled = np.log10(pooled)
    signed = np.sort(pooled if greater_is_better else -pooled)[::-1]
    half = signed[: (len(signed) + 1) // 2]
    min_spread = _MIN_SPREAD * (1.0 if is_log else abs(half[0]))
    spread = max(half[0] - half[-1], min_spread, 1e-12)
    worst = max(signed[-1], half[-1] - _SPREAD * spread)
    # Equal scores that differ by rounding are one line, not a whole scale.
    margin = 0.08 * max(signed[0] - worst, 0.04 * min_spread or 0.01)
    ends = np.array([worst - margin, signed[0] + margin])
    low, high = ends if greater_is_better else -ends[::-1]
    return (10**low, 10**high) if is_log else (float(low), float(high))
