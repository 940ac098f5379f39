"""The network at the end of a pipeline: found, taken out, put in."""

from __future__ import annotations

import copy
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import Tags, get_tags

from sknan.estimators._base import StableNetBase

__all__ = ["Recorder", "final_network", "last_step", "path_of_last", "with_last"]


def last_step(model: Any) -> Any:
    """The estimator at the end of a pipeline, of pipelines in pipelines too."""
    while isinstance(model, Pipeline):
        try:
            _, model = model.steps[-1]
        except (IndexError, KeyError, TypeError, ValueError):
            return None  # scikit-learn says what is wrong with it
    return model


def final_network(model: Any) -> StableNetBase | None:
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
    net : estimator
        In whose place, for what is asked of the place.
    """

    def __init__(self, net: Any) -> None:
        self.net = net

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> Recorder:
        self.given_ = (X, y, fit_params)
        return self

    def get_metadata_routing(self) -> Any:
        return self.net.get_metadata_routing()

    def __sklearn_tags__(self) -> Tags:
        return get_tags(self.net)
