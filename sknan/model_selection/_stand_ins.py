"""Stand-ins for the estimator, the scorer and the splitter of a search.

They are passed to scikit-learn's search, which then reads results that exist already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.utils import Tags

from sknan.model_selection._evaluation import Evaluation
from sknan.model_selection._results import FitResult, RemoteError
from sknan.model_selection._transformers import Split


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

    def __sklearn_tags__(self) -> Tags:
        return self._evaluation.tags(self._index)

    def set_params(self, **params: Any) -> PretrainedStandIn:
        # The tasks are trained here and not in `fit`, whose errors scikit-learn
        # attributes to the candidate.
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
