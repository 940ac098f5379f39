"""Fitted models of many kinds, and rows with every kind of unusual number."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import torch
from sklearn.pipeline import make_pipeline
from torch import nn

from sknan import (
    BatchedGridSearchCV,
    GuardedNetBinaryClassifier,
    GuardedNetClassifier,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
    TabularMLP,
    tabular_pipeline,
)

N_COLUMNS = 4
UNUSUAL = (np.nan, np.inf, -np.inf, 1e300, -3e38, 3.4e38, 1e-320, 0.0, -1.0)


class LogNetwork(nn.Module):
    """Network that is finite for positive numbers only."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.head = nn.Linear(n_features_in, n_outputs)

    def forward(self, X):
        return self.head(torch.log(X))


def clean_table(n_rows=60):
    return np.random.default_rng(0).lognormal(size=(n_rows, N_COLUMNS))


def unusual_rows(n_rows=200, dtype="float64"):
    """Return rows in which one cell in five is one of the unusual numbers."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n_rows, N_COLUMNS)) * [1.0, 1e5, 1e-6, 30.0]
    is_unusual = rng.random(X.shape) < 0.2
    X[is_unusual] = rng.choice(UNUSUAL, is_unusual.sum())
    with np.errstate(over="ignore"):
        return X.astype(dtype)


LABELS = np.where(clean_table()[:, 0] > 1, "yes", "no")
NUMBERS = 100.0 * clean_table()[:, 1]
SEVERAL = np.column_stack([LABELS == "yes", clean_table()[:, 1] > 1]).astype(int)
SETTINGS = {"max_epochs": 2, "random_state": 0, "module__width": 8}
IN_SKORCH = {
    "max_epochs": 2,
    "verbose": 0,
    "module__n_features_in": N_COLUMNS,
    "module__width": 8,
    "train_split": None,
}


def prepared(net, y, imputer=None, scaler=None):
    steps = (imputer or NaNImputer(), scaler or SafeScaler(), net)
    return make_pipeline(*steps).fit(clean_table(), y)


def classifier(**params):
    return StableNetClassifier(**{**SETTINGS, **params})


def regressor(**params):
    return StableNetRegressor(**{**SETTINGS, **params})


def ensemble(**params):
    network = classifier(early_stopping=True)
    return StableNetEnsembleClassifier(network, 2, random_state=0, **params)


def with_indicator():
    gaps = unusual_rows(60)
    steps = (NaNImputer(add_indicator=True, dtype="float32"), SafeScaler(bound=0.7))
    return make_pipeline(*steps, classifier()).fit(gaps, LABELS)


def guarded(net, codes, **params):
    steps = (NaNImputer(dtype="float32"), SafeScaler())
    net = net(TabularMLP, **IN_SKORCH, **params)
    return make_pipeline(*steps, net).fit(clean_table(), codes)


def searched():
    steps = make_pipeline(SafeScaler(), NaNImputer(), classifier())
    grid = {"stablenetclassifier__lr": [1e-3, 1e-2]}
    return BatchedGridSearchCV(steps, grid, cv=2).fit(clean_table(), LABELS)


MODELS = {
    "classes": lambda: prepared(classifier(), LABELS),
    "two classes, one output": lambda: prepared(
        classifier(criterion="binary_cross_entropy", module__n_frequencies=2), LABELS
    ),
    "several labels": lambda: prepared(classifier(), SEVERAL),
    "indicator": with_indicator,
    "marker": lambda: prepared(
        classifier(), LABELS, NaNImputer(missing_values=-1.0, strategy="mean")
    ),
    "numbers": lambda: prepared(regressor(), NUMBERS),
    "two targets, one constant": lambda: prepared(
        regressor(), np.column_stack([NUMBERS, np.ones(60)])
    ),
    "quantiles": lambda: prepared(
        regressor(criterion="quantile", criterion__quantile=[0.1, 0.5, 0.9]), NUMBERS
    ),
    "counts": lambda: prepared(regressor(criterion="poisson"), NUMBERS),
    "ensemble": lambda: prepared(ensemble(), LABELS),
    "calibrated": lambda: prepared(ensemble(calibration="temperature"), LABELS),
    "calibrated labels": lambda: prepared(ensemble(calibration="temperature"), SEVERAL),
    "ensemble of numbers": lambda: prepared(
        StableNetEnsembleRegressor(regressor(), 2, random_state=0), NUMBERS
    ),
    "guarded": lambda: guarded(
        GuardedNetClassifier,
        (LABELS == "yes").astype(int),
        criterion=nn.CrossEntropyLoss,
        module__n_outputs=2,
    ),
    "guarded, one output": lambda: guarded(
        GuardedNetBinaryClassifier,
        (LABELS == "yes").astype("float32"),
        module__n_outputs=1,
    ),
    "search": searched,
}


@cache
def model_of(name):
    return MODELS[name]()


@cache
def log_network():
    """Return a network that fails for negative numbers, of which training has one."""
    X = clean_table()
    X[3, 0] = -1.0
    return StableNetClassifier(LogNetwork, max_epochs=2, random_state=0).fit(X, LABELS)


def predicted(model, X):
    """Return probabilities, or numbers."""
    is_regressor = not hasattr(model, "predict_proba")
    return model.predict(X) if is_regressor else model.predict_proba(X)


# -- a raw table ---------------------------------------------------------------------


def raw_table(n_rows=150):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": rng.normal(40, 10, n_rows).round(),
            "income": rng.lognormal(10, 1, n_rows),
            "city": rng.choice(["Paris", " Rome", "Rome", "Oslo", "?", None], n_rows),
            # Names of values inside the ONNX graph.
            "linear": rng.choice([True, False], n_rows),
            "probabilities": 1e9 + rng.normal(size=n_rows),  # finer than float32
            "sex": rng.choice(["f", "m"], n_rows),
            "empty": np.nan,
        }
    )
    table.loc[::9, "age"] = -999
    table.loc[::11, "income"] = np.nan
    return table


@cache
def table_pipeline():
    pipeline = tabular_pipeline("classifier", preset="fast", random_state=0)
    pipeline.set_params(net__estimator__max_epochs=1)
    table = raw_table(600)
    y = np.random.default_rng(0).choice(["u", "v", "w"], len(table))
    y[table["age"].isin([34, 41, 47])] = "u"  # values that become columns
    table["income"] = table["income"].map("{:,.3f} €".format, na_action="ignore")
    return pipeline.fit(table, y)


@cache
def text_pipeline():
    """Return a pipeline of columns of text, fitted to tell all categories apart."""
    rng, n_rows = np.random.default_rng(0), 200
    cells = {
        "letter": np.array(["x", "y", "z", None], dtype=object),
        "version": ["2.0", "3.0", "beta"],
        "flag": ["true", "false", "maybe"],
        "country": ["NA", "DE", "FR", "GB"],
    }
    table = pd.DataFrame({name: rng.choice(c, n_rows) for name, c in cells.items()})
    effects = [
        table[name].map({text: i for i, text in enumerate(c)})
        for name, c in cells.items()
    ]
    net = StableNetRegressor(max_epochs=5, random_state=0)
    return tabular_pipeline(net).fit(table, np.nansum(effects, axis=0))


def table_of_texts(texts):
    """Return a table with one row for each text of each column."""
    usual = {"letter": "x", "version": "3.0", "flag": "maybe", "country": "DE"}
    rows = [{**usual, name: text} for name in texts for text in texts[name]]
    return pd.DataFrame(rows, dtype=object)


def unusual_table():
    """Return rows of the raw table with missing, infinite and unknown cells."""
    table = raw_table()
    table.loc[:20, "city"] = "Atlantis"
    table.loc[10:30, "sex"] = None
    table.loc[20:40, "age"] = np.inf
    table.loc[30:50, "income"] = 1e300
    return table
