"""Replacement of fragile torch operations in user code by finite ones.

A mode above autograd intercepts each torch operation that the code calls. Operations
with a counterpart in `sknan.functional` are computed by the counterpart. Its value is
bitwise identical to torch's (within 4 units in the last place for standard deviations
and angles) wherever torch's value and derivative are finite; elsewhere it is the value
at the edge of the domain. Values that any other operation makes non-finite from finite
inputs are clamped to the range of the dtype, with derivative 0. Infinities that the
code asks for, as in a mask, remain. A matrix without a decomposition is moved towards
a multiple of the identity, and checks of the arguments of a distribution pass.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import numbers
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.overrides import TorchFunctionMode

from sknan import functional
from sknan._utils.outside import is_of_signal, unless
from sknan._utils.thresholds import FAR
from sknan._utils.tree import tree_leaves
from sknan.diagnosis._backward import CapturedBackward, sanitized_backward
from sknan.diagnosis._values import storage_key
from sknan.functional._domain import Edge, can_read_values, narrow, widen, within
from sknan.functional._elementwise import logarithm


def _inside(
    function: Callable[[Tensor], Tensor], domain: Callable[[Edge], tuple[float, float]]
) -> Callable[[Tensor], Tensor]:
    """Return a function of one argument, which is clamped to its domain."""

    def finite(input: Tensor) -> Tensor:
        wide, edge = widen(input)
        return narrow(function(within(wide, *domain(edge))), input.dtype)

    return finite


def _x_log_y(input: Any, other: Any) -> Tensor:
    if not isinstance(other, Tensor):
        return torch.xlogy(input, other)
    wide, edge = widen(other)
    inside = within(wide, max(edge.tiny, 1 / edge.largest), edge.largest)
    return torch.xlogy(input, narrow(inside, other.dtype))


def _divide(input: Any, other: Any) -> Tensor:  # with the names of torch
    return functional.divide(input, other)


def _divided_into(input: Tensor, other: Any) -> Tensor:
    quotient: Tensor = functional.reciprocal(input) * other  # as in torch
    return quotient


def _power(input: Any, exponent: Any) -> Tensor:
    tensors = [x for x in (input, exponent) if isinstance(x, Tensor)]
    if any(x.is_floating_point() for x in tensors) and _is_finite_number(exponent):
        return functional.power(input, exponent)
    return torch.pow(input, exponent)


def _is_finite_number(x: Any) -> bool:
    return isinstance(x, Tensor) or (isinstance(x, numbers.Real) and math.isfinite(x))


def _softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    return functional.softmax(input if dtype is None else input.to(dtype), dim)


def _log_softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    return functional.log_softmax(input if dtype is None else input.to(dtype), dim)


def _with_implicit_dim(softmax: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a version of softmax with an optional dimension, as in torch."""

    def function(
        input: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None
    ) -> Tensor:
        if dim is None:
            dim = 0 if input.ndim in (0, 1, 3) else 1
        return softmax(input, dim, dtype)

    return function


def _passed_check(input: Tensor) -> Tensor:
    """Let a check of torch.distributions pass: the operations behind it are finite."""
    return torch.ones((), dtype=torch.bool)


def _binary_cross_entropy(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.binary_cross_entropy(within(input, 0.0, 1.0), *args, **kwargs)


# Finite counterparts of torch's functions and methods.
_FINITE: dict[Any, Callable[..., Any]] = {}
_FINITE_IN_PLACE: dict[Any, Callable[..., Any]] = {}
_BY_NAME: dict[str, Callable[..., Any]] = {
    "log": functional.log,
    "log1p": functional.log1p,
    "log2": partial(logarithm, torch.log2, base=2.0),
    "log10": partial(logarithm, torch.log10, base=10.0),
    "xlogy": _x_log_y,
    "exp": functional.exp,
    "expm1": functional.expm1,
    "sqrt": functional.sqrt,
    "rsqrt": functional.rsqrt,
    "reciprocal": functional.reciprocal,
    "div": _divide,
    "divide": _divide,
    "true_divide": _divide,
    "__truediv__": _divide,
    "__div__": _divide,
    "__rtruediv__": _divided_into,
    "__rdiv__": _divided_into,
    "pow": _power,
    "__pow__": _power,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "logsumexp": functional.logsumexp,
    "std": functional.std,
    "var": functional.var,
    "hypot": functional.hypot,
    "atan2": functional.atan2,
    "atanh": functional.atanh,
    "asin": functional.asin,
    "acos": functional.acos,
    "arctanh": functional.atanh,
    "arcsin": functional.asin,
    "arccos": functional.acos,
    "arctan2": functional.atan2,
    "logit": functional.logit,
    "acosh": _inside(torch.acosh, lambda edge: (1.0, edge.largest)),
    "arccosh": _inside(torch.acosh, lambda edge: (1.0, edge.largest)),
    "erfinv": _inside(torch.erfinv, lambda edge: (edge.gap - 1, 1 - edge.gap)),
    "ndtri": _inside(torch.special.ndtri, lambda edge: (edge.tiny, 1 - edge.gap)),
    "entr": _inside(torch.special.entr, lambda edge: (0.0, edge.largest)),
}
for _name, _finite in _BY_NAME.items():
    for _owner in (torch, Tensor, F, torch.special, torch.linalg):
        _original = getattr(_owner, _name, None)
        if _original is not None:
            _FINITE[_original] = _finite
        # In-place versions, such as a /= b and a.log_().
        for _in_place in (f"{_name}_", _name.replace("__", "__i", 1)):
            _original = getattr(_owner, _in_place, None)
            if _in_place != _name and _original is not None:
                _FINITE_IN_PLACE[_original] = _finite
_FINITE[F.softplus] = functional.softplus
_FINITE[F.softmax] = _with_implicit_dim(_softmax)
_FINITE[F.log_softmax] = _with_implicit_dim(_log_softmax)
_FINITE[F.binary_cross_entropy] = _binary_cross_entropy
_FINITE[torch._is_all_true] = _passed_check
_SIGNATURES = {finite: inspect.signature(finite) for finite in _FINITE.values()}


def _accepts(finite: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Whether a finite function gives a call with these arguments the same meaning."""
    if any(isinstance(x, bool) for x in args):
        return False  # in torch.std(x, True) the flag is no dimension
    if any(_is_complex(x) for x in (*args, *kwargs.values())):
        return False
    try:
        _SIGNATURES[finite].bind(*args, **kwargs)
    except TypeError:  # an option of torch only
        return False
    return True


def _is_complex(x: Any) -> bool:
    return x.is_complex() if isinstance(x, Tensor) else isinstance(x, complex)


def _is_known(flag: Tensor) -> bool:
    """Whether a flag is true. In ``vmap`` and in a trace its value is not known."""
    try:
        return can_read_values(flag) and bool(flag)
    except unless(is_of_signal, RuntimeError):
        return False


def _are_finite(tensors: list[Tensor]) -> Tensor:
    flags = [torch.isfinite(x.detach()).all() for x in tensors]
    return torch.stack(flags).all() if flags else torch.tensor(True)


def _have_nan(tensors: list[Tensor]) -> Tensor:
    flags = [x.detach().isnan().any() for x in tensors]
    return torch.stack(flags).any() if flags else torch.tensor(False)


def _asks_for_infinity(given: Any) -> bool:
    if isinstance(given, (list, tuple)):
        return any(map(_asks_for_infinity, given))
    return isinstance(given, float) and not math.isfinite(given)


def _storage_of(x: Tensor) -> int:
    """Return the key of the storage below the wrappers of ``vmap`` and ``grad``."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return storage_key(x)


def _clamped(x: Any, keeps: Tensor) -> Any:
    """Return nested results, clamped to the range of their dtype unless kept."""
    if isinstance(x, (list, tuple)):
        parts = [_clamped(part, keeps) for part in x]
        # A named tuple takes separate arguments; a tuple of torch takes a sequence.
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    # Infinities become the largest values.
    return torch.where(keeps, x, torch.nan_to_num(x, nan=0.0))


def _decomposed(func: Any, args: Any, kwargs: Any) -> Any:
    """Decompose a matrix, or the nearest one by powers of ten that has a decomposition.

    With the largest shift, the diagonal is larger than the sum of its row.
    """
    try:
        return func(*args, **kwargs)
    except LinAlgError:
        if not args or not isinstance(args[0], Tensor) or not _is_square(args[0]):
            raise
    matrix, *others = args
    size = matrix.detach().abs().amax(dim=(-2, -1), keepdim=True)
    size = torch.where(size > 0, size, 1.0) * matrix.shape[-1]
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    share = torch.finfo(matrix.dtype).eps
    while share < 1.0:
        with contextlib.suppress(LinAlgError):
            return func(matrix + share * size * unit, *others, **kwargs)
        share *= FAR
    return func(matrix + 2 * size * unit, *others, **kwargs)


def _is_square(x: Tensor) -> bool:
    return x.ndim >= 2 and x.shape[-1] == x.shape[-2] and x.numel() > 0


def _works_in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


class RepairedOperations(TorchFunctionMode):
    """Mode in which torch's operations are finite wherever their input is.

    Autograd records only the finite operations. Use ``sanitized_backward`` for the
    gradient: that of a clamped value may become infinite in an earlier operation.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the operation or its finite counterpart."""
        kwargs = kwargs or {}
        if isinstance(kwargs.get("out"), Tensor):  # its content is no argument
            target, rest = kwargs["out"], {**kwargs}
            del rest["out"]
            out = self.__torch_function__(func, types, args, rest)
            return target.resize_(out.shape).copy_(out)
        is_in_place = _works_in_place(func)
        given = [*args, *kwargs.values()]
        tensors = tree_leaves((args, kwargs))
        inputs = [x for x in tensors if x.is_floating_point()]
        if is_in_place:  # the operation overwrites its input
            was_finite, had_nan = _are_finite(inputs), _have_nan(inputs)
        finite, in_place = _FINITE.get(func), _FINITE_IN_PLACE.get(func)
        if finite is not None and _accepts(finite, args, kwargs):
            out = finite(*args, **kwargs)
        elif in_place is not None and _accepts(in_place, args, kwargs):
            out = args[0].copy_(in_place(args[0].clone(), *args[1:], **kwargs))
        else:
            out = _decomposed(func, args, kwargs)
        leaves = [x for x in tree_leaves(out) if x.is_floating_point()]
        # A result without inputs, or from an explicit infinity, is intended.
        if not tensors or _asks_for_infinity(given) or _is_known(_are_finite(leaves)):
            return out
        if not is_in_place:
            was_finite, had_nan = _are_finite(inputs), _have_nan(inputs)
        # NaN or infinities that were in the input remain.
        keeps = had_nan | ~(was_finite | _have_nan(leaves))
        if _is_known(keeps):
            return out
        if is_in_place:
            with torch.no_grad():
                return out.copy_(_clamped(out, keeps))
        if not {*map(_storage_of, leaves)}.isdisjoint(map(_storage_of, tensors)):
            return out  # a view, whose values are not known
        return _clamped(out, keeps)


def finite_step(net: Any, batch: Any, **fit_params: Any) -> dict[str, Any]:
    """Run the net's ``train_step_single`` with finite operations and gradients."""
    # The backward pass is in the mode too: a checkpoint runs the forward pass again.
    with RepairedOperations(), CapturedBackward(sanitized_backward):
        step: dict[str, Any] = net.train_step_single(batch, **fit_params)
    return step
