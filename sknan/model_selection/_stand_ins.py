"""Evaluation of candidates on splits, and stand-ins that return the results.

The stand-ins replace the estimator, the scorer and the splitter of scikit-learn's
search, which then reads results that exist already.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import Tags, get_tags

from sknan._utils.progress import advance
from sknan.model_selection._pipelines import (
    FitInputRecorder,
    final_network,
    path_of_last,
    with_last,
)
from sknan.model_selection._results import FitResult, RemoteError
from sknan.model_selection._transformers import Split
from sknan.model_selection._worker import ShareTrainer, Task


class Evaluation:
    """Evaluation of candidates on splits: each candidate on all splits, in turn.

    Parameters
    ----------
    estimator : estimator
        Estimator of the search.
    candidates : list of dict
        Parameters of each candidate.
    X, y : indexable of length n_samples
        All rows.
    splits : list of Split
        Rows of each split.
    trainer : ShareTrainer
        Trainer of the tasks.

    Attributes
    ----------
    indices : iterator of int
        Indices of the tasks that have no stand-in yet.
    """

    def __init__(
        self,
        estimator: Any,
        candidates: list[dict[str, Any]],
        X: Any,
        y: Any,
        splits: list[Split],
        trainer: ShareTrainer,
    ) -> None:
        self._candidates = candidates
        self._X, self._y = X, y
        self._splits = splits
        self._trainer = trainer
        self._pipelines: list[Any] = []
        self._tasks = [
            Task(pipeline, net, split)
            for pipeline, net in self._distinct_pipelines(estimator)
            for split in range(len(splits))
        ]
        self.indices = itertools.count()
        self._ready: dict[int, FitResult] = {}

    def _distinct_pipelines(self, estimator: Any) -> list[tuple[int, Any]]:
        """Return the index of the pipeline and the network of each candidate.

        Candidates that differ only in parameters of the network share a pipeline.
        """
        path = path_of_last(estimator)
        known: dict[Hashable, int] = {}
        found: list[tuple[int, Any]] = []
        for params in self._candidates:
            model = _with_params(estimator, clone(params, safe=False))
            net = final_network(model)
            key: Hashable = object()
            if net is not None:
                if path_of_last(model) == path:
                    others = {k: v for k, v in params.items() if not k.startswith(path)}
                    key = _hashable(others)
                model = with_last(model, FitInputRecorder(net))
            if key not in known:
                known[key] = len(self._pipelines)
                self._pipelines.append(model)
            found.append((known[key], net))
        return found

    def result(self, index: int, params: Mapping[str, Any]) -> FitResult:
        """Return the result of a task, once.

        The parameters that scikit-learn has set must be those of the candidate.
        """
        candidate = self._candidates[index // len(self._splits)]
        if not _may_be_clones(params, candidate):
            raise RuntimeError(
                f"scikit-learn asks for the candidate {dict(params)!r} where sknan has "
                f"trained {candidate!r}. This is a bug: please report it with your "
                "version of scikit-learn, and use scikit-learn's own search meanwhile."
            )
        return self._ready.pop(index)

    def train(self, index: int) -> None:
        """Train a task together with the tasks after it, unless it is trained."""
        if index not in self._ready:
            tasks = self._tasks[index : index + self._trainer.max_tasks()]
            results = self._trainer.train(
                self._X,
                self._y,
                self._pipelines,
                self._splits,
                tasks,
                n_left=len(self._tasks) - index,
            )
            self._ready = dict(enumerate(results, start=index))
            advance(0, recoveries=0)  # the bar shows the number even if it is 0

    def tags(self, index: int) -> Tags:
        """Return the tags of the model of a task."""
        return get_tags(self._pipelines[self._tasks[index].pipeline])


def _with_params(model: Any, params: dict[str, Any]) -> Any:
    """Set the parameters, and propose the full name of one that is unknown."""
    known = model.get_params(deep=True)
    try:
        return clone(model).set_params(**params)
    except (ValueError, AttributeError) as error:
        for name in params:
            meant = [k for k in known if _last_part(k) == _last_part(name)]
            if meant and not _is_settable(model, name, params[name]):
                raise ValueError(
                    f"{type(model).__name__} has no parameter {name!r}. Did you mean "
                    f"{' or '.join(map(repr, meant))}?"
                ) from error
        raise


def _is_settable(model: Any, name: str, value: Any) -> bool:
    try:
        clone(model).set_params(**{name: value})
    except (ValueError, AttributeError):
        return False
    return True


def _last_part(name: str) -> str:
    return name.rpartition("__")[2]


def _hashable(params: Mapping[str, Any]) -> Hashable:
    """Return equal keys for equal parameters; unhashable values must be identical."""
    return frozenset((name, _hashable_value(value)) for name, value in params.items())


def _hashable_value(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value


def _may_be_clones(params: Mapping[str, Any], candidate: Mapping[str, Any]) -> bool:
    """Whether the names and all numbers, strings and booleans are equal."""
    return params.keys() == candidate.keys() and all(
        params[name] == value or value != value  # NaN equals nothing
        for name, value in candidate.items()
        if isinstance(value, (bool, int, float, str))
    )


class PretrainedStandIn:
    """Stand-in for one candidate on one split, which has been trained and scored.

    Parameters
    ----------
    evaluation : Evaluation
        Source of the result.
    results : list of FitResult
        List to which the result is appended in ``fit``.
    """

    def __init__(self, evaluation: Evaluation, results: list[FitResult]) -> None:
        self._evaluation = evaluation
        self._results = results
        self._index = next(evaluation.indices)
        # The tasks are trained here, when scikit-learn clones the estimator. It changes
        # the warning filters of the process around the calls of the other methods, and
        # attributes the errors of `fit` to the candidate.
        evaluation.train(self._index)

    def __sklearn_tags__(self) -> Tags:
        return self._evaluation.tags(self._index)

    def set_params(self, **params: Any) -> PretrainedStandIn:
        self._result = self._evaluation.result(self._index, params)
        self._scores = iter(self._result.scores)
        return self

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> PretrainedStandIn:
        self._results.append(self._result)
        if self._result.error is not None:
            self._result.error.reraise()
        return self

    def next_score(self) -> Any:
        """Return the score of the test part, then the score of the training part."""
        score = next(self._scores)
        if isinstance(score, RemoteError):
            score.reraise()
        return score


class _ScorerStandIn:
    """Stand-in for a scorer that asks a :class:`PretrainedStandIn` for its score.

    Parameters
    ----------
    scorer : callable
        Scorer, which scores all other estimators.
    """

    def __init__(self, scorer: Any) -> None:
        self.__wrapped__ = scorer  # `inspect` reads the signature from here

    def __call__(self, estimator: Any, *rows: Any, **params: Any) -> Any:
        if isinstance(estimator, PretrainedStandIn):
            return estimator.next_score()
        return self.__wrapped__(estimator, *rows, **params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __repr__(self) -> str:
        return repr(self.__wrapped__)


def scorer_stand_in(scorer: Any, is_multimetric: bool) -> Any:
    """Return the stand-in for a scorer."""
    if not is_multimetric:
        return _ScorerStandIn(scorer)
    # scikit-learn recognizes a scorer of several metrics by its class.
    kind = type("_ScorerStandIn", (_ScorerStandIn, type(scorer)), {})
    return kind(scorer)


class SplitterStandIn:
    """Stand-in for a splitter that passes the splits on before it returns them.

    Parameters
    ----------
    cv : splitter
        Splitter of the search.
    start : callable
        Function that is called with ``X``, ``y`` and the list of splits.
    needs_rows : bool
        Whether callbacks read the training rows that scikit-learn indexes.
    """

    def __init__(
        self, cv: Any, start: Callable[[Any, Any, list[Split]], None], needs_rows: bool
    ) -> None:
        self.cv = cv
        self.start = start
        self.needs_rows = needs_rows

    def split(self, X: Any, y: Any = None, **params: Any) -> list[Split]:
        pairs = self.cv.split(X, y, **params)
        splits = [Split(_indices(train), _indices(test)) for train, test in pairs]
        self.start(X, y, splits)
        if self.needs_rows:
            return splits
        # scikit-learn copies the training rows for each stand-in, which reads none.
        return [split._replace(train=split.train[:1]) for split in splits]


def _indices(rows: Any) -> np.ndarray:
    rows = np.asarray(rows)
    return np.flatnonzero(rows) if rows.dtype == bool else rows
