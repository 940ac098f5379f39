"""Time and memory of an audit of a large table.

    python -m benchmarks.audit [--rows 1000000] [--columns 100] [--json FILE]

Each kind of table is audited once for time and once for memory. Memory is the peak of
what numpy and Python allocate in addition to the table, in columns of float64.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sknan import audit

# Limits for a million rows and a hundred columns: time in seconds, memory in columns.
MAX_SECONDS = 15.0
MAX_COLUMNS = 20.0


def numbers(n_rows: int, n_columns: int) -> np.ndarray:
    """Return an array with 1 % missing values, and sentinels in every tenth column."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, n_columns))
    for j in range(n_columns):
        X[rng.integers(0, n_rows, n_rows // 100), j] = np.nan
        if j % 10 == 0:
            X[rng.integers(0, n_rows, n_rows // 50), j] = -999
    return X


def frame_of_numbers(n_rows: int, n_columns: int) -> pd.DataFrame:
    """Return the same numbers as a DataFrame with separate columns."""
    X = numbers(n_rows, n_columns)
    return pd.DataFrame({f"x{j}": X[:, j].copy() for j in range(n_columns)})


def mixed_cells(n_rows: int, n_columns: int) -> dict[str, Any]:
    """Return columns of floats, integers, text with few or many categories, dates."""
    rng = np.random.default_rng(0)
    names = np.array([f"name {i}" for i in range(10_000)], dtype=object)
    makers: list[Callable[[], Any]] = [
        lambda: rng.normal(size=n_rows),
        lambda: rng.integers(0, 1000, size=n_rows),
        lambda: np.array(["a", "b", "c", "?"], dtype=object)[
            rng.integers(0, 4, n_rows)
        ],
        lambda: names[rng.integers(0, len(names), n_rows)],
        lambda: np.datetime64("2020-01-01", "us") + rng.integers(0, 2**45, n_rows),
    ]
    return {f"c{j}": makers[j % len(makers)]() for j in range(n_columns)}


def mixed_frame(n_rows: int, n_columns: int) -> pd.DataFrame:
    """Return mixed columns as a pandas DataFrame."""
    return pd.DataFrame(mixed_cells(n_rows, n_columns))


def mixed_polars(n_rows: int, n_columns: int) -> Any:
    """Return mixed columns as a polars DataFrame."""
    import polars as pl

    return pl.DataFrame(mixed_cells(n_rows, n_columns))


TABLES: dict[str, Callable[[int, int], Any]] = {
    "numbers in rows": numbers,
    "numbers, pandas": frame_of_numbers,
    "mixed, pandas": mixed_frame,
    "mixed, polars": mixed_polars,
}


def measure(make: Callable[[int, int], Any], n_rows: int, n_columns: int) -> dict:
    """Return seconds, columns of memory and number of findings of an audit."""
    X = make(n_rows, n_columns)
    y = np.random.default_rng(1).integers(0, 2, n_rows)
    start = time.perf_counter()
    found = audit(X, y)
    seconds = time.perf_counter() - start
    tracemalloc.start()
    audit(X, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"s": seconds, "columns": peak / (8 * n_rows), "findings": len(found)}


def main() -> None:
    """Print one row for each kind of table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    print(f"{'table':<18}{'seconds':>9}{'memory':>9}{'findings':>10}")
    for name, make in TABLES.items():
        found = measure(make, options.rows, options.columns)
        results[name] = found
        is_slow = found["s"] > MAX_SECONDS or found["columns"] > MAX_COLUMNS
        print(
            f"{name:<18}{found['s']:>9.1f}{found['columns']:>9.1f}"
            f"{found['findings']:>10}{'  MISSED' if is_slow else ''}"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
