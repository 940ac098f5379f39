"""What one worker of a search does: transform, train, hand back fitted models.

A share is some candidates on some training parts. Transformers are fitted once for each
part and each distinct setting of theirs, by the very pipeline that holds them: its last
step is a recorder that keeps what reaches it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from cloudpickle import CloudPickler
from joblib import effective_n_jobs, parallel_config
from sklearn import config_context, get_config
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import cross_validate
from sklearn.pipeline import Pipeline
from sklearn.utils import Tags, get_tags

from sknan._estimator_base import StableNetBase
from sknan._progress import advance, reported_to
from sknan._table_net import TableNet
from sknan.exceptions import DivergenceWarning
from sknan.stacking import Job, train_together

__all__ = [
    "Fit",
    "Recorder",
    "Share",
    "Task",
    "last_step",
    "net_of",
    "path_of_last",
    "train_share",
    "with_last",
]


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
    model : estimator or None
        Fitted: the network with the pipeline around it.
    error : Exception or None
        What its ``fit`` would have raised.
    trace : str
        Where that came from: a traceback does not leave its process.
    seconds : float
        Its share of the time, transformers included.
    is_stacked : bool
        Whether the network was trained together with others.
    """

    model: Any
    error: Exception | None
    trace: str
    seconds: float
    is_stacked: bool


@dataclass
class Share:
    """What a worker hands back.

    Parameters
    ----------
    fits : list of Fit
        In the order of the tasks.
    warnings : list of Warning
        Each once; of divergence the fits tell themselves.
    """

    fits: list[Fit]
    warnings: list[Warning]

    def __reduce__(self) -> Any:
        file = io.BytesIO()
        _Pickler(file, pickle.HIGHEST_PROTOCOL).dump((self.fits, self.warnings))
        return _unpacked, (file.getvalue(),)


def _unpacked(data: bytes) -> Share:
    return Share(*pickle.loads(data))


def _reduced_net(net: TableNet) -> Any:
    if net.device != "cpu":
        return net.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    state = {**vars(net), "_training_": None}
    return object.__new__, (type(net),), state, None, None, _set_state


def _reduced_storage(storage: torch.TypedStorage) -> Any:
    untyped = storage._untyped_storage  # the public way warns
    if untyped.device.type != "cpu":
        return storage.__reduce__()  # type: ignore[no-untyped-call]
    numbers = torch.empty(0, dtype=torch.uint8).set_(untyped).numpy()
    return _storage, (numbers, storage.dtype)


def _set_state(net: Any, state: dict[str, Any]) -> None:
    vars(net).update(state)


def _storage(numbers: np.ndarray, dtype: torch.dtype) -> torch.TypedStorage:
    untyped = torch.from_numpy(numbers).untyped_storage()
    return torch.TypedStorage(  # type: ignore[no-untyped-call]
        wrap_storage=untyped, dtype=dtype, _internal=True
    )


class _Pickler(CloudPickler):
    """Hands networks over as they are, and their weights as arrays.

    skorch pickles a network so that it can move between devices, and torch wraps each
    tensor in an archive of its own: of a search of small networks that takes a tenth.
    """

    dispatch_table: ClassVar[dict[type, Callable[[Any], Any]]] = {
        **CloudPickler.dispatch_table,
        TableNet: _reduced_net,
        torch.TypedStorage: _reduced_storage,
    }


def last_step(model: Any) -> Any:
    """The estimator at the end of a pipeline, of pipelines in pipelines too."""
    while isinstance(model, Pipeline):
        try:
            _, model = model.steps[-1]
        except (IndexError, KeyError, TypeError, ValueError):
            return None  # scikit-learn says what is wrong with it
    return model


def net_of(model: Any) -> StableNetBase | None:
    """The network at the end of a model, if it is one of this package."""
    last = last_step(model)
    return last if isinstance(last, StableNetBase) else None


def path_of_last(model: Any) -> str:
    """Prefix of the parameters of the last step, such as ``"net__"``."""
    names = []
    while last_step(model) is not model:
        name, model = model.steps[-1]
        names.append(f"{name}__")
    return "".join(names)


def with_last(model: Any, last: Any) -> Any:
    """A pipeline of the same steps with another one at its end."""
    if not isinstance(model, Pipeline):
        return last
    changed = copy.copy(model)
    name, step = model.steps[-1]
    changed.steps = [*model.steps[:-1], (name, with_last(step, last))]
    return changed


class Recorder(BaseEstimator):
    """Stands in a network's place and keeps what it is given to fit.

    Parameters
    ----------
    net : StableNetBase
        In whose place, for what is asked of the place.
    """

    def __init__(self, net: StableNetBase) -> None:
        self.net = net

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> Recorder:
        self.given_ = (X, y, fit_params)
        return self

    def get_metadata_routing(self) -> Any:
        return self.net.get_metadata_routing()

    def __sklearn_tags__(self) -> Tags:
        return get_tags(self.net)


class _Attempt(BaseEstimator):
    """Fits a model and keeps the error, for `cross_validate` to cut the rows for it."""

    def __init__(self, model: Any, is_routing: bool) -> None:
        self.model = model
        self.is_routing = is_routing

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> _Attempt:
        self.error_: Exception | None = None
        target = () if y is None else (y,)
        with config_context(enable_metadata_routing=self.is_routing):
            try:
                self.model.fit(X, *target, **fit_params)
            except Exception as error:
                self.error_ = error
        return self

    def __sklearn_tags__(self) -> Tags:
        return get_tags(self.model)


def _no_score(estimator: Any, X: Any, y: Any = None) -> float:
    return 0.0


def _attempts(
    model: Any, X: Any, y: Any, fit_params: dict[str, Any], trains: list[np.ndarray]
) -> Iterable[tuple[_Attempt, float]]:
    """Fit a clone of the model on each part; also say how long each took."""
    # What is passed to fit has been routed already. Where one job cannot be had, as
    # within a worker of Dask, the tasks would go out to the cluster.
    is_one = effective_n_jobs(1) == 1
    here = contextlib.nullcontext() if is_one else parallel_config("sequential")
    is_routing = get_config()["enable_metadata_routing"]
    with here, config_context(enable_metadata_routing=False):
        found = cross_validate(
            _Attempt(model, is_routing),
            X,
            y,
            cv=[(train, train[:1]) for train in trains],
            params=fit_params,
            scoring=_no_score,
            n_jobs=1,
            return_estimator=True,
            error_score="raise",
        )
    return zip(found["estimator"], found["fit_time"], strict=True)


def train_share(
    settings: dict[int, Any],
    X: Any,
    y: Any,
    fit_params: dict[str, Any],
    trains: dict[int, np.ndarray],
    tasks: list[Task],
    max_memory: int | None,
    reports_path: str | None = None,
) -> Share:
    """Fit what the tasks ask for, together where that can be.

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
    trains : dict of int to ndarray
        Rows of each training part.
    tasks : list of Task
        Any of these settings on any of these parts.
    max_memory : int or None
        Bytes that training may take.
    reports_path : str or None, default=None
        Where a bar learns how far it has come.

    Returns
    -------
    Share
    """
    with (
        reported_to(reports_path),
        warnings.catch_warnings(record=True) as caught,
    ):
        prepared: dict[tuple[int, int], tuple[_Attempt, float]] = {}
        for setting in {task.setting: None for task in tasks}:
            splits = sorted({task.split for task in tasks if task.setting == setting})
            rows = [trains[split] for split in splits]
            done = _attempts(settings[setting], X, y, fit_params, rows)
            prepared |= {
                (setting, s): found for s, found in zip(splits, done, strict=True)
            }
        fits, told = _train(tasks, prepared, max_memory)
    once = {
        (type(w.message), str(w.message)): w.message
        for w in [*caught, *told]
        if isinstance(w.message, Warning)
        and not isinstance(w.message, DivergenceWarning)
    }
    return Share(fits, list(once.values()))


def _train(
    tasks: list[Task],
    prepared: dict[tuple[int, int], tuple[_Attempt, float]],
    max_memory: int | None,
) -> tuple[list[Fit], list[warnings.WarningMessage]]:
    """Train the networks on what the transformers have made of their parts."""
    users = Counter((task.setting, task.split) for task in tasks)
    jobs: dict[int, Job] = {}
    for place, task in enumerate(tasks):
        attempt, _ = prepared[task.setting, task.split]
        if attempt.error_ is None and task.net is not None:
            given = last_step(attempt.model).given_
            jobs[place] = Job(clone(task.net), *given)
    outcomes = dict(
        zip(jobs, train_together(list(jobs.values()), max_memory), strict=True)
    )
    fits: list[Fit] = []
    for place, task in enumerate(tasks):
        attempt, seconds = prepared[task.setting, task.split]
        seconds /= users[task.setting, task.split]
        outcome = outcomes.get(place)
        if outcome is None:
            advance(1)
            fits.append(_fit_of(attempt.model, attempt.error_, seconds, False))
        else:
            model = with_last(attempt.model, outcome.estimator)
            seconds += outcome.seconds
            fits.append(_fit_of(model, outcome.error, seconds, outcome.is_stacked))
    return fits, [w for outcome in outcomes.values() for w in outcome.warnings]


def _fit_of(
    model: Any, error: Exception | None, seconds: float, is_stacked: bool
) -> Fit:
    if error is None:
        return Fit(model, None, "", seconds, is_stacked)
    trace = "".join(traceback.format_exception(error))
    return Fit(None, error.with_traceback(None), trace, seconds, is_stacked)
