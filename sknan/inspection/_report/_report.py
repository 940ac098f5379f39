"""All that is known of a training on one page: report."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline

from sknan.inspection._learning_rate_display import LearningRateDisplay
from sknan.inspection._report._html import (
    STYLE,
    cut_table,
    details,
    drawn,
    element,
    page,
    section,
    table,
)
from sknan.inspection._report._sections import (
    data_section,
    incident_section,
    value_text,
)
from sknan.inspection._training_display import TrainingDisplay
from sknan.nets._curves import last_of, networks_of, skorch_net_of
from sknan.nets._training_facts import facts_of_several, training_facts

__all__ = ["HTMLReport", "report"]

_PACKAGES = (
    *("sknan", "torch", "scikit-learn", "skorch", "skrub", "numpy", "pandas"),
    "matplotlib",
)


class HTMLReport:
    """A page about a training: to save, to show in a notebook, to print.

    Made by :func:`report`.

    Parameters
    ----------
    title : str
        Of the page.
    summary : str
        The same in a few lines.
    body : str
        HTML of the page, without its frame.
    """

    def __init__(self, title: str, summary: str, body: str) -> None:
        self.title = title
        self.summary = summary
        self.body = body

    def __str__(self) -> str:
        return self.summary

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The page inside a notebook."""
        return self.body

    def to_html(self) -> str:
        """The page as a document of its own.

        Returns
        -------
        str
        """
        return page(self.title, self.body)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to one file, which needs nothing else.

        Parameters
        ----------
        path : str or path-like
            Of the file, such as ``"report.html"``.
        """
        Path(path).write_text(self.to_html(), encoding="utf-8")


def report(
    estimator: Any,
    X: Any = None,
    y: Any = None,
    *,
    path: str | os.PathLike[str] | None = None,
) -> HTMLReport:
    """What was in the data, how training went, and what came of it, on one page.

    Parameters
    ----------
    estimator : estimator, net, ensemble, Pipeline or search
        Fitted, and ending in StableNet or GuardedNet estimators.
    X : DataFrame, array, sparse matrix or list of rows, or None, default=None
        The table, for its audit and a score.
    y : Series, array-like of shape (n_samples,) or None, default=None
        The target of its rows.
    path : str, path-like or None, default=None
        Where to write the page; None for nowhere.

    Returns
    -------
    HTMLReport
        Shows in a notebook, prints in a few lines, and can be saved.

    Raises
    ------
    NotFittedError
        If ``estimator`` has not been fitted.
    TypeError
        If it is, or ends in, none of this package's networks.
    FileNotFoundError
        If the folder of ``path`` does not exist: before any work is done.

    See Also
    --------
    sknan.TrainingDisplay : The picture of the training by itself.
    sknan.audit : What is said of the table.

    Notes
    -----
    One file with style and pictures inside: it needs no network, and runs no script.
    It is light or dark as the browser wishes. Pictures need matplotlib; without it the
    page says so. The page tells column names, values filled in, and extremes of
    the table; it holds none of its rows.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sknan import StableNetClassifier, report
    >>> X, y = load_iris(return_X_y=True)
    >>> net = StableNetClassifier(max_epochs=5, random_state=0).fit(X, y)
    >>> print(report(net))
    StableNetClassifier: 5 epochs, no step failed.
    """
    networks = networks_of(estimator)
    if path is not None and not Path(path).parent.is_dir():
        raise FileNotFoundError(
            f"report cannot write {str(path)!r}: there is no folder "
            f"{str(Path(path).parent)!r}. Create it first."
        )
    parts = [
        *data_section(estimator, X, y),
        *_of_the_training(estimator),
        *incident_section(last_of(estimator).nonfinite_reports_),
        *_of_the_result(estimator, X, y),
        *_of_the_parameters(estimator),
        *_of_the_versions(estimator),
    ]
    title = f"Training of {_called(estimator)}"
    summary = _summary(estimator, networks)
    head = [element("h1", title), element("p", summary)]
    body = "".join(head + parts)
    found = HTMLReport(
        title,
        summary,
        f'<div class="sknan-report"><style>{STYLE}</style>{body}</div>',
    )
    if path is not None:
        found.save(path)
    return found


def _called(estimator: Any) -> str:
    name = type(last_of(estimator)).__name__
    outer = [type(estimator).__name__] if hasattr(estimator, "best_estimator_") else []
    best = getattr(estimator, "best_estimator_", estimator)
    outer += ["Pipeline"] if isinstance(best, Pipeline) else []
    return f"{name} in a {' over a '.join(outer)}" if outer else name


def _summary(estimator: Any, networks: dict[str, Any]) -> str:
    lengths = [len(skorch_net_of(net).history) for net in networks.values()]
    reports = last_of(estimator).nonfinite_reports_
    text = f"{_called(estimator)}: {_epochs(lengths)}, "
    if not reports:
        return f"{text}no step failed."
    times = "1 step" if len(reports) == 1 else f"{len(reports)} steps"
    return (
        f"{text}{times} failed and training was rescued; it ended at a learning rate "
        f"of {min(net.effective_lr_ for net in networks.values()):.3g}. First failure: "
        f"{reports[0]}"
    )


def _epochs(lengths: list[int]) -> str:
    fewest, most = min(lengths), max(lengths)
    many = f"{fewest} to {most}" if fewest < most else str(most)
    text = f"{many} epoch{'s' if most != 1 else ''}"
    return f"{len(lengths)} networks, {text} each" if len(lengths) > 1 else text


def _of_the_training(estimator: Any) -> Iterator[str]:
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
            "Loss, rate and gradients by epoch",
        )
    )
    found = getattr(last_of(estimator), "learning_rate_range_", None)
    if found is not None:
        parts.append(element("p", str(found)))
        parts.append(
            drawn(
                lambda: LearningRateDisplay.from_range(found),
                "Loss over the learning rate in the range test",
            )
        )
    yield section("How training went", parts)


def _of_the_result(estimator: Any, X: Any, y: Any) -> Iterator[str]:
    parts: list[str] = []
    if X is not None and y is not None and not isinstance(y, str):
        score = float(estimator.score(X, y))
        parts.append(
            element(
                "p", f"Score on the {len(y)} rows given to this report: {score:.4g}."
            )
        )
        words = (
            "If these are the rows it was trained on, this is no estimate of what it "
            "does on others."
        )
        parts.append(element("p", words, "quiet"))
    if hasattr(estimator, "cv_results_"):
        parts += _of_the_search(estimator)
    if parts:
        yield section("The result", parts)


def _of_the_search(search: Any) -> Iterator[str]:
    results = search.cv_results_
    if hasattr(search, "best_score_"):
        text = f"Best mean score on the test folds: {search.best_score_:.4g}, with"
        best = [(name, value_text(v)) for name, v in search.best_params_.items()]
        yield element("p", text) + table(best)
        yield _of_a_rescued_winner(results, search.best_index_)
    means = [key for key in results if key.startswith("mean_test_")]
    told = [k for k in ("n_recoveries", "diverged_at", "effective_lr") if k in results]
    key = f"rank_{means[0].removeprefix('mean_')}"
    order = np.argsort(results[key], kind="stable")
    rows = [
        (
            ", ".join(f"{k}={value_text(v)}" for k, v in results["params"][i].items()),
            *(value_text(results[name][i]) for name in [*means, *told]),
        )
        for i in order
    ]
    heads = ["candidate", *means, *told]
    yield cut_table(rows, [head.replace("_", " ") for head in heads])
    rates = [k for k in results["params"][0] if k.rpartition("__")[2] == "lr"]
    if len(rates) == 1:
        yield drawn(
            lambda: LearningRateDisplay.from_search(search),
            "Score over the learning rate",
        )


def _of_a_rescued_winner(results: Any, best: int) -> str:
    n_recoveries = results["n_recoveries"][best] if "n_recoveries" in results else 0
    if n_recoveries is np.ma.masked or not n_recoveries:
        return ""
    rate = results["effective_lr"][best]
    words = (
        "Its trainings were rescued, and the lowest rate that one of them went on with "
        f"is {rate:.3g}: the score is not that of these parameters."
    )
    return element("p", words)


def _of_the_parameters(estimator: Any) -> Iterator[str]:
    model = getattr(estimator, "best_estimator_", estimator)
    steps = model.steps if isinstance(model, Pipeline) else [("", model)]
    parts = []
    for _, step in steps:
        parameters = _parameters(step)
        name = type(step).__name__
        parts.append(details(f"{name} ({len(parameters)})", table(parameters)))
    yield section("Parameters", parts)


def _parameters(step: Any) -> list[tuple[str, str]]:
    if not hasattr(step, "get_params"):
        return []
    shown = step.get_params(deep=False)
    return [(name, _short(value)) for name, value in sorted(shown.items())]


def _short(value: Any, n_most: int = 200) -> str:
    # A module's or data set's repr may be as long as it is.
    text = " ".join(repr(value).split())
    return text if len(text) <= n_most else text[: n_most - 1] + "…"


def _of_the_versions(estimator: Any) -> Iterator[str]:
    model = getattr(estimator, "best_estimator_", estimator)
    steps = model.steps if isinstance(model, Pipeline) else [("", model)]
    seeds = [
        (f"random_state of {type(step).__name__}", _short(step.random_state))
        for _, step in [*steps, ("", estimator)]
        if isinstance(step, BaseEstimator) and hasattr(step, "random_state")
    ]
    versions = [("Python", platform.python_version())]
    for name in _PACKAGES:
        spec = "sklearn" if name == "scikit-learn" else name
        if importlib.util.find_spec(spec) is not None:
            versions.append((name, importlib.metadata.version(name)))
    device = (
        "device",
        str(skorch_net_of(next(iter(networks_of(estimator).values()))).device),
    )
    system = ("system", f"{platform.system()} {platform.machine()}")
    rows = [*dict.fromkeys(seeds), device, system, *versions]
    yield section("Versions and seeds", [table(rows)])
