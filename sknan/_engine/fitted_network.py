"""Part of a net that a fitted estimator keeps: the network, and its predictions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from skorch.utils import get_map_location
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from sknan._engine.row_chain import RowChain
from sknan._utils.compiled import original_of
from sknan._utils.encoding import EncodedStateMixin
from sknan._utils.outside import is_of_signal, unless
from sknan._utils.pickling import refuse_unpicklable
from sknan._utils.tree import first_of
from sknan.diagnosis._report import NonFiniteReport
from sknan.nets._chain import functions_of, layers_of
from sknan.nets.recovery.output_repair import (
    OutputRange,
    OutputRepair,
    outputs_by_row,
)

# Number of values, about 4 MB of float32, in the input of a validation batch and in the
# output of the widest linear layer for a prediction batch.
VALUES_PER_FORWARD = 2**20

# Largest number of rows in a prediction batch. More rows are not faster.
_ROWS_PER_FORWARD = 2**11


class NetworkOutput:
    """Outputs of a network for rows of a table, repaired where possible."""

    _has_plain_output: ClassVar[bool] = True
    _may_rule_out_classes: ClassVar[bool] = False
    _counts_only_first_: bool = True

    module_: Any
    batch_size: int
    _set_training: Callable[[bool], None]
    _warn_of_repair: Callable[[OutputRepair], None]

    def finite_output(self, X: Tensor) -> Tensor:
        """Return the output of :meth:`raw_output`, if it is finite.

        Raises
        ------
        NonFiniteTrainingError
            If the output of a row is not finite.
        """
        repair = OutputRepair(self)
        output = self.raw_output(X, repair)
        if repair.refused:
            raise repair.error(len(repair.refused))
        self._warn_of_repair(repair)
        return output

    def raw_output(self, X: Tensor, repair: OutputRepair) -> Tensor:
        """Return the output of the module in evaluation mode, repaired where possible.

        Parameters
        ----------
        X : Tensor of shape (n_samples, ...)
            Rows on the device of the module.
        repair : OutputRepair
            Repair of rows whose output is non-finite, which records them.

        Returns
        -------
        Tensor of shape (n_samples, ...), float32
            Output on the CPU, the first one if the module has several. It may share
            memory with the module.
        """
        # The test takes a fraction of the time of setting the mode.
        if any(part.training for part in self.module_.modules()):
            self._set_training(False)
        with torch.no_grad():
            n_rows = self._rows_per_forward(X)
            first, *others = [X] if n_rows >= len(X) else torch.split(X, n_rows)
            whole = self._evaluated(first, repair)
            if others:
                # One tensor for all outputs: small outputs between large tensors that
                # are freed would prevent the allocator from reusing their memory.
                output, start = whole, len(whole)
                whole = output.new_empty((len(X), *output.shape[1:]))
                whole[:start] = output
            for batch in others:
                output = self._evaluated(batch, repair)
                whole[start : start + len(batch)] = output
                start += len(batch)
        return whole.detach().cpu()  # a view of a weight requires gradients

    def _evaluated(self, batch: Tensor, repair: OutputRepair) -> Tensor:
        """Return the output of a batch, repaired where it is not finite."""
        try:
            # A copy, because a module that works in place would change the user's data.
            output = self.module_(batch.clone())
        except unless(is_of_signal, Exception) as error:
            output = outputs_by_row(self, batch, error)
        first: Tensor = first_of(output).float()
        # A finite sum implies finite values; a sum of finite values may overflow.
        is_finite = isinstance(output, Tensor) and math.isfinite(first.sum())
        if repair.learns_range or not is_finite:
            repaired: Tensor = first_of(repair.add(batch, output)).float()
            return repaired
        repair.n_rows += len(batch)
        return first

    def _rows_per_forward(self, X: Tensor) -> int:
        """Return the number of rows in a prediction batch, at least the batch size."""
        if len(X) <= self.batch_size:
            return len(X)
        linear = [m for m in self.module_.modules() if isinstance(m, nn.Linear)]
        widest = max([width_of(X), *(layer.out_features for layer in linear)])
        n_rows = min(_ROWS_PER_FORWARD, VALUES_PER_FORWARD // widest)
        return max(int(self.batch_size), n_rows)


def width_of(X: Tensor) -> int:
    """Return the number of values in a row."""
    return max(math.prod(X.shape[1:]), 1)


@dataclass(eq=False)
class FittedNetwork(EncodedStateMixin, NetworkOutput):
    """Trained network without optimizer, callbacks, data and the other parts of a net.

    It has the attributes and methods of a skorch net that the repair and explanation of
    outputs uses.

    Parameters
    ----------
    module_, criterion_ : nn.Module
        Trained network and its loss.
    batch_size : int
        Number of rows in a batch of the training.
    device : str
        Device of the network.
    on_nonfinite : str
        Whether outputs are repaired.
    flops_per_row_ : float
        Number of floating-point operations for a row.
    column_names_ : sequence of str or None
        Names of the columns.
    history : list of dict
        Records of the epochs.
    reports : list of NonFiniteReport
        Reports on failed steps.
    rest : dict of str to object
        State from which a further training continues; see :meth:`TableNet.resume`.
    _output_range_ : list of (Tensor, Tensor) or None
        Range of the outputs for training rows, if some rows were repaired.
    """

    module_: nn.Module
    criterion_: nn.Module
    batch_size: int
    device: str
    on_nonfinite: str
    flops_per_row_: float
    column_names_: Sequence[Any] | None
    history: list[dict[str, Any]]
    reports: list[NonFiniteReport]
    rest: dict[str, Any] = field(default_factory=dict)
    _output_range_: OutputRange | None = None
    # Parts of the module, and its functions if it is a chain of known layers.
    _chain: tuple[list[nn.Module], list[Callable[[Tensor], Tensor]] | None] = field(
        default=([], None), init=False
    )

    # The chain in NumPy, if its layers allow it, for predictions of one row.
    _row_chain: RowChain | None = field(default=None, init=False)

    _modules: ClassVar[list[str]] = ["module"]
    _criteria: ClassVar[list[str]] = ["criterion"]

    def output_of_row(self, X: np.ndarray) -> Tensor | None:
        """Return the finite output of one row of float32, in NumPy.

        None if the network is not a chain of linear layers, or its output is not
        finite. Then :meth:`finite_output` must be called.
        """
        if self._row_chain is None or self._plain_functions() is None:
            return None
        chain = self._row_chain
        output = None if chain is None else chain.output(X)
        if output is None:  # weights were replaced
            self._chain, self._row_chain = ([], None), None
        elif math.isfinite(np.vdot(output, output)):
            return torch.from_numpy(output)
        return None

    def finite_output(self, X: Tensor) -> Tensor:
        """Return the finite output of rows; see :meth:`NetworkOutput.finite_output`.

        A few rows need no more than the layers of a chain, called one by one.
        """
        if X.shape[0] <= self.batch_size:
            functions = self._plain_functions()
            if functions is not None:
                output, mode = X, torch.is_grad_enabled()
                torch._C._set_grad_enabled(False)  # a tenth of the time of no_grad
                try:
                    for function in functions:
                        output = function(output)
                finally:
                    torch._C._set_grad_enabled(mode)
                if output.dtype is not torch.float32 or not output.is_cpu:
                    output = output.float().cpu()
                values = output.numpy()
                if math.isfinite(np.vdot(values, values)):
                    return output
        return super().finite_output(X)

    def _plain_functions(self) -> list[Callable[[Tensor], Tensor]] | None:
        """Return the functions of a chain of known layers that nothing observes.

        None if the module is another one, or is in training mode.
        """
        parts = [self.module_]
        for part in parts:
            state = part.__dict__
            if (
                state.get("training", True)
                or state["_forward_hooks"]
                or state["_forward_pre_hooks"]
                or "forward" in state
                or "_compiled_call_impl" in state
            ):
                return None
            parts += [m for m in state["_modules"].values() if m is not None]
        if torch_module._has_any_global_hook():  # type: ignore[no-untyped-call]
            return None
        known, functions = self._chain
        if parts != known:  # the user may replace parts of a fitted module
            layers = layers_of(self.module_)
            functions = None if layers is None else functions_of(layers)
            self._chain = parts, functions
            self._row_chain = None if layers is None else RowChain.of(layers)
        return functions

    def infer(self, X: Tensor) -> Any:
        """Return the output of the module."""
        return self.module_(X)

    def get_all_learnable_params(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters of network and loss by name."""
        for part in (self.module_, self.criterion_):
            yield from part.named_parameters()

    def _is_in_training(self) -> bool:
        return False

    def _warn_of_repair(self, repair: OutputRepair) -> None:
        repair.warn()

    def _set_training(self, training: bool) -> None:
        self.module_.train(training)
        self.criterion_.train(training)

    def __getstate__(self) -> dict[str, Any]:
        uncompiled = copy.copy(self)
        for chain in ("_chain", "_row_chain"):
            uncompiled.__dict__.pop(chain, None)
        uncompiled.module_ = original_of(self.module_)
        refuse_unpicklable(uncompiled.module_)
        return super(FittedNetwork, uncompiled).__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        device = get_map_location(self.device)  # warns if it does not exist here
        self.device = str(device)
        for part in (self.module_, self.criterion_):
            part.to(device)
