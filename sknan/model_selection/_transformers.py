"""Transformers of a pipeline, fitted on each training part, and the rows to score.

scikit-learn's ``cross_validate`` indexes the rows and the metadata of each split, so
that they are the same as in its own searches.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from joblib import effective_n_jobs, parallel_config
from sklearn import config_context, get_config
from sklearn.base import BaseEstimator
from sklearn.model_selection import cross_validate
from sklearn.utils import Tags, get_tags

from sknan._utils.outside import is_of_signal, unless
from sknan.model_selection._pipelines import FitInputRecorder
from sknan.model_selection._results import RemoteError


class Split(NamedTuple):
    """Row indices of a training part and of the corresponding test part."""

    train: np.ndarray
    test: np.ndarray


@dataclass
class FitOptions:
    """Options of fitting and scoring that all candidates share.

    Parameters
    ----------
    scores_train : bool
        Whether to score on the training part too.
    scorer : callable
        Scorer of the search.
    fit_params : dict of str to object
        Arguments of ``fit``, for all rows.
    score_params : dict of str to object
        Arguments of the scorer, for all rows.
    """

    scores_train: bool
    scorer: Any = None
    fit_params: dict[str, Any] = field(default_factory=dict)
    score_params: dict[str, Any] = field(default_factory=dict)


class PreparedModel(NamedTuple):
    """Pipeline that is fitted on a training part, at first without its network.

    Parameters
    ----------
    model : estimator
        The pipeline.
    error : RemoteError or None
        Exception that ``fit`` raised.
    seconds : float
        Duration of the fit.
    parts : list of (X, y, dict)
        Arguments of the scorer for the test part, and for the training part if it is to
        be scored.
    is_stacked : bool
        Whether the network was trained together with others.
    is_cut : bool
        Whether a time limit ended the training.
    """

    model: Any
    error: RemoteError | None
    seconds: float
    parts: list[tuple[Any, Any, dict[str, Any]]]
    is_stacked: bool = False
    is_cut: bool = False


def prepare(
    model: Any, X: Any, y: Any, options: FitOptions, splits: list[Split]
) -> list[PreparedModel]:
    """Fit a clone of the model on the training part of each split."""
    attempt = _FitAttempt(model, get_config()["enable_metadata_routing"])
    found = _cross_validate(
        attempt, X, y, options.fit_params, splits, options.scores_train
    )
    prepared = []
    for split, fitted, seconds in zip(
        splits, found["estimator"], found["fit_time"], strict=True
    ):
        indices = (split.test, split.train)[: len(fitted.rows_)]
        parts = [
            (*rows, _params_of_rows(X, options.score_params, i))
            for rows, i in zip(fitted.rows_, indices, strict=True)
        ]
        prepared.append(PreparedModel(fitted.model, fitted.error_, seconds, parts))
    return prepared


class _FitAttempt(BaseEstimator):
    """Estimator for ``cross_validate`` that keeps an error of ``fit`` and the rows.

    Attributes
    ----------
    error_ : RemoteError or None
        Exception that the ``fit`` of the model raised.
    rows_ : list of (X, y)
        Test part, and training part if it is scored.
    """

    def __init__(self, model: Any, is_routing: bool) -> None:
        self.model = model
        self.is_routing = is_routing

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> _FitAttempt:
        self.rows_: list[tuple[Any, Any]] = []
        self.error_ = None
        target = () if y is None else (y,)
        with config_context(enable_metadata_routing=self.is_routing):
            try:
                self.model.fit(X, *target, **fit_params)
            except unless(is_of_signal, Exception) as error:
                self.error_ = RemoteError(error)
        return self

    def __sklearn_tags__(self) -> Tags:
        return get_tags(self.model)


def _keep_rows(attempt: _FitAttempt, X: Any, y: Any = None) -> float:
    attempt.rows_.append((X, y))
    return 0.0


def _params_of_rows(X: Any, params: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """Index the parameters that have one value for each row of X."""
    if not params:
        return {}
    recorder = _FitAttempt(FitInputRecorder(BaseEstimator()), is_routing=False)
    found = _cross_validate(recorder, X, None, params, [Split(rows, rows[:1])])
    indexed: dict[str, Any] = found["estimator"][0].model.fit_input_[-1]
    return indexed


def _cross_validate(
    estimator: Any,
    X: Any,
    y: Any,
    params: dict[str, Any],
    splits: list[Split],
    scores_train: bool = False,
) -> dict[str, Any]:
    """Call ``cross_validate`` in this process, without metadata routing."""
    # The parameters have been routed already. Within a worker of Dask n_jobs=1 does not
    # give one job, and the tasks would be sent to the cluster.
    is_one = effective_n_jobs(1) == 1
    backend = contextlib.nullcontext() if is_one else parallel_config("sequential")
    with backend, config_context(enable_metadata_routing=False):
        found: dict[str, Any] = cross_validate(
            estimator,
            X,
            y,
            cv=splits,
            params=params,
            scoring=_keep_rows,
            n_jobs=1,
            return_estimator=True,
            return_train_score=scores_train,
            error_score="raise",
        )
    return found
