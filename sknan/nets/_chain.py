"""Forward and backward pass of a chain of layers, written out layer by layer.

Autograd records each operation, walks its graph and lays each gradient aside: of a step
of a network 32 wide that is more than half of the time. Where a network is a chain of
well-known layers the two passes can be written down in advance. They call the very
kernels that autograd calls, in its order and with the same random numbers, so that loss
and gradients are autograd's to the bit; whatever is not known here, is left to it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from sknan.losses._closed_forms import closed_form_of
from sknan.nets._tabular_mlp import PeriodicEmbedding

_aten = torch.ops.aten

# Hooks that a module or all modules may have; each of them must be empty.
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)

_MEAN = 1  # what kernels call the reduction

_DTYPES = (torch.float32, torch.float64)
_ONES = {dtype: torch.ones((), dtype=dtype) for dtype in _DTYPES}


# -- layers --------------------------------------------------------------------------


class _Layer:
    """One layer in training mode: what it was given stays until the way back."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Output of the layer."""
        raise NotImplementedError

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        """Gradient of the input, if it is needed, given that of the output."""
        raise NotImplementedError


class _Linear(_Layer):
    def __init__(self, module: nn.Linear) -> None:
        super().__init__(module)
        self.weight = module.weight.detach()
        self.weight_t = self.weight.t()
        self.bias = None if module.bias is None else module.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        if self.bias is None:
            return x.mm(self.weight_t)
        return torch.addmm(self.bias, x, self.weight_t)

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        torch.mm(grad.t(), self.x, out=self.weight_grad)
        if self.bias_grad is not None:
            torch.sum(grad, 0, out=self.bias_grad)
        if not needs_input:
            return None
        if self.x.numel() == 1:  # which autograd takes for a column
            return self.weight_t.mm(grad.t()).t()
        return grad.mm(self.weight)

    def bind_gradients(self, gradients: dict[Any, Tensor]) -> None:
        """Take the places where the gradients of its weights are to be left."""
        self.weight_grad = gradients[self.module.weight]
        self.bias_grad = gradients.get(self.module.bias)


class _Embedding(_Layer):
    """Left to autograd: of its few large operations that costs little."""

    def __init__(self, module: PeriodicEmbedding) -> None:
        super().__init__(module)
        self.weights = list(module.parameters())

    def forward(self, x: Tensor) -> Tensor:
        self.x = x.detach().requires_grad_()
        with torch.enable_grad():
            self.output: Tensor = self.module.forward(self.x)
        output: Tensor = self.output.detach()
        return output

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        wanted = [*self.weights, self.x] if needs_input else self.weights
        found = torch.autograd.grad(self.output, wanted, grad)
        del self.output
        for place, gradient in zip(self.places, found, strict=False):
            place.copy_(gradient)
        return found[-1] if needs_input else None

    def bind_gradients(self, gradients: dict[Any, Tensor]) -> None:
        """Take the places where the gradients of its weights are to be left."""
        self.places = [gradients[weight] for weight in self.weights]


class _Activation(_Layer):
    """An elementwise function whose slope follows from its input or its output."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.function, self.slope, self.is_of_output = ACTIVATIONS[type(module)]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(self.module, x)
        self.kept = y if self.is_of_output else x
        return y

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        return self.slope(self.module, grad, self.kept) if needs_input else None


class _Dropout(_Layer):
    def forward(self, x: Tensor) -> Tensor:
        kept = 1.0 - self.module.p
        self.noise = torch.empty_like(x).bernoulli_(kept).div_(kept)
        return x * self.noise

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        return grad * self.noise if needs_input else None


# Function of the module and its input, gradient given what is kept, and whether that
# is the output.
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

_LAYERS: dict[type[nn.Module], type[_Layer]] = {
    nn.Linear: _Linear,
    PeriodicEmbedding: _Embedding,
    nn.Dropout: _Dropout,
    **dict.fromkeys(ACTIVATIONS, _Activation),
}


# -- losses --------------------------------------------------------------------------


def _cross_entropy(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean cross-entropy of class codes and its gradient; None if it is not finite."""
    logs = torch.log_softmax(output, 1)
    loss, total = _aten.nll_loss_forward.default(logs, target, None, _MEAN, -100)
    if not math.isfinite(loss.item()):
        return None  # what a stable loss then does is its own affair
    grad = _aten.nll_loss_backward.default(
        _ONES[loss.dtype], logs, target, None, _MEAN, -100, total
    )
    return loss, _aten._log_softmax_backward_data.default(grad, logs, 1, output.dtype)


def _squared_error(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean squared error and its gradient; None if it is not finite."""
    loss = _aten.mse_loss.default(output, target, _MEAN)
    if not math.isfinite(loss.item()):
        return None
    one = _ONES[loss.dtype]
    return loss, _aten.mse_loss_backward.default(one, output, target, _MEAN)


def _known_loss(criterion: Any, output: Tensor, target: Any) -> Any:
    """Return the loss with its gradient, if it has a closed form for these tensors."""
    form = closed_form_of(criterion)
    if form is None or not isinstance(target, Tensor):
        return None
    if form == "cross_entropy":
        fits = (output.ndim, target.ndim) == (2, 1) and target.dtype == torch.int64
        return _cross_entropy if fits and len(target) else None
    fits = output.shape == target.shape and output.dtype == target.dtype
    return _squared_error if fits else None


# -- a chain -------------------------------------------------------------------------


class LayerwisePass:
    """Loss and gradients of a network in training mode, without autograd.

    Parameters
    ----------
    layers : list of nn.Module
        Linear layers, embeddings of numbers, activations, dropout; each once.
    criterion : nn.Module
        Any.

    Attributes
    ----------
    is_random : bool
        Whether it draws random numbers.
    gradients : Tensor of one dimension
        All gradients of a step; those of the parameters are views of it.
    """

    def __init__(self, layers: list[Any], criterion: Any) -> None:
        self._layers = [_LAYERS[type(layer)](layer) for layer in layers]
        self._criterion = criterion
        # The loss written out; found out with the first batch, which is like the rest.
        self._loss_of: Any = None
        self._has_batch = False
        weighted = [
            layer for layer in self._layers if isinstance(layer, (_Linear, _Embedding))
        ]
        weights = [p for layer in weighted for p in layer.module.parameters()]
        places, self.gradients = _flat_gradients(weights)
        self._gradients = list(zip(weights, places, strict=True))
        its_gradients = dict(self._gradients)
        for layer in weighted:
            layer.bind_gradients(its_gradients)
        # What comes before the first weights needs no gradient.
        self._first = self._layers.index(weighted[0])
        self.is_random = any(isinstance(layer, _Dropout) for layer in self._layers)

    def step(
        self, X: Tensor, y: Any, get_loss: Callable[[Tensor, Any], Tensor]
    ) -> dict[str, Any]:
        """Loss and output of a batch; the gradients are left with the parameters.

        Parameters
        ----------
        X : Tensor of shape (n_samples, n_features)
        y : Tensor or tuple of Tensor
            Target, as the loss takes it.
        get_loss : callable
            Loss of output and target, for what is not written out here.

        Returns
        -------
        dict
            ``loss`` and ``y_pred``.
        """
        with torch.no_grad():
            output = X
            for layer in self._layers:
                output = layer.forward(output)
            if not self._has_batch:
                self._loss_of = _known_loss(self._criterion, output, y)
                self._has_batch = True
            found = None if self._loss_of is None else self._loss_of(output, y)
            loss, grad = found or _by_autograd(get_loss, output, y)
            for i in range(len(self._layers) - 1, self._first - 1, -1):
                grad = self._layers[i].backward(grad, i > self._first)
            for parameter, gradient in self._gradients:
                if parameter.grad is not gradient:
                    parameter.grad = gradient
        return {"loss": loss, "y_pred": output}


def _flat_gradients(weights: list[nn.Parameter]) -> tuple[list[Tensor], Tensor]:
    """A place for the gradient of each weight, and all of them in one piece.

    Each begins at a multiple of 64 bytes, as tensors do of themselves: where it lies
    decides in which order a product is summed up.
    """
    starts = [0]
    for weight in weights:
        starts.append(starts[-1] + math.ceil(weight.numel() / 16) * 16)
    whole = torch.zeros(starts[-1], dtype=weights[0].dtype)
    places = [
        whole.narrow(0, start, weight.numel()).view(weight.shape)
        for weight, start in zip(weights, starts[:-1], strict=True)
    ]
    return places, whole


@torch.enable_grad()
def _by_autograd(
    get_loss: Callable[[Tensor, Any], Tensor], output: Tensor, target: Any
) -> tuple[Tensor, Tensor]:
    leaf = output.detach().requires_grad_()
    loss = get_loss(leaf, target)
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad


def layerwise_pass(module: nn.Module, criterion: Any, X: Any) -> LayerwisePass | None:
    """The two passes of a network written out, if all of it is known here.

    Parameters
    ----------
    module, criterion, X
        As in :func:`known_layers`.

    Returns
    -------
    LayerwisePass or None
    """
    layers = known_layers(module, criterion, X)
    return None if layers is None else LayerwisePass(layers, criterion)


def known_layers(module: nn.Module, criterion: Any, X: Any) -> list[nn.Module] | None:
    """The layers of a network whose passes can be written out; None if they cannot.

    Parameters
    ----------
    module : nn.Module
        The network: ``nn.Sequential``, :class:`~sknan.nets.TabularMLP`, or a module
        that passes its input through its layers one after the other and does nothing
        else.
    criterion : nn.Module
        Without weights.
    X : Tensor
        Table that batches are cut from.

    Returns
    -------
    list of nn.Module or None
    """
    if _is_watched() or not isinstance(X, Tensor) or X.ndim != 2 or X.requires_grad:
        return None
    layers = layers_of(module)
    if layers is None or not isinstance(criterion, nn.Module):
        return None
    if not _has_plain_forward(criterion) or any(True for _ in criterion.parameters()):
        return None
    weights = [p for layer in layers for p in layer.parameters()]
    is_known = (
        weights
        and len({id(p) for p in weights}) == len(weights)
        and all(_is_plain(p) and p.dtype == X.dtype for p in weights)
        and X.is_cpu
        and X.dtype in _DTYPES
    )
    return layers if is_known else None


def output_bound(module: nn.Module, X: Tensor) -> float:
    """What no value in a network exceeds in size for given rows; inf if not known.

    A bound of the size of the input is carried through the layers: by a linear one
    ``max|Wx + b| <= max_i(sum_j |W_ij|) max|x| + max|b|``, and an activation at most
    keeps it, up to a factor below 1.8 and values below 1.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode.
    X : Tensor of shape (n_samples, n_features)
        Its input.

    Returns
    -------
    float
        inf if the input or a weight is not finite.
    """
    layers = layers_of(module)
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
        elif not isinstance(layer, nn.Dropout):
            bound = 1.8 * max(bound, 1.0)
        if not math.isfinite(bound):
            return math.inf
        largest = max(largest, bound)
    return largest


def _is_watched() -> bool:
    """Whether somebody looks at, or changes, each operation from outside."""
    return (
        any(getattr(torch_module, name) for name in _GLOBAL_HOOKS)
        or bool(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]
        or bool(_get_current_dispatch_mode_stack())
        or torch.is_autocast_enabled("cpu")
        or torch.is_anomaly_enabled()
    )


def _has_plain_forward(module: nn.Module) -> bool:
    """Whether calling a module is calling the ``forward`` of its class."""
    return (
        type(module).__call__ is nn.Module.__call__
        and type(module).__getattr__ is nn.Module.__getattr__
        and "forward" not in vars(module)
        and getattr(module, "_compiled_call_impl", None) is None
        and not any(getattr(module, name) for name in _HOOKS)
    )


def _is_plain(parameter: Any) -> bool:
    """Whether a gradient can be laid beside it without asking."""
    return (
        type(parameter) is nn.Parameter
        and parameter.requires_grad
        and parameter.is_cpu
        and parameter.is_contiguous()
        and not parameter._backward_hooks
        and not getattr(parameter, "_post_accumulate_grad_hooks", None)
    )


def layers_of(module: nn.Module) -> list[nn.Module] | None:
    """The layers that an input passes one after the other, if that is all."""
    if not _has_plain_forward(module):
        return None
    if type(module) is nn.Dropout and not 0.0 < module.p < 1.0:
        return None if module.p else []
    if type(module) is nn.Identity:
        return []
    if type(module) in _LAYERS:
        return [module]
    children = _children_in_turn(module)
    if children is None:
        return None
    layers: list[nn.Module] = []
    for child in children:
        found = layers_of(child)
        if found is None:
            return None
        layers += found
    return layers


def _children_in_turn(module: nn.Module) -> list[nn.Module] | None:
    if type(module).forward is nn.Sequential.forward:
        is_usual = type(module).__iter__ is nn.Sequential.__iter__  # type: ignore[attr-defined]
        return list(module._modules.values()) if is_usual else None  # type: ignore[arg-type]
    names = _names_in_turn(type(module).forward)
    if names is None or any(hasattr(type(module), name) for name in names):
        return None
    children = [module._modules.get(name) for name in names]
    known = [child for child in children if child is not None]
    return known if len(known) == len(children) else None


def _names_in_turn(forward: Any) -> list[str] | None:
    """Return the attributes that a ``forward`` calls one after the other on its input.

    None if it does anything else. The byte code is compared with that of three ways to
    write such a method: ``return self.b(self.a(x))``; ``x = self.a(x)``,
    ``return self.b(x)``; and ``x = self.a(x)``, ``x = self.b(x)``, ``return x``. The
    source code may be missing or outdated.

    If ``return self.body(x)`` is not recognized as a chain, a fit takes 1.3 to 1.9
    times as long, and a batched search 1.5 to 4.4 times (widths 16 to 128).
    """
    code = getattr(forward, "__code__", None)
    if code is None or code.co_argcount != 2 or not code.co_names:
        return None
    if code.co_flags & _STARRED:
        return None
    this, x = code.co_varnames[:2]
    names = list(code.co_names)
    calls = [f"{this}.{name}({x})" for name in names]
    nested = x
    for name in reversed(names):
        nested = f"{this}.{name}({nested})"
    in_turn = "".join(f"{x} = {call}; " for call in calls)
    before_last = "".join(f"{x} = {call}; " for call in calls[:-1])
    for body, order in (
        (f"return {nested}", names[::-1]),
        (f"{before_last}return {calls[-1]}", names),
        (f"{in_turn}return {x}", names),
    ):
        source = f"def forward({this}, {x}): {body}"
        whole = compile(source, "<template>", "exec", dont_inherit=True)
        template = next(c for c in whole.co_consts if isinstance(c, CodeType))
        if all(getattr(code, part) == getattr(template, part) for part in _PARTS):
            return order
    return None


_STARRED = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS

# Attributes of a code object that determine what it does. None of the three ways to
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
