"""Recognition of networks that are chains of known layers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import lru_cache, partial
from operator import attrgetter
from types import CodeType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from sknan.nets._dropout import DROPOUTS, is_dropout
from sknan.nets._tabular_mlp import PeriodicEmbedding

_aten = torch.ops.aten

# Attributes with the hooks of a module, and of all modules.
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_hooks_of = attrgetter(*_HOOKS)
_global_hooks_of = attrgetter(*(f"_global{name}" for name in _HOOKS))

# For each activation: the function of the module and its input; the gradient as a
# function of the module, the gradient of the output, and a saved tensor; and whether
# the saved tensor is the output instead of the input.
ACTIVATIONS: dict[type[nn.Module], tuple[Any, Any, bool]] = {
    nn.ReLU: (
        lambda _, x: torch.relu(x),
        lambda _, grad, y: _aten.threshold_backward.default(grad, y, 0),
        True,
    ),
    nn.Tanh: (
        lambda _, x: torch.tanh(x),
        lambda _, grad, y: _aten.tanh_backward.default(grad, y),
        True,
    ),
    nn.Sigmoid: (
        lambda _, x: torch.sigmoid(x),
        lambda _, grad, y: _aten.sigmoid_backward.default(grad, y),
        True,
    ),
    nn.SiLU: (
        lambda _, x: _aten.silu.default(x),
        lambda _, grad, x: _aten.silu_backward.default(grad, x),
        False,
    ),
    nn.Mish: (
        lambda _, x: _aten.mish.default(x),
        lambda _, grad, x: _aten.mish_backward.default(grad, x),
        False,
    ),
    nn.GELU: (
        lambda m, x: _aten.gelu.default(x, approximate=m.approximate),
        lambda m, grad, x: _aten.gelu_backward.default(
            grad, x, approximate=m.approximate
        ),
        False,
    ),
    nn.SELU: (
        lambda _, x: torch.selu(x),
        lambda _, grad, x: _aten.elu_backward.default(
            grad, _SELU_ALPHA, _SELU_SCALE, 1, False, x
        ),
        False,
    ),
}
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946

_KNOWN_LAYERS = (nn.Linear, PeriodicEmbedding, *DROPOUTS, *ACTIVATIONS)

# Layers whose passes are not written out, but whose output has a bound.
_BOUNDED_LAYERS = (*_KNOWN_LAYERS, nn.BatchNorm1d)

# If all values in a float32 network are below this bound, none of them overflows.
FAR_FROM_OVERFLOW = 1e30


def output_bound(module: nn.Module, X: Tensor) -> float:
    """Return a bound of the magnitude of all values in a network for given rows.

    A bound of the input is propagated through the layers. For a linear layer,
    ``max|Wx + b| <= max_i(sum_j |W_ij|) max|x| + max|b|``. The output of an activation
    is at most 1.8 times the larger of its input and 1. Batch normalization is a linear
    function of each input.

    Parameters
    ----------
    module : nn.Module
        Network, of which the bound in evaluation mode is returned.
    X : Tensor of shape (n_samples, n_features)
        Input of the network.

    Returns
    -------
    float
        The bound; inf if the network is not a chain of known layers, or the input or a
        weight is not finite.
    """
    layers = layers_of(module, _BOUNDED_LAYERS)
    if layers is None or not len(X) or X.ndim != 2:
        return math.inf
    bound: float = max(map(abs, torch.stack(torch.aminmax(X)).tolist()))
    largest = bound
    for layer in layers:
        if isinstance(layer, nn.Linear):
            rows = layer.weight.detach().abs().sum(dim=1, dtype=torch.float64)
            bound *= rows.max().item()
            if layer.bias is not None:
                bound += layer.bias.detach().abs().max().item()
        elif isinstance(layer, PeriodicEmbedding):
            sums = layer.weight.detach().abs().sum(dim=1, dtype=torch.float64)
            added = sums + layer.bias.detach().abs().squeeze(1)
            bound = max(bound, added.max().item())
        elif isinstance(layer, nn.BatchNorm1d):
            bound = _bound_of_norm(layer, bound)
        elif not isinstance(layer, nn.Dropout):
            bound = 1.8 * max(bound, 1.0)
        if not math.isfinite(bound):
            return math.inf
        largest = max(largest, bound)
    return largest


def _bound_of_norm(layer: nn.BatchNorm1d, bound: float) -> float:
    """Return the bound after a normalization by running statistics."""
    mean, variance = layer.running_mean, layer.running_var
    if mean is None or variance is None:
        return math.inf
    scale = (variance.double() + layer.eps).rsqrt()
    shift = mean.double().abs().max().item()
    if layer.affine:
        scale = scale * layer.weight.detach().abs()
    added = layer.bias.detach().abs().max().item() if layer.affine else 0.0
    return (bound + shift) * scale.max().item() + added


def has_plain_forward(module: nn.Module) -> bool:
    """Whether calling a module only calls the ``forward`` of its class."""
    return (
        type(module).__call__ is nn.Module.__call__
        and type(module).__getattr__ is nn.Module.__getattr__
        and "forward" not in vars(module)
        and getattr(module, "_compiled_call_impl", None) is None
        and not has_hooks(module)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether torch calls hooks with each call of a module."""
    return any(_hooks_of(module)) or any(_global_hooks_of(torch_module))


def has_gradient_hooks(parameter: Tensor) -> bool:
    """Whether torch calls hooks with each gradient of a parameter."""
    hooks = getattr(parameter, "_post_accumulate_grad_hooks", None)
    return bool(parameter._backward_hooks or hooks)


def layers_of(
    module: nn.Module, known: tuple[type[nn.Module], ...] = _KNOWN_LAYERS
) -> list[nn.Module] | None:
    """Return the layers that a module applies one after the other.

    None if the module does anything else, or a layer is not of a known type.
    """
    if not has_plain_forward(module):
        return None
    if is_dropout(module) and not 0.0 < module.p < 1.0:
        return None if module.p else []
    if type(module) is nn.Identity:
        return []
    if type(module) in known:
        return [module] if all(p.numel() for p in module.parameters()) else None
    children = _children_in_turn(module)
    if children is None:
        return None
    layers: list[nn.Module] = []
    for child in children:
        child_layers = layers_of(child, known)
        if child_layers is None:
            return None
        layers += child_layers
    return layers


def functions_of(layers: list[nn.Module]) -> list[Callable[[Tensor], Tensor]]:
    """Return the functions of known layers in evaluation mode, not calls of modules."""
    return [_function_of(layer) for layer in layers if not is_dropout(layer)]


def _function_of(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    if type(layer) is nn.Linear:
        weights: dict[str, Any] = layer._parameters  # whose values a user may replace
        linear = F.linear  # a name of this function is found faster
        return lambda x: linear(x, weights["weight"], weights["bias"])
    if type(layer) is nn.ReLU:
        return torch.relu
    if type(layer) in ACTIVATIONS:
        return partial(ACTIVATIONS[type(layer)][0], layer)
    return layer.forward


def _children_in_turn(module: nn.Module) -> list[nn.Module] | None:
    if type(module).forward is nn.Sequential.forward:
        is_usual = type(module).__iter__ is nn.Sequential.__iter__  # type: ignore[attr-defined]
        return list(module._modules.values()) if is_usual else None  # type: ignore[arg-type]
    names = _names_in_turn(getattr(type(module).forward, "__code__", None))
    if names is None or any(hasattr(type(module), name) for name in names):
        return None
    children = [module._modules.get(name) for name in names]
    known = [child for child in children if child is not None]
    return known if len(known) == len(children) else None


@lru_cache(maxsize=256)
def _names_in_turn(code: CodeType | None) -> tuple[str, ...] | None:
    """Return the attributes that a ``forward`` calls one after the other on its input.

    None if it does anything else. The byte code is compared with that of three ways to
    write such a method: ``return self.b(self.a(x))``; ``x = self.a(x)``,
    ``return self.b(x)``; and ``x = self.a(x)``, ``x = self.b(x)``, ``return x``. The
    source code may be missing or outdated.

    If ``return self.body(x)`` is not recognized as a chain, a fit takes 1.3 to 1.9
    times as long, and a batched search 1.5 to 4.4 times (widths 16 to 128).
    """
    if code is None or code.co_argcount != 2 or not code.co_names:
        return None
    if code.co_flags & _STARRED:
        return None
    self_name, x = code.co_varnames[:2]
    names = code.co_names
    calls = [f"{self_name}.{name}({x})" for name in names]
    nested = x
    for name in reversed(names):
        nested = f"{self_name}.{name}({nested})"
    # One line each, as Python 3.13 joins byte codes of one line.
    statements = "".join(f"{x} = {call}\n " for call in calls)
    before_last = "".join(f"{x} = {call}\n " for call in calls[:-1])
    for body, order in (
        (f"return {nested}", names[::-1]),
        (f"{before_last}return {calls[-1]}", names),
        (f"{statements}return {x}", names),
    ):
        source = f"def forward({self_name}, {x}):\n {body}"
        whole = compile(source, "<template>", "exec", dont_inherit=True)
        template = next(c for c in whole.co_consts if isinstance(c, CodeType))
        if all(getattr(code, part) == getattr(template, part) for part in _PARTS):
            return order
    return None


_STARRED = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS

# Attributes of a code object that determine its behavior. None of the three ways to
# write a forward has constants.
_PARTS = (
    "co_code",
    "co_names",
    "co_varnames",
    "co_freevars",
    "co_cellvars",
    "co_kwonlyargcount",
    "co_exceptiontable",
)
