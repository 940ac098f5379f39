"""Repair of predictions that are not finite, and errors about missing ones."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from skorch.dataset import get_len, unpack_data
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sknan._utils.stacklevel import stacklevel_of_caller
from sknan._utils.tree import tree_leaves, tree_map
from sknan.diagnosis._culprits import nonfinite_rows, rows_by_bisection, sliced
from sknan.diagnosis._thresholds import HUGE
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets.recovery.finite_operations import RepairedOperations

__all__ = ["output_repaired", "rows_without_output", "without_output"]


def output_repaired(net: Any, inputs: Any, outputs: Any) -> Any:
    """Outputs with those rows computed anew that are not finite for finite inputs.

    Parameters
    ----------
    net : skorch net
        In evaluation mode.
    inputs, outputs : nested Tensor
        Of one batch.

    Returns
    -------
    object
        ``outputs`` themselves where nothing can be done; else nested as they are.

    Warns
    -----
    UserWarning
        Counting the rows, if there are any.
    """
    n_rows = get_len(inputs)
    rows = nonfinite_rows(outputs, n_rows)
    if not rows or nonfinite_rows(inputs, n_rows):
        return outputs
    at = torch.tensor(rows)
    with torch.no_grad(), RepairedOperations():
        anew = net.infer(sliced(inputs, at, n_rows))
    found = [leaf for leaf in tree_leaves(anew) if leaf.is_floating_point()]
    # What was cut to the range of its dtype, and went through, is no output.
    if any(not bool((leaf.abs() < HUGE).all()) for leaf in found):
        return outputs
    warnings.warn(
        f"The network's output was not finite for {len(rows)} of {n_rows} rows, first "
        f"row {rows[0]} of the batch, although their input is; they were computed "
        "again with each operation kept inside its domain. "
        "sknan.diagnosis.diagnose(net, X, y) names the operation.",
        UserWarning,
        stacklevel=stacklevel_of_caller(),
    )
    repaired = iter(tree_leaves(anew))

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        new = next(repaired)
        if not leaf.ndim or len(leaf) != n_rows:
            return leaf
        return leaf.index_copy(0, at.to(leaf.device), new.to(leaf.dtype))

    return tree_map(put, outputs)


def rows_without_output(net: Any, batch: Any) -> tuple[int, ...]:
    """Rows for which a network raises, such as a decomposition of theirs.

    Parameters
    ----------
    net : skorch net
        In evaluation mode.
    batch : tuple

    Returns
    -------
    tuple of int
    """
    inputs, _ = unpack_data(batch)
    n_rows = get_len(inputs)

    def has_output(part: slice) -> bool:
        try:
            net.infer(sliced(inputs, part, n_rows))
        except LinAlgError:
            return False
        return True

    with torch.no_grad():
        return rows_by_bisection(has_output, n_rows)


def without_output(net: Any, batch: Any, error: Exception) -> NonFiniteTrainingError:
    """The error that says for which rows a network has no output.

    Parameters
    ----------
    net : skorch net
        In evaluation mode.
    batch : tuple
        For which it has raised.
    error : Exception
        What it has raised.

    Returns
    -------
    NonFiniteTrainingError
    """
    n_rows = get_len(unpack_data(batch)[0])
    rows = rows_without_output(net, batch)
    first = f", first row {rows[0]} of the batch" if rows else ""
    return NonFiniteTrainingError(
        f"The network has no output for {len(rows) or n_rows} of {n_rows} rows{first}: "
        f"{str(error).splitlines()[0]} Keep the matrix away from the edge, for example "
        "by adding a small multiple of the identity."
    )
