"""Starts and restarts of a training as if on standardized data."""

from __future__ import annotations

from typing import Any

from skorch.dataset import unpack_data

from sknan._utils.random_state import kept_random_states
from sknan._utils.thresholds import N_TRIAL_ROWS
from sknan._utils.validation import listed_columns
from sknan._utils.warn import warn
from sknan.diagnosis._report import NonFiniteReport
from sknan.nets._batching import TensorTable
from sknan.nets.recovery.protocol import Answer, Failure, Training
from sknan.nets.recovery.raw_units import (
    Conditioning,
    conditioned,
    feeds_linear_layers,
    is_overwhelmed,
    lost_columns,
)


def start_on_standardized_data(training: Training) -> None:
    """Standardize, before the first step, columns that are too large for any step.

    A linear layer learns nothing from such a column, and the network is silently worse
    than a constant. The weights of a module that was passed in may be trained for these
    units, so that they are not changed.

    Parameters
    ----------
    training : Training
        Training that is about to begin.

    Warns
    -----
    UserWarning
        If there are such columns. The message names them.
    """
    net, table = training.net, getattr(training.batches, "dataset", None)
    if not isinstance(table, TensorTable):
        return
    columns = lost_columns(table.X)
    if not columns:
        return
    batch = table.rows(slice(0, N_TRIAL_ROWS))
    rows = batch[0].to(net.device)
    answer = "Standardize X, for example with SafeScaler()."
    conditioning = None
    with kept_random_states(net.device):
        may_scale = net.on_nonfinite == "recover" and training.raw_table is not None
        if may_scale and feeds_linear_layers(net.module_, rows):
            conditioning = _conditioned(training, batch, {})
        if conditioning is None and not is_overwhelmed(net.module_, rows):
            return
    if conditioning is not None:
        conditioning.reinterpret()
        training.guard.weights.start_here()
        training.conditioning, training.raw_table = conditioning, None
        answer = f"The network is trained as if on standardized data. {answer}"
    largest = float(table.X[:, columns].abs().max())
    warn(
        f"Columns of X are in raw units: {listed_columns(columns)}, with values of "
        f"size up to {largest:.3g}. A linear layer learns nothing from them. {answer}"
    )


def _conditioned(
    training: Training, batch: Any, fit_params: dict[str, Any]
) -> Conditioning | None:
    """Return the coordinates of standardized data, if the network has such."""
    net, table = training.net, training.raw_table
    if table is None:
        return None
    with kept_random_states(net.device):
        return conditioned(
            net.module_,
            getattr(net, "criterion_", None),
            unpack_data(batch),
            (table.X, table.y),
            lambda x: net.infer(x, **fit_params),
        )


class RestartOnStandardizedData:
    """Restart a training whose data are in raw units, once."""

    says = "Training restarted as if on standardized data."

    def applies(self, failure: Failure) -> bool:
        """Whether data in raw units can have caused the failure."""
        return failure.guard.may_restart(failure.report)

    def attempt(self, training: Training, failure: Failure, batch: Any) -> Answer:
        """Restart from the first weights, in the coordinates of standardized data."""
        return self.restart(training, failure.report, batch, failure.fit_params)

    def restart(
        self, training: Training, report: NonFiniteReport, batch: Any, fit_params: Any
    ) -> Answer:
        """Restart after a report on a step or on the weights after an epoch."""
        conditioning = _conditioned(training, batch, fit_params)
        training.raw_table = None
        training.guard.weights.last.restore_buffers()
        if conditioning is None:
            return None
        with training.guard.restart(report, self.says):
            conditioning.reinterpret()
        training.conditioning = conditioning
        return "retry"
