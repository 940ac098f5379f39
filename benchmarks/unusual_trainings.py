"""Count of false alarms of the guard in 120 healthy trainings with unusual losses.

    python -m benchmarks.unusual_trainings [--start 0] [--count 120]

Each number is the seed of one training of a kind that a rule for ordinary losses may
take for a fault: losses that are exactly 0 at first or for many batches, that change
their sign, grow by design, or have a tiny or huge scale, and rows in the order of their
targets. Two of three trainings use GuardedNet and must be bitwise identical to skorch;
the others use StableNetRegressor. A training is healthy if all losses and weights of
plain skorch are finite. An alarm is a report of the guard, a warning, or an error.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from skorch import NeuralNet
from torch import Tensor, nn

from sknan import GuardedNet, StableNetRegressor

N_TRAININGS = 120
N_FEATURES = 6


class Network(nn.Module):
    """Small network whose last layer may begin at zero."""

    def __init__(
        self,
        n_features_in: int = N_FEATURES,
        n_outputs: int = 1,
        width: int = 16,
        is_head_zero: bool = False,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_features_in, width), nn.ReLU())
        self.head = nn.Linear(width, n_outputs)
        if is_head_zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, X: Tensor) -> Tensor:
        """Return predictions of shape (n_samples, n_outputs)."""
        output: Tensor = self.head(self.body(X))
        return output


class _Reversed(torch.autograd.Function):
    """Identity whose gradient has the opposite sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -0.3 * grads[0]


class Adversarial(Network):
    """Network whose body works against a second head, through a reversed gradient."""

    def __init__(self, **options: Any) -> None:
        super().__init__(n_outputs=1, **options)
        self.critic = nn.Linear(self.head.in_features, 1)

    def forward(self, X: Tensor) -> Tensor:
        """Return the prediction and the output of the critic."""
        hidden = self.body(X)
        outputs = [self.head(hidden), self.critic(_Reversed.apply(hidden))]
        return torch.cat(outputs, dim=1)


class Scaled(nn.Module):
    """Squared error times a number that may change from step to step."""

    def __init__(self, scale: Callable[[int], float]) -> None:
        super().__init__()
        self.scale, self.n_steps = scale, 0

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the batch."""
        self.n_steps += self.training
        error = (output[:, :1] - target).square().mean()
        return self.scale(self.n_steps) * error


class WithCritic(Scaled):
    """Squared error plus the logistic loss of a critic."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the batch."""
        labels = (target > 0).float()
        critic = nn.functional.binary_cross_entropy_with_logits(output[:, 1:], labels)
        return super().forward(output, target) + critic


class Likelihood(nn.Module):
    """Negative log-likelihood of a normal distribution; it falls below 0."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the batch."""
        mean, log_scale = output[:, :1], output[:, 1:].clamp(-9.0, 9.0)
        normal = torch.distributions.Normal(mean, log_scale.exp())
        loss: Tensor = -normal.log_prob(target).mean()
        return loss


class Advantage(nn.Module):
    """Loss of a policy gradient, whose sign changes from batch to batch."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the batch."""
        log_share = nn.functional.logsigmoid(output)
        return -(target * log_share).mean()


class Hinge(nn.Module):
    """Hinge loss, which is exactly 0 for batches outside the margin."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the batch."""
        return torch.relu(0.3 - output * target.sign()).mean()


class Contrast(nn.Module):
    """Difference of the outputs for high and low targets; it may be 0 or negative."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the batch."""
        weights = target - target.mean()
        return -(weights * torch.tanh(output)).mean() + 0.01 * output.square().mean()


class Case(NamedTuple):
    """Description of one training."""

    number: int
    kind: str
    X: np.ndarray
    y: np.ndarray
    module: type[nn.Module]
    options: dict[str, Any]


SCALES: dict[str, Callable[[int], float]] = {
    "tiny": lambda step: 1e-12,
    "huge": lambda step: 1e12,
    "annealed from 0": lambda step: max(0.0, (step - 20) / 10),
    "annealed to 1e4": lambda step: 10.0 ** min(step / 50, 4.0),
    "switched on": lambda step: 1e-6 if step < 60 else 1.0,
    "cyclic": lambda step: 1.001 + math.sin(step / 30),
}
KINDS = (
    *SCALES,
    "zeros first",
    "sorted",
    "sorted, by SGD",
    "likelihood",
    "adversarial",
    "advantage",
    "hinge",
    "contrast",
    "heavy tails",
    "growing targets",
)


def random_case(number: int) -> Case:
    """Return the training of a number; the kind follows from the number."""
    rng = np.random.default_rng(number)
    kind = KINDS[number % len(KINDS)]
    n_rows = int(rng.choice([120, 400, 1000]))
    X = rng.normal(size=(n_rows, N_FEATURES)).astype(np.float32)
    y = X[:, 0] - X[:, 1] + 0.3 * rng.normal(size=n_rows)
    batch_size = int(rng.choice([10, 32, 64]))
    n_epochs = max(6, min(40, 600 * batch_size // n_rows))
    is_ordered = kind.startswith(("sorted", "zeros", "growing"))
    options: dict[str, Any] = {
        "criterion": Scaled,
        "criterion__scale": SCALES.get(kind, lambda step: 1.0),
        "optimizer": (torch.optim.Adam, torch.optim.RMSprop)[rng.integers(2)],
        "lr": float(rng.choice([1e-3, 3e-3, 1e-2])),
        "batch_size": batch_size,
        "max_epochs": n_epochs,
        "iterator_train__shuffle": not is_ordered,
        "module__is_head_zero": kind == "zeros first" or bool(rng.integers(2)),
        "module__width": int(rng.choice([8, 32])),
    }
    if is_ordered:
        order = np.argsort(y, kind="stable")
        X, y = X[order], y[order]
    if kind == "zeros first":
        y = np.where(np.arange(n_rows) < n_rows * rng.choice([0.3, 0.6, 0.9]), 0.0, y)
    elif kind == "sorted, by SGD":
        options |= {"optimizer": torch.optim.SGD, "lr": 0.01}
    elif kind == "heavy tails":
        y = y + rng.standard_t(1.5, size=n_rows)
    elif kind == "growing targets":
        y = y * 10.0 ** np.linspace(-4, 1, n_rows)
    module: type[nn.Module] = Network
    if kind == "adversarial":
        module, options["criterion"] = Adversarial, WithCritic
    elif kind == "likelihood":
        y = y * 10.0 ** rng.integers(-4, 1)
        options |= {"criterion": Likelihood, "module__n_outputs": 2}
    elif kind in ("advantage", "hinge", "contrast"):
        options["criterion"] = {
            "advantage": Advantage,
            "hinge": Hinge,
            "contrast": Contrast,
        }[kind]
    if options["criterion"] not in (Scaled, WithCritic):
        del options["criterion__scale"]
    y = y.astype(np.float32).reshape(-1, 1)
    return Case(number, kind, X, y, module, options)


class Outcome(NamedTuple):
    """Result of a training."""

    alarms: list[str]
    differs: list[str]
    is_healthy: bool


def run(case: Case) -> Outcome:
    """Train with the guard, and compare with the training without it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = _fit(case, NeuralNet)
    state = plain.module_.state_dict()
    numbers = [
        *plain.history[:, "train_loss"],
        *(float(t.sum()) for t in state.values()),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            guarded = _fit(case, GuardedNet if case.number % 3 else StableNetRegressor)
        except Exception as error:
            alarms = [f"{type(error).__name__}: {error}"]
            return Outcome(alarms, [], bool(np.isfinite(numbers).all()))
    alarms = [str(w.message) for w in caught]
    alarms += [str(report) for report in guarded.nonfinite_reports_]
    differs = []
    if case.number % 3:
        found = guarded.module_.state_dict()
        differs = [name for name in state if not torch.equal(state[name], found[name])]
    return Outcome(alarms, differs, bool(np.isfinite(numbers).all()))


def _fit(case: Case, model_class: type) -> Any:
    torch.manual_seed(case.number)
    if model_class is not StableNetRegressor:
        options = {"train_split": None, "verbose": 0, **case.options}
        return model_class(case.module, **options).fit(case.X, case.y)
    options = {**case.options, "early_stopping": False, "random_state": case.number}
    # The estimators have networks of one output and losses with a name.
    for name in ("iterator_train__shuffle", "criterion__scale", "module__n_outputs"):
        options.pop(name, None)
    losses = {"likelihood": "gaussian_nll", "hinge": "huber", "heavy tails": "huber"}
    options["criterion"] = losses.get(case.kind, "mse")
    y = case.y.ravel() * SCALES.get(case.kind, lambda step: 1.0)(30)
    return model_class(Network, **options).fit(case.X, y)


def main() -> None:
    """Print the alarms and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=int, default=0, help="first training")
    parser.add_argument(
        "--count", type=int, default=N_TRAININGS, help="number of trainings"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    for number in range(arguments.start, arguments.start + arguments.count):
        case = random_case(number)
        outcome = run(case)
        counts["trainings"] += 1
        counts["healthy"] += outcome.is_healthy
        counts["healthy, with an alarm"] += outcome.is_healthy and bool(outcome.alarms)
        counts["not bitwise identical to skorch"] += bool(outcome.differs)
        if outcome.alarms or outcome.differs or not outcome.is_healthy:
            print(f"{number}: {case.kind}, {case.options}, {len(case.X)} rows")
            for line in outcome.alarms[:2]:
                print(f"    alarm: {line[:300]}")
            print(f"    differs: {outcome.differs}, healthy: {outcome.is_healthy}")
    for name, count in counts.items():
        print(f"{count:>5} {name}")


if __name__ == "__main__":
    main()
