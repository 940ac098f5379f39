"""Time and memory of a batched grid search over learning rates.

    python -m benchmarks.search [--repeats N] [--only grid scaling memory] [--json FILE]

The grid has eight learning rates on five folds of 3 400 x 30, with two hidden layers,
ten epochs and two workers. ``BatchedGridSearchCV`` is compared with scikit-learn's
``GridSearchCV`` over skorch's net, over scikit-learn's ``MLPClassifier`` and over
``StableNetClassifier``. Wall time is measured alternately, with workers that have been
started before, and includes the refit of the best candidate. *Products* is the time of
the batched matrix products of all steps alone, on one thread.
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

from benchmarks.prediction import added_peak
from benchmarks.timing import in_turn, keep_freed_memory
from sknan import StableNetClassifier
from sknan.model_selection import BatchedGridSearchCV

N_ROWS, N_FEATURES, N_FOLDS, N_EPOCHS = 3_400, 30, 5, 10
RATES = np.logspace(-4, -2, 8).tolist()

# Lower limits of the speed relative to other searches, by width and batch size.
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
    """Return a table whose target depends on two terms and noise."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, N_FEATURES)).astype(np.float32)
    score = X[:, 0] + X[:, 1] * X[:, 2] + rng.normal(size=N_ROWS)
    return X, (score > 0).astype(np.int64)


def estimator_of(width: int, batch_size: int) -> StableNetClassifier:
    """Return the estimator of the batched search, without held-out rows."""
    return StableNetClassifier(
        module__width=width,
        batch_size=batch_size,
        max_epochs=N_EPOCHS,
        early_stopping=False,
        random_state=0,
    )


def products(width: int, batch_size: int, n_members: int) -> None:
    """Compute the matrix products of all steps of all candidates and folds."""
    n_steps = -(-N_ROWS * (N_FOLDS - 1) // N_FOLDS // batch_size) * N_EPOCHS
    shapes = [(N_FEATURES, width), (width, width), (width, 2)]
    weights = [torch.randn(n_members, n_out, n_in) for n_in, n_out in shapes]
    inputs = [torch.randn(n_members, batch_size, n_in) for n_in, _ in shapes]
    grads = [torch.randn(n_members, batch_size, n_out) for _, n_out in shapes]
    for _ in range(n_steps):
        for layer, (weight, x, grad) in enumerate(
            zip(weights, inputs, grads, strict=True)
        ):
            torch.bmm(x, weight.transpose(1, 2))
            torch.bmm(grad.transpose(1, 2), x)
            if layer:
                torch.bmm(grad, weight)


def searches(width: int, batch_size: int) -> dict[str, Callable[[], object]]:
    """Return each search as a function without arguments."""
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
    stable = estimator_of(width, batch_size)
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
    """Print the seconds of each search, also relative to the batched search."""
    found = {}
    for (width, batch_size), limits in LIMITS.items():
        functions = searches(width, batch_size)
        times = in_turn(list(functions.values()), repeats=repeats)
        seconds = dict(zip(functions, map(statistics.median, times), strict=True))
        print(f"width {width}, batch {batch_size}")
        for name, s in seconds.items():
            speed = s / seconds["batched"]
            bound = f"  (at least {limits[name]:g})" if name in limits else ""
            missed = "  missed" if speed < limits.get(name, 0.0) else ""
            print(f"  {name:<20} {s:7.2f} s  {speed:6.2f} times batched{bound}{missed}")
        found[f"{width}, {batch_size}"] = seconds
    return found


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure_scaling() -> dict[str, Any]:
    """Print the time of a candidate by the number of candidates and the width."""
    X, y = data()
    found = {}
    print("ms per candidate and fold, by number of candidates (a separate fit)")
    for width in (16, 64, 128, 256, 512):
        estimator = estimator_of(width, 128)
        separate = statistics.median(
            _seconds(lambda est=estimator: est.fit(X[::2], y[::2])) for _ in range(5)
        )
        row = {}
        for n_candidates in (4, 16, 64, 256, 1000):
            if n_candidates * width**2 > 1000 * 64**2:
                continue
            rates = {"lr": np.logspace(-4, -2, n_candidates)}
            search = BatchedGridSearchCV(estimator, rates, cv=2, refit=False)
            total = _seconds(lambda search=search: search.fit(X, y))
            row[n_candidates] = total / n_candidates / 2
        found[width] = {"alone": separate, **row}
        figures = ", ".join(f"{n}: {s * 1e3:.1f}" for n, s in row.items())
        print(f"  width {width}: {figures} ({separate * 1e3:.1f})", flush=True)
    return found


def peak_of_search(max_memory: int | None) -> int:
    """Return the peak memory of a search of 1000 candidates, without its table."""
    torch.set_num_threads(1)
    X, y = data()
    estimator = estimator_of(64, 128).set_params(max_epochs=1)
    BatchedGridSearchCV(estimator, {"lr": RATES}, cv=2, refit=False).fit(X, y)
    search = BatchedGridSearchCV(
        estimator,
        {"lr": np.logspace(-4, -2, 1000)},
        cv=2,
        refit=False,
        max_memory=max_memory,
    )
    return int(added_peak(lambda: search.fit(X, y)))


def measure_memory() -> dict[str, int]:
    """Print the peak memory of searches, each in a new process."""
    found = {}
    print("1000 candidates on two folds, width 64: peak without the table")
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
    """Run the benchmarks."""
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
