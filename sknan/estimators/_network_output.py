"""Checks of a network's output before and after training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sknan._engine.table_net import TableNet
from sknan._utils.compiled import uncompiled
from sknan._utils.outside import is_of_signal, unless
from sknan._utils.random_state import kept_random_states
from sknan._utils.threads import FlopCount
from sknan._utils.tree import first_of
from sknan.losses._base import refuse_other_output
from sknan.nets._batching import TensorTable
from sknan.nets._chain import FAR_FROM_OVERFLOW, output_bound
from sknan.nets.recovery.output_repair import OutputRepair, outputs_by_row


def trial_output(net: TableNet, X: np.ndarray) -> Tensor:
    """Return the module's output for the first rows, and count its operations.

    The number of operations per row is stored in ``net.flops_per_row_``. Of several
    outputs, the first one is returned.

    Raises
    ------
    ValueError
        If the output is not a tensor with one row per sample.
    """
    # The copy protects X from a module that works in place.
    rows = torch.from_numpy(X[:32].copy()).to(net.device)
    net._set_training(False)
    n_rows = len(rows)
    try:
        with torch.no_grad(), uncompiled(net), FlopCount() as count:
            try:
                output = net.infer(rows)
            except unless(is_of_signal, Exception) as error:
                output = outputs_by_row(net, rows, error)
    except unless(is_of_signal, Exception) as error:
        name = type(net.module_).__name__
        error.add_note(f"while calling the module {name} on X of shape {X.shape}")
        raise
    net.flops_per_row_ = count.n_flops / n_rows
    output = first_of(output)
    if isinstance(output, Tensor):
        refuse_other_output(output)
    if not isinstance(output, Tensor) or output.shape[:1] != rows.shape[:1]:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output)
        raise ValueError(
            f"The module must return a tensor with one row per sample, got {found} "
            f"for {len(rows)} samples."
        )
    return output


def check_finite_output(net: TableNet, table: TensorTable) -> None:
    """Evaluate all training rows with the trained net, unless no value can overflow.

    Raises
    ------
    NonFiniteTrainingError
        If the output is non-finite for all rows, or for a row that cannot be repaired.

    Warns
    -----
    DivergenceWarning
        If the output of some rows needs repair.
    """
    if output_bound(net.module_, table.X) < FAR_FROM_OVERFLOW:
        return
    repair = OutputRepair(net, learns_range=True, numbers=table.numbers)
    with kept_random_states(net.device):  # a module may draw noise in evaluation too
        net.raw_output(table.X, repair)
    repair.conclude_training()
