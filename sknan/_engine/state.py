"""Weights, gradients and moments of the members of a stack, with one row per member."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sknan._engine.member import Member
from sknan._engine.optimizer_step import kernel_key, write_unit_steps
from sknan._engine.passes import is_stored_transposed, stacked_pass

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
    """

    rate: Tensor
    decay: Tensor | None


class Stack:
    """Tensors of the networks that are still trained, and their steps.

    Parameters
    ----------
    members : list of Member
        Networks of one :func:`~sknan._engine.passes.pass_key` and one
        :func:`~sknan._engine.optimizer_step.optimizer_key`.

    Attributes
    ----------
    members : list of Member
        Members that have not been removed.
    buffers : list of Tensor
        Buffers of the modules, with the members along the first axis.
    """

    def __init__(self, members: list[Member]) -> None:
        self._is_transposed = is_stored_transposed(members[0].net)
        blocks = _stacked([self._transposed(member.weights) for member in members])
        self._shapes = [block.shape[1:] for block in blocks]
        self._size = sum(shape.numel() for shape in self._shapes)
        length = -(-self._size // _ALIGNMENT) * _ALIGNMENT
        weights = blocks[0].new_zeros(len(members), length)
        torch.cat([b.flatten(1) for b in blocks], 1, out=weights[:, : self._size])
        moments = [torch.zeros_like(weights) for _ in range(2)]
        buffers = _stacked([member.buffers for member in members])
        self._set(members, weights, moments, buffers)

    def _transposed(self, weights: list[Tensor]) -> list[Tensor]:
        """Convert the weights of a member to the layout of the stack, or back."""
        return [
            weight.t() if is_transposed else weight
            for weight, is_transposed in zip(weights, self._is_transposed, strict=True)
        ]

    def _set(
        self,
        members: list[Member],
        weights: Tensor,
        moments: list[Tensor],
        buffers: list[Tensor],
    ) -> None:
        """Set the members and their tensors, and allocate the working memory."""
        self.members = members
        self.buffers = buffers
        self._weights, self._moments = weights, moments
        # Products are written to separate tensors: a result must be contiguous.
        gradients = [weights.new_empty(len(members), *s) for s in self._shapes]
        self._gradients = [gradient.flatten(1) for gradient in gradients]
        self._gradient, self._step = (torch.zeros_like(weights) for _ in range(2))
        self._unpadded_gradient = self._gradient[:, : self._size]
        # Small tensors that share memory with numpy arrays: numpy reads and writes them
        # in a tenth of the time that torch takes.
        self._norms = weights.new_empty(len(members))
        self._coefficients = weights.new_empty(len(members), 1)
        self._count = torch.zeros(())
        self._norms_array = self._norms.numpy()
        self._coefficients_array = self._coefficients.numpy()[:, 0]
        self._count_array = self._count.numpy()
        # Decoupled weight decay (AdamW) is applied to the weights, not to the gradient.
        self._is_decoupled = bool(members[0].group.get("decoupled_weight_decay"))
        self._decays = np.array([member.group["weight_decay"] for member in members])
        self._kernel_calls = self._calls_of_kernels()
        self._pass = stacked_pass(
            [member.net for member in members],
            [member.generator for member in members],
            self._blocks(weights),
            gradients,
            buffers,
        )

    def _calls_of_kernels(self) -> list[tuple[dict[str, Any], list[list[Tensor]]]]:
        """Return the group and the tensors of each kernel call of a step."""
        parts = [self._step, self._gradient, *self._moments]
        numbers_by_key: dict[Hashable, list[int]] = {}
        for k, member in enumerate(self.members):
            numbers_by_key.setdefault(kernel_key(member.group), []).append(k)
        is_single = len(numbers_by_key) == 1
        return [
            (
                self.members[numbers[0]].group,
                [
                    [part.view(-1)] if is_single else [part[k] for k in numbers]
                    for part in parts
                ],
            )
            for numbers in numbers_by_key.values()
        ]

    def _blocks(self, rows: Tensor) -> list[Tensor]:
        """Return views of padded rows with the shapes of the weights, (K, *shape)."""
        sizes = [shape.numel() for shape in self._shapes]
        blocks = torch.split(rows[:, : self._size], sizes, 1)
        return [
            block.view(len(rows), *shape)
            for block, shape in zip(blocks, self._shapes, strict=True)
        ]

    def keep(self, numbers: Sequence[int]) -> None:
        """Keep only these members.

        Parameters
        ----------
        numbers : sequence of int
            Positions of the members that remain.
        """
        index = torch.tensor(numbers)
        weights, *moments = (part[index] for part in (self._weights, *self._moments))
        buffers = [block[index] for block in self.buffers]
        self._set([self.members[k] for k in numbers], weights, moments, buffers)

    def weights_of(self, k: int) -> list[Tensor]:
        """Return a copy of the weights and buffers of a member.

        Parameters
        ----------
        k : int
            Position of the member.

        Returns
        -------
        list of Tensor
        """
        weights = self._transposed([block[k] for block in self._blocks(self._weights)])
        return [t.clone() for t in (*weights, *(block[k] for block in self.buffers))]

    def prepare_target(self, target: Any, shape: torch.Size) -> Any:
        """Convert targets to the form that :meth:`forward_backward` uses.

        Parameters
        ----------
        target : Tensor or tuple of Tensor
            Targets of the rows.
        shape : torch.Size
            Shape (..., K, B) of the tensor of row numbers.

        Returns
        -------
        Tensor or tuple of Tensor
        """
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
        torch.cat(self._gradients, 1, out=self._unpadded_gradient)
        torch.linalg.vector_norm(self._gradient, dim=1, out=self._norms)
        return losses, self._norms_array, output

    def evaluate(self, x: Tensor, target: Any) -> list[float]:
        """Return the losses in evaluation mode.

        Parameters
        ----------
        x : Tensor of shape (K, B, ...)
            Inputs.
        target : Tensor or tuple of Tensor
            Targets of shape (K, B, ...).

        Returns
        -------
        list of float
        """
        losses: list[float] = self._pass.evaluate(x, target).tolist()
        return losses

    def clip(self, coefficients: NDArray[np.float64]) -> None:
        """Multiply the gradient of each member by a number.

        Parameters
        ----------
        coefficients : ndarray of shape (K,)
            Factor of each member.
        """
        self._coefficients_array[:] = coefficients
        self._gradient.mul_(self._coefficients)

    def _column(self, numbers: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(numbers).to(self._weights.dtype).unsqueeze(-1)

    def step_factors(self, learning_rates: NDArray[np.float64]) -> list[StepFactors]:
        """Return the arguments of :meth:`step` for consecutive steps.

        Parameters
        ----------
        learning_rates : ndarray of shape (n_steps, K)
            Learning rate of each member at each step.

        Returns
        -------
        list of StepFactors
        """
        columns = self._column(learning_rates).unbind()
        if not self._decays.any():
            return [StepFactors(column, None) for column in columns]
        decays = np.broadcast_to(self._decays, learning_rates.shape).copy()
        if self._is_decoupled:
            decays = 1.0 - learning_rates * decays
        return list(map(StepFactors, columns, self._column(decays).unbind()))

    def step(self, factors: StepFactors, n_steps: int) -> None:
        """Make one step of the optimizer.

        Parameters
        ----------
        factors : StepFactors
            Learning rates and weight decays of the step.
        n_steps : int
            Number of the step, from 1.
        """
        if factors.decay is not None:
            if self._is_decoupled:
                self._weights.mul_(factors.decay)
            else:
                self._gradient.addcmul_(self._weights, factors.decay)
        self._count_array[()] = n_steps
        for group, lists in self._kernel_calls:
            write_unit_steps(group, self._count, lists)
        self._weights.addcmul_(self._step, factors.rate)

    def are_finite(self) -> list[bool]:
        """Return for each member whether its weights and buffers are finite."""
        floats = [b.flatten(1) for b in self.buffers if b.is_floating_point()]
        sums = [rows.sum(1) for rows in (self._weights, *floats)]
        finite: list[bool] = torch.isfinite(torch.stack(sums)).all(0).tolist()
        return finite


def _stacked(tensors: list[list[Tensor]]) -> list[Tensor]:
    """Stack corresponding tensors of all members."""
    columns = zip(*tensors, strict=True)
    return [torch.stack([t.detach() for t in column]) for column in columns]
