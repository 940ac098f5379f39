"""Count of false alarms of the guard in 200 healthy trainings.

    python -m benchmarks.false_alarms [--start 200] [--count 50] [--json FILE]

Each number is the seed of one training with a random network, table, loss, optimizer,
schedule and batch size, at a common learning rate. Two of three trainings use
GuardedNet and are compared with the net of skorch from the same seed: the weights, the
buffers and the losses of all epochs must be bitwise identical. The others use the
estimators. A training is healthy if its loss is always finite and later falls below
that of the first epoch, where that of skorch's net also ends, after the last step. An
alarm is a report of the guard, a DivergenceWarning, or an error.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import LRScheduler
from torch import Tensor, nn

from sknan import GuardedNet, SafeScaler, StableNetClassifier, StableNetRegressor
from sknan.exceptions import DivergenceWarning

N_TRAININGS = 200

# Number of features, and of the steps of a sequence that is made of them.
N_FEATURES, N_STEPS = 24, 12

ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.SELU, nn.LeakyReLU, nn.Sigmoid)
KINDS = ("mlp", "mlp", "mlp", "residual", "rnn", "gru", "lstm", "conv", "attention")
TASKS = (
    "two classes",
    "five classes",
    "imbalanced",
    "regression",
    "noisy regression",
    "counts",
    "variance",
)
OPTIMIZERS: tuple[tuple[str, dict[str, Any], tuple[float, ...]], ...] = (
    ("SGD", {}, (0.003, 0.01, 0.03)),
    ("SGD", {"momentum": 0.9}, (0.001, 0.003, 0.01)),
    ("SGD", {"momentum": 0.9, "nesterov": True}, (0.001, 0.003, 0.01)),
    ("Adam", {}, (3e-4, 1e-3, 3e-3, 1e-2)),
    ("AdamW", {"weight_decay": 0.01}, (3e-4, 1e-3, 3e-3, 1e-2)),
    ("AdamW", {"weight_decay": 0.1, "amsgrad": True}, (1e-3, 3e-3)),
    ("RMSprop", {}, (3e-4, 1e-3, 3e-3)),
    ("Adagrad", {}, (1e-3, 1e-2, 3e-2)),
    ("NAdam", {}, (3e-4, 1e-3, 3e-3)),
)
SCHEDULES: tuple[tuple[str, dict[str, Any]] | None, ...] = (
    None,
    ("CosineAnnealingLR", {"T_max": 8}),
    ("StepLR", {"step_size": 3, "gamma": 0.3}),
    ("ExponentialLR", {"gamma": 0.8}),
    ("CyclicLR", {"base_lr": 1e-4, "max_lr": 3e-3, "cycle_momentum": False}),
)
DATA = ("normal", "heavy tails", "sparse")


class Network(nn.Module):
    """Network of one of several kinds, for rows of features or sequences of them."""

    def __init__(
        self,
        kind: str,
        n_outputs: int,
        width: int,
        depth: int,
        activation: type[nn.Module],
        norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.kind = kind
        channels = N_FEATURES // N_STEPS
        layers: list[nn.Module] = []
        n_in = N_FEATURES
        if kind in ("rnn", "gru", "lstm"):
            cell = getattr(nn, kind.upper())
            self.body = cell(channels, width, num_layers=1 + depth // 3)
            n_in = width
        elif kind == "conv":
            self.body = nn.Sequential(
                nn.Conv1d(channels, width, 3, padding=1),
                nn.BatchNorm1d(width) if norm == "batch" else nn.Identity(),
                activation(),
                nn.Conv1d(width, width, 3, stride=2),
                activation(),
                nn.AdaptiveMaxPool1d(1),
                nn.Flatten(),
            )
            n_in = width
        elif kind == "attention":
            width = max(width // 4 * 4, 8)
            self.embed = nn.Linear(channels, width)
            self.body = nn.TransformerEncoderLayer(
                width, 4, 2 * width, dropout, batch_first=True
            )
            causal = nn.Transformer.generate_square_subsequent_mask(N_STEPS)
            self.register_buffer("mask", causal)
            n_in = width
        elif kind == "residual":
            self.body = nn.Linear(N_FEATURES, width)
            n_in = width
        for _ in range(depth):
            layers.append(nn.Linear(n_in, width))
            if norm != "none":
                layers.append(
                    nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width)
                )
            layers.append(activation())
            if dropout:
                layers.append(nn.Dropout(dropout))
            n_in = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(n_in, n_outputs)

    def forward(self, X: Tensor) -> Tensor:
        """Return logits or predictions of shape (n_samples, n_outputs)."""
        sequence = X.reshape(len(X), N_STEPS, -1)
        if self.kind in ("rnn", "gru", "lstm"):
            X = self.body(sequence.transpose(0, 1))[0][-1]
        elif self.kind == "conv":
            X = self.body(sequence.transpose(1, 2))
        elif self.kind == "attention":
            X = self.body(self.embed(sequence), src_mask=self.mask).mean(dim=1)
        elif self.kind == "residual":
            X = self.body(X)
            return self.head(X + self.layers(X))
        return self.head(self.layers(X))


class MeanAndVariance(nn.Module):
    """GaussianNLLLoss of torch for outputs of two columns; it may be negative."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the batch."""
        mean, raw = output[:, :1], output[:, 1:]
        variance = nn.functional.softplus(raw) + 1e-3
        loss: Tensor = nn.functional.gaussian_nll_loss(mean, target, variance)
        return loss


class Case(NamedTuple):
    """Description of one training."""

    number: int
    library: str
    task: str
    kind: str
    data: str
    X: np.ndarray
    y: np.ndarray
    options: dict[str, Any]

    @property
    def text(self) -> str:
        """Description in one line."""
        shown = {
            name.removeprefix("module__"): getattr(value, "__name__", value)
            for name, value in self.options.items()
            if name not in ("callbacks", "criterion", "module__kind")
        }
        settings = ", ".join(f"{name}={value}" for name, value in shown.items())
        return (
            f"{self.number}: {self.library}, {self.task}, {self.kind}, {self.data}, "
            f"{len(self.X)} rows, {settings}"
        )


def table(task: str, data: str, rng: np.random.Generator) -> tuple[Any, Any]:
    """Return scaled features and a target that depends on them."""
    n_rows = int(rng.choice([60, 200, 600, 1500]))
    shape = n_rows, N_FEATURES
    X = rng.normal(size=shape)
    if data == "heavy tails":
        X = rng.standard_t(1.2, size=shape)
    elif data == "sparse":
        X = X * (rng.random(shape) < 0.1)
    X = SafeScaler().fit_transform(X).astype(np.float32)
    signal = X @ rng.normal(size=N_FEATURES) / math.sqrt(N_FEATURES)
    signal = signal + np.sin(2 * X[:, 0]) + 0.3 * rng.normal(size=n_rows)
    if task == "two classes":
        return X, (signal > 0).astype(np.float32).reshape(-1, 1)
    if task == "five classes":
        return X, np.digitize(signal, np.quantile(signal, [0.2, 0.4, 0.6, 0.8]))
    if task == "imbalanced":
        return X, (signal > np.quantile(signal, 0.97)).astype(np.int64)
    if task == "counts":
        return X, rng.poisson(np.exp(signal)).astype(np.float32).reshape(-1, 1)
    if task == "noisy regression":
        signal = signal + rng.standard_t(2, size=n_rows)
    return X, signal.astype(np.float32).reshape(-1, 1)


LOSSES: dict[str, tuple[tuple[Any, ...], int]] = {
    "two classes": ((nn.BCEWithLogitsLoss,), 1),
    "five classes": ((nn.CrossEntropyLoss,), 5),
    "imbalanced": ((nn.CrossEntropyLoss,), 2),
    "regression": ((nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss), 1),
    "noisy regression": ((nn.MSELoss, nn.HuberLoss), 1),
    "counts": ((nn.PoissonNLLLoss,), 1),
    "variance": ((MeanAndVariance,), 2),
}


def random_case(number: int) -> Case:
    """Return the training of a number.

    Task, kind of network and optimizer follow from the number, so that all of them
    occur; the rest is random.
    """
    rng = np.random.default_rng(number)

    def one_of(choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    is_estimator = number % 3 == 2
    # Number of the training among those of the same library.
    i = number // 3 if is_estimator else number - number // 3
    task, kind = TASKS[i % len(TASKS)], KINDS[i % len(KINDS)]
    data = one_of(DATA)
    X, y = table(task, data, rng)
    name, settings, rates = OPTIMIZERS[(i + i // len(KINDS)) % len(OPTIMIZERS)]
    batch_size = min(int(one_of((8, 16, 32, 64, 128, 256))), len(X) // 3)
    n_per_epoch = math.ceil(len(X) / batch_size)
    common = {
        "lr": one_of(rates),
        "batch_size": batch_size,
        "max_epochs": max(5, min(30, 300 // n_per_epoch)),
    }
    if is_estimator:
        return _by_estimator(number, task, data, X, y, name, common, rng)
    losses, n_outputs = LOSSES[task]
    depth = int(rng.integers(0 if kind != "residual" else 1, 5))
    options = {
        **common,
        "criterion": one_of(losses),
        "optimizer": getattr(torch.optim, name),
        **{f"optimizer__{key}": value for key, value in settings.items()},
        "module__kind": kind,
        "module__n_outputs": n_outputs,
        "module__width": int(one_of((8, 16, 32, 64, 128))),
        "module__depth": depth,
        "module__activation": one_of(ACTIVATIONS),
        "module__norm": one_of(("none", "batch", "layer")),
        "module__dropout": one_of((0.0, 0.0, 0.1, 0.5)),
        "iterator_train__shuffle": bool(number % 5),
        # Batch normalization needs more than one row in a batch.
        "iterator_train__drop_last": True,
    }
    schedule = one_of(SCHEDULES)
    if schedule is not None:
        policy = LRScheduler(schedule[0], **schedule[1])
        options["callbacks"] = [("schedule", policy)]
    return Case(number, "skorch", task, kind, data, X, y, options)


def _by_estimator(
    number: int,
    task: str,
    data: str,
    X: np.ndarray,
    y: np.ndarray,
    optimizer: str,
    common: dict[str, Any],
    rng: np.random.Generator,
) -> Case:
    criteria = {
        "two classes": ("cross_entropy", "binary_cross_entropy", "focal"),
        "five classes": ("cross_entropy", "focal"),
        "imbalanced": ("cross_entropy",),
        "regression": ("mse", "mae", "huber", "log_cosh", "quantile", "rmse"),
        "noisy regression": ("mse", "huber", "pseudo_huber"),
        "counts": ("poisson", "tweedie", "mse"),
        "variance": ("gaussian_nll",),
    }[task]
    activations = ("relu", "gelu", "selu", "silu", "mish", "tanh")
    options = {
        **common,
        "criterion": criteria[rng.integers(len(criteria))],
        "optimizer": optimizer.lower(),
        "lr_schedule": (None, "cosine", "one_cycle", "exponential", "plateau")[
            rng.integers(5)
        ],
        "warmup": (0.0, 0.1)[rng.integers(2)],
        "module__width": int((16, 64, 128)[rng.integers(3)]),
        "module__depth": int(rng.integers(0, 5)),
        "module__activation": activations[rng.integers(len(activations))],
        "module__dropout": float((0.0, 0.2)[rng.integers(2)]),
        "clip_norm": (1.0, None)[rng.integers(2)],
        "random_state": number,
    }
    if task in ("two classes", "imbalanced") and number % 2:
        options["class_weight"] = "balanced"
    if task in LOSSES and task.endswith("regression") and number % 4 == 1:
        y = 200 + 50 * y  # in raw units
    return Case(number, "scikit-learn", task, "mlp", data, X, y.ravel(), options)


class Outcome(NamedTuple):
    """Result of a training."""

    alarms: list[str]
    differs: list[str]
    is_healthy: bool
    seconds: float


def run(case: Case) -> Outcome:
    """Train with the guard, and compare with the training without it."""
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = _fit_net if case.library == "skorch" else _fit_estimator
        alarms, differs, is_healthy = fit(case)
    alarms += [
        str(w.message) for w in caught if issubclass(w.category, DivergenceWarning)
    ]
    return Outcome(alarms, differs, is_healthy, time.perf_counter() - start)


def _fit_net(case: Case) -> tuple[list[str], list[str], bool]:
    nets = []
    for net_class in (NeuralNet, GuardedNet):
        torch.manual_seed(case.number)
        net = net_class(Network, verbose=0, **case.options)
        try:
            nets.append(net.fit(case.X, case.y))
        except Exception as error:
            if net_class is NeuralNet:
                raise
            return [f"{type(error).__name__}: {error}"], [], True
    plain, guarded = nets
    losses = plain.history[:, "train_loss"]
    ends_low = _final_loss(plain, case) < losses[0]
    differs = [
        name
        for name, value in plain.module_.state_dict().items()
        if not torch.equal(value, guarded.module_.state_dict()[name])
    ]
    for key in ("train_loss", "valid_loss"):
        if plain.history[:, key] != guarded.history[:, key]:
            differs.append(key)
    alarms = [str(report) for report in guarded.nonfinite_reports_]
    return alarms, differs, _is_healthy(losses) and ends_low


def _final_loss(net: NeuralNet, case: Case) -> float:
    """Return the mean loss of the batches in evaluation mode, after the training."""
    batches = net.get_iterator(net.get_dataset(case.X, case.y), training=False)
    return float(np.mean([float(net.validation_step(b)["loss"]) for b in batches]))


def _is_healthy(losses: list[float]) -> bool:
    return bool(np.isfinite(losses).all() and min(losses[1:]) < losses[0])


def _fit_estimator(case: Case) -> tuple[list[str], list[str], bool]:
    is_classifier = case.task in ("two classes", "five classes", "imbalanced")
    estimator = StableNetClassifier if is_classifier else StableNetRegressor
    try:
        model = estimator(**case.options).fit(case.X, case.y)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"], [], True
    alarms = [str(report) for report in model.nonfinite_reports_]
    return alarms, [], _is_healthy(model.net_.history[:, "train_loss"])


def main() -> None:
    """Print the alarms and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=int, default=0, help="first training")
    parser.add_argument(
        "--count", type=int, default=N_TRAININGS, help="number of trainings"
    )
    parser.add_argument("--json", type=Path, help="file for the outcomes")
    parser.add_argument("--verbose", action="store_true", help="a line for each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[int, Any] = {}
    counts: Counter[str] = Counter()
    for number in range(arguments.start, arguments.start + arguments.count):
        case = random_case(number)
        outcome = run(case)
        found[number] = {"case": case.text, **outcome._asdict()}
        counts["trainings"] += 1
        counts[f"with {case.library}"] += 1
        counts["healthy"] += outcome.is_healthy
        counts["healthy, with an alarm"] += outcome.is_healthy and bool(outcome.alarms)
        counts["other, with an alarm"] += not outcome.is_healthy and bool(
            outcome.alarms
        )
        counts["not bitwise identical to skorch"] += bool(outcome.differs)
        is_odd = outcome.alarms or outcome.differs or not outcome.is_healthy
        if is_odd or arguments.verbose:
            print(f"{case.text} ({outcome.seconds:.1f} s)")
            for line in outcome.alarms[:2]:
                print(f"    alarm: {line[:300]}")
            if outcome.differs:
                print(f"    differs: {', '.join(outcome.differs[:4])}")
            if not outcome.is_healthy:
                print("    not healthy")
    for name, count in counts.items():
        print(f"{count:>5} {name}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
