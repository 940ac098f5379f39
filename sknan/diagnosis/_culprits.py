"""Search for the rows and columns of a batch that make a step non-finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sknan._utils.random_state import kept_random_states
from sknan._utils.thresholds import OVERFLOWS_SQUARED
from sknan._utils.tree import tree_leaves, tree_map
from sknan.diagnosis._evidence import FailedOperation, Places
from sknan.diagnosis._raised import result_of_trial
from sknan.diagnosis._report import Phase
from sknan.diagnosis._values import bad_rows, nonempty_floats


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


def by_bisection(is_sound: Callable[[slice], bool], n: int) -> tuple[int, ...]:
    """Find the rows or columns that fail by themselves, by halving.

    Parameters
    ----------
    is_sound : callable
        Function that returns whether a range of rows or columns does not fail.
    n : int
        Number of rows or columns.

    Returns
    -------
    tuple of int
        Empty if only several together fail.
    """
    bad: list[int] = []
    stack = [(0, n)]
    while stack:
        start, stop = stack.pop()
        if start >= stop or is_sound(slice(start, stop)):
            continue
        if stop - start == 1:
            bad.append(start)
            continue
        middle = (start + stop) // 2
        stack += [(start, middle), (middle, stop)]
    return tuple(sorted(bad))


@dataclass(frozen=True)
class Trials:
    """Repetitions of a failed step with other data.

    Parameters
    ----------
    phase : str
        Part of the step that failed; a repetition ends with it.
    forward : callable
        The network, in a mode that treats each row by itself. It is called with rows
        that are not in the batch.
    loss : callable
        Loss as a function of outputs, target and inputs.
    parameters : sequence of Tensor
        Trained weights.
    """

    phase: Phase
    forward: Callable[[Any], Any]
    loss: Callable[[Any, Any, Any], Tensor]
    parameters: Sequence[Tensor]

    def is_sound(self, inputs: Any, target: Any, outputs: Any = None) -> bool:
        """Whether the step is finite on some data, and the squares of its numbers are.

        Parameters
        ----------
        inputs, target : object
            Data of the step.
        outputs : object, default=None
            Output of the network; computed if not given.

        Returns
        -------
        bool
            False if the step raises an exception.
        """
        return bool(result_of_trial(lambda: self._is_finite(inputs, target, outputs)))

    def _is_finite(self, inputs: Any, target: Any, outputs: Any) -> bool:
        has_grad = self.phase != "forward"  # a loss may contain gradients
        with kept_random_states(), torch.set_grad_enabled(has_grad):
            if outputs is None:
                outputs = self.forward(inputs)
                if not _is_moderate(outputs):
                    return False
            if self.phase == "forward":
                return True
            loss = self.loss(outputs, target, inputs).sum()
            if self.phase == "loss" or not loss.requires_grad:
                return _is_moderate(loss)
            trained = [p for p in self.parameters if p.requires_grad]
            grads = torch.autograd.grad(loss, trained, allow_unused=True)
            return _is_moderate((loss, grads))


def _is_moderate(data: Any) -> bool:
    # The comparison is false for NaN.
    return all(
        bool((x.detach().abs() < OVERFLOWS_SQUARED).all())
        for x in nonempty_floats(data)
    )


def places_to_blame(
    failed: FailedOperation | None, batch: tuple[Any, Any], outputs: Any, trials: Trials
) -> Places:
    """Find the rows and columns of a failed step that are to blame.

    Those are to blame that make the step fail by themselves, or without which it is
    finite. The size of their numbers alone is no proof.

    Parameters
    ----------
    failed : FailedOperation or None
        Operation that failed; None if a finite step was refused.
    batch : (object, object)
        Inputs and target.
    outputs : object
        Output of the network, or None.
    trials : Trials
        Repetitions of the step.

    Returns
    -------
    Places
    """
    if failed is not None and failed.is_of_weights:
        return Places()
    n_rows = len(tree_leaves(batch[0])[0])
    rows = () if failed is None else _rows_to_blame(failed, batch, outputs, trials)
    # A trial does not compute running statistics, in which huge numbers overflow.
    is_of_buffer = (
        failed is not None
        and failed.is_only_in_buffer
        and failed.largest >= OVERFLOWS_SQUARED
    )
    for part in ("inputs", "targets"):
        is_unsound = is_of_buffer and part == "inputs"
        places = _unusable_numbers(
            part, rows or tuple(range(n_rows)), batch, trials, is_unsound
        )
        if places is not None:
            return places
    return Places(rows, _columns_to_blame(rows, batch, trials))


def _rows_to_blame(
    failed: FailedOperation, batch: tuple[Any, Any], outputs: Any, trials: Trials
) -> tuple[int, ...]:
    """Return the rows of the result that are not finite, or that fail alone."""
    inputs, target = batch
    n_rows = len(tree_leaves(inputs)[0])
    rows = failed.rows
    if not rows and failed.phase == "forward":
        rows = nonfinite_rows(outputs, n_rows)
    if 0 < len(rows) < n_rows:
        return rows

    def is_sound(part: slice) -> bool:
        known = outputs if failed.phase == "loss" else None
        return trials.is_sound(
            *(sliced(data, part, n_rows) for data in (inputs, target, known))
        )

    alone = by_bisection(is_sound, n_rows)
    return alone if 0 < len(alone) < n_rows else rows


def _unusable_numbers(
    part: Literal["inputs", "targets"],
    rows: tuple[int, ...],
    batch: tuple[Any, Any],
    trials: Trials,
    is_unsound: bool,
) -> Places | None:
    """Return where NaN or huge numbers are, if usual ones make the step finite.

    ``is_unsound`` says that the step is not finite with them, without a trial.
    """
    n_rows = len(tree_leaves(batch[0])[0])
    inputs, target = (sliced(data, torch.tensor(rows), n_rows) for data in batch)

    def is_sound(data: Any) -> bool:
        return trials.is_sound(*((data, target) if is_input else (inputs, data)))

    is_input = part == "inputs"
    data = inputs if is_input else target
    if not any(bool(_is_unusable(leaf).any()) for leaf in tree_leaves(data)):
        return None
    tame = tree_map(_with_usual_numbers, data)
    if (is_sound(data) and not is_unsound) or not is_sound(tame):
        return None
    columns: tuple[int, ...] = ()
    whole = batch[0 if is_input else 1]
    leaves = tree_leaves(whole)
    bad = [_is_unusable(leaf) for leaf in leaves]
    if is_input and _is_table(inputs):

        def is_sound_with(part: slice) -> bool:
            mixed = tame.clone()
            mixed[:, part] = inputs[:, part]
            return is_sound(mixed)

        columns = by_bisection(is_sound_with, inputs.shape[1])
        if is_unsound and not columns:
            columns = tuple(bad[0].any(0).nonzero().flatten().tolist())
        bad = [bad[0][:, list(columns)]] if columns else bad
    found = {row for mask in bad for row in bad_rows(mask, n_rows)}
    has_nan = any(bool(leaf.isnan().any()) for leaf in leaves)
    return Places(tuple(sorted(found)), columns, part, has_nan)


def _is_unusable(x: Tensor) -> Tensor:
    # Integers are no measurements: they select rows of an embedding, or classes.
    return ~(x.abs() < OVERFLOWS_SQUARED) if x.is_floating_point() else x != x


def _with_usual_numbers(x: Any) -> Any:
    """Replace NaN and huge numbers by the median of the column's others, or by 0."""
    if not isinstance(x, Tensor) or not (x.ndim and x.is_floating_point()):
        return x
    unusable = _is_unusable(x)
    others = x.detach().double().masked_fill(unusable, math.nan)
    usual = others.nanmedian(dim=0).values.nan_to_num()
    return torch.where(unusable, usual.to(x.dtype), x)


def _is_table(inputs: Any) -> bool:
    is_float = isinstance(inputs, Tensor) and inputs.is_floating_point()
    return is_float and inputs.ndim == 2 and inputs.shape[1] > 1


def _columns_to_blame(
    rows: tuple[int, ...], batch: tuple[Any, Any], trials: Trials
) -> tuple[int, ...]:
    """Return the columns to blame if a minority of the rows of a table failed.

    There are none unless usual numbers in these columns make all rows finite.
    """
    inputs = batch[0]
    if not _is_table(inputs) or not 0 < len(rows) <= len(inputs) // 2:
        return ()
    n_rows = len(inputs)
    others = without_rows(inputs, rows, n_rows).detach()
    usual = others.double().nanmedian(dim=0).values.to(inputs.dtype)
    columns: tuple[int, ...] = ()
    while rows:
        at = torch.tensor(rows)
        table, targets = (sliced(data, at, n_rows) for data in batch)
        first = table[:1], sliced(targets, slice(0, 1), len(rows))
        found = _columns_of_row(*first, usual, trials)
        if set(found) <= set(columns):
            return ()
        columns = tuple(sorted({*columns, *found}))
        table = table.clone()
        table[:, list(columns)] = usual[list(columns)]

        def is_sound(
            part: slice, table: Tensor = table, targets: Any = targets
        ) -> bool:
            return trials.is_sound(table[part], sliced(targets, part, len(table)))

        rows = tuple(rows[k] for k in by_bisection(is_sound, len(rows)))
    return columns


def _columns_of_row(
    row: Tensor, target: Any, usual: Tensor, trials: Trials
) -> tuple[int, ...]:
    """Return the columns that make one row fail.

    Either a usual number in one of them makes the row finite, or the number in one of
    them makes a usual row fail. In both cases the numbers in all of them do.
    """
    n_columns = row.shape[1]

    def with_numbers(base: Tensor, numbers: Tensor, part: slice | list[int]) -> bool:
        mixed = base.clone()
        mixed[:, part] = numbers[:, part]
        return trials.is_sound(mixed, target)

    usual = usual[None]
    if trials.is_sound(row, target) or not trials.is_sound(usual, target):
        return ()
    found = by_bisection(lambda part: not with_numbers(row, usual, part), n_columns)
    if not found:
        found = by_bisection(lambda part: with_numbers(usual, row, part), n_columns)
    # If more than half do, the number that fails is a sum of many.
    if len(found) > n_columns // 2 or with_numbers(usual, row, list(found)):
        return ()
    return found
