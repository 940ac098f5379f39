"""Failed checks of sknan, scikit-learn and skorch on damaged tables.

    python -m benchmarks.fault_injection [--only skorch MLP] [--details]

Each estimator has its defaults. ``pipeline`` is make_pipeline(NaNImputer(),
SafeScaler(), estimator of sknan). A check of sknan.testing passes if the fitted model
is finite and useful, or if an error names the fault.
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

# The ways to fail a check.
KINDS = ("silent NaN", "wrong", "error")


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
    """Return the estimators by name."""
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


def failures_of(estimator: Any) -> dict[str, tuple[str, str] | None]:
    """Return the kind and message of each failure by check, None where it passes."""
    found: dict[str, tuple[str, str] | None] = {}
    for _, check in finite_estimator_checks(estimator):
        name = check.func.__name__
        found[name] = None
        try:
            check(estimator)
        except AssertionError as failure:
            found[name] = (failure.kind, str(failure))
    return found


def as_rows(table: dict[str, dict[str, tuple[str, str] | None]]) -> list[str]:
    """Return the lines of two Markdown tables: the numbers of failures, and which."""
    counts = [["estimator", "failed"], ["---"] * 2]
    for name, found in table.items():
        n_failed = sum(failure is not None for failure in found.values())
        counts.append([name, f"{n_failed} of {len(found)}"])
    failures = [["check", *KINDS], ["---"] * (1 + len(KINDS))]
    for check in dict.fromkeys(name for found in table.values() for name in found):
        kinds = {name: (found.get(check) or ("",))[0] for name, found in table.items()}
        cells = [", ".join(n for n, k in kinds.items() if k == kind) for kind in KINDS]
        if any(cells):
            failures.append([f"`{check.removeprefix('check_')}`", *cells])
    rows = [[f"| {' | '.join(line)} |" for line in part] for part in (counts, failures)]
    return [*rows[0], "", *rows[1]]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="parts of names to check")
    parser.add_argument("--details", action="store_true", help="print the messages")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = arguments.only or [""]
    table = {
        name: failures_of(estimator)
        for name, estimator in candidates().items()
        if any(part in name for part in wanted)
    }
    print("\n".join(as_rows(table)))
    if arguments.details:
        for name, found in table.items():
            for failure in filter(None, found.values()):
                print(f"\n{name}: {failure[1]}")


if __name__ == "__main__":
    main()
