"""Tensors in nested tuples, lists and mappings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def tree_map(function: Callable[[Any], Any], data: Any) -> Any:
    """Apply ``function`` to each tensor in nested tuples, lists and mappings.

    Parameters
    ----------
    function : callable
        Function of a tensor.
    data : Tensor, or nested tuples, lists or mappings of Tensor
        Nested tensors. Lists become tuples, mappings become dicts.

    Returns
    -------
    object
        Results, nested like ``data``.
    """
    if isinstance(data, Tensor):  # the usual case, without the slower tests below
        return function(data)
    if isinstance(data, Mapping):
        return {key: tree_map(function, value) for key, value in data.items()}
    if isinstance(data, (tuple, list)):
        return tuple(tree_map(function, value) for value in data)
    return function(data)


def tree_leaves(data: Any) -> list[Tensor]:
    """Return all tensors in nested tuples, lists and mappings, in order.

    Parameters
    ----------
    data : object
        Nested object. Leaves that are not tensors are ignored.

    Returns
    -------
    list of Tensor
    """
    if isinstance(data, Tensor):
        return [data]
    if isinstance(data, Mapping):
        data = data.values()
    elif not isinstance(data, (tuple, list)):
        return []
    return [leaf for part in data for leaf in tree_leaves(part)]


def first_of(output: Any) -> Any:
    """Return the first output of a module that may have several."""
    return output[0] if isinstance(output, (tuple, list)) else output
