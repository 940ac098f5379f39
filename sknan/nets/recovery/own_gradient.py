"""Recovery by torch's own gradient, where only the value of the loss is not finite."""

from __future__ import annotations

from typing import Any

import torch

from sknan._utils.random_state import kept_random_states
from sknan.nets.recovery.finite_operations import RepairedOperations
from sknan.nets.recovery.protocol import Answer, Failure, Training
from sknan.nets.recovery.repeat import MOST_REPETITIONS, repeat_step
from sknan.nets.recovery.step_loss import loss_of


class TakeOwnGradient:
    """Repeat a step as torch would take it, if the same rows fail again and again.

    The logarithm of a negative number, for example, is NaN, but its gradient is finite.
    A network that never sees these rows cannot learn to keep them in the domain.
    """

    says = (
        "The step was taken with torch's gradient, which is finite, since the same "
        "rows have failed before."
    )

    def applies(self, failure: Failure) -> bool:
        """Whether the rows to blame are known and the step may be repeated."""
        is_known = failure.report.rows_in == "data" and bool(failure.report.rows)
        return is_known and failure.is_repeatable

    def attempt(self, training: Training, failure: Failure, batch: Any) -> Answer:
        """Repeat the step if most of these rows have been left out often enough."""
        rows = failure.report.rows
        n_again = sum(training.left_out[row] >= MOST_REPETITIONS for row in rows)
        if 2 * n_again < len(rows):
            return None
        return repeat_step(training, failure, "own_gradient", self.says)


def own_gradient_step(net: Any, batch: Any, **fit_params: Any) -> dict[str, Any]:
    """Run skorch's ``train_step_single``; the loss is that of finite operations."""
    step: dict[str, Any] = type(net).train_step_single(net, batch, **fit_params)
    with kept_random_states(net.device), torch.no_grad(), RepairedOperations():
        _, loss = loss_of(net, batch, fit_params)
    return {**step, "loss": loss}
