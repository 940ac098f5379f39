"""Repair of predictions that are not finite, and errors for those that remain."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch.dataset import get_len, unpack_data
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sknan._utils.tree import tree_leaves, tree_map
from sknan._utils.warn import warn
from sknan.diagnosis._culprits import (
    by_bisection,
    nonfinite_rows,
    sliced,
    without_rows,
)
from sknan.diagnosis._thresholds import OVERFLOWS_SQUARED
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets.recovery.finite_operations import RepairedOperations


def output_repaired(net: Any, inputs: Any, outputs: Any) -> Any:
    """Recompute output rows that are not finite although their input is.

    Parameters
    ----------
    net : skorch net
        Net in evaluation mode.
    inputs, outputs : nested Tensor
        Inputs and outputs of one batch.

    Returns
    -------
    object
        Outputs with the same nesting; ``outputs`` itself if no row can be repaired.

    Warns
    -----
    UserWarning
        If rows were recomputed. The message contains their number.
    """
    n_rows = get_len(inputs)
    rows = nonfinite_rows(outputs, n_rows)
    if not rows or nonfinite_rows(inputs, n_rows):
        return outputs
    at = torch.tensor(rows)
    with torch.no_grad(), RepairedOperations():
        recomputed = net.infer(sliced(inputs, at, n_rows))
    found = [leaf for leaf in tree_leaves(recomputed) if leaf.is_floating_point()]
    # A value of this size was clamped to the range of its dtype: it is no prediction.
    if any(not bool((leaf.abs() < OVERFLOWS_SQUARED).all()) for leaf in found):
        return outputs
    warn(
        f"The network's output was not finite for {len(rows)} of {n_rows} rows, first "
        f"row {rows[0]} of the batch, although their input is; they were computed "
        "again with each operation kept inside its domain. "
        "sknan.diagnosis.diagnose(net, X, y) names the operation.",
    )
    repaired = iter(tree_leaves(recomputed))

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        new = next(repaired)
        if not leaf.ndim or len(leaf) != n_rows:
            return leaf
        return leaf.index_copy(0, at.to(leaf.device), new.to(leaf.dtype))

    return tree_map(put, outputs)


def rows_without_output(net: Any, batch: Any) -> tuple[int, ...]:
    """Return the rows for which a network raises, for example in a decomposition.

    Parameters
    ----------
    net : skorch net
        Net in evaluation mode.
    batch : tuple
        Inputs and targets.

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
        return by_bisection(has_output, n_rows)


def without_output(net: Any, batch: Any, error: Exception) -> NonFiniteTrainingError:
    """Return the error that names the rows for which a network has no output.

    Parameters
    ----------
    net : skorch net
        Net in evaluation mode.
    batch : tuple
        Inputs and targets for which the network raised.
    error : Exception
        Exception that it raised.

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


def rows_with_output(net: Any, batch: Any, error: Exception) -> Any:
    """Return a batch without the rows for which the network has no output.

    Parameters
    ----------
    net : skorch net
        Net in evaluation mode.
    batch : tuple
        Inputs and targets for which the network raised.
    error : Exception
        Exception that it raised.

    Returns
    -------
    tuple

    Raises
    ------
    NonFiniteTrainingError
        If the network has no output for any row, or for none of the rows alone.
    """
    n_rows = get_len(unpack_data(batch)[0])
    bad = rows_without_output(net, batch)
    if len(bad) in (0, n_rows):
        raise without_output(net, batch, error) from error
    return without_rows(batch, bad, n_rows)


def nonfinite_output_error(
    output: NDArray[Any], bad: NDArray[np.bool_]
) -> NonFiniteTrainingError:
    """Return the error for predictions that are not finite although the input is.

    Parameters
    ----------
    output : ndarray of shape (n_rows, ...)
        Predictions.
    bad : ndarray of bool, same shape
        Entries that are not finite.

    Returns
    -------
    NonFiniteTrainingError
    """
    rows = np.unique(np.argwhere(bad)[:, 0])
    kind = "NaN" if np.isnan(output).any() else "infinite"
    return NonFiniteTrainingError(
        f"The network's output is {kind} for {len(rows)} of {len(output)} rows, first "
        f"row {rows[0]}, although X is finite. Is its range the one seen in training? "
        "SafeScaler bounds it."
    )
