"""Functions that equal torch's where value and gradient are finite, and are finite.

float16 and bfloat16 are computed in float32 (``widen``, ``narrow``). Where torch's
value is not finite, a function takes its value at the nearest argument for which it is.
The derivatives decide which elements have a gradient (``repaired``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sknan._utils.outside import is_of_signal, unless

Dim = int | tuple[int, ...] | None


class Edge(NamedTuple):
    """Limits of a dtype."""

    largest: float
    tiny: float  # smallest normal number
    smallest: float  # smallest subnormal number
    gap: float  # distance from 1 to the next smaller number


EDGES = {
    dtype: Edge(info.max, info.tiny, info.tiny * info.eps, info.eps / 2)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for info in [torch.finfo(dtype)]
}

_NARROW = (torch.float16, torch.bfloat16)

# The gradient of torch's clamp at a bound is 1 up to torch 2.13, and 0 since.
_CLAMP_INCLUDES_BOUNDS = torch.__version__ < "2.14"

# Number inside the domain of every function, where nothing overflows. It replaces the
# elements that have no gradient: 0 times an infinite derivative would be NaN.
_INSIDE = 0.5


class _Upcast(torch.autograd.Function):
    """Cast to float32 whose gradient is limited to the range of the input's dtype."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.float()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        largest = EDGES[ctx.dtype].largest
        return gradients[0].clamp(-largest, largest).to(ctx.dtype)


def edge_of(x: Tensor) -> Edge:
    """Return the limits of the dtype of a result for ``x``."""
    return EDGES[x.dtype if x.is_floating_point() else torch.get_default_dtype()]


def widen(x: Tensor) -> tuple[Tensor, Edge]:
    """Return the tensor in its computation dtype, and the limits of its own dtype."""
    if x.is_complex():
        raise TypeError(f"Complex numbers are not supported, got {x.dtype}.")
    if not x.is_floating_point():
        x = x.to(torch.get_default_dtype())
    wide: Tensor = _Upcast.apply(x) if x.dtype in _NARROW else x  # type: ignore[no-untyped-call]
    return wide, EDGES[x.dtype]


def widen_pair(
    x: Tensor | float, y: Tensor | float
) -> tuple[Tensor, Tensor, torch.dtype, Edge]:
    """Return two tensors broadcast and widened, their common dtype and its limits."""
    # torch.compile does not trace result_type; it drops an unused sum.
    is_compiled = torch.compiler.is_compiling()
    dtype = (x + y).dtype if is_compiled else torch.result_type(x, y)  # type: ignore[union-attr]
    device = (x if isinstance(x, Tensor) else y).device  # type: ignore[union-attr]
    pair = [torch.as_tensor(z, dtype=dtype, device=device) for z in (x, y)]
    shape = torch.broadcast_shapes(*(z.shape for z in pair))  # type: ignore[no-untyped-call]
    (first, edge), (second, _) = (widen(z.expand(shape)) for z in pair)
    return first, second, dtype, edge


def dims_of(x: Tensor, dim: Dim) -> tuple[int, ...]:
    """Return the dimensions of a reduction as a tuple."""
    if dim is None:
        return tuple(range(x.ndim))
    return (dim,) if isinstance(dim, int) else tuple(dim)


def narrow(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a result in the dtype of the argument, limited to its range."""
    return limited(y.to(dtype)) if dtype in _NARROW else y


def can_read_values(x: Tensor) -> bool:
    """Whether Python code may branch on the values of a tensor.

    It may not while the code is compiled or traced. On a GPU it should not, because
    reading a value waits for all queued kernels.
    """
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return not is_traced and x.device.type == "cpu"


def is_between(x: Tensor, low: float, high: float) -> bool:
    """Whether every element is known to lie strictly between the bounds.

    False if an element is NaN, or if the values cannot be read, as under ``vmap``.
    """
    if not can_read_values(x):
        return False
    if not x.numel():
        return True
    x = x.detach()
    try:
        return (low == -math.inf or float(x.amin()) > low) and (
            high == math.inf or float(x.amax()) < high
        )
    except unless(is_of_signal, RuntimeError):  # raised by vmap and by fake tensors
        return False


def is_finite(x: Tensor) -> bool:
    """Whether every element is known to be finite."""
    if not can_read_values(x):
        return False
    x = x.detach()
    try:
        return not x.numel() or all(math.isfinite(end) for end in torch.aminmax(x))
    except unless(is_of_signal, RuntimeError):  # raised by vmap and by fake tensors
        return False


def within(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp with gradient 1 at the bounds and 0 beyond them; NaN stays NaN."""
    if is_between(x, low, high):
        return x
    if _CLAMP_INCLUDES_BOUNDS:  # one operation instead of six
        return x.clamp(low, high)
    is_inside = (x >= low) & (x <= high)
    return torch.where(is_inside, x, x.detach().clamp(low, high))


def limited(x: Tensor) -> Tensor:
    """Replace infinities by the largest numbers, with gradient 0; NaN stays NaN."""
    largest = EDGES[x.dtype].largest
    return within(x, -largest, largest)


def scale_for(size: Tensor) -> Tensor | None:
    """Return powers of two by which numbers are multiplied before they are squared.

    Parameters
    ----------
    size : Tensor
        Largest absolute value among the numbers that belong together.

    Returns
    -------
    Tensor or None
        Factors with which the squares of the largest numbers neither overflow nor
        underflow; None if all are known to be 1.
    """
    # In float32 sizes below 2**-40 are multiplied by 2**88, those above divided by it.
    bits = math.log2(EDGES[size.dtype].largest)
    bound, factor = 2.0 ** round(bits * 5 / 16), 2.0 ** round(bits * 11 / 16)
    if is_between(size, 1 / bound, bound):
        return None
    one = torch.ones_like(size)
    return torch.where(
        size < 1 / bound, factor, torch.where(size > bound, 1 / factor, one)
    )


def repaired(
    function: Callable[..., Tensor],
    derivatives: Callable[..., Sequence[Tensor]],
    arguments: Sequence[Tensor],
    nearest: Sequence[Tensor],
    low: float = -math.inf,
    high: float = math.inf,
) -> Tensor:
    """Apply a function, with finite value and derivatives in every element.

    Parameters
    ----------
    function : callable
        Function of tensors, element by element.
    derivatives : callable
        Function of the same tensors that returns one partial derivative for each. An
        argument has a gradient where its derivative is finite.
    arguments : sequence of Tensor
        Arguments of one shape, in a dtype for computation.
    nearest : sequence of Tensor
        Constants nearest to the arguments for which the function is not NaN. Elements
        that differ from their argument have no gradient.
    low, high : float
        Further limits of the value.
    """
    value = function(*nearest)
    is_sound = value.isfinite()
    for x, near in zip(arguments, nearest, strict=True):
        is_sound = is_sound & (x.detach() == near)
        value = torch.where(x.isnan(), math.nan, value)
    has_gradient = [is_sound & d.isfinite() for d in derivatives(*nearest)]
    has_all = functools.reduce(torch.logical_and, has_gradient)
    inside = [torch.where(has_all, x, _INSIDE) for x in arguments]
    value = limited(value).clamp(low, high)
    y = torch.where(has_all, function(*inside), value)
    if len(has_gradient) == 1:
        return y
    for i, has in enumerate(has_gradient):
        has_only = has & ~has_all
        inside = [torch.where(has_only, x.detach(), _INSIDE) for x in arguments]
        inside[i] = torch.where(has_only, arguments[i], _INSIDE)
        y = torch.where(has_only, function(*inside), y)
    return y


def apart(
    function: Callable[..., Tensor],
    repair: Callable[..., Tensor],
    arguments: Sequence[Tensor],
    is_sound: Tensor,
) -> Tensor:
    """Apply a function to the elements that are sound, and its repair to the others."""
    indices = _indices(~is_sound)
    if indices is None:
        return repair(*arguments)
    y = function(*(torch.where(is_sound, x, _INSIDE) for x in arguments))
    # The repair takes ten times as long, and usually concerns a few elements.
    few = repair(*(x.flatten().index_select(0, indices) for x in arguments))
    return y.flatten().index_copy(0, indices, few).reshape(y.shape)


def _indices(mask: Tensor) -> Tensor | None:
    """Return the positions of the elements of a mask; None if they cannot be read."""
    try:
        return mask.flatten().nonzero().flatten() if can_read_values(mask) else None
    except unless(is_of_signal, RuntimeError):  # raised by vmap and by fake tensors
        return None


def elementwise(
    function: Callable[[Tensor], Tensor],
    derivative: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    sound: tuple[float, float] = (-math.inf, math.inf),
    domain: tuple[float, float] = (-math.inf, math.inf),
    values: tuple[float, float] = (-math.inf, math.inf),
) -> Tensor:
    """Apply a function of one tensor, repaired unless all elements are sound.

    Parameters
    ----------
    function, derivative : callable
        Function of torch and the size of its derivative.
    x : Tensor
        Argument.
    sound : tuple of float
        Open interval in which torch's value and gradient are finite.
    domain : tuple of float
        Closed interval of the arguments for which the value is defined.
    values : tuple of float
        Values at the ends of the domain. They matter if the processor flushes subnormal
        numbers to zero.
    """
    wide, _ = widen(x)
    if is_between(wide, *sound):
        return narrow(function(wide), x.dtype)

    def repair(x: Tensor) -> Tensor:
        nearest = x.detach().clamp(*domain)
        return repaired(function, lambda x: [derivative(x)], [x], [nearest], *values)

    fixed = wide.detach()
    is_sound = (fixed > sound[0]) & (fixed < sound[1])
    return narrow(apart(function, repair, [wide], is_sound), x.dtype)
