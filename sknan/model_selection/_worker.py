"""What one worker of a search does: transform, train, score, and hand back the scores.

A share is some candidates on some folds. Transformers are fitted once for each training
part and each distinct setting of theirs, by the very pipeline that holds them: its last
step is a recorder that keeps what reaches it.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections import Counter
from typing import Any, NamedTuple

import cloudpickle
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from sknan._engine.together import Job, train_together
from sknan._utils.progress import advance
from sknan.estimators._base import StableNetBase
from sknan.exceptions import DivergenceWarning
from sknan.model_selection._pipelines import last_step, with_last
from sknan.model_selection._results import Record, record_of
from sknan.model_selection._transformers import (
    Prepared,
    Result,
    Scoring,
    Split,
    prepare,
)

__all__ = ["Fit", "Share", "Task", "train_share"]


class Task(NamedTuple):
    """A candidate on one training part.

    Parameters
    ----------
    setting : int
        Which of the pipelines it stands in.
    net : StableNetBase or None
        The candidate's network, to be cloned; None if the pipeline holds no recorder
        and is to be fitted as it is.
    split : int
        Which training part.
    """

    setting: int
    net: StableNetBase | None
    split: int


class Fit(NamedTuple):
    """What became of a task.

    Parameters
    ----------
    record : Record
        What is told of it.
    training : Result
        None, or the error that its ``fit`` would have raised.
    scores : list of Result
        On the test part, and on the training part if that is wanted too; none if the
        training has failed.
    """

    record: Record
    training: Result
    scores: list[Result]


class Share(NamedTuple):
    """What a worker hands back.

    Parameters
    ----------
    fits : list of Fit
        In the order of the tasks.
    warnings : list of Warning
        Each once; of divergence the fits tell themselves.
    n_bytes : int
        That a fitted model takes as a pickle, if that was to be found; else 0.
    """

    fits: list[Fit]
    warnings: list[Warning]
    n_bytes: int


def train_share(
    settings: dict[int, Any],
    X: Any,
    y: Any,
    fit_params: dict[str, Any],
    folds: dict[int, Split],
    scoring: Scoring,
    tasks: list[Task],
    max_memory: int | None,
) -> Share:
    """Fit what the tasks ask for, together where that can be, and score it.

    Parameters
    ----------
    settings : dict of int to estimator
        Unfitted pipelines with a :class:`Recorder` at their end, or models to be fitted
        as they are.
    X : indexable of length n_samples
        The whole table.
    y : indexable of length n_samples or None
        Targets.
    fit_params : dict of str to object
        Of the search's ``fit``, for the estimator.
    folds : dict of int to Split
        Rows of each split.
    scoring : Scoring
        How to score.
    tasks : list of Task
        Any of these settings on any of these folds.
    max_memory : int or None
        Bytes that training may take.

    Returns
    -------
    Share
    """
    with warnings.catch_warnings(record=True) as caught:
        prepared: dict[tuple[int, int], Prepared] = {}
        for setting in {task.setting: None for task in tasks}:
            splits = sorted({task.split for task in tasks if task.setting == setting})
            own = [folds[split] for split in splits]
            done = prepare(settings[setting], X, y, fit_params, own, scoring)
            prepared |= {
                (setting, s): found for s, found in zip(splits, done, strict=True)
            }
        trained, told = _train(tasks, prepared, max_memory)
        fits = [_scored(its, scoring.scorer) for its in trained]
    once = {
        (type(w.message), str(w.message)): w.message
        for w in [*caught, *told]
        if isinstance(w.message, Warning)
        and not isinstance(w.message, DivergenceWarning)
    }
    return Share(fits, list(once.values()), 0 if max_memory is None else _size(trained))


class _Trained(NamedTuple):
    """A fitted model, or the error; with its share of the time."""

    prepared: Prepared
    is_stacked: bool


def _train(
    tasks: list[Task],
    prepared: dict[tuple[int, int], Prepared],
    max_memory: int | None,
) -> tuple[list[_Trained], list[warnings.WarningMessage]]:
    """Train the networks on what the transformers have made of their parts."""
    users = Counter((task.setting, task.split) for task in tasks)
    jobs: dict[int, Job] = {}
    for place, task in enumerate(tasks):
        its = prepared[task.setting, task.split]
        if its.training.error is None and task.net is not None:
            jobs[place] = Job(clone(task.net), *last_step(its.model).given_)
    outcomes = dict(
        zip(jobs, train_together(list(jobs.values()), max_memory), strict=True)
    )
    trained: list[_Trained] = []
    for place, task in enumerate(tasks):
        its = prepared[task.setting, task.split]
        seconds = its.seconds / users[task.setting, task.split]
        outcome = outcomes.get(place)
        if outcome is None:
            advance(1)
            trained.append(_Trained(its._replace(seconds=seconds), False))
            continue
        error = outcome.error
        its = its._replace(
            model=with_last(its.model, outcome.estimator),
            training=Result() if error is None else Result.failed(error),
            seconds=seconds + outcome.seconds,
        )
        trained.append(_Trained(its, outcome.is_stacked))
    return trained, [w for outcome in outcomes.values() for w in outcome.warnings]


def _scored(trained: _Trained, scorer: Any) -> Fit:
    """Score a model as scikit-learn would."""
    model, training, seconds, parts = trained.prepared
    if training.error is not None:
        record = record_of(None, training.error, seconds, trained.is_stacked)
        return Fit(record, training, [])
    test, *others = parts
    start = time.perf_counter()
    scores = [_score(model, scorer, *test)]
    score_seconds = time.perf_counter() - start
    scores += [_score(model, scorer, *part) for part in others]
    record = record_of(last_step(model), None, seconds, trained.is_stacked)
    return Fit(record._replace(score_seconds=score_seconds), training, scores)


def _score(model: Any, scorer: Any, X: Any, y: Any, params: dict[str, Any]) -> Result:
    if isinstance(model, Pipeline):
        X = copy.deepcopy(X)  # a step may write into it, and others are scored on it
    target = () if y is None else (y,)
    return Result.of(lambda: scorer(model, X, *target, **params))


def _size(trained: list[_Trained]) -> int:
    """Bytes of the first model in a pickle."""
    fitted = (its.model for its, _ in trained if its.training.error is None)
    model = next(fitted, None)
    return 0 if model is None else len(cloudpickle.dumps(model))
