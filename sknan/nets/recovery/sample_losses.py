"""Losses and outputs of a network on the latest batches and on a sample of the data."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch.dataset import get_len, unpack_data
from torch import Tensor

from sknan._utils.random_state import kept_random_states
from sknan._utils.thresholds import N_TRIAL_ROWS
from sknan.diagnosis._culprits import by_bisection, nonfinite_rows, sliced, without_rows
from sknan.diagnosis._raised import result_of_trial
from sknan.losses._registry import closed_form_of
from sknan.nets.recovery.finite_operations import RepairedOperations
from sknan.nets.recovery.protocol import RefuseErrors, StepRefused, Training
from sknan.nets.recovery.step_loss import loss_of


class SampleLosses:
    """Losses of the latest batches and of training rows.

    Computing them leaves the training unchanged.

    Parameters
    ----------
    training : Training
        Training of a net.
    batch : tuple
        Batch on which the step failed.
    fit_params : dict
        Parameters of the module's ``forward``.
    """

    def __init__(
        self, training: Training, batch: Any, fit_params: dict[str, Any]
    ) -> None:
        self.training = training
        self.net = training.net
        self.batch = batch
        self.fit_params = fit_params

    @property
    def batches(self) -> list[Any]:
        """Latest batches of the training, and the failed one."""
        latest = [b for b in self.training.latest_batches if b is not self.batch]
        return [*latest, self.batch]

    @property
    def sample(self) -> list[Any]:
        """Recent batches and, if they are known, rows from all the training data."""
        return [*self.batches, *self.training.rows_of_data()]

    def _few_rows(self) -> Any:
        """Return at most as many rows as in a batch, of all if they are known."""
        n_rows = min(get_len(unpack_data(self.batch)[0]), N_TRIAL_ROWS)
        return (self.training.rows_of_data(n_rows) or self.batches)[-1]

    def _result(self, batch: Any) -> tuple[Any, Tensor]:
        """Return outputs and loss of a batch."""
        with RefuseErrors():
            return loss_of(self.net, batch, self.fit_params)

    def _kept_result(self, batch: Any) -> tuple[Any, float]:
        """Return outputs and loss of a batch, which other weights do not change.

        An output may be a view of a weight.
        """
        output, loss = self._result(batch)
        is_tensor = isinstance(output, Tensor)
        return output.detach().clone() if is_tensor else output, float(loss)

    def _results(self, batches: list[Any]) -> tuple[float, list[Any]]:
        """Return the mean loss of batches, and their outputs."""
        losses, outputs = [], []
        with kept_random_states(self.net.device), torch.no_grad():
            for batch in batches:
                output, loss = self._kept_result(batch)
                losses.append(loss)
                outputs.append(output)
        return sum(losses) / len(losses), outputs

    def _repaired_results(self, batches: list[Any]) -> tuple[float, list[Any]]:
        """Return mean loss and outputs, by repaired operations where needed."""
        loss: float = math.nan
        outputs: list[Any] = []
        with contextlib.suppress(StepRefused):
            loss, outputs = self._results(batches)
        if not math.isfinite(loss):
            with RepairedOperations():
                loss, outputs = self._results(batches)
        return loss, outputs

    def _first_results(self, batches: list[Any]) -> tuple[float, list[Any]]:
        """Return the mean loss and the outputs of the first weights."""
        with contextlib.suppress(StepRefused), self.net.guard_.first_weights():
            return self._repaired_results(batches)
        return math.inf, []

    def evaluation_loss(self) -> float:
        """Return the loss of some training rows in evaluation mode.

        Inf if it is not finite, and -inf if it cannot be computed.
        """
        net = self.net
        inputs, target = unpack_data(self._few_rows())

        def run() -> float:
            with kept_random_states(net.device), torch.no_grad():
                net._set_training(False)
                outputs = net.infer(inputs, **self.fit_params)
                loss = float(net.get_loss(outputs, target, X=inputs, training=False))
            return loss if math.isfinite(loss) else math.inf

        loss = result_of_trial(run)
        # None: forward may have parameters that are not known here.
        return -math.inf if loss is None else loss

    def is_as_good_as_last(self) -> bool:
        """Whether the loss is no higher than with the last verified weights."""
        guard = self.net.guard_
        guard.begin_step()
        try:
            reached, _ = self._results(self.batches)
            with guard.last_weights():
                return reached <= self._results(self.batches)[0]
        except StepRefused:
            return False
        finally:
            guard.weights.last.restore_buffers()

    def _sound_rows(self, batch: Any) -> Any:
        """Return the rows of a batch whose output and loss are finite."""
        rows = _Rows(self.net, batch, self.fit_params)

        def is_sound(part: slice) -> bool:
            outputs = sliced(rows.outputs, part, rows.n_rows)
            if nonfinite_rows(outputs, part.stop - part.start):
                return False
            try:
                return bool(torch.isfinite(rows.loss(part)).all())
            except StepRefused:
                return False

        return without_rows(
            (rows.inputs, rows.target), by_bisection(is_sound, rows.n_rows), rows.n_rows
        )

    def _errors(self, batches: list[Any]) -> list[float]:
        return [_Rows(self.net, b, self.fit_params).error() for b in batches]


class _Rows:
    """Rows of a batch with their outputs, from which losses of parts are computed."""

    def __init__(self, net: Any, batch: Any, fit_params: dict[str, Any]) -> None:
        self.net = net
        self.inputs, self.target = unpack_data(batch)
        self.n_rows = get_len(self.inputs)
        with RefuseErrors():
            self.outputs = net.infer(self.inputs, **fit_params)

    def loss(self, part: slice) -> Tensor:
        """Return the loss of some rows, or raise ``StepRefused``."""
        x, y, out = (
            sliced(data, part, self.n_rows)
            for data in (self.inputs, self.target, self.outputs)
        )
        with RefuseErrors():
            loss: Tensor = self.net.get_loss(out, y, X=x, training=True)
        return loss

    def _losses_together(self) -> NDArray[np.float64] | None:
        """Return the loss of each row in one call, or None for an unusual loss."""
        criterion: Any = getattr(self.net, "criterion_", None)
        if closed_form_of(criterion) is None:
            return None
        criterion.reduction = "none"
        try:
            losses = self.loss(slice(0, self.n_rows)).detach()
        except StepRefused:  # of a loss of the user's own, which needs a number
            return None
        finally:
            criterion.reduction = "mean"
        if losses.ndim == 0 or len(losses) != self.n_rows:
            return None
        return losses.double().reshape(self.n_rows, -1).mean(1).cpu().numpy()

    @np.errstate(over="ignore", invalid="ignore")
    def error(self) -> float:
        """Return the standard error of the loss of all rows.

        It is NaN if a loss is not finite, or if the loss is neither a weighted mean nor
        the sum of those of rows.
        """
        n = self.n_rows
        whole = float(self.loss(slice(0, n)))
        each = self._losses_together()
        if each is None:
            each = np.array([float(self.loss(slice(i, i + 1))) for i in range(n)])
        rounding = np.abs(each).max() * torch.finfo(torch.float32).eps ** 0.5
        for factor in (1.0, n):
            if each.min() - rounding <= whole / factor <= each.max() + rounding:
                return float(factor * each.std() / math.sqrt(n))
        return math.nan
