"""Quality of the predictions of ``tabular_pipeline``, trees and other networks.

    python -m benchmarks.quality [--data DIR ...] [--rows N] [--peers CSV]
        [--methods NAME ...] [--sets NAME ...] [--folds N] [--seeds N]
        [--budget SECONDS] [--cache CSV] [--markdown] [--picture FILE]

*Data sets* are those of ``DIR/datasets.json`` (name, file, target, task, na_values),
read by ``pandas.read_csv``. Without ``--data``, they are data sets of scikit-learn to
which missing values, sentinels, infinities and a text column are added. ``--rows``
makes two synthetic tables of N rows instead, of which four fifths are trained on.

*sknan* and the skrub pipeline receive the raw frame. Trees receive missing values and
categories. The other methods receive imputed medians, standardized columns and one-hot
codes. A plus in the name of a method means that regression targets are standardized.

``x5`` means five models, each of which leaves out another fifth of the training rows.

All methods use the same five folds (shuffled, stratified for classes) and one thread.
``--seeds N`` repeats all of it with the seeds 0 to N - 1, which shuffle the folds and
initialize the methods. Scores are ROC-AUC (one versus rest) and log-loss, or R2 and the
mean absolute error divided by that of the median. A failure is shown as such and ranks
last. ``--budget`` ends each fit that takes more seconds of processor time, as a
failure; the networks of sknan receive four fifths of it as their ``max_time``.

The cache keeps results, which are not measured again. ``--peers`` reads results from
another file with the columns dataset, method, fold, metric, value, fit_s and error.
``--methods sknan "no embedding" ...`` runs variants of ``tabular_pipeline``.
``--picture`` draws mean ranks over fit times.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import itertools
import json
import multiprocessing
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import wilcoxon
from sklearn.base import BaseEstimator, clone
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_wine,
)
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
)
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skrub import ApplyToCols, DropUninformative
from skrub import tabular_pipeline as skrub_pipeline
from torch import nn

from sknan import (
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
    tabular_pipeline,
)
from sknan.estimators import default_network

# Metrics of each task. Higher is better for the primary one, lower for the secondary.
PRIMARY = {"classification": "auc", "regression": "r2"}
SECONDARY = {"classification": "logloss", "regression": "nmae"}

COLUMNS = [
    *("dataset", "task", "method", "fold", "seed"),
    *("metric", "value", "fit_s", "error"),
]

# One fit of a method on a table.
RUN = ["dataset", "method", "fold", "seed"]

# Names of methods in files of other results, and their names here.
ALIASES = {
    "mlp_yscaled": "mlp+",
    "skorch_yscaled": "skorch+",
    "mlp_skrub_yscaled": "mlp_skrub+",
    "hgb_dropempty": "hgb",
}


class Table(NamedTuple):
    """Data set with its task."""

    name: str
    is_regression: bool
    X: pd.DataFrame
    y: np.ndarray

    @property
    def task(self) -> str:
        """Name of the task."""
        return "regression" if self.is_regression else "classification"

    def folds(self, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the training and test rows of five folds, the same for all methods."""
        kind = KFold if self.is_regression else StratifiedKFold
        yield from kind(5, shuffle=True, random_state=seed).split(self.X, self.y)


# -- data sets -------------------------------------------------------------------------


def tables_of(folder: Path) -> list[Table]:
    """Return the data sets of a folder, except those marked as stress."""
    entries = json.loads((folder / "datasets.json").read_text())["datasets"]
    tables = []
    for entry in entries:
        if entry.get("stress"):
            continue
        frame = pd.read_csv(
            folder / entry["file"],
            keep_default_na=False,
            na_values=["", *entry["na_values"]],
        )
        target = frame.pop(entry["target"])
        is_regression = entry["task"] == "regression"
        tables.append(_table(entry["name"], is_regression, frame, target))
    return tables


def damaged_tables() -> list[Table]:
    """Return data sets of scikit-learn with typical faults of raw tables."""
    loaders: dict[str, Callable[..., Any]] = {
        "breast_cancer": load_breast_cancer,
        "wine": load_wine,
        "iris": load_iris,
        "digits": load_digits,
        "diabetes": load_diabetes,
    }
    tables = []
    for name, load in loaders.items():
        frame, target = load(return_X_y=True, as_frame=True)
        damaged = _damaged(frame)
        tables.append(_table(name, name == "diabetes", damaged, target))
    return tables


def large_tables(n_rows: int) -> list[Table]:
    """Return tables of 12 numbers and 3 categories, with thresholds and products."""
    rng = np.random.default_rng(0)
    n = rng.standard_normal((n_rows, 12))
    n[:, 1] = np.exp(1.5 * n[:, 1])
    n[:, 2] = np.round(3 * n[:, 2])
    n[:, 3] = rng.exponential(2.0, n_rows) * (rng.random(n_rows) < 0.3)
    few, some = rng.integers(0, 6, n_rows), rng.integers(0, 30, n_rows)
    skewed = rng.zipf(1.5, n_rows) % 60
    effects, slopes = rng.standard_normal(30), rng.standard_normal(60)
    signal = (
        np.sin(2 * n[:, 0])
        + 0.7 * np.log(n[:, 1]) * (n[:, 4] > 0)
        + 0.5 * (n[:, 2] > 1)
        + 0.4 * (n[:, 3] > 2)
        + 0.3 * n[:, 6] * n[:, 7]
        + 0.6 * np.isin(few, (1, 4)) * n[:, 8]
        + 0.8 * effects[some]
        + 0.5 * slopes[skewed] * n[:, 5]
    )
    frame = pd.DataFrame(n, columns=[f"n{j}" for j in range(12)])
    for name in ("n4", "n6", "n9"):
        frame.loc[rng.random(n_rows) < 0.08, name] = np.nan
    for name, codes in (("few", few), ("some", some), ("skewed", skewed)):
        frame[name] = np.char.add("level ", codes.astype(str))
    noisy = signal + 0.8 * rng.standard_normal(n_rows)
    is_high = signal + 0.8 * rng.logistic(size=n_rows) > 0.3
    return [
        _table(f"regression of {n_rows} rows", True, frame, pd.Series(noisy)),
        _table(f"classification of {n_rows} rows", False, frame, pd.Series(is_high)),
    ]


def _damaged(frame: pd.DataFrame) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    damaged = frame.astype(float).mask(rng.random(frame.shape) < 0.08)
    first, second, third, *_ = damaged.columns
    damaged.loc[rng.random(len(frame)) < 0.05, first] = -999.0
    damaged.loc[rng.random(len(frame)) < 0.01, second] = np.inf
    is_high = damaged[third] > damaged[third].median()
    damaged[third] = is_high.map({True: "high", False: "low"})
    return damaged


def _table(name: str, is_regression: bool, X: pd.DataFrame, y: pd.Series) -> Table:
    target = (
        y.to_numpy(float) if is_regression else np.unique(y, return_inverse=True)[1]
    )
    return Table(name, is_regression, X, target)


# -- methods ---------------------------------------------------------------------------


class _Net(nn.Sequential):
    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__(
            nn.Linear(n_inputs, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, n_outputs),
        )


class _SkorchMixin:
    """Mixin that sets the numbers of inputs and outputs, and the dtypes."""

    def fit(self, X: Any, y: Any) -> Any:
        is_class = isinstance(self, NeuralNetClassifier)
        n_outputs = len(np.unique(y)) if is_class else 1
        self.set_params(module__n_inputs=X.shape[1], module__n_outputs=n_outputs)  # type: ignore[attr-defined]
        target = np.asarray(y, np.int64 if is_class else np.float32)
        target = target if is_class else target.reshape(-1, 1)
        return super().fit(np.asarray(X, np.float32), target)  # type: ignore[misc]

    def predict(self, X: Any) -> Any:
        return super().predict(np.asarray(X, np.float32))  # type: ignore[misc]

    def predict_proba(self, X: Any) -> Any:
        return super().predict_proba(np.asarray(X, np.float32))  # type: ignore[misc]


class _SkorchClassifier(_SkorchMixin, NeuralNetClassifier):
    pass


class _SkorchRegressor(_SkorchMixin, NeuralNetRegressor):
    pass


def _skorch(table: Table) -> Any:
    kind = _SkorchRegressor if table.is_regression else _SkorchClassifier
    loss = nn.MSELoss if table.is_regression else nn.CrossEntropyLoss
    return kind(
        _Net,
        criterion=loss,
        optimizer=torch.optim.Adam,
        lr=1e-3,
        max_epochs=50,
        batch_size=128,
        train_split=None,
        verbose=0,
    )


def _is_text(column: pd.Series) -> bool:
    return not pd.api.types.is_numeric_dtype(column) or column.dtype == bool


def _categories(frame: pd.DataFrame) -> pd.DataFrame:
    """Convert text to categories and infinities to missing values, for trees."""
    return frame.apply(
        lambda c: c.astype("category") if _is_text(c) else c.replace([np.inf], np.nan)
    )


def _strings(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype(object).where(frame.notna(), "missing").astype(str)


def _plain_inputs(table: Table) -> Any:
    """Return a common preparation: medians, standardization and one-hot codes."""
    texts = [c for c in table.X if _is_text(table.X[c])]
    rest = [c for c in table.X if c not in texts]
    finite = FunctionTransformer(lambda X: X.replace([np.inf, -np.inf], np.nan))
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_column_transformer(
        (
            make_pipeline(finite, SimpleImputer(strategy="median"), StandardScaler()),
            rest,
        ),
        (make_pipeline(FunctionTransformer(_strings), one_hot), texts),
    )


def _on_scaled_target(model: Any, table: Table) -> Any:
    if not table.is_regression:
        return model
    return TransformedTargetRegressor(model, transformer=StandardScaler())


def _plain(table: Table, model: Any) -> Any:
    return _on_scaled_target(make_pipeline(_plain_inputs(table), model), table)


def _hgb(table: Table) -> Any:
    kind = (
        HistGradientBoostingRegressor
        if table.is_regression
        else HistGradientBoostingClassifier
    )
    # It accepts at most 255 categories, and no column without values.
    many = [c for c in table.X if _is_text(table.X[c]) and table.X[c].nunique() > 254]
    codes = OrdinalEncoder(
        handle_unknown="use_encoded_value",
        unknown_value=np.nan,
        encoded_missing_value=np.nan,
    )
    prepared = make_column_transformer(
        (codes, many),
        remainder=FunctionTransformer(_categories),
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    model = kind(categorical_features="from_dtype", random_state=0)
    return make_pipeline(ApplyToCols(DropUninformative()), prepared, model)


def _lgbm(table: Table) -> Any:
    import lightgbm

    kind = lightgbm.LGBMRegressor if table.is_regression else lightgbm.LGBMClassifier
    model = kind(n_jobs=1, random_state=0, verbose=-1)
    return make_pipeline(FunctionTransformer(_categories), model)


def _catboost(table: Table) -> Any:
    import catboost

    kind = (
        catboost.CatBoostRegressor
        if table.is_regression
        else catboost.CatBoostClassifier
    )
    texts = [c for c in table.X if _is_text(table.X[c])]
    model = kind(
        cat_features=texts,
        thread_count=1,
        random_state=0,
        verbose=0,
        allow_writing_files=False,
    )
    strings = make_column_transformer(
        (FunctionTransformer(_strings), texts),
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    return make_pipeline(strings, model)


class _Bag(BaseEstimator):
    """Mean of five models, each of which leaves out another fifth of the rows."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def fit(self, X: Any, y: Any) -> Any:
        is_class = hasattr(self.model, "predict_proba")
        folds = (StratifiedKFold if is_class else KFold)(
            5, shuffle=True, random_state=0
        )
        self.models_ = [
            clone(self.model).fit(X.iloc[rows], y[rows])
            for rows, _ in folds.split(X, y)
        ]
        return self

    def predict(self, X: Any) -> Any:
        return np.mean([model.predict(X) for model in self.models_], axis=0)

    def predict_proba(self, X: Any) -> Any:
        return np.mean([model.predict_proba(X) for model in self.models_], axis=0)


def _bag(make: Callable[[Table], Any]) -> Callable[[Table], Any]:
    return lambda table: _Bag(make(table))


def _pytabkit(name: str) -> Callable[[Table], Any]:
    def make(table: Table) -> Any:
        import pytabkit

        kind = "Regressor" if table.is_regression else "Classifier"
        model = getattr(pytabkit, f"{name}_{kind}")
        return make_pipeline(
            _plain_inputs(table), model(random_state=0, n_threads=1, device="cpu")
        )

    return make


def _mlp(table: Table) -> Any:
    return (MLPRegressor if table.is_regression else MLPClassifier)(random_state=0)


def _sknan(**changes: Any) -> Callable[[Table], Any]:
    """Return a function that makes the default pipeline with another network."""
    n_estimators = changes.pop("n_estimators", 5)

    def make(table: Table) -> Any:
        network = default_network("regressor" if table.is_regression else "classifier")
        ensemble = (
            StableNetEnsembleRegressor
            if table.is_regression
            else StableNetEnsembleClassifier
        )
        network.set_params(**changes)
        return tabular_pipeline(ensemble(network, n_estimators))

    return make


def _preset(preset: str) -> Callable[[Table], Any]:
    def make(table: Table) -> Any:
        kind = "regressor" if table.is_regression else "classifier"
        return tabular_pipeline(kind, preset=preset)

    return make


# Presets of the pipeline other than the default.
PRESETS = ["fast", "best"]

# Variants of the default pipeline, to measure the effect of each part.
VARIANTS: dict[str, dict[str, Any]] = {
    "one network": {"n_estimators": 1},
    "ten networks": {"n_estimators": 10},
    "no embedding": {"module__n_frequencies": 0},
    "one frequency": {"module__frequency_range": (0.3, 0.3)},
    "no dropout": {"module__dropout": 0.0},
    "constant rate": {
        "lr": 1e-3,
        "lr_schedule": "constant",
        "max_epochs": 200,
        "n_iter_no_change": 15,
    },
    "batches of 128": {"batch_size": 128},
    "width 256": {"module__width": 256},
    "no early stopping": {"early_stopping": False},
}

# Function that makes each method, and the package that it needs.
METHODS: dict[str, tuple[Callable[[Table], Any], str]] = {
    "sknan": (_preset("balanced"), "sknan"),
    "hgb": (_hgb, "sklearn"),
    "lgbm": (_lgbm, "lightgbm"),
    "catboost": (_catboost, "catboost"),
    "hgb x5": (_bag(_hgb), "sklearn"),
    "lgbm x5": (_bag(_lgbm), "lightgbm"),
    "linear": (
        lambda t: _plain(
            t, Ridge() if t.is_regression else LogisticRegression(max_iter=2000)
        ),
        "sklearn",
    ),
    "mlp+": (lambda t: _plain(t, _mlp(t)), "sklearn"),
    "skorch+": (lambda t: _plain(t, _skorch(t)), "skorch"),
    "mlp_skrub+": (lambda t: _on_scaled_target(skrub_pipeline(_mlp(t)), t), "skrub"),
    "realmlp_s": (_pytabkit("RealMLP_TD_S"), "pytabkit"),
    "realmlp": (_pytabkit("RealMLP_TD"), "pytabkit"),
    "tabm": (_pytabkit("TabM_D"), "pytabkit"),
    "dummy": (
        lambda t: (
            DummyRegressor() if t.is_regression else DummyClassifier(strategy="prior")
        ),
        "sklearn",
    ),
}

METHODS |= {name: (_sknan(**changes), "sknan") for name, changes in VARIANTS.items()}
METHODS |= {name: (_preset(name), "sknan") for name in PRESETS}

# Methods that are ranked. The others are only shown for comparison.
PANEL = [
    "sknan",
    "hgb",
    "lgbm",
    "catboost",
    "hgb x5",
    "lgbm x5",
    "linear",
    "skorch+",
    "realmlp_s",
    "mlp+",
    "mlp_skrub+",
    "dummy",
]


# -- scores ----------------------------------------------------------------------------


def _scores(table: Table, model: Any, test: np.ndarray) -> dict[str, float]:
    X, y = table.X.iloc[test], table.y[test]
    if table.is_regression:
        predicted = np.asarray(model.predict(X), dtype=float).reshape(-1)
        unit = np.abs(table.y - np.median(table.y)).mean()
        return {
            "r2": r2_score(y, predicted),
            "nmae": mean_absolute_error(y, predicted) / unit,
        }
    classes = np.arange(table.y.max() + 1)
    proba = np.asarray(model.predict_proba(X), dtype=float)
    proba /= proba.sum(axis=1, keepdims=True)
    y_score = proba[:, 1] if len(classes) == 2 else proba
    return {
        "auc": roc_auc_score(y, y_score, multi_class="ovr", labels=classes),
        "logloss": log_loss(y, proba, labels=classes),
    }


def _with_seed(model: Any, seed: int, budget: float | None) -> Any:
    """Set the seed of a method, and the time limit of the networks of sknan."""
    names = [n for n in model.get_params() if n.endswith("__random_state")]
    model.set_params(**dict.fromkeys(names, seed))
    if budget is not None and "net__max_time" in model.get_params():
        model.set_params(net__max_time=0.8 * budget)
    return model


def _run_of(table: Table, method: str, fold: int, seed: int) -> dict[str, Any]:
    run = dict(zip(RUN, (table.name, method, fold, seed), strict=True))
    return {**run, "task": table.task}


def _error(message: str) -> dict[str, str]:
    return {"metric": "ERROR", "error": message}


def measure(
    table: Table, method: str, fold: int, seed: int = 0, budget: float | None = None
) -> list[dict[str, Any]]:
    """Return the rows of the cache: one for each metric, or one with the error.

    With a budget, the signal of a timer ends the process of a fit that exceeds it.
    """
    make, _ = METHODS[method]
    train, test = list(table.folds(seed))[fold]
    row = _run_of(table, method, fold, seed)
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            model = _with_seed(make(table), seed, budget)
            signal.setitimer(signal.ITIMER_PROF, budget or 0.0)
            model.fit(table.X.iloc[train], table.y[train])
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            seconds = time.process_time() - start
            scores = _scores(table, model, test)
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return [{**row, **_error(message)}]
    return [
        {**row, "metric": name, "value": value, "fit_s": seconds}
        for name, value in scores.items()
    ]


def measure_within(
    budget: float, table: Table, method: str, fold: int, seed: int
) -> list[dict[str, Any]]:
    """Return the rows of :func:`measure`, or one that says that the budget ended."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        sender.send(measure(table, method, fold, seed, budget))

    process = context.Process(target=work)
    process.start()
    sender.close()  # so that the end of the process ends the wait
    try:
        rows: list[dict[str, Any]] = receiver.recv()
    except EOFError:
        row = {"dataset": table.name, "task": table.task, "method": method}
        message = f"more than {budget:g} s"
        rows = [
            {**row, "fold": fold, "seed": seed, "metric": "ERROR", "error": message}
        ]
    process.join()
    return rows


class Cache:
    """File of scores, to which each score is appended at once."""

    def __init__(self, path: Path, budget: float | None = None) -> None:
        self.path = path
        self.budget = budget
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                csv.DictWriter(file, COLUMNS).writeheader()
        self.known = {
            (row["dataset"], row["method"], int(row["fold"]), int(row["seed"]))
            for row in csv.DictReader(path.open())
        }

    def fill(self, table: Table, method: str, fold: int, seed: int) -> None:
        """Measure the scores that the file does not contain."""
        if (table.name, method, fold, seed) in self.known:
            return
        if self.budget is None:
            rows = measure(table, method, fold, seed)
        else:
            rows = measure_within(self.budget, table, method, fold, seed)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerows(rows)
        shown = ", ".join(
            f"{row['metric']} {row.get('value', row.get('error'))}" for row in rows
        )
        print(f"{table.name} {seed} fold {fold} {method}: {shown}", flush=True)


def _peers(path: Path) -> pd.DataFrame:
    """Read scores from another file, and rename the methods."""
    scores = pd.read_csv(path).assign(seed=0)
    is_class = scores["task"] != "regression"
    scores["task"] = np.where(is_class, "classification", "regression")
    scores["method"] = scores["method"].replace(ALIASES)
    # Only regression targets are standardized.
    plain = scores["method"].isin(["mlp", "skorch", "mlp_skrub"]) & is_class
    scores.loc[plain, "method"] += "+"
    return scores


def _means(scores: pd.DataFrame, metrics: dict[str, str]) -> pd.DataFrame:
    """Return the means over the folds, one row per data set, one column per method."""
    wanted = scores["metric"] == scores["task"].map(metrics)
    chosen = scores[wanted].drop_duplicates(RUN)
    means: pd.DataFrame = chosen.pivot_table(
        index="dataset", columns="method", values="value", sort=False
    )
    return means


def _print_table(
    title: str,
    table: pd.DataFrame,
    digits: int,
    markdown: bool,
    failed: set[tuple[str, str]] = frozenset(),  # type: ignore[assignment]
) -> None:
    """Print a table, with "fails" for a failure and a dash for a missing result."""
    shown = table.astype(object).copy()
    for row, column in itertools.product(table.index, table.columns):
        value = table.loc[row, column]
        missing = "fails" if (row, column) in failed else "-"
        shown.loc[row, column] = missing if pd.isna(value) else f"{value:.{digits}f}"
    print(f"\n{title}\n")
    if not markdown:
        print(shown.to_string())
        return
    print("|", " | ".join(["", *map(str, shown.columns)]), "|")
    print("|", " | ".join(["---"] * (1 + len(shown.columns))), "|")
    for name, cells in shown.iterrows():
        print("|", " | ".join([str(name), *cells]), "|")


def _ranks(means: pd.DataFrame, *, is_larger_better: Any) -> pd.Series:
    """Return mean ranks, of which 1 is the best; failures rank last."""
    sign = np.where(is_larger_better, 1.0, -1.0)[:, None]
    ranks: pd.Series = (
        (means * sign).rank(axis=1, ascending=False, na_option="bottom").mean()
    )
    return ranks


def report(
    scores: pd.DataFrame, methods: list[str], markdown: bool, picture: Path | None
) -> None:
    """Print scores, normalized scores, mean ranks and fit times."""
    first = _means(scores, PRIMARY).reindex(columns=methods)
    second = _means(scores, SECONDARY).reindex(columns=methods)
    errors = scores[(scores["metric"] == "ERROR") & scores["method"].isin(methods)]
    failed = set(zip(errors["dataset"], errors["method"], strict=True))
    _print_table("ROC-AUC, R2 (higher is better)", first, 4, markdown, failed)
    title = "Log-loss, normalized MAE (lower is better)"
    _print_table(title, second, 3, markdown, failed)
    seconds = scores.drop_duplicates(RUN).pivot_table(
        index="dataset", columns="method", values="fit_s", sort=False
    )
    timed = seconds.reindex(index=first.index, columns=methods)
    _print_table("Seconds of processor time of a fit", timed, 2, markdown, failed)
    panel = [m for m in methods if m in PANEL or m in VARIANTS or m in PRESETS]
    range_of_set = first[panel].max(axis=1) - first["dummy"]
    normalized = first[panel].sub(first["dummy"], axis=0).div(range_of_set, axis=0)
    ratios = timed.div(timed["hgb"], axis=0) if "hgb" in timed else timed
    summary = pd.DataFrame(
        {
            "mean rank": _ranks(first[panel], is_larger_better=[True] * len(first)),
            "by log-loss, MAE": _ranks(
                second[panel], is_larger_better=[False] * len(second)
            ),
            "normalized score": normalized.clip(-1, 1).fillna(-1).mean(),
            "time / hgb, median": ratios[panel].median(),
            "largest": ratios[panel].max(),
        }
    ).sort_values("mean rank")
    _print_table("Summary", summary, 2, markdown)
    if "sknan" in panel:
        title = "sknan against each method"
        _print_table(title, _comparison(scores, panel), 3, markdown)
    if picture is not None:
        _draw(summary, picture)
    for _, row in errors.drop_duplicates(["dataset", "method"]).iterrows():
        print(f"{row['method']} fails on {row['dataset']}: {row['error']}")


def _comparison(scores: pd.DataFrame, methods: list[str]) -> pd.DataFrame:
    """Return the numbers of tables that sknan wins and loses, with Wilcoxon's p.

    Worse means worse by more than a standard error of the difference over the runs.
    """
    rows: dict[str, dict[str, float]] = {m: {} for m in methods if m != "sknan"}
    for name, metrics, sign in (("", PRIMARY, 1), ("by loss: ", SECONDARY, -1)):
        wanted = scores[scores["metric"] == scores["task"].map(metrics)]
        by_run = wanted.drop_duplicates(RUN).pivot_table(
            index=["dataset", "fold", "seed"], columns="method", values="value"
        )
        for method, row in rows.items():
            margins = sign * (by_run["sknan"] - by_run[method]).dropna()
            tables = margins.groupby(level="dataset")
            mean, error = tables.mean(), tables.sem()
            row[f"{name}better"] = (mean > 0).sum()
            row[f"{name}worse"] = (mean < -error).sum()
            row[f"{name}p"] = wilcoxon(mean).pvalue
    return pd.DataFrame(rows).T


def _draw(summary: pd.DataFrame, path: Path) -> None:
    """Draw the mean ranks over the relative times, and the methods of the front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    names = {"mean rank": "AUC, R2", "by log-loss, MAE": "log-loss, absolute error"}
    for axes, (column, title) in zip(panels, names.items(), strict=True):
        shown = summary.drop(index="dummy").sort_values("time / hgb, median")
        times, ranks = shown["time / hgb, median"], shown[column]
        is_best = ranks < ranks.cummin().shift(fill_value=np.inf)
        axes.step(times[is_best], ranks[is_best], where="post", color="0.6", zorder=1)
        is_ours = [name in ("sknan", *PRESETS, *VARIANTS) for name in shown.index]
        axes.scatter(times, ranks, c=np.where(is_ours, "C1", "C0"), zorder=2)
        points = zip(shown.index, times, ranks, is_best, strict=True)
        for name, time_ratio, rank, is_on_front in points:
            axes.annotate(
                "tabular_pipeline" if name == "sknan" else name,
                (time_ratio, rank),
                xytext=(0, 7 if is_on_front else -15),
                textcoords="offset points",
                ha="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                zorder=1.5,
            )
        axes.set(xscale="log", title=f"Mean rank by {title}")
        axes.margins(0.15)
        axes.set_xticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
        axes.minorticks_off()
        axes.set_xlabel("Fit time, times HistGradientBoosting (median)")
    panels[0].invert_yaxis()
    panels[0].set_ylabel("Mean rank (1 is best)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure the missing scores, and print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS))
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budget", type=float)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folders = options.data or []
    tables = [t for folder in folders for t in tables_of(folder)]
    tables += large_tables(options.rows) if options.rows else []
    tables = tables or damaged_tables()
    tables = [t for t in tables if not options.sets or t.name in options.sets]
    peers = _peers(options.peers) if options.peers else pd.DataFrame(columns=COLUMNS)
    methods_of_peers = set(peers["method"])
    methods = options.methods or [m for m in METHODS if m not in VARIANTS]
    methods = list(dict.fromkeys([*methods, "dummy"]))  # the zero of scores
    name = "quality" if options.budget is None else f"quality_{options.budget:g}s"
    path = options.cache or Path(f"outputs/{name}.csv")
    cache = Cache(path, options.budget)
    if any(METHODS[method][1] == "sknan" for method in methods):
        few = damaged_tables()[0]  # the first fit takes longer
        METHODS["sknan"][0](few).fit(few.X[:100], few.y[:100])
    for method in methods:
        missing = importlib.util.find_spec(METHODS[method][1]) is None
        if method in methods_of_peers:
            continue
        if missing:
            print(f"{method} is omitted: {METHODS[method][1]} is not installed.")
            continue
        for table, seed in itertools.product(tables, range(options.seeds)):
            for fold in range(options.folds):
                cache.fill(table, method, fold, seed)
    measured = pd.read_csv(path)
    scores = pd.concat([measured, peers], ignore_index=True) if len(peers) else measured
    scores = scores[scores["dataset"].isin([t.name for t in tables])]
    scores = scores[scores["fold"] < options.folds]
    scores = scores[scores["seed"] < options.seeds]
    shown = [m for m in METHODS if (scores["method"] == m).any()]
    report(scores, shown, options.markdown, options.picture)


if __name__ == "__main__":
    main()
