"""Held-out loss for several values of one option of the networks.

    python -m benchmarks.options lr 1e-3 auto --data DIR [--models MODEL ...]
        [--seeds N] [--rows N]

*Data sets* are those of ``benchmarks.quality``, with at most ``--rows`` rows. A seed
draws them, holds out 30 %, and is the ``random_state`` of the networks. The preparation
is that of ``tabular_pipeline``. The *models* are the estimators with default settings
(``estimator``), and one network (``network``) or the ensemble (``ensemble``) of
``tabular_pipeline``. The first value is compared with each other one: the mean loss
(log-loss, or squared error divided by the variance of the target), and the ratio of
losses. The learning rates that were used are shown for ``lr``.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from benchmarks.quality import Table, damaged_tables, tables_of
from sknan import (
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
    tabular_pipeline,
)
from sknan._engine.jobs import Job, train_together
from sknan.estimators import default_network

_KINDS = {
    "classifier": (StableNetClassifier, StableNetEnsembleClassifier),
    "regressor": (StableNetRegressor, StableNetEnsembleRegressor),
}


def _value(text: str) -> Any:
    if text == "None":
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _estimator(model: str, task: str, option: str, value: Any, seed: int) -> Any:
    single, ensemble = _KINDS[task]
    if model == "estimator":
        return single(random_state=seed, **{option: value})
    network = default_network(task).set_params(random_state=seed, **{option: value})
    return network if model == "network" else ensemble(network, random_state=seed)


def _loss(model: Any, X: Any, y: np.ndarray) -> float:
    if hasattr(model, "predict_proba"):
        return float(log_loss(y, model.predict_proba(X), labels=model.classes_))
    return float(np.mean((y - model.predict(X)) ** 2) / np.var(y))


def measure(
    table: Table, models: list[str], option: str, values: list[Any], seed: int, n: int
) -> list[dict[str, Any]]:
    """Return one row for each model and value.

    Parameters
    ----------
    table : Table
        Data set.
    models : list of str
        Models to fit.
    option : str
        Parameter of the networks.
    values : list of object
        Its values, which are trained together.
    seed : int
        Seed of rows and networks.
    n : int
        Largest number of rows.

    Returns
    -------
    list of dict
    """
    task = "regressor" if table.is_regression else "classifier"
    y = np.asarray(table.y)
    classes = None if table.is_regression else y
    rows = np.arange(len(y))
    if len(y) > n:
        rows, _ = train_test_split(
            rows, train_size=n, random_state=seed, stratify=classes
        )
    train, test = train_test_split(
        rows,
        test_size=0.3,
        random_state=seed,
        stratify=None if classes is None else classes[rows],
    )
    prepare = tabular_pipeline(task, random_state=seed)[:-1]
    X = prepare.fit_transform(table.X.iloc[train], y[train])
    X_test = prepare.transform(table.X.iloc[test])
    results = []
    for model in models:
        jobs = [
            Job(_estimator(model, task, option, value, seed), X, y[train], {})
            for value in values
        ]
        for value, outcome in zip(values, train_together(jobs), strict=True):
            fitted = outcome.estimator
            results.append(
                {
                    "table": table.name,
                    "model": model,
                    "seed": seed,
                    "value": str(value),
                    "loss": _loss(fitted, X_test, y[test]),
                    "lr": getattr(fitted, "lr_", np.nan),
                    "seconds": outcome.seconds,
                }
            )
    return results


def report(results: pd.DataFrame, values: list[str]) -> None:
    """Print losses, ratios to the first value, and learning rates, as Markdown.

    Parameters
    ----------
    results : DataFrame
        Rows of :func:`measure`.
    values : list of str
        Values in their order.
    """
    for model, of_model in results.groupby("model", sort=False):
        means = of_model.pivot_table("loss", "table", "value", sort=False)[values]
        ratios = means[values[1:]].div(means[values[0]], axis=0)
        shown = means.join(ratios, rsuffix=" (ratio)").round(3)
        print(f"\n{model}\n\n| table | {' | '.join(shown.columns)} |")
        print("| --- " * (len(shown.columns) + 1) + "|")
        for name, row in shown.iterrows():
            print(f"| {name} | {' | '.join(f'{v:.3f}' for v in row)} |")
        for value in values[1:]:
            n_best = int((ratios[value] <= 1.0).sum())
            mean = float(np.exp(np.log(ratios[value]).mean()))
            print(
                f"{value}: no worse on {n_best} of {len(ratios)}, mean ratio {mean:.4f}"
            )
        rates = of_model.pivot_table("lr", "table", ["value", "seed"], sort=False)
        print(rates.to_string(float_format="{:.2g}".format))
        print(of_model.groupby("value")["seconds"].sum().round(1).to_dict())


def main() -> None:
    """Parse the arguments, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("option")
    parser.add_argument("values", nargs="+")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--models", nargs="+", default=["network", "ensemble"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tables = tables_of(args.data) if args.data else damaged_tables()
    values, results = [_value(text) for text in args.values], []
    for table in tables:
        for seed in range(args.seeds):
            found = measure(table, args.models, args.option, values, seed, args.rows)
            results += found
            print(table.name, seed, *(f"{r['loss']:.4f}" for r in found), flush=True)
    report(pd.DataFrame(results), [str(value) for value in values])


if __name__ == "__main__":
    main()
