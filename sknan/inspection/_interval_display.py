"""Display of the coverage and the width of prediction intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_consistent_length

from sknan.inspection._plotting import (
    INK,
    as_text,
    axes_of,
    legend_above,
    pyplot,
    style_of,
)

_COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

# Panels from top to bottom, with their heights in inches: coverage and width.
_HEIGHTS = (3.2, 1.7)


class IntervalDisplay:
    """Observed coverage and mean width of prediction intervals by nominal coverage.

    Created by :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    coverage : array-like of shape (n_levels,)
        Nominal coverage: share of targets that the intervals are to contain.
    observed : array-like of shape (n_levels,)
        Share of the targets that the intervals contain.
    width : array-like of shape (n_levels,)
        Mean width of the intervals, in the units of the targets.
    n_samples : int
        Number of targets.
    name : str or None, default=None
        Name of the model in the legend.

    Attributes
    ----------
    ax_ : ndarray of Axes of shape (2,)
        Axes of coverage and width.
    figure_ : Figure
        Figure of these axes.

    See Also
    --------
    sknan.StableNetEnsembleRegressor.predict_interval : Intervals of an ensemble.

    Notes
    -----
    The gray band contains the observed coverage of 19 of 20 sets of independent targets
    whose intervals have exactly the nominal coverage. Below it the intervals are too
    narrow, above it they are wider than necessary.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sknan import StableNetEnsembleRegressor
    >>> from sknan.inspection import IntervalDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = StableNetEnsembleRegressor(random_state=0).fit(X[:300], y[:300])
    >>> display = IntervalDisplay.from_estimator(model, X[300:], y[300:])
    >>> [ax.get_ylabel() for ax in display.ax_]
    ['observed coverage', 'mean width']
    """

    ax_: np.ndarray
    figure_: Any

    def __init__(
        self,
        coverage: Any,
        observed: Any,
        width: Any,
        n_samples: int,
        *,
        name: str | None = None,
    ) -> None:
        self.coverage = np.asarray(coverage, dtype=float)
        self.observed = np.asarray(observed, dtype=float)
        self.width = np.asarray(width, dtype=float)
        self.n_samples = n_samples
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        coverage: Sequence[float] = _COVERAGES,
        name: str | None = None,
        ax: Any = None,
    ) -> IntervalDisplay:
        """Draw the coverage of a fitted model on rows that it was not fitted on.

        Parameters
        ----------
        estimator : estimator, Pipeline or search
            Fitted model that is, or ends in, an estimator with the method
            ``predict_interval``.
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets. Those of several columns are pooled.
        coverage : sequence of float, default=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
            Nominal coverages.
        name : str or None, default=None
            Name of the model in the legend. None uses the name of its class.
        ax : Axes, array-like of Axes or None, default=None
            Axes to draw on; see :meth:`plot`.

        Returns
        -------
        IntervalDisplay

        Raises
        ------
        TypeError
            If the estimator has no method ``predict_interval``.
        """
        model = getattr(estimator, "best_estimator_", estimator)
        if isinstance(model, Pipeline):
            X, model = model[:-1].transform(X), model[-1]
        if not hasattr(model, "predict_interval"):
            raise TypeError(
                "IntervalDisplay needs an estimator with the method predict_interval, "
                f"such as StableNetEnsembleRegressor, got {type(model).__name__}."
            )
        intervals = [model.predict_interval(X, coverage=c) for c in coverage]
        name = type(model).__name__ if name is None else name
        return cls.from_predictions(y, intervals, coverage=coverage, name=name, ax=ax)

    @classmethod
    def from_predictions(
        cls,
        y_true: Any,
        intervals: Any,
        *,
        coverage: Any,
        name: str | None = None,
        ax: Any = None,
    ) -> IntervalDisplay:
        """Draw the coverage of intervals.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        intervals : array-like of shape (n_levels, n_samples, 2) or \
(n_levels, n_samples, n_targets, 2)
            Lower and upper ends of the intervals for each nominal coverage.
        coverage : array-like of shape (n_levels,)
            Nominal coverages.
        name : str or None, default=None
            Name of the model in the legend.
        ax : Axes, array-like of Axes or None, default=None
            Axes to draw on; see :meth:`plot`.

        Returns
        -------
        IntervalDisplay

        Raises
        ------
        ValueError
            If the shapes do not fit together.
        """
        target, ends = np.asarray(y_true), np.asarray(intervals)
        levels = np.asarray(coverage, dtype=float)
        check_consistent_length(ends, levels)
        if ends.shape[1:] != (*target.shape, 2):
            raise ValueError(
                f"intervals must have shape {(len(levels), *target.shape, 2)}: lower "
                f"and upper ends of each target for each coverage. Got {ends.shape}."
            )
        low, high = ends[..., 0], ends[..., 1]
        rest = tuple(range(1, low.ndim))
        observed = ((low <= target) & (target <= high)).mean(axis=rest)
        width = (high - low).mean(axis=rest)
        return cls(levels, observed, width, len(target), name=name).plot(ax)

    def plot(self, ax: Any = None) -> IntervalDisplay:
        """Draw coverage and width.

        Parameters
        ----------
        ax : Axes, array-like of two Axes or None, default=None
            One axes for each panel, or one axes to divide. None makes a figure. The
            axes of another display show both models.

        Returns
        -------
        IntervalDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the number of axes is wrong.
        """
        pyplot("IntervalDisplay.plot")
        top, bottom = axes_of(ax, _HEIGHTS, 4.8, "IntervalDisplay.plot")
        n_before = len(bottom.get_lines())
        if not n_before:
            self._draw_reference(top)
        style = style_of(n_before)
        order = np.argsort(self.coverage)
        label = None if self.name is None else as_text(self.name)
        top.plot(self.coverage[order], self.observed[order], label=label, **style)
        bottom.plot(self.coverage[order], self.width[order], **style)
        top.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed coverage")
        top.tick_params(labelbottom=False)
        bottom.set(xlim=(0, 1), xlabel="nominal coverage", ylabel="mean width")
        bottom.set_ylim(bottom=0)
        for panel in (top, bottom):
            panel.grid(alpha=0.25)
        legend_above(top)
        self.ax_ = np.array([top, bottom], dtype=object)
        self.figure_ = top.figure
        return self

    def _draw_reference(self, ax: Any) -> None:
        """Draw the diagonal, with the band that chance allows around it."""
        nominal = np.linspace(0.0, 1.0, 101)
        error = 1.96 * np.sqrt(nominal * (1 - nominal) / self.n_samples)
        ax.fill_between(
            nominal,
            nominal - error,
            nominal + error,
            color="0.87",
            linewidth=0,
            label=f"chance, {self.n_samples} targets",
        )
        ax.plot(nominal, nominal, color=INK, linewidth=0.8, linestyle=":")
