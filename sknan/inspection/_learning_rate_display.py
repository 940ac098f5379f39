"""A picture of what became of each learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sknan._engine.range_test import LearningRateRange
from sknan.inspection._plotting import (
    COLOURS,
    INK,
    as_text,
    axes_of,
    legend_above,
    scale_for,
    style_of,
)
from sknan.inspection._rate_outcomes import (
    Fate,
    LearningRateCurve,
    curves_of_range,
    curves_of_search,
    name_of_metric,
    name_of_rate,
    results_of,
)

__all__ = ["LearningRateDisplay"]

# From what nobody knows to the worst; a rate is shaded by the worst of its candidates.
_FATES: tuple[Fate, ...] = ("", "stable", "unstable", "rescued", "diverged")

# Lightness and hatching tell the zones apart where colour does not.
_ZONES: dict[str, dict[str, Any]] = {
    "stable": {"facecolor": (COLOURS[4], 0.10)},
    "unstable": {"facecolor": (COLOURS[3], 0.25), "hatch": ".."},
    "rescued": {"facecolor": (COLOURS[1], 0.25), "hatch": "//"},
    "diverged": {"facecolor": (COLOURS[2], 0.35), "hatch": "xx"},
}

# Of more curves, single ones are not told apart.
_FEW = 6

# So many times the spread of the better half stays on the picture.
_SPREAD = 4.0
_LEAST_SPREAD = 0.25


class LearningRateDisplay:
    """Loss or score over the learning rate, with what became of each rate.

    Make it with :meth:`from_range` or :meth:`from_search`.

    Parameters
    ----------
    curves : sequence of LearningRateCurve
        One or more.
    value_name : str
        What they show.
    greater_is_better : bool, default=False
        Whether that is a score.
    chosen : float or None, default=None
        Rate that was suggested, or the best one.
    chosen_name : str, default="suggestion"
        Which of the two.

    Attributes
    ----------
    ax_ : Axes
        What it is drawn on.
    figure_ : Figure
        Its figure.

    See Also
    --------
    sknan.find_learning_rate : Short trainings at many rates.
    sknan.BatchedGridSearchCV : A search that tells what became of each candidate.

    Notes
    -----
    Zones: *stable*, the loss fell and no step failed; *unstable* (of a range test), it
    did not fall as far, and no step failed; *rescued*, a step failed and training went
    on, maybe at a lower rate, to which a thin line leads; *diverged*, there is no
    model. A rate tried several times is shaded by the worst of them. scikit-learn's own
    searches do not tell rescued from stable: only what has no score is shaded.

    Values far off the better half lie off the scale, and are marked at the edge.

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
        """Draw what a range test has found.

        Parameters
        ----------
        found : LearningRateRange
            By ``find_learning_rate``, or ``learning_rate_range_`` of an estimator with
            ``lr="auto"``.
        ax : Axes or None, default=None
            As of :meth:`plot`.

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
            Fitted, of this package or of scikit-learn; or its ``cv_results_``.
        param : str or None, default=None
            Name of the learning rate among the parameters; None for the one that is
            ``lr`` or ends in ``__lr``.
        metric : str or None, default=None
            Which of several metrics; None for the one of ``refit``, else the first.
        ax : Axes or None, default=None
            As of :meth:`plot`.

        Returns
        -------
        LearningRateDisplay

        Raises
        ------
        TypeError
            If there is no ``cv_results_``.
        ValueError
            If there is no such parameter or metric.
        """
        results = search if isinstance(search, Mapping) else results_of(search)
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
        """Draw.

        Parameters
        ----------
        ax : Axes or None, default=None
            None makes a figure.

        Returns
        -------
        LearningRateDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        (axes,) = axes_of(ax, [3.4], 6.4, "LearningRateDisplay.plot")
        values = [its.values for its in self.curves]
        axes.set_xscale("log")
        scale = "linear" if self.greater_is_better else scale_for(values)
        axes.set_yscale(scale)
        limits = _limits(values, self.greater_is_better, is_log=scale == "log")
        found = self._draw_zones(axes)
        if len(self.curves) > _FEW:
            self._draw_many(axes)
        else:
            for place, its in enumerate(self.curves):
                _draw_curve(axes, its, style_of(place), is_only=len(self.curves) == 1)
        if limits is None:
            axes.set_yticks([])
        else:
            axes.set_ylim(*limits)
        self._mark_the_edges(axes, limits or (0.0, 1.0))
        if self.chosen is not None:
            axes.axvline(self.chosen, color=INK, linestyle=(0, (6, 2)), linewidth=1.2)
            axes.plot(
                *([], []),
                color=INK,
                linestyle=(0, (6, 2)),
                label=f"{self.chosen_name} {float(f'{self.chosen:.2g}'):g}",
            )
        axes.set(xlabel="learning rate", ylabel=self.value_name)
        axes.grid(alpha=0.25)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
        legend_above(axes, list(found.values()), list(found))
        self.ax_, self.figure_ = axes, axes.figure
        return self

    def _draw_zones(self, ax: Any) -> dict[str, Any]:
        """Shade them; handles for the legend by label."""
        zones: dict[str, Any] = {}
        worst: dict[float, Fate] = {}
        for its in self.curves:
            for rate, fate in zip(its.rates.tolist(), its.fates, strict=True):
                worst[rate] = max(worst.get(rate, ""), fate, key=_FATES.index)
        rates = np.array(sorted(worst))
        edges = np.log10(rates)
        step = np.diff(edges).mean() / 2 if len(rates) > 1 else 0.5
        middle = (edges[1:] + edges[:-1]) / 2
        edges = 10 ** np.concatenate([[edges[0] - step], middle, [edges[-1] + step]])
        ax.set_xlim(edges[0], edges[-1])
        are_one = all(its.fates == self.curves[0].fates for its in self.curves)
        first = 0
        for last in range(len(rates)):
            fate = worst[rates[first]]
            is_end = last + 1 == len(rates) or worst[rates[last + 1]] != fate
            if not is_end:
                continue
            if fate:
                label = fate if are_one or fate == "stable" else f"some {fate}"
                ends = edges[first], edges[last + 1]
                zones[label] = _shade(ax, ends, **_ZONES[fate])
            first = last + 1
        return zones

    def _draw_many(self, ax: Any) -> None:
        """All in grey, and the one with the best value."""
        sign = 1.0 if self.greater_is_better else -1.0
        tops = [_top(sign * its.values) for its in self.curves]
        best = int(np.argmax(tops))
        for place, its in enumerate(self.curves):
            if place != best:
                others = f"{len(self.curves) - 1} others"
                ax.plot(
                    *(its.rates, its.values), color="0.45", linewidth=0.7, label=others
                )
        its = self.curves[best]
        _draw_curve(ax, its, {**style_of(0), "linewidth": 2.2}, is_only=False)

    def _mark_the_edges(self, ax: Any, limits: tuple[float, float]) -> None:
        """What lies off the scale, and what has no value at all."""
        low, high = limits
        over = ax.get_xaxis_transform()
        style = {"linestyle": "none", "color": INK, "transform": over, "zorder": 4}
        for its in self.curves:
            marks = [
                ("^", 0.97, its.values > high, "off the scale"),
                ("v", 0.03, its.values < low, "off the scale"),
                ("x", 0.03, ~np.isfinite(its.values), "no value"),
            ]
            for marker, y, where, label in marks:
                rates = its.rates[where]
                if len(rates):
                    ax.plot(
                        *(rates, np.full(len(rates), y)), marker, label=label, **style
                    )


def _shade(
    ax: Any, ends: tuple[float, float], *, facecolor: Any, hatch: str | None = None
) -> Any:
    """A zone; its hatching apart, since SVG makes it as pale as the face."""
    face = ax.axvspan(*ends, facecolor=facecolor, edgecolor="none", zorder=0)
    if hatch is None:
        return face
    style = {"facecolor": "none", "edgecolor": "0.7", "linewidth": 0.0, "zorder": 0}
    return face, ax.axvspan(*ends, hatch=hatch, **style)


def _top(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else -np.inf


def _draw_curve(
    ax: Any, its: LearningRateCurve, style: dict[str, Any], *, is_only: bool
) -> None:
    ax.plot(its.rates, its.values, label=as_text(its.name), **style)
    is_rescued = np.array([fate == "rescued" for fate in its.fates])
    hollow = {"markerfacecolor": "white", "markeredgecolor": style["color"]}
    ax.plot(
        its.rates[is_rescued],
        its.values[is_rescued],
        style["marker"],
        markersize=6,
        zorder=3,
        **hollow,
    )
    if not is_only:
        return
    if its.spread is not None:
        low, high = its.values - its.spread, its.values + its.spread
        ax.fill_between(its.rates, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    if its.effective_lr is None:
        return
    left = ax.get_xlim()[0]
    label = "rate it went on with"
    for place in np.flatnonzero(is_rescued & np.isfinite(its.effective_lr)):
        rate, value = its.rates[place], its.values[place]
        went_on = max(float(its.effective_lr[place]), left)
        ax.plot([went_on, rate], [value, value], color=INK, linewidth=0.7, zorder=1)
        ax.plot(
            *(went_on, value),
            "<",
            color=INK,
            markersize=4,
            label=label,
        )


def _limits(
    values: Sequence[np.ndarray], greater_is_better: bool, *, is_log: bool
) -> tuple[float, float] | None:
    """Of the vertical axis: all but what lies far off the better half."""
    every = np.concatenate([np.ravel(v) for v in values])
    every = every[np.isfinite(every)]
    if not len(every):
        return None
    if is_log:
        every = np.log10(every)
    signed = np.sort(every if greater_is_better else -every)[::-1]
    half = signed[: (len(signed) + 1) // 2]
    least_spread = _LEAST_SPREAD * (1.0 if is_log else abs(half[0]))
    spread = max(half[0] - half[-1], least_spread, 1e-12)
    least = max(signed[-1], half[-1] - _SPREAD * spread)
    margin = 0.08 * max(signed[0] - least, 1e-12)
    ends = np.array([least - margin, signed[0] + margin])
    low, high = ends if greater_is_better else -ends[::-1]
    return (10**low, 10**high) if is_log else (float(low), float(high))
