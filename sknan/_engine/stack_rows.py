"""State of the members of a stack, with one row per member."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class StackRows:
    """State of the members that a step changes, with one row per member.

    Parameters
    ----------
    weights : Tensor of shape (n_members, n_weights)
        Weights in the layout of the stack, padded with zeros.
    moments : list of Tensor
        Moments of the optimizer, in the shape of the weights.
    buffers : list of Tensor
        Buffers of the modules, with the members along the first axis.
    counts : ndarray of shape (n_members,)
        Number of steps in the moments.
    averages : list of Tensor
        Averages of the weights, and of the buffers that have one, in their shapes;
        empty if no member has averages.
    n_averaged : ndarray of shape (n_members,)
        Number of steps in the averages.
    """

    weights: Tensor
    moments: list[Tensor]
    buffers: list[Tensor]
    counts: NDArray[np.int64]
    averages: list[Tensor]
    n_averaged: NDArray[np.int64]

    def select(self, index: NDArray[np.int64]) -> StackRows:
        """Return a copy of some rows."""
        rows = torch.from_numpy(index)
        tensors = [part[rows] for part in self._tensors()]
        return self._with(tensors, self.counts[index], self.n_averaged[index])

    def put(self, index: NDArray[np.int64], other: StackRows) -> None:
        """Overwrite some rows."""
        rows = torch.from_numpy(index)
        pairs = zip(self._tensors(), other._tensors(), strict=True)
        for target, source in pairs:
            target[rows] = source
        self.counts[index] = other.counts
        self.n_averaged[index] = other.n_averaged

    def clone(self) -> StackRows:
        """Return a copy."""
        tensors = [part.clone() for part in self._tensors()]
        return self._with(tensors, self.counts.copy(), self.n_averaged.copy())

    def are_finite(self) -> NDArray[np.bool_]:
        """Return for each member whether its weights and buffers are finite."""
        floats = [b.reshape(len(b), -1) for b in self.buffers if b.is_floating_point()]
        sums = torch.stack([rows.sum(1) for rows in (self.weights, *floats)])
        finite: NDArray[np.bool_] = torch.isfinite(sums).all(0).numpy()
        return finite

    def _tensors(self) -> list[Tensor]:
        return [self.weights, *self.moments, *self.buffers, *self.averages]

    def _with(
        self,
        tensors: list[Tensor],
        counts: NDArray[np.int64],
        n_averaged: NDArray[np.int64],
    ) -> StackRows:
        """Return rows with other tensors, in the order of :meth:`_tensors`."""
        remaining = iter(tensors)
        weights, moments, buffers, averages = (
            list(itertools.islice(remaining, len(parts)))
            for parts in ([self.weights], self.moments, self.buffers, self.averages)
        )
        return StackRows(weights[0], moments, buffers, counts, averages, n_averaged)
