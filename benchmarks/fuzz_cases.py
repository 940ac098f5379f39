"""Random estimators, parameters, tables and targets for `benchmarks.fuzz`.

The values of a parameter come from its type and the names in its documentation, so that
a new parameter is drawn without a change of this file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import get_scorer_names
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit, TimeSeriesSplit
from sklearn.pipeline import make_pipeline
from skorch.callbacks import EarlyStopping, GradientNormClipping

import sknan
from benchmarks.fuzz_networks import (
    LAYERS,
    LOSSES,
    OPERATIONS,
    OPTIMIZERS,
    ByHand,
    Drawn,
)
from benchmarks.fuzz_tables import RandomTable
from sknan.preprocessing import TableCleaner

ENTRIES: dict[str, Any] = {
    name: entry
    for name, entry in {**vars(sknan), "TableCleaner": TableCleaner}.items()
    if isinstance(entry, type) and hasattr(entry, "fit") and "Mixin" not in name
} | {"tabular_pipeline": sknan.tabular_pipeline}

# Largest values of parameters that decide about the time of a fit. 0 keeps the default.
COSTLY = {
    "max_epochs": 3, "n_estimators": 3, "n_iter": 2, "cv": 3, "n_jobs": 0, "verbose": 0,
    "compile": 0, "num_threads": 0, "width": 16, "depth": 3, "n_frequencies": 4,
}  # fmt: skip

EXTREME = [0.0, 1.0, -1.0, 1e-300, 1e-6, 0.5, 1e6, 1e30, 1e300, np.nan, np.inf]
INVALID = ["nonsense", -1, 0, 2.5, np.nan, None, True, [], {}, 1j, (), "auto"]
# Fixed values of parameters whose values are objects.
OBJECTS: dict[str, list[Any]] = {
    "module": [None],
    "lr": ["auto", *[1e-5, 1e-3, 1e-2, 1.0, 1e4, 1e30] * 4],
    "max_time": [None, 1e-6, 1e300],
    "callbacks": [None, [EarlyStopping("train_loss")], [GradientNormClipping(1.0)]],
    "class_weight": [None, "balanced", {0: 1.0, 1: 5.0}],
    "validation_split": [KFold(3), GroupKFold(2), TimeSeriesSplit(3), ShuffleSplit(1)],
    "scoring": [None, "loss", "neg_log_loss", "roc_auc", "r2", *get_scorer_names()],
    "device": ["cpu", "auto"],
    "strategy": ["auto", "mean", "median", "zero", "most_frequent", "constant", np.max],
    "fill_value": [None, 0, -1.5, 1e300, "missing", np.nan, np.inf, True],
    "missing_values": [np.nan, None, pd.NA, 0, -1.0, "?"],
    "sentinels": ["auto", None, [-999], {"a": [0.0]}, ["?"]],
}


def documented(entry: Any) -> dict[str, tuple[str, str]]:
    """Return type and description of the parameters in a docstring of numpydoc."""
    lines = inspect.getdoc(entry) or ""
    section = re.search(r"\nParameters\n-+\n(.*?)(?:\n\n\w[\w ]*\n---|\Z)", lines, re.S)
    found = re.findall(r"^(\w+) : (.+)\n((?:(?: {4}.*)?\n?)*)", section[1], re.M)
    return {name: (kind, text) for name, kind, text in found}


class Draw:
    """Random choices of one case.

    Parameters
    ----------
    number : int
        Seed of all choices; the kind of the estimator follows from it, too.
    """

    def __init__(self, number: int) -> None:
        self.rng = np.random.default_rng(number)
        self.name = list(ENTRIES)[number % len(ENTRIES)]
        self.entry = ENTRIES[self.name]
        self.is_classifier = "Classifier" in self.name or (
            "Regressor" not in self.name and self.maybe(0.5)
        )
        # Invalid parameters and unusable data; most other cases can be fitted.
        self.is_invalid = self.maybe(0.25)

    def one_of(self, things: Sequence[Any]) -> Any:
        """Return one of some things."""
        return things[int(self.rng.integers(len(things)))]

    def maybe(self, chance: float) -> bool:
        """Return True with a chance."""
        return bool(self.rng.random() < chance)

    def params(self, entry: Any, prefix: str = "", **given: Any) -> dict[str, Any]:
        """Return some parameters with values of their documented types."""
        parameters = inspect.signature(entry).parameters
        drawn = {}
        for name, described in documented(entry).items():
            if name not in given and (name in COSTLY or self.maybe(0.12)):
                default = parameters[name].default
                drawn[f"{prefix}{name}"] = self.value(name, *described, default)
        return {**given, **drawn}

    def value(self, name: str, kind: str, text: str, default: Any) -> Any:
        """Return a value of a documented type, or seldom an invalid one."""
        if name in COSTLY:
            largest = COSTLY[name]
            return int(self.rng.integers(1, largest + 1)) if largest else default
        if self.is_invalid and self.maybe(0.1):
            return self.one_of(INVALID + EXTREME)
        if name == "criterion":
            return self.criterion(text)
        if name == "optimizer":
            return self.one_of([default, self.one_of(OPTIMIZERS)[0]])
        if name in OBJECTS:
            return self.one_of(OBJECTS[name])
        kind = kind.partition(", default=")[0]
        choices: list[Any] = re.findall(r'"([^"]+)"', kind)
        words = set(re.findall(r"\w+", re.sub(r'"[^"]+"', "", kind)))
        choices += re.findall(r'``"([^"]+)"``', text) if "str" in words else []
        is_usual = isinstance(default, (int, float)) and 0 < abs(default) < 1e15
        number = default if is_usual else 1.0
        if "float" in words:
            scaled = number * 10.0 ** self.rng.uniform(-2, 2)
            choices += [
                min(scaled, float(self.rng.random())) if number <= 1 else scaled
            ]
        if "int" in words:
            choices += [
                int(self.rng.integers(1, 2 * abs(number) + 2)) for _ in range(3)
            ]
            choices += [10**9]
        if "bool" in words:
            choices += [True, False]
        if "two floats" in kind:
            choices = [tuple(self.rng.uniform(0, 100, 2).round(1).tolist())]
        if "RandomState" in words:
            return int(self.rng.integers(100))  # None would differ from run to run
        return self.one_of(choices) if choices else default

    def criterion(self, text: str = "") -> Any:
        """Return a loss by name, a class of torch, or a loss by hand."""
        of_torch, by_hand = LOSSES["classes" if self.is_classifier else "values"]
        names = re.findall(r'``"(\w+)"``', text)
        if names and self.maybe(0.6):
            return self.one_of(names)
        return (
            self.one_of(of_torch) if self.maybe(0.5) else ByHand(self.one_of(by_hand))
        )

    def network(self) -> dict[str, Any]:
        """Return a random network and its parameters."""
        names = [*LAYERS, *OPERATIONS]
        chain = [self.one_of(names) for _ in range(int(self.one_of([0, 1, 1, 2, 3])))]
        return {
            "module": Drawn,
            "module__chain": tuple(chain),
            "module__gain": self.one_of([1.0, 1.0, 1.0, 1.0, 0.0, 30.0, 1e6]),
            "module__is_flat": self.maybe(0.3),
            "module__is_frozen": self.maybe(0.03),
        }

    def net(self) -> Any:
        """Return an estimator with the default network or a random one."""
        kind = "Classifier" if self.is_classifier else "Regressor"
        entry = ENTRIES[f"StableNet{kind}"]
        params = self.params(entry, random_state=0)
        if self.maybe(0.5):
            return entry(**{**params, **self.network()})
        own = self.params(
            sknan.TabularMLP,
            "module__",
            n_features_in=0,
            n_outputs=0,
            numeric_columns=0,
        )
        own = {name: value for name, value in own.items() if "__" in name}
        return entry(**{**params, **own})

    def guarded_net(self, X: np.ndarray) -> Any:
        """Return one of skorch's nets under guard."""
        optimizer, options = self.one_of(OPTIMIZERS)
        is_binary = "Binary" in self.name
        exponent = (
            self.rng.uniform(-6, 0) if self.maybe(0.5) else self.rng.uniform(0, 38)
        )
        return self.entry(
            **self.params(sknan.GuardMixin),
            **self.network(),
            **{f"optimizer__{name}": value for name, value in options.items()},
            module__n_features_in=X.shape[1],
            module__n_outputs=1 if is_binary or not self.is_classifier else 2,
            criterion=torch.nn.BCEWithLogitsLoss if is_binary else self.criterion(),
            optimizer=optimizer,
            lr=float(10.0**exponent),
            max_epochs=int(self.rng.integers(1, 4)),
            batch_size=self.one_of([4, 8, 32]),
            train_split=None,
            iterator_train__shuffle=self.maybe(0.5),
            verbose=0,
        )

    def model(self, X: Any) -> Any:
        """Return the estimator of the case."""
        if self.name.startswith("Guarded"):
            return self.guarded_net(X)
        if self.name in ("NaNImputer", "SafeScaler", "TableCleaner"):
            return self.entry(**self.params(self.entry))
        net = model = self.net()
        if "Ensemble" in self.name:
            return self.entry(**self.params(self.entry, estimator=net, random_state=0))
        if self.name == "tabular_pipeline":
            return self.entry(
                **self.params(self.entry, estimator=net, preset="balanced")
            )
        if self.maybe(0.7):
            imputer = sknan.NaNImputer(**self.params(sknan.NaNImputer))
            scaler = sknan.SafeScaler(**self.params(sknan.SafeScaler))
            model = make_pipeline(imputer, scaler, net)
        if not self.name.startswith("Batched"):
            return model
        prefix = "" if model is net else f"{type(net).__name__.lower()}__"
        known = documented(type(net))
        grid = {}
        for name in self.rng.choice(sorted({*known} - {*COSTLY, "module"}), 2):
            default = getattr(net, name)
            grid[f"{prefix}{name}"] = [default, self.value(name, *known[name], default)]
        space = "param_distributions" if "Random" in self.name else "param_grid"
        # Errors of a candidate are not hidden behind a score.
        given = {"estimator": model, space: grid, "cv": 2, "error_score": "raise"}
        return self.entry(**self.params(self.entry, **given))

    def fit_params(self, model: Any, n_rows: int) -> dict[str, Any]:
        """Return arguments of ``fit`` besides the table and the target."""
        if not type(model).__name__.startswith("StableNet"):
            return {}
        params: dict[str, Any] = {}
        if self.maybe(0.2):
            weights = self.rng.choice([0.0, 1.0, 3.0, 1e-30, 1e30], size=n_rows)
            weights[0] = self.one_of([1.0, 1.0, np.nan, -1.0])
            params["sample_weight"] = weights
        if self.maybe(0.1):
            params["groups"] = self.rng.integers(4, size=n_rows)
        return params

    def data(self) -> tuple[Any, Any]:
        """Return a table and a target."""
        is_cleaned = self.name not in ("StableNetClassifier", "StableNetRegressor")
        is_cleaned &= not self.name.startswith("Guarded")
        table = RandomTable(self.rng, self.maybe(0.7 if is_cleaned else 0.1))
        is_unusual = self.is_invalid and self.maybe(0.5)
        if self.is_classifier:
            y = table.labels(is_unusual)
        else:
            y = table.numbers(is_unusual)
        if not self.name.startswith("Guarded"):
            reads_text = self.name in ("tabular_pipeline", "TableCleaner", "NaNImputer")
            has_text = self.maybe(0.6 if reads_text else 0.03)
            is_sparse = self.name == "NaNImputer" or self.is_invalid
            return table.contained(has_text, is_sparse), y
        # skorch passes arrays to torch as they are.
        with np.errstate(over="ignore"):
            X = table.X.astype("float32")
            if not self.is_classifier:
                return X, table.values.astype("float32")[:, None]
        codes = (table.values > 0).astype("int64")
        return X, codes.astype("float32") if "Binary" in self.name else codes
