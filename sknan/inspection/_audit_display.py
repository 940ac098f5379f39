"""Display of missing cells and scales in the columns of a table."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from sknan._utils.validation import COUNT, check_parameter
from sknan.inspection._audit._run import audit
from sknan.inspection._audit._table_audit import TableAudit
from sknan.inspection._plotting import (
    COLORS,
    INK,
    as_text,
    axes_of,
    legend_above,
    scale_for,
)

_SIGNS = {"breaks training": "✖", "hurts": "▲", "notice": "•"}
_STATISTICS = ("low", "q1", "median", "q3", "high")
_SHARES = {
    "missing": {"color": COLORS[0]},
    "infinite": {"color": COLORS[1], "hatch": "///"},
    "beyond_float32": {"color": COLORS[2], "hatch": "xxx"},
}


class AuditDisplay:
    """Missing cells and range of values in each column of a table.

    Parameters
    ----------
    found : TableAudit
        Result of :func:`sknan.audit`.

    Attributes
    ----------
    ax_ : ndarray of Axes of shape (2,)
        Axes of the shares of cells, and of the scales.
    figure_ : Figure
        Figure of these axes.

    See Also
    --------
    sknan.audit : The findings in words.

    Notes
    -----
    The upper panel shows the share of cells that are missing, infinite or beyond
    float32. The lower panel shows each column of numbers without its sentinels: a bar
    from the first to the third quartile, a stroke at the median, and a line between the
    extremes. Its scale is logarithmic on both sides of 0 if the values span a wide
    range. The sign before a name is the severity of the worst finding in the column.

    Examples
    --------
    >>> import pandas as pd
    >>> from sknan import AuditDisplay
    >>> frame = pd.DataFrame({"age": [31.0, None, 45.0], "pay": [1e3, 2e3, 3e3]})
    >>> AuditDisplay.from_data(frame).ax_[0].get_xlabel()
    'share of cells'
    """

    ax_: np.ndarray
    figure_: Any

    def __init__(self, found: TableAudit) -> None:
        self.found = found

    @classmethod
    def from_data(
        cls, X: Any, y: Any = None, *, max_columns: int = 25, ax: Any = None
    ) -> AuditDisplay:
        """Audit a table and draw the result.

        Parameters
        ----------
        X : DataFrame, array, sparse matrix or list of rows, (n_samples, n_features)
            Table, as for :func:`sknan.audit`.
        y : Series, array-like of shape (n_samples,) or str, default=None
            Target, or name of the column that is the target.
        max_columns : int, default=25
            Number of columns to draw; see :meth:`plot`.
        ax : Axes, array-like of Axes or None, default=None
            Axes to draw on; see :meth:`plot`.

        Returns
        -------
        AuditDisplay
        """
        check_parameter("AuditDisplay", "max_columns", max_columns, COUNT)
        return cls(audit(X, y)).plot(ax, max_columns=max_columns)

    @classmethod
    def from_audit(
        cls, found: TableAudit, *, max_columns: int = 25, ax: Any = None
    ) -> AuditDisplay:
        """Draw the result of an audit.

        Parameters
        ----------
        found : TableAudit
            Result of :func:`sknan.audit`.
        max_columns : int, default=25
            Number of columns to draw; see :meth:`plot`.
        ax : Axes, array-like of Axes or None, default=None
            Axes to draw on; see :meth:`plot`.

        Returns
        -------
        AuditDisplay
        """
        return cls(found).plot(ax, max_columns=max_columns)

    def plot(self, ax: Any = None, *, max_columns: int = 25) -> AuditDisplay:
        """Draw both panels.

        Parameters
        ----------
        ax : Axes, array-like of Axes or None, default=None
            Axes of the two panels, or one axes to divide. None makes a figure.
        max_columns : int, default=25
            Largest number of columns to draw. In a wider table they are those with the
            worst findings, then those with the most missing cells.

        Returns
        -------
        AuditDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the table has no column, or the number of axes is wrong.
        """
        check_parameter("AuditDisplay", "max_columns", max_columns, COUNT)
        columns = self._columns(max_columns)
        height = 0.5 + 0.21 * len(columns)
        shown = [*_SHARES, "sentinels"]
        has_shares = any(column[name] for column in columns for name in shown)
        heights = [height if has_shares else 0.4, height]
        shares, scales = axes_of(ax, heights, 6.4, "AuditDisplay.plot")
        places = np.arange(len(columns))
        _draw_shares(shares, columns, places)
        _draw_scales(scales, columns, places)
        names = [_name_of(column) for column in columns]
        for panel in (shares, scales):
            panel.set_ylim(len(columns) - 0.4, -0.6)
            panel.set_yticks(places, names, fontsize=8)
            panel.grid(axis="x", alpha=0.25)
        if not has_shares:
            shares.set(yticks=[], xticks=[], xlabel="")
            words = {"ha": "center", "va": "center", "fontsize": 8, "color": INK}
            place = shares.transAxes
            shares.text(0.5, 0.5, "no cell is missing", transform=place, **words)
        self._label_scales(scales, columns)
        self.ax_ = np.array([shares, scales], dtype=object)
        self.figure_ = shares.figure
        return self

    def _columns(self, max_columns: int) -> Sequence[dict[str, Any]]:
        """Return the columns to draw in the order of the table."""
        columns = list(self.found.statistics)
        if not columns:
            raise ValueError("The table has no columns: there is nothing to show.")
        if len(columns) <= max_columns:
            return columns
        severities = [*_SIGNS, None]

        def rank(i: int) -> tuple[int, float]:
            place = severities.index(columns[i]["severity"])
            return place, -sum(columns[i][share] for share in _SHARES)

        kept = sorted(sorted(range(len(columns)), key=rank)[:max_columns])
        return [columns[i] for i in kept]

    def _label_scales(self, ax: Any, columns: Sequence[dict[str, Any]]) -> None:
        """Label the axis, and explain the signs before the names."""
        used = {column["severity"] for column in columns}
        parts = [f"{sign} {name}" for name, sign in _SIGNS.items() if name in used]
        n_left = len(self.found.statistics) - len(columns)
        if n_left:
            parts.append(f"{n_left} columns with fewer findings are not shown")
        label = "value (without sentinels)"
        ax.set_xlabel("\n".join([label, "   ".join(parts)]) if parts else label)


def _name_of(column: dict[str, Any]) -> str:
    sign = _SIGNS.get(column["severity"], "")
    return f"{sign} {as_text(column['column'], 24)}".strip()


def _draw_shares(
    ax: Any, columns: Sequence[dict[str, Any]], places: np.ndarray
) -> None:
    left = np.zeros(len(columns))
    for name, style in _SHARES.items():
        share = np.array([column[name] for column in columns], dtype=float)
        if share.any():
            kind = {"height": 0.7, "edgecolor": INK, "linewidth": 0.4, **style}
            ax.barh(places, share, left=left, label=name.replace("_", " "), **kind)
        left += share
    width = 0.05
    for place, (total, column) in enumerate(zip(left, columns, strict=True)):
        texts = [f"{total:.2g}"] if total else []
        if column["sentinels"]:
            texts.append(f"sentinel {', '.join(map(_shown, column['sentinels']))}")
        text = "  ".join(texts)
        where = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(text, (total, place), fontsize=7, color=INK, **where)
        # Leave room for the text to the right of the bar: a character takes about
        # 1.5 % of the width.
        width = max(width, total / (1.0 - min(0.06 + 0.015 * len(text), 0.7)))
    ax.set_xlim(0.0, width if left.any() else 1.0)
    ax.set_xlabel("share of cells")
    legend_above(ax)


def _shown(value: Any) -> str:
    is_number = isinstance(value, numbers.Real)
    return as_text(f"{value:g}" if is_number else value, 12)


def _is_numeric(column: dict[str, Any]) -> bool:
    values = [column[name] for name in _STATISTICS]
    return all(isinstance(v, numbers.Real) and math.isfinite(v) for v in values)


def _draw_scales(
    ax: Any, columns: Sequence[dict[str, Any]], places: np.ndarray
) -> None:
    numeric = [column for column in columns if _is_numeric(column)]
    quartiles = [c[name] for c in numeric for name in ("q1", "median", "q3")]
    sizes = [abs(float(value)) for value in quartiles if value]
    if scale_for([sizes]) == "log":
        ax.set_xscale("symlog", linthresh=float(np.quantile(sizes, 0.1)))
    bar = {"height": 0.6, "edgecolor": INK, "linewidth": 0.4, "color": COLORS[3]}
    transform = ax.get_yaxis_transform()
    for place, column in zip(places, columns, strict=True):
        if not _is_numeric(column):
            text = f"{column['holds']}, {column['n_levels']} distinct"
            style = {"fontsize": 7, "style": "italic", "va": "center", "color": INK}
            ax.text(0.02, place, text, transform=transform, **style)
            continue
        low, q1, median, q3, high = (float(column[name]) for name in _STATISTICS)
        ax.plot([low, high], [place, place], color=INK, linewidth=0.8, zorder=1)
        ax.barh(place, q3 - q1, left=q1, zorder=2, **bar)
        ax.plot(median, place, "|", color=INK, markersize=7, zorder=3)
    _set_limits(ax, numeric)
    _thin_out_ticks(ax)


def _set_limits(ax: Any, numeric: Sequence[dict[str, Any]]) -> None:
    """Show all values, with margins that are equal on the transformed scale."""
    if not numeric:
        ax.set_xticks([])
        return
    ends = [min(c["low"] for c in numeric), max(c["high"] for c in numeric)]
    scale = ax.xaxis.get_transform()
    low, high = scale.transform(np.array(ends, dtype=float))
    margin = 0.04 * (high - low) or 0.5
    limits = np.array([low - margin, high + margin])
    ax.set_xlim(*scale.inverted().transform(limits))


def _thin_out_ticks(ax: Any) -> None:
    """Remove ticks until their labels do not overlap."""
    low, high = ax.get_xlim()
    inside = [tick for tick in ax.get_xticks() if low <= tick <= high]
    step = math.ceil(len(inside) / 7)
    if step > 1:
        zero = inside.index(0.0) if 0.0 in inside else 0
        ax.set_xticks(inside[zero % step :: step])
