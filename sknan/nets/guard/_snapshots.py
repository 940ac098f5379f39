"""Copies of weights, buffers and optimizer states, to go back to."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["OptimizerSnapshot", "Snapshot"]


# About the largest float32.
_LARGEST = 3.4e38


def _is_finite(tensors: Sequence[Tensor]) -> bool:
    if not tensors:
        return True
    # One host read for all tensors together.
    return bool(torch.stack([torch.isfinite(t).all() for t in tensors]).all())


def _norm(tensors: Sequence[Tensor]) -> float:
    """2-norm in float64, with overflowed entries counted as the largest float32."""
    total = 0.0
    for tensor in tensors:
        norm = float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
        if not norm < _LARGEST:
            wide = torch.nan_to_num(tensor.detach().double(), nan=torch.inf)
            norm = float(wide.clamp(-_LARGEST, _LARGEST).square().sum().sqrt())
        total += norm * norm
    return math.sqrt(total)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class Snapshot:
    """Copy of the weights and buffers of some modules, kept on their device.

    Parameters
    ----------
    modules : sequence of nn.Module
        Tied tensors are kept once.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        tensors = chain.from_iterable(
            chain(module.parameters(), module.buffers()) for module in modules
        )
        self._live = list({id(t): t for t in tensors}.values())
        self._kept = [tensor.detach().clone() for tensor in self._live]
        buffers = {id(b): b for module in modules for b in module.buffers()}
        self._buffers = list(buffers.values())
        self._kept_buffers: list[Tensor] = []  # those before the latest forward pass
        # A buffer may hold infinities by design, such as a causal attention mask.
        self._watched = [
            live
            for live, kept in zip(self._live, self._kept, strict=True)
            if kept.is_floating_point()
            and (live.requires_grad or bool(torch.isfinite(kept).all()))
        ]

    @torch.no_grad()
    def take(self) -> None:
        """Overwrite the copy with the present state."""
        for live, kept in zip(self._live, self._kept, strict=True):
            kept.copy_(live)

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copy back."""
        for live, kept in zip(self._live, self._kept, strict=True):
            live.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """The copy itself, for :meth:`load_state_dict`."""
        return {"tensors": self._kept}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Overwrite the copy with that of a snapshot of a twin."""
        for kept, tensor in zip(self._kept, state["tensors"], strict=True):
            kept.copy_(tensor)

    def take_buffers(self) -> None:
        """Keep the buffers as they are before a forward pass, which may change them."""
        if not self._buffers:
            return
        with torch.no_grad():
            if self._kept_buffers:
                torch._foreach_copy_(self._kept_buffers, self._buffers)
            else:
                self._kept_buffers = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Write the buffers back as they were before the forward pass."""
        for live, kept in zip(self._buffers, self._kept_buffers, strict=True):
            live.copy_(kept)

    @torch.no_grad()
    def restore_nonfinite(self) -> None:
        """Write the copy back where the present state is not finite."""
        for live, kept in zip(self._live, self._kept, strict=True):
            if not torch.isfinite(live).all():
                live.copy_(kept)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Put the copy in place inside the block, and the present state back after."""
        present = [live.detach().clone() for live in self._live]
        self.restore()
        try:
            yield
        finally:
            with torch.no_grad():
                for live, value in zip(self._live, present, strict=True):
                    live.copy_(value)

    def float_buffers(self) -> list[Tensor]:
        """The live buffers that were finite when the copy was first taken."""
        ids = {id(b) for b in self._buffers if b.numel()}
        return [live for live in self._watched if id(live) in ids]

    def is_live_finite(self) -> bool:
        """Whether the present weights, and the buffers that were finite, are finite."""
        return _is_finite(self._watched)

    def relative_distance(self, later: Snapshot | None = None) -> float:
        """Distance of the weights from the copy, in multiples of the copy's size.

        Parameters
        ----------
        later : Snapshot or None, default=None
            Whose weights; by default the present ones.
        """
        pairs = [
            (now.detach(), kept)
            for live, kept, now in zip(
                self._live,
                self._kept,
                later._kept if later else self._live,
                strict=True,
            )
            if live.requires_grad
        ]
        # Half precision has no room for a difference.
        moved = _norm([now.to(_wide(now.dtype)) - kept for now, kept in pairs])
        size = self.size()
        return moved / size if size else 0.0

    def size(self) -> float:
        """2-norm of the kept weights, and no less than a hundredth for each of them."""
        weights = [
            kept
            for live, kept in zip(self._live, self._kept, strict=True)
            if live.requires_grad
        ]
        n_weights = sum(weight.numel() for weight in weights)
        # Weights that start at zero have no size of their own.
        return max(_norm(weights), 1e-2 * math.sqrt(n_weights))


class OptimizerSnapshot:
    """Copy of what optimizers remember, such as moments and step counters.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        As they are now.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self.take()

    def take(self) -> None:
        """Overwrite the copy with the present state."""
        self._kept = [_copied(optimizer.state) for optimizer in self._optimizers]

    def restore(self) -> None:
        """Write the copy back."""
        for optimizer, kept in zip(self._optimizers, self._kept, strict=True):
            optimizer.state.clear()
            optimizer.state.update(_copied(kept))

    def state_dict(self) -> dict[str, Any]:
        """The copy itself, with each parameter's number in place of it."""
        return {
            "states": [
                {
                    i: kept[p]
                    for i, p in enumerate(_parameters_of(optimizer))
                    if p in kept
                }
                for optimizer, kept in zip(self._optimizers, self._kept, strict=True)
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Overwrite the copy with that of a snapshot of a twin."""
        self._kept = [
            _copied(
                {
                    p: kept[i]
                    for i, p in enumerate(_parameters_of(optimizer))
                    if i in kept
                }
            )
            for optimizer, kept in zip(self._optimizers, state["states"], strict=True)
        ]


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _copied(state: Any) -> dict[Any, Any]:
    """A state by parameter, which stays the key, with copies of what is kept for it."""
    return {
        parameter: {
            name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in kept.items()
        }
        for parameter, kept in state.items()
    }
