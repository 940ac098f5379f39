"""Run someone's code with its fragile operations replaced by finite ones.

A mode above autograd sees each operation of torch that the code calls. One that
`sknan.functional` has is computed by that: torch's own value, to the bit (of spreads
and angles within 4 units in the last place), wherever torch's value and slope are
finite and no subnormal number goes in, and the value at the edge of the domain
elsewhere.
What any other operation makes non-finite from finite numbers is cut to the range of
its dtype, with slope 0. An infinity that the code asks for, as in a mask, stays.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from skorch.dataset import unpack_data
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sknan import functional
from sknan._utils.tree import tree_leaves
from sknan.diagnosis._backward import sanitized_backward
from sknan.functional._domain import narrow, widen, within

__all__ = ["RepairedOperations", "finite_step"]


def _log_to(base_log: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def log(x: Tensor) -> Tensor:
        wide, edge = widen(x)
        low = max(edge.tiny, 1 / edge.largest)
        return narrow(base_log(within(wide, low, edge.largest)), x.dtype)

    return log


def _divide(input: Any, other: Any) -> Tensor:
    """The quotient where it and its slopes are finite, else that of `functional`."""
    dtype = torch.result_type(input, other)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    like = input if isinstance(input, Tensor) else other
    upper, lower = (
        x.to(dtype)
        if isinstance(x, Tensor)
        else torch.as_tensor(x, dtype=dtype, device=like.device)
        for x in (input, other)
    )
    with torch.no_grad():
        quotient = upper / lower
        is_sound = torch.isfinite(quotient) & torch.isfinite(lower.reciprocal())
        is_sound &= torch.isfinite(quotient / lower)
        is_sound |= upper.isnan() | lower.isnan()
    if bool(is_sound.all()):
        return upper / lower
    theirs = upper.masked_fill(~is_sound, 0.0) / lower.masked_fill(~is_sound, 1.0)
    ours = functional.divide(
        upper.masked_fill(is_sound, 0.0), lower.masked_fill(is_sound, 1.0)
    )
    return torch.where(is_sound, theirs, ours.to(dtype))


def _divided_into(input: Tensor, other: Any) -> Tensor:
    quotient: Tensor = functional.reciprocal(input) * other  # as torch does it
    return quotient


def _power(input: Any, exponent: Any) -> Tensor:
    is_fixed = isinstance(exponent, numbers.Real) and math.isfinite(exponent)
    if is_fixed and isinstance(input, Tensor) and input.is_floating_point():
        return functional.power(input, float(exponent))
    return torch.pow(input, exponent)


def _softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    return functional.softmax(input if dtype is None else input.to(dtype), dim)


def _log_softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    return functional.log_softmax(input if dtype is None else input.to(dtype), dim)


def _with_implicit_dim(ours: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As `torch.nn.functional` has it, which may be called without a dimension."""

    def function(
        input: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None
    ) -> Tensor:
        if dim is None:
            dim = 0 if input.ndim in (0, 1, 3) else 1
        return ours(input, dim, dtype)

    return function


_OURS: dict[Any, Callable[..., Any]] = {}
_OURS_IN_PLACE: dict[Any, Callable[..., Any]] = {}
_BY_NAME: dict[str, Callable[..., Any]] = {
    "log": functional.log,
    "log1p": functional.log1p,
    "log2": _log_to(torch.log2),
    "log10": _log_to(torch.log10),
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
}
for _name, _ours in _BY_NAME.items():
    for _home in (torch, Tensor, F, torch.special, torch.linalg):
        _theirs = getattr(_home, _name, None)
        if _theirs is not None:
            _OURS[_theirs] = _ours
        # a /= b and a.log_() write into a what the other gives
        for _in_place in (f"{_name}_", _name.replace("__", "__i", 1)):
            _theirs = getattr(_home, _in_place, None)
            if _in_place != _name and _theirs is not None:
                _OURS_IN_PLACE[_theirs] = _ours
_OURS[F.softplus] = functional.softplus
_OURS[F.softmax] = _with_implicit_dim(_softmax)
_OURS[F.log_softmax] = _with_implicit_dim(_log_softmax)
_SIGNATURES = {ours: inspect.signature(ours) for ours in _OURS.values()}


def _takes(ours: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Whether a call with these arguments means the same of ours."""
    if any(isinstance(x, bool) for x in args):
        return False  # torch.std(x, True) is not of a dimension
    if any(isinstance(x, complex) or _is_complex(x) for x in (*args, *kwargs.values())):
        return False
    try:
        _SIGNATURES[ours].bind(*args, **kwargs)
    except TypeError:  # an option that only torch has
        return False
    return True


def _is_complex(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_complex()


def _is_finite(x: Tensor) -> bool:
    return not x.is_floating_point() or bool(torch.isfinite(x.detach()).all())


def _has_nan(tensors: Iterable[Tensor]) -> bool:
    return any(
        x.is_floating_point() and bool(x.detach().isnan().any()) for x in tensors
    )


def _asks_for_infinity(given: Any) -> bool:
    if isinstance(given, (list, tuple)):
        return any(map(_asks_for_infinity, given))
    return isinstance(given, float) and not math.isfinite(given)


def _cut(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        parts = [_cut(part) for part in x]
        # A named tuple takes its parts one by one, a result of torch's as they are.
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return torch.nan_to_num(x, nan=0.0)  # infinities become the largest number


def _works_in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


class RepairedOperations(TorchFunctionMode):
    """Inside the block the operations of torch are finite wherever their input is.

    Autograd sees only the finite operations. Differentiate with
    ``sanitized_backward``: the gradient of a value that was clamped to the range may
    still meet an infinity further up.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the operation, or ours in its place."""
        kwargs = kwargs or {}
        is_in_place = _works_in_place(func)
        given = [*args, *kwargs.values()]
        inputs = tree_leaves((args, kwargs))
        if is_in_place:  # what goes in is gone afterwards
            was_finite, had_nan = all(map(_is_finite, inputs)), _has_nan(inputs)
        ours, ours_in_place = _OURS.get(func), _OURS_IN_PLACE.get(func)
        if ours is not None and _takes(ours, args, kwargs):
            out = ours(*args, **kwargs)
        elif ours_in_place is not None and _takes(ours_in_place, args, kwargs):
            out = args[0].copy_(ours_in_place(args[0].clone(), *args[1:], **kwargs))
        else:
            out = func(*args, **kwargs)
        leaves = [x for x in tree_leaves(out) if x.is_floating_point()]
        # What nothing goes into, or an infinity that is written out, was asked for.
        if all(map(_is_finite, leaves)) or not inputs or _asks_for_infinity(given):
            return out
        if not is_in_place:
            was_finite, had_nan = all(map(_is_finite, inputs)), _has_nan(inputs)
        if had_nan or not (was_finite or _has_nan(leaves)):
            return out  # a weight that is NaN, or infinities that are handed on
        if is_in_place:
            with torch.no_grad():
                torch.nan_to_num_(out, nan=0.0)
            return out
        return _cut(out)


def finite_step(net: Any, batch: Any, **fit_params: Any) -> dict[str, Any]:
    """Run skorch's ``train_step_single`` with finite operations and gradients."""
    net._set_training(True)
    inputs, target = unpack_data(batch)
    with RepairedOperations():
        outputs = net.infer(inputs, **fit_params)
        loss = net.get_loss(outputs, target, X=inputs, training=True)
    sanitized_backward(loss)
    return {"loss": loss, "y_pred": outputs}
