"""One fit of a search: scikit-learn leads it, training and scoring are done in shares.

scikit-learn's own code cuts the folds, ranks, refits and reports. Only the estimators
that it clones for candidates and folds are stand-ins: what they would fit has been
trained before, many at a time, and scored where it was trained.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
from joblib import effective_n_jobs, parallel_config
from sklearn.base import clone
from sklearn.utils import Tags, get_tags

from sknan._engine.plan import trained_by
from sknan._engine.training import train_as_stack
from sknan._utils.progress import call_in_workers
from sknan._utils.stacklevel import stacklevel_of_caller
from sknan.estimators._base import StableNetBase
from sknan.model_selection._pipelines import (
    Recorder,
    final_network,
    path_of_last,
    with_last,
)
from sknan.model_selection._results import Record
from sknan.model_selection._transformers import Scoring, Split
from sknan.model_selection._worker import Fit, Task, train_share

__all__ = ["SearchRun"]

# Trained models wait for the others of their share: at most so many of them, and with
# `max_memory` at most what fits a quarter of it. What one takes is measured on the
# first; in memory it is about so many times what it is in a pickle.
_MOST_MODELS = 512
_BYTES_OF_MODEL = 2**18
_BYTES_PER_PICKLED = 3


class SearchRun:
    """What a search holds while it is being fitted.

    For a moment it takes the place of the search's estimator: what scikit-learn clones
    then is what it clones for each candidate and fold.

    Parameters
    ----------
    estimator : estimator
        That of the search.
    n_jobs : int or None
        Shares at a time.
    max_memory : int or None
        Bytes for all of them.

    return_train_score : bool
        Whether to score on the training parts as well.

    Attributes
    ----------
    fit_params, score_params : dict of str to object
        Arguments of ``fit`` for the estimator and for the scorers, by name.
    records : list of Record
        What became of each candidate on each fold, in the order of ``cv_results_``.
    """

    def __init__(
        self,
        estimator: Any,
        n_jobs: int | None,
        max_memory: int | None,
        return_train_score: bool,
    ) -> None:
        self._given = estimator
        self._estimator: Any = None
        self.fit_params: dict[str, Any] = {}
        self.score_params: dict[str, Any] = {}
        self._scorer: Any = None
        self._on_train = return_train_score
        self._n_jobs = n_jobs
        self._max_memory = max_memory
        self._bytes_of_model = _BYTES_OF_MODEL
        self._evaluation: _Evaluation | None = None
        self._contexts = contextlib.ExitStack()
        self._warned: set[tuple[type, str]] = set()
        self.records: list[Record] = []

    # -- in the estimator's place ----------------------------------------------------

    def scorer(self, scorer: Any, is_several: bool) -> Any:
        """What takes a scorer's place: it knows what that has said in the shares."""
        self._scorer = scorer
        return known_scores(scorer, is_several)

    def enter(self, search: Any) -> None:
        """Be what the search clones, and let it go through the candidates here."""
        search.estimator = self
        self._contexts.enter_context(parallel_config(backend="sequential"))

    def leave(self, search: Any) -> None:
        """Give the estimator and the user's parallel backend back."""
        search.estimator = self._given
        self._contexts.close()

    def __sklearn_clone__(self) -> Any:
        if self._estimator is None:
            self._estimator = clone(self._given)
            return self
        if self._evaluation is None:
            # For the last fit: let it round as the fits of the candidates have.
            self._contexts.enter_context(trained_by(train_as_stack))
            return clone(self._estimator)
        return PretrainedStandIn(self._evaluation)

    # -- training --------------------------------------------------------------------

    @contextlib.contextmanager
    def evaluating(
        self, candidates: list[dict[str, Any]], cv: Any, is_watched: bool
    ) -> Iterator[_Folds]:
        """Train these candidates on the folds that scikit-learn asks for meanwhile.

        If it is watched, by callbacks, it gets them as they are.
        """

        def start(X: Any, y: Any, folds: list[Split]) -> None:
            self._evaluation = _Evaluation(self, candidates, X, y, folds)

        with warnings.catch_warnings():
            # True, and of no use: what is told of each candidate is told all the same.
            warnings.filterwarnings(
                "ignore", f"The estimator {PretrainedStandIn.__name__} does"
            )
            try:
                yield _Folds(cv, start, is_watched)
            finally:
                self._evaluation = None

    @property
    def estimator(self) -> Any:
        """What a candidate is a clone of."""
        return self._estimator

    def n_at_once(self) -> int:
        """How many models may be trained, and wait to be scored, at a time."""
        if self._max_memory is None:
            return _MOST_MODELS
        fitting = int(self._max_memory / 4 / self._bytes_of_model)
        return min(max(fitting, 1), _MOST_MODELS)

    def train(
        self,
        settings: list[Any],
        X: Any,
        y: Any,
        folds: list[Split],
        tasks: list[Task],
    ) -> list[Fit]:
        """Train in shares, each fold's tasks side by side, and tell what was warned."""
        scoring = Scoring(self._scorer, self.score_params, self._on_train)
        order = sorted(range(len(tasks)), key=lambda i: (tasks[i].split, i))
        n_workers = effective_n_jobs(self._n_jobs)
        n_tables = len({(task.setting, task.split) for task in tasks})
        n_shares = min(max(n_workers, self._n_for_tables(X, n_tables)), len(tasks))
        memory = None
        if self._max_memory is not None:
            memory = max(1, int(self._max_memory / 2 / min(n_workers, n_shares)))
        shares = [[tasks[i] for i in cut] for cut in np.array_split(order, n_shares)]
        found = call_in_workers(
            train_share,
            [
                (
                    {task.setting: settings[task.setting] for task in share},
                    X,
                    y,
                    self.fit_params,
                    {task.split: folds[task.split] for task in share},
                    scoring,
                    share,
                    memory,
                )
                for share in shares
            ],
            self._n_jobs,
        )
        self._warn_once(message for share in found for message in share.warnings)
        n_bytes = max(share.n_bytes for share in found)
        if n_bytes:
            self._bytes_of_model = _BYTES_PER_PICKLED * n_bytes
        fits = [fit for share in found for fit in share.fits]
        return [fits[place] for place in np.argsort(order)]

    def _n_for_tables(self, X: Any, n_tables: int) -> int:
        """Shares that it takes for their tables to fit a quarter of the memory."""
        if self._max_memory is None:
            return 1
        usage = getattr(X, "memory_usage", None)
        size = X.nbytes if hasattr(X, "nbytes") else usage().sum() if usage else 0
        return math.ceil(4 * n_tables * size / self._max_memory)

    def _warn_once(self, messages: Iterator[Warning]) -> None:
        for message in messages:
            key = (type(message), str(message))
            if key not in self._warned:
                self._warned.add(key)
                warnings.warn(message, stacklevel=stacklevel_of_caller())


class _Folds:
    """Splitter that cuts the folds of another one and shows them before it is done."""

    def __init__(self, cv: Any, show: Any, is_watched: bool) -> None:
        self.cv = cv
        self.show = show
        self.is_watched = is_watched

    def split(self, X: Any, y: Any = None, **params: Any) -> list[Split]:
        pairs = self.cv.split(X, y, **params)
        folds = [Split(_positions(train), _positions(test)) for train, test in pairs]
        self.show(X, y, folds)
        if self.is_watched:
            return folds
        # scikit-learn copies the training rows for each stand-in, which reads none.
        return [fold._replace(train=fold.train[:1]) for fold in folds]


class _Evaluation:
    """Candidates on folds, in scikit-learn's order: each candidate on all folds."""

    def __init__(
        self,
        run: SearchRun,
        candidates: list[dict[str, Any]],
        X: Any,
        y: Any,
        folds: list[Split],
    ) -> None:
        self.run = run
        self.candidates = candidates
        self._X, self._y = X, y
        self._folds = folds
        self._settings: list[Any] = []
        nets = self._arrange()
        self._tasks = [
            Task(setting, net, split)
            for setting, net in nets
            for split in range(len(folds))
        ]
        self._n_handed_out = 0
        self._ready: dict[int, Fit] = {}

    def _arrange(self) -> list[tuple[int, StableNetBase | None]]:
        """Each candidate's network, and in which of the distinct pipelines it stands.

        Parameters that are not those of the network set a pipeline's transformers.
        """
        path = path_of_last(self.run.estimator)
        known: dict[Hashable, int] = {}
        found: list[tuple[int, StableNetBase | None]] = []
        for params in self.candidates:
            model = clone(self.run.estimator).set_params(**clone(params, safe=False))
            net = final_network(model)
            key: Hashable = object()
            if net is not None:
                if path_of_last(model) == path:
                    others = {k: v for k, v in params.items() if not k.startswith(path)}
                    key = _key_of(others)
                model = with_last(model, Recorder(net))
            if key not in known:
                known[key] = len(self._settings)
                self._settings.append(model)
            found.append((known[key], net))
        return found

    def next_place(self) -> int:
        """Which task the next stand-in stands for."""
        self._n_handed_out += 1
        return self._n_handed_out - 1

    def take(self, place: int, params: Mapping[str, Any]) -> Fit:
        """What became of a task, trained with those after it if it is not yet."""
        candidate = self.candidates[place // len(self._folds)]
        if not _agree(params, candidate):
            raise RuntimeError(
                f"scikit-learn asks for the candidate {dict(params)!r} where sknan has "
                f"trained {candidate!r}. This is a bug: please report it with your "
                "version of scikit-learn, and use scikit-learn's own search meanwhile."
            )
        if place not in self._ready:
            end = min(place + self.run.n_at_once(), len(self._tasks))
            fits = self.run.train(
                self._settings,
                self._X,
                self._y,
                self._folds,
                self._tasks[place:end],
            )
            self._ready = dict(zip(range(place, end), fits, strict=True))
        return self._ready.pop(place)

    def tags(self, place: int) -> Tags:
        """Tags of the model that a stand-in stands for."""
        return get_tags(self._settings[self._tasks[place].setting])


class PretrainedStandIn:
    """What scikit-learn fits and scores for a candidate: that has been done before.

    Parameters
    ----------
    evaluation : _Evaluation
        What it comes from, in order.
    """

    def __init__(self, evaluation: _Evaluation) -> None:
        self._evaluation = evaluation
        self._place = evaluation.next_place()

    def __sklearn_tags__(self) -> Tags:
        return self._evaluation.tags(self._place)

    def set_params(self, **params: Any) -> PretrainedStandIn:
        # Here and not in `fit`: an error of this is none of the candidate's.
        self._fit = self._evaluation.take(self._place, params)
        self._scores = iter(self._fit.scores)
        return self

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> PretrainedStandIn:
        self._evaluation.run.records.append(self._fit.record)
        self._fit.training.get()
        return self

    def next_score(self) -> Any:
        """What the scorer said of the test part, then of the training part."""
        return next(self._scores).get()


class _KnownScores:
    """What takes the place of a scorer: it asks a stand-in.

    Parameters
    ----------
    scorer : callable
        The scorer.
    """

    def __init__(self, scorer: Any) -> None:
        self.__wrapped__ = scorer  # where `inspect` finds its signature

    def __call__(self, estimator: Any, *rows: Any, **params: Any) -> Any:
        if isinstance(estimator, PretrainedStandIn):
            return estimator.next_score()
        return self.__wrapped__(estimator, *rows, **params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __repr__(self) -> str:
        return repr(self.__wrapped__)


def known_scores(scorer: Any, is_several: bool) -> Any:
    """What takes the place of a scorer while stand-ins are scored."""
    if not is_several:
        return _KnownScores(scorer)
    # scikit-learn knows one of several scores by its class.
    kind = type("_KnownScores", (_KnownScores, type(scorer)), {})
    return kind(scorer)


def _positions(rows: Any) -> np.ndarray:
    rows = np.asarray(rows)
    return np.flatnonzero(rows) if rows.dtype == bool else rows


def _key_of(params: Mapping[str, Any]) -> Hashable:
    """Equal for settings that are the same, by identity where values have no hash."""
    return frozenset((name, _token(value)) for name, value in params.items())


def _token(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value


def _agree(params: Mapping[str, Any], candidate: Mapping[str, Any]) -> bool:
    """Whether these may be clones of those: what is plain must be equal."""
    return params.keys() == candidate.keys() and all(
        params[name] == value or value != value
        for name, value in candidate.items()
        if isinstance(value, (bool, int, float, str))
    )
