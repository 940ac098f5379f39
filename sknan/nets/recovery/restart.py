"""Recovery by restarting as if on standardized data."""

from __future__ import annotations

from typing import Any

from skorch.dataset import unpack_data

from sknan._utils.random_state import kept_random_states
from sknan.nets.recovery.protocol import Answer, Failure, Training
from sknan.nets.recovery.raw_units import conditioned


class RestartOnStandardizedData:
    """Restart a training whose data are in raw units, once."""

    says = "Training restarted as if on standardized data."

    def applies(self, failure: Failure) -> bool:
        """Whether data in raw units can have caused the failure."""
        return failure.guard.may_restart(failure.report)

    def attempt(self, training: Training, failure: Failure, batch: Any) -> Answer:
        """Restart from the first weights, in the coordinates of standardized data."""
        table, training.raw_table = training.raw_table, None
        if table is None:
            return None
        net = training.net
        with kept_random_states(net.device):
            conditioning = conditioned(
                net.module_,
                getattr(net, "criterion_", None),
                unpack_data(batch),
                (table.X, table.y),
                lambda x: net.infer(x, **failure.fit_params),
            )
        training.guard.weights.last.restore_buffers()
        if conditioning is None:
            return None
        with training.guard.restart(failure.report, self.says):
            conditioning.reinterpret()
        training.conditioning = conditioning
        return "retry"
