"""Evaluation of candidates on splits, in the order in which scikit-learn asks."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from typing import Any

from sklearn.base import clone
from sklearn.utils import Tags, get_tags

from sknan._utils.progress import advance
from sknan.estimators._base import StableNetBase
from sknan.model_selection._pipelines import (
    FitInputRecorder,
    final_network,
    path_of_last,
    with_last,
)
from sknan.model_selection._results import FitResult
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

    def _distinct_pipelines(
        self, estimator: Any
    ) -> list[tuple[int, StableNetBase | None]]:
        """Return the index of the pipeline and the network of each candidate.

        Candidates that differ only in parameters of the network share a pipeline.
        """
        path = path_of_last(estimator)
        known: dict[Hashable, int] = {}
        found: list[tuple[int, StableNetBase | None]] = []
        for params in self._candidates:
            model = clone(estimator).set_params(**clone(params, safe=False))
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

        If the task is not trained yet, it is trained together with the tasks after it.

        Parameters
        ----------
        index : int
            Index of the task.
        params : mapping
            Parameters that scikit-learn has set, which must be those of the candidate.
        """
        candidate = self._candidates[index // len(self._splits)]
        if not _may_be_clones(params, candidate):
            raise RuntimeError(
                f"scikit-learn asks for the candidate {dict(params)!r} where sknan has "
                f"trained {candidate!r}. This is a bug: please report it with your "
                "version of scikit-learn, and use scikit-learn's own search meanwhile."
            )
        if index not in self._ready:
            tasks = self._tasks[index : index + self._trainer.max_tasks()]
            results = self._trainer.train(
                self._X, self._y, self._pipelines, self._splits, tasks
            )
            self._ready = dict(enumerate(results, start=index))
            advance(0, recoveries=0)  # the bar shows the number even if it is 0
        return self._ready.pop(index)

    def tags(self, index: int) -> Tags:
        """Return the tags of the model of a task."""
        return get_tags(self._pipelines[self._tasks[index].pipeline])


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
