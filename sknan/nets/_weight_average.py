"""Exponential moving average of the weights of a training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# In the warm-up, the decay after n averaged steps is (1 + n) / (10 + n), so that the
# average soon forgets the first steps. This is the rule of TensorFlow
# (tf.train.ExponentialMovingAverage with num_updates).
_WARM_UP = 10


def decay_after(n_averaged: int, decay: float) -> float:
    """Return the factor of the average when the next step enters it.

    The first step replaces the average.
    """
    return min(decay, (1 + n_averaged) / (_WARM_UP + n_averaged)) if n_averaged else 0.0


def is_averaged(tensor: Tensor) -> bool:
    """Whether a parameter or buffer has an average, from its value before the training.

    Counts have none. Infinite buffers, such as attention masks, are constant.
    """
    return (tensor.is_floating_point() or tensor.is_complex()) and (
        isinstance(tensor, nn.Parameter) or bool(torch.isfinite(tensor).all())
    )


class WeightAverage:
    """Exponential moving average of the weights and running statistics of modules.

    During its steps a training finds its own weights in the modules. Between two epochs
    they hold the average, so that validation, scores and callbacks use it.

    Parameters
    ----------
    modules : sequence of nn.Module
        Modules before their first step.

    Attributes
    ----------
    state : nn.Module
        Container of averages and counts, for snapshots and backups.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._live = _averaged_tensors(modules)
        self.averages, self.trained = nn.ParameterList(), nn.ParameterList()
        for live in self._live:
            # In half precision, small changes of an average would be lost.
            wide = torch.promote_types(live.dtype, torch.float32)
            for tensors, dtype in ((self.averages, wide), (self.trained, live.dtype)):
                copied = live.to(dtype, copy=True)
                tensors.append(nn.Parameter(copied, requires_grad=False))
        self.counts = nn.Parameter(torch.zeros(2, dtype=torch.int64), False)
        counts = nn.ParameterList([self.counts])
        self.state = nn.ModuleList([self.averages, self.trained, counts])

    @property
    def n_averaged(self) -> int:
        """Number of steps in the average."""
        return int(self.counts[0])

    @property
    def is_shown(self) -> bool:
        """Whether the modules hold the average."""
        return bool(self.counts[1])

    def bind(self, modules: Iterable[nn.Module]) -> WeightAverage:
        """Return this average to continue a training, or a new one for new modules."""
        new = WeightAverage(modules)
        kinds = [[(t.shape, t.device) for t in a.averages] for a in (self, new)]
        if kinds[0] != kinds[1]:
            return new
        self._live = new._live
        return self

    @torch.no_grad()
    def load(self, averages: list[Tensor], n_averaged: int) -> None:
        """Replace the average, while the modules hold trained weights."""
        # Buffers of a criterion, which a stack does not have, come last; they are
        # constant.
        for average, value in zip(self.averages, averages, strict=False):
            average.copy_(value)
        self.counts[:] = torch.tensor([n_averaged, 0])

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Add the present weights to the average, after a step."""
        averages = list(self.averages)
        present = [t.to(a.dtype) for t, a in zip(self._live, averages, strict=True)]
        share = 1.0 - decay_after(self.n_averaged, decay)
        torch._foreach_lerp_(averages, present, share)
        self.counts[0] += 1

    @torch.no_grad()
    def show(self) -> None:
        """Put the average into the modules, between two epochs."""
        if self.is_shown or not self.n_averaged:
            return
        _copy(self._live, self.trained)
        _copy(self.averages, self._live)
        self.counts[1] = 1

    @torch.no_grad()
    def hide(self) -> None:
        """Put the trained weights back into the modules, before the next step.

        If the weights were changed since :meth:`show`, by a callback or by loading, the
        training continues from the new ones with a new average.
        """
        if not self.is_shown:
            return
        pairs = zip(self._live, self.averages, strict=True)
        is_kept = all(torch.equal(live, mean.to(live.dtype)) for live, mean in pairs)
        if is_kept:
            _copy(self.trained, self._live)
        self.counts[:] = torch.tensor([self.n_averaged if is_kept else 0, 0])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_live": []}  # bound again before it is used


def _averaged_tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    tensors = {id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}
    return [t.detach() for t in tensors.values() if is_averaged(t)]


def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    for value, tensor in zip(source, target, strict=True):
        tensor.copy_(value)
