"""Coverage of the prediction intervals of ``tabular_pipeline("regressor")``.

    python -m benchmarks.intervals [--data DIR ...] [--splits N] [--rows N]
        [--coverage C] [--markdown]

Each split of a table draws ``--rows`` rows to train on, and as many to test. A line has
the share of test targets in the intervals, its standard error over the splits, and the
mean width of the intervals in standard deviations of the target. Without ``--data``,
the tables are synthetic: noise of several kinds around a function of five columns. With
it, they are the regression tables of ``DIR/datasets.json``, as in
``benchmarks.quality``, and those with fewer than ten tables have synthetic ones too.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from benchmarks.quality import tables_of
from sknan import tabular_pipeline

N_TABLES = 10


class Coverage(NamedTuple):
    """Mean over the splits of one table."""

    coverage: float
    error: float
    width: float
    seconds: float


def synthetic_tables(n_rows: int) -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
    """Return tables with normal, unequal, skewed, heavy-tailed or discrete noise."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, 5))
    mean = 2.0 * X[:, 0] + np.sin(3.0 * X[:, 1]) + X[:, 2] * X[:, 3]
    noise = {
        "normal": rng.normal(size=n_rows),
        "unequal": rng.normal(size=n_rows) * np.exp(0.7 * X[:, 4]),
        "skewed": rng.exponential(size=n_rows),
        "heavy-tailed": rng.standard_t(2.5, size=n_rows),
        "discrete": rng.integers(-1, 2, size=n_rows).astype(float),
    }
    frame = pd.DataFrame(X, columns=list("abcde"))
    return {f"{name} noise": (frame, mean + part) for name, part in noise.items()}


def measure(
    X: pd.DataFrame, y: np.ndarray, n_splits: int, n_rows: int, coverage: float
) -> Coverage:
    """Return the coverage of one table, over splits drawn with the seeds 0, 1, ..."""
    shares, widths = [], []
    start = time.perf_counter()
    for seed in range(n_splits):
        order = np.random.RandomState(seed).permutation(len(y))
        n_train = min(n_rows, len(y) // 2)
        train, test = order[:n_train], order[n_train : 2 * n_train]
        model = tabular_pipeline("regressor", random_state=seed)
        model.fit(X.iloc[train], y[train])
        prepared = model[:-1].transform(X.iloc[test])
        low, high = model[-1].predict_interval(prepared, coverage).T
        shares.append(np.mean((low <= y[test]) & (y[test] <= high)))
        widths.append(np.mean(high - low) / np.std(y))
    error = float(np.std(shares, ddof=1) / np.sqrt(n_splits)) if n_splits > 1 else 0.0
    seconds = (time.perf_counter() - start) / n_splits
    return Coverage(float(np.mean(shares)), error, float(np.mean(widths)), seconds)


def main() -> None:
    """Measure the tables one after another, and print their mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", type=Path, default=[])
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    tables = {
        table.name: (table.X, table.y)
        for folder in options.data
        for table in tables_of(folder)
        if table.is_regression
    }
    if len(tables) < N_TABLES:
        tables |= synthetic_tables(2 * options.rows)
    if options.markdown:
        print(
            "| table | coverage | standard error | width |\n| --- | --- | --- | --- |"
        )
    found = []
    for name, (X, y) in tables.items():
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")
            one = measure(X, y, options.splits, options.rows, options.coverage)
        found.append(one)
        cells = (name, f"{one.coverage:.3f}", f"{one.error:.3f}", f"{one.width:.2f}")
        line = f"| {' | '.join(cells)} |" if options.markdown else "  ".join(cells)
        print(line if options.markdown else f"{line}  {one.seconds:.1f} s", flush=True)
    mean = np.mean([one.coverage for one in found])
    print(f"mean coverage of {len(found)} tables: {mean:.3f}")


if __name__ == "__main__":
    main()
