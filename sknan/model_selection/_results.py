"""What a search says of candidates whose training failed: columns, and one sentence."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sknan.diagnosis._report import NonFiniteReport
from sknan.exceptions import DivergenceWarning, NonFiniteTrainingError

__all__ = ["Record", "columns_of", "divergence_warning", "record_of"]


class Record(NamedTuple):
    """What became of a candidate on one fold.

    Parameters
    ----------
    seconds : float
        Time that its training took, or its share of that.
    is_stacked : bool
        Whether it was trained together with others.
    score_seconds : float
        Time that scoring on the test part took.
    has_diverged : bool
        Whether a step failed, rescued or not.
    n_recoveries : int or None
        Steps that failed and were rescued; None where nobody knows: training stopped,
        or the model is not one of ours.
    diverged_at : int or None
        Epoch of the first failed step, counted from 1.
    effective_lr : float or None
        Learning rate that the guard ended at.
    report : NonFiniteReport or None
        The first failed step, without what reproduces it, which holds data.
    """

    seconds: float
    is_stacked: bool
    score_seconds: float = 0.0
    has_diverged: bool = False
    n_recoveries: int | None = None
    diverged_at: int | None = None
    effective_lr: float | None = None
    report: NonFiniteReport | None = None


def record_of(
    net: Any, error: Exception | None, seconds: float, is_stacked: bool
) -> Record:
    """What is kept of a fit.

    Parameters
    ----------
    net : estimator or None
        Last step of the model; None if there is an error.
    error : Exception or None
        What its ``fit`` would have raised.
    seconds : float
        Time that it took.
    is_stacked : bool
        Whether it was trained together with others.

    Returns
    -------
    Record
    """
    record = Record(seconds, is_stacked)
    if isinstance(error, NonFiniteTrainingError):
        report = error.report
        return record._replace(has_diverged=True, **_first([report] if report else []))
    reports = getattr(net, "nonfinite_reports_", None)
    if reports is None:
        return record
    return record._replace(
        has_diverged=bool(reports),
        n_recoveries=len(reports),
        effective_lr=net.effective_lr_,
        **_first(reports),
    )


def _first(reports: list[NonFiniteReport]) -> dict[str, Any]:
    if not reports:
        return {}
    report = dataclasses.replace(reports[0], capsule=None)
    return {"diverged_at": report.epoch, "report": report}


def columns_of(records: Sequence[Record], n_splits: int) -> dict[str, Any]:
    """Columns for ``cv_results_``: for each fold, and for the candidate as a whole.

    Parameters
    ----------
    records : sequence of Record
        Each candidate on all folds, one candidate after the other.
    n_splits : int
        Number of folds.

    Returns
    -------
    dict of str to array of shape (n_candidates,)
        ``n_recoveries`` is the sum over the folds, ``diverged_at`` and ``effective_lr``
        are the smallest, each masked where no fold has a value; ``stacked`` is whether
        all folds were.
    """
    shape = (-1, n_splits)
    recoveries = _masked([r.n_recoveries for r in records], np.int64).reshape(shape)
    epochs = _masked([r.diverged_at for r in records], np.int64).reshape(shape)
    rates = _masked([r.effective_lr for r in records], np.float64).reshape(shape)
    columns: dict[str, Any] = {}
    for name, table, whole in [
        ("n_recoveries", recoveries, recoveries.sum(axis=1)),
        ("diverged_at", epochs, epochs.min(axis=1)),
        ("effective_lr", rates, rates.min(axis=1)),
    ]:
        for split in range(n_splits):
            columns[f"split{split}_{name}"] = table[:, split]
        columns[name] = whole
    is_stacked = np.array([r.is_stacked for r in records]).reshape(shape)
    columns["stacked"] = is_stacked.all(axis=1)
    return columns


def _masked(values: list[Any], dtype: Any) -> np.ma.MaskedArray[Any, Any]:
    mask = [value is None for value in values]
    known = [0 if value is None else value for value in values]
    return np.ma.MaskedArray(known, mask=mask, dtype=dtype)


def divergence_warning(
    records: Sequence[Record], results: Mapping[str, Any], best: int | None
) -> DivergenceWarning | None:
    """One warning for the whole search, or None if no step has failed.

    Parameters
    ----------
    records : sequence of Record
        Each candidate on all folds, one candidate after the other.
    results : mapping
        ``cv_results_``.
    best : int or None
        Place of the best candidate, if one was chosen.

    Returns
    -------
    DivergenceWarning or None
        With the report of the first failed step.
    """
    if not any(record.has_diverged for record in records):
        return None
    params = results["params"]
    n_splits = len(records) // len(params)
    rows = [records[i : i + n_splits] for i in range(0, len(records), n_splits)]
    diverged = [i for i, row in enumerate(rows) if any(r.has_diverged for r in row)]
    n_failed = sum(
        any(r.has_diverged and r.n_recoveries is None for r in rows[i])
        for i in diverged
    )
    parts = [
        f"{len(diverged)} of {len(rows)} candidates diverged, "
        f"{_which(params, diverged)}: {_what_came_of_it(len(diverged), n_failed)}. "
        "cv_results_ tells of each: n_recoveries, diverged_at, effective_lr."
    ]
    if best is not None and best in diverged:
        parts.append(_of_the_best(params[best], results, best))
    report = next(r.report for i in diverged for r in rows[i] if r.has_diverged)
    return DivergenceWarning(" ".join(parts), report)


def _of_the_best(
    candidate: Mapping[str, Any], results: Mapping[str, Any], best: int
) -> str:
    count = results["n_recoveries"][best]
    times = "once" if count == 1 else f"{count} times"
    return (
        f"The best one is among them: {_shown(candidate)} was rescued {times} and "
        f"ended at a rate of {results['effective_lr'][best]:.3g}, so that its score is "
        "not that of its parameters. Search lower rates, or choose among the others "
        "with a callable refit."
    )


def _what_came_of_it(n_diverged: int, n_failed: int) -> str:
    if n_failed == n_diverged:
        return "none could be rescued" if n_failed > 1 else "it could not be rescued"
    if n_failed == 0:
        return "all were rescued" if n_diverged > 1 else "it was rescued"
    return f"{n_failed} could not be rescued on every fold"


def _which(params: Sequence[Mapping[str, Any]], diverged: Sequence[int]) -> str:
    """The candidates in words: by their learning rate, if that tells them apart."""
    name = _name_of_rate(params)
    if name is not None:
        rates = [candidate[name] for candidate in params]
        lowest = min(rates[i] for i in diverged)
        from_there = [i for i, rate in enumerate(rates) if rate >= lowest]
        if from_there == list(diverged):
            return f"from {name}={lowest:.3g} upwards"
    first = _shown(params[diverged[0]])
    return f"the first {first}" if len(diverged) > 1 else first


def _name_of_rate(params: Sequence[Mapping[str, Any]]) -> str | None:
    """Name of the learning rate, if all candidates have one and they differ."""
    for name in params[0]:
        values = [candidate.get(name) for candidate in params]
        are_numbers = all(isinstance(value, numbers.Real) for value in values)
        if name.rpartition("__")[2] == "lr" and are_numbers and len(set(values)) > 1:
            return str(name)
    return None


def _shown(candidate: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value!r}"
        for name, value in candidate.items()
    )
