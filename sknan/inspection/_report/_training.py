"""Sections of a report about the training and its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sknan.inspection._learning_rate_display import LearningRateDisplay
from sknan.inspection._report._html import (
    cut_table,
    drawn,
    element,
    section,
    table,
    value_text,
)
from sknan.inspection._training_display import TrainingDisplay
from sknan.nets._curves import last_of, networks_of
from sknan.nets._training_facts import facts_of_several, training_facts


def training_section(estimator: Any) -> str:
    """Return the section with facts and figures of the training.

    Parameters
    ----------
    estimator : estimator, net, ensemble, Pipeline or search
        Fitted model.

    Returns
    -------
    str
    """
    networks = networks_of(estimator)
    if len(networks) > 1:
        heads = ["", "epochs", "weights of epoch", "training loss", "validation loss"]
        heads += ["learning rate", "failed steps"]
        parts = [table(facts_of_several(networks), heads)]
    else:
        parts = [table(training_facts(*networks.values()))]
    parts.append(
        drawn(
            lambda: TrainingDisplay.from_estimator(estimator),
            "Loss, learning rate and gradient norm by epoch",
        )
    )
    found = getattr(last_of(estimator), "learning_rate_range_", None)
    if found is not None:
        parts.append(element("p", found))
        parts.append(
            drawn(
                lambda: LearningRateDisplay.from_range(found),
                "Loss over the learning rate in the range test",
            )
        )
    return section("Training", parts)


def result_section(estimator: Any, X: Any, y: Any) -> str:
    """Return the section with the score and the candidates of a search, or "".

    Parameters
    ----------
    estimator : estimator, net, ensemble, Pipeline or search
        Fitted model.
    X : DataFrame, array, sparse matrix or list of rows, or None
        Rows for the score.
    y : Series, array-like of shape (n_samples,) or None
        Target of these rows.

    Returns
    -------
    str
    """
    parts: list[str] = []
    if X is not None and y is not None and not isinstance(y, str):
        score = float(estimator.score(X, y))
        text = f"Score on the {len(y)} rows given to this report: {score:.4g}."
        caution = (
            "If the model was trained on these rows, the score does not estimate its "
            "performance on others."
        )
        parts += [element("p", text), element("p", caution, "quiet")]
    if hasattr(estimator, "cv_results_"):
        parts += _search_parts(estimator)
    return section("Result", parts) if parts else ""


def _search_parts(search: Any) -> Iterator[str]:
    results = search.cv_results_
    if hasattr(search, "best_score_"):
        text = f"Best mean score on the test folds: {search.best_score_:.4g}, with"
        best = [(name, value_text(v)) for name, v in search.best_params_.items()]
        yield element("p", text) + table(best)
        yield _note_on_recoveries(results, search.best_index_)
    means = [key for key in results if key.startswith("mean_test_")]
    events = ("n_recoveries", "diverged_at", "effective_lr")
    names = [*means, *(name for name in events if name in results)]
    rank = results[f"rank_{means[0].removeprefix('mean_')}"]
    rows = [
        (
            ", ".join(f"{k}={value_text(v)}" for k, v in results["params"][i].items()),
            *(value_text(results[name][i]) for name in names),
        )
        for i in np.argsort(rank, kind="stable")
    ]
    heads = ["candidate", *names]
    yield cut_table(rows, [head.replace("_", " ") for head in heads])
    rates = [k for k in results["params"][0] if k.rpartition("__")[2] == "lr"]
    if len(rates) == 1:
        yield drawn(
            lambda: LearningRateDisplay.from_search(search),
            "Score over the learning rate",
        )


def _note_on_recoveries(results: Mapping[str, Any], best: int) -> str:
    n_recoveries = results["n_recoveries"][best] if "n_recoveries" in results else 0
    if n_recoveries is np.ma.masked or not n_recoveries:
        return ""
    text = (
        "Trainings of this candidate were rescued, and the lowest learning rate at "
        f"which one of them continued is {results['effective_lr'][best]:.3g}: the "
        "score is not that of these parameters."
    )
    return element("p", text)
