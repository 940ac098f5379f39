"""Speed and memory of NaNImputer and SafeScaler, compared with scikit-learn.

    python -m benchmarks.imputer [--rows 500000] [--order C F] [--json FILE]

Ten percent of the cells are missing. The figures are medians of processor times on one
thread, of runs in turn. *Speed* is the time of scikit-learn's SimpleImputer or
RobustScaler divided by the time of sknan, so that 1 is equal and more is faster.
*Distance* is the time of sknan divided by that of one copy of the table. *Memory* is
the table plus the peak of further allocations, divided by the table plus the output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import RobustScaler
from threadpoolctl import threadpool_limits

from benchmarks.timing import compare, in_turn, ratio_in_turn
from sknan import NaNImputer, SafeScaler

N_COLUMNS = 20
MOST_MEMORY = 1.3


class Case(NamedTuple):
    """A task, with the implementations of sknan and scikit-learn."""

    name: str
    sknan: Callable[[], Any]
    peer: Callable[[], Any]
    least_speed: float


def table(n_rows: int, dtype: str, order: str) -> np.ndarray:
    """Return a table of normal random numbers with missing values."""
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(n_rows, N_COLUMNS))
    cells[rng.random(cells.shape) < 0.1] = np.nan
    return np.array(cells, dtype=dtype, order=order)


def cases(X: np.ndarray) -> Iterator[Case]:
    """Yield the cases of fitting and transforming, with the least speed of each."""
    for strategy, limit in (("mean", 5.0), ("median", 25.0)):
        imputer, peer = NaNImputer(strategy=strategy), SimpleImputer(strategy=strategy)
        yield Case(
            f"imputer fit {strategy}",
            lambda imputer=imputer: imputer.fit(X),
            lambda peer=peer: peer.fit(X),
            limit,
        )
    imputers = NaNImputer().fit(X), SimpleImputer(strategy="median").fit(X)
    yield Case("imputer transform", *(_transform(i, X) for i in imputers), 3.0)
    yield Case(
        "scaler fit", lambda: SafeScaler().fit(X), lambda: RobustScaler().fit(X), 1.0
    )
    scalers = SafeScaler().fit(X), RobustScaler().fit(X)
    yield Case("scaler transform", *(_transform(s, X) for s in scalers), 1.0)
    yield Case(
        "scaler fit_transform",
        lambda: SafeScaler().fit_transform(X),
        lambda: RobustScaler().fit_transform(X),
        1.0,
    )


def _transform(transformer: Any, X: np.ndarray) -> Callable[[], Any]:
    return lambda: transformer.transform(X)


def memory(function: Callable[[], Any], X: np.ndarray) -> float:
    """Return table plus peak of allocations, divided by table plus output."""
    tracemalloc.start()
    result = function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    output = result.nbytes if isinstance(result, np.ndarray) else 0
    return (X.nbytes + peak) / (X.nbytes + output)


def measure_table(X: np.ndarray, label: str, repeats: int) -> dict[str, Any]:
    """Print and return a row for each case."""
    found = {}
    for case in cases(X):
        times, peer_times, copy_times = in_turn(
            [case.sknan, case.peer, lambda: X.copy(order="K")],
            repeats=repeats,
            clock=time.process_time,
        )
        row = {
            "ours_s": statistics.median(times),
            "peer_s": statistics.median(peer_times),
            "speed": ratio_in_turn(peer_times, times),
            "least_speed": case.least_speed,
            "copies": ratio_in_turn(times, copy_times),
            "memory": memory(case.sknan, X),
        }
        found[f"{label} {case.name}"] = row
        is_small = row["memory"] <= MOST_MEMORY or "imputer" not in case.name
        is_within = row["speed"] >= case.least_speed and is_small
        print(
            f"{label:<11}{case.name:<22}{row['ours_s'] * 1e3:>9.1f}"
            f"{row['peer_s'] * 1e3:>9.1f}{row['speed']:>8.2f}{case.least_speed:>7.1f}"
            f"{row['copies']:>10.1f}{row['memory']:>8.2f}"
            f"{'' if is_within else '  missed'}"
        )
    return found


def measure_row(repeats: int) -> dict[str, Any]:
    """Print and return the time for one row, compared with scikit-learn and numpy."""
    X = table(1000, "float64", "C")
    row = X[:1].copy()
    imputer, scaler = NaNImputer().fit(X), SafeScaler().fit(X)
    fill, center, scale = imputer.statistics_, scaler.center_, scaler.scale_

    def scaled() -> np.ndarray:
        z = (row - center) / scale
        return z / np.sqrt(1 + (z / 3.0) ** 2)

    formulas = {
        "imputer": (imputer, lambda: np.where(np.isfinite(row), row, fill)),
        "scaler": (scaler, scaled),
    }
    peers = {
        "imputer": SimpleImputer(strategy="median").fit(X),
        "scaler": RobustScaler().fit(X),
    }
    found = {}
    for name, (transformer, formula) in formulas.items():
        transform = _transform(transformer, row)
        peer = compare(transform, _transform(peers[name], row), repeats=repeats)
        plain = compare(transform, formula, repeats=repeats)
        found[f"one row {name}"] = {
            **peer._asdict(),
            "formula_s": plain.peer_s,
            "speed": 1 / peer.value,
        }
        print(
            f"one row    {name:<22}{peer.ours_s * 1e6:>6.1f} µs"
            f"{peer.peer_s * 1e6:>6.1f} µs{1 / peer.value:>8.2f}"
            f"   the formula alone: {plain.peer_s * 1e6:.1f} µs"
        )
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--dtype", nargs="*", default=["float32", "float64"])
    parser.add_argument("--order", nargs="*", default=["C", "F"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    found = {}
    print(
        f"{'table':<11}{'':<22}{'sknan ms':>9}{'peer ms':>9}{'speed':>8}{'least':>7}"
        f"{'distance':>10}{'memory':>8}"
    )
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # RobustScaler warns of NaN
        for dtype in arguments.dtype:
            for order in arguments.order:
                X = table(arguments.rows, dtype, order)
                found |= measure_table(X, f"{dtype} {order}", arguments.repeats)
        found |= measure_row(50 * arguments.repeats)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
