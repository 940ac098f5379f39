"""Display of the contributions of columns to predictions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd

from sknan._utils.validation import COUNT, check_parameter, is_integer, is_one_of
from sknan.inspection._attributions import Attributions, attributions
from sknan.inspection._plotting import COLORS, INK, as_text, axes_of, legend_above

_KINDS = ("bar", "points", "row")

# More rows are drawn as a sample of them, at equal distances.
_MOST_POINTS = 1000

# Colors of points by the third of the column's cells that theirs belongs to.
_COLORS = {
    "low": COLORS[0],
    "middle": "#b0b0b0",
    "high": COLORS[1],
    "category or missing": "#707070",
}

_BAR: dict[str, Any] = {"height": 0.7, "edgecolor": INK, "linewidth": 0.4}


class AttributionDisplay:
    """Contributions of the columns to predictions.

    Parameters
    ----------
    found : Attributions
        Result of :func:`sknan.inspection.attributions`.

    Attributes
    ----------
    ax_ : Axes
        Axes of the plot.
    figure_ : Figure
        Figure of these axes.

    See Also
    --------
    sknan.inspection.attributions : The contributions as numbers.

    Notes
    -----
    ``kind="bar"`` shows the mean absolute contribution of each column, for several
    outputs one after another. ``kind="points"`` shows the contribution to each
    prediction: blue points have low values of the column, orange points high ones, and
    gray points are categories or missing. ``kind="row"`` shows the way from the mean
    prediction to the prediction for one row.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sknan import StableNetClassifier
    >>> from sknan.inspection import AttributionDisplay
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> net = StableNetClassifier(random_state=0).fit(X, y)
    >>> display = AttributionDisplay.from_estimator(net, X, random_state=0)
    >>> display.ax_.get_xlabel()
    'mean absolute contribution'
    """

    ax_: Any
    figure_: Any

    def __init__(self, found: Attributions) -> None:
        self.found = found

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        kind: str = "bar",
        row: int = 0,
        max_columns: int = 15,
        ax: Any = None,
        **options: Any,
    ) -> AttributionDisplay:
        """Explain predictions and draw the result.

        Parameters
        ----------
        estimator : StableNet estimator, ensemble, Pipeline or search
            Fitted model, as for :func:`sknan.inspection.attributions`.
        X : DataFrame or array-like of shape (n_samples, n_columns)
            Rows to explain.
        kind : {"bar", "points", "row"}, default="bar"
            Kind of the plot.
        row : int, default=0
            Number of the row for ``kind="row"``.
        max_columns : int, default=15
            Number of columns to draw; see :meth:`plot`.
        ax : Axes or None, default=None
            Axes to draw on; see :meth:`plot`.
        **options : object
            Parameters of :func:`sknan.inspection.attributions`, such as ``background``.

        Returns
        -------
        AttributionDisplay
        """
        _check_options(kind, row, max_columns)
        found = attributions(estimator, X, **options)
        return cls(found).plot(ax, kind=kind, row=row, max_columns=max_columns)

    def plot(
        self,
        ax: Any = None,
        *,
        kind: str = "bar",
        row: int = 0,
        output: Any = None,
        max_columns: int = 15,
    ) -> AttributionDisplay:
        """Draw the contributions.

        Parameters
        ----------
        ax : Axes or None, default=None
            Axes to draw on. None makes a figure.
        kind : {"bar", "points", "row"}, default="bar"
            Kind of the plot.
        row : int, default=0
            Number of the row for ``kind="row"``.
        output : label or int, default=None
            One of the ``output_names``. None means all of them for ``kind="bar"``, and
            the only one otherwise.
        max_columns : int, default=15
            Largest number of columns to draw. The others are drawn together for
            ``kind="row"``, and else left out.

        Returns
        -------
        AttributionDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If ``kind`` or ``output`` is unknown, or one output must be chosen.
        """
        _check_options(kind, row, max_columns)
        found = self.found
        names = found.output_names
        if kind != "bar" and output is None and len(names) > 1:
            listed = ", ".join(map(str, names))
            raise ValueError(f"kind={kind!r} shows one output: pass one of {listed}.")
        n_shown = min(max_columns, len(found.feature_names)) + (kind == "row")
        (panel,) = axes_of(ax, [0.5 + 0.26 * n_shown], 6.4, "AttributionDisplay.plot")
        if kind == "bar":
            self._draw_bars(panel, output, max_columns)
        elif kind == "points":
            self._draw_points(panel, output, max_columns)
        else:
            self._draw_row(panel, output, row, max_columns)
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.25)
        panel.set_axisbelow(True)
        self.ax_, self.figure_ = panel, panel.figure
        return self

    def _largest(self, sizes: np.ndarray, max_columns: int) -> list[int]:
        return [int(j) for j in np.argsort(-sizes, kind="stable")[:max_columns]]

    def _label(
        self,
        ax: Any,
        columns: list[int],
        cells: Sequence[str] = (),
        others: Sequence[str] = (),
    ) -> None:
        names = [as_text(self.found.feature_names[j], 24) for j in columns]
        names = [f"{n}{c}" for n, c in zip_longest(names, cells, fillvalue="")]
        ax.set_yticks(range(len(names) + len(others)), [*names, *others], fontsize=8)

    def _draw_bars(self, ax: Any, output: Any, max_columns: int) -> None:
        found = self.found
        names = found.output_names if output is None else [output]
        each = [np.abs(found.values_of(name)).mean(axis=0) for name in names]
        columns = self._largest(np.sum(each, axis=0), max_columns)
        left = np.zeros(len(columns))
        for i, (name, sizes) in enumerate(zip(names, each, strict=True)):
            color, hatch = COLORS[i % len(COLORS)], ["", "///", "..."][i % 3]
            style = {**_BAR, "color": color, "hatch": hatch, "label": as_text(name)}
            ax.barh(range(len(columns)), sizes[columns], left=left, **style)
            left += sizes[columns]
        self._label(ax, columns)
        ax.set_xlabel("mean absolute contribution")
        if len(names) > 1:
            legend_above(ax)

    def _draw_points(self, ax: Any, output: Any, max_columns: int) -> None:
        values = self.found.values_of(output)
        columns = self._largest(np.abs(values).mean(axis=0), max_columns)
        shown = np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS))
        rows = np.unique(shown.astype(int))
        ax.axvline(0.0, color=INK, linewidth=0.8)
        for place, j in enumerate(columns):
            cells = pd.to_numeric(self.found.data.iloc[rows, j], errors="coerce")
            heights = _spread(values[rows, j])
            levels = cells.astype(float).rank(pct=True).to_numpy()
            thirds = np.ceil(3 * levels)  # from above 0 to 3
            masks = [*(thirds == i for i in (1, 2, 3)), np.isnan(levels)]
            for mask, color in zip(masks, _COLORS.values(), strict=True):
                _scatter(ax, values[rows[mask], j], place + heights[mask], color)
        for label, color in _COLORS.items():
            ax.plot([], [], "o", color=color, markersize=4, label=label)
        self._label(ax, columns)
        ax.set_xlabel("contribution to the prediction")
        legend_above(ax)

    def _draw_row(self, ax: Any, output: Any, row: int, max_columns: int) -> None:
        found = self.found
        values = found.values_of(output)[row]
        bases = np.atleast_1d(found.base_values)
        number = 0 if output is None else found.output_names.index(output)
        columns = self._largest(np.abs(values), max_columns)
        steps = values[columns]
        rest = float(values.sum() - steps.sum())
        is_cut = len(columns) < len(values)
        steps = np.append(steps, rest) if is_cut else steps
        ends = bases[number] + np.cumsum(steps)
        starts = ends - steps
        for place, (start, step) in enumerate(zip(starts, steps, strict=True)):
            color, hatch = (COLORS[1], "") if step > 0 else (COLORS[0], "///")
            ax.barh(place, step, left=start, color=color, hatch=hatch, **_BAR)
            text = {"va": "center", "fontsize": 7, "xytext": (3, 0)}
            right = max(start, start + step)
            ax.annotate(
                f"{step:+.3g}", (right, place), textcoords="offset points", **text
            )
        ax.axvline(bases[number], color=INK, linewidth=0.8, linestyle=":")
        ax.use_sticky_edges = False
        ax.margins(x=0.12)
        cells = [f" = {_cell(found.data.iloc[row, j])}" for j in columns]
        others = [f"{len(values) - len(columns)} others"] if is_cut else []
        self._label(ax, columns, cells, others)
        ax.set_xlabel(
            f"from the mean {bases[number]:.3g} to the prediction {ends[-1]:.3g}"
        )


def _cell(cell: Any) -> str:
    is_number = isinstance(cell, (float, np.floating))
    return as_text(f"{cell:.4g}" if is_number else cell, 14)


def _check_options(kind: Any, row: Any, max_columns: Any) -> None:
    if not is_one_of(kind, _KINDS):
        known = ", ".join(map(repr, _KINDS))
        raise ValueError(f"kind must be one of {known}, got {kind!r}.")
    check_parameter("AttributionDisplay", "row", row, (is_integer, "an integer"))
    check_parameter("AttributionDisplay", "max_columns", max_columns, COUNT)


def _scatter(ax: Any, x: np.ndarray, y: np.ndarray, color: str) -> None:
    ax.plot(x, y, "o", color=color, markersize=2.5, alpha=0.7, markeredgewidth=0)


def _spread(values: np.ndarray) -> np.ndarray:
    """Return heights of points, wide where many points are close to each other."""
    low, high = float(values.min()), float(values.max())
    bins = ((values - low) / ((high - low) or 1.0) * 60).astype(int)
    heights = np.zeros(len(values))
    most = np.bincount(bins).max()
    for number in np.unique(bins):
        inside = np.flatnonzero(bins == number)
        # Alternately above and below the middle.
        order = (np.arange(len(inside)) + 1) // 2 * (-1.0) ** np.arange(len(inside))
        heights[inside] = 0.8 * order / max(most, 12)
    return heights
