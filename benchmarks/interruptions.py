"""Interruptions of trainings at random moments, after which everything must be usable.

    python -m benchmarks.interruptions [--n 100] [--seed 0] [--case 17]

A fit is interrupted by Ctrl-C, by a handler of SIGTERM that raises, by an exception in
a callback or a scorer, or by memory that cannot be allocated. It is that of an
estimator or a guarded net, alone or with a backup, of an ensemble, or of a search of
sknan or scikit-learn. These are failures:

- lost: the fit returns as if it were complete, with other predictions;
- foreign: another exception comes out than the one that came in;
- partial: a fit that returned with a warning is that of a search or an ensemble, or
  the predictions are not finite;
- refit: the next fit of the same object, or the resumed training, predicts otherwise
  than one that was never interrupted, or fails;
- settings: gradients are off, or the number of threads has changed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import BaggingRegressor
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from torch import nn

from sknan import (
    BackupAndRestore,
    BatchedGridSearchCV,
    GuardedNetRegressor,
    StableNetEnsembleRegressor,
    StableNetRegressor,
)

X = np.random.default_rng(0).normal(size=(96, 4)).astype("float32")
Y = (X[:, 0] - 0.5 * X[:, 1] ** 2).astype("float32")


class StopError(Exception):
    """Exception that a callback, a scorer or a handler raises."""


# Exception that comes out after each interruption, and a part of its message.
KINDS: dict[str, tuple[type[BaseException], str]] = {
    "SIGINT": (KeyboardInterrupt, ""),
    "SIGTERM": (StopError, "stop"),
    "raise": (StopError, "stop"),
    "torch memory": (RuntimeError, "can't allocate memory"),
    "numpy memory": (MemoryError, "Unable to allocate"),
}
SHARES = (0.35, 0.35, 0.1, 0.1, 0.1)


class Alarm:
    """Action at the n-th call of one of the places below, counted over all clones."""

    n_calls = 0
    n_left: float = np.inf
    action: Callable[[], object]

    @classmethod
    def ring(cls) -> None:
        """Count a call, and act if it is the one."""
        cls.n_calls += 1
        cls.n_left -= 1
        if cls.n_left == 0:
            cls.action()


class InCallback(Callback):
    """Callback that counts the calls of its methods for epochs."""

    def count(self, net: Any, **_: Any) -> None:
        """Count."""
        Alarm.ring()

    on_train_begin = on_epoch_begin = on_epoch_end = on_train_end = count


class InBatch(InCallback):
    """Callback that also counts batches, so that the loop of the net is used."""

    on_batch_begin = on_grad_computed = InCallback.count


class InForward(nn.Sequential):
    """Network that counts its calls."""

    def __init__(self, n_features_in: int = 4, n_outputs: int = 1) -> None:
        layers = nn.Linear(n_features_in, 8), nn.Tanh(), nn.Linear(8, n_outputs)
        super().__init__(*layers, nn.Flatten(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Count, and return the output."""
        Alarm.ring()
        output: torch.Tensor = super().forward(x)
        return output


def scored(model: Any, X: Any, y: Any) -> float:
    """Count, and return a score."""
    Alarm.ring()
    return float(-np.mean((model.predict(X) - y) ** 2))


def drawn_model(rng: np.random.Generator, path: Path) -> Any:
    """Draw an estimator whose calls are counted at one place."""
    place = rng.choice(["callback", "batch", "forward", "scorer"])
    name = rng.choice(["net", "estimator", "ensemble", "bagging", "search", "grid"])
    counting = {"callback": [InCallback()], "batch": [InBatch()]}
    callbacks: list[Any] = counting.get(place, [])
    if name in ("net", "estimator") and rng.random() < 0.5:
        callbacks.append(BackupAndRestore(path))
    estimator = StableNetRegressor(
        InForward if place == "forward" else None,
        max_epochs=int(rng.integers(2, 6)),
        batch_size=16,
        callbacks=callbacks or None,
        early_stopping=bool(place == "scorer" or rng.random() < 0.3),
        scoring=scored if place == "scorer" else None,
        random_state=0,
    )
    net: Any = GuardedNetRegressor(
        InForward, max_epochs=3, batch_size=16, callbacks=callbacks, verbose=0
    )
    options: dict[str, Any] = {
        "param_grid": {"lr": [1e-3, 1e-2]},
        "error_score": "raise",
        "cv": 2,
    }
    models = {
        "net": net,
        "estimator": estimator,
        "ensemble": StableNetEnsembleRegressor(estimator, n_estimators=3),
        "bagging": BaggingRegressor(estimator, n_estimators=2),
        "search": BatchedGridSearchCV(estimator, **options),
        "grid": GridSearchCV(net if rng.random() < 0.5 else estimator, **options),
    }
    model = models[name]
    return (
        model.set_params(random_state=0) if name in ("ensemble", "bagging") else model
    )


def fitted(model: Any) -> np.ndarray:
    """Return the predictions after a fit."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - skorch's split uses it
    model.fit(X, Y)
    n_left, Alarm.n_left = Alarm.n_left, np.inf
    predictions = np.asarray(model.predict(X))
    Alarm.n_left = n_left
    return predictions


def stop(*_: Any) -> None:
    """Raise the exception of a handler, callback or scorer."""
    raise StopError("stop")


@contextmanager
def interrupted(kind: str, rng: np.random.Generator, seconds: float) -> Iterator[None]:
    """Interrupt the block once."""
    number = signal.SIGTERM if kind == "SIGTERM" else signal.SIGINT
    actions: dict[str, Callable[[], object]] = {
        "raise": stop,
        "torch memory": lambda: torch.empty(2**50),
        "numpy memory": lambda: np.empty(2**50),
    }
    Alarm.action = actions.get(kind, lambda: signal.raise_signal(number))
    before = signal.signal(signal.SIGTERM, stop)
    timer = None
    if kind.startswith("SIG") and rng.random() < 0.9:  # at any instruction
        wait = seconds * rng.random()
        timer = threading.Timer(wait, os.kill, (os.getpid(), number))
        timer.start()
    else:
        Alarm.n_left = int(rng.integers(1, max(Alarm.n_calls, 1) + 1))
    try:
        yield
    finally:
        Alarm.n_left = np.inf
        if timer is not None:
            timer.cancel()
            timer.join()
        signal.signal(signal.SIGTERM, before)


def judged(number: int, folder: str) -> tuple[str, list[str]]:
    """Run a case, and return what came out with the failures."""
    rng = np.random.default_rng(number)
    path = Path(folder) / "backup"
    kind, model = str(rng.choice([*KINDS], p=SHARES)), drawn_model(rng, path)
    Alarm.n_calls = 0
    start = time.perf_counter()
    expected, before = fitted(model), (torch.is_grad_enabled(), torch.get_num_threads())
    seconds = time.perf_counter() - start
    result, failures = "complete", []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with interrupted(kind, rng, seconds):
                found = fitted(model)
        except BaseException as error:
            result = type(error).__name__
            if not isinstance(error, KINDS[kind][0]) or KINDS[kind][1] not in str(
                error
            ):
                last = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{last.filename}:{last.lineno}"
                failures.append(f"foreign: {result}: {error} ({place})")
        else:
            if any("interrupted after" in str(issued.message) for issued in caught):
                result = "warned"
                if not (np.isfinite(found).all() and hasattr(model, "module")):
                    failures.append(f"partial: {type(model).__name__} {found}")
            elif (found != expected).any():
                failures.append("lost: other predictions without a warning")
    if (torch.is_grad_enabled(), torch.get_num_threads()) != before:
        failures.append("settings: gradients or threads")
    try:
        if (fitted(model) != expected).any():
            failures.append("refit: other predictions")
        if path.exists():
            failures.append("refit: the backup has remained")
    except Exception as error:
        failures.append(f"refit: {type(error).__name__}: {error}")
    return f"{kind}: {result}", failures


def main() -> None:
    """Print failures and counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100, help="number of interruptions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run the case of this number")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start = arguments.seed * 1_000_000
    numbers = range(start, start + arguments.n)
    counts: Counter[str] = Counter()
    for number in numbers if arguments.case is None else [arguments.case]:
        with TemporaryDirectory() as folder:
            result, failures = judged(number, folder)
        counts.update([result, *(text.partition(":")[0] for text in failures)])
        for text in failures:
            print(f"{number} {result}: {text[:500]}", flush=True)
    for name, count in sorted(counts.items()):
        print(f"{count:>6} {name}")
    sys.exit(any(":" not in name for name in counts))


if __name__ == "__main__":
    main()
