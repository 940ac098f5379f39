"""Axes, legends and styles of the displays, distinguishable without color."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Color of text and frames.
INK = "black"

# Palette of Okabe and Ito, "Color Universal Design" (2008), in an order in which
# adjacent colors differ in gray. Yellow is omitted, since it is invisible on white.
COLORS = ("#0072b2", "#e69f00", "#d55e00", "#56b4e9", "#009e73", "#cc79a7")

_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")

# Ratio of the largest to the smallest value from which a scale is logarithmic.
_WIDE = 30.0


def pyplot(what: str) -> Any:
    """Return ``matplotlib.pyplot``, or raise ``ImportError`` that names the caller."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            f"{what} draws with matplotlib, which is not installed. Install it: "
            "pip install 'sknan[plot]'."
        )
    import matplotlib.pyplot as plt

    return plt


def axes_of(ax: Any, heights: Sequence[float], width: float, what: str) -> list[Any]:
    """Return one axes for each of several panels, from top to bottom.

    A single axes is divided into panels, and None makes a figure. Heights of the panels
    and the width of the figure are in inches.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If ``ax`` is something else.
    ValueError
        If the number of axes differs from the number of panels.
    """
    plt = pyplot(what)
    n_panels = len(heights)
    given = list(np.ravel(np.asarray(ax, dtype=object)))
    if ax is not None and not all(isinstance(one, plt.Axes) for one in given):
        raise TypeError(
            f"The 'ax' parameter of {what} must be an Axes of matplotlib, a list of "
            f"them or None, got {ax!r}."
        )
    if ax is None:
        _, axes = plt.subplots(
            n_panels,
            1,
            figsize=(width, sum(heights) + 0.8),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        return list(axes[:, 0])
    if len(given) == n_panels:
        return given
    if len(given) == 1:
        grid = given[0].get_subplotspec()
        given[0].set_axis_off()
        if grid is None:
            raise ValueError(
                f"{what} has {n_panels} panels and cannot divide an axes that is not "
                "a subplot. Pass ax=None or one axes for each panel."
            )
        parts = grid.subgridspec(n_panels, 1, height_ratios=heights)
        return [given[0].figure.add_subplot(parts[i]) for i in range(n_panels)]
    raise ValueError(
        f"{what} has {n_panels} panels, got {len(given)} axes. Pass ax=None, one axes "
        "or one for each panel."
    )


def style_of(i: int) -> dict[str, Any]:
    """Return color, line and marker of the i-th curve, distinguishable in gray."""
    return {
        "color": INK if i == 0 else COLORS[(i - 1) % len(COLORS)],
        "linestyle": _LINES[i % len(_LINES)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "markersize": 4,
        "linewidth": 1.5,
    }


def scale_for(values: Sequence[Any]) -> str:
    """Return ``"log"`` if values span a wide range and none is negative."""
    pooled = np.concatenate([np.array([]), *map(np.ravel, values)])
    pooled = pooled[np.isfinite(pooled)]
    positive = pooled[pooled > 0]
    is_wide = len(positive) > 1 and positive.max() / positive.min() > _WIDE
    return "log" if is_wide and pooled.min() >= 0 else "linear"


def as_text(value: Any, n_most: int = 40) -> str:
    """Return a name that is cut to length and not read as a formula."""
    text = " ".join(str(value).split())
    text = text if len(text) <= n_most else text[: n_most - 1] + "…"
    return text.replace("$", r"\$")


def legend_above(ax: Any, first: Mapping[str, Any] | None = None) -> None:
    """Draw a legend above the axes, with each label once and as many columns as fit.

    ``first`` has labels and handles that precede those of the axes.
    """
    handles = dict(first or {})
    for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
        handles.setdefault(label, handle)
    if not handles:
        return
    longest = max(map(len, handles))
    ax.legend(
        list(handles.values()),
        list(handles),
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=max(1, min(len(handles), 64 // (longest + 7))),
        frameon=False,
        fontsize=8,
        borderaxespad=0.2,
    )
