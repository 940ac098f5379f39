"""Training time of sknan, an expert's loop, skorch and scikit-learn's MLPClassifier.

    python -m benchmarks.training [--repeats N] [--epochs N] [--json FILE]

The network is a multi-layer perceptron with two hidden layers, and the table a numpy
array of 20 000 x 30. The figures are medians of ratios of processor times on one
thread, taken in turn.

- *ours* is StableNetClassifier with its guard, a cosine schedule and clipping by norm.
- *opaque* is the same network with a custom ``forward``, which autograd trains.
- *expert* is a loop with fused AdamW, ``clip_grad_norm_`` and a gather by index for
  each batch, and nothing else.
- *skorch* uses fused AdamW.
- *products* are the matrix products of the linear layers alone, forward and backward,
  with the same batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from benchmarks.timing import in_turn, keep_freed_memory, ratio_in_turn
from sknan import GuardedNetClassifier, StableNetClassifier

N_ROWS, N_FEATURES = 20_000, 30
RATE = 1e-3

# (width, batch)
SIZES = [(128, 128), (32, 64), (256, 512)]

# Largest allowed ratio of two training times, for all sizes or for each size; None if
# the ratio is only reported.
LIMITS: dict[tuple[str, str], float | list[float] | None] = {
    ("ours", "expert"): [0.56, 0.45, 0.80],
    ("ours, opaque", "expert"): 1.0,
    ("ours", "MLPClassifier"): 0.8,
    ("ours", "skorch"): 0.5,
    ("GuardedNetClassifier", "skorch"): 0.8,
    ("ours", "products"): None,
    ("products", "skorch"): None,
}


class Perceptron(nn.Sequential):
    """Network with two hidden layers, ReLU, and a logit for each of two classes."""

    def __init__(self, width: int, n_features_in: int = N_FEATURES) -> None:
        super().__init__(
            nn.Linear(n_features_in, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 2),
        )


class Opaque(Perceptron):
    """The same network with a custom ``forward``, which the engine cannot analyze."""

    def forward(self, X: Tensor) -> Tensor:
        """Return logits of shape (n_samples, 2)."""
        for layer in self:
            X = layer(X)
        return X


def data() -> tuple[np.ndarray, np.ndarray]:
    """Return a table and noisy labels, which a network can learn only in part."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, N_FEATURES)).astype(np.float32)
    score = X[:, 0] + X[:, 1] * X[:, 2] + rng.normal(size=N_ROWS)
    return X, (score > 0).astype(np.int64)


# -- peers ---------------------------------------------------------------------------


def expert(
    X: np.ndarray, y: np.ndarray, width: int, batch_size: int, epochs: int
) -> nn.Module:
    """Train with a fast loop as an expert would write it."""
    rows, target = torch.from_numpy(X), torch.from_numpy(y)
    module = Perceptron(width, X.shape[1])
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, fused=True)
    parameters = list(module.parameters())
    for _ in range(epochs):
        order = torch.randperm(len(rows))
        for index in order.split(batch_size):
            optimizer.zero_grad()
            criterion(module(rows[index]), target[index]).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
    return module


def products(width: int, batch_size: int, n_steps: int) -> None:
    """Compute the matrix products of forward and backward for a number of steps.

    The first layer does not need the gradient of its input.
    """
    shapes = [(N_FEATURES, width), (width, width), (width, 2)]
    weights = [torch.randn(n_out, n_in) for n_in, n_out in shapes]
    inputs = [torch.randn(batch_size, n_in) for n_in, _ in shapes]
    grads = [torch.randn(batch_size, n_out) for _, n_out in shapes]
    for _ in range(n_steps):
        for layer, (weight, x, grad) in enumerate(
            zip(weights, inputs, grads, strict=True)
        ):
            torch.mm(x, weight.t())
            torch.mm(grad.t(), x)
            if layer:
                torch.mm(grad, weight)


def trainings_of(
    X: np.ndarray, y: np.ndarray, width: int, batch_size: int, epochs: int
) -> dict[str, Callable[[], object]]:
    """Return a training function without arguments for each implementation."""
    common: dict[str, Any] = {
        "module__width": width,
        "lr": RATE,
        "max_epochs": epochs,
        "batch_size": batch_size,
    }
    skorch_options: dict[str, Any] = {
        **common,
        "criterion": nn.CrossEntropyLoss,
        "optimizer": torch.optim.AdamW,
        "optimizer__fused": True,
        "iterator_train__shuffle": True,
        "train_split": None,
        "verbose": 0,
    }
    stable = {
        **common,
        "early_stopping": False,
        "clip_norm": 1.0,
        "lr_schedule": "cosine",
        "random_state": 0,
    }
    n_steps = -(-N_ROWS // batch_size) * epochs
    return {
        "ours": lambda: StableNetClassifier(Perceptron, **stable).fit(X, y),
        "ours, opaque": lambda: StableNetClassifier(Opaque, **stable).fit(X, y),
        "GuardedNetClassifier": lambda: GuardedNetClassifier(
            Perceptron, clip_norm=1.0, lr_schedule="cosine", **skorch_options
        ).fit(X, y),
        "expert": lambda: expert(X, y, width, batch_size, epochs),
        "skorch": lambda: NeuralNetClassifier(Perceptron, **skorch_options).fit(X, y),
        "MLPClassifier": lambda: MLPClassifier(
            (width, width),
            batch_size=batch_size,
            learning_rate_init=RATE,
            max_iter=epochs,
            tol=0.0,
            n_iter_no_change=epochs,
            random_state=0,
        ).fit(X, y),
        "products": lambda: products(width, batch_size, n_steps),
    }


def measure(repeats: int, epochs: int) -> list[dict[str, Any]]:
    """Print and return the time of a step and the ratios for each size."""
    X, y = data()
    found = []
    for width, batch_size in SIZES:
        trainings = trainings_of(X, y, width, batch_size, epochs)
        seconds_of_each = in_turn(
            list(trainings.values()), repeats=repeats, clock=time.process_time
        )
        times = dict(zip(trainings, seconds_of_each, strict=True))
        n_steps = -(-N_ROWS // batch_size) * epochs
        found.append(
            {
                "width": width,
                "batch_size": batch_size,
                "step_us": {
                    name: statistics.median(seconds) / n_steps * 1e6
                    for name, seconds in times.items()
                },
                "ratios": {
                    f"{name} / {peer}": ratio_in_turn(times[name], times[peer])
                    for name, peer in LIMITS
                },
            }
        )
        report(found[-1])
    return found


def report(result: dict[str, Any]) -> None:
    """Print the result for one size."""
    print(f"width {result['width']}, batch {result['batch_size']}")
    for name, us in result["step_us"].items():
        print(f"  {name:<20} {us:8.0f} us per step")
    size = SIZES.index((result["width"], result["batch_size"]))
    for (name, peer), limits in LIMITS.items():
        limit = limits[size] if isinstance(limits, list) else limits
        ratio = result["ratios"][f"{name} / {peer}"]
        missed = "" if limit is None or ratio <= limit else "  missed"
        bound = "" if limit is None else f"  (at most {limit:.2f})"
        print(f"  {name} / {peer}: {ratio:.2f}{bound}{missed}")


def measure_compiled(repeats: int) -> dict[str, float]:
    """Print and return the times of fits of an opaque network, compiled and plain."""
    X, y = data()
    found = {}
    for name, options in {"plain": {}, "compiled": {"compile": True}}.items():
        model = StableNetClassifier(
            Opaque,
            module__width=256,
            batch_size=512,
            max_epochs=5,
            early_stopping=False,
            warm_start=True,
            random_state=0,
            **options,
        )
        start = time.perf_counter()
        model.fit(X, y)
        found[f"{name}, first fit"] = time.perf_counter() - start
        seconds = []
        for _ in range(repeats):
            start = time.process_time()
            model.fit(X, y)
            seconds.append(time.process_time() - start)
        found[f"{name}, later fits"] = statistics.median(seconds)
    for name, seconds in found.items():
        print(f"{name}: {seconds:.2f} s")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="timed fits of each")
    parser.add_argument("--epochs", type=int, default=5, help="epochs in a fit")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    with warnings.catch_warnings(), threadpool_limits(1):
        # MLPClassifier warns that it has not converged, and StableNetClassifier if no
        # step was clipped.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)
        found = {
            "fit": measure(arguments.repeats, arguments.epochs),
            "compile": measure_compiled(arguments.repeats),
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
