"""Each pipeline's transformers, fitted on each training part; and the rows to score on.

``cross_validate`` cuts the rows and what belongs to them, as it does in a search.
"""

from __future__ import annotations

import contextlib
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
from joblib import effective_n_jobs, parallel_config
from sklearn import config_context, get_config
from sklearn.base import BaseEstimator
from sklearn.model_selection import cross_validate
from sklearn.utils import Tags, get_tags

from sknan.model_selection._pipelines import Recorder

__all__ = ["Prepared", "Result", "Scoring", "Split", "prepare"]


class Split(NamedTuple):
    """Rows of a training part, and of the part to be scored on."""

    train: np.ndarray
    test: np.ndarray


class Scoring(NamedTuple):
    """How models are scored.

    Parameters
    ----------
    scorer : callable
        scikit-learn's, or the user's.
    params : dict of str to object
        Its arguments, for all rows.
    on_train : bool
        Whether on the training part as well.
    """

    scorer: Any
    params: dict[str, Any]
    on_train: bool


@dataclass(frozen=True)
class Result:
    """What a call has given in a worker: a value, or an error.

    ``trace`` says where the error came from: a traceback does not leave its process.
    """

    value: Any = None
    error: Exception | None = None
    trace: str = ""

    @classmethod
    def of(cls, call: Callable[[], Any]) -> Result:
        """That of a call."""
        try:
            return cls(call())
        except Exception as error:
            return cls.failed(error)

    @classmethod
    def failed(cls, error: Exception) -> Result:
        """That of a call which has raised."""
        trace = "".join(traceback.format_exception(error))
        return cls(None, error.with_traceback(None), trace)

    def get(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            self.error.__cause__ = _WhereItFailed(self.trace)
            raise self.error.with_traceback(None)
        return self.value

    def __reduce__(self) -> Any:
        return Result, (self.value, _portable(self.error), self.trace)


class _WhereItFailed(Exception):
    """Traceback of an error that was raised in a worker, as text."""

    def __init__(self, trace: str) -> None:
        super().__init__(f'\n"""\n{trace}"""')


def _portable(error: Exception | None) -> Exception | None:
    """The error, or if it cannot leave its process one that says the same."""
    try:
        pickle.loads(cloudpickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Attempt(BaseEstimator):
    """Fits a model and keeps the error, for `cross_validate` to cut the rows for it.

    Attributes
    ----------
    fitting_ : Result
        None, or the error.
    rows_ : list of (X, y)
        The test part, and the training part if that was asked for.
    """

    def __init__(self, model: Any, is_routing: bool) -> None:
        self.model = model
        self.is_routing = is_routing

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> _Attempt:
        self.rows_: list[tuple[Any, Any]] = []
        target = () if y is None else (y,)

        def fit() -> None:
            self.model.fit(X, *target, **fit_params)

        with config_context(enable_metadata_routing=self.is_routing):
            self.fitting_ = Result.of(fit)
        return self

    def __sklearn_tags__(self) -> Tags:
        return get_tags(self.model)


def _keep_rows(attempt: _Attempt, X: Any, y: Any = None) -> float:
    attempt.rows_.append((X, y))
    return 0.0


def _no_score(estimator: Any, X: Any, y: Any = None) -> float:
    return 0.0


def _validated(
    estimator: Any,
    X: Any,
    y: Any,
    params: dict[str, Any],
    folds: list[Split],
    scoring: Callable[..., float],
    **options: Any,
) -> dict[str, Any]:
    """`cross_validate`, of an estimator that is given rows rather than fitted."""
    # What is passed to fit has been routed already. Where one job cannot be had, as
    # within a worker of Dask, the tasks would go out to the cluster.
    is_one = effective_n_jobs(1) == 1
    here = contextlib.nullcontext() if is_one else parallel_config("sequential")
    with here, config_context(enable_metadata_routing=False):
        found: dict[str, Any] = cross_validate(
            estimator,
            X,
            y,
            cv=folds,
            params=params,
            scoring=scoring,
            n_jobs=1,
            return_estimator=True,
            error_score="raise",
            **options,
        )
    return found


class Prepared(NamedTuple):
    """A pipeline whose transformers are fitted on a training part, and what comes next.

    ``parts`` are arguments (X, y, parameters) of the scorer.
    """

    model: Any
    training: Result
    seconds: float
    parts: list[tuple[Any, Any, dict[str, Any]]]


def prepare(
    model: Any,
    X: Any,
    y: Any,
    fit_params: dict[str, Any],
    folds: list[Split],
    scoring: Scoring,
) -> list[Prepared]:
    """Fit a clone of the model on each fold."""
    attempt = _Attempt(model, get_config()["enable_metadata_routing"])
    found = _validated(
        attempt,
        X,
        y,
        fit_params,
        folds,
        _keep_rows,
        return_train_score=scoring.on_train,
    )
    done = []
    for fold, its, seconds in zip(
        folds, found["estimator"], found["fit_time"], strict=True
    ):
        parts = [
            (*rows, _cut(X, scoring.params, numbers))
            for rows, numbers in zip(its.rows_, (fold.test, fold.train), strict=False)
        ]
        done.append(Prepared(its.model, its.fitting_, seconds, parts))
    return done


def _cut(X: Any, params: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """Of the parameters that have a value for each row of X, those of some rows."""
    if not params:
        return {}
    anything = Recorder(BaseEstimator())
    found = _validated(anything, X, None, params, [Split(rows, rows[:1])], _no_score)
    cut: dict[str, Any] = found["estimator"][0].given_[-1]
    return cut
