"""Gradient norms and gradient clipping that cannot overflow or spread a NaN.

Clipping by the norm multiplies every gradient by the same number. If a single entry is
NaN, that number is NaN, and so is every gradient after clipping. The functions here
therefore take a norm that the caller has computed and checked (by `grad_norm`, and by
`stable_grad_norm` if squares overflow). They scale so that no intermediate result
overflows.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def grad_norm(grads: Sequence[Tensor]) -> Tensor:
    """Return the global 2-norm of gradients, on their device.

    Parameters
    ----------
    grads : sequence of Tensor of any shapes, float
        Dense gradients, or sparse ones in COO layout.

    Returns
    -------
    Tensor of shape ()
        Norm on the device of the first gradient: float64 if a gradient is float64, else
        float32. It is NaN or inf if an entry is, and 0 for no gradients. It is also inf
        (or 0) if squares of finite entries overflow (or underflow); see
        `stable_grad_norm`.

    Examples
    --------
    >>> grad_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    norms = grad_norms(grads)
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def lowered_norm(before: Any, after: Any) -> Any:
    """Return the norm after clipping, or that before it if they differ by rounding.

    The two norms may have been summed in different orders.

    Parameters
    ----------
    before, after : float or ndarray
        Norms of the gradients before and after clipping.

    Returns
    -------
    float or ndarray
    """
    return np.where(after < before * (1.0 - 1e-6), after, before)[()]


@torch.no_grad()
def grad_norms(grads: Sequence[Tensor]) -> list[Tensor]:
    """Return the 2-norm of each gradient; see :func:`grad_norm` for the global norm.

    Parameters
    ----------
    grads : sequence of Tensor of any shapes, float
        Dense gradients, or sparse ones in COO layout.

    Returns
    -------
    list of Tensor of shape ()
        Norms on the device of the first gradient, all of one dtype: float64 if a
        gradient is float64, else float32.
    """
    if not grads:
        return []
    values = _summed_values(grads)
    dtype = values[0].dtype
    if dtype is not torch.float32 or any(g.dtype is not dtype for g in values):
        # Squares of float16 overflow at 256.
        dtype = reduce(torch.promote_types, (g.dtype for g in values), torch.float32)
    norms = torch._foreach_norm(values, 2, dtype=dtype)
    if all(n.is_cpu for n in norms):
        return list(norms)
    return [n.to(values[0].device) for n in norms]


@torch.no_grad()
def stable_grad_norm(grads: Sequence[Tensor]) -> float:
    """Return the global 2-norm of gradients, even if squares overflow or underflow.

    It is slower than `grad_norm` and reads twice from the device. It is meant for
    gradients for which `grad_norm` returns inf or 0.

    Parameters
    ----------
    grads : sequence of Tensor of any shapes, float
        Dense gradients, or sparse ones in COO layout.

    Returns
    -------
    float
        Norm, which is NaN or inf only if an entry is, and 0 only if every entry is 0. A
        norm beyond the range of float64 is returned as the largest float64.

    Examples
    --------
    >>> huge = [torch.full((4,), 1e30)]
    >>> grad_norm(huge).item(), f"{stable_grad_norm(huge):.3g}"
    (inf, '2e+30')
    """
    # MPS has no float64.
    values = [
        g.to("cpu" if g.device.type == "mps" else g.device, torch.float64)
        for g in _summed_values(grads)
        if g.numel()
    ]
    if not values:
        return 0.0
    # The maximum norm and max() propagate NaN.
    peaks = [torch.linalg.vector_norm(g, math.inf).cpu() for g in values]
    peak = float(torch.stack(peaks).max())
    if peak == 0.0 or not math.isfinite(peak):
        return peak
    norms = [torch.linalg.vector_norm(g / peak).cpu() for g in values]
    relative = float(torch.linalg.vector_norm(torch.stack(norms)))
    return min(peak * relative, sys.float_info.max)


@torch.no_grad()
def clip_grad_norm(grads: Sequence[Tensor], max_norm: float, norm: float) -> float:
    """Scale gradients with a known norm in place, so that it becomes ``max_norm``.

    Parameters
    ----------
    grads : sequence of Tensor of any shapes, float
        Gradients, which are changed in place if ``norm > max_norm``.
    max_norm : float
        Largest allowed norm, at least 0; inf clips nothing.
    norm : float
        Finite global norm of the gradients. It may exceed the range of their dtype.

    Returns
    -------
    float
        Clipping coefficient ``min(1, max_norm / norm)``.

    Raises
    ------
    ValueError
        When ``norm`` is NaN or inf, since scaling would then turn finite entries into
        NaN or 0, and when ``max_norm`` is NaN or negative.

    Notes
    -----
    `torch.nn.utils.clip_grad_norm_` divides by ``norm + 1e-6``. This function divides
    by ``norm``, which is greater than 0 if ``norm > max_norm``. Apart from rounding,
    the results differ by a relative ``1e-6 / norm``.

    Examples
    --------
    >>> grads = [torch.tensor([3.0, 4.0])]
    >>> clip_grad_norm(grads, max_norm=1.0, norm=5.0), grads[0]
    (0.2, tensor([0.6000, 0.8000]))
    """
    if not max_norm >= 0.0:
        raise ValueError(f"max_norm must be 0 or more, got {max_norm!r}.")
    if not math.isfinite(norm):
        raise ValueError(
            f"Gradients of norm {norm!r} cannot be clipped: scaling would spread the "
            "fault to every entry. Skip the step, or pass stable_grad_norm(grads) if "
            "all entries are finite."
        )
    if norm <= max_norm:
        return 1.0
    # The coefficient can be too small for the dtype even if the product is not, as in
    # 3e38 * 1e-42. It is split into factors; powers of two add no rounding error.
    mantissa, exponent = math.frexp(max_norm)
    norm_mantissa, norm_exponent = math.frexp(norm)
    exponent -= norm_exponent
    while exponent < -100:
        _scale(grads, 2.0**-100)
        exponent += 100
    _scale(grads, math.ldexp(mantissa / norm_mantissa, exponent))
    return max_norm / norm


@torch.no_grad()
def clip_grad_value(grads: Sequence[Tensor], clip_value: float) -> None:
    """Clamp every entry of the gradients to [-clip_value, clip_value], in place.

    Parameters
    ----------
    grads : sequence of Tensor of any shapes, float
        Gradients, which are changed in place. NaN stays NaN, but infinities become the
        bounds, so check for them before. A sparse gradient is coalesced.
    clip_value : float
        Largest absolute value of an entry, at least 0.

    Raises
    ------
    ValueError
        When ``clip_value`` is NaN or negative.

    Examples
    --------
    >>> grads = [torch.tensor([3.0, -0.1, torch.nan])]
    >>> clip_grad_value(grads, 0.5)
    >>> grads[0]
    tensor([ 0.5000, -0.1000,     nan])
    """
    if not clip_value >= 0.0:
        raise ValueError(f"clip_value must be 0 or more, got {clip_value!r}.")
    if not grads:
        return
    values = coalesced_values(grads)
    bound = float(clip_value)  # torch converts no integer of more than 64 bits
    torch._foreach_clamp_min_(values, -bound)
    torch._foreach_clamp_max_(values, bound)


def coalesced_values(grads: Sequence[Tensor]) -> list[Tensor]:
    """Return dense gradients, and the values of sparse ones, coalesced in place.

    Parameters
    ----------
    grads : sequence of Tensor
        Dense gradients, or sparse ones in COO layout.

    Returns
    -------
    list of Tensor
        Views of the entries: writing to them changes the gradients. Complex numbers are
        pairs of real ones.
    """
    for grad in grads:
        if grad.is_sparse and not grad.is_coalesced():
            grad.copy_(grad.coalesce())
    return _summed_values(grads)


def _summed_values(grads: Sequence[Tensor]) -> list[Tensor]:
    """Return the same entries without a change of the gradients.

    An optimizer that is given coalesced gradients rounds its step in another way.
    """
    values = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
    return [torch.view_as_real(v) if v.is_complex() else v for v in values]


def _scale(grads: Sequence[Tensor], factor: float) -> None:
    dtype = grads[0].dtype if grads else torch.float16
    is_uniform = all(g.dtype is dtype and g.is_cpu and not g.is_sparse for g in grads)
    if dtype.itemsize >= 4 and is_uniform:
        # The result is that of a plain number, but torch would make a tensor of it for
        # each gradient.
        torch._foreach_mul_(list(grads), torch.scalar_tensor(factor, dtype=dtype))
        return
    values = [grad._values() if grad.is_sparse else grad for grad in grads]
    # On CPU _foreach_mul_ first rounds the factor to the dtype: 1e-8 to 0 in float16.
    for value in values:
        if value.dtype.itemsize < 4:
            value.mul_(factor)
    values = [value for value in values if value.dtype.itemsize >= 4]
    if values:
        torch._foreach_mul_(values, factor)
