"""Every parameter of every estimator is named when its value is none at all."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest
from torch import nn

import sknan
from sknan import StableNetRegressor
from sknan.preprocessing import TableCleaner

X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
Y = X[:, :1] - X[:, 1:2]
LABELS = np.arange(12) % 2

ODD = {"an array": np.ones(2), "NA": pd.NA, "an object": object()}

# Parameters that arrays, NA or any object may be given for.
LEGAL = {
    ("BatchedGridSearchCV", "cv"): "any iterable of splits",
    ("BatchedHalvingSearchCV", "cv"): "any iterable of splits",
    ("BatchedRandomizedSearchCV", "cv"): "any iterable of splits",
    ("GuardedNetClassifier", "classes"): "an array of labels",
    ("NaNImputer", "fill_value"): "read by strategy='constant' only",
    ("NaNImputer", "missing_values"): "NA is a missing value",
    ("TableCleaner", "sentinels"): "an array of values",
}


def arguments_of(cls):
    name = cls.__name__
    if name.startswith("Batched"):
        space = "param_distributions" if "Randomized" in name else "param_grid"
        return {"estimator": StableNetRegressor(), space: {"lr": [0.1, 0.2]}}
    if name.startswith("Guarded"):
        return {"module": nn.Linear(3, 1), "criterion": nn.MSELoss, "verbose": 0}
    return {}


def estimators():
    found = [getattr(sknan, name) for name in sknan.__all__] + [TableCleaner]
    return [
        cls
        for cls in found
        if isinstance(cls, type)
        and hasattr(cls, "fit")
        and cls.__name__ != "GuardMixin"
    ]


CASES = [
    (cls, parameter.name)
    for cls in estimators()
    for parameter in inspect.signature(cls).parameters.values()
    if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    and (cls.__name__, parameter.name) not in LEGAL
]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(("cls", "name"), CASES)
def test_a_message_names_the_parameter(cls, name, odd):
    targets = LABELS if "Classifier" in cls.__name__ else Y
    with pytest.raises((TypeError, ValueError)) as caught:
        cls(**arguments_of(cls) | {name: ODD[odd]}).fit(X, targets)
    assert name in str(caught.value)
    assert "ambiguous" not in str(caught.value)
