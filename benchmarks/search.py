"""What a grid search of learning rates costs, against separate fits.

    python -m benchmarks.search [--repeats N] [--only grid scaling memory] [--json FILE]

Eight learning rates on five folds of 3 400 x 30, two hidden layers, ten epochs, two
workers, wall time in turn: our batched search against scikit-learn's ``GridSearchCV``
over skorch's net, scikit-learn's ``MLPClassifier`` and our own estimator. The workers
are warm, and the best is refitted on all sides. *Products* are the batched matrix
products of all steps alone, on one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from torch import nn

from benchmarks.prediction import peak_beside
from benchmarks.timing import in_turn, keep_freed_memory
from sknan import StableNetClassifier
from sknan.model_selection import BatchedGridSearchCV

N_ROWS, N_FEATURES, N_FOLDS, N_EPOCHS = 3_400, 30, 5, 10
RATES = np.logspace(-4, -2, 8).tolist()

# (width, batch): how many times as fast as each peer the search must be.
LIMITS: dict[tuple[int, int], dict[str, float]] = {
    (64, 128): {"skorch": 10.0, "MLPClassifier": 2.0, "StableNetClassifier": 1.5},
    (16, 32): {"skorch": 25.0},
}


class Perceptron(nn.Sequential):
    """Two hidden layers with ReLU and a logit for each of two classes."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(N_FEATURES, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 2),
        )


def data() -> tuple[np.ndarray, np.ndarray]:
    """A table that can be learnt, but not by heart."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, N_FEATURES)).astype(np.float32)
    score = X[:, 0] + X[:, 1] * X[:, 2] + rng.normal(size=N_ROWS)
    return X, (score > 0).astype(np.int64)


def ours(width: int, batch_size: int) -> StableNetClassifier:
    """Our estimator, as all others without a hold-out."""
    return StableNetClassifier(
        module__width=width,
        batch_size=batch_size,
        max_epochs=N_EPOCHS,
        early_stopping=False,
        random_state=0,
    )


def products(width: int, batch_size: int, n_slices: int) -> None:
    """The batched products of all steps of all candidates and folds."""
    n_steps = -(-N_ROWS * (N_FOLDS - 1) // N_FOLDS // batch_size) * N_EPOCHS
    shapes = [(N_FEATURES, width), (width, width), (width, 2)]
    weights = [torch.randn(n_slices, n_out, n_in) for n_in, n_out in shapes]
    inputs = [torch.randn(n_slices, batch_size, n_in) for n_in, _ in shapes]
    grads = [torch.randn(n_slices, batch_size, n_out) for _, n_out in shapes]
    for _ in range(n_steps):
        for layer, (weight, x, grad) in enumerate(
            zip(weights, inputs, grads, strict=True)
        ):
            torch.bmm(x, weight.transpose(1, 2))
            torch.bmm(grad.transpose(1, 2), x)
            if layer:
                torch.bmm(grad, weight)


def ways(width: int, batch_size: int) -> dict[str, Callable[[], object]]:
    """Each search, as a function without arguments."""
    X, y = data()
    common: dict[str, Any] = {"cv": N_FOLDS, "n_jobs": 2}
    skorch = NeuralNetClassifier(
        Perceptron,
        module__width=width,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        optimizer__fused=True,
        max_epochs=N_EPOCHS,
        batch_size=batch_size,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )
    mlp = MLPClassifier(
        (width, width),
        batch_size=batch_size,
        max_iter=N_EPOCHS,
        tol=0.0,
        n_iter_no_change=N_EPOCHS,
        random_state=0,
    )
    stable = ours(width, batch_size)
    rates = {"lr": RATES}
    return {
        "batched": lambda: BatchedGridSearchCV(stable, rates, **common).fit(X, y),
        "skorch": lambda: GridSearchCV(skorch, rates, **common).fit(X, y),
        "MLPClassifier": lambda: GridSearchCV(
            mlp, {"learning_rate_init": RATES}, **common
        ).fit(X, y),
        "StableNetClassifier": lambda: GridSearchCV(stable, rates, **common).fit(X, y),
        "products": lambda: products(width, batch_size, len(RATES) * N_FOLDS),
    }


def measure_grids(repeats: int) -> dict[str, Any]:
    """Seconds of each search, and how many times as fast ours is."""
    found = {}
    for (width, batch_size), limits in LIMITS.items():
        its_ways = ways(width, batch_size)
        times = in_turn(list(its_ways.values()), repeats=repeats)
        seconds = dict(zip(its_ways, map(statistics.median, times), strict=True))
        print(f"width {width}, batch {batch_size}")
        for name, s in seconds.items():
            speed = s / seconds["batched"]
            bound = f"  (at least {limits[name]:g})" if name in limits else ""
            missed = "  missed" if speed < limits.get(name, 0.0) else ""
            print(f"  {name:<20} {s:7.2f} s  {speed:6.2f} times ours{bound}{missed}")
        found[f"{width}, {batch_size}"] = seconds
    return found


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure_scaling() -> dict[str, Any]:
    """How the price of a candidate falls with their number, by width."""
    X, y = data()
    found = {}
    print("ms for each candidate and fold, by number of candidates (one alone)")
    for width in (16, 64, 128, 256, 512):
        alone = ours(width, 128)
        by_itself = statistics.median(
            _seconds(lambda est=alone: est.fit(X[::2], y[::2])) for _ in range(5)
        )
        row = {}
        for n_candidates in (4, 16, 64, 256, 1000):
            if n_candidates * width**2 > 1000 * 64**2:
                continue
            rates = {"lr": np.logspace(-4, -2, n_candidates)}
            search = BatchedGridSearchCV(alone, rates, cv=2, refit=False)
            whole = _seconds(lambda search=search: search.fit(X, y))
            row[n_candidates] = whole / n_candidates / 2
        found[width] = {"alone": by_itself, **row}
        figures = ", ".join(f"{n}: {s * 1e3:.1f}" for n, s in row.items())
        print(f"  width {width}: {figures} ({by_itself * 1e3:.1f})", flush=True)
    return found


def peak_of_search(max_memory: int | None) -> int:
    """Bytes that a search of 1000 candidates takes beside its table."""
    torch.set_num_threads(1)
    X, y = data()
    estimator = ours(64, 128).set_params(max_epochs=1)
    BatchedGridSearchCV(estimator, {"lr": RATES}, cv=2, refit=False).fit(X, y)
    search = BatchedGridSearchCV(
        estimator,
        {"lr": np.logspace(-4, -2, 1000)},
        cv=2,
        refit=False,
        max_memory=max_memory,
    )
    return int(peak_beside(lambda: search.fit(X, y)))


def measure_memory() -> dict[str, int]:
    """Peaks of searches, each in a process of its own."""
    found = {}
    print("1000 candidates on two folds, width 64: peak beside the table")
    for bound in (None, 500, 200, 100, 50):
        max_memory = None if bound is None else bound * 10**6
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[str(bound)] = pool.apply(peak_of_search, (max_memory,))
        peak = found[str(bound)] / 1e6
        name = "no max_memory" if bound is None else f"max_memory of {bound} MB"
        missed = "  missed" if bound is not None and peak > bound else ""
        print(f"  {name:<24}{peak:7.0f} MB{missed}", flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each search")
    parser.add_argument("--only", nargs="*", choices=["grid", "scaling", "memory"])
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if not arguments.only or "grid" in arguments.only:
            found["grid"] = measure_grids(arguments.repeats)
        if not arguments.only or "scaling" in arguments.only:
            found["scaling"] = measure_scaling()
        if not arguments.only or "memory" in arguments.only:
            found["memory"] = measure_memory()
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
