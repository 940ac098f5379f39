"""Results of sknan, scikit-learn and skorch on damaged tables, one fault per row.

    python -m benchmarks.fault_injection [--only skorch MLP] [--details]

Each cell is the result of one check of sknan.testing on one estimator with its
defaults. ``ok`` means a fitted model with finite weights and outputs, ``refused`` an
error that names the fault; everything else is a failure. A dash means that the fault
does not apply to the estimator. ``pipeline`` is make_pipeline(NaNImputer(),
SafeScaler(), estimator of sknan).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, RobustScaler, StandardScaler
from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from sknan import NaNImputer, SafeScaler, StableNetClassifier, StableNetRegressor
from sknan.testing import finite_estimator_checks

OUTCOMES = {"finite": "ok", "refused": "refused"}


class SmallNet(nn.Module):
    """Network with one hidden layer, which infers the number of inputs."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LazyLinear(32), nn.ReLU(), nn.Linear(32, n_outputs)
        )

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return logits or predictions."""
        return self.body(X)


class ColumnRegressor(NeuralNetRegressor):
    """Regressor that converts the target to the dtype and shape that skorch needs."""

    def fit(self, X: Any, y: Any, **fit_params: Any) -> ColumnRegressor:
        """Train on ``y`` as a column of float32."""
        column = np.asarray(y, dtype=np.float32).reshape(-1, 1)
        return super().fit(X, column, **fit_params)


def as_float32(X: Any) -> np.ndarray:
    return np.asarray(X, dtype=np.float32)


def skorch_pipeline(net: type[Any], n_outputs: int, **params: Any) -> Any:
    """Return the usual pipeline for skorch, which casts the table to float32."""
    return make_pipeline(
        FunctionTransformer(as_float32),
        net(
            SmallNet,
            module__n_outputs=n_outputs,
            optimizer=torch.optim.Adam,
            lr=0.01,
            max_epochs=50,
            verbose=0,
            **params,
        ),
    )


def candidates() -> dict[str, Any]:
    """Return the estimators by column name."""
    clean = (NaNImputer(), SafeScaler())
    return {
        "NaNImputer": NaNImputer(),
        "SafeScaler": SafeScaler(),
        "StableNetClassifier": StableNetClassifier(),
        "StableNetRegressor": StableNetRegressor(),
        "pipeline, classifier": make_pipeline(*clean, StableNetClassifier()),
        "pipeline, regressor": make_pipeline(*clean, StableNetRegressor()),
        "SimpleImputer": SimpleImputer(),
        "StandardScaler": StandardScaler(),
        "RobustScaler": RobustScaler(),
        "LogisticRegression": LogisticRegression(),
        "Ridge": Ridge(),
        "HistGB classifier": HistGradientBoostingClassifier(),
        "HistGB regressor": HistGradientBoostingRegressor(),
        "MLPClassifier": MLPClassifier(),
        "MLPRegressor": MLPRegressor(),
        "skorch classifier": skorch_pipeline(
            NeuralNetClassifier, 2, criterion=nn.CrossEntropyLoss
        ),
        "skorch regressor": skorch_pipeline(ColumnRegressor, 1),
    }


def outcomes_of(estimator: Any) -> dict[str, tuple[str, str]]:
    """Return the outcome and the message of each check by name."""
    found = {}
    for _, check in finite_estimator_checks(estimator):
        try:
            outcome, message = OUTCOMES[check(estimator)], ""
        except AssertionError as failure:
            outcome, message = failure.kind, str(failure)
        found[check.func.__name__] = (outcome, message)
    return found


def as_rows(table: dict[str, dict[str, tuple[str, str]]]) -> list[str]:
    """Return the lines of a Markdown table: a row per check, then the failures."""
    header = ["check", *table]
    lines = [header, ["---"] * len(header)]
    for name in dict.fromkeys(name for found in table.values() for name in found):
        cells = [found[name][0] if name in found else "-" for found in table.values()]
        lines.append([f"`{name.removeprefix('check_')}`", *cells])
    failed = [
        sum(outcome not in OUTCOMES.values() for outcome, _ in found.values())
        for found in table.values()
    ]
    counts = zip(failed, table.values(), strict=True)
    lines.append(["failed", *(f"{n} of {len(found)}" for n, found in counts)])
    return [f"| {' | '.join(line)} |" for line in lines]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="parts of names to check")
    parser.add_argument("--details", action="store_true", help="print the messages")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = arguments.only or [""]
    table = {
        name: outcomes_of(estimator)
        for name, estimator in candidates().items()
        if any(part in name for part in wanted)
    }
    print("\n".join(as_rows(table)))
    if arguments.details:
        for name, found in table.items():
            for message in (message for _, message in found.values() if message):
                print(f"\n{name}: {message}")


if __name__ == "__main__":
    main()
