"""Training of many tasks in shares, each share in one worker."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from joblib import effective_n_jobs

from sknan._utils.progress import call_in_workers
from sknan._utils.stacklevel import stacklevel_of_caller
from sknan.model_selection._results import FitResult
from sknan.model_selection._transformers import FitOptions, Split
from sknan.model_selection._worker import Task, train_share

# Maximum number of trained models that wait to be scored. With `max_memory` they may
# take a quarter of it. The size of a model is measured on the first one; in memory a
# model takes about three times as much as in a pickle.
_MAX_MODELS = 512
_BYTES_OF_MODEL = 2**18
_BYTES_PER_PICKLED_BYTE = 3


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
    """

    def __init__(
        self, options: FitOptions, n_jobs: int | None, max_memory: int | None
    ) -> None:
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
    ) -> list[FitResult]:
        """Fit and score tasks in shares, and show each distinct warning once.

        A share contains the tasks of as few splits as possible.
        """
        order = sorted(range(len(tasks)), key=lambda i: (tasks[i].split, i))
        n_workers = effective_n_jobs(self._n_jobs)
        n_tables = len({(task.pipeline, task.split) for task in tasks})
        n_shares = min(max(n_workers, self._min_shares(X, n_tables)), len(tasks))
        memory = None
        if self._max_memory is not None:
            memory = max(1, int(self._max_memory / 2 / min(n_workers, n_shares)))
        arguments = []
        for indices in np.array_split(order, n_shares):
            share = [tasks[i] for i in indices]
            used_pipelines = {task.pipeline: pipelines[task.pipeline] for task in share}
            used_splits = {task.split: splits[task.split] for task in share}
            arguments.append(
                (X, y, self._options, used_pipelines, used_splits, share, memory)
            )
        found = call_in_workers(train_share, arguments, self._n_jobs)
        self._warn_once(message for _, messages, _ in found for message in messages)
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

    def _warn_once(self, messages: Iterable[Warning]) -> None:
        for message in messages:
            key = (type(message), str(message))
            if key not in self._warned:
                self._warned.add(key)
                warnings.warn(message, stacklevel=stacklevel_of_caller())
