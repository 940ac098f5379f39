"""Cost of the guard: time of healthy steps, fits and failed steps, and memory.

    python -m benchmarks.guard [--only step fit replay memory] [--json FILE]

The figures are medians of ratios of processor times on one thread, taken in turn. The
peers are defined below: a loop that users write by hand, and the training step of
skorch with the clipping of torch. The limits are 3 % of a healthy step and of a fit of
ten epochs, the time of
five steps to explain a failed one, and the memory of two copies of weights, buffers and
optimizer state. *Other* memory is that of kept batches and row numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, GradientNormClipping
from skorch.utils import TeeGenerator
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from benchmarks.timing import in_turn, keep_freed_memory, ratio_in_turn
from sknan import GuardedNet
from sknan.diagnosis import diagnose
from sknan.nets._batching import TensorBatches
from sknan.nets._data import as_table
from sknan.nets.guard import Guard
from sknan.nets.recovery.explain import explain
from sknan.nets.recovery.protocol import StepRefused
from sknan.optim import clip_grad_norm

N_FEATURES = 20
N_BATCHES = 10

# Number of networks to average over: the time depends by a percent or two on the memory
# addresses of a network.
N_INSTANCES = 5

STEP_LIMIT = 1.03
REPLAY_LIMIT = 5.0
MEMORY_LIMIT = 2.0

Batches = list[tuple[Tensor, Tensor]]


# -- networks and data ---------------------------------------------------------------


class Perceptron(nn.Sequential):
    """Network with two hidden layers, with or without batch normalization."""

    def __init__(self, width: int, has_norm: bool) -> None:
        layers: list[nn.Module] = []
        n_in = N_FEATURES
        for _ in range(2):
            layers.append(nn.Linear(n_in, width))
            if has_norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(nn.ReLU())
            n_in = width
        super().__init__(*layers, nn.Linear(n_in, 1))


class Fragile(nn.Module):
    """Network with a final operation that needs a positive first feature."""

    def __init__(self, width: int, edge: str, n_steps: int) -> None:
        super().__init__()
        self.edge = edge
        self.n_steps = n_steps
        self.width = width
        self.scale = nn.Parameter(torch.ones(()))
        if n_steps:
            self.cell = nn.RNNCell(N_FEATURES, width)
            self.head = nn.Linear(width, 1)
        else:
            self.body = Perceptron(width, has_norm=False)

    def forward(self, X: Tensor) -> Tensor:
        """Return predictions of shape (n_samples, 1)."""
        if self.n_steps:
            state = X.new_zeros(len(X), self.width)
            for t in range(self.n_steps):
                state = self.cell(X[:, t], state)
            output, first = self.head(state), X[:, -1, :1]
        else:
            output, first = self.body(X), X[:, :1]
        first = first * self.scale
        if self.edge == "forward":
            return output + torch.log(first)
        return output + torch.sqrt(first.clamp(min=0.0))


class SquaredLogError(nn.Module):
    """Loss that is not finite if a target is 0."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the batch."""
        return (output - torch.log(target)).square().mean()


def batches(batch_size: int, n_steps: int = 0) -> Batches:
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, n_steps, N_FEATURES) if n_steps else (batch_size, N_FEATURES)
    return [
        (
            torch.rand(shape, generator=generator) + 0.5,
            torch.rand(batch_size, 1, generator=generator) + 0.5,
        )
        for _ in range(N_BATCHES)
    ]


def net_of(net_class: Any, module: nn.Module, criterion: Any, **options: Any) -> Any:
    """Return an initialized net with fused AdamW, as the estimators use it."""
    return net_class(
        module,
        criterion=criterion,
        optimizer=torch.optim.AdamW,
        optimizer__fused=True,
        lr=1e-3,
        train_split=None,
        verbose=0,
        callbacks__print_log=None,
        **options,
    ).initialize()


# -- a healthy step ------------------------------------------------------------------


class UnguardedNet(GuardedNet):
    """GuardedNet with the training step of skorch and the clipping of torch."""

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Train like skorch, and clip the gradients."""
        accumulator = self.get_train_step_accumulator()

        def step_fn() -> Tensor:
            self._zero_grad_optimizer()
            step = self.train_step_single(batch, **fit_params)
            accumulator.store_step(step)
            self.notify(
                "on_grad_computed",
                named_parameters=TeeGenerator(self.get_all_learnable_params()),
                batch=batch,
                training=True,
            )
            clip_grad_norm_(self.module_.parameters(), self.clip_norm)
            loss: Tensor = step["loss"]
            return loss

        self._step_optimizer(step_fn)
        taken: dict[str, Any] = accumulator.get_step()
        return taken


def loop_by_hand(module: nn.Module, data: Batches, max_norm: float) -> Any:
    """Return a training loop without a guard; it returns the sum of the losses."""
    loss_of = nn.MSELoss()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    parameters = list(module.parameters())

    def run() -> float:
        total = 0.0
        for X, y in data:
            optimizer.zero_grad()
            loss = loss_of(module(X), y)
            loss.backward()
            clip_grad_norm_(parameters, max_norm)
            optimizer.step()
            total += loss.item()
        return total

    return run


def guarded_loop(module: nn.Module, data: Batches, max_norm: float) -> Any:
    """Return a loop that calls the guard in each step instead of torch's clipping."""
    loss_of = nn.MSELoss()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    guard = Guard()
    guard.begin([module], [optimizer])

    def run() -> float:
        total = 0.0
        for X, y in data:
            optimizer.zero_grad()
            guard.begin_step()
            torch.get_rng_state()
            loss = loss_of(module(X), y)
            loss.backward()
            value, norm, _, grads = guard.look(loss)
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise ArithmeticError(f"loss {value}, norm {norm}")
            if guard.is_spike(value, norm) or guard.has_exploded(value, float):
                raise ArithmeticError(f"loss {value}, norm {norm}")
            guard.pass_step(value)
            norm *= clip_grad_norm(grads, max_norm, norm)
            optimizer.step()
            if guard.may_overflow(1.0, norm) and not guard.has_finite_weights():
                raise ArithmeticError("the step has overflowed")
            guard.step_taken()
            total += value
        return total

    return run


def steps_of(net: Any, data: Batches) -> Callable[[], float]:
    """Return a function that takes training steps and returns the sum of the losses."""
    return lambda: sum(net.train_step(batch)["loss"].item() for batch in data)


def measure_steps(repeats: int) -> dict[str, Any]:
    """Print and return a row for each size."""
    print(
        f"{'a healthy step':<32}{'loop µs':>9}{'guard':>8}{'net':>8}"
        f"{'limit':>7}{'  |  ':>5}{'net/loop':>9}"
    )
    found = {}
    for width in (64, 128, 256):
        for has_norm in (False, True):
            # With the first norm every step is clipped, with the second none.
            for max_norm in (1e-3, 1e3):
                row = _steps(width, has_norm, max_norm, repeats)
                norm = ", BatchNorm" if has_norm else ""
                clips = "clips" if max_norm < 1 else "no clipping"
                name = f"{width}/{width}{norm}, {clips}"
                found[name] = row
                worst = max(row["guard"], row["net"])
                print(
                    f"{name:<32}{row['loop_s'] * 1e6:>9.0f}{row['guard']:>8.3f}"
                    f"{row['net']:>8.3f}{STEP_LIMIT:>7.2f}"
                    f"{'  |  ':>5}{row['net_over_loop']:>9.2f}"
                    f"{'' if worst <= STEP_LIMIT else '  above'}",
                    flush=True,
                )
    return found


def _steps(
    width: int, has_norm: bool, max_norm: float, repeats: int
) -> dict[str, float]:
    data = batches(width)

    def module() -> nn.Module:
        torch.manual_seed(0)
        return Perceptron(width, has_norm)

    net_classes = (UnguardedNet, GuardedNet)
    times: list[list[float]] = [[] for _ in range(2 + len(net_classes))]
    for _ in range(N_INSTANCES):
        nets = [
            net_of(net_class, module(), nn.MSELoss, clip_norm=max_norm)
            for net_class in net_classes
        ]
        trainings = [
            loop_by_hand(module(), data, max_norm),
            guarded_loop(module(), data, max_norm),
            *(steps_of(net, data) for net in nets),
        ]
        found = in_turn(trainings, repeats=repeats, clock=time.process_time)
        for all_times, new_times in zip(times, found, strict=True):
            all_times += new_times
    loop, guarded, unguarded_net, net = times
    return {
        "loop_s": statistics.median(loop) / len(data),
        "guard": ratio_in_turn(guarded, loop),
        "net": ratio_in_turn(net, unguarded_net),
        "net_over_loop": ratio_in_turn(net, loop),
        "skorch_over_loop": ratio_in_turn(unguarded_net, loop),
    }


# -- a fit ---------------------------------------------------------------------------


class WholeTableNet(NeuralNet):
    """Net of skorch whose batches are slices of whole tensors, as in GuardedNet."""

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return the batches of a data set."""
        table = as_table(dataset)
        assert table is not None
        return TensorBatches(table, self.batch_size, shuffle=training, like_loader=True)


def measure_fits(repeats: int) -> dict[str, Any]:
    """Print and return a row for each size and number of epochs.

    The peer is skorch's net with GradientNormClipping; in the last column, on batches
    that are slices of whole tensors.
    """
    print(
        f"{'a fit':<32}{'skorch ms':>9}{'fit':>8}{'limit':>7}{'  |  ':>5}{'slices':>7}"
    )
    found = {}
    for width, has_norm in ((64, False), (64, True), (256, False), (256, True)):
        for n_epochs in (1, 10, 20):
            row = _fits(width, has_norm, n_epochs, repeats)
            norm = ", BatchNorm" if has_norm else ""
            name = f"{width}/{width}{norm}, {n_epochs} epochs"
            found[name] = row
            is_bounded = n_epochs >= 10
            limit = f"{STEP_LIMIT:.2f}" if is_bounded else ""
            is_above = is_bounded and row["fit"] > STEP_LIMIT
            print(
                f"{name:<32}{row['peer_s'] * 1e3:>9.1f}{row['fit']:>8.3f}{limit:>7}"
                f"{'  |  ':>5}{row['over_slices']:>7.2f}{'  above' * is_above}",
                flush=True,
            )
    return found


def _fits(width: int, has_norm: bool, n_epochs: int, repeats: int) -> dict[str, float]:
    X, y = (torch.cat(parts) for parts in zip(*batches(width), strict=True))

    def fit_of(net_class: Any, **options: Any) -> Callable[[], Any]:
        def fit() -> Any:
            torch.manual_seed(0)
            net = net_of(net_class, Perceptron(width, has_norm), nn.MSELoss, **options)
            net.set_params(max_epochs=n_epochs, batch_size=width)
            return net.partial_fit(X, y)

        return fit

    clipping = {"callbacks": [GradientNormClipping(1.0)]}
    peer, slices, ours = in_turn(
        [
            fit_of(NeuralNet, iterator_train__shuffle=True, **clipping),
            fit_of(WholeTableNet, **clipping),
            fit_of(GuardedNet, iterator_train__shuffle=True, clip_norm=1.0),
        ],
        repeats=repeats,
        clock=time.process_time,
    )
    return {
        "peer_s": statistics.median(peer),
        "fit": ratio_in_turn(ours, peer),
        "over_slices": ratio_in_turn(ours, slices),
    }


# -- a failed step -------------------------------------------------------------------


def with_fault(batch: tuple[Tensor, Tensor], fault: str) -> tuple[Tensor, Tensor]:
    """Return a copy of a batch in which two rows make the step fail."""
    X, y = (x.clone() for x in batch)
    if fault == "loss":
        y[[3, 50]] = 0.0
    else:
        X[[3, 50]] = -1.0 if fault == "forward" else 0.0
    return X, y


def measure_replay(repeats: int) -> dict[str, Any]:
    """Print and return a row for each fault and size."""
    print(
        f"{'a failed step':<32}{'step ms':>9}{'explain':>9}{'diagnose':>10}{'limit':>7}"
    )
    found = {}
    for fault in ("forward", "loss", "backward"):
        for width, n_steps in ((32, 0), (128, 0), (512, 0), (128, 30)):
            row = _replay(fault, width, n_steps, repeats)
            name = f"{fault}, {width}{', 30 steps' if n_steps else ''}"
            found[name] = row
            worst = max(row["explain"], row["diagnose"])
            print(
                f"{name:<32}{row['step_s'] * 1e3:>9.2f}{row['explain']:>9.1f}"
                f"{row['diagnose']:>10.1f}{REPLAY_LIMIT:>7.1f}"
                f"{'' if worst <= REPLAY_LIMIT else '  above'}",
                flush=True,
            )
    return found


def _replay(fault: str, width: int, n_steps: int, repeats: int) -> dict[str, float]:
    data = batches(128, n_steps)
    torch.manual_seed(0)
    net = net_of(GuardedNet, Fragile(width, fault, n_steps), SquaredLogError)
    healthy = steps_of(net, data)
    healthy()
    training, bad = net._training_, with_fault(data[0], fault)
    try:
        training.attempt(bad, {})
    except StepRefused as error:
        refused = error
    report = explain(training, refused, bad, {}).report
    assert (report.phase, report.rows) == (fault, (3, 50)), report
    module, criterion = net.module_, net.criterion_
    steps, explained, diagnosed = in_turn(
        [
            healthy,
            lambda: explain(training, refused, bad, {}),
            lambda: diagnose(module, criterion, *bad),
        ],
        repeats=repeats,
        clock=time.process_time,
    )
    return {
        "step_s": statistics.median(steps) / len(data),
        "explain": ratio_in_turn(explained, steps) * len(data),
        "diagnose": ratio_in_turn(diagnosed, steps) * len(data),
    }


# -- memory --------------------------------------------------------------------------


def tensors_in(thing: Any, into: dict[int, int] | None = None) -> dict[int, int]:
    """Return the bytes of each storage that an object refers to, by its address."""
    found: dict[int, int] = {} if into is None else into
    stack, seen = [thing], set()
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            storage = item.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, (list, tuple, set)):
            stack += item
        elif type(item).__module__.startswith("sknan"):
            stack += vars(item).values()
    return found


def alive() -> int:
    """Return the bytes of all tensors that Python can reach."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
    return sum(
        {
            x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
            for x in tensors
        }.values()
    )


class MemoryRecorder(Callback):
    """Callback that measures the memory of tensors at the end of each epoch."""

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Measure all tensors, those that are trained, and those of the guard."""
        self.alive_ = alive()
        module = [*net.module_.parameters(), *net.module_.buffers()]
        trained = tensors_in([module, list(net.optimizer_.state.values())])
        guard = tensors_in(getattr(net, "guard_", None))
        self.trained_ = sum(trained.values())
        self.held_ = sum(n for key, n in guard.items() if key not in trained)


def _memory_of(net_class: Any, optimizer: Any, has_norm: bool) -> MemoryRecorder:
    data = batches(256)
    X, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    torch.manual_seed(0)
    net = net_class(
        Perceptron(256, has_norm),
        criterion=nn.MSELoss,
        optimizer=optimizer,
        lr=1e-3,
        batch_size=256,
        max_epochs=4,
        train_split=None,
        callbacks=[MemoryRecorder()],
        callbacks__print_log=None,
        verbose=0,
    )
    net.fit(X, y)
    return net.callbacks[0]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress the output of the profiler on the standard error stream."""
    original = os.dup(2)
    with open(os.devnull, "w") as nothing:
        sys.stderr.flush()
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(original, 2)
            os.close(original)


def peak_of(run: Callable[[], object]) -> int:
    """Return the peak of allocated bytes, minus those at the beginning."""
    with _silent(), torch.profiler.profile(profile_memory=True) as profile:
        run()
    events = [
        event
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def measure_memory() -> dict[str, Any]:
    """Print and return the memory in excess of training without a guard."""
    print(f"{'memory':<32}{'held MB':>9}{'copies':>9}{'limit':>7}{'  |  ':>5}other MB")
    found: dict[str, Any] = {}
    for name, optimizer in (("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)):
        for has_norm in (False, True):
            guarded = _memory_of(GuardedNet, optimizer, has_norm)
            plain = _memory_of(NeuralNet, optimizer, has_norm)
            row = {
                "held_bytes": guarded.held_,
                "copies": guarded.held_ / guarded.trained_,
                "other_bytes": guarded.alive_ - plain.alive_ - guarded.held_,
            }
            label = f"256, {name}{', BatchNorm' if has_norm else ''}"
            found[label] = row
            print(
                f"{label:<32}{row['held_bytes'] / 1e6:>9.2f}{row['copies']:>9.2f}"
                f"{MEMORY_LIMIT:>7.1f}{'  |  ':>5}{row['other_bytes'] / 1e6:>8.2f}"
                f"{'' if row['copies'] <= MEMORY_LIMIT else '  above'}"
            )
    for fault in ("forward", "loss", "backward"):
        found[f"failure, {fault}"] = _peaks(fault)
    return found


def _peaks(fault: str) -> dict[str, float]:
    """Print and return the peak memory of a failed step, including the recovery."""
    data = batches(128)
    torch.manual_seed(0)
    net = net_of(GuardedNet, Fragile(512, fault, 0), SquaredLogError)
    steps_of(net, data)()
    training, bad = net._training_, with_fault(data[0], fault)
    state = list(net.optimizer_.state.values())
    one_copy = sum(tensors_in([*net.module_.parameters(), state]).values())
    healthy = peak_of(lambda: training.step(data[0], {}))
    failed = peak_of(lambda: training.step(bad, {}))
    row = {"step_copies": healthy / one_copy, "failed_step_copies": failed / one_copy}
    print(
        f"peak of a step, 512: {healthy / one_copy:.2f} copies; of a failed step "
        f"({fault}): {failed / one_copy:.2f}"
    )
    return row


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", choices=["step", "fit", "replay", "memory"]
    )
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "step": lambda: measure_steps(arguments.repeats),
        "fit": lambda: measure_fits(arguments.repeats),
        "replay": lambda: measure_replay(arguments.repeats),
        "memory": measure_memory,
    }
    found = {
        name: measure()
        for name, measure in measures.items()
        if not arguments.only or name in arguments.only
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
