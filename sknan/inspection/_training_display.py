"""A picture of one training, of a few, or of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sknan.inspection._plotting import (
    COLOURS,
    INK,
    as_text,
    axes_of,
    legend_above,
    pyplot,
    scale_for,
    style_of,
)
from sknan.nets._curves import TrainingCurves, networks_of

__all__ = ["TrainingDisplay"]

_PANELS = ("loss", "score", "rate", "gradient norm")
_HEIGHTS = {"loss": 2.3, "score": 1.5, "rate": 1.3, "gradient norm": 1.3}

# Of more trainings, single ones are not told apart.
_FEW = 6

_MARKER_OF = {
    "learning_rate": "v",
    "gradient": "^",
    "data": "s",
    "activation": "D",
    "loss": "o",
    "architecture": "P",
    "precision": "X",
}


class TrainingDisplay:
    """How trainings went: loss, score, rate and gradients, with each recovery.

    Make it with :meth:`from_estimator` or :meth:`from_estimators`.

    Parameters
    ----------
    curves : sequence of TrainingCurves
        One for each training.

    Attributes
    ----------
    ax_ : ndarray of Axes of shape (n_panels,)
        The panels, from the top.
    figure_ : Figure
        Theirs.

    See Also
    --------
    sknan.LearningRateDisplay : Loss or score over the learning rate.
    sknan.report : All that is known of a training, as a page.

    Notes
    -----
    One training shows the loss on training and held-out rows, and in each panel a line
    where a step failed, with the cause as a marker. Up to six show one loss each, on
    held-out rows where all have some. More are drawn in grey, rescued ones apart, with
    their median. Lines and markers differ beside the colours.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sknan import StableNetClassifier, TrainingDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> net = StableNetClassifier(max_epochs=5, random_state=0).fit(X, y)
    >>> display = TrainingDisplay.from_estimator(net)
    >>> [ax.get_ylabel() for ax in display.ax_]
    ['loss', 'rate', 'gradient norm']
    """

    ax_: np.ndarray
    figure_: Any

    def __init__(self, curves: Sequence[TrainingCurves]) -> None:
        self.curves = curves

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        name: str | None = None,
        panels: Sequence[str] | None = None,
        ax: Any = None,
    ) -> TrainingDisplay:
        """Draw the training of one fitted model, of an ensemble each network's.

        Parameters
        ----------
        estimator : estimator, net, ensemble, Pipeline or search
            Fitted, and ending in a StableNet or GuardedNet estimator.
        name : str or None, default=None
            None for the name of its class, or a number for each network.
        panels : sequence of str or None, default=None
            As of :meth:`plot`.
        ax : Axes, array-like of Axes or None, default=None
            As of :meth:`plot`.

        Returns
        -------
        TrainingDisplay
        """
        networks = networks_of(estimator)
        if len(networks) == 1:
            (own,) = networks
            networks = {name or own: networks[own]}
        elif name is not None:
            networks = {f"{name}, {key}": each for key, each in networks.items()}
        return cls.from_estimators(networks, panels=panels, ax=ax)

    @classmethod
    def from_estimators(
        cls,
        estimators: Mapping[str, Any] | Sequence[Any],
        *,
        panels: Sequence[str] | None = None,
        ax: Any = None,
    ) -> TrainingDisplay:
        """Draw the trainings of several fitted models together.

        Parameters
        ----------
        estimators : mapping of str to estimator, or sequence of estimators
            As of :meth:`from_estimator`; the keys are their names.
        panels : sequence of str or None, default=None
            As of :meth:`plot`.
        ax : Axes, array-like of Axes or None, default=None
            As of :meth:`plot`.

        Returns
        -------
        TrainingDisplay
        """
        named = estimators
        if not isinstance(named, Mapping):
            named = {str(i): each for i, each in enumerate(estimators)}
        curves = [TrainingCurves.of(each, name) for name, each in named.items()]
        return cls(curves).plot(ax, panels=panels)

    def plot(
        self, ax: Any = None, *, panels: Sequence[str] | None = None
    ) -> TrainingDisplay:
        """Draw.

        Parameters
        ----------
        ax : Axes, array-like of Axes or None, default=None
            One for each panel, or one to be divided; None makes a figure.
        panels : sequence of {"loss", "score", "rate", "gradient norm"} or None, \
default=None
            What to show; None for all that is known.

        Returns
        -------
        TrainingDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is nothing to show, or a panel or the number of axes is wrong.
        """
        pyplot("TrainingDisplay.plot")
        shown = self._shown(panels)
        heights = [_HEIGHTS[panel] for panel in shown]
        axes = axes_of(ax, heights, 6.4, "TrainingDisplay.plot")
        for panel, its in zip(shown, axes, strict=True):
            if panel == "loss":
                self._draw_loss(its)
            else:
                self._draw_lines(its, panel)
            its.set_ylabel(self._label(panel))
            its.grid(alpha=0.25)
            its.xaxis.get_major_locator().set_params(integer=True)
            its.margins(x=0.02)
            if its is not axes[-1]:
                its.tick_params(labelbottom=False)
        for its in axes[1:]:
            its.sharex(axes[0])
        axes[-1].set_xlabel("epoch")
        handles, labels = self._legend(axes[0], shown)
        legend_above(axes[0], handles, labels)
        self.ax_ = np.array(axes, dtype=object)
        self.figure_ = axes[0].figure
        return self

    # -- what there is to draw -------------------------------------------------------

    def _shown(self, panels: Sequence[str] | None) -> list[str]:
        if not self.curves:
            raise ValueError("curves is empty: there is no training to show.")
        known = [panel for panel in _PANELS if any(self._lines(panel))]
        if panels is None:
            return known
        for panel in panels:
            if panel not in known:
                raise ValueError(
                    f"panels must be some of {', '.join(map(repr, known))}, which is "
                    f"known of these trainings, got {panel!r}."
                )
        return list(panels)

    def _lines(self, panel: str) -> list[tuple[TrainingCurves, np.ndarray]]:
        """Each training that has such a line."""
        lines = [(its, self._line(its, panel)) for its in self.curves]
        return [(its, line) for its, line in lines if line is not None]

    def _line(self, its: TrainingCurves, panel: str) -> np.ndarray | None:
        if panel == "loss":
            return its.valid_loss if self._shows_validation else its.train_loss
        if panel == "score":
            return its.score
        return its.lr if panel == "rate" else its.grad_norm

    @property
    def _shows_validation(self) -> bool:
        """Whether the one loss of each of several trainings is that."""
        return len(self.curves) > 1 and all(
            its.valid_loss is not None for its in self.curves
        )

    def _label(self, panel: str) -> str:
        if panel == "loss" and len(self.curves) > 1:
            return "validation loss" if self._shows_validation else "training loss"
        if panel == "score":
            names = {its.score_name for its in self.curves if its.score is not None}
            return as_text(names.pop(), 20) if len(names) == 1 else "score"
        return panel

    # -- drawing ---------------------------------------------------------------------

    def _draw_loss(self, ax: Any) -> None:
        if len(self.curves) > 1:
            self._draw_lines(ax, "loss")
            return
        (its,) = self.curves
        losses = [("training", its.train_loss), ("validation", its.valid_loss)]
        known = [(name, loss) for name, loss in losses if loss is not None]
        for place, (name, loss) in enumerate(known):
            style = {**style_of(place), "color": (INK, COLOURS[0])[place]}
            ax.plot(its.epochs, loss, label=name, **_few_markers(style, len(loss)))
        ax.set_yscale(scale_for([loss for _, loss in known]))
        if its.best_epoch is not None and its.valid_loss is not None:
            best = its.valid_loss[its.best_epoch - 1]
            style = {"color": COLOURS[0], "markersize": 12, "linestyle": "none"}
            ax.plot(its.best_epoch, best, "*", label="best epoch", **style)
        self._mark_recoveries(ax, its)

    def _draw_lines(self, ax: Any, panel: str) -> None:
        lines = self._lines(panel)
        ax.set_yscale(scale_for([line for _, line in lines]))
        if len(self.curves) > _FEW:
            _draw_many(ax, lines)
            return
        for place, (its, line) in enumerate(lines):
            style = _few_markers(style_of(place), len(line))
            ax.plot(its.epochs, line, label=as_text(its.name), **style)
            if len(self.curves) > 1:
                _mark_on_line(ax, its, line, style["color"])
            else:
                _lines_at_recoveries(ax, its)
        if panel == "gradient norm":
            _draw_threshold(ax, lines)

    def _mark_recoveries(self, ax: Any, its: TrainingCurves) -> None:
        """A line at each epoch in which a step failed, and its cause at the top."""
        _lines_at_recoveries(ax, its)
        counts = Counter(its.recoveries)
        at_epoch: Counter[int] = Counter()
        for (epoch, cause), count in sorted(counts.items()):
            # Two causes of one epoch stand below each other.
            y = 0.95 - 0.09 * at_epoch[epoch]
            at_epoch[epoch] += 1
            over = ax.get_xaxis_transform()
            ax.plot(
                *(epoch, y),
                _MARKER_OF.get(cause, "d"),
                transform=over,
                color=COLOURS[2],
                markeredgecolor=INK,
                markersize=7,
                zorder=4,
                label=f"recovery: {cause.replace('_', ' ')}",
            )
            if count > 1:
                where = {"xytext": (6, -3), "textcoords": "offset points"}
                text = {"fontsize": 7, "color": INK}
                ax.annotate(f"{count}x", (epoch, y), xycoords=over, **where, **text)

    def _legend(self, ax: Any, shown: list[str]) -> tuple[list[Any], list[str]]:
        """Each label once; of many trainings, how many were rescued."""
        found: dict[str, Any] = {}
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
        if len(self.curves) == 1 and "loss" not in shown:
            return [], []
        return list(found.values()), list(found)


def _few_markers(style: dict[str, Any], n_points: int) -> dict[str, Any]:
    """A marker on some ten points, and on the only one."""
    return {**style, "markevery": max(1, n_points // 10)}


def _lines_at_recoveries(ax: Any, its: TrainingCurves) -> None:
    for epoch in sorted({epoch for epoch, _ in its.recoveries}):
        ax.axvline(epoch, color=COLOURS[2], linewidth=0.8, linestyle=":", zorder=1)


def _mark_on_line(ax: Any, its: TrainingCurves, line: np.ndarray, color: str) -> None:
    """Recoveries on the curve that they belong to."""
    for epoch, cause in sorted(set(its.recoveries)):
        ax.plot(
            *(epoch, line[epoch - 1]),
            _MARKER_OF.get(cause, "d"),
            color=color,
            markeredgecolor=INK,
            markersize=8,
            zorder=4,
            label=f"recovery: {cause.replace('_', ' ')}",
        )


def _draw_many(ax: Any, lines: list[tuple[TrainingCurves, np.ndarray]]) -> None:
    """Untouched ones grey, rescued ones dashed, and the median of all."""
    n_rescued = sum(bool(its.recoveries) for its, _ in lines)
    plain, rescued = f"{len(lines) - n_rescued} trainings", f"{n_rescued} rescued"
    for its, line in sorted(lines, key=lambda pair: bool(pair[0].recoveries)):
        is_rescued = bool(its.recoveries)
        ax.plot(
            its.epochs,
            line,
            color=COLOURS[2] if is_rescued else "0.55",
            linestyle="--" if is_rescued else "-",
            linewidth=1.0 if is_rescued else 0.7,
            alpha=0.8,
            label=rescued if is_rescued else plain,
        )
        points = sorted({epoch for epoch, _ in its.recoveries})
        places = [line[epoch - 1] for epoch in points]
        ax.plot(points, places, "x", color=COLOURS[2], markersize=4)
    n_epochs = max(len(line) for _, line in lines)
    whole = np.full((len(lines), n_epochs), np.nan)
    for row, (_, line) in zip(whole, lines, strict=True):
        row[: len(line)] = line
    # Where few are left, their median is another one's.
    is_common = np.isfinite(whole).sum(axis=0) > len(lines) / 2
    epochs = np.flatnonzero(is_common)
    median = np.nanmedian(whole[:, epochs], axis=0)
    ax.plot(epochs + 1, median, color=INK, linewidth=2.2, label="median")


def _draw_threshold(ax: Any, lines: list[tuple[TrainingCurves, np.ndarray]]) -> None:
    limits = {its.clip_norm for its, _ in lines if its.clip_norm is not None}
    if len(limits) == 1:
        (limit,) = limits
        ax.margins(y=0.15)  # room for the word
        # axhline would not make room for itself.
        ax.plot(
            *([0.0, 1.0], [limit, limit]),
            transform=ax.get_yaxis_transform(),
            color=COLOURS[2],
            linestyle=(0, (6, 2)),
            linewidth=1.2,
        )
        where = {"xytext": (-2, 2), "textcoords": "offset points", "ha": "right"}
        place = {"xycoords": ax.get_yaxis_transform(), "fontsize": 7, "color": INK}
        ax.annotate(f"clip_norm={limit:g}", (1.0, limit), **where, **place)
