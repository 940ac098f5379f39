"""Search for the rows and columns of a batch that make a step non-finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sknan._utils.random_state import kept_random_states
from sknan._utils.tree import tree_leaves, tree_map
from sknan.diagnosis._raised import does_raise
from sknan.diagnosis._report import Phase

# In a wider table the columns are not examined one by one.
_MOST_COLUMNS = 256


def nonfinite_rows(data: Any, n_rows: int) -> tuple[int, ...]:
    """Return the rows in which a float of nested tensors is not finite.

    Parameters
    ----------
    data : nested tuples, lists or mappings of Tensor
        Data of a batch. Tensors of another length are ignored.
    n_rows : int
        Number of rows in the batch.

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


def sliced(data: Any, rows: slice | Tensor, n_rows: int) -> Any:
    """Return some rows of nested tensors.

    Parameters
    ----------
    data : nested tuples, lists or mappings of Tensor
        Data of a batch. Tensors of another length are kept whole.
    rows : slice or Tensor of int
        Rows to select.
    n_rows : int
        Number of rows in the batch.

    Returns
    -------
    object
        Nested in the same way as ``data``.
    """

    def cut(leaf: Any) -> Any:
        has_rows = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == n_rows
        if not has_rows:
            return leaf
        return leaf[rows.to(leaf.device) if isinstance(rows, Tensor) else rows]

    return tree_map(cut, data)


def without_rows(data: Any, rows: tuple[int, ...], n_rows: int) -> Any:
    """Return nested tensors without some rows; see :func:`sliced`."""
    keep = torch.ones(n_rows, dtype=torch.bool)
    keep[list(rows)] = False
    return sliced(data, keep.nonzero().flatten(), n_rows)


def rows_by_bisection(
    is_finite: Callable[[slice], bool], n_rows: int
) -> tuple[int, ...]:
    """Find the rows that are not finite by themselves, by halving the batch.

    Parameters
    ----------
    is_finite : callable
        Function that returns whether the result for a range of rows is finite.
    n_rows : int
        Number of rows in the batch.

    Returns
    -------
    tuple of int
        Empty if only several rows together fail.
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
    """Find the columns in which the median, as value, makes a bad row finite.

    Parameters
    ----------
    inputs : Tensor of shape (n_rows, n_columns)
        Inputs of the batch. Data of any other kind have no columns.
    row : int
        Number of the bad row.
    is_finite : callable
        Function of a table with one copy of the row for each column, in which this
        column contains its median. It returns a mask of the copies whose result is
        finite, or one value for all of them.

    Returns
    -------
    tuple of int
        Empty if no single column repairs the row, or more than half of them do.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 2:
        return ()
    n_columns = inputs.shape[1]
    is_small = inputs.is_floating_point() and 1 < n_columns <= _MOST_COLUMNS
    if not is_small or len(inputs) < 2:
        return ()
    medians = inputs.detach().float().nanmedian(dim=0).values.to(inputs.dtype)
    copies = inputs[row].detach().repeat(n_columns, 1)
    copies.fill_diagonal_(0.0)
    copies += torch.diag(medians)
    cures = torch.as_tensor(is_finite(copies)).flatten().nonzero().flatten().tolist()
    return tuple(cures) if 0 < len(cures) <= n_columns // 2 else ()


def places_to_blame(
    phase: Phase,
    rows: tuple[int, ...],
    batch: tuple[Any, Any],
    outputs: Any,
    forward: Callable[[Any], Any],
    loss: Callable[[Any, Any, Any], Tensor],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find the rows of a failed step to blame, and the columns of the first of them.

    Parameters
    ----------
    phase : str
        Part of the step that failed.
    rows : tuple of int
        Rows in the result of the failed operation, if they can be read from it.
    batch : (object, object)
        Inputs and target.
    outputs : object
        Output of the network, or None.
    forward : callable
        The network, in a mode that treats each row by itself. It is called with rows
        that are not in the batch.
    loss : callable
        Loss as a function of outputs, target and inputs.

    Returns
    -------
    rows, columns : tuple of int
        There are columns only if the inputs are a table and a minority of rows failed.
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

    def is_repaired(copies: Tensor) -> Tensor:
        n_copies, found = len(copies), []

        def has_output(part: slice) -> bool:
            return not does_raise(lambda: found.append(forward(copies[part])))

        with kept_random_states(), torch.no_grad():
            bad = rows_by_bisection(has_output, n_copies)
        if not bad:
            bad = nonfinite_rows(found[0], n_copies)
        return ~torch.isin(torch.arange(n_copies), torch.tensor(bad))

    return rows, columns_to_blame(inputs, rows[0], is_repaired)
