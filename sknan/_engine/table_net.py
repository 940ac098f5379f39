"""The guarded net inside an estimator."""

from __future__ import annotations

import contextlib
import math
from typing import Any, ClassVar

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EpochTimer, PrintLog
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode

from sknan._utils.tree import tree_leaves
from sknan.losses._traits import traits_of
from sknan.nets._batching import TensorBatches, TensorTable
from sknan.nets._guarded_step import GuardedTraining
from sknan.nets._hooks import BATCH_METHODS
from sknan.nets._nets import GuardedNet
from sknan.nets.recovery.output_repair import output_repaired, without_output

__all__ = ["TableNet"]

# Values (about 4 MB of float32) in one batch of validation or prediction.
_VALUES_PER_FORWARD = 2**20

# So many rows are predicted at once without asking how wide the network is, and so many
# are tried to find that out: a prime, by which few weights can be divided.
_FEW_ROWS = 2**10
_PROBED_ROWS = 31

# What the estimators clip to by default.
_USUAL_CLIP = 1.0


class TableNet(GuardedNet):
    """Guarded net that takes whole tables and logs epochs, not batches.

    Targets may come as pairs (y, weight); the loss is then the weighted sum over the
    batch by its number of rows. Weights average 1 over the training data, so that this
    is the weighted mean in expectation, and exactly so in a full batch.
    """

    _is_versioned: ClassVar[bool] = False  # the estimator around it is

    # Whether a callback is told of each batch; looked up once an epoch.
    _has_batch_listeners_ = True

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        callbacks: list[tuple[str, Any]] = [("epoch_timer", EpochTimer())]
        if self.verbose >= 2:
            callbacks.append(("print_log", PrintLog()))
        return callbacks

    def _is_clip_idle(self, training: GuardedTraining) -> bool:
        # Nobody has asked for the default.
        return self.clip_norm != _USUAL_CLIP and super()._is_clip_idle(training)

    def get_iterator(self, dataset: TensorTable, training: bool = False) -> Any:
        if training:
            return TensorBatches(
                dataset, self.batch_size, shuffle=True, merge_lone_row=True
            )
        width = _width(dataset.rows(slice(0, 1))[0])
        return TensorBatches(
            dataset, max(self.batch_size, _VALUES_PER_FORWARD // width)
        )

    def get_loss(self, y_pred: Any, y_true: Any, *_: Any, **__: Any) -> Tensor:
        target, weight = y_true if isinstance(y_true, tuple) else (y_true, None)
        if weight is not None and not traits_of(self.criterion_).is_per_row:
            whole: Tensor = self.criterion_(y_pred, target, weight)
            return whole
        loss: Tensor = self.criterion_(y_pred, target)
        if weight is None:
            return loss
        per_row: Tensor = loss.flatten(1).mean(dim=1) if loss.ndim > 1 else loss
        weighted: Tensor = (per_row * weight).mean()
        return weighted

    # -- the step: skorch's, without what a table has no use for ---------------------

    def _start_training(self, iterator: Any) -> None:
        super()._start_training(iterator)
        self._set_training(True)
        self._has_batch_listeners_ = any(map(self._has_listeners, BATCH_METHODS))

    def _has_listeners(self, method_name: str) -> bool:
        """Whether anybody has something to say when the net is notified."""
        return (
            type(self).notify is not NeuralNet.notify
            or getattr(type(self), method_name) is not getattr(NeuralNet, method_name)
            or any(
                getattr(type(callback), method_name, None)
                is not getattr(Callback, method_name)
                for _, callback in self.callbacks_
            )
        )

    def _n_rows(self, batch: Any) -> int:
        return int(batch[0].shape[0])

    def _notify_of_batch(self, method_name: str, **kwargs: Any) -> None:
        if self._has_batch_listeners_:
            self.notify(method_name, **kwargs)

    def infer(self, x: Any, **fit_params: Any) -> Any:
        return self.module_(x, **fit_params)

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        # Whoever is told of a batch may put the network in another mode.
        training: Any = self._training_
        if self._has_batch_listeners_ or not training.is_in_mode:
            self._set_training(True)
        X, y = batch
        y_pred = self.infer(X, **fit_params)
        loss = self.get_loss(y_pred, y)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss, "y_pred": y_pred}

    def _zero_grad_optimizer(self, set_to_none: bool | None = None) -> None:
        for group in self.optimizer_.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _find_fault_of_epoch(self, batch: Any, step: dict[str, Any]) -> str | None:
        fault = super()._find_fault_of_epoch(batch, step)
        is_recoverable = self.on_nonfinite == "recover" and self.guard_.has_budget
        if fault is not None or not is_recoverable:
            return fault
        if (
            not _is_collapsed(batch[0], step["y_pred"])
            or self.guard_.weights.has_shrunk
        ):
            return None  # what decay has pulled to zero has not been flung there
        # A network that never could tell these rows apart has not collapsed.
        with self.guard_.first_weights():
            untrained = self.evaluation_step((batch[0], None))
        if _is_collapsed(batch[0], untrained):
            return None
        return (
            "The network has collapsed: it gives the same output for each of the "
            f"{len(batch[0])} different rows of a batch,"
        )

    def _log_batch(self, prefix: str, loss: float, rows: int) -> None:
        """Leave the single batches out: a history is pickled with the net."""

    def _log_epoch(self, prefix: str, mean_loss: float) -> None:
        self.history.record(f"{prefix}_loss", mean_loss)
        batches = self.history[-1, "batches"]
        if not any(batches):  # a callback may have written to them
            batches.clear()

    def raw_output(self, X: Tensor) -> tuple[Tensor, list[int]]:
        """Output of the module in evaluation mode, the first one if it has several.

        Returns
        -------
        output : Tensor of shape (n_samples, ...), float32
            On the CPU; maybe memory of the module's own.
        bad : list of int
            Rows of it that are not finite, and cannot be repaired or must not be.
        """
        if not self._is_evaluating():
            self._set_training(False)
        with torch.no_grad():
            n_rows = self._rows_per_forward(X)
            first, *others = [X] if n_rows >= len(X) else torch.split(X, n_rows)
            whole, is_finite = self._evaluated(first)
            if others:
                # Small outputs kept between large tensors that are freed would keep
                # the allocator from using their memory again.
                output, place = whole, len(whole)
                whole = output.new_empty((len(X), *output.shape[1:]))
                whole[:place] = output
            for batch in others:
                output, is_finite_here = self._evaluated(batch)
                is_finite = is_finite and is_finite_here
                whole[place : place + len(batch)] = output
                place += len(batch)
        whole = whole.cpu()
        if is_finite:
            return whole, []
        is_bad = ~torch.isfinite(whole)
        rows = is_bad.flatten(1).any(dim=1) if is_bad.ndim > 1 else is_bad
        return whole, rows.nonzero().flatten().tolist()

    def _is_evaluating(self) -> bool:
        """Whether all parts of the module are in evaluation mode already.

        To look takes a quarter of the time of setting it.
        """
        parts = [self.module_]
        while parts:
            part = parts.pop()
            if part.training:
                return False
            parts += filter(None, part._modules.values())
        return True

    def _evaluated(self, batch: Tensor) -> tuple[Tensor, bool]:
        """What skorch's `evaluation_step` gives, and whether it is surely finite."""
        try:
            # A module that works in place must not reach the caller's table.
            output = self.module_(batch.clone())
        except LinAlgError as error:
            raise without_output(self, (batch, None), error) from error
        first = _first(output).float()
        # The sum is finite only if each value is; and it may overflow if they are.
        is_finite = isinstance(output, Tensor) and math.isfinite(first.sum())
        if not is_finite and self.on_nonfinite == "recover":
            first = _first(output_repaired(self, batch, output)).float()
        return first, is_finite

    def _rows_per_forward(self, X: Tensor) -> int:
        """As many that the widest tensor on the way holds `_VALUES_PER_FORWARD`."""
        if len(X) <= self.batch_size:
            return len(X)
        width = _width(X)
        if len(X) <= min(_FEW_ROWS, _VALUES_PER_FORWARD // width):
            return len(X)
        probe = X[:_PROBED_ROWS].clone()
        # A row that has no output will say so when its turn has come.
        with _Widest(len(probe)) as widest, contextlib.suppress(LinAlgError):
            self.module_(probe)
        n_rows: int = _VALUES_PER_FORWARD // max(width, widest.n_values)
        return max(int(self.batch_size), n_rows)


class _Widest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Look at what each operation gives, for the most values that belong to one row."""

    def __init__(self, n_rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_rows = n_rows
        self.n_values: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            n_values, rest = divmod(leaf.numel(), self.n_rows)
            if not rest:  # else it is no batch, but weights
                self.n_values = max(self.n_values, n_values)
        return result


def _width(X: Tensor) -> int:
    return max(math.prod(X.shape[1:]), 1)


def _first(output: Any) -> Tensor:
    """The first output of a module that may have several."""
    first: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return first


def _is_collapsed(X: Tensor, output: Any) -> bool:
    """Whether a network answers different rows with the same bits.

    A rate far too high kills every hidden unit: the loss stays finite at that of a
    constant, which an accuracy score cannot tell from a weak model.
    """
    output = _first(output)
    if output is None:
        return False  # the batch was left out
    is_constant = len(output) > 1 and bool(torch.eq(output, output[:1]).all())
    return is_constant and not bool(torch.eq(X, X[:1]).all())
