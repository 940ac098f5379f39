"""What training costs: our nets, an expert's loop, skorch and scikit-learn's MLP.

    python -m benchmarks.training [--repeats N] [--epochs N] [--json FILE]

A multi-layer perceptron of two hidden layers on 20 000 x 30, some epochs of ``fit``,
data as numpy arrays on all sides, one thread, processor time, medians of ratios taken
in turn. Ours has its guard, a cosine schedule and the clip by the norm; the expert's
loop has fused AdamW, ``clip_grad_norm_`` and a gather by index for each batch, and
nothing else; skorch has fused AdamW. ``opaque`` is the same network with a ``forward``
of its own, which is trained by autograd, as the others are. The floor is the matrix
products of the linear layers alone, forward and backward, at the same batches.
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

# Largest ratio of one of our ways to a peer; None where it is only reported.
LIMITS: dict[tuple[str, str], float | None] = {
    ("ours", "expert"): 1.0,
    ("ours, opaque", "expert"): 1.0,
    ("ours", "MLPClassifier"): 1.0,
    ("ours", "skorch"): 0.5,
    ("skorch door", "skorch"): 0.6,
    ("ours", "floor"): None,
    ("floor", "skorch"): None,
}


class Perceptron(nn.Sequential):
    """Two hidden layers with ReLU and a logit for each of two classes."""

    def __init__(self, width: int, n_features_in: int = N_FEATURES) -> None:
        super().__init__(
            nn.Linear(n_features_in, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 2),
        )


class Opaque(Perceptron):
    """The same, with a ``forward`` that nobody looks into."""

    def forward(self, X: Tensor) -> Tensor:
        """Logits of shape (n_samples, 2)."""
        for layer in self:
            X = layer(X)
        return X


def data() -> tuple[np.ndarray, np.ndarray]:
    """A table that can be learnt, but not by heart."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, N_FEATURES)).astype(np.float32)
    score = X[:, 0] + X[:, 1] * X[:, 2] + rng.normal(size=N_ROWS)
    return X, (score > 0).astype(np.int64)


# -- the peers -----------------------------------------------------------------------


def expert(
    X: np.ndarray, y: np.ndarray, width: int, batch_size: int, epochs: int
) -> nn.Module:
    """What somebody writes by hand who knows where time goes."""
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


def floor(width: int, batch_size: int, n_steps: int) -> None:
    """The matrix products of as many steps: forward, and backward for both factors.

    The first layer has no use for the gradient of its input.
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


def ways(
    X: np.ndarray, y: np.ndarray, width: int, batch_size: int, epochs: int
) -> dict[str, Callable[[], object]]:
    """Each way of training the same network, as a function without arguments."""
    common: dict[str, Any] = {
        "module__width": width,
        "lr": RATE,
        "max_epochs": epochs,
        "batch_size": batch_size,
    }
    skorch_like: dict[str, Any] = {
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
        "skorch door": lambda: GuardedNetClassifier(
            Perceptron, clip_norm=1.0, lr_schedule="cosine", **skorch_like
        ).fit(X, y),
        "expert": lambda: expert(X, y, width, batch_size, epochs),
        "skorch": lambda: NeuralNetClassifier(Perceptron, **skorch_like).fit(X, y),
        "MLPClassifier": lambda: MLPClassifier(
            (width, width),
            batch_size=batch_size,
            learning_rate_init=RATE,
            max_iter=epochs,
            tol=0.0,
            n_iter_no_change=epochs,
            random_state=0,
        ).fit(X, y),
        "floor": lambda: floor(width, batch_size, n_steps),
    }


def measure(repeats: int, epochs: int) -> list[dict[str, Any]]:
    """Seconds of a fit by each way, and the ratios that are bounded."""
    X, y = data()
    found = []
    for width, batch_size in SIZES:
        its_ways = ways(X, y, width, batch_size, epochs)
        times = dict(
            zip(
                its_ways,
                in_turn(
                    list(its_ways.values()), repeats=repeats, clock=time.process_time
                ),
                strict=True,
            )
        )
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
                    f"{ours} / {theirs}": ratio_in_turn(times[ours], times[theirs])
                    for ours, theirs in LIMITS
                },
            }
        )
        report(found[-1])
    return found


def report(result: dict[str, Any]) -> None:
    """Print what was found for one size."""
    print(f"width {result['width']}, batch {result['batch_size']}")
    for name, us in result["step_us"].items():
        print(f"  {name:<16} {us:8.0f} us a step")
    for (ours, theirs), limit in LIMITS.items():
        ratio = result["ratios"][f"{ours} / {theirs}"]
        missed = "" if limit is None or ratio <= limit else "  missed"
        bound = "" if limit is None else f"  (at most {limit:.2f})"
        print(f"  {ours} / {theirs}: {ratio:.2f}{bound}{missed}")


def measure_compiled(repeats: int) -> dict[str, float]:
    """Seconds of a step of a network that is not written out, compiled and not."""
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
    parser.add_argument("--repeats", type=int, default=9, help="runs of each way")
    parser.add_argument("--epochs", type=int, default=5, help="epochs in a fit")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    with warnings.catch_warnings(), threadpool_limits(1):
        # MLPClassifier says that so few epochs are not enough; there is no need to
        # tell of a clip that had nothing to do.
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
