"""The guarded net inside an estimator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from skorch.callbacks import EpochTimer, PrintLog
from torch import Tensor

from sknan._training import Training
from sknan.batching import TensorBatches, TensorTable
from sknan.losses import unbounded
from sknan.nets import GuardedNet

__all__ = ["TableNet", "seeded"]

# Values (about 4 MB of float32) in one batch of validation or prediction.
_VALUES_PER_FORWARD = 2**20


# What the estimators clip to by default.
_USUAL_CLIP = 1.0


class TableNet(GuardedNet):
    """Guarded net that takes whole tables and logs epochs, not batches.

    Targets may come as pairs (y, weight); the loss is then the weighted sum over the
    batch by its number of rows. Weights average 1 over the training data, so that this
    is the weighted mean in expectation, and exactly so in a full batch.
    """

    _is_versioned: ClassVar[bool] = False  # the estimator around it is

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        callbacks: list[tuple[str, Any]] = [("epoch_timer", EpochTimer())]
        if self.verbose:
            callbacks.append(("print_log", PrintLog()))
        return callbacks

    def _is_clip_idle(self, training: Training) -> bool:
        # Nobody has asked for the default.
        return self.clip_norm != _USUAL_CLIP and super()._is_clip_idle(training)

    def get_iterator(self, dataset: TensorTable, training: bool = False) -> Any:
        if training:
            return TensorBatches(
                dataset, self.batch_size, shuffle=True, merge_lone_row=True
            )
        n_values = max(dataset.X[:1].numel(), 1)
        return TensorBatches(
            dataset, max(self.batch_size, _VALUES_PER_FORWARD // n_values)
        )

    def get_loss(self, y_pred: Any, y_true: Any, *_: Any, **__: Any) -> Tensor:
        target, weight = y_true if isinstance(y_true, tuple) else (y_true, None)
        kind = unbounded(self.criterion_)
        if weight is not None and not getattr(kind, "is_per_row", True):
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
        if not _is_collapsed(batch[0], step["y_pred"]) or self.guard_.has_shrunk:
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

    def raw_output(self, X: Tensor) -> Tensor:
        """Output of the module in evaluation mode, the first one if it has several."""
        table = TensorTable(X, X)
        outputs = []
        for batch, _ in self.get_iterator(table):
            output = self.evaluation_step((batch, None))
            outputs.append(output[0] if isinstance(output, (tuple, list)) else output)
        return torch.cat(outputs).float().cpu()


def _is_collapsed(X: Tensor, output: Any) -> bool:
    """Whether a network answers different rows with the same bits.

    A rate far too high kills every hidden unit: the loss stays finite at that of a
    constant, which an accuracy score cannot tell from a weak model.
    """
    output = output[0] if isinstance(output, (tuple, list)) else output
    if output is None:
        return False  # the batch was left out
    is_constant = len(output) > 1 and bool(torch.eq(output, output[:1]).all())
    return is_constant and not bool(torch.eq(X, X[:1]).all())


def _gpu_index(device: str) -> int:
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


@contextlib.contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch inside the block, and give the caller's generators back after it."""
    on_gpu = torch.device(device).type == "cuda"
    devices = [_gpu_index(device)] if on_gpu else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield
