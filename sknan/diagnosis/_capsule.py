"""What reproduces a failed step: batch, weights and random state, without any code."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from sknan._utils.tree import tree_map

__all__ = ["Capsule", "capture"]

# Of the archive; a reader refuses what it does not know.
FORMAT = 1

# Looked up once: that reads files.
_VERSIONS = {"sknan": version("sknan"), "torch": str(torch.__version__)}


@dataclass(frozen=True, eq=False)
class Capsule:
    """A failed step, ready to be run again; see :func:`sknan.diagnosis.reproduce`.

    Parameters
    ----------
    inputs, target : Tensor, or nested tuples, lists or dicts of Tensor
        The batch, on the CPU.
    weights : dict of str to dict
        State of each network and criterion by its name in the net, such as "module".
    random_state : Tensor of uint8
        State of torch's generator before the forward pass.
    is_training : bool
        Whether the module was in training mode.
    parameters : dict
        Of the net, as far as they are numbers, strings or names of classes.
    versions : dict of str to str
        Of torch and sknan.
    """

    inputs: Any
    target: Any
    weights: dict[str, dict[str, Any]]
    random_state: Tensor
    is_training: bool
    parameters: dict[str, Any]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """All fields by name: tensors and plain Python objects only."""
        return dict(vars(self))


def _plain(value: Any) -> Any:
    """A parameter as something that a weights-only archive can hold."""
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


def _kept(data: Any) -> Any:
    """Tensors of a batch, copied to the CPU; what is no tensor as it is, if plain."""

    def keep(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.detach().cpu().clone()
        return _plain(leaf)

    return tree_map(keep, data)


def capture(
    modules: Mapping[str, Any],
    batch: tuple[Any, Any],
    random_state: Tensor,
    parameters: Mapping[str, Any],
) -> Capsule:
    """Keep what reproduces a step.

    Parameters
    ----------
    modules : mapping of str to object
        Networks and criteria by name; what is no module is left out.
    batch : (object, object)
        Inputs and target.
    random_state : Tensor
        Of torch's generator before the forward pass.
    parameters : mapping
        Of the net.

    Returns
    -------
    Capsule
    """
    networks = {n: m for n, m in modules.items() if isinstance(m, nn.Module)}
    return Capsule(
        inputs=_kept(batch[0]),
        target=_kept(batch[1]),
        weights={
            name: {key: _kept(value) for key, value in module.state_dict().items()}
            for name, module in networks.items()
        },
        random_state=random_state.clone(),
        is_training=any(module.training for module in networks.values()),
        parameters={name: _plain(value) for name, value in parameters.items()},
        versions=dict(_VERSIONS),
    )
