"""Display of loss, score, learning rate and gradient norm by epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from sknan._utils.validation import Rule, check_parameter, is_one_of
from sknan.inspection._plotting import (
    COLORS,
    INK,
    as_text,
    axes_of,
    legend_above,
    pyplot,
    scale_for,
    style_of,
)
from sknan.nets._curves import TrainingCurves, networks_of

# Panels from top to bottom, with their heights in inches.
_HEIGHTS = {"loss": 2.3, "score": 1.5, "rate": 1.3, "gradient norm": 1.3}

_PANELS: Rule = (
    lambda v: isinstance(v, Collection) and not isinstance(v, str) and len(v) > 0,
    "a list of at least one panel, or None",
)

# More trainings are drawn in gray with their median.
_MAX_STYLED = 6

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
    """Loss, score, learning rate and gradient norm by epoch, with each recovery.

    Created by :meth:`from_estimator` or :meth:`from_estimators`.

    Parameters
    ----------
    curves : sequence of TrainingCurves
        Curves of each training.

    Attributes
    ----------
    ax_ : ndarray of Axes of shape (n_panels,)
        Axes of the panels, from top to bottom.
    figure_ : Figure
        Figure of these axes.

    See Also
    --------
    sknan.LearningRateDisplay : Loss or score over the learning rate.
    sknan.report : Data, training and result of a model on one page.

    Notes
    -----
    A single training shows the loss on training and held-out rows. A dotted line in
    each panel marks an epoch in which a step failed, and a marker shows the cause. Two
    to six trainings show one loss each, on held-out rows if all have some. More
    trainings are drawn in gray with their median, and those with recoveries are
    dashed. Lines and markers differ as well as colors.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sknan import StableNetClassifier, TrainingDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> net = StableNetClassifier(max_epochs=5, random_state=0).fit(X, y)
    >>> display = TrainingDisplay.from_estimator(net)
    >>> [ax.get_ylabel() for ax in display.ax_]
    ['loss', 'learning rate', 'gradient norm']
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
        """Draw the training of a fitted model, or of each network of an ensemble.

        Parameters
        ----------
        estimator : estimator, net, ensemble, Pipeline or search
            Fitted model that is, or ends in, a StableNet or GuardedNet estimator.
        name : str or None, default=None
            Name of the model in the legend. None uses the name of its class, or a
            number for each network of an ensemble.
        panels : sequence of str or None, default=None
            Panels to draw; see :meth:`plot`.
        ax : Axes, array-like of Axes or None, default=None
            Axes to draw on; see :meth:`plot`.

        Returns
        -------
        TrainingDisplay
        """
        networks = networks_of(estimator)
        if len(networks) == 1:
            (class_name,) = networks
            networks = {name or class_name: networks[class_name]}
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
            Fitted models, as for :meth:`from_estimator`. The keys of a mapping are
            their names in the legend.
        panels : sequence of str or None, default=None
            Panels to draw; see :meth:`plot`.
        ax : Axes, array-like of Axes or None, default=None
            Axes to draw on; see :meth:`plot`.

        Returns
        -------
        TrainingDisplay
        """
        if not isinstance(estimators, Mapping):
            estimators = {str(i): each for i, each in enumerate(estimators)}
        curves = [TrainingCurves.of(each, name) for name, each in estimators.items()]
        return cls(curves).plot(ax, panels=panels)

    def plot(
        self, ax: Any = None, *, panels: Sequence[str] | None = None
    ) -> TrainingDisplay:
        """Draw the panels.

        Parameters
        ----------
        ax : Axes, array-like of Axes or None, default=None
            One axes for each panel, or one axes to divide. None makes a figure.
        panels : sequence of {"loss", "score", "rate", "gradient norm"} or None, \
default=None
            Panels to draw. None draws all for which there are values.

        Returns
        -------
        TrainingDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is nothing to show, or a panel or the number of axes is wrong.
        """
        pyplot("TrainingDisplay.plot")  # An ImportError comes before a ValueError.
        shown = self._panels(panels)
        heights = [_HEIGHTS[panel] for panel in shown]
        axes = axes_of(ax, heights, 6.4, "TrainingDisplay.plot")
        for panel, panel_ax in zip(shown, axes, strict=True):
            if panel == "loss" and len(self.curves) == 1:
                _draw_losses(panel_ax, self.curves[0])
            else:
                self._draw_lines(panel_ax, panel)
            panel_ax.set_ylabel(self._label(panel))
            panel_ax.grid(alpha=0.25)
            panel_ax.xaxis.get_major_locator().set_params(integer=True)
            panel_ax.margins(x=0.02)
            if panel_ax is not axes[-1]:
                panel_ax.tick_params(labelbottom=False)
        for panel_ax in axes[1:]:
            panel_ax.sharex(axes[0])
        axes[-1].set_xlabel("epoch")
        if len(self.curves) > 1 or "loss" in shown:
            legend_above(axes[0])
        self.ax_ = np.array(axes, dtype=object)
        self.figure_ = axes[0].figure
        return self

    def _panels(self, panels: Sequence[str] | None) -> list[str]:
        if not self.curves:
            raise ValueError("curves is empty: there is no training to show.")
        known = [panel for panel in _HEIGHTS if any(self._lines(panel))]
        if panels is None:
            return known
        check_parameter("TrainingDisplay", "panels", panels, _PANELS)
        for panel in panels:
            if not is_one_of(panel, known):
                raise ValueError(
                    f"panels must be among {', '.join(map(repr, known))}, the panels "
                    f"with values for these trainings, got {panel!r}."
                )
        return list(panels)

    def _lines(self, panel: str) -> list[tuple[TrainingCurves, np.ndarray]]:
        """Return the trainings that have values for a panel, with these values."""
        name = {
            "loss": "valid_loss" if self._shows_validation else "train_loss",
            "score": "score",
            "rate": "lr",
            "gradient norm": "grad_norm",
        }[panel]
        lines = [(training, getattr(training, name)) for training in self.curves]
        return [(training, line) for training, line in lines if line is not None]

    @property
    def _shows_validation(self) -> bool:
        """Whether the loss of several trainings is the one on held-out rows."""
        return len(self.curves) > 1 and all(
            training.valid_loss is not None for training in self.curves
        )

    def _label(self, panel: str) -> str:
        if panel == "loss" and len(self.curves) > 1:
            return "validation loss" if self._shows_validation else "training loss"
        if panel == "score":
            names = {training.score_name for training, _ in self._lines(panel)}
            return as_text(names.pop(), 20) if len(names) == 1 else "score"
        return "learning rate" if panel == "rate" else panel

    def _draw_lines(self, ax: Any, panel: str) -> None:
        lines = self._lines(panel)
        ax.set_yscale(scale_for([line for _, line in lines]))
        if len(self.curves) > _MAX_STYLED:
            _draw_many(ax, lines)
            return
        for i, (training, line) in enumerate(lines):
            style = _few_markers(style_of(i), len(line))
            ax.plot(training.epochs, line, label=as_text(training.name), **style)
            if len(self.curves) > 1:
                _mark_on_line(ax, training, line, style["color"])
                continue
            _lines_at_recoveries(ax, training)
            if panel == "score" and training.best_epoch is not None:
                _draw_best(ax, training, line)
        if panel == "gradient norm":
            _draw_threshold(ax, lines)


def _draw_losses(ax: Any, training: TrainingCurves) -> None:
    """Draw the losses of the only training on training and held-out rows."""
    losses = {"training": training.train_loss}
    if training.valid_loss is not None:
        losses["validation"] = training.valid_loss
    for i, (name, loss) in enumerate(losses.items()):
        style = _few_markers(style_of(i), len(loss))
        ax.plot(training.epochs, loss, label=name, **style)
    ax.set_yscale(scale_for(list(losses.values())))
    if training.best_epoch is not None and "validation" in losses:
        _draw_best(ax, training, losses["validation"])
    _mark_recoveries(ax, training)


def _draw_best(ax: Any, training: TrainingCurves, line: np.ndarray) -> None:
    """Mark the best epoch on a curve."""
    assert training.best_epoch is not None
    style = {"color": COLORS[0], "markersize": 12, "linestyle": "none"}
    best = line[training.best_epoch - 1]
    ax.plot(training.best_epoch, best, "*", label="best epoch", **style)


def _few_markers(style: dict[str, Any], n_points: int) -> dict[str, Any]:
    """Restrict the markers of a curve to about ten points."""
    return {**style, "markevery": max(1, n_points // 10)}


def _lines_at_recoveries(ax: Any, training: TrainingCurves) -> None:
    for epoch in sorted({epoch for epoch, _ in training.recoveries}):
        ax.axvline(epoch, color=COLORS[2], linewidth=0.8, linestyle=":", zorder=1)


def _mark_recoveries(ax: Any, training: TrainingCurves) -> None:
    """Draw a line at each epoch in which a step failed, with its cause at the top."""
    _lines_at_recoveries(ax, training)
    n_causes: Counter[int] = Counter()
    transform = ax.get_xaxis_transform()
    for (epoch, cause), count in sorted(Counter(training.recoveries).items()):
        # Markers of several causes in one epoch are drawn below each other.
        y = 0.95 - 0.09 * n_causes[epoch]
        n_causes[epoch] += 1
        style = {**_marker(cause), "color": COLORS[2], "markersize": 7}
        ax.plot(epoch, y, transform=transform, **style)
        if count > 1:
            where = {"xytext": (6, -3), "textcoords": "offset points"}
            text = {"fontsize": 7, "color": INK}
            ax.annotate(f"{count}x", (epoch, y), xycoords=transform, **where, **text)


def _mark_on_line(
    ax: Any, training: TrainingCurves, line: np.ndarray, color: str
) -> None:
    """Mark the recoveries of a training on its curve."""
    for epoch, cause in sorted(set(training.recoveries)):
        ax.plot(epoch, line[epoch - 1], **_marker(cause), color=color, markersize=8)


def _marker(cause: str) -> dict[str, Any]:
    return {
        "marker": _MARKER_OF.get(cause, "d"),
        "linestyle": "none",
        "markeredgecolor": INK,
        "zorder": 4,
        "label": f"recovery: {cause.replace('_', ' ')}",
    }


def _draw_many(ax: Any, lines: list[tuple[TrainingCurves, np.ndarray]]) -> None:
    """Draw trainings without recoveries in gray, the others dashed, and the median."""
    n_rescued = sum(bool(training.recoveries) for training, _ in lines)
    plain: dict[str, Any] = {"color": "0.55", "linewidth": 0.7, "alpha": 0.8}
    plain["label"] = f"{len(lines) - n_rescued} trainings"
    rescued = {**plain, "color": COLORS[2], "linewidth": 1.0, "linestyle": "--"}
    rescued["label"] = f"{n_rescued} rescued"
    for training, line in sorted(lines, key=lambda pair: bool(pair[0].recoveries)):
        style = rescued if training.recoveries else plain
        ax.plot(training.epochs, line, **style)
        epochs = sorted({epoch for epoch, _ in training.recoveries})
        values = [line[epoch - 1] for epoch in epochs]
        ax.plot(epochs, values, "x", color=COLORS[2], markersize=4)
    values_in = zip_longest(*(line for _, line in lines), fillvalue=np.nan)
    by_epoch = np.array(list(values_in))
    # In epochs with few trainings the median would be that of a different group.
    is_common = np.isfinite(by_epoch).sum(axis=1) > len(lines) / 2
    common = np.flatnonzero(is_common)
    median = np.nanmedian(by_epoch[common], axis=1)
    ax.plot(common + 1, median, color=INK, linewidth=2.2, label="median")


def _draw_threshold(ax: Any, lines: list[tuple[TrainingCurves, np.ndarray]]) -> None:
    """Draw the norm at which gradients are clipped, if it is the same for all."""
    limits = {training.clip_norm for training, _ in lines} - {None}
    if len(limits) == 1:
        (limit,) = limits
        ax.margins(y=0.15)  # Leave room for the text.
        # axhline would not extend the limits of the axis.
        transform = ax.get_yaxis_transform()
        style = {"color": COLORS[2], "linestyle": (0, (6, 2)), "linewidth": 1.2}
        ax.plot([0.0, 1.0], [limit, limit], transform=transform, **style)
        where = {"xytext": (-2, 2), "textcoords": "offset points", "ha": "right"}
        text = {"xycoords": transform, "fontsize": 7, "color": INK}
        ax.annotate(f"clip_norm={limit:g}", (1.0, limit), **where, **text)
