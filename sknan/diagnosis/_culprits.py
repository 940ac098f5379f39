"""Which rows and columns of a batch are to blame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sknan._utils.tree import tree_leaves, tree_map

__all__ = [
    "columns_to_blame",
    "nonfinite_rows",
    "places_to_blame",
    "rows_by_bisection",
    "sliced",
    "without_rows",
]

# More columns than this are not tried one by one.
_MOST_COLUMNS = 256


def nonfinite_rows(data: Any, n_rows: int) -> tuple[int, ...]:
    """Rows in which a float of nested tensors is not finite.

    Parameters
    ----------
    data : nested tuples, lists or mappings of Tensor
        Tensors of another length are not looked at.
    n_rows : int
        Length of the batch.

    Returns
    -------
    tuple of int
    """
    bad = torch.zeros(n_rows, dtype=torch.bool)
    for leaf in tree_leaves(data):
        if leaf.is_floating_point() and leaf.ndim and len(leaf) == n_rows:
            finite = torch.isfinite(leaf.detach()).reshape(n_rows, -1).all(dim=1)
            bad |= ~finite.cpu()
    return tuple(bad.nonzero().flatten().tolist())


def sliced(data: Any, rows: Any, n_rows: int) -> Any:
    """Some rows of nested tensors; those of another length stay whole.

    Parameters
    ----------
    data : nested tuples, lists or mappings of Tensor
    rows : slice or Tensor of int
    n_rows : int
        Length of the batch.

    Returns
    -------
    object
        Nested as ``data``.
    """

    def cut(leaf: Any) -> Any:
        has_rows = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == n_rows
        if not has_rows:
            return leaf
        return leaf[rows.to(leaf.device) if isinstance(rows, Tensor) else rows]

    return tree_map(cut, data)


def without_rows(data: Any, rows: tuple[int, ...], n_rows: int) -> Any:
    """The batch without some of its rows; parameters as of :func:`sliced`."""
    keep = torch.ones(n_rows, dtype=torch.bool)
    keep[list(rows)] = False
    return sliced(data, keep.nonzero().flatten(), n_rows)


def rows_by_bisection(
    is_finite: Callable[[slice], bool], n_rows: int
) -> tuple[int, ...]:
    """Rows whose own result is not finite, by halving the batch.

    Parameters
    ----------
    is_finite : callable
        Of a range of rows.
    n_rows : int
        Length of the batch.

    Returns
    -------
    tuple of int
        Empty if it is only all rows together that fail.
    """
    bad: list[int] = []
    stack = [(0, n_rows)]
    while stack:
        start, stop = stack.pop()
        if start >= stop or is_finite(slice(start, stop)):
            continue
        if stop - start == 1:
            bad.append(start)
            continue
        middle = (start + stop) // 2
        stack += [(start, middle), (middle, stop)]
    return tuple(sorted(bad))


def columns_to_blame(
    inputs: Any, row: int, is_finite: Callable[[Tensor], bool | Tensor]
) -> tuple[int, ...]:
    """Columns of a bad row that make it finite once their value is an ordinary one.

    Parameters
    ----------
    inputs : Tensor of shape (n_rows, n_columns)
        The batch; anything else has no columns.
    row : int
        The bad row.
    is_finite : callable
        Says for a table of as many copies of the row as there are columns, in each of
        which one column holds its median, which of the copies fare well.

    Returns
    -------
    tuple of int
        Empty if no column does it alone, or most of them would.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 2:
        return ()
    n_columns = inputs.shape[1]
    is_small = inputs.is_floating_point() and 1 < n_columns <= _MOST_COLUMNS
    if not is_small or len(inputs) < 2:
        return ()
    usual = inputs.detach().float().nanmedian(dim=0).values.to(inputs.dtype)
    copies = inputs[row].detach().repeat(n_columns, 1)
    copies.fill_diagonal_(0.0)
    copies += torch.diag(usual)
    cures = torch.as_tensor(is_finite(copies)).flatten().nonzero().flatten().tolist()
    return tuple(cures) if 0 < len(cures) <= n_columns // 2 else ()


def places_to_blame(
    phase: str,
    rows: tuple[int, ...],
    batch: tuple[Any, Any],
    outputs: Any,
    forward: Callable[[Any], Any],
    loss: Callable[[Any, Any, Any], Tensor],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows of a failed step to blame, and columns of the first of them.

    Parameters
    ----------
    phase : str
        Where the step failed.
    rows : tuple of int
        Those of the operation that failed, if it shows them.
    batch : (object, object)
        Inputs and target.
    outputs : object
        Of the network, or None.
    forward : callable
        The network, row by row; it sees rows that are not there.
    loss : callable
        Of outputs, target and inputs.

    Returns
    -------
    rows, columns : tuple of int
        Columns only of a table, and only where a minority of the rows fails.
    """
    inputs, target = batch
    n_rows = len(tree_leaves(inputs)[0])
    rows = rows or nonfinite_rows(outputs, n_rows)
    if not rows and phase == "loss" and outputs is not None:

        def is_finite(part: slice) -> bool:
            data = (sliced(d, part, n_rows) for d in (outputs, target, inputs))
            return bool(torch.isfinite(loss(*data).detach()).all())

        with torch.no_grad():
            rows = rows_by_bisection(is_finite, n_rows)
    if phase != "forward" or not 0 < len(rows) <= n_rows // 2:
        return rows, ()

    def fares_well(copies: Tensor) -> Tensor:
        n_copies = len(copies)
        try:
            with torch.random.fork_rng(), torch.no_grad():
                bad = nonfinite_rows(forward(copies), n_copies)
        except LinAlgError:  # at least one copy fares no better
            return torch.zeros(n_copies, dtype=torch.bool)
        return ~torch.isin(torch.arange(n_copies), torch.tensor(bad))

    return rows, columns_to_blame(inputs, rows[0], fares_well)
