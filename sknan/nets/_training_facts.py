"""A training in a few facts, as a notebook shows them beside scikit-learn's diagram."""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from sknan.nets._curves import TrainingCurves, network_of, skorch_net_of

__all__ = ["facts_of_several", "summary_as_html", "training_facts"]


def training_facts(model: Any) -> list[tuple[str, str]]:
    """What there is to say of a training, by name.

    Parameters
    ----------
    model : estimator, net, Pipeline or search
        Fitted, and ending in one of ours.

    Returns
    -------
    list of (str, str)
    """
    outer, net, curves = (
        network_of(model),
        skorch_net_of(model),
        TrainingCurves.of(model),
    )
    n_epochs = len(curves.epochs)
    epochs = f"{n_epochs} of at most {net.max_epochs}"
    if n_epochs > net.max_epochs:  # fitted in several calls
        epochs = str(n_epochs)
    facts = [("epochs", epochs)]
    if curves.best_epoch is not None:
        facts.append(("weights of", f"epoch {curves.best_epoch}, the best one"))
    losses = [
        ("training loss", curves.train_loss),
        ("validation loss", curves.valid_loss),
        (curves.score_name, curves.score),
    ]
    facts += [
        (name, f"{line[0]:.3g} in the first epoch, {line[-1]:.3g} in the last")
        for name, line in losses
        if line is not None
    ]
    asked, ended = float(net.lr), float(outer.effective_lr_)
    rate = f"{asked:.3g}"
    if ended != asked:
        rate += f", lowered to {ended:.3g} by the guard"
    facts.append(("learning rate", rate))
    clipped = [row.get("clip_share") for row in net.history]
    shares = [share for share in clipped if share is not None]
    if shares:
        facts.append(("steps clipped", f"{100 * float(np.mean(shares)):.0f} %"))
    reports = outer.nonfinite_reports_
    if not reports:
        facts.append(("failed steps", "none"))
        return facts
    causes = sorted({report.cause.replace("_", " ") for report in reports})
    facts.append(
        ("failed steps", f"{len(reports)}, all rescued (cause: {', '.join(causes)})")
    )
    return facts


def facts_of_several(networks: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of each network its epochs, the best one, losses, rate and failed steps."""
    rows: list[tuple[str, ...]] = []
    for name, net in networks.items():
        curves = TrainingCurves.of(net)
        best = curves.best_epoch or len(curves.epochs)
        losses = [curves.train_loss, curves.valid_loss]
        rows.append(
            (
                name,
                str(len(curves.epochs)),
                str(best),
                *["-" if line is None else f"{line[best - 1]:.3g}" for line in losses],
                f"{float(net.effective_lr_):.3g}",
                str(len(net.nonfinite_reports_)),
            )
        )
    return rows


def summary_as_html(model: Any) -> str:
    """The facts as a small table, in the colours of the page."""
    left = "text-align:left; vertical-align:top; padding:1px 10px 1px 0"
    rows = "".join(
        f"<tr><th style='{left}'>{html.escape(name)}</th>"
        f"<td style='{left}'>{html.escape(text)}</td></tr>"
        for name, text in training_facts(model)
    )
    return (
        f"<details><summary>How training went</summary><table>{rows}</table></details>"
    )
