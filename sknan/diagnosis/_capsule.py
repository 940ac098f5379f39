"""Data that reproduce a failed step: batch, weights and random state, but no code."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from sknan._utils.tree import tree_map

# Version of the archive format. Archives of other versions are refused.
FORMAT = 1

# Read once, because it opens files.
_VERSIONS = {"sknan": version("sknan"), "torch": str(torch.__version__)}


@dataclass(frozen=True, eq=False)
class Capsule:
    """Data of a failed step; :func:`sknan.diagnosis.reproduce` runs it again.

    Parameters
    ----------
    inputs, target : Tensor, or nested tuples, lists or dicts of Tensor
        Data of the batch, on the CPU.
    weights : dict of str to dict
        State of each network and criterion, by name in the net, such as "module".
    random_state : Tensor of uint8
        State of torch's random generator before the forward pass.
    is_training : bool
        Whether the module was in training mode.
    parameters : dict
        Parameters of the net: numbers, strings, and names of classes.
    versions : dict of str to str
        Versions of torch and sknan.
    """

    inputs: Any
    target: Any
    weights: dict[str, dict[str, Any]]
    random_state: Tensor
    is_training: bool
    parameters: dict[str, Any]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name: tensors and plain Python objects only."""
        return dict(vars(self))


def _plain(value: Any) -> Any:
    """Return a parameter as an object that a weights-only archive can contain."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _copied(data: Any) -> Any:
    """Return nested data with tensors copied to the CPU and other leaves made plain."""

    def copy(leaf: Any) -> Any:
        is_tensor = isinstance(leaf, Tensor)
        return leaf.detach().cpu().clone() if is_tensor else _plain(leaf)

    return tree_map(copy, data)


def capture(
    modules: Mapping[str, Any],
    batch: tuple[Any, Any],
    random_state: Tensor,
    parameters: Mapping[str, Any],
) -> Capsule:
    """Copy the data that reproduce a step.

    Parameters
    ----------
    modules : mapping of str to object
        Networks and criteria by name. Objects that are not modules are ignored.
    batch : (object, object)
        Inputs and target.
    random_state : Tensor
        State of torch's random generator before the forward pass.
    parameters : mapping
        Parameters of the net.

    Returns
    -------
    Capsule
    """
    networks = {n: m for n, m in modules.items() if isinstance(m, nn.Module)}
    return Capsule(
        inputs=_copied(batch[0]),
        target=_copied(batch[1]),
        weights={name: _copied(m.state_dict()) for name, m in networks.items()},
        random_state=random_state.clone(),
        is_training=any(module.training for module in networks.values()),
        parameters=_plain(parameters),
        versions=dict(_VERSIONS),
    )
