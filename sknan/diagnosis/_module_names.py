"""Paths of the modules and weights of a net, as reports show them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from sknan.diagnosis._failed_operation import CRITERION
from sknan.diagnosis._values import all_finite, storage_key


class ModuleNames:
    """Paths of the modules of a net, its buffers, and its non-finite weights.

    Parameters
    ----------
    modules : dict of str to object
        Networks by name. Paths in the network ``"module"`` have no prefix. Objects that
        are not modules are ignored.
    criteria : iterable of object
        Loss functions. All parts of a loss that is a module are the criterion.
    """

    def __init__(self, modules: dict[str, Any], criteria: Iterable[Any]) -> None:
        self._paths: dict[int, str] = {}
        self.buffers: list[Tensor] = []
        self.nonfinite_weights: dict[int, str] = {}  # by key of the storage
        for name, module in modules.items():
            if isinstance(module, nn.Module):
                self._add_network(module, "" if name == "module" else name)
        for criterion in criteria:
            if isinstance(criterion, nn.Module):
                for part in criterion.modules():
                    self._paths[id(part)] = CRITERION

    def _add_network(self, module: nn.Module, prefix: str) -> None:
        for path, part in module.named_modules(prefix=prefix):
            self._paths.setdefault(id(part), path)
        self.buffers += module.buffers()
        for path, weight in module.named_parameters(prefix=prefix):
            if weight.numel() and not all_finite(weight.detach()):
                self.nonfinite_weights[storage_key(weight)] = path

    def path_of(self, module: nn.Module) -> str | None:
        """Return the path of a module, or None if the net does not contain it."""
        return self._paths.get(id(module))
