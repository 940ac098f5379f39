"""Growth of training time and memory with the size of the table and the network.

    python -m benchmarks.scaling [--only rows columns widths memory] [--quick]
                                 [--json FILE]

A multi-layer perceptron with two hidden layers is trained by StableNetClassifier, with
its guard, a cosine schedule and clipping by norm, and by the loop that an expert writes
by hand (`benchmarks.training.expert`). Times are medians of processor times on one
thread, of runs in turn. The time of an epoch of StableNetClassifier is the difference
of a fit of several epochs and a fit of one, divided by the number of additional epochs;
the rest of a fit is its fixed cost. The time of an epoch of the expert's loop is its
total time divided by the number of epochs. Memory is the peak of a new
process that trains, minus the memory before (Linux). Before, the process has the table,
and has trained on a few rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from benchmarks.prediction import added_peak
from benchmarks.timing import (
    in_a_process,
    in_turn,
    keep_freed_memory,
    ratio_in_turn,
)
from benchmarks.training import Perceptron, expert
from sknan import NaNImputer, SafeScaler, StableNetClassifier

# Number of steps in a fit of a network of width 64. The number of epochs is at least 2
# and at most MOST_EPOCHS.
N_STEPS, N_STEPS_QUICK, MOST_EPOCHS = 3000, 400, 100

# Number of cells of the largest table of many columns: 200 MB in float32.
MOST_CELLS = 5 * 10**7


class Size(NamedTuple):
    """Size of a table, of a network, and of the batches."""

    rows: int
    columns: int
    width: int
    batch_size: int = 256

    @property
    def steps(self) -> int:
        """Number of steps in an epoch."""
        return -(-self.rows // self.batch_size)


def series(*, quick: bool) -> dict[str, list[Size]]:
    """Return lists of sizes in which one quantity grows."""
    rows = [10**3, 10**4, 10**5] + ([] if quick else [10**6, 10**7])
    columns = [10, 30, 100] + ([] if quick else [300, 1000, 3000, 10_000, 20_000])
    widths = [16, 64, 256] + ([] if quick else [512, 1024])
    n = 5_000 if quick else 50_000
    return {
        "rows": [Size(n_rows, 20, 64) for n_rows in rows],
        "columns": [Size(min(n, MOST_CELLS // k), k, 64) for k in columns],
        "widths": [Size(n // 2, 20, width) for width in widths],
    }


def data(n_rows: int, n_columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a table and noisy labels, which a network can learn only in part."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, n_columns), dtype=np.float32)
    score = X[:, 0] + X[:, 1] * X[:, 2] + rng.standard_normal(n_rows, dtype=np.float32)
    return X, (score > 0).astype(np.int64)


# -- time ----------------------------------------------------------------------------


def estimator(width: int, batch_size: int, epochs: int, **options: Any) -> Any:
    """Return a StableNetClassifier with the network of the expert's loop."""
    settings: dict[str, Any] = {
        "module__width": width,
        "batch_size": batch_size,
        "max_epochs": epochs,
        "early_stopping": False,
        "random_state": 0,
        **options,
    }
    return StableNetClassifier(Perceptron, **settings)


def measure_time(
    sizes: list[Size], repeats: int, n_steps: int
) -> list[dict[str, float]]:
    """Print and return the time of an epoch and of the rest of a fit, by size."""
    print(
        f"{'rows':>9}{'columns':>8}{'width':>6}{'epochs':>7}{'epoch s':>9}"
        f"{'us/step':>9}{'ns/row':>8}{'expert us/step':>15}{'ratio':>7}{'fixed ms':>10}"
        f"{'with hold-out':>14}{'in epochs':>11}"
    )
    found = []
    for size in sizes:
        row = _time_of(size, repeats, n_steps)
        found.append({**size._asdict(), **row})
        print(
            f"{size.rows:>9}{size.columns:>8}{size.width:>6}{row['epochs']:>7}"
            f"{row['epoch_s']:>9.3f}{row['epoch_s'] / size.steps * 1e6:>9.0f}"
            f"{row['epoch_s'] / size.rows * 1e9:>8.0f}"
            f"{row['expert_s'] / size.steps * 1e6:>15.0f}{row['ratio']:>7.2f}"
            f"{row['fixed_s'] * 1e3:>10.1f}{row['fixed_held_out_s'] * 1e3:>14.1f}"
            f"{row['fixed_s'] / row['epoch_s']:>11.2f}",
            flush=True,
        )
    return found


def _time_of(size: Size, repeats: int, n_steps: int) -> dict[str, float]:
    X, y = data(size.rows, size.columns)
    n_steps_here = n_steps * 64**2 // max(size.width, 64) ** 2
    epochs = min(MOST_EPOCHS, max(2, n_steps_here // size.steps))
    is_long = size.steps > n_steps

    def fit(n_epochs: int, *, holds_out: bool = False) -> None:
        net = estimator(size.width, size.batch_size, n_epochs, early_stopping=holds_out)
        net.fit(X, y)

    longest, shortest, held_out, by_expert = in_turn(
        [
            lambda: fit(epochs),
            lambda: fit(1),
            lambda: fit(1, holds_out=True),
            lambda: expert(X, y, size.width, size.batch_size, epochs),
        ],
        repeats=min(repeats, 3) if is_long else repeats,
        n_warm_ups=0 if is_long else 1,
        clock=time.process_time,
    )
    pairs = zip(longest, shortest, strict=True)
    per_epoch = [(long - short) / (epochs - 1) for long, short in pairs]
    expert_s = [seconds / epochs for seconds in by_expert]
    epoch_s = statistics.median(per_epoch)
    return {
        "epochs": epochs,
        "epoch_s": epoch_s,
        "expert_s": statistics.median(expert_s),
        "ratio": ratio_in_turn(per_epoch, expert_s),
        "fixed_s": statistics.median(shortest) - epoch_s,
        "fixed_held_out_s": statistics.median(held_out) - 0.9 * epoch_s,
    }


# -- memory --------------------------------------------------------------------------

# Function of a table, labels, a width and a batch size, which trains a network.
Fit = Callable[[Any, Any, int, int], Any]


def _fit_of_sknan(**options: Any) -> Fit:
    return lambda X, y, width, size: estimator(width, size, 2, **options).fit(X, y)


FITS: dict[str, Fit] = {
    "expert": lambda X, y, width, size: expert(X, y, width, size, 2),
    "ours": _fit_of_sknan(),
    "ours, with hold-out": _fit_of_sknan(early_stopping=True),
}

INPUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "float32": lambda X: X,
    "float64": lambda X: X.astype(np.float64),
    "DataFrame": pd.DataFrame,
}


def peak_of_fit(way: str, kind: str, n_rows: int, n_columns: int) -> dict[str, float]:
    """Return the bytes of a table, and of training a small network on it."""
    fit = FITS[way]
    X, y = data(n_rows, n_columns)
    table = INPUTS[kind](X)
    del X
    fit(table[:2000], y[:2000], 32, 512)
    return {
        "table": 4.0 * n_rows * n_columns,
        "peak": added_peak(lambda: fit(table, y, 32, 512)),
    }


def peak_of_net(way: str, width: int) -> dict[str, float]:
    """Return the bytes of weights and moments, and of training on a small table."""
    fit = FITS[way]
    X, y = data(1000, 20)
    fit(X, y, 32, 64)
    n_weights = sum(p.numel() for p in Perceptron(width, 20).parameters())
    return {
        "state": 3 * 4.0 * n_weights,
        "peak": added_peak(lambda: fit(X, y, width, 64)),
    }


def peak_of_use(way: str, n_rows: int, n_columns: int) -> dict[str, float]:
    """Return the bytes of a table, and of predicting, imputing or scaling it."""
    X, y = data(n_rows, n_columns)
    net = estimator(64, 512, 1).fit(X[:2000], y[:2000])
    use = {
        "predict": net.predict,
        "predict_proba": net.predict_proba,
        "NaNImputer().fit_transform": NaNImputer().fit_transform,
        "SafeScaler().fit_transform": SafeScaler().fit_transform,
        "a copy": np.copy,
    }[way]
    if way.startswith("NaN"):
        X[::10] = np.nan
    use(X[:5000])
    return {"table": X.nbytes, "peak": added_peak(lambda: use(X))}


def measure_memory(*, quick: bool) -> dict[str, dict[str, float]]:
    """Print and return the memory of each case, also in multiples of its data."""
    n = 10 if quick else 1
    cases: dict[str, tuple[str, tuple[Any, ...]]] = {}
    for n_rows, n_columns in ((5_000_000 // n, 20), (500_000 // n, 200)):
        for way in FITS:
            name = f"fit, {way}, {n_rows} x {n_columns}"
            cases[name] = "peak_of_fit", (way, "float32", n_rows, n_columns)
        if quick:
            break
    for kind in ("float64", "DataFrame"):
        name = f"fit, ours, of {kind}, {n_rows} x {n_columns}"
        cases[name] = "peak_of_fit", ("ours", kind, n_rows, n_columns)
    for width in (1024,) if quick else (1024, 4096):
        for way in FITS:
            cases[f"fit, {way}, width {width}"] = "peak_of_net", (way, width)
    n_rows = 5_000_000 // n
    for way in (
        "predict",
        "predict_proba",
        "NaNImputer().fit_transform",
        "SafeScaler().fit_transform",
        "a copy",
    ):
        cases[f"{way}, {n_rows} x 20"] = "peak_of_use", (way, n_rows, 20)
    print(f"{'memory':<46}{'peak MB':>9}{'in multiples of':>17}")
    found = {}
    for name, (function, arguments) in cases.items():
        row = found[name] = in_a_process("benchmarks.scaling", function, *arguments)
        unit = "state" if "state" in row else "table"
        print(
            f"{name:<46}{row['peak'] / 1e6:>9.0f}{row['peak'] / row[unit]:>8.2f} "
            f"{'weights and moments' if unit == 'state' else 'the table'}",
            flush=True,
        )
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["rows", "columns", "widths", "memory"]
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--quick", action="store_true", help="small sizes, few runs")
    parser.add_argument("--repeats", type=int, default=5, help="timed fits of each")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    repeats = 3 if arguments.quick else arguments.repeats
    n_steps = N_STEPS_QUICK if arguments.quick else N_STEPS
    keep_freed_memory()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", UserWarning)  # no step was clipped
        for name, sizes in series(quick=arguments.quick).items():
            if name in arguments.only:
                found[name] = measure_time(sizes, repeats, n_steps)
        if "memory" in arguments.only:
            found["memory"] = measure_memory(quick=arguments.quick)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
