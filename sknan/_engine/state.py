"""Weights, gradients and moments of the slices of a stack, a row for each slice."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sknan._engine.optimizer_step import (
    group_of_step,
    is_decay_decoupled,
    numbers_of,
    step_alike,
)
from sknan._engine.passes import are_transposed, stacked_pass

__all__ = ["Rates", "Stack"]

# The optimizers' kernels round the numbers at the end of a tensor, which do not fill a
# vector, otherwise than the rest: so none of a slice's may lie there.
_ALIGNED = 16


class Rates(NamedTuple):
    """What a step multiplies by, one number for each slice: (K, 1).

    ``rate`` is the learning rate, ``decay`` what a decoupled decay leaves of the
    weights, or else the weight decay; None if no slice has any.
    """

    rate: Tensor
    decay: Tensor | None


class Stack:
    """The slices that are still trained: what they have for numbers, and their steps.

    Parameters
    ----------
    slices : list of object
        With ``net``, ``group`` (the parameter group of its optimizer), ``generator``,
        ``weights`` and ``buffers`` each.

    Attributes
    ----------
    slices : list of object
        Those that are left.
    """

    def __init__(self, slices: list[Any]) -> None:
        self._transposed = are_transposed(slices[0].net)
        blocks = _stacked([self._turn(its.weights) for its in slices])
        self._shapes = [block.shape[1:] for block in blocks]
        self._size = sum(shape.numel() for shape in self._shapes)
        rows = _rows(len(slices), self._size, blocks[0])
        torch.cat([block.flatten(1) for block in blocks], 1, out=rows[:, : self._size])
        nothing = torch.zeros_like(rows)
        buffers = _stacked([its.buffers for its in slices])
        self._take(slices, [rows, nothing, nothing.clone()], buffers)

    def _turn(self, weights: list[Tensor]) -> list[Tensor]:
        """Weights of a slice as the pass wants them, or back again."""
        return [
            weight.t() if is_turned else weight
            for weight, is_turned in zip(weights, self._transposed, strict=True)
        ]

    def _take(
        self, slices: list[Any], rows: list[Tensor], buffers: list[Tensor]
    ) -> None:
        """Begin, or go on, with these slices, their weights and moments."""
        self.slices = slices
        self.buffers = buffers
        self._weights, *moments = rows
        # Products are left in tensors of their own: a result must lie in one piece.
        gradients = [self._weights.new_empty(len(slices), *s) for s in self._shapes]
        self._gradients = [gradient.flatten(1) for gradient in gradients]
        self._gradient, self._step = (torch.zeros_like(self._weights) for _ in range(2))
        self._filled = self._gradient[:, : self._size]
        # Small ones that numpy reads and writes: it takes a tenth of torch's time.
        self._norms = self._weights.new_empty(len(slices))
        self._coefficients = self._weights.new_empty(len(slices), 1)
        self._count = torch.zeros(())
        self._found_norms = self._norms.numpy()
        self._given_coefficients = self._coefficients.numpy()[:, 0]
        self._given_count = self._count.numpy()
        self._is_decoupled = is_decay_decoupled(slices[0].group)
        self._decays = np.array([its.group["weight_decay"] for its in slices])
        parts = [self._step, self._gradient, *moments]
        alike: dict[Hashable, list[int]] = {}
        for k, its in enumerate(slices):
            alike.setdefault(numbers_of(its.group), []).append(k)
        self._alike = [
            (
                group_of_step(slices[own[0]].group),
                [
                    [part.view(-1)] if len(alike) == 1 else [part[k] for k in own]
                    for part in parts
                ],
            )
            for own in alike.values()
        ]
        self._moments = moments
        self._passes = stacked_pass(
            [its.net for its in slices],
            [its.generator for its in slices],
            self._blocks(self._weights),
            gradients,
            buffers,
        )

    def _blocks(self, rows: Tensor) -> list[Tensor]:
        """The weights that rows hold, (K, *shape) each."""
        sizes = [shape.numel() for shape in self._shapes]
        blocks = torch.split(rows[:, : self._size], sizes, 1)
        return [
            block.view(len(rows), *shape)
            for block, shape in zip(blocks, self._shapes, strict=True)
        ]

    def keep(self, numbers: Sequence[int]) -> None:
        """Let all other slices go."""
        index = torch.tensor(numbers)
        rows = [part[index] for part in (self._weights, *self._moments)]
        buffers = [block[index] for block in self.buffers]
        self._take([self.slices[k] for k in numbers], rows, buffers)

    def weights_of(self, k: int) -> list[Tensor]:
        """A copy of the weights and buffers of one slice."""
        weights = self._turn([block[k] for block in self._blocks(self._weights)])
        return [t.clone() for t in (*weights, *(block[k] for block in self.buffers))]

    def prepared(self, target: Any, shape: torch.Size) -> Any:
        """Targets of rows (..., K, B) as :meth:`forward_backward` takes them."""
        return self._passes.prepared(target, shape)

    def forward_backward(
        self, x: Tensor, target: Any
    ) -> tuple[NDArray[Any], NDArray[Any], Tensor]:
        """Losses, gradient norms and outputs; they hold until the next call.

        Parameters
        ----------
        x : Tensor of shape (K, B, ...)
            Inputs.
        target : Tensor or tuple of Tensor
            :meth:`prepared`.
        """
        losses, output = self._passes.step(x, target)
        torch.cat(self._gradients, 1, out=self._filled)
        torch.linalg.vector_norm(self._gradient, dim=1, out=self._norms)
        return losses, self._found_norms, output

    def evaluate(self, x: Tensor, target: Any) -> list[float]:
        """Losses in evaluation mode."""
        losses: list[float] = self._passes.evaluate(x, target).tolist()
        return losses

    def clip(self, coefficients: NDArray[np.float64]) -> None:
        """Multiply the gradients of each slice by a number of its own."""
        self._given_coefficients[:] = coefficients
        self._gradient.mul_(self._coefficients)

    def _column(self, numbers: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(numbers).to(self._weights.dtype).unsqueeze(-1)

    def rates(self, rates: NDArray[np.float64]) -> list[Rates]:
        """What :meth:`step` takes.

        Parameters
        ----------
        rates : ndarray of shape (n_steps, n_slices)
            Learning rate of each slice at each step.

        Returns
        -------
        list of Rates
        """
        columns = self._column(rates).unbind()
        if not self._decays.any():
            return [Rates(column, None) for column in columns]
        decays = np.broadcast_to(self._decays, rates.shape).copy()
        if self._is_decoupled:
            decays = 1.0 - rates * decays
        return list(map(Rates, columns, self._column(decays).unbind()))

    def step(self, rates: Rates, n_steps: int) -> None:
        """One step of the optimizer.

        Parameters
        ----------
        rates : Rates
            Of this step.
        n_steps : int
            Number of this step, from 1.
        """
        if rates.decay is not None:
            if self._is_decoupled:
                self._weights.mul_(rates.decay)
            else:
                self._gradient.addcmul_(self._weights, rates.decay)
        # What the optimizer makes of nothing at a rate of one is its step.
        self._given_count[()] = n_steps
        for group, lists in self._alike:
            step_alike(group, self._count, lists)
        self._weights.addcmul_(self._step, rates.rate)

    def are_finite(self) -> list[bool]:
        """Whether the weights, and the buffers, of each slice are finite."""
        floats = [b.flatten(1) for b in self.buffers if b.is_floating_point()]
        sums = [rows.sum(1) for rows in (self._weights, *floats)]
        finite: list[bool] = torch.isfinite(torch.stack(sums)).all(0).tolist()
        return finite


def _rows(n_slices: int, size: int, like: Tensor) -> Tensor:
    """A row of zeros for each slice, at least so long."""
    return like.new_zeros(n_slices, -(-size // _ALIGNED) * _ALIGNED)


def _stacked(tensors: list[list[Tensor]]) -> list[Tensor]:
    """Tensors of each slice, stacked with those of the others."""
    columns = zip(*tensors, strict=True)
    return [torch.stack([t.detach() for t in column]) for column in columns]
