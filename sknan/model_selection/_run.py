"""State of a search while it is fitted.

scikit-learn's own code splits the rows, ranks the candidates, refits the best one and
reports. The estimators that it clones for candidates and splits are stand-ins: their
models have been trained and scored before, many at a time.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

from joblib import parallel_config
from sklearn.base import clone

from sknan.model_selection._pipelines import last_step, limit_time
from sknan.model_selection._results import FitResult
from sknan.model_selection._stand_ins import (
    Evaluation,
    PretrainedStandIn,
    SplitterStandIn,
)
from sknan.model_selection._transformers import FitOptions, Split
from sknan.model_selection._worker import ShareTrainer, TimeBudget


class SearchRun:
    """State of a search while it is fitted.

    For a moment this object takes the place of the search's estimator. The first clone
    that scikit-learn makes is then this object, and its clones are the estimators of
    the candidates on the splits.

    Parameters
    ----------
    search : search
        Search with the parameters that its ``fit`` started with.

    Attributes
    ----------
    options : FitOptions
        Options of fitting and scoring.
    results : list of FitResult
        Result of each candidate on each split, in the order of ``cv_results_``.
    budget : TimeBudget
        Time of the search.
    """

    def __init__(self, search: Any) -> None:
        self.options = FitOptions(search.return_train_score)
        self.results: list[FitResult] = []
        self._search = search
        self._given = search.estimator
        self._estimator: Any = None
        self.budget = TimeBudget(search.max_time, bool(search.refit))
        # Infinity sets no bound, as None.
        max_memory = None if search.max_memory == math.inf else search.max_memory
        self._trainer = ShareTrainer(
            self.options, search.n_jobs, max_memory, self.budget
        )
        self._evaluation: Evaluation | None = None
        self._contexts = contextlib.ExitStack()

    def enter(self) -> None:
        """Take the place of the search's estimator, and use one job in this process."""
        self._search.estimator = self
        self._contexts.enter_context(parallel_config(backend="sequential"))

    def leave(self) -> None:
        """Restore the search's estimator and the user's parallel backend."""
        self._search.estimator = self._given
        self._contexts.close()

    def __sklearn_clone__(self) -> Any:
        if self._estimator is None:
            self._estimator = clone(self._given)
            return self
        if self._evaluation is None:  # the refit
            model = clone(self._estimator)
            limit_time(last_step(model), self.budget.of_refit())
            return model
        return PretrainedStandIn(self._evaluation, self.results)

    @contextlib.contextmanager
    def evaluating(
        self, candidates: list[dict[str, Any]], cv: Any, has_callbacks: bool
    ) -> Iterator[SplitterStandIn]:
        """Evaluate candidates on the splits that scikit-learn requests in the block.

        The callbacks of a search, if it has any, see the rows of each split.
        """

        def start(X: Any, y: Any, splits: list[Split]) -> None:
            self._evaluation = Evaluation(
                self._estimator, candidates, X, y, splits, self._trainer
            )

        with contextlib.ExitStack() as filters:
            if has_callbacks:
                # Stand-ins take no callbacks. Those of the search are notified of each
                # candidate nevertheless.
                filters.enter_context(warnings.catch_warnings())
                warnings.filterwarnings(
                    "ignore", f"The estimator {PretrainedStandIn.__name__} does"
                )
            try:
                yield SplitterStandIn(cv, start, has_callbacks)
            finally:
                self._evaluation = None
