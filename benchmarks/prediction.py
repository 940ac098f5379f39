"""Cost of prediction: time for one row and for many, memory, and time of imports.

    python -m benchmarks.prediction [--only row exported ...] [--json FILE]

The figures are medians of runs in turn on one thread. The peer is code that users write
by hand from the fitted numbers (`by_hand`, below), without checks of shape, names and
finite values. It takes a DataFrame as it is: to select the columns by name, which the
pipeline compares, would take 120 µs more. The limit for one row is 1.5 times its time;
for one raw row through `tabular_pipeline`, whose time is that of the process, it is
4 ms. Importing sknan may take 0.3 s in addition to torch, scikit-learn and skorch.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from skorch import NeuralNetClassifier
from threadpoolctl import threadpool_limits

from benchmarks.timing import in_a_process, in_turn, ratio_in_turn
from sknan import (
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetRegressor,
    TabularMLP,
    tabular_pipeline,
)
from sknan.persistence import to_onnx, to_torch

N_COLUMNS = 20
ROW_LIMIT = 1.5
RAW_ROW_LIMIT = 0.004
IMPORT_LIMIT = 0.3

# Batch size of the peers for many rows, which bounds their memory.
BY_HAND_ROWS = 8192

Predict = Callable[[np.ndarray], np.ndarray]


# -- models and peers ----------------------------------------------------------------


def table(n_rows: int, dtype: str) -> np.ndarray:
    """Return a table of normal random numbers, a tenth of which are missing."""
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(n_rows, N_COLUMNS)).astype(dtype)
    cells[rng.random(cells.shape) < 0.1] = np.nan
    return cells


def fitted(estimator: Any, X: Any, width: int) -> Pipeline:
    """Return a pipeline that has been trained for one epoch."""
    first = np.nan_to_num(np.asarray(X)[:, 0])
    y = (first > 0) * 1 if estimator is StableNetClassifier else first
    net = estimator(module__width=width, max_epochs=1, random_state=0)
    return make_pipeline(NaNImputer(), SafeScaler(), net).fit(X, y)


def by_hand(pipeline: Pipeline, method: str, dtype: Any) -> Predict:
    """Return a function that applies the steps of a fitted pipeline to arrays."""
    imputer, scaler, net = (step for _, step in pipeline.steps)
    fill, center, scale = (
        np.asarray(numbers, dtype=dtype)
        for numbers in (imputer.statistics_, scaler.center_, scaler.scale_)
    )
    bound = scaler.bound
    module = net.net_.module_.eval()

    def output(table: Any) -> torch.Tensor:
        X = table.to_numpy() if isinstance(table, pd.DataFrame) else table
        filled = np.where(np.isfinite(X), X, fill)
        z = (filled - center) / scale
        z = z / np.sqrt(1 + (z / bound) ** 2)
        with torch.inference_mode():
            outputs: torch.Tensor = module(torch.from_numpy(z.astype(np.float32)))
        return outputs

    def probabilities(X: np.ndarray) -> np.ndarray:
        return torch.softmax(output(X), dim=1).numpy()

    def labels(X: np.ndarray) -> np.ndarray:
        return np.asarray(net.classes_[output(X).numpy().argmax(axis=1)])

    def targets(X: np.ndarray) -> np.ndarray:
        values = output(X).numpy().reshape(-1)
        return np.asarray(values * net.target_scale_ + net.target_mean_)

    if isinstance(net, StableNetRegressor):
        return targets
    return probabilities if method == "predict_proba" else labels


def in_batches(predict: Predict, n_rows: int) -> Predict:
    """Return a function that predicts in batches of ``n_rows`` rows."""

    def predict_batches(X: np.ndarray) -> np.ndarray:
        starts = range(0, len(X), n_rows)
        return np.concatenate([predict(X[start : start + n_rows]) for start in starts])

    return predict_batches


class IdleTransformer(TransformerMixin, BaseEstimator):
    """Step that does nothing, to measure the overhead of a pipeline."""

    def fit(self, X: Any, y: Any = None) -> Self:
        """Do nothing."""
        return self

    def transform(self, X: Any) -> Any:
        """Return the input."""
        return X


class IdleClassifier(ClassifierMixin, BaseEstimator):
    """Last step that does nothing."""

    def fit(self, X: Any, y: Any = None) -> Self:
        """Do nothing."""
        return self

    def predict(self, X: Any) -> Any:
        """Return the input."""
        return X

    predict_proba = predict

    def __sklearn_is_fitted__(self) -> bool:
        return True


def idle_pipeline() -> Pipeline:
    """Return a pipeline of three steps that do nothing."""
    return make_pipeline(IdleTransformer(), IdleTransformer(), IdleClassifier())


# -- one row -------------------------------------------------------------------------


def measure_row(repeats: int) -> dict[str, Any]:
    """Print and return a row for each estimator, method, width and type of input."""
    print(
        f"{'one row':<40}{'ours µs':>8}{'hand':>7}{'ratio':>7}{'limit':>7}{'  |':>3}"
        f"{'steps':>7}{'net':>6}{'module':>8}{'idle pipeline':>15}"
    )
    found = {}
    methods = (
        (StableNetClassifier, "predict"),
        (StableNetClassifier, "predict_proba"),
        (StableNetRegressor, "predict"),
    )
    for width in (128, 512):
        for kind in ("float32", "float64", "DataFrame"):
            for estimator, method in methods:
                name = f"{estimator.__name__[9:].lower()} {width}, {method}, {kind}"
                row = _row(estimator, method, kind, width, repeats)
                found[name] = row
                print(
                    f"{name:<40}{row['ours_s'] * 1e6:>8.0f}{row['hand_s'] * 1e6:>7.0f}"
                    f"{row['ratio']:>7.2f}{ROW_LIMIT:>7.1f}{'  |':>3}"
                    f"{row['steps_s'] * 1e6:>7.0f}{row['net_s'] * 1e6:>6.0f}"
                    f"{row['module_s'] * 1e6:>8.0f}{row['idle_s'] * 1e6:>15.0f}"
                    f"{'' if row['ratio'] <= ROW_LIMIT else '  above'}",
                    flush=True,
                )
    return found


def _row(
    estimator: Any, method: str, kind: str, width: int, repeats: int
) -> dict[str, float]:
    cells = table(1000, "float32" if kind == "float32" else "float64")
    X: Any = cells
    if kind == "DataFrame":
        X = pd.DataFrame(cells, columns=[f"x{j}" for j in range(N_COLUMNS)])
    pipeline = fitted(estimator, X, width)
    row = X[:1].copy()
    imputer, scaler, net = (step for _, step in pipeline.steps)
    scaled = scaler.transform(imputer.transform(row))
    module, tensor = net.net_.module_, torch.from_numpy(scaled.astype(np.float32))
    hand = by_hand(pipeline, method, cells.dtype)
    predict, predict_net = getattr(pipeline, method), getattr(net, method)
    np.testing.assert_allclose(predict(row), hand(row), rtol=1e-4)
    idle = getattr(idle_pipeline(), method)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = module(tensor)
        return output

    times = in_turn([lambda: predict(row), lambda: hand(row)], repeats=repeats)
    parts = in_turn(
        [
            lambda: predict_net(scaler.transform(imputer.transform(row))),
            lambda: predict_net(scaled),
            forward,
            lambda: idle(row),
        ],
        repeats=repeats,
    )
    medians = map(statistics.median, [*times, *parts])
    names = ("ours_s", "hand_s", "steps_s", "net_s", "module_s", "idle_s")
    found = dict(zip(names, medians, strict=True))
    return {**found, "ratio": found["ours_s"] / found["hand_s"]}


def measure_exported_row(repeats: int) -> dict[str, Any]:
    """Print and return the time of one row of float64 in exported models."""
    found = {}
    print(f"{'one row, exported':<40}{'µs':>8}{'times the formulas by hand':>28}")
    for width in (128, 512):
        X = table(1000, "float64")
        pipeline = fitted(StableNetClassifier, X, width)
        row = X[:1].copy()
        ways = {
            "by hand": by_hand(pipeline, "predict_proba", np.float64),
            "three steps that do nothing": idle_pipeline().predict_proba,
            "pipeline": pipeline.predict_proba,
            **_exported(pipeline, X[:2].copy()),
        }
        for name, way in ways.items():
            if "nothing" in name:
                continue
            np.testing.assert_allclose(way(row), ways["pipeline"](row), rtol=1e-4)
        calls = [partial(way, row) for way in ways.values()]
        times = in_turn(calls, repeats=repeats)
        for name, seconds in zip(ways, times, strict=True):
            ratio = ratio_in_turn(seconds, times[0])
            label = f"{name}, width {width}"
            found[label] = {"s": statistics.median(seconds), "over_hand": ratio}
            print(f"{label:<40}{statistics.median(seconds) * 1e6:>8.0f}{ratio:>28.2f}")
    return found


def _exported(pipeline: Pipeline, rows: np.ndarray) -> dict[str, Predict]:
    """Return functions that predict in exported models."""
    # onnxruntime is optional.
    import onnxruntime

    module = to_torch(pipeline)
    traced = torch.jit.freeze(torch.jit.trace(module, (torch.from_numpy(rows),)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        to_onnx(pipeline, Path(folder) / "model.onnx")
        session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", options)

    def in_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Predict:
        def predict(X: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return function(torch.from_numpy(X)).numpy()

        return predict

    return {
        "to_torch": in_torch(module),
        "to_torch, traced": in_torch(traced),
        "to_onnx, onnxruntime": lambda X: session.run(None, {"X": X})[0],
    }


def measure_raw_row(repeats: int) -> dict[str, Any]:
    """Print and return the time of one row of a raw table by its kinds of columns."""
    found = {}
    print(f"{'one raw row':<40}{'ms':>8}{'limit':>7}{'  |':>3}{'steps in ms':>13}")
    for n_numbers, n_categories in ((14, 0), (6, 8), (36, 43)):
        X, y = raw_table(500, n_numbers, n_categories)
        pipeline = tabular_pipeline("regressor", random_state=0)
        pipeline.set_params(net__estimator__max_epochs=1).fit(X, y)
        rows = [X.iloc[[i]] for i in range(repeats)]
        seconds = _seconds_of_each(pipeline.predict, rows)
        steps = {}
        for name, step in pipeline.steps[:-1]:
            steps[name] = _seconds_of_each(step.transform, rows)
            rows = [step.transform(row) for row in rows]
        name = f"{n_numbers} numbers, {n_categories} categories"
        found[name] = {"ours_s": seconds, "steps_s": steps}
        parts = ", ".join(f"{step} {s * 1e3:.1f}" for step, s in steps.items())
        print(
            f"{name:<40}{seconds * 1e3:>8.1f}{RAW_ROW_LIMIT * 1e3:>7.1f}  | {parts}"
            f"{'' if seconds <= RAW_ROW_LIMIT else '  above'}",
            flush=True,
        )
    return found


def raw_table(
    n_rows: int, n_numbers: int, n_categories: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return columns of numbers and of text, a tenth missing, and a target."""
    rng = np.random.default_rng(0)
    columns = {f"x{j}": rng.normal(size=n_rows) for j in range(n_numbers)}
    for j in range(n_categories):
        columns[f"k{j}"] = rng.choice(["low", "middle", "high", "none"], n_rows)
    X = pd.DataFrame(columns)
    return X.mask(rng.random(X.shape) < 0.1), rng.normal(size=n_rows)


def _seconds_of_each(function: Callable[[Any], Any], rows: list[Any]) -> float:
    """Return the median time of the process for a call, after a first round."""
    for row in rows:
        function(row)
    seconds = []
    for row in rows:
        start = time.process_time()
        function(row)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


# -- many rows -----------------------------------------------------------------------


def measure_rows(n_rows: int, repeats: int) -> dict[str, Any]:
    """Print and return the times of all implementations on a large table."""
    X = table(n_rows, "float32")
    pipeline = fitted(StableNetClassifier, X[:1000], 128)
    net = pipeline[-1]
    scaled = pipeline[:-1].transform(X)
    module = net.net_.module_
    hand = in_batches(by_hand(pipeline, "predict", np.float32), BY_HAND_ROWS)

    def forward(X: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            output: torch.Tensor = module(torch.from_numpy(X))
        return output.numpy().argmax(axis=1)

    peer = MLPClassifier((128, 128), max_iter=1)
    skorch_nets = {
        size: NeuralNetClassifier(
            TabularMLP,
            module__n_features_in=N_COLUMNS,
            module__n_outputs=2,
            batch_size=size,
        ).initialize()
        for size in (128, BY_HAND_ROWS)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one epoch is not enough to converge
        peer.fit(scaled[:1000], np.arange(1000) % 2)
    functions: dict[str, Callable[[], Any]] = {
        "pipeline": lambda: pipeline.predict(X),
        "the same by hand": lambda: hand(X),
        "StableNetClassifier": lambda: net.predict(scaled),
        "module by hand": lambda: in_batches(forward, BY_HAND_ROWS)(scaled),
        "MLPClassifier": lambda: peer.predict(scaled),
        "skorch, batches of 128": lambda: skorch_nets[128].predict(scaled),
        f"skorch, batches of {BY_HAND_ROWS}": lambda: skorch_nets[BY_HAND_ROWS].predict(
            scaled
        ),
    }
    times = in_turn(list(functions.values()), repeats=repeats)
    found = {}
    print(f"{f'{n_rows} rows':<40}{'ms':>8}{'times the module by hand':>26}")
    module_times = times[list(functions).index("module by hand")]
    for name, seconds in zip(functions, times, strict=True):
        ratio = ratio_in_turn(seconds, module_times)
        found[name] = {"s": statistics.median(seconds), "over_module": ratio}
        print(f"{name:<40}{statistics.median(seconds) * 1e3:>8.0f}{ratio:>26.2f}")
    return found


# -- memory --------------------------------------------------------------------------


def added_peak(function: Callable[[], Any]) -> int:
    """Return the peak memory of the process in excess of that before (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # return freed memory to the system
    Path("/proc/self/clear_refs").write_text("5")  # reset the recorded peak
    before = _status("VmRSS")
    function()
    return max(_status("VmHWM") - before, 0)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def measure_memory(n_rows: int) -> dict[str, Any]:
    """Print and return the memory of predicting a table, without the table, in MB."""
    found = {}
    print(f"{'memory':<40}{'table MB':>9}{'predict':>9}{'all at once':>13}")
    for dtype in ("float32", "float64"):
        for width in (128, 2048):
            row = in_a_process(
                "benchmarks.prediction", "memory_of", n_rows, dtype, width
            )
            found[f"width {width}, {dtype}"] = row
            print(
                f"{f'width {width}, {dtype}':<40}{row['table'] / 1e6:>9.0f}"
                f"{row['predict'] / 1e6:>9.0f}{row['at_once'] / 1e6:>13.0f}",
                flush=True,
            )
    return found


def memory_of(n_rows: int, dtype: str, width: int) -> dict[str, float]:
    """Return the bytes of a table, of predicting it, and of its widest activation."""
    X = np.nan_to_num(table(n_rows, dtype))
    net = fitted(StableNetClassifier, X[:1000], width)[-1]
    net.predict(X[:10_000])
    peak = added_peak(lambda: net.predict(X))
    return {"table": X.nbytes, "predict": peak, "at_once": 4.0 * n_rows * width}


# -- imports -------------------------------------------------------------------------

_BASE = "torch, sklearn, skorch"


def measure_imports(repeats: int) -> dict[str, Any]:
    """Print and return the time of imports in new processes, by two clocks."""
    found = {}
    for clock in ("perf_counter", "process_time"):
        code = (
            f"from time import {clock} as now; start = now(); import {_BASE}; "
            "between = now(); import sknan; print(between - start, now() - between)"
        )
        _output_of(code)  # the first run compiles changed modules
        times = [tuple(map(float, _output_of(code).split())) for _ in range(repeats)]
        base, added = map(statistics.median, zip(*times, strict=True))
        found[clock] = {"base_s": base, "sknan_s": added}
        print(
            f"{f'import {_BASE}, {clock}':<52}{base:>6.2f} s, then sknan {added:.2f} s"
            f"{'' if added <= IMPORT_LIMIT else '  above'}"
        )
    return found


def _output_of(code: str) -> str:
    # Byte code must be written, as for an installed package.
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**variables, "OMP_NUM_THREADS": "1"},
    )
    return finished.stdout


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="*",
        choices=["row", "exported", "raw", "rows", "memory", "imports"],
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "row": lambda: measure_row(200 * arguments.repeats),
        "exported": lambda: measure_exported_row(100 * arguments.repeats),
        "raw": lambda: measure_raw_row(20 * arguments.repeats),
        "rows": lambda: measure_rows(arguments.rows, arguments.repeats),
        "memory": lambda: measure_memory(arguments.rows),
        "imports": lambda: measure_imports(arguments.repeats),
    }
    with threadpool_limits(1):
        found = {
            name: measure()
            for name, measure in measures.items()
            if not arguments.only or name in arguments.only
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
