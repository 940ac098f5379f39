"""What the displays share: matplotlib, axes, and styles that survive without colour."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "COLOURS",
    "INK",
    "as_text",
    "axes_of",
    "legend_above",
    "pyplot",
    "scale_for",
    "style_of",
]

# Dark enough on white and light enough on black; the report turns it into the colour of
# the page's text.
INK = "#010203"

# Of Okabe and Ito, "Color Universal Design" (2008), in an order in which neighbours
# differ in grey; without the yellow, which is lost on white.
COLOURS = ("#0072b2", "#e69f00", "#d55e00", "#56b4e9", "#009e73", "#cc79a7")

_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")

# Values that span more than this factor are shown on a logarithmic scale.
_WIDE = 30.0


def pyplot(what: str) -> Any:
    """``matplotlib.pyplot``, or a message that says how to get it.

    Parameters
    ----------
    what : str
        Who asks.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            f"{what} draws with matplotlib, which is not installed. Install it: "
            "pip install 'sknan[plot]'."
        )
    import matplotlib.pyplot as plt

    return plt


def axes_of(ax: Any, heights: Sequence[float], width: float, what: str) -> list[Any]:
    """One axes for each panel, below one another.

    Parameters
    ----------
    ax : Axes, array-like of Axes or None
        None makes a figure; a single axes is divided where there are several panels.
    heights : sequence of float
        Of the panels, in inches.
    width : float
        Of a new figure.
    what : str
        Who asks.

    Returns
    -------
    list of Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the number of axes is not that of the panels.
    """
    plt = pyplot(what)
    n_panels = len(heights)
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
    given = list(np.ravel(np.asarray(ax, dtype=object)))
    if len(given) == n_panels:
        return given
    if len(given) == 1:
        grid = given[0].get_subplotspec()
        given[0].set_axis_off()
        figure = given[0].figure
        if grid is None:
            raise ValueError(
                f"{what} has {n_panels} panels and cannot divide an axes that is no "
                "subplot. Pass ax=None or one axes for each panel."
            )
        parts = grid.subgridspec(n_panels, 1, height_ratios=heights)
        return [figure.add_subplot(parts[i]) for i in range(n_panels)]
    raise ValueError(
        f"{what} has {n_panels} panels, got {len(given)} axes. Pass ax=None, one axes "
        "or one for each panel."
    )


def style_of(place: int) -> dict[str, Any]:
    """Colour, line and marker of a curve among a few, each pair told apart in grey."""
    return {
        "color": INK if place == 0 else COLOURS[(place - 1) % len(COLOURS)],
        "linestyle": _LINES[place % len(_LINES)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "markersize": 4,
        "linewidth": 1.5,
    }


def scale_for(values: Sequence[Any]) -> str:
    """``"log"`` where values above 0 span a wide range and none is below."""
    parts = [np.ravel(v) for v in values]
    every = np.concatenate(parts) if parts else np.array([])
    every = every[np.isfinite(every)]
    above = every[every > 0]
    is_wide = len(above) > 1 and above.max() / above.min() > _WIDE
    return "log" if is_wide and every.min() >= 0 else "linear"


def as_text(value: Any, n_most: int = 40) -> str:
    """A name as it stands, neither read as a formula nor too long for a legend."""
    text = " ".join(str(value).split())
    text = text if len(text) <= n_most else text[: n_most - 1] + "…"
    return text.replace("$", r"\$")


def legend_above(ax: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend that covers no curve: above the axes, as many columns as fit."""
    if not handles:
        return
    longest = max(map(len, labels))
    n_columns = max(1, min(len(labels), 64 // (longest + 7)))
    ax.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=n_columns,
        frameon=False,
        fontsize=8,
        borderaxespad=0.2,
    )
