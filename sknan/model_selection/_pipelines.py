"""Access to the network at the end of a pipeline: find, replace, record its input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import Tags, get_tags

from sknan._utils.validation import is_number
from sknan.estimators._classifier import StableNetClassifier
from sknan.estimators._ensemble import (
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
)
from sknan.estimators._regressor import StableNetRegressor

# Estimators whose networks can be trained together.
_ESTIMATORS = (
    StableNetClassifier,
    StableNetRegressor,
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
)


def last_step(model: Any) -> Any:
    """Return the last step of a pipeline, or of pipelines within pipelines."""
    while isinstance(model, Pipeline):
        try:
            _, model = model.steps[-1]
        except (IndexError, KeyError, TypeError, ValueError):
            return None  # scikit-learn raises an error about these steps
    return model


def final_network(model: Any) -> Any:
    """Return the last step of a model if it is a network or ensemble of this package.

    Returns
    -------
    estimator or None
        None also for a subclass with its own ``fit``, which has to be called.
    """
    last = last_step(model)
    return last if _has_known_fit(last) else None


def _has_known_fit(estimator: Any) -> bool:
    fit = getattr(type(estimator), "fit", None)
    return any(fit is kind.fit for kind in _ESTIMATORS)


def limit_time(net: Any, max_time: float | None) -> None:
    """Lower the ``max_time`` of a network or ensemble, unless the limit is None."""
    if max_time is None:
        return
    own = net.max_time
    if own is None or (is_number(own) and own > max_time):
        net.set_params(max_time=max(max_time, 1e-9))  # it has to be above 0


def path_of_last(model: Any) -> str:
    """Return the prefix of the last step's parameters, such as ``"net__"``."""
    names = []
    while last_step(model) is not model:
        name, model = model.steps[-1]
        names.append(f"{name}__")
    return "".join(names)


def with_last(model: Any, last: Any) -> Any:
    """Return a pipeline with the same steps except for the last one."""
    if not isinstance(model, Pipeline):
        return last
    changed = copy.copy(model)
    name, step = model.steps[-1]
    changed.steps = [*model.steps[:-1], (name, with_last(step, last))]
    return changed


def remember_transforms(model: Any) -> None:
    """Let the fitted transformers of a pipeline transform each input only once."""
    while isinstance(model, Pipeline):
        for _, step in model.steps[:-1]:
            if hasattr(step, "transform"):
                step.transform = _RememberedTransform(step.transform)
        model = model.steps[-1][1]


class _RememberedTransform:
    """Method ``transform`` of a fitted transformer that keeps its results."""

    def __init__(self, transform: Callable[..., Any]) -> None:
        self.transform = transform
        self.results: dict[int, tuple[Any, Any]] = {}

    def __call__(self, X: Any, **params: Any) -> Any:
        if params:
            return self.transform(X, **params)
        if id(X) not in self.results:
            # X is kept too, so that no other object gets its id.
            self.results[id(X)] = X, self.transform(X)
        return self.results[id(X)][1]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "results": {}}


class FitInputRecorder(BaseEstimator):
    """Stand-in for the network of a pipeline that records the input of ``fit``.

    Parameters
    ----------
    net : estimator
        Network to stand in for. Tags and metadata requests are taken from it.

    Attributes
    ----------
    fit_input_ : tuple of (X, y, dict)
        Arguments of the last call of ``fit``.
    """

    def __init__(self, net: Any) -> None:
        self.net = net

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> FitInputRecorder:
        self.fit_input_ = (X, y, fit_params)
        return self

    def get_metadata_routing(self) -> Any:
        return self.net.get_metadata_routing()

    def __sklearn_tags__(self) -> Tags:
        return get_tags(self.net)
