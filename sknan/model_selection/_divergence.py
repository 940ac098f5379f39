"""Columns of ``cv_results_`` and a warning about candidates that diverged."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from sknan.exceptions import DivergenceWarning
from sknan.model_selection._results import FitResult


def divergence_columns(results: Sequence[FitResult], n_splits: int) -> dict[str, Any]:
    """Return columns for ``cv_results_``, for each split and for the candidate.

    Results are those of each candidate on all splits, one candidate after the other.
    ``n_recoveries`` is the sum over the splits, ``diverged_at`` and ``effective_lr``
    are the minima over the splits. All three are masked where no split has a value.
    ``stacked`` is True where all splits were stacked.
    """
    summaries: dict[str, tuple[Any, Any]] = {
        "n_recoveries": (np.int64, np.ma.sum),
        "diverged_at": (np.int64, np.ma.min),
        "effective_lr": (np.float64, np.ma.min),
    }
    columns: dict[str, Any] = {}
    for name, (dtype, total) in summaries.items():
        values = [getattr(result, name) for result in results]
        mask = [value is None for value in values]
        known = np.ma.MaskedArray([v or 0 for v in values], mask=mask, dtype=dtype)
        table = known.reshape(-1, n_splits)
        columns |= {f"split{i}_{name}": column for i, column in enumerate(table.T)}
        columns[name] = total(table, axis=1)
    is_stacked = np.reshape([result.is_stacked for result in results], (-1, n_splits))
    columns["stacked"] = is_stacked.all(axis=1)
    return columns


def candidate_facts(
    cv_results: Mapping[str, Any], best: int | None, resource: str | None = None
) -> list[tuple[str, str]]:
    """Return names and descriptions of the main facts about the candidates."""
    recoveries = cv_results["n_recoveries"]  # masked where a training has failed
    groups = {
        "": np.full(len(recoveries), True),
        " rescued": (recoveries > 0).filled(False),
        " failed": np.ma.getmaskarray(recoveries),
    }
    states = ", ".join(
        f"{_n_distinct(cv_results['params'], np.flatnonzero(rows), resource)}{state}"
        for state, rows in groups.items()
    )
    facts = [("candidates", states)]
    if best is not None:
        settings = ", ".join(f"{k}={v}" for k, v in cv_results["params"][best].items())
        n_steps = recoveries[best]
        how = "no step failed" if n_steps == 0 else f"{n_steps} steps were rescued"
        facts.append(("best candidate", f"{settings}: {how}"))
    return facts


def divergence_warning(
    results: Sequence[FitResult],
    cv_results: Mapping[str, Any],
    best: int | None,
    resource: str | None = None,
) -> DivergenceWarning | None:
    """Return one warning for the whole search, or None if no step has failed.

    It carries the report of the first failed step. ``resource`` is that of a search
    with successive halving, which trains a candidate in several rounds.
    """
    if not any(result.has_failed_steps for result in results):
        return None
    params = cv_results["params"]
    n_splits = len(results) // len(params)
    rows = [results[i : i + n_splits] for i in range(0, len(results), n_splits)]
    diverged = [i for i, row in enumerate(rows) if any(r.has_diverged for r in row)]
    failed = [
        i
        for i in diverged
        if any(r.has_diverged and r.n_recoveries is None for r in rows[i])
    ]
    kept = [
        i
        for i, row in enumerate(rows)
        if i not in diverged and any(r.has_failed_steps for r in row)
    ]
    parts = []
    count = partial(_n_distinct, params, resource=resource)
    n_candidates = count(range(len(rows)))
    if diverged:
        n_diverged, n_failed = count(diverged), count(failed)
        parts.append(
            f"{n_diverged} of {n_candidates} candidates diverged, "
            f"{_describe_diverged(params, diverged)}: "
            f"{_describe_outcome(n_diverged, n_failed)}."
        )
    if kept:
        parts.append(
            f"{count(kept)} of {n_candidates} candidates had steps that failed and "
            "were rescued at the same learning rate."
        )
    parts.append(
        "See the columns n_recoveries, diverged_at and effective_lr of cv_results_."
    )
    if best is not None and best in diverged:
        parts.append(_describe_best(params[best], cv_results, best))
    if diverged:
        report = next(r.report for i in diverged for r in rows[i] if r.has_diverged)
    else:
        report = next(r.report for r in results if r.has_failed_steps)
    return DivergenceWarning(" ".join(parts), report)


def _n_distinct(
    params: Sequence[Mapping[str, Any]], rows: Iterable[int], resource: str | None
) -> int:
    """Return the number of candidates in rows of which each belongs to one round."""
    name = "max_epochs" if resource == "epochs" else resource
    # Values may not be hashable. The rounds of a search share them.
    keys = (
        frozenset(
            (key, id(value))
            for key, value in params[row].items()
            if name not in (key, key.rpartition("__")[2])
        )
        for row in rows
    )
    return len(set(keys))


def _describe_best(
    candidate: Mapping[str, Any], cv_results: Mapping[str, Any], best: int
) -> str:
    count = cv_results["n_recoveries"][best]
    times = "once" if count == 1 else f"{count} times"
    return (
        f"The best candidate is one of them: {_describe(candidate)} was rescued "
        f"{times} and ended at a learning rate of "
        f"{cv_results['effective_lr'][best]:.3g}, so its score does not belong to its "
        "parameters. Search lower learning rates, or choose among the other candidates "
        "with a callable refit."
    )


def _describe_outcome(n_diverged: int, n_failed: int) -> str:
    if n_failed == n_diverged:
        return "none could be rescued" if n_failed > 1 else "it could not be rescued"
    if n_failed == 0:
        return "all were rescued" if n_diverged > 1 else "it was rescued"
    return f"{n_failed} could not be rescued on every fold"


def _describe_diverged(
    params: Sequence[Mapping[str, Any]], diverged: Sequence[int]
) -> str:
    """Describe the candidates by their learning rate, if that identifies them."""
    name = _name_of_learning_rate(params)
    if name is not None:
        rates = [candidate[name] for candidate in params]
        lowest = min(rates[i] for i in diverged)
        not_lower = [i for i, rate in enumerate(rates) if rate >= lowest]
        if not_lower == list(diverged):
            return f"from {name}={lowest:.3g} upwards"
    first = _describe(params[diverged[0]])
    return f"the first {first}" if len(diverged) > 1 else first


def _name_of_learning_rate(params: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the name of the learning rate if all candidates set it and it varies."""
    for name in params[0]:
        values = [candidate.get(name) for candidate in params]
        are_numbers = all(isinstance(value, numbers.Real) for value in values)
        if name.rpartition("__")[2] == "lr" and are_numbers and len(set(values)) > 1:
            return str(name)
    return None


def _describe(candidate: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value!r}"
        for name, value in candidate.items()
    )
