"""What filling and scaling a table cost, against scikit-learn and one copy of it.

    python -m benchmarks.imputer [--rows 500000] [--order C F] [--json FILE]

Ten per cent of the cells are missing; one thread, processor time, medians over runs in
turn. The speed is the time of scikit-learn's SimpleImputer or RobustScaler over ours: 1
is the same. The distance is our time over that of one copy of the table. Memory is the
table, and the most that was allocated beside it, over the table and the output.
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
    """Two ways of doing one thing."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    least_speed: float


def table(n_rows: int, dtype: str, order: str) -> np.ndarray:
    """Normal numbers with holes."""
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(n_rows, N_COLUMNS))
    cells[rng.random(cells.shape) < 0.1] = np.nan
    return np.array(cells, dtype=dtype, order=order)


def cases(X: np.ndarray) -> Iterator[Case]:
    """Fitting and transforming, with limits."""
    for strategy, limit in (("mean", 3.0), ("median", 10.0)):
        ours, theirs = NaNImputer(strategy=strategy), SimpleImputer(strategy=strategy)
        yield Case(
            f"imputer fit {strategy}",
            lambda ours=ours: ours.fit(X),
            lambda theirs=theirs: theirs.fit(X),
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
    """The table and the most allocated beside it, over the table and the output."""
    tracemalloc.start()
    result = function()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    output = result.nbytes if isinstance(result, np.ndarray) else 0
    return (X.nbytes + most) / (X.nbytes + output)


def measure_table(X: np.ndarray, label: str, repeats: int) -> dict[str, Any]:
    """Print and return a row for each case."""
    found = {}
    for case in cases(X):
        ours, theirs, copies = in_turn(
            [case.ours, case.theirs, lambda: X.copy(order="K")],
            repeats=repeats,
            clock=time.process_time,
        )
        row = {
            "ours_s": statistics.median(ours),
            "theirs_s": statistics.median(theirs),
            "speed": ratio_in_turn(theirs, ours),
            "least_speed": case.least_speed,
            "copies": ratio_in_turn(ours, copies),
            "memory": memory(case.ours, X),
        }
        found[f"{label} {case.name}"] = row
        is_lean = row["memory"] <= MOST_MEMORY or "imputer" not in case.name
        is_within = row["speed"] >= case.least_speed and is_lean
        print(
            f"{label:<11}{case.name:<22}{row['ours_s'] * 1e3:>9.1f}"
            f"{row['theirs_s'] * 1e3:>9.1f}{row['speed']:>8.2f}{case.least_speed:>7.1f}"
            f"{row['copies']:>10.1f}{row['memory']:>8.2f}"
            f"{'' if is_within else '  missed'}"
        )
    return found


def measure_row(repeats: int) -> dict[str, Any]:
    """Print and return what one row costs, against scikit-learn and the formula."""
    X = table(1000, "float64", "C")
    row = X[:1].copy()
    imputer, scaler = NaNImputer().fit(X), SafeScaler().fit(X)
    fill, center, scale = imputer.statistics_, scaler.center_, scaler.scale_

    def squashed() -> np.ndarray:
        z = (row - center) / scale
        return z / np.sqrt(1 + (z / 3.0) ** 2)

    formulas = {
        "imputer": (imputer, lambda: np.where(np.isfinite(row), row, fill)),
        "scaler": (scaler, squashed),
    }
    peers = {
        "imputer": SimpleImputer(strategy="median").fit(X),
        "scaler": RobustScaler().fit(X),
    }
    found = {}
    for name, (ours, formula) in formulas.items():
        peer = compare(
            _transform(ours, row), _transform(peers[name], row), repeats=repeats
        )
        plain = compare(_transform(ours, row), formula, repeats=repeats)
        found[f"one row {name}"] = {
            **peer._asdict(),
            "formula_s": plain.theirs_s,
            "speed": 1 / peer.value,
        }
        print(
            f"one row    {name:<22}{peer.ours_s * 1e6:>6.1f} µs"
            f"{peer.theirs_s * 1e6:>6.1f} µs{1 / peer.value:>8.2f}"
            f"   the formula alone: {plain.theirs_s * 1e6:.1f} µs"
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
        f"{'table':<11}{'':<22}{'ours ms':>9}{'peer ms':>9}{'speed':>8}{'least':>7}"
        f"{'distance':>10}{'memory':>8}"
    )
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of RobustScaler, on NaN
        for dtype in arguments.dtype:
            for order in arguments.order:
                X = table(arguments.rows, dtype, order)
                found |= measure_table(X, f"{dtype} {order}", arguments.repeats)
        found |= measure_row(50 * arguments.repeats)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
