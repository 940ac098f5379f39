"""Explanation of outputs of a trained network that are not finite."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from skorch.dataset import get_len
from torch import Tensor

from sknan._utils.compiled import uncompiled
from sknan._utils.random_state import kept_random_states
from sknan.diagnosis._causes import examine_output
from sknan.diagnosis._culprits import Trials, nonfinite_rows, places_to_blame
from sknan.diagnosis._evidence import CRITERION, Places, StepEvidence
from sknan.diagnosis._replay import ModuleNames, replay
from sknan.diagnosis._report import NonFiniteReport
from sknan.diagnosis._value_trials import rows_that_raise
from sknan.diagnosis._values import all_finite, nonempty_floats


def explain_output(net: Any, inputs: Any, clause: str) -> NonFiniteReport:
    """Replay a forward pass in evaluation mode, and judge it.

    Parameters
    ----------
    net : skorch net
        Net whose state does not change, except that it is in evaluation mode.
    inputs : nested Tensor
        Rows of which some have an output that is not finite, or none at all.
    clause : str
        What is known, as a sentence without its end.

    Returns
    -------
    NonFiniteReport
        Report with the rows of ``inputs``.
    """
    outputs: Any = None
    error: Exception | None = None

    def run() -> tuple[Any, Tensor]:
        nonlocal outputs, error
        try:
            outputs = net.infer(inputs)
        except Exception as raised:
            error = raised
            raise
        bad = (leaf for leaf in nonempty_floats(outputs) if not all_finite(leaf))
        return outputs, next(bad, torch.zeros(()))

    modules = {name: getattr(net, f"{name}_") for name in net._modules}
    places = Places()
    with uncompiled(net), kept_random_states(net.device):
        net._set_training(False)
        n_rows = get_len(inputs)
        names = ModuleNames(modules, ())
        replays = (
            replay(run, names, (inputs,), n_rows, has_grad=g) for g in (True, False)
        )
        failed = next(filter(None, replays), None)
        if failed is not None:
            # An operation outside all modules belongs to the net's own infer.
            module = "" if failed.module == CRITERION else failed.module
            rows = failed.rows
            if failed.has_raised and not rows:
                rows = rows_that_raise(lambda b: net.infer(b[0]), (inputs, None))
            failed = dataclasses.replace(
                failed, phase="forward", module=module, rows=rows
            )
            trials = Trials("forward", net.infer, _no_loss, ())
            places = places_to_blame(failed, (inputs, None), outputs, trials)
    if not places.rows:
        places = dataclasses.replace(places, rows=nonfinite_rows(outputs, n_rows))
    evidence = StepEvidence(
        inputs=inputs,
        outputs=outputs,
        loss=math.nan,
        gradient_norm=math.nan,
        named_parameters=list(net.get_all_learnable_params()),
        failed_operation=failed,
        error=error,
        places=places,
    )
    return examine_output(evidence, clause)


def in_data(
    report: NonFiniteReport, numbers: Tensor, names: Sequence[Any] | None
) -> NonFiniteReport:
    """Return a report with the rows and columns of the user's data.

    Parameters
    ----------
    report : NonFiniteReport
        Report with positions in a batch.
    numbers : Tensor of shape (n_rows,)
        Row numbers of the batch in the data.
    names : sequence of str or None
        Names of the columns.
    """
    rows = tuple(sorted(int(numbers[row]) for row in report.rows))
    columns = report.columns
    if names is not None:
        columns = tuple(str(names[int(column)]) for column in columns)
    return dataclasses.replace(report, rows=rows, columns=columns, rows_in="data")


def _no_loss(outputs: Any, target: Any, inputs: Any) -> Tensor:
    return torch.zeros(())
