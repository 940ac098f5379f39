"""Operations for all members of a stack, bitwise those of each member alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

# A batched product rounds like separate products where the first factor and the result
# of each member begin at a multiple of this number of elements, and the result is not a
# vector.
_ALIGNMENT = 16

# Number of elements at whose multiples elementwise functions compute all elements in
# vector registers. At the end of a tensor some functions round differently.
_VECTOR = 32

# From this number of multiplications on, a product by oneDNN takes down to half of the
# time of torch.mm on processors with AVX-512. A call takes some microseconds more.
_LARGE = 2**21


def stacked_product(
    a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None
) -> Callable[[], object]:
    """Prepare the matrix products of all members, plus a bias.

    Parameters
    ----------
    a, b : Tensor of shape (K, n, m) and (K, m, p)
        Factors.
    out : Tensor of shape (K, n, p)
        Tensor for the products.
    bias : Tensor or None, default=None
        Tensor that is added, of a shape that broadcasts to that of ``out``.

    Returns
    -------
    callable
    """
    if _is_for_onednn(a, out, bias):
        return _large_products(a, b, out, bias)
    if not (_is_aligned(a) and _is_aligned(out)) or out.shape[2] == 1:
        return partial(_separate_products, a, b, out, bias)
    if bias is None:
        return partial(torch.bmm, a, b, out=out)
    return partial(torch.baddbmm, bias, a, b, out=out)


def parts_of_members(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Return the parts of tensors that an elementwise function computes in one call.

    Parameters
    ----------
    *tensors : Tensor of shape (K, ...)
        Result and arguments of one shape.

    Returns
    -------
    list of tuple of Tensor
        The tensors, or those of each member where the end of a member may lie within a
        vector register.
    """
    if tensors[0][0].numel() % _VECTOR == 0:
        return [tensors]
    return list(zip(*(torch.split(t, 1) for t in tensors), strict=True))


def _is_aligned(x: Tensor) -> bool:
    """Whether all members begin at a multiple of the alignment, however many."""
    size = x[0].numel()
    # The stride of an axis of length 1 means something only if there is padding.
    distance = x.stride(0) if len(x) > 1 or x.stride(0) > size else size
    return distance % _ALIGNMENT == 0


def _is_for_onednn(a: Tensor, out: Tensor, bias: Tensor | None) -> bool:
    return (
        out[0].numel() * a.shape[2] >= _LARGE
        and out.dtype == torch.float32
        and (bias is None or bias.shape[1] == 1)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _large_products(
    a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None
) -> Callable[[], object]:
    rows = [None] * len(out) if bias is None else bias.squeeze(1).unbind()
    products = list(zip(out, a, b.transpose(1, 2), rows, strict=True))
    linear = torch.ops.mkldnn._linear_pointwise.default

    def compute() -> None:
        for result, x, weight, row in products:
            result.copy_(linear(x, weight, row, "none", [], ""))

    return compute


def _separate_products(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None) -> None:
    # The copies are aligned alike for all members.
    pairs = ((x.clone(), y.clone()) for x, y in zip(a, b, strict=True))
    if bias is None:
        torch.stack([x.mm(y) for x, y in pairs], out=out)
        return
    triples = zip(bias, pairs, strict=True)
    torch.stack([torch.addmm(row, x, y) for row, (x, y) in triples], out=out)
