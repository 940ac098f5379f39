"""Finiteness, size and range of the numbers in tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sknan._utils.tree import tree_leaves


def is_inexact(x: Tensor) -> bool:
    """Whether a tensor contains floating-point or complex numbers."""
    return x.is_floating_point() or x.is_complex()


def _as_real(x: Tensor) -> Tensor:
    """Return a view of a tensor with real and imaginary parts as separate numbers."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def all_finite(x: Tensor) -> bool:
    """Whether a tensor contains neither NaN nor infinity."""
    x = _as_real(x)
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    total = x.sum(dtype=dtype).item()
    # The sum is fast to compute, but a sum of finite numbers may overflow.
    return math.isfinite(total) or bool(torch.isfinite(x).all())


def nonfinite_count(x: Tensor) -> int:
    """Return the number of entries that are NaN or infinite."""
    return int((~torch.isfinite(x)).sum())


def are_all_finite(tensors: Iterable[Any]) -> bool:
    """Whether no tensor contains NaN or infinity; other objects are ignored."""
    return all(all_finite(t) for t in tensors if isinstance(t, Tensor) and t.numel())


def largest(tensors: Iterable[Tensor]) -> float:
    """Return the absolute value of the largest finite number, or 0."""
    numbers = (_as_real(t.detach()).double() for t in tensors if t.numel())
    sizes = (float(x.nan_to_num(0.0, 0.0, 0.0).abs().max()) for x in numbers)
    return max(sizes, default=0.0)


def value_range(x: Tensor) -> tuple[float, float]:
    """Return the least and the largest number of a tensor."""
    low, high = _as_real(x.detach()).double().aminmax()
    return float(low), float(high)


def bad_rows(bad: Tensor, n_rows: int) -> tuple[int, ...]:
    """Return the rows of a mask in which any entry is true.

    Parameters
    ----------
    bad : Tensor of bool
        Mask of the bad entries.
    n_rows : int
        Number of rows in the batch.

    Returns
    -------
    tuple of int
        Empty if the mask does not have one entry or more for each row.
    """
    if not bad.ndim or len(bad) != n_rows:
        return ()
    rows = bad.detach().reshape(n_rows, -1).any(dim=1).nonzero()
    return tuple(rows.flatten().tolist())


def nonempty_floats(data: Any) -> list[Tensor]:
    """Return the non-empty floating-point and complex tensors of nested data."""
    return [t for t in tree_leaves(data) if is_inexact(t) and t.numel()]


def storage_key(x: Tensor) -> int:
    """Return a key that a tensor shares with its views and its new wrappers."""
    is_strided = x.layout is torch.strided
    return int(x.untyped_storage()._cdata) if is_strided else id(x)
