"""Sections of a report: data, training, incidents, result and settings."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import linecache
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.base import BaseEstimator

from sknan._utils.html import element, table
from sknan.diagnosis._report import NonFiniteReport
from sknan.inspection._audit._formatting import quantity
from sknan.inspection._audit._run import audit
from sknan.inspection._audit._table_audit import HEADS
from sknan.inspection._audit_display import AuditDisplay
from sknan.inspection._learning_rate_display import LearningRateDisplay
from sknan.inspection._report._card import model_section, training_data_section
from sknan.inspection._report._drift import drift_section
from sknan.inspection._report._evaluation import Evaluation, evaluate
from sknan.inspection._report._html import (
    cut_table,
    details,
    drawn,
    section,
    value_text,
)
from sknan.inspection._report._scores import calibration_section, score_table
from sknan.inspection._training_display import TrainingDisplay
from sknan.nets._curves import last_of, networks_of, skorch_net_of, steps_of
from sknan.nets._training_facts import facts_of_several, training_facts
from sknan.preprocessing._cleaner import TableCleaner

# Number of kinds of incidents that are shown in full.
_MAX_KINDS = 20

# Number of items of a list that are shown.
_MAX_LISTED = 10

# Number of source lines shown before and after the one that failed.
_N_CONTEXT = 2

# Distributions whose versions are listed.
_PACKAGES = (
    *("sknan", "torch", "scikit-learn", "skorch", "skrub", "numpy", "pandas"),
    "matplotlib",
)

# The repr of a module or a data set may be very long.
_MAX_REPR = 200


def sections_of(
    estimator: Any, X: Any, y: Any, license: str | None = None
) -> Iterator[str]:
    """Yield the sections of a report in the order of the page, empty ones included."""
    has_target = X is not None and y is not None and not isinstance(y, str)
    is_scored = has_target and hasattr(estimator, "score")  # GuardedNet has no score
    found = evaluate(estimator, X, y) if is_scored else None
    yield model_section(estimator, y, license)
    yield training_data_section(estimator)
    yield _data_section(X, y)
    yield _training_section(estimator)
    yield _incident_section(last_of(estimator).nonfinite_reports_)
    yield _result_section(estimator, X, y, found)
    if found is not None:
        yield calibration_section(found)
    if X is not None and not sparse.issparse(X) and np.ndim(X) == 2:
        yield drift_section(_as_read(steps_of(estimator)[0], X), found)
    yield _parameter_section(estimator)
    yield _version_section(estimator)


# -- data ----------------------------------------------------------------------------


def _data_section(X: Any, y: Any) -> str:
    """Return the section about the table, or ""."""
    if X is None:
        return ""
    found = audit(X, y)
    rows = [(f.severity, f.title, f.evidence, f.action) for f in found]
    which = "The audited rows are those that were given to this report. "
    parts = [element("p", which + found.summary), table(rows, HEADS)]
    if found.statistics:
        title = "Missing cells and scales"
        parts.append(drawn(title, AuditDisplay.from_audit, found))
    return section("Audit", parts)


# -- training ------------------------------------------------------------------------


def _training_section(estimator: Any) -> str:
    """Return the section with facts and figures of the training."""
    networks = networks_of(estimator)
    if len(networks) > 1:
        heads = ["", "epochs", "weights of epoch", "training loss", "validation loss"]
        heads += ["learning rate", "failed steps"]
        parts = [table(facts_of_several(networks), heads)]
    else:
        parts = [table(training_facts(*networks.values()))]
    title = "Loss, learning rate and gradient norm by epoch"
    parts.append(drawn(title, TrainingDisplay.from_estimator, estimator))
    found = getattr(last_of(estimator), "learning_rate_range_", None)
    if found is not None:
        title = "Loss over the learning rate in the range test"
        figure = drawn(title, LearningRateDisplay.from_range, found)
        parts += [element("p", found), figure]
    return section("Training", parts)


# -- incidents -----------------------------------------------------------------------


def _incident_section(reports: Sequence[NonFiniteReport]) -> str:
    """Return the section with one box for each kind of incident."""
    if not reports:
        return section("Incidents", [element("p", "None: no step failed.")])
    by_kind: dict[Any, list[NonFiniteReport]] = {}
    for each in reports:
        kind = (each.phase, each.cause, each.operation, each.source, each.module)
        by_kind.setdefault(kind, []).append(each)
    boxes = [_box(*group) for group in list(by_kind.values())[:_MAX_KINDS]]
    n_left = len(by_kind) - len(boxes)
    if n_left:
        text = f"{n_left} other kinds of incidents are in nonfinite_reports_."
        boxes.append(element("p", text, "quiet"))
    return section(f"Incidents: {len(reports)}", boxes)


def _box(first: NonFiniteReport, *others: NonFiniteReport) -> str:
    """Return the first incident of a kind in full, with the places of the others."""
    culprits = [("rows", first.rows), ("columns", first.columns)]
    rows = [
        ("cause", first.cause.replace("_", " ")),
        *(
            (name, ", ".join(map(str, found[:_MAX_LISTED])))
            for name, found in culprits
            if len(found)
        ),
        ("evidence", first.evidence),
        ("recovery", first.recovery or "None: training stopped."),
        ("remedy", first.action),
    ]
    if others:
        places = "; ".join(each.place for each in others[:_MAX_LISTED])
        n_left = len(others) - _MAX_LISTED
        more = f"; and {n_left} more" if n_left > 0 else ""
        times = "once" if len(others) == 1 else f"{len(others)} times"
        rows.append((f"repeated {times}", f"{places}{more}"))
    head = f"<p>{element('b', first.headline, 'what')}</p>"
    return f'<div class="incident">{head}{_source(first.source)}{table(rows)}</div>'


def _source(source: str | None) -> str:
    """Return the failed line with the lines around it, if the file can be read."""
    name, _, number = (source or "").rpartition(":")
    if not number.isdigit():
        return ""
    failed = int(number)
    around = range(max(1, failed - _N_CONTEXT), failed + _N_CONTEXT + 1)
    lines = {n: linecache.getline(name, n).rstrip() for n in around}
    if not lines[failed]:
        return ""
    shown = [
        f"{'>' if n == failed else ' '} {n:4d}  {text}" for n, text in lines.items()
    ]
    return element("pre", "\n".join(shown))


# -- result --------------------------------------------------------------------------


def _result_section(estimator: Any, X: Any, y: Any, found: Evaluation | None) -> str:
    """Return the section with the scores and the candidates of a search, or ""."""
    parts: list[str] = []
    if found is not None:
        where = f"the {quantity(len(found.target), 'row')} given to this report"
        if found.is_scored:
            text = f"Score on {where}: {float(estimator.score(X, y)):.4g}."
        else:
            text = f"Errors on {where}. R2 needs targets that differ."
        if found.unseen.any():
            labels = np.unique(found.target[found.unseen].astype(str))
            text += (
                f" Labels of {quantity(int(found.unseen.sum()), 'row')} were not in "
                f"fit: {', '.join(labels[:_MAX_LISTED])}. Such a row counts as an "
                "error in the accuracy, and the log-loss is left out."
            )
        caution = (
            "If the model was trained on these rows, the score does not estimate its "
            "performance on others."
        )
        parts += [element("p", text), score_table(found)]
        parts.append(element("p", caution, "quiet"))
    if hasattr(estimator, "cv_results_"):
        parts += _search_parts(estimator)
    return section("Result", parts) if parts else ""


def _as_read(first: Any, X: Any) -> pd.DataFrame:
    """Return rows as a pipeline with this first step reads them."""
    if isinstance(first, TableCleaner):
        return first.transform(X)
    frame = X if isinstance(X, pd.DataFrame) else pd.DataFrame(np.asarray(X))
    return frame.replace([np.inf, -np.inf], np.nan)


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
        title = "Score over the learning rate"
        yield drawn(title, LearningRateDisplay.from_search, search)


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


# -- settings ------------------------------------------------------------------------


def _parameter_section(estimator: Any) -> str:
    """Return the section with the parameters of each step."""
    parts = []
    for step in steps_of(estimator):
        params = step.get_params(deep=False) if hasattr(step, "get_params") else {}
        rows = [(name, _short(value)) for name, value in sorted(params.items())]
        parts.append(details(f"{type(step).__name__} ({len(rows)})", table(rows)))
    return section("Parameters", parts)


def _version_section(estimator: Any) -> str:
    """Return the section with seeds, device, system and versions."""
    seeds = [
        (f"random_state of {type(step).__name__}", _short(step.random_state))
        for step in [*steps_of(estimator), estimator]
        if isinstance(step, BaseEstimator) and hasattr(step, "random_state")
    ]
    first, *_ = networks_of(estimator).values()
    rows = [
        *dict.fromkeys(seeds),
        ("device", str(skorch_net_of(first).device)),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("Python", platform.python_version()),
    ]
    for name in _PACKAGES:
        module = "sklearn" if name == "scikit-learn" else name
        if importlib.util.find_spec(module) is not None:
            rows.append((name, importlib.metadata.version(name)))
    return section("Versions and seeds", [table(rows)])


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _MAX_REPR else text[: _MAX_REPR - 1] + "…"
