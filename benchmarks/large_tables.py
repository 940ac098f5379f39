"""Time and memory of preparing wide and long tables, per cell.

    python -m benchmarks.large_tables [--only memory parquet] [--quick] [--json FILE]

`memory`: the steps of `tabular_pipeline` before the network, fitted on a DataFrame of
float64 with 2 % missing values, and the prediction of one row. `parquet`: the same
steps fitted on a Parquet file in chunks, whose output is written to a temporary file,
and one epoch of a single network (StableNetRegressor, default settings). Each table is
measured in a new process on one thread, in processor time. Memory is the peak of the
process minus the memory before (Linux). Files that the system caches count as memory of
the process. The two times of `parquet` are medians of three rounds, in which each
epoch is trained on the temporary file that was just written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.prediction import added_peak
from benchmarks.timing import in_a_process, ratio_in_turn
from sknan import StableNetRegressor, tabular_pipeline
from sknan.preprocessing import iter_chunks
from sknan.preprocessing._stored_table import stored_chunks

IN_MEMORY = [
    *((10**3, 10), (10**4, 10), (10**5, 10), (10**6, 10)),
    *((10**3, 100), (10**3, 1000), (10**3, 10_000), (200, 20_000)),
]
IN_PARQUET = [(10**5, 20), (10**6, 20), (10**7, 20)]

# Number of rows that are written to a file at once.
_PART = 250_000


def table(n_rows: int, n_columns: int, seed: int = 0) -> pd.DataFrame:
    """Return numbers of which some are missing, and a target that depends on them."""
    rng = np.random.default_rng(seed)
    cells = rng.standard_normal((n_rows, n_columns))
    target = cells[:, 0] + cells[:, 1] * cells[:, 2] + rng.standard_normal(n_rows)
    cells[rng.random(cells.shape) < 0.02] = np.nan
    names = [f"c{j}" for j in range(n_columns)]
    return pd.DataFrame(cells, columns=names).assign(y=target)


def _seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def in_memory(n_rows: int, n_columns: int) -> dict[str, float]:
    """Measure a DataFrame."""
    X = table(n_rows, n_columns)
    y = X.pop("y").to_numpy()
    network = StableNetRegressor(max_epochs=1, module__width=8, module__n_frequencies=0)
    pipeline = tabular_pipeline(network)
    pipeline[:-1].fit_transform(table(20, 3))  # imports
    seconds: list[float] = []
    peak = added_peak(
        lambda: seconds.append(_seconds(lambda: pipeline[:-1].fit_transform(X)))
    )
    pipeline.fit(X, y)
    rows = [_seconds(lambda: pipeline.predict(X[:1])) for _ in range(20)]
    return {"fit_s": seconds[0], "peak": peak, "row_s": statistics.median(rows)}


def in_parquet(n_rows: int, n_columns: int) -> dict[str, float]:
    """Measure a Parquet file that this function writes first."""
    import pyarrow as pa
    from pyarrow import parquet

    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        writer = None
        for start in range(0, n_rows, _PART):
            part = pa.Table.from_pandas(table(min(_PART, n_rows - start), n_columns))
            writer = writer or parquet.ParquetWriter(path, part.schema)
            writer.write_table(part)
        assert writer is not None
        writer.close()
        pipeline = tabular_pipeline(StableNetRegressor(max_epochs=1, random_state=0))
        # Imports, and what torch does only once.
        pipeline.fit(iter_chunks(table(1000, 3), "y"))
        next(iter(iter_chunks(path)))
        times: dict[str, list[float]] = {"fit_s": [], "epoch_s": []}

        def fit() -> None:
            """Do the work of `pipeline.fit` in two parts."""
            chunks = iter_chunks(path, "y", chunk_size=65536)
            start = time.process_time()
            rows = stored_chunks(pipeline[:-1].fit_transform(chunks))
            prepared = time.process_time()
            pipeline[-1].fit(rows.X, rows.y)
            times["fit_s"].append(prepared - start)
            times["epoch_s"].append(time.process_time() - prepared)

        peaks = [added_peak(fit) for _ in range(3)]
        ratio = ratio_in_turn(times["fit_s"], times["epoch_s"])
    medians = {name: statistics.median(rounds) for name, rounds in times.items()}
    return {**medians, "ratio": ratio, "peak": peaks[0]}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["memory", "parquet"]
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--quick", action="store_true", help="at most 1e6 cells")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    for name, function, sizes in (
        ("memory", "in_memory", IN_MEMORY),
        ("parquet", "in_parquet", IN_PARQUET),
    ):
        if name not in arguments.only:
            continue
        last = "row ms" if name == "memory" else "  epoch s   ratio"
        print(
            f"{name:<10}{'rows':>9}{'columns':>8}{'fit s':>8}{'ns/cell':>9}"
            f"{'peak MB':>9}{'B/cell':>8}{last:>9}"
        )
        for n_rows, n_columns in sizes:
            n_cells = n_rows * n_columns
            if arguments.quick and n_cells > 10**6:
                continue
            row = in_a_process("benchmarks.large_tables", function, n_rows, n_columns)
            found[f"{name}, {n_rows} x {n_columns}"] = row
            extra = (
                f"{row['row_s'] * 1e3:>9.1f}"
                if name == "memory"
                else f"{row['epoch_s']:>9.2f}{row['ratio']:>8.2f}"
            )
            print(
                f"{'':<10}{n_rows:>9}{n_columns:>8}{row['fit_s']:>8.2f}"
                f"{row['fit_s'] / n_cells * 1e9:>9.0f}{row['peak'] / 1e6:>9.0f}"
                f"{row['peak'] / n_cells:>8.1f}{extra}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
