"""Summary of a training, shown in notebooks and reports."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from sknan._utils.html import table
from sknan.nets._curves import TrainingCurves, network_of, skorch_net_of


def training_facts(model: Any) -> list[tuple[str, str]]:
    """Return names and descriptions of the main facts about a training."""
    outer, net = network_of(model), skorch_net_of(model)
    curves = TrainingCurves.of(model)
    n_epochs = len(curves.epochs)
    epochs = f"{n_epochs} of at most {net.max_epochs}"
    if n_epochs > net.max_epochs:  # after several calls of partial_fit or a warm start
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
    initial_lr, final_lr = float(net.lr), float(outer.effective_lr_)
    lr = f"{initial_lr:.3g}"
    if final_lr != initial_lr:
        lr += f", lowered to {final_lr:.3g} by the guard"
    facts.append(("learning rate", lr))
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
    """Return a row of facts for each network of an ensemble."""
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


def training_caption(model: Any) -> str:
    """Return one line about the training of a fitted network or ensemble."""
    members = getattr(model, "estimators_", [model])
    lengths = [getattr(m, "n_iter_", None) or len(m.history) for m in members]
    ends = dict.fromkeys([min(lengths), max(lengths)])
    caption = f"{' to '.join(map(str, ends))} epoch{'s' if max(ends) != 1 else ''}"
    if len(members) > 1:
        caption = f"{len(members)} networks, {caption}"
    n_failed = len(model.nonfinite_reports_)
    if n_failed == 0:
        return f"{caption}, no step failed"
    steps = "1 step" if n_failed == 1 else f"{n_failed} steps"
    lr = float(model.effective_lr_)
    return f"{caption}, {steps} failed and rescued, learning rate {lr:.3g} in the end"


def diagram_block(model: Any) -> Any:
    """Return the block of a fitted model in scikit-learn's diagrams.

    Its caption says how the training went, also where the model is a step of a pipeline
    or the best estimator of a search. The class of blocks is private. It is taken from
    a block, and scikit-learn shows its usual diagram if this raises an exception.
    """
    block_class = type(Pipeline([("", "passthrough")])._sk_visual_block_())
    return block_class(
        "single",
        model,
        names=type(model).__name__,
        name_details=str(model),
        name_caption=training_caption(model),
    )


def summary_as_html(model: Any) -> str:
    """Return the facts as a small HTML table."""
    facts = table(training_facts(model))
    return f"<details><summary>Training summary</summary>{facts}</details>"
