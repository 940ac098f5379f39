"""Gradient clipping that neither overflows nor spreads a fault.

Clipping by the norm multiplies every gradient by one number: where a single entry is
NaN, that number is NaN, and one fault becomes a fault everywhere. So the functions here
take a norm that the caller has already looked at (`grad_norm`, and `stable_grad_norm`
where its squares overflow), and scale so that no intermediate leaves the float range.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

__all__ = [
    "clip_grad_norm",
    "clip_grad_value",
    "coalesced_values",
    "grad_norm",
    "grad_norms",
    "stable_grad_norm",
]


@torch.no_grad()
def grad_norm(grads: Sequence[Tensor]) -> Tensor:
    """Global 2-norm of gradients, left on their device.

    Parameters
    ----------
    grads : sequence of Tensor of any shapes, float
        Dense or sparse (COO).

    Returns
    -------
    Tensor of shape ()
        On the device of the first gradient; float64 if a gradient is, else float32.
        NaN or inf where an entry is, 0 for no gradients. Also inf (or 0) where the
        squares of finite entries overflow (or underflow): see `stable_grad_norm`.

    Examples
    --------
    >>> grad_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    norms = grad_norms(grads)
    total: Tensor = (
        torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    )
    return total


@torch.no_grad()
def grad_norms(grads: Sequence[Tensor]) -> list[Tensor]:
    """2-norm of each gradient, as :func:`grad_norm` gives that of all.

    Parameters
    ----------
    grads : sequence of Tensor of any shapes, float
        Dense or sparse (COO).

    Returns
    -------
    list of Tensor of shape ()
        All on the device of the first gradient and of one dtype: float64 if a gradient
        is, else float32.
    """
    if not grads:
        return []
    values = coalesced_values(grads)
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
    """Global 2-norm of gradients, right even where squares overflow or underflow.

    Slower than `grad_norm`, with two host reads: for when that gives inf or 0.

    Parameters
    ----------
    grads : sequence of Tensor of any shapes, float
        Dense or sparse (COO).

    Returns
    -------
    float
        NaN or inf only where an entry is; 0 only where every entry is. A norm beyond
        the float64 range is given as the largest float64.

    Examples
    --------
    >>> huge = [torch.full((4,), 1e30)]
    >>> grad_norm(huge).item(), f"{stable_grad_norm(huge):.3g}"
    (inf, '2e+30')
    """
    # MPS has no float64.
    values = [
        g.to("cpu" if g.device.type == "mps" else g.device, torch.float64)
        for g in coalesced_values(grads)
        if g.numel()
    ]
    if not values:
        return 0.0
    # The maximum norm of a tensor with NaN is NaN, and so is max() of a stack with NaN.
    peaks = [torch.linalg.vector_norm(g, math.inf).cpu() for g in values]
    peak = float(torch.stack(peaks).max())
    if peak == 0.0 or not math.isfinite(peak):
        return peak
    norms = [torch.linalg.vector_norm(g / peak).cpu() for g in values]
    relative = float(torch.linalg.vector_norm(torch.stack(norms)))
    return min(peak * relative, sys.float_info.max)


@torch.no_grad()
def clip_grad_norm(grads: Sequence[Tensor], max_norm: float, norm: float) -> float:
    """Scale gradients in place so that their norm, known already, is ``max_norm``.

    Parameters
    ----------
    grads : sequence of Tensor of any shapes, float
        Changed in place, and only if ``norm > max_norm``.
    max_norm : float
        Largest norm allowed, at least 0; inf clips nothing.
    norm : float
        Their global norm, finite. It may exceed the range of their dtype.

    Returns
    -------
    float
        The coefficient, ``min(1, max_norm / norm)``.

    Raises
    ------
    ValueError
        When ``norm`` is NaN or inf, for then scaling would turn good entries into NaN
        or 0; when ``max_norm`` is NaN or negative.

    Notes
    -----
    `torch.nn.utils.clip_grad_norm_` divides by ``norm + 1e-6``; here that is left out,
    since ``norm > max_norm`` rules out a division by 0. The results differ by a
    relative ``1e-6 / norm``, apart from rounding.

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
    # The coefficient can be too small for the dtype though the product is not, as in
    # 3e38 * 1e-42. Powers of two are exact, so that further factors cost no rounding.
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
        Changed in place. NaN stays NaN; infinities become the bounds, so look for them
        first. A sparse gradient is coalesced.
    clip_value : float
        Bound, at least 0.

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
    torch._foreach_clamp_min_(values, -clip_value)
    torch._foreach_clamp_max_(values, clip_value)


def coalesced_values(grads: Sequence[Tensor]) -> list[Tensor]:
    """The entries of each gradient; the values of a sparse one, coalesced in place.

    Parameters
    ----------
    grads : sequence of Tensor
        Dense, or sparse in COO layout.

    Returns
    -------
    list of Tensor
        Views: what is written to them is written to the gradients.
    """
    values = []
    for grad in grads:
        if grad.is_sparse:
            if not grad.is_coalesced():
                grad.copy_(grad.coalesce())
            values.append(grad.values())
        else:
            values.append(grad)
    return values


def _scale(grads: Sequence[Tensor], factor: float) -> None:
    dtype = grads[0].dtype if grads else torch.float16
    is_uniform = all(g.dtype is dtype and g.is_cpu and not g.is_sparse for g in grads)
    if dtype.itemsize >= 4 and is_uniform:
        # To the same bits, but a plain number is made a tensor again for each of them.
        torch._foreach_mul_(list(grads), torch.scalar_tensor(factor, dtype=dtype))
        return
    values = [grad._values() if grad.is_sparse else grad for grad in grads]
    # On CPU _foreach_mul_ rounds the factor to the dtype first: 1e-8 to 0 in float16.
    for value in values:
        if value.dtype.itemsize < 4:
            value.mul_(factor)
    values = [value for value in values if value.dtype.itemsize >= 4]
    if values:
        torch._foreach_mul_(values, factor)
