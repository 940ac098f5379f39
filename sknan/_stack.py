"""One training of many networks whose weights lie in one tensor, slice by slice."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sknan._layerwise import ACTIVATIONS, layers_of, layerwise_pass
from sknan._loss_watch import LossWatch
from sknan._threads import threads_for
from sknan._training_plan import TrainingPlan
from sknan._verdict import OVERFLOWS_SQUARED
from sknan.batching import TensorBatches, TensorTable
from sknan.losses import CrossEntropyLoss, MSELoss
from sknan.schedules import LearningRateSchedule

__all__ = ["shape_of", "train_stack"]

_aten = torch.ops.aten

# A larger rate may overflow inside the optimizer, which the guard then looks for.
_LARGEST_RATE = 1e10

_ADAMS = (torch.optim.Adam, torch.optim.AdamW)


# -- which trainings may lie in one stack ----------------------------------------------


def shape_of(plan: TrainingPlan) -> Hashable | None:
    """What trainings of one stack have in common; None for one that goes alone.

    Parameters
    ----------
    plan : TrainingPlan
        Prepared, and not begun.

    Returns
    -------
    hashable or None
    """
    net, table = plan.net, plan.table
    # Whoever is to see or shape single steps needs them.
    is_usual = (
        not plan.is_partial
        and not net.verbose
        and net.device == "cpu"
        and net.clip_value is None
        and net.adaptive_clip is None
        and not net.callbacks
        and isinstance(table.y, Tensor)
        and type(net.optimizer_) in _ADAMS
        and len(net.optimizer_.param_groups) == 1
    )
    if not is_usual or layerwise_pass(net.module_, net.criterion_, table.X) is None:
        return None
    if _loss_of(net.criterion_, table.y) is None:
        return None
    group = net.optimizer_.param_groups[0]
    options = {k: v for k, v in group.items() if k not in ("params", "lr")}
    options.pop("weight_decay")
    is_plain = not (options["amsgrad"] or options["maximize"] or options["capturable"])
    if not is_plain or not 0.0 < float(group["lr"]) < _LARGEST_RATE:
        return None
    layers = layers_of(net.module_) or []
    n_train, n_valid = len(table), 0
    if plan.best is not None:
        train, valid = plan.split(plan.split_seed)
        n_train, n_valid = len(train), len(valid)
    return (
        tuple((type(layer), _sizes(layer)) for layer in layers),
        type(net.criterion_),
        type(net.optimizer_),
        tuple(sorted((k, str(v)) for k, v in options.items())),
        (n_train, n_valid, net.batch_size, net.max_epochs),
        table.X.dtype,
        table.y.shape[1:],
    )


def _sizes(layer: nn.Module) -> Any:
    if isinstance(layer, nn.Linear):
        return (*layer.weight.shape, layer.bias is not None)
    return getattr(layer, "approximate", None)


# -- losses: value of each slice, and gradient of the output ---------------------------


def _cross_entropy(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the rows of each slice; logits (K, B, C), codes (K, B)."""
    n_slices, n_rows, n_classes = output.shape
    logs = torch.log_softmax(output.reshape(-1, n_classes), 1)
    codes = target.reshape(-1)
    losses, total = _aten.nll_loss_forward.default(logs, codes, None, 0, -100)
    share = torch.full_like(losses, 1.0 / n_rows)
    grad = _aten.nll_loss_backward.default(share, logs, codes, None, 0, -100, total)
    grad = _aten._log_softmax_backward_data.default(grad, logs, 1, output.dtype)
    return losses.view(n_slices, n_rows).mean(1), grad.view_as(output)


def _squared_error(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over rows and outputs of each slice; both (K, B, ...)."""
    difference = output - target.view_as(output)
    n_values = difference[0].numel()
    losses = difference.square().flatten(1).mean(1)
    return losses, difference.mul_(2.0 / n_values)


def _loss_of(criterion: Any, target: Tensor) -> Any:
    """The loss of stacked outputs, if it is written out here."""
    if type(criterion) in (CrossEntropyLoss, nn.CrossEntropyLoss):
        is_plain = (
            criterion.weight is None
            and criterion.label_smoothing == 0.0
            and criterion.reduction == "mean"
        )
        fits = target.ndim == 1 and target.dtype == torch.int64
        return _cross_entropy if is_plain and fits else None
    if type(criterion) in (MSELoss, nn.MSELoss):
        return _squared_error if criterion.reduction == "mean" else None
    return None


# -- layers ----------------------------------------------------------------------------


class _StackedLinear:
    """Linear layers of all slices; weights (K, out, in), inputs (K, B, in)."""

    def __init__(self, weight: tuple[Tensor, Tensor], bias: Any) -> None:
        self.weight, self.weight_grad = weight
        self.weight_t = self.weight.transpose(1, 2)
        self.bias, self.bias_grad = bias

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        if self.bias is None:
            return _product(x, self.weight_t)
        if self.weight.shape[1] == 1 or _is_tiny(x, self.weight_t):
            triples = zip(self.bias, x, self.weight_t, strict=True)
            return torch.stack([torch.addmm(b, own, w) for b, own, w in triples])
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight_t)

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        _product(grad.transpose(1, 2), self.x, out=self.weight_grad)
        if self.bias_grad is not None:
            torch.sum(grad, 1, out=self.bias_grad)
        return _product(grad, self.weight) if needs_input else None


# For products of fewer multiplications, and of one column, torch's batched product
# takes another way than its plain one, and rounds otherwise.
_TINY = 400


def _is_tiny(a: Tensor, b: Tensor) -> bool:
    return a.shape[1] * a.shape[2] * b.shape[2] < _TINY


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Of the matrices of each slice, as a training by itself would round it."""
    if not _is_tiny(a, b):
        return torch.bmm(a, b, out=out)
    return torch.stack([x.mm(y) for x, y in zip(a, b, strict=True)], out=out)


class _StackedActivation:
    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.function, self.slope, self.is_of_output = ACTIVATIONS[type(module)]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(self.module, x)
        self.kept = y if self.is_of_output else x
        return y

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        if not needs_input:
            return None
        slope: Tensor = self.slope(self.module, grad, self.kept)
        return slope


class _StackedDropout:
    """Each slice draws its mask from its own generator, as it would by itself."""

    def __init__(self, shares: list[float], generators: list[torch.Generator]) -> None:
        self.shares = shares
        self.generators = generators

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.empty_like(x)
        for own, p, generator in zip(noise, self.shares, self.generators, strict=True):
            own.bernoulli_(1.0 - p, generator=generator).div_(1.0 - p)
        self.noise = noise
        return x * noise

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        return grad * self.noise if needs_input else None


# -- slices ----------------------------------------------------------------------------


class _Slice:
    """What one training of the stack has for itself."""

    def __init__(self, plan: TrainingPlan, offset: int, n_steps: int) -> None:
        net = plan.net
        self.plan = plan
        self.net: Any = net
        self.layers = layers_of(net.module_) or []
        group = net.optimizer_.param_groups[0]
        self.lr = float(group["lr"])
        self.weight_decay = float(group["weight_decay"])
        self.schedule = LearningRateSchedule(net.lr_schedule, net.warmup)
        self.schedule.start(n_steps)
        self.is_scheduled = net.lr_schedule is not None or bool(net.warmup)
        self.generator = torch.Generator()
        self.generator.set_state(plan.random_states[0])
        self.watch = LossWatch(n_steps)
        rows = torch.arange(len(plan.table)), torch.zeros(0, dtype=torch.int64)
        if plan.best is not None:
            net._split_seed_ = plan.split_seed
            rows = plan.split(plan.split_seed)
        self.train, self.valid = rows[0] + offset, rows[1] + offset
        self.history: list[dict[str, Any]] = []
        self.norms: list[float] = []
        self.coefficients: list[float] = []
        self.total_loss = 0.0
        self.n_clipped = 0
        self.largest_norm = 0.0
        self.best_loss, self.best_epoch, self.last_gain = math.inf, 0, 0
        self.best_weights: list[Tensor] | None = None

    @property
    def weights(self) -> list[nn.Parameter]:
        return [p for layer in self.layers for p in layer.parameters()]

    def factor(self, n_steps: int) -> float:
        """Of the rate at a step."""
        return self.schedule.factor(n_steps) if self.is_scheduled else 1.0

    def is_refused(self, loss: float, norm: float) -> bool:
        """Whether the guard would, or might, refuse this step."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return True
        if norm >= OVERFLOWS_SQUARED:
            return True
        if self.net.clip_norm is None and self.watch.is_spike(loss, norm):
            return True
        suspicions: list[bool] = []

        def untrained_loss() -> float:
            suspicions.append(True)
            return math.nan

        return self.watch.has_exploded(loss, untrained_loss) or bool(suspicions)

    def clipped(self, norm: float, loss: float, n_rows: int) -> float:
        """Note a step that is taken; by what its gradients are to be multiplied."""
        most = self.net.clip_norm
        coefficient = 1.0 if most is None or norm <= most else most / norm
        self.total_loss += loss * n_rows
        self.norms.append(norm)
        self.coefficients.append(coefficient)
        self.n_clipped += coefficient < 1.0
        self.largest_norm = max(self.largest_norm, norm)
        return coefficient

    def end_epoch(self, n_rows: int, rate: float, valid_loss: float | None) -> None:
        """Write the history of the epoch, as the net itself would."""
        entry = {
            "train_batch_count": len(self.norms),
            "train_loss": self.total_loss / n_rows,
            "grad_norm": float(np.median(self.norms)),
        }
        if self.net.clip_norm is not None:
            clipped = [c for c in self.coefficients if c < 1.0]
            entry["clip_share"] = len(clipped) / len(self.norms)
            entry["clip_coefficient"] = float(np.mean(clipped)) if clipped else 1.0
        entry["lr"] = rate
        if valid_loss is not None:
            entry |= {"valid_batch_count": 1, "valid_loss": valid_loss}
        monitored = entry["train_loss"] if valid_loss is None else valid_loss
        self.schedule.update(monitored)
        self.history.append(entry)
        self.norms, self.coefficients, self.total_loss = [], [], 0.0

    def keeps(self, weights: Callable[[], list[Tensor]]) -> bool:
        """Keep the epoch's weights if they are the best; whether patience is left."""
        best = self.plan.best
        if best is None:
            return True
        epoch, loss = len(self.history), self.history[-1]["valid_loss"]
        if math.isfinite(loss) and loss <= self.best_loss:
            if loss < self.best_loss:
                self.last_gain = epoch
            self.best_loss, self.best_epoch = loss, epoch
            self.best_weights = weights()
        return epoch - self.last_gain < best.patience

    def finish(self, weights: list[Tensor], seconds: float, n_steps: int) -> None:
        """Leave the net as its own training would have left it."""
        net, best = self.net, self.plan.best
        net._prepare_guard(is_new=True)
        net.history_ = type(net.history)()
        for entry in self.history:
            net.history.new_epoch()
            net.history.record("epoch", len(net.history))
            for name, value in entry.items():
                net.history.record(name, value)
            net.history.record("dur", seconds / len(self.history))
        if best is not None:
            best.initialize()
            best.best_epoch_ = self.best_epoch or None
            best.best_score_ = self.best_loss
        with torch.no_grad():
            kept = self.best_weights or weights
            for parameter, value in zip(self.weights, kept, strict=True):
                parameter.copy_(value)
        self.n_steps = n_steps

    def warn(self) -> None:
        """Say what the net itself would have said at the end."""
        training: Any = SimpleNamespace(
            n_steps=self.n_steps,
            n_clipped=self.n_clipped,
            largest_norm=self.largest_norm,
        )
        if self.net._is_clip_idle(training):
            self.net._warn_of_idle_clip(training)


class _Stack:
    """Weights, gradients and moments of the slices that are still trained.

    Each is a list of blocks, one for each weight, with the slices along the first axis.
    """

    def __init__(self, slices: list[_Slice]) -> None:
        columns = zip(*(its.weights for its in slices), strict=True)
        weights = [torch.stack([p.detach() for p in column]) for column in columns]
        parts = [weights, *([torch.zeros_like(w) for w in weights] for _ in range(3))]
        self._take(slices, parts)

    def _take(self, slices: list[_Slice], parts: list[list[Tensor]]) -> None:
        self.slices = slices
        self._parts = parts
        self._lists: dict[tuple[int, ...], list[list[Tensor]]] = {}
        self.weights, self.gradients = parts[:2]
        blocks = iter(zip(self.weights, self.gradients, strict=True))
        self.layers: list[Any] = []
        for i, layer in enumerate(slices[0].layers):
            if isinstance(layer, nn.Linear):
                weight = next(blocks)
                bias = next(blocks) if layer.bias is not None else (None, None)
                self.layers.append(_StackedLinear(weight, bias))
            elif isinstance(layer, nn.Dropout):
                shares: list[Any] = [its.layers[i].p for its in slices]
                generators = [its.generator for its in slices]
                self.layers.append(_StackedDropout(shares, generators))
            else:
                self.layers.append(_StackedActivation(layer))
        is_linear = [isinstance(layer, _StackedLinear) for layer in self.layers]
        self.first = is_linear.index(True)

    def keep(self, numbers: Sequence[int]) -> None:
        """Let all other slices go."""
        index = torch.tensor(numbers)
        parts = [
            [block.index_select(0, index) for block in blocks] for blocks in self._parts
        ]
        self._take([self.slices[k] for k in numbers], parts)

    def weights_of(self, k: int) -> list[Tensor]:
        """A copy of the weights of one slice."""
        return [block[k].clone() for block in self.weights]

    def forward(self, x: Tensor, *, training: bool) -> Tensor:
        """Outputs (K, B, ...) of inputs (K, B, n_features)."""
        for layer in self.layers:
            if training or not isinstance(layer, _StackedDropout):
                x = layer.forward(x)
        return x

    def backward(self, grad: Any) -> None:
        """Leave the gradients of the weights, given that of the outputs."""
        for i in range(len(self.layers) - 1, self.first - 1, -1):
            grad = self.layers[i].backward(grad, i > self.first)

    def norms(self) -> list[Tensor]:
        """2-norm of each gradient of each slice."""
        return [
            torch.linalg.vector_norm(block.flatten(1), dim=1)
            for block in self.gradients
        ]

    def clip(self, coefficients: list[float]) -> None:
        """Multiply the gradients of each slice by a number of its own."""
        if min(coefficients) == 1.0:
            return
        factors = torch.tensor(coefficients, dtype=self.weights[0].dtype)
        for block in self.gradients:
            block.mul_(factors.view(-1, *[1] * (block.ndim - 1)))

    def step(self, group: dict[str, Any], rates: list[float], n_steps: int) -> None:
        """One step of Adam or AdamW, with a rate and a decay for each slice.

        By torch's fused kernel, slices of one rate and decay in one call: written out
        for all slices at once it would round otherwise than a training by itself.
        """
        is_decoupled = group["decoupled_weight_decay"]
        kernel = torch._fused_adamw_ if is_decoupled else torch._fused_adam_
        beta1, beta2 = group["betas"]
        count = torch.tensor(float(n_steps))
        alike: dict[tuple[float, float], list[int]] = {}
        for k, (its, rate) in enumerate(zip(self.slices, rates, strict=True)):
            alike.setdefault((rate, its.weight_decay), []).append(k)
        for (rate, decay), numbers in alike.items():
            weights, gradients, means, squares = self._lists_of(tuple(numbers))
            kernel(
                weights,
                gradients,
                means,
                squares,
                [],
                [count] * len(weights),
                amsgrad=False,
                lr=rate,
                beta1=beta1,
                beta2=beta2,
                weight_decay=decay,
                eps=group["eps"],
                maximize=False,
            )

    def _lists_of(self, numbers: tuple[int, ...]) -> list[list[Tensor]]:
        """Weights, gradients and moments of some slices, one tensor each."""
        if numbers not in self._lists:
            self._lists[numbers] = [
                [view[k] for k in numbers for view in views] for views in self._parts
            ]
        return self._lists[numbers]

    def are_finite(self) -> list[bool]:
        """Whether the weights of each slice are finite."""
        sums = [block.flatten(1).sum(1) for block in self.weights]
        finite: list[bool] = torch.isfinite(torch.stack(sums)).all(0).tolist()
        return finite


# -- the training ----------------------------------------------------------------------


def train_stack(
    plans: list[TrainingPlan], sources: list[Hashable]
) -> list[Callable[[], None] | None]:
    """Train networks of one :func:`shape_of` together.

    Parameters
    ----------
    plans : list of TrainingPlan
        Prepared, and not begun.
    sources : list of hashable
        Equal for plans whose tables hold the same rows, which are then kept once.

    Returns
    -------
    list of callable or None
        For each that is trained, what shows the warnings of its training. None if a
        step of it has failed or might have: its plan is as it was, to be run by itself.
    """
    tables, offsets = _distinct_tables(plans, sources)
    n_flops = 3.0 * plans[0].net.flops_per_row_ * plans[0].batch_size * len(plans)
    run = _Run(plans, tables, offsets)
    with torch.no_grad(), threads_for(n_flops, plans[0].num_threads):
        run.train()
    done = {id(its.plan): its.warn for its in run.done}
    return [done.get(id(plan)) for plan in plans]


def _distinct_tables(
    plans: list[TrainingPlan], sources: list[Hashable]
) -> tuple[list[TensorTable], list[int]]:
    """Tables without those that come again, and where the rows of each plan begin."""
    tables: list[TensorTable] = []
    starts: dict[Hashable, int] = {}
    offsets = []
    end = 0
    for plan, source in zip(plans, sources, strict=True):
        if source not in starts:
            starts[source] = end
            tables.append(plan.table)
            end += len(plan.table)
        offsets.append(starts[source])
    return tables, offsets


class _Run:
    """The epochs of a stack."""

    def __init__(
        self,
        plans: list[TrainingPlan],
        tables: list[TensorTable],
        offsets: list[int],
    ) -> None:
        self.X = torch.cat([table.X for table in tables])
        self.y = torch.cat([table.y for table in tables])
        net = plans[0].net
        self.group = net.optimizer_.param_groups[0]
        self.loss_of = _loss_of(net.criterion_, tables[0].y)
        n_train = len(tables[0])
        if plans[0].best is not None:
            n_train = len(plans[0].split(plans[0].split_seed)[0])
        nothing = torch.zeros(n_train)
        self.bounds = TensorBatches(
            TensorTable(nothing, nothing), net.batch_size, merge_lone_row=True
        ).bounds()
        self.n_epochs = net.max_epochs
        n_steps = len(self.bounds) * self.n_epochs
        self.stack = _Stack(
            [
                _Slice(plan, offset, n_steps)
                for plan, offset in zip(plans, offsets, strict=True)
            ]
        )
        self.n_train = n_train
        self.n_steps = 0
        self.done: list[_Slice] = []

    def train(self) -> None:
        """Train all slices to their end."""
        self.start = time.perf_counter()
        for _ in range(self.n_epochs):
            self._train_epoch()
            if not self.stack.slices:
                return
        self._let_go(range(len(self.stack.slices)))

    def _let_go(self, numbers: Sequence[int]) -> None:
        """Slices that are at their end."""
        seconds = time.perf_counter() - self.start
        for k in numbers:
            its = self.stack.slices[k]
            its.finish(self.stack.weights_of(k), seconds, self.n_steps)
            self.done.append(its)

    def _train_epoch(self) -> None:
        stack = self.stack
        orders = torch.stack(
            [
                its.train[torch.randperm(self.n_train, generator=its.generator)]
                for its in stack.slices
            ]
        )
        rates: list[float] = []
        x = output = torch.zeros(0)
        for start, stop in self.bounds:
            rows = orders[:, start:stop]
            x, target = self._rows(rows)
            output = stack.forward(x, training=True)
            losses, grad = self.loss_of(output, target)
            stack.backward(grad)
            each_loss, *norms = torch.stack([losses, *stack.norms()]).tolist()
            whole = [math.hypot(*own) for own in zip(*norms, strict=True)]
            pairs = list(zip(each_loss, whole, strict=True))
            kept = [
                k
                for k, (its, pair) in enumerate(zip(stack.slices, pairs, strict=True))
                if not its.is_refused(*pair)
            ]
            if len(kept) < len(pairs):
                if not kept:
                    stack.slices = []
                    return
                stack.keep(kept)
                orders, output = orders[kept], output[kept]
                pairs = [pairs[k] for k in kept]
                x = x[kept]
            stack.clip(
                [
                    its.clipped(norm, loss, stop - start)
                    for its, (loss, norm) in zip(stack.slices, pairs, strict=True)
                ]
            )
            rates = [its.lr * its.factor(self.n_steps) for its in stack.slices]
            self.n_steps += 1
            stack.step(self.group, rates, self.n_steps)
        self._end_epoch(x, output, rates)

    def _rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of rows (K, B)."""
        flat = rows.reshape(-1)
        x = self.X.index_select(0, flat).view(*rows.shape, -1)
        y = self.y.index_select(0, flat).view(*rows.shape, *self.y.shape[1:])
        return x, y

    def _end_epoch(self, x: Tensor, output: Tensor, rates: list[float]) -> None:
        """Verify, validate, log, and let go what fails or is at its end."""
        stack = self.stack
        valid_losses = self._valid_losses()
        are_finite = stack.are_finite()
        remaining: list[int] = []
        ended: list[int] = []
        for k, its in enumerate(stack.slices):
            if not are_finite[k] or _might_be_collapsed(x[k], output[k]):
                continue
            loss = None if valid_losses is None else valid_losses[k]
            its.end_epoch(self.n_train, rates[k], loss)
            goes_on = its.keeps(lambda k=k: stack.weights_of(k))  # type: ignore[misc]
            (remaining if goes_on else ended).append(k)
        self._let_go(ended)
        if not remaining:
            stack.slices = []
        elif len(remaining) < len(stack.slices):
            stack.keep(remaining)

    def _valid_losses(self) -> list[float] | None:
        slices = self.stack.slices
        if slices[0].plan.best is None:
            return None
        rows = torch.stack([its.valid for its in slices])
        x, target = self._rows(rows)
        losses: list[float] = self.loss_of(
            self.stack.forward(x, training=False), target
        )[0].tolist()
        return losses


def _might_be_collapsed(x: Tensor, output: Tensor) -> bool:
    """Whether the guard would look closer: one answer for all rows of a batch."""
    is_constant = len(output) > 1 and bool(torch.eq(output, output[:1]).all())
    return is_constant and not bool(torch.eq(x, x[:1]).all())
