"""Time and memory of a batched grid search over learning rates.

    python -m benchmarks.search [--repeats N] [--only PART ...] [--json FILE]

A grid has eight learning rates on five folds of 3 400 x 30, with two hidden layers, ten
epochs and two workers. The rates of the *wild* grid reach from sensible to absurd, and
*residual* is a module of one's own with batch normalization and dropout.
``BatchedGridSearchCV`` is compared with scikit-learn's ``GridSearchCV`` over skorch's
net, over scikit-learn's ``MLPClassifier`` and over ``StableNetClassifier``. Wall time
is measured alternately, with workers that have been started before, and includes the
refit of the best candidate. *Products* is the time of the batched matrix products of
all steps alone, on one thread. *Pipeline* searches four learning rates of
``tabular_pipeline`` on a table with missing numbers, categories, dates and text.
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
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from torch import Tensor, nn

from benchmarks.prediction import added_peak
from benchmarks.timing import in_turn, keep_freed_memory, ratio_in_turn
from sknan import StableNetClassifier, tabular_pipeline
from sknan.model_selection import BatchedGridSearchCV

N_ROWS, N_FEATURES, N_FOLDS, N_EPOCHS = 3_400, 30, 5, 10
RATES = np.logspace(-4, -2, 8).tolist()
WILD_RATES = np.logspace(-4, 2, 8).tolist()


# Lower limit of the speed relative to GridSearchCV for a pipeline that ends in an
# ensemble, whose networks GridSearchCV trains together too, five at a time.
PIPELINE_LIMIT = 1.1


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


class Residual(nn.Module):
    """A layer with batch normalization and one that is added, with dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(N_FEATURES, width)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, 2)

    def forward(self, X: Tensor) -> Tensor:
        """Return logits of shape (n_samples, 2)."""
        hidden = torch.relu(self.norm(self.first(X)))
        hidden = hidden + self.dropout(torch.relu(self.second(hidden)))
        logits: Tensor = self.head(hidden)
        return logits


class Grid(NamedTuple):
    """A grid of learning rates, and what the batched search must achieve on it.

    Parameters
    ----------
    width, batch_size : int
        Size of the network and of the batches.
    limits : dict of str to float
        Lower limits of the speed relative to other searches.
    rates : list of float
        Learning rates.
    module : type
        Module of skorch's net, and of the estimator unless it is a perceptron.
    """

    width: int
    batch_size: int
    limits: dict[str, float]
    rates: list[float] = RATES
    module: type[nn.Module] = Perceptron


GRIDS = {
    "width 64, batch 128": Grid(
        64, 128, {"skorch": 11.0, "MLPClassifier": 2.0, "StableNetClassifier": 1.5}
    ),
    "width 16, batch 32": Grid(16, 32, {"skorch": 35.0}),
    "wild": Grid(
        64, 128, {"skorch": 10.0, "StableNetClassifier": 2.0}, rates=WILD_RATES
    ),
    "residual": Grid(64, 128, {"skorch": 6.0}, module=Residual),
}


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


def searches(grid: Grid) -> dict[str, Callable[[], object]]:
    """Return each search as a function without arguments."""
    X, y = data()
    width, batch_size = grid.width, grid.batch_size
    common: dict[str, Any] = {"cv": N_FOLDS, "n_jobs": 2}
    skorch = NeuralNetClassifier(
        grid.module,
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
    if grid.module is not Perceptron:
        stable.set_params(module=grid.module)
    rates = {"lr": grid.rates}
    found: dict[str, Callable[[], object]] = {
        "batched": lambda: BatchedGridSearchCV(stable, rates, **common).fit(X, y),
        "skorch": lambda: GridSearchCV(skorch, rates, **common).fit(X, y),
        "MLPClassifier": lambda: GridSearchCV(
            mlp, {"learning_rate_init": grid.rates}, **common
        ).fit(X, y),
        "StableNetClassifier": lambda: GridSearchCV(stable, rates, **common).fit(X, y),
        "products": lambda: products(width, batch_size, len(grid.rates) * N_FOLDS),
    }
    return {
        name: search
        for name, search in found.items()
        if name in ("batched", "products") or name in grid.limits
    }


def measure_grids(repeats: int) -> dict[str, Any]:
    """Print the seconds of each search, also relative to the batched search."""
    found = {}
    for title, grid in GRIDS.items():
        functions = searches(grid)
        times = in_turn(list(functions.values()), repeats=repeats, n_warm_ups=1)
        found[title] = dict(zip(functions, map(statistics.median, times), strict=True))
        print(title)
        for i, (name, seconds) in enumerate(found[title].items()):
            speed = ratio_in_turn(times[i], times[0])
            limit = grid.limits.get(name)
            bound = "" if limit is None else f"  (at least {limit:g})"
            missed = "  missed" if limit is not None and speed < limit else ""
            print(
                f"  {name:<20} {seconds:7.2f} s  {speed:6.2f} times batched"
                f"{bound}{missed}",
                flush=True,
            )
    return found


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def raw_table(n_rows: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Return a table with missing numbers, categories, dates and text."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(n_rows, 6))
    table = pd.DataFrame(numbers, columns=list("abcdef"))
    table = table.mask(rng.random(table.shape) < 0.05)
    table["city"] = rng.choice(["Berlin", "Oslo", "Paris", "Rome"], n_rows)
    table["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(
        rng.integers(0, 700, n_rows), unit="D"
    )
    words = np.array([f"word{i}" for i in range(300)])
    table["note"] = [" ".join(rng.choice(words, 6)) for _ in range(n_rows)]
    score = numbers[:, 0] + (table["city"] == "Rome") + rng.normal(size=n_rows)
    return table, (score > 0).to_numpy().astype(np.int64)


def measure_pipeline(repeats: int) -> dict[str, Any]:
    """Print the seconds of searches over a pipeline that ends in an ensemble."""
    found = {}
    model = tabular_pipeline("classifier").set_params(net__random_state=0)
    rates = {"net__estimator__lr": [3e-4, 1e-3, 3e-3, 1e-2]}
    for n_rows in (300, 1_000):
        X, y = raw_table(n_rows)
        functions = [
            lambda kind=kind, X=X, y=y: kind(model, rates, cv=N_FOLDS, n_jobs=2).fit(
                X, y
            )
            for kind in (BatchedGridSearchCV, GridSearchCV)
        ]
        batched, separate = map(statistics.median, in_turn(functions, repeats=repeats))
        speed = separate / batched
        missed = "  missed" if speed < PIPELINE_LIMIT else ""
        print(
            f"pipeline, {n_rows} rows: {batched:.2f} s, GridSearchCV {separate:.2f} s, "
            f"{speed:.2f} times batched  (at least {PIPELINE_LIMIT:g}){missed}",
            flush=True,
        )
        found[n_rows] = {"batched": batched, "GridSearchCV": separate}
    return found


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
    parts = ["grid", "pipeline", "scaling", "memory"]
    parser.add_argument("--only", nargs="*", choices=parts)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if not arguments.only or "grid" in arguments.only:
            found["grid"] = measure_grids(arguments.repeats)
        if not arguments.only or "pipeline" in arguments.only:
            found["pipeline"] = measure_pipeline(arguments.repeats)
        if not arguments.only or "scaling" in arguments.only:
            found["scaling"] = measure_scaling()
        if not arguments.only or "memory" in arguments.only:
            found["memory"] = measure_memory()
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
