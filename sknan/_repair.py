"""Run someone's code with its fragile operations replaced by finite ones.

A mode above autograd sees each operation of torch that the code calls. One that
`sknan.functional` has is computed by that: torch's own value, to the bit, wherever
torch's value and slope are finite, and the value at the edge of the domain elsewhere.
What any other operation makes non-finite from finite numbers is cut to the range of
its dtype, with slope 0. An infinity that the code asks for, as in a mask, stays.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sknan import functional
from sknan.batching import tree_leaves, tree_map

__all__ = ["RepairedOperations"]

_LN2, _LN10 = math.log(2.0), math.log(10.0)


def _log2(input: Tensor) -> Tensor:
    return functional.log(input) / _LN2


def _log10(input: Tensor) -> Tensor:
    return functional.log(input) / _LN10


def _divide(input: Any, other: Any) -> Tensor:
    like = input if isinstance(input, Tensor) else other
    numerator, denominator = (
        x if isinstance(x, Tensor) else torch.as_tensor(x, device=like.device)
        for x in (input, other)
    )
    return functional.divide(numerator, denominator)


def _divided_into(input: Any, other: Any) -> Tensor:
    return _divide(other, input)


def _power(input: Tensor, exponent: Any) -> Tensor:
    if isinstance(input, Tensor) and isinstance(exponent, numbers.Real):
        return functional.power(input, float(exponent))
    return torch.pow(input, exponent)


def _softmax(
    input: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    input = input if dtype is None else input.to(dtype)
    return functional.softmax(input, dim=-1 if dim is None else dim)


def _log_softmax(
    input: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    input = input if dtype is None else input.to(dtype)
    return functional.log_softmax(input, dim=-1 if dim is None else dim)


_OURS: dict[Any, Callable[..., Any]] = {}
_BY_NAME: dict[str, Callable[..., Any]] = {
    "log": functional.log,
    "log1p": functional.log1p,
    "log2": _log2,
    "log10": _log10,
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
    "logit": functional.logit,
}
for _name, _ours in _BY_NAME.items():
    for _home in (torch, Tensor, F, torch.special, torch.linalg):
        _theirs = getattr(_home, _name, None)
        if _theirs is not None:
            _OURS[_theirs] = _ours
_OURS[F.softplus] = functional.softplus
_SIGNATURES = {ours: inspect.signature(ours) for ours in _OURS.values()}


def _takes(ours: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Whether a call with these arguments means the same of ours."""
    if any(isinstance(x, bool) or _is_complex(x) for x in args):
        return False  # torch.std(x, True) is not of a dimension
    try:
        _SIGNATURES[ours].bind(*args, **kwargs)
    except TypeError:  # an option that only torch has
        return False
    return True


def _is_complex(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_complex()


def _is_finite(x: Tensor) -> bool:
    return not x.is_floating_point() or bool(torch.isfinite(x.detach()).all())


def _cut(x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return torch.nan_to_num(x, nan=0.0)  # infinities become the largest number


class RepairedOperations(TorchFunctionMode):
    """Inside the block the operations of torch are finite wherever their input is.

    Below it autograd sees only ours; differentiate with
    :func:`~sknan._replay.sanitized_backward`, since the slope of what was cut to the
    range may still meet an infinity further up.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the operation, or ours in its place."""
        kwargs = kwargs or {}
        ours = _OURS.get(func)
        if ours is not None and _takes(ours, args, kwargs):
            out = ours(*args, **kwargs)
        else:
            out = func(*args, **kwargs)
        leaves = [x for x in tree_leaves(out) if x.is_floating_point()]
        if all(map(_is_finite, leaves)):
            return out
        given = [*args, *kwargs.values()]
        if any(isinstance(x, float) and not math.isfinite(x) for x in given):
            return out  # asked for
        inputs = [x.detach() for x in tree_leaves((args, kwargs))]
        if any(x.is_floating_point() and bool(x.isnan().any()) for x in inputs):
            return out  # a weight that is NaN
        if not all(map(_is_finite, inputs)) and not any(
            bool(x.detach().isnan().any()) for x in leaves
        ):
            return out  # infinities that are handed on
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            with torch.no_grad():
                torch.nan_to_num_(out, nan=0.0)
            return out
        return tree_map(_cut, out) if isinstance(out, (tuple, list)) else _cut(out)
