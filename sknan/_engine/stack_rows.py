"""State of the members of a stack, with one row per member."""

from __future__ import annotations

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
    """

    weights: Tensor
    moments: list[Tensor]
    buffers: list[Tensor]
    counts: NDArray[np.int64]

    def select(self, index: NDArray[np.int64]) -> StackRows:
        """Return a copy of some rows."""
        rows = torch.from_numpy(index)
        weights, *others = (
            part[rows] for part in (self.weights, *self.moments, *self.buffers)
        )
        n_moments = len(self.moments)
        moments, buffers = others[:n_moments], others[n_moments:]
        return StackRows(weights, moments, buffers, self.counts[index])

    def put(self, index: NDArray[np.int64], other: StackRows) -> None:
        """Overwrite some rows."""
        rows = torch.from_numpy(index)
        pairs = zip(self._tensors(), other._tensors(), strict=True)
        for target, source in pairs:
            target[rows] = source
        self.counts[index] = other.counts

    def clone(self) -> StackRows:
        """Return a copy."""
        weights, *others = (part.clone() for part in self._tensors())
        n_moments = len(self.moments)
        moments, buffers = others[:n_moments], others[n_moments:]
        return StackRows(weights, moments, buffers, self.counts.copy())

    def are_finite(self) -> NDArray[np.bool_]:
        """Return for each member whether its weights and buffers are finite."""
        floats = [b.reshape(len(b), -1) for b in self.buffers if b.is_floating_point()]
        sums = torch.stack([rows.sum(1) for rows in (self.weights, *floats)])
        finite: NDArray[np.bool_] = torch.isfinite(sums).all(0).numpy()
        return finite

    def _tensors(self) -> list[Tensor]:
        return [self.weights, *self.moments, *self.buffers]
