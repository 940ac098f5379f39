"""Training of the tasks of a search in shares, each share in one worker.

A task is one candidate on one split, and a share is a list of tasks. The transformers
are fitted once for each training part and each distinct setting of their parameters, by
the pipeline itself, whose network is replaced by a recorder of its input.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
from joblib import effective_n_jobs
from sklearn.base import clone

from sknan._engine.jobs import Job, train_together
from sknan._utils.outside import is_of_signal, unless
from sknan._utils.progress import advance, call_in_workers
from sknan._utils.warn import recorded_warnings, warn
from sknan.estimators._base import TimeLimitWarning
from sknan.exceptions import DivergenceWarning
from sknan.model_selection._pipelines import (
    last_step,
    limit_time,
    remember_transforms,
    with_last,
)
from sknan.model_selection._results import FitResult, RemoteError, divergence_fields
from sknan.model_selection._transformers import (
    FitOptions,
    PreparedModel,
    Split,
    prepare,
)

# Maximum number of trained models that wait to be scored. With `max_memory` they may
# take a quarter of it. The size of a model is measured on the first one; in memory a
# model takes about three times as much as in a pickle.
_MAX_MODELS = 512
_BYTES_OF_MODEL = 2**18
_BYTES_PER_PICKLED_BYTE = 3


class Task(NamedTuple):
    """One candidate on one split.

    Parameters
    ----------
    pipeline : int
        Index of the pipeline.
    net : estimator or None
        Unfitted network or ensemble of the candidate, or None if the pipeline has no
        recorder and is fitted as it is.
    split : int
        Index of the split.
    """

    pipeline: int
    net: Any
    split: int


def train_share(
    X: Any,
    y: Any,
    options: FitOptions,
    pipelines: dict[int, Any],
    splits: dict[int, Split],
    tasks: list[Task],
    max_memory: int | None,
    max_time: float | None,
) -> tuple[list[FitResult], list[Warning], int]:
    """Fit and score the models of some tasks, and train networks together.

    Parameters
    ----------
    X : indexable of length n_samples
        Features of all rows.
    y : indexable of length n_samples or None
        Targets of all rows.
    options : FitOptions
        Options of fitting and scoring.
    pipelines : dict of int to estimator
        Unfitted pipelines of the tasks by their index. Each ends in a
        :class:`FitInputRecorder`, or is fitted as it is.
    splits : dict of int to Split
        Splits of the tasks by their index.
    tasks : list of Task
        Tasks of the share.
    max_memory : int or None
        Number of bytes that the training may take.
    max_time : float or None
        Number of seconds that the fits may take.

    Returns
    -------
    results : list of FitResult
        Results in the order of the tasks.
    messages : list of Warning
        Each distinct warning of the library once, except for those about divergence
        and, with ``max_time``, about time, which follow from the results.
    n_bytes : int
        Size of a pickled model if ``max_memory`` is not None, else 0.
    """
    start = time.monotonic()
    in_results = (DivergenceWarning, *([] if max_time is None else [TimeLimitWarning]))
    with recorded_warnings() as recorded:
        prepared: dict[tuple[int, int], PreparedModel] = {}
        for index, pipeline in pipelines.items():
            used = sorted({task.split for task in tasks if task.pipeline == index})
            models = prepare(pipeline, X, y, options, [splits[i] for i in used])
            prepared |= {(index, i): m for i, m in zip(used, models, strict=True)}
        for model in prepared.values():
            remember_transforms(model.model)  # candidates are scored on the same rows
        if max_time is not None:
            max_time -= time.monotonic() - start
        trained, training_warnings = _train(tasks, prepared, max_memory, max_time)
        results = [_score_model(model, options.scorer) for model in trained]
    distinct = {
        (type(w), str(w)): w
        for w in [*recorded, *training_warnings]
        if not isinstance(w, in_results)
    }
    n_bytes = 0 if max_memory is None else _pickled_size(trained)
    return results, list(distinct.values()), n_bytes


def _train(
    tasks: list[Task],
    prepared: dict[tuple[int, int], PreparedModel],
    max_memory: int | None,
    max_time: float | None,
) -> tuple[list[PreparedModel], list[Warning]]:
    """Train the networks on the transformed rows, and put them into their pipelines."""
    n_users = Counter((task.pipeline, task.split) for task in tasks)
    jobs: dict[int, Job] = {}
    for i, task in enumerate(tasks):
        model = prepared[task.pipeline, task.split]
        if model.error is None and task.net is not None:
            jobs[i] = Job(clone(task.net), *last_step(model.model).fit_input_)
    for job in jobs.values():
        limit_time(job.estimator, max_time and max_time / len(jobs))
    outcomes = dict(
        zip(jobs, train_together(list(jobs.values()), max_memory), strict=True)
    )
    trained: list[PreparedModel] = []
    for i, task in enumerate(tasks):
        model = prepared[task.pipeline, task.split]
        seconds = model.seconds / n_users[task.pipeline, task.split]
        if i in outcomes:
            outcome = outcomes[i]
            model = model._replace(
                model=with_last(model.model, outcome.estimator),
                error=None if outcome.error is None else RemoteError(outcome.error),
                is_stacked=outcome.is_stacked,
                is_cut=any(isinstance(w, TimeLimitWarning) for w in outcome.warnings),
            )
            seconds += outcome.seconds
        else:
            advance(1)
        trained.append(model._replace(seconds=seconds))
    return trained, [w for outcome in outcomes.values() for w in outcome.warnings]


def _score_model(trained: PreparedModel, scorer: Any) -> FitResult:
    """Score a model as scikit-learn would."""
    model, error, seconds, parts, is_stacked, is_cut = trained
    if error is not None:
        divergence = divergence_fields(None, error.error)
        return FitResult(seconds, is_stacked, error, **divergence)
    test, *others = parts
    start = time.perf_counter()
    scores = [_score(model, scorer, *test)]
    score_seconds = time.perf_counter() - start
    scores += [_score(model, scorer, *part) for part in others]
    divergence = divergence_fields(last_step(model), None)
    return FitResult(
        seconds, is_stacked, None, scores, score_seconds, is_cut=is_cut, **divergence
    )


def _score(model: Any, scorer: Any, X: Any, y: Any, params: dict[str, Any]) -> Any:
    """Return the score, or the error of the scorer."""
    target = () if y is None else (y,)
    try:
        return scorer(model, X, *target, **params)
    except unless(is_of_signal, Exception) as error:
        return RemoteError(error)


def _pickled_size(trained: list[PreparedModel]) -> int:
    """Return the size of the first fitted model in a pickle, in bytes."""
    fitted = (model.model for model in trained if model.error is None)
    return next((len(cloudpickle.dumps(model)) for model in fitted), 0)


class TimeBudget:
    """Time of a search, of which all fits that are left get equal parts.

    Parameters
    ----------
    max_time : float or None
        Number of seconds from now on; None for no limit.
    has_refit : bool
        Whether the best candidate is fitted again at the end.

    Attributes
    ----------
    n_rounds_left : int
        Number of evaluations of candidates that are left, including the present one.
    """

    def __init__(self, max_time: float | None, has_refit: bool) -> None:
        self._end = None if max_time is None else time.monotonic() + max_time
        self._has_refit = has_refit
        self._reserved = 0.0
        self.n_rounds_left = 1

    def of_refit(self) -> float | None:
        """Return the number of seconds for the refit; None for no limit.

        This is all that is left, but at least the part that was reserved.
        """
        return self._end and max(self._end - time.monotonic(), self._reserved)

    def per_fit(self, n_left: int, n_splits: int) -> float | None:
        """Return the number of seconds for each of ``n_left`` fits; None for no limit.

        The refit counts as one more candidate, of ``n_splits`` fits: it has more rows,
        and no other networks to be trained with.
        """
        if self._end is None:
            return None
        left = max(self._end - time.monotonic(), 0.0)
        seconds = left / self.n_rounds_left / (n_left + n_splits * self._has_refit)
        self._reserved = max(self._reserved, seconds * n_splits)
        return seconds


class ShareTrainer:
    """Trainer of the tasks of a search.

    Parameters
    ----------
    options : FitOptions
        Options of fitting and scoring.
    n_jobs : int or None
        Number of workers.
    max_memory : int or None
        Number of bytes that all workers may take.
    budget : TimeBudget
        Time of the search.
    """

    def __init__(
        self,
        options: FitOptions,
        n_jobs: int | None,
        max_memory: int | None,
        budget: TimeBudget,
    ) -> None:
        self._budget = budget
        self._options = options
        self._n_jobs = n_jobs
        self._max_memory = max_memory
        self._bytes_of_model = _BYTES_OF_MODEL
        self._warned: set[tuple[type, str]] = set()

    def max_tasks(self) -> int:
        """Return the number of tasks that may be passed to :meth:`train` together."""
        if self._max_memory is None:
            return _MAX_MODELS
        n_models = int(self._max_memory / 4 / self._bytes_of_model)
        return min(max(n_models, 1), _MAX_MODELS)

    def train(
        self,
        X: Any,
        y: Any,
        pipelines: list[Any],
        splits: list[Split],
        tasks: list[Task],
        n_left: int,
    ) -> list[FitResult]:
        """Fit and score tasks in shares, and show each distinct warning once.

        A share contains the tasks of as few splits as possible. ``n_left`` tasks of the
        evaluation are left, including these.
        """
        order = sorted(range(len(tasks)), key=lambda i: (tasks[i].split, i))
        n_workers = effective_n_jobs(self._n_jobs)
        n_tables = len({(task.pipeline, task.split) for task in tasks})
        n_shares = min(max(n_workers, self._min_shares(X, n_tables)), len(tasks))
        memory = None
        if self._max_memory is not None:
            memory = max(1, int(self._max_memory / 2 / min(n_workers, n_shares)))
        seconds = self._budget.per_fit(n_left, len(splits))
        arguments = []
        for indices in np.array_split(order, n_shares):
            share = [tasks[i] for i in indices]
            used_pipelines = {task.pipeline: pipelines[task.pipeline] for task in share}
            used_splits = {task.split: splits[task.split] for task in share}
            limit = seconds and seconds * len(share) * min(n_workers, n_shares)
            rows = X, y, self._options, used_pipelines, used_splits
            arguments.append((*rows, share, memory, limit))
        found = call_in_workers(train_share, arguments, self._n_jobs)
        for message in [message for _, messages, _ in found for message in messages]:
            key = (type(message), str(message))
            if key not in self._warned:
                self._warned.add(key)
                warn(message)
        n_bytes = max(n for _, _, n in found)
        if n_bytes:
            self._bytes_of_model = _BYTES_PER_PICKLED_BYTE * n_bytes
        results = [result for share_results, _, _ in found for result in share_results]
        return [results[i] for i in np.argsort(order)]

    def _min_shares(self, X: Any, n_tables: int) -> int:
        """Return the number of shares whose tables fit a quarter of the memory."""
        if self._max_memory is None:
            return 1
        usage = getattr(X, "memory_usage", None)
        size = X.nbytes if hasattr(X, "nbytes") else usage().sum() if usage else 0
        return math.ceil(4 * n_tables * size / self._max_memory)
