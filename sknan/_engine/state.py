"""Weights, gradients and moments of the members of a stack, with one row per member."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sknan._engine.network_state import NetworkState, read_state
from sknan._engine.optimizer_step import kernel_key, write_unit_steps
from sknan._engine.passes import is_stored_transposed, stacked_pass
from sknan._engine.stack_rows import StackRows
from sknan._engine.table_net import TableNet
from sknan.nets._weight_average import decay_after, is_averaged
from sknan.nets.recovery.raw_units import Conditioning

# The vectorized kernels of the optimizers round the remainder of a tensor, which does
# not fill a vector, differently from the rest. Rows are padded to a multiple of this
# length so that none of these numbers belongs to a member.
_ALIGNMENT = 16


class StepFactors(NamedTuple):
    """Learning rate and weight decay of a step, one number for each member.

    Parameters
    ----------
    rate : Tensor of shape (n_members, 1)
        Learning rates.
    decay : Tensor of shape (n_members, 1) or None
        Factor that multiplies the weights if weight decay is decoupled, else the weight
        decay; None if no member has any.
    share : Tensor of shape (n_members, 1) or None
        Share of the new weights in the averages; None if no member has averages.
    """

    rate: Tensor
    decay: Tensor | None
    share: Tensor | None


class StackMember(Protocol):
    """Network in a stack."""

    @property
    def net(self) -> TableNet:
        """Initialized net."""

    @property
    def group(self) -> dict[str, Any]:
        """Parameter group of its optimizer."""

    @property
    def generator(self) -> torch.Generator:
        """Generator of its random numbers."""

    @property
    def conditioning(self) -> Conditioning | None:
        """Coordinates in which its steps are taken."""


class Stack:
    """Tensors of the networks that are trained together, and their steps.

    Parameters
    ----------
    members : list of StackMember
        Networks of one :func:`~sknan._engine.passes.pass_key` and one
        :func:`~sknan._engine.optimizer_step.optimizer_key`.
    states : sequence of NetworkState or None, default=None
        State of each member. None means that of its net.

    Attributes
    ----------
    members : list of StackMember
        Networks.
    rows : StackRows
        State of the members.
    """

    def __init__(
        self,
        members: Sequence[StackMember],
        states: Sequence[NetworkState] | None = None,
    ) -> None:
        self.members = list(members)
        if states is None:
            states = [read_state(member.net) for member in members]
        self._is_transposed = is_stored_transposed(members[0].net)
        self._shapes = [w.shape for w in self._transposed(states[0].weights)]
        self._size = sum(shape.numel() for shape in self._shapes)
        weights = self._packed([state.weights for state in states])
        moments = [torch.zeros_like(weights) for _ in range(2)]
        for k, state in enumerate(states):
            if state.n_steps:
                for rows, tensors in zip(moments, state.moments, strict=True):
                    rows[k] = self._packed([tensors])[0]
        columns = zip(*(state.buffers for state in states), strict=True)
        buffers = [torch.stack(column) for column in columns]
        n_steps, n_averaged = (
            np.array([getattr(state, name) for state in states])
            for name in ("n_steps", "n_averaged")
        )
        self._has_average = [is_averaged(buffer) for buffer in states[0].buffers]
        self.rows = StackRows(weights, moments, buffers, n_steps, [], n_averaged)
        if any(member.net.ema_decay for member in members):
            self.rows.averages = [part.clone() for part in self._averaged_parts()]
            for k, state in enumerate(states):
                self._put_averages(k, state, self.rows)
        self._allocate()

    def _packed(self, networks: list[list[Tensor]]) -> Tensor:
        """Return rows with the given tensors of each network, padded with zeros."""
        length = -(-self._size // _ALIGNMENT) * _ALIGNMENT
        rows = networks[0][0].new_zeros(len(networks), length)
        for row, tensors in zip(rows, networks, strict=True):
            parts = [tensor.reshape(-1) for tensor in self._transposed(tensors)]
            torch.cat(parts, out=row[: self._size])
        return rows

    def _transposed(self, weights: list[Tensor]) -> list[Tensor]:
        """Convert the weights of a member to the layout of the stack, or back."""
        return [
            weight.t() if is_transposed else weight
            for weight, is_transposed in zip(weights, self._is_transposed, strict=True)
        ]

    def _allocate(self) -> None:
        """Allocate the working memory, and prepare the passes and kernel calls."""
        members, weights = self.members, self.rows.weights
        self._weights = weights
        self._gradient, self._step = (torch.zeros_like(weights) for _ in range(2))
        self._unpadded_gradient = self._gradient[:, : self._size]
        # Small tensors that share memory with numpy arrays: numpy reads and writes them
        # in a tenth of the time that torch takes.
        self._norms = weights.new_empty(len(members))
        self._coefficients = weights.new_empty(len(members), 1)
        self._norms_array = self._norms.numpy()
        self._coefficients_array = self._coefficients.numpy()[:, 0]
        # Decoupled weight decay (AdamW) is applied to the weights, not to the gradient.
        self._is_decoupled = bool(members[0].group.get("decoupled_weight_decay"))
        self.decays = np.array([member.group["weight_decay"] for member in members])
        self._generators: list[torch.Generator] = []
        self._pass = stacked_pass(
            [member.net for member in members],
            self._generators,
            self._blocks(weights),
            self._blocks(self._gradient),
            self.rows.buffers,
        )
        self._ema_decays = [member.net.ema_decay or 0.0 for member in members]
        # Weight decay, which applies to whole rows, is undone for frozen parameters.
        self._frozen = [
            block
            for rows in (weights, self._gradient)
            for block in self._frozen_blocks(rows)
        ]
        self.prepare_steps()

    def use_generators(self) -> None:
        """Draw from the present generators of the members from now on."""
        self._generators[:] = [member.generator for member in self.members]

    def prepare_steps(self) -> None:
        """Prepare the steps anew after a member changed outside of the stack."""
        self.use_generators()
        self._step.zero_()  # the steps of a failed member may be NaN
        self._kept = [block.clone() for block in self._frozen]
        parts = [self._step, self._gradient, *self.rows.moments]
        numbers_by_key: dict[Hashable, list[int]] = defaultdict(list)
        for k, member in enumerate(self.members):
            numbers_by_key[kernel_key(member.group, int(self.rows.counts[k]))].append(k)
        # Arguments of each kernel call: group, counts of steps as tensors and as array,
        # tensors.
        self._kernel_calls = []
        for numbers in numbers_by_key.values():
            counts = torch.tensor(self.rows.counts[numbers], dtype=torch.float32)
            is_single = (
                len(numbers) == len(self.members) and counts.min() == counts.max()
            )
            if is_single:
                counts = counts[:1]
            lists = [
                [part.view(-1)] if is_single else [part[k] for k in numbers]
                for part in parts
            ]
            group = self.members[numbers[0]].group
            self._kernel_calls.append(
                (group, list(counts.unbind()), counts.numpy(), lists)
            )
        self._conditionings = [
            member.conditioning.on(self.parameters_of(k))
            for k, member in enumerate(self.members)
            if member.conditioning is not None
        ]

    def parameters_of(self, k: int) -> list[nn.Parameter]:
        """Return the parameters of member ``k``, with gradients, as views."""
        views = []
        for weight, gradient in zip(
            self._unpacked(self._weights[k]),
            self._unpacked(self._gradient[k]),
            strict=True,
        ):
            views.append(nn.Parameter(weight, requires_grad=False))
            views[-1].grad = gradient
        return views

    def _unpacked(self, row: Tensor) -> list[Tensor]:
        """Return views of a row in the shapes of the parameters."""
        sizes = [shape.numel() for shape in self._shapes]
        parts = torch.split_with_sizes(row[: self._size], sizes)
        pairs = zip(parts, self._shapes, strict=True)
        return self._transposed([part.view(shape) for part, shape in pairs])

    def state_of(self, k: int, rows: StackRows | None = None) -> NetworkState:
        """Return a copy of the state of member ``k``, present or in earlier rows."""
        rows = rows or self.rows
        weights, *moments = (
            self._unpacked(tensor[k].clone())
            for tensor in (rows.weights, *rows.moments)
        )
        buffers = [block[k].clone() for block in rows.buffers]
        averages = []
        if rows.averages:
            means, *others = rows.averages
            parts = [*self._unpacked(means[k]), *(block[k] for block in others)]
            averages = [part.clone() for part in parts]
        return NetworkState(
            weights,
            buffers,
            moments,
            int(rows.counts[k]),
            averages,
            int(rows.n_averaged[k]),
        )

    def weights_of(self, k: int) -> list[Tensor]:
        """Return a copy of the weights and buffers of member ``k``."""
        weights = self._unpacked(self._weights[k].clone())
        return [*weights, *(block[k].clone() for block in self.rows.buffers)]

    def put_state(
        self, k: int, state: NetworkState, rows: StackRows | None = None
    ) -> None:
        """Overwrite the state of a member, present or in other rows.

        :meth:`prepare_steps` must follow.
        """
        rows = rows or self.rows
        tensors = (rows.weights, *rows.moments)
        for tensor, parts in zip(tensors, (state.weights, *state.moments), strict=True):
            for view, part in zip(self._unpacked(tensor[k]), parts, strict=True):
                view.copy_(part)
        for block, buffer in zip(rows.buffers, state.buffers, strict=True):
            block[k] = buffer
        rows.counts[k] = state.n_steps
        self._put_averages(k, state, rows)

    def _put_averages(self, k: int, state: NetworkState, rows: StackRows) -> None:
        rows.n_averaged[k] = state.n_averaged
        if rows.averages and state.averages:
            means, *others = rows.averages
            views = [*self._unpacked(means[k]), *(block[k] for block in others)]
            for view, part in zip(views, state.averages, strict=False):
                view.copy_(part)

    def _averaged_parts(self) -> list[Tensor]:
        """Return the weights and the buffers that have averages."""
        rows = self.rows
        return [rows.weights, *itertools.compress(rows.buffers, self._has_average)]

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the averages in place of weights and buffers inside the block."""
        is_used = (np.array(self._ema_decays) > 0) & (self.rows.n_averaged > 0)
        index = torch.from_numpy(np.flatnonzero(is_used))
        pairs = list(zip(self._averaged_parts(), self.rows.averages, strict=False))
        self._swap(pairs, index)
        try:
            yield
        finally:
            self._swap(pairs, index)

    @staticmethod
    def _swap(pairs: list[tuple[Tensor, Tensor]], index: Tensor) -> None:
        for first, second in pairs:
            first[index], second[index] = second[index], first[index]

    def _blocks(self, rows: Tensor) -> list[Tensor]:
        """Return views of padded rows with the shapes of the weights, (K, *shape)."""
        starts = itertools.accumulate((s.numel() for s in self._shapes), initial=0)
        return [
            # A view of one row would not keep the distance of the rows.
            rows.as_strided(
                (len(rows), *shape),
                (
                    rows.stride(0),
                    *(math.prod(shape[i + 1 :]) for i in range(len(shape))),
                ),
                rows.storage_offset() + start,
            )
            for start, shape in zip(starts, self._shapes, strict=False)
        ]

    def _frozen_blocks(self, rows: Tensor) -> list[Tensor]:
        """Return the views of padded rows that are not trained."""
        parameters = self.members[0].net.module_.parameters()
        blocks = zip(self._blocks(rows), parameters, strict=True)
        return [block for block, p in blocks if not p.requires_grad]

    def subset(self, index: NDArray[np.int64], rows: StackRows | None = None) -> Stack:
        """Return a stack of some members, which shares no state with this one.

        Their state is the present one, or that in earlier rows.
        """
        subset = copy.copy(self)
        subset.members = [self.members[k] for k in index]
        subset.rows = (rows or self.rows).select(index)
        subset._allocate()
        return subset

    def prepare_target(self, target: Any, shape: torch.Size) -> Any:
        """Convert targets of rows in a tensor of shape (..., K, B) for a step."""
        return self._pass.prepare_target(target, shape)

    def forward_backward(
        self, x: Tensor, target: Any
    ) -> tuple[NDArray[Any], NDArray[Any], Tensor]:
        """Compute losses, gradient norms and outputs, which the next call overwrites.

        Parameters
        ----------
        x : Tensor of shape (K, B, ...)
            Inputs.
        target : Tensor or tuple of Tensor
            Result of :meth:`prepare_target`.

        Returns
        -------
        losses, norms : ndarray of shape (K,)
            Losses and gradient norms.
        output : Tensor of shape (K, B, ...)
            Outputs of the networks.
        """
        losses, output = self._pass.step(x, target)
        if self._pass.gradient_parts:
            torch.cat(self._pass.gradient_parts, 1, out=self._unpadded_gradient)
        for conditioning in self._conditionings:
            conditioning.scale_grads()
        return losses, self.gradient_norms(), output

    def gradient_norms(self) -> NDArray[Any]:
        """Return the gradient norms (K,), which the next call overwrites."""
        torch.linalg.vector_norm(self._gradient, dim=1, out=self._norms)
        return self._norms_array

    def clamp(self, limits: NDArray[np.float64]) -> None:
        """Clamp the gradients of each member to a largest absolute value (K,)."""
        column = self._column(limits)
        torch.clamp(self._gradient, -column, column, out=self._gradient)

    def evaluate(self, x: Tensor, target: Any) -> list[float]:
        """Return the losses in evaluation mode, for targets of shape (K, B, ...)."""
        losses: list[float] = self._pass.evaluate(x, target).tolist()
        return losses

    def clip(self, coefficients: NDArray[np.float64]) -> None:
        """Multiply the gradient of each member by a number."""
        self._coefficients_array[:] = coefficients
        self._gradient.mul_(self._coefficients)

    def _column(self, numbers: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(numbers).to(self._weights.dtype).unsqueeze(-1)

    def step_factors(self, learning_rates: NDArray[np.float64]) -> list[StepFactors]:
        """Return the arguments of :meth:`step` for learning rates (n_steps, K)."""
        n_steps = len(learning_rates)
        decays: Sequence[Tensor | None] = [None] * n_steps
        if self.decays.any():
            factors = np.broadcast_to(self.decays, learning_rates.shape).copy()
            if self._is_decoupled:
                factors = 1.0 - learning_rates * factors
            decays = self._column(factors).unbind()
        columns = self._column(learning_rates).unbind()
        return list(map(StepFactors, columns, decays, self._average_shares(n_steps)))

    def _average_shares(self, n_steps: int) -> Sequence[Tensor | None]:
        """Return the share of the new weights in the averages at consecutive steps."""
        if not self.rows.averages:
            return [None] * n_steps
        members = list(
            zip(self.rows.n_averaged.tolist(), self._ema_decays, strict=True)
        )
        shares = [
            [1.0 - decay_after(n + i, decay) for n, decay in members]
            for i in range(n_steps)
        ]
        return self._column(np.array(shares)).unbind()

    def step(self, factors: StepFactors) -> None:
        """Make one step of the optimizer."""
        for conditioning in self._conditionings:
            conditioning.to_scaled()
        if factors.decay is not None:
            if self._is_decoupled:
                self._weights.mul_(factors.decay)
            else:
                self._gradient.addcmul_(self._weights, factors.decay)
        for group, counts, count_array, lists in self._kernel_calls:
            count_array += 1.0
            write_unit_steps(group, counts, lists)
        self.rows.counts += 1
        self._weights.addcmul_(self._step, factors.rate)
        for conditioning in self._conditionings:
            conditioning.to_raw()
        if self._frozen:
            torch._foreach_copy_(self._frozen, self._kept)
        if factors.share is not None:
            self._update_averages(factors.share)

    def _update_averages(self, share: Tensor) -> None:
        self.rows.n_averaged += 1
        changes = [self._gradient, *map(torch.empty_like, self.rows.averages[1:])]
        parts = zip(self.rows.averages, self._averaged_parts(), changes, strict=True)
        for average, present, change in parts:
            torch.sub(present, average, out=change)
            average.addcmul_(change, share.view(-1, *[1] * (average.ndim - 1)))

    def sizes(self) -> NDArray[np.float64]:
        """Return the norm of the trained weights of each member, at least 0.01 each."""
        rows, n_weights = self._weights.clone(), self._size
        for block in self._frozen_blocks(rows):
            block.zero_()
            n_weights -= block[0].numel()
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        sizes: NDArray[np.float64] = norms.numpy()
        return np.maximum(sizes, 1e-2 * math.sqrt(n_weights))
