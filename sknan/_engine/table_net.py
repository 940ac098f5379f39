"""Guarded net of an estimator: training on whole tables and prediction."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from skorch.callbacks import EpochTimer, PrintLog
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sknan.losses._traits import traits_of
from sknan.nets._batching import TensorBatches, TensorTable
from sknan.nets._nets import GuardedNet
from sknan.nets.recovery.output_repair import output_repaired, without_output

# Number of values, about 4 MB of float32, in the input of a validation batch and in the
# output of the widest linear layer for a prediction batch.
_VALUES_PER_FORWARD = 2**20

# Largest number of rows in a prediction batch. More rows are not faster.
_ROWS_PER_FORWARD = 2**11

# Default of the estimators' parameter clip_norm.
_DEFAULT_CLIP_NORM = 1.0


class TableNet(GuardedNet):
    """Guarded net that is trained on whole tables and logs epochs instead of batches.

    Targets may be pairs (y, weight). The loss of a batch is then the weighted sum of
    the losses of its rows, divided by the number of rows. Since weights average 1 over
    the training data, this is the weighted mean in expectation, and exactly so if one
    batch contains all rows.
    """

    _is_versioned: ClassVar[bool] = False  # the estimator that holds it is

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        callbacks: list[tuple[str, Any]] = [("epoch_timer", EpochTimer())]
        if self.verbose >= 2:
            callbacks.append(("print_log", PrintLog()))
        return callbacks

    def _warn_of_idle_clip(self, *clipping: Any) -> None:
        # A default that has no effect needs no warning.
        if self.clip_norm != _DEFAULT_CLIP_NORM:
            super()._warn_of_idle_clip(*clipping)

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

    def _find_fault_of_epoch(self, batch: Any, step: dict[str, Any]) -> str | None:
        fault = super()._find_fault_of_epoch(batch, step)
        is_recoverable = self.on_nonfinite == "recover" and self.guard_.has_budget
        if fault is not None or not is_recoverable:
            return fault
        if not is_collapsed(batch[0], step["y_pred"]) or self.guard_.weights.has_shrunk:
            return None  # weights that shrink to zero by weight decay have not diverged
        # A network that gave one output before the training has not collapsed.
        with self.guard_.first_weights():
            untrained = self.evaluation_step((batch[0], None))
        if is_collapsed(batch[0], untrained):
            return None
        return (
            "The network has collapsed: it gives the same output for each of the "
            f"{len(batch[0])} different rows of a batch,"
        )

    def _log_batch(self, prefix: str, loss: float, rows: int) -> None:
        """Log nothing, because the history is pickled with the net."""

    def _log_epoch(self, prefix: str, mean_loss: float) -> None:
        self.history.record(f"{prefix}_loss", mean_loss)
        batches = self.history[-1, "batches"]
        if not any(batches):  # a callback may have written to them
            batches.clear()

    def raw_output(self, X: Tensor) -> tuple[Tensor, list[int]]:
        """Return the output of the module in evaluation mode.

        Parameters
        ----------
        X : Tensor of shape (n_samples, ...)
            Rows on the device of the module.

        Returns
        -------
        output : Tensor of shape (n_samples, ...), float32
            Output on the CPU, the first one if the module has several. It may share
            memory with the module.
        bad : list of int
            Rows whose output is non-finite, and was not or could not be repaired.
        """
        if not self._is_evaluating():
            self._set_training(False)
        with torch.no_grad():
            n_rows = self._rows_per_forward(X)
            first, *others = [X] if n_rows >= len(X) else torch.split(X, n_rows)
            whole, is_finite = self._evaluated(first)
            if others:
                # One tensor for all outputs: small outputs between large tensors that
                # are freed would prevent the allocator from reusing their memory.
                output, start = whole, len(whole)
                whole = output.new_empty((len(X), *output.shape[1:]))
                whole[:start] = output
            for batch in others:
                output, is_finite_here = self._evaluated(batch)
                is_finite = is_finite and is_finite_here
                whole[start : start + len(batch)] = output
                start += len(batch)
        whole = whole.cpu()
        if is_finite:
            return whole, []
        is_bad = ~torch.isfinite(whole)
        rows = is_bad.flatten(1).any(dim=1) if is_bad.ndim > 1 else is_bad
        return whole, rows.nonzero().flatten().tolist()

    def _is_evaluating(self) -> bool:
        """Whether all parts of the module are in evaluation mode.

        The test takes a quarter of the time of setting the mode.
        """
        parts = [self.module_]
        while parts:
            part = parts.pop()
            if part.training:
                return False
            parts += filter(None, part._modules.values())
        return True

    def _evaluated(self, batch: Tensor) -> tuple[Tensor, bool]:
        """Return the output of a batch, and whether it is certain to be finite."""
        try:
            # A copy, because a module that works in place would change the user's data.
            output = self.module_(batch.clone())
        except LinAlgError as error:
            raise without_output(self, (batch, None), error) from error
        first = _first(output).float()
        # A finite sum implies finite values; a sum of finite values may overflow.
        is_finite = isinstance(output, Tensor) and math.isfinite(first.sum())
        if not is_finite and self.on_nonfinite == "recover":
            first = _first(output_repaired(self, batch, output)).float()
        return first, is_finite

    def _rows_per_forward(self, X: Tensor) -> int:
        """Return the number of rows in a prediction batch, at least the batch size."""
        if len(X) <= self.batch_size:
            return len(X)
        linear = [m for m in self.module_.modules() if isinstance(m, nn.Linear)]
        widest = max([_width(X), *(layer.out_features for layer in linear)])
        n_rows = min(_ROWS_PER_FORWARD, _VALUES_PER_FORWARD // widest)
        return max(int(self.batch_size), n_rows)


def _width(X: Tensor) -> int:
    """Return the number of values in a row."""
    return max(math.prod(X.shape[1:]), 1)


def _first(output: Any) -> Tensor:
    """Return the first output of a module that may have several."""
    first: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return first


def is_collapsed(X: Tensor, output: Any) -> bool:
    """Whether a network gives bitwise identical outputs for different rows.

    A learning rate that is far too high makes every hidden unit constant. The loss
    stays finite, at that of a constant prediction, and an accuracy score does not
    distinguish this from a weak model.
    """
    output = _first(output)
    if output is None:
        return False  # the batch was left out
    is_constant = len(output) > 1 and bool(torch.eq(output, output[:1]).all())
    return is_constant and not bool(torch.eq(X, X[:1]).all())
