"""Errors with random held-out rows of a grouped table or of a time series.

    python -m benchmarks.held_out_rows [--seeds 20]

In the grouped table, each of 60 patients has ten visits, eight traits that hardly
change between visits, and an offset of the target that no column explains. In the time
series, six columns and an offset of the target are random walks. A network can learn
the offsets of rows near those that it is trained on, but not those of new patients or
of later times.

Each network stops early by the same share of the rows: random ones, or whole patients,
or the latest rows. The error on new rows, the error on held-out rows in the best epoch,
and its number are means over the seeds; the gain is given with its standard error.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from sklearn.metrics import mean_squared_error
from sklearn.model_selection import TimeSeriesSplit

from sknan import StableNetRegressor

Table = tuple[np.ndarray, np.ndarray, np.ndarray]


def visits(seed: int, n_patients: int) -> Table:
    """Return features, targets and patients of ten visits for each patient."""
    rng = np.random.default_rng(seed)
    traits, offset = rng.normal(size=(n_patients, 8)), rng.normal(size=n_patients)
    patient = np.repeat(np.arange(n_patients), 10)
    n_rows = len(patient)
    measured = rng.normal(size=(n_rows, 2))
    X = np.column_stack(
        [traits[patient] + 0.1 * rng.normal(size=(n_rows, 8)), measured]
    )
    y = X[:, 0] + measured.prod(axis=1) + 1.5 * offset[patient]
    return X, y + 0.3 * rng.normal(size=n_rows), patient


def series(seed: int, n_rows: int) -> Table:
    """Return features, targets and times of a series with slow changes."""
    rng = np.random.default_rng(seed)
    offset = 0.15 * np.cumsum(rng.normal(size=n_rows))
    slow = 0.1 * np.cumsum(rng.normal(size=(n_rows, 6)), axis=0)
    measured = rng.normal(size=(n_rows, 2))
    X = np.column_stack([slow, measured])
    y = measured[:, 0] + measured.prod(axis=1) + offset
    return X, y + 0.3 * rng.normal(size=n_rows), np.arange(n_rows)


def outcome(
    seed: int, train: Table, test: Table, split: Any, **fit_params: Any
) -> tuple[float, float, int]:
    """Return the error on new rows and on held-out rows, and the best epoch."""
    model = StableNetRegressor(
        lr=3e-3,
        lr_schedule="constant",
        early_stopping=True,
        validation_fraction=1 / 6,
        validation_split=split,
        random_state=seed,
    )
    model.fit(train[0], train[1], **fit_params)
    held_out = -model.best_score_ * float(model.target_scale_) ** 2
    return (
        mean_squared_error(test[1], model.predict(test[0])),
        held_out,
        model.best_epoch_,
    )


def compare(name: str, found: np.ndarray) -> None:
    """Print the means of two ways of holding out, and the gain of the second."""
    for way, row in zip(("random rows", name), found.mean(axis=1), strict=True):
        print(f"{way:15} {row[0]:14.2f} {row[1]:16.2f} {row[2]:12.1f}")
    gain = found[0, :, 0] - found[1, :, 0]
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    print(f"gain of {name}: {gain.mean():.2f} +- {error:.2f}\n")


def main() -> None:
    """Print a table for both kinds of data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = range(parser.parse_args().seeds)
    print(f"{'held out':15} {'new rows, MSE':>14} {'held out, MSE':>16} {'epoch':>12}")
    grouped: list[list[tuple[float, float, int]]] = [[], []]
    timed: list[list[tuple[float, float, int]]] = [[], []]
    for seed in seeds:
        train, test = visits(seed, 60), visits(1000 + seed, 300)
        grouped[0].append(outcome(seed, train, test, None))
        grouped[1].append(outcome(seed, train, test, None, groups=train[2]))
        X, y, time = series(seed, 900)
        train, test = (X[:750], y[:750], time[:750]), (X[750:], y[750:], time[750:])
        for way, split in enumerate((None, TimeSeriesSplit(5))):
            timed[way].append(outcome(seed, train, test, split))
    compare("whole patients", np.array(grouped))
    compare("latest rows", np.array(timed))


if __name__ == "__main__":
    main()
