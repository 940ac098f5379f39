"""Repair of predictions that are not finite, and errors for those that remain."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from skorch.dataset import get_len
from torch import Tensor

from sknan._utils.compiled import uncompiled
from sknan._utils.thresholds import N_TRIAL_ROWS, OVERFLOWS_SQUARED
from sknan._utils.tree import tree_leaves, tree_map
from sknan._utils.warn import warn
from sknan.diagnosis._culprits import by_bisection, nonfinite_rows, sliced
from sknan.diagnosis._raised import (
    ValueErrors,
    about_dtype,
    does_raise,
    may_concern_values,
    result_of_trial,
)
from sknan.diagnosis._report import NonFiniteReport
from sknan.diagnosis._value_trials import depends_on_values
from sknan.exceptions import DivergenceWarning, NonFiniteTrainingError
from sknan.nets.recovery.explain_output import explain_output, in_data
from sknan.nets.recovery.finite_operations import RepairedOperations

# Lowest and highest output of each column, for each output of a network.
OutputRange = list[tuple[Tensor, Tensor]]


class OutputRepair:
    """Repair of the outputs of one call, batch by batch.

    A row whose output is not finite although its input is, is computed again with each
    operation kept inside its domain and range. Its output is then limited to the range
    of the outputs for training rows, if such rows were left out of the training: a
    value at the edge of a domain may lie far outside of what was learned.

    Parameters
    ----------
    net : skorch net with OutputMixin
        Net in evaluation mode. If it has a plain output, only the first output counts.
    learns_range : bool, default=False
        Whether the rows are training rows, whose outputs give the range.
    numbers : Tensor or None, default=None
        Row numbers in the caller's data. None means all rows in order.
    only_first : bool, default=False
        Whether only the first part of a tuple counts.

    Attributes
    ----------
    n_rows : int
        Number of rows so far.
    repaired, refused : list of int
        Rows that were repaired, and bad rows that could not be or were not to be.
    learns_range : bool
        Whether the rows are training rows.
    range : list of (Tensor, Tensor) or None
        Range of the finite outputs so far, if it is learned.
    """

    def __init__(
        self,
        net: Any,
        *,
        learns_range: bool = False,
        numbers: Tensor | None = None,
        only_first: bool = False,
    ) -> None:
        self.net = net
        self.n_rows = 0
        self.repaired: list[int] = []
        self.refused: list[int] = []
        self.range: OutputRange | None = None
        self.learns_range = learns_range
        self._repaired_range: OutputRange | None = None
        self._numbers = numbers
        self._only_first = only_first or net._counts_only_first_
        self._samples: list[Any] = []
        self._sampled: list[int] = []
        self._n_bad_sampled = 0

    # -- rows ------------------------------------------------------------------------

    @property
    def has_bad_rows(self) -> bool:
        """Whether the output of a row was not finite."""
        return bool(self.repaired or self.refused)

    def add(self, inputs: Any, outputs: Any) -> Any:
        """Return the outputs of the next batch, with bad rows repaired if possible.

        Parameters
        ----------
        inputs, outputs : nested Tensor
            Inputs and outputs of the batch.

        Returns
        -------
        object
            Outputs with the same nesting; ``outputs`` itself if no row is repaired.
        """
        n_rows, start = get_len(inputs), self.n_rows
        self.n_rows += n_rows
        bad = self.bad_rows(outputs, n_rows)
        if self.learns_range:
            found = _range_of(self._rows_of(outputs, n_rows), bad)
            self.range = _wider(self.range, found)
        if not bad:
            return outputs
        rows = sorted({*bad} - {*nonfinite_rows(inputs, n_rows)})
        self._keep_sample(inputs, rows or bad, start, n_rows)
        repaired: list[int] = []
        if rows and self.net.on_nonfinite == "recover":
            outputs, repaired = self._repaired(inputs, outputs, rows, n_rows)
        self.repaired += [start + row for row in repaired]
        self.refused += [start + row for row in sorted({*bad} - {*repaired})]
        return outputs

    def bad_rows(self, outputs: Any, n_rows: int) -> tuple[int, ...]:
        """Return the rows of a batch whose outputs are not sound."""
        leaves = self._rows_of(outputs, n_rows)
        # A finite sum implies finite values; a sum of finite values may overflow.
        if all(math.isfinite(leaf.sum()) for leaf in leaves):
            return ()
        is_bad = torch.zeros(n_rows, dtype=torch.bool)
        for leaf in leaves:
            is_bad |= ~self.are_sound(leaf, torch.isfinite(leaf))
        return tuple(is_bad.nonzero().flatten().tolist())

    def _rows_of(self, outputs: Any, n_rows: int) -> list[Tensor]:
        """Return the outputs that have a row for each row of the batch."""
        leaves = tree_leaves(predicted_part(outputs) if self._only_first else outputs)
        leaves = leaves[:1] if self.net._has_plain_output else leaves
        return [leaf.detach() for leaf in leaves if _has_rows(leaf, n_rows)]

    def are_sound(self, values: Tensor, is_sound: Tensor) -> Tensor:
        """Return which rows of outputs are sound, on the CPU.

        Minus infinity beside a sound number may be the logit of a class that is ruled
        out.

        Parameters
        ----------
        values : Tensor of shape (n_rows, ...)
            Outputs.
        is_sound : Tensor of bool, same shape
            Which of them are sound.
        """
        is_sound = is_sound.reshape(len(values), -1)
        if self.net._may_rule_out_classes:
            ruled_out = values.reshape(len(values), -1).isneginf()
            is_sound = is_sound | (ruled_out & is_sound.any(1, keepdim=True))
        return is_sound.all(dim=1).cpu()

    def _repaired(
        self, inputs: Any, outputs: Any, rows: list[int], n_rows: int
    ) -> tuple[Any, list[int]]:
        """Return outputs with repaired rows, and these rows."""
        at = torch.tensor(rows)
        with (
            ValueErrors() as caught,
            torch.no_grad(),
            uncompiled(self.net),
            RepairedOperations(),
        ):
            recomputed = self.net.infer(sliced(inputs, at, n_rows))
        if caught.error is not None:
            repaired: list[int] = []
            for row in rows if len(rows) > 1 else ():
                outputs, done = self._repaired(inputs, outputs, [row], n_rows)
                repaired += done
            return outputs, repaired
        new = self._rows_of(recomputed, len(rows))
        if self.learns_range:
            self._repaired_range = _wider(self._repaired_range, _range_of(new, ()))
        limits = self._limits(outputs, rows, n_rows)
        if limits is not None:
            # Of an output that does not count here, the range is known nevertheless.
            new = [_limited(x, *pair) for x, pair in zip(new, limits, strict=False)]
        # A larger value was clamped to the range of its dtype.
        largest = math.inf if self.learns_range else OVERFLOWS_SQUARED
        is_kept = torch.ones(len(rows), dtype=torch.bool)
        for leaf in new:
            is_kept &= self.are_sound(leaf, leaf.abs() < largest)
        if not is_kept.any():
            return outputs, []
        remaining = iter(new)

        def put(leaf: Any) -> Any:
            if not _has_rows(leaf, n_rows):
                return leaf
            values = next(remaining, None)
            if values is None:
                return leaf
            return leaf.index_copy(
                0, at[is_kept].to(leaf.device), values[is_kept].to(leaf)
            )

        return tree_map(put, outputs), at[is_kept].tolist()

    def _limits(self, outputs: Any, rows: list[int], n_rows: int) -> OutputRange | None:
        """Return the range of outputs in training; for the time being, of the batch.

        Outputs that are repaired for most training rows have a range of their own.
        """
        if self.learns_range:
            return None
        if self.net._is_in_training():
            if len(rows) > n_rows // 2:
                return None
            return _range_of(self._rows_of(outputs, n_rows), rows)
        known: OutputRange | None = self.net._output_range_
        return known

    # -- what was found ---------------------------------------------------------------

    def _keep_sample(
        self, inputs: Any, rows: Sequence[int], start: int, n_rows: int
    ) -> None:
        """Keep bad rows for the report, and after the first ones as many others."""
        kept = list(rows)[: N_TRIAL_ROWS - self._n_bad_sampled]
        self._n_bad_sampled += len(kept)
        if not kept:
            return
        others: list[int] = []
        if not self._samples:
            others = sorted(set(range(n_rows)) - set(rows))[:N_TRIAL_ROWS]
        chosen = torch.tensor(kept + others)
        self._samples.append(sliced(inputs, chosen, n_rows))
        self._sampled += [start + row for row in kept + others]

    def report(self, clause: str) -> NonFiniteReport:
        """Explain the bad rows.

        Parameters
        ----------
        clause : str
            What is known, as a sentence without its end.

        Returns
        -------
        NonFiniteReport
            Report with the rows of all batches.
        """
        if not self._samples:  # only the nonlinearity of a prediction has failed
            action = "Look at the argument predict_nonlinearity of the net."
            return NonFiniteReport("forward", "activation", f"{clause}.", action)
        report = explain_output(self.net, _joined(self._samples), clause)
        found = {self._sampled[row] for row in report.rows}
        bad = {*self.repaired, *self.refused}
        if found == bad.intersection(self._sampled):  # of more rows than the sample has
            found = bad
        numbers = torch.tensor(sorted(found))
        if self._numbers is not None:
            numbers = self._numbers[numbers]
        report = dataclasses.replace(report, rows=tuple(range(len(found))))
        return in_data(report, numbers, getattr(self.net, "column_names_", None))

    def warn(self) -> None:
        """Warn of the rows that were repaired, if there are any."""
        if not self.repaired:
            return
        rows = f"{len(self.repaired)} of {self.n_rows} rows"
        report = self.report(
            f"The module alone is not finite for {rows}, although X is finite"
        )
        warn(f"{report} {_says(len(self.repaired))}")

    def error(self, n_bad: int) -> NonFiniteTrainingError:
        """Return the error for predictions that are not finite although ``X`` is.

        Parameters
        ----------
        n_bad : int
            Number of rows whose prediction is not finite.

        Returns
        -------
        NonFiniteTrainingError
        """
        report = self.report(
            f"The network's output is not finite for {n_bad} of {self.n_rows} rows, "
            "although X is finite"
        )
        return NonFiniteTrainingError(str(report), report)

    def conclude_training(self) -> None:
        """Judge the outputs for all training rows, and keep their range.

        Raises
        ------
        NonFiniteTrainingError
            If the output is not finite for all rows, or a row cannot be repaired.

        Warns
        -----
        DivergenceWarning
            If the output of some rows needs repair. The net keeps the report.
        """
        net, n_bad = self.net, len(self.repaired) + len(self.refused)
        if n_bad or net.guard_.reports:  # the range of what was learned
            net._output_range_ = self.range
        if not n_bad:
            return
        if n_bad > self.n_rows // 2:  # too many to be left out of each batch
            net._output_range_ = _wider(self.range, self._repaired_range)
        clause = f"is not finite for {n_bad} of {self.n_rows} training rows"
        if self.refused or n_bad == self.n_rows:
            report = self.report(f"After training, the output {clause}")
            raise NonFiniteTrainingError(str(report), report)
        report = dataclasses.replace(
            self.report(f"The module alone {clause}"), recovery=_says(n_bad)
        )
        found = net.guard_.reports
        if all(known.source != report.source for known in found):
            found.append(report)
        warn(DivergenceWarning(f"{report} {report.recovery}", report))


def predicted_part(outputs: Any) -> Any:
    """Return the part of a module's outputs with which skorch predicts."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _says(n_rows: int) -> str:
    row = "this row" if n_rows == 1 else "these rows"
    return f"Predictions for {row} keep each operation inside its domain and range."


def _has_rows(leaf: Any, n_rows: int) -> bool:
    is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
    return is_float and leaf.ndim > 0 and len(leaf) == n_rows


def _limited(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, low.to(x)), high.to(x))


def _range_of(leaves: list[Tensor], bad: Sequence[int]) -> OutputRange | None:
    """Return the range of the outputs of the rows that are not bad; None if all are."""
    is_good = torch.ones(len(leaves[0]) if leaves else 0, dtype=torch.bool)
    is_good[list(bad)] = False
    for leaf in leaves:
        is_good &= (leaf.abs() < OVERFLOWS_SQUARED).reshape(len(leaf), -1).all(1).cpu()
    if not is_good.any():
        return None
    good = [leaf[is_good.to(leaf.device)] for leaf in leaves]
    # A sequence may have another length in another batch.
    columns = [x.flatten(0, -2) if x.ndim > 1 else x for x in good]
    return [(x.amin(dim=0), x.amax(dim=0)) for x in columns]


def _wider(one: OutputRange | None, other: OutputRange | None) -> OutputRange | None:
    if one is None or other is None:
        return one or other
    return [
        (torch.minimum(a, c), torch.maximum(b, d))
        for (a, b), (c, d) in zip(one, other, strict=True)
    ]


def _joined(samples: list[Any]) -> Any:
    """Return nested rows of several batches as one batch."""
    first, *others = samples
    rest = [iter(tree_leaves(sample)) for sample in others]

    def join(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        parts = [leaf, *(next(leaves) for leaves in rest)]
        return torch.cat(parts) if leaf.ndim else leaf

    return tree_map(join, first)


def outputs_by_row(net: Any, inputs: Any, error: Exception) -> Any:
    """Return the outputs of a batch for which a network raises, NaN where it does.

    Parameters
    ----------
    net : skorch net
        Net in evaluation mode.
    inputs : nested Tensor
        Inputs for which the network raised, for example in a decomposition.
    error : Exception
        Exception that it raised. It is raised again if it does not depend on values.

    Returns
    -------
    object
        Outputs, which are NaN for the rows for which the network raises alone, or for
        all rows if there are none.

    Raises
    ------
    NonFiniteTrainingError
        If the network raises for all rows, even with repaired operations, or if the
        outputs are not to be repaired.
    """
    if not may_concern_values(error):
        raise error
    n_rows = get_len(inputs)
    pair = sliced(inputs, torch.tensor([0, 0]), 1) if n_rows == 1 else inputs

    def passes(part: slice) -> bool:
        return not does_raise(lambda: net.infer(sliced(inputs, part, n_rows)))

    def repaired() -> Any:
        with uncompiled(net), RepairedOperations():
            return net.infer(inputs)

    def run(batch: Any) -> Any:
        return net.infer(batch[0])

    with torch.no_grad():
        # With some weights, such as zeros, an operation fails for any inputs.
        if not depends_on_values(run, (pair, None), [repaired]):
            raise about_dtype(error, inputs, net.module_.parameters()) from None
        bad = by_bisection(passes, n_rows)
        good = torch.tensor(sorted(set(range(n_rows)) - set(bad)) if bad else [])
        if net.on_nonfinite == "recover":
            if len(good):
                return _spread(net.infer(sliced(inputs, good, n_rows)), good, n_rows)
            outputs = result_of_trial(lambda: _spread(repaired(), good, n_rows))
            if outputs is not None:
                return outputs
    n_bad = f"{len(bad) or n_rows} of {n_rows} rows"
    report = explain_output(net, inputs, f"The network has no output for {n_bad}")
    raise NonFiniteTrainingError(str(report), report) from error


def _spread(outputs: Any, good: Tensor, n_rows: int) -> Any:
    """Return the outputs of good rows as those of a batch, with NaN for other rows.

    If no row is good, ``outputs`` are those of a batch.
    """

    def spread(leaf: Any) -> Any:
        if not _has_rows(leaf, len(good) or n_rows):
            return leaf
        whole = leaf.new_full((n_rows, *leaf.shape[1:]), torch.nan)
        if len(good):
            whole[good.to(leaf.device)] = leaf
        return whole

    return tree_map(spread, outputs)
