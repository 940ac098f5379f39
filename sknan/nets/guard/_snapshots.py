"""Copies of weights, buffers and optimizer states for a roll back."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sknan._utils.thresholds import SMALL

_LARGEST = torch.finfo(torch.float32).max


@torch.no_grad()
def _is_finite(tensors: Sequence[Tensor]) -> bool:
    if not tensors:
        return True
    # One host read for all tensors together.
    largest = torch.stack(torch._foreach_norm([*tensors], math.inf))
    return math.isfinite(largest.max())


def _norm(tensors: Sequence[Tensor]) -> float:
    """2-norm in float64, with overflowed entries counted as the largest float32."""
    total = 0.0
    for tensor in tensors:
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor.detach())
        norm = float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
        if not norm < _LARGEST:
            wide = torch.nan_to_num(tensor.detach().double(), nan=torch.inf)
            norm = float(wide.clamp(-_LARGEST, _LARGEST).square().sum().sqrt())
        total += norm * norm
    return math.sqrt(total)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    if target:  # entering no_grad for nothing takes time in each step
        with torch.no_grad():
            torch._foreach_copy_([*target], [*source])


class Snapshot:
    """Copy of the weights and buffers of modules, on their device.

    Parameters
    ----------
    modules : sequence of nn.Module
        Modules to copy. Shared tensors are copied once.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        tensors = chain.from_iterable(
            chain(module.parameters(), module.buffers()) for module in modules
        )
        self._modules = [part for module in modules for part in module.modules()]
        self._live = list({id(t): t for t in tensors}.values())
        self._kept = [tensor.detach().clone() for tensor in self._live]
        buffers = {id(b): b for module in modules for b in module.buffers()}
        self._buffers = list(buffers.values())
        self._kept_buffers: list[Tensor] = []  # before the latest forward pass
        # A buffer may contain infinities by design, as a causal attention mask does.
        self._watched = [
            live
            for live, kept in zip(self._live, self._kept, strict=True)
            if kept.is_floating_point()
            and kept.numel()
            and (live.requires_grad or bool(torch.isfinite(kept).all()))
        ]

    def take(self) -> None:
        """Overwrite the copy with the present state."""
        _copy(self._live, self._kept)

    def restore(self) -> None:
        """Restore the copied state."""
        _copy(self._kept, self._live)

    def differs_in(self, tensors: Iterable[Tensor]) -> bool:
        """Whether any of these tensors of the modules is not as in the copy.

        A tensor that has been assigned since then is not in it.
        """
        kept = {id(t): k for t, k in zip(self._live, self._kept, strict=True)}
        return any(
            id(tensor) not in kept or not torch.equal(tensor, kept[id(tensor)])
            for tensor in tensors
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the copy, for :meth:`load_state_dict`."""
        return {"tensors": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Overwrite the copy with the snapshot of equal modules."""
        _copy(state["tensors"], self._kept)
        watched = {id(tensor) for tensor in self._watched}
        pairs = zip(self._live, self._kept, strict=True)
        if not _is_finite([kept for live, kept in pairs if id(live) in watched]):
            raise ValueError("a copy of the weights is not finite")

    def take_buffers(self) -> None:
        """Copy the buffers before a forward pass, which may change them."""
        if len(self._kept_buffers) < len(self._buffers):
            self._kept_buffers = [buffer.detach().clone() for buffer in self._buffers]
        else:
            _copy(self._buffers, self._kept_buffers)

    def restore_buffers(self) -> None:
        """Restore the buffers from before the forward pass."""
        _copy(self._kept_buffers, self._buffers)

    @torch.no_grad()
    def restore_nonfinite(self) -> None:
        """Restore the tensors that are not finite at present."""
        for live, kept in zip(self._live, self._kept, strict=True):
            if not torch.isfinite(live).all():
                live.copy_(kept)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Use the copied state inside the block, then the present state again."""
        present = [live.detach().clone() for live in self._live]
        self.restore()
        try:
            with self.kept_numbers():
                yield
        finally:
            _copy(present, self._live)

    @contextlib.contextmanager
    def kept_numbers(self) -> Iterator[None]:
        """Restore numbers among the attributes of the modules after the block.

        A forward pass may change them, for example a count of steps.
        """
        numbers = [
            {name: v for name, v in vars(part).items() if isinstance(v, (int, float))}
            for part in self._modules
        ]
        try:
            yield
        finally:
            for part, values in zip(self._modules, numbers, strict=True):
                vars(part).update(values)

    def float_buffers(self) -> list[Tensor]:
        """Return the live buffers that were finite when the copy was first taken."""
        ids = {id(b) for b in self._buffers if b.numel()}
        return [live for live in self._watched if id(live) in ids]

    def is_live_finite(self) -> bool:
        """Whether the present weights, and the buffers that were finite, are finite."""
        return _is_finite(self._watched)

    def nonfinite_tensors(self) -> list[Tensor]:
        """Return the weights, and the buffers that were finite, that are not finite."""
        return [t for t in self._watched if not bool(torch.isfinite(t).all())]

    def _trained(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the tensors in the places of trained weights."""
        pairs = zip(self._live, tensors, strict=True)
        return [tensor.detach() for live, tensor in pairs if live.requires_grad]

    def relative_distance(self, later: Snapshot | None = None) -> float:
        """Return the distance of weights from the copy, in multiples of its norm.

        Parameters
        ----------
        later : Snapshot or None, default=None
            Snapshot with the weights to compare; None for the present weights.
        """
        present = self._trained(later._kept if later else self._live)
        pairs = zip(present, self._trained(self._kept), strict=True)
        # A difference may overflow or round to 0 in half precision.
        moved = _norm([now.to(_wide(now.dtype)) - kept for now, kept in pairs])
        size = self.size()
        return moved / size if size else 0.0

    def size(self) -> float:
        """Return the norm of the copied weights, at least that of small weights."""
        weights = self._trained(self._kept)
        n_weights = sum(weight.numel() for weight in weights)
        # Weights that start at zero would have norm 0.
        return max(_norm(weights), SMALL * math.sqrt(n_weights))


class OptimizerSnapshot:
    """Copy of the state of optimizers, such as moments and step counters.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        Optimizers whose present state is copied.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self.take()

    def take(self) -> None:
        """Overwrite the copy with the present state."""
        self._kept = [_copied(optimizer.state) for optimizer in self._optimizers]

    def restore(self) -> None:
        """Restore the copied state."""
        for optimizer, kept in zip(self._optimizers, self._kept, strict=True):
            optimizer.state.clear()
            optimizer.state.update(_copied(kept))

    def state_dict(self) -> dict[str, Any]:
        """Return the copy, with the number of each parameter as its key."""
        pairs = zip(map(_parameters_of, self._optimizers), self._kept, strict=True)
        return {"states": [_renamed(kept, p, range(len(p))) for p, kept in pairs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Overwrite the copy with the snapshot of equal optimizers."""
        parameters = map(_parameters_of, self._optimizers)
        pairs = zip(parameters, state["states"], strict=True)
        self._kept = [_copied(_renamed(kept, range(len(p)), p)) for p, kept in pairs]


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _renamed(
    state: dict[Any, Any], old: Sequence[Any], new: Sequence[Any]
) -> dict[Any, Any]:
    """Return a state with other keys."""
    return {b: state[a] for a, b in zip(old, new, strict=True) if a in state}


def _copied(state: Any) -> dict[Any, Any]:
    """Copy an optimizer state; the parameters remain its keys."""
    return {
        parameter: {
            name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in kept.items()
        }
        for parameter, kept in state.items()
    }
