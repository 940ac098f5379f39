"""Loss of a validation batch in which a check of the loss refuses some rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from skorch.dataset import get_len
from torch import Tensor

from sknan.diagnosis._causes import examine_step
from sknan.diagnosis._culprits import without_rows
from sknan.diagnosis._evidence import CRITERION, Places, StepEvidence
from sknan.diagnosis._raised import (
    failed_check,
    is_raised_by_user,
    may_concern_values,
)
from sknan.diagnosis._value_trials import depends_on_values, rows_that_raise
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets.recovery.finite_operations import RepairedOperations


def loss_of_sound_rows(net: Any, inputs: Any, outputs: Any, target: Any) -> Tensor:
    """Return the loss of the rows for which it raises no exception.

    Parameters
    ----------
    net : skorch net
        Net in evaluation mode.
    inputs, outputs, target : nested Tensor
        Data of a validation batch.

    Returns
    -------
    Tensor of shape ()

    Raises
    ------
    NonFiniteTrainingError
        If the loss raises for all rows because of their values.
    """

    def run(batch: Any) -> Tensor:
        (inputs, outputs), target = batch
        loss: Tensor = net.get_loss(outputs, target, X=inputs, training=False)
        return loss

    batch, n_rows = ((inputs, outputs), target), get_len(inputs)
    try:
        return run(batch)
    except Exception as error:
        if not may_concern_values(error) or is_raised_by_user(error):
            raise
        bad = rows_that_raise(run, batch)
        if 0 < len(bad) < n_rows:
            return run(without_rows(batch, bad, n_rows))

        def repaired() -> Tensor:
            with RepairedOperations():
                return run(batch)

        if not depends_on_values(run, batch, [repaired]):
            raise
        evidence = StepEvidence(
            inputs=inputs,
            outputs=outputs,
            loss=math.nan,
            gradient_norm=math.nan,
            named_parameters=(),
            epoch=len(net.history or ()),
            failed_operation=failed_check(error, CRITERION),
            error=error,
            places=Places(rows=bad),
        )
        report = dataclasses.replace(examine_step(evidence), batch=None)
        raise NonFiniteTrainingError(f"In validation: {report}", report) from error
