"""Properties and names of ATen operations."""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sknan._utils.thresholds import NARROW
from sknan._utils.tree import tree_leaves, tree_map
from sknan.diagnosis._values import are_all_finite

# Statistics that need at least two elements.
SPREADS = ("std", "var", "std_mean", "var_mean")

# Operations that take logarithms: minus infinity, the logarithm of 0, is a valid
# argument, and the result is finite unless all arguments are that.
OF_LOGARITHMS = ("_log_softmax", "_softmax", "logaddexp", "logcumsumexp", "logsumexp")

# Operations that move numbers and do not compute.
_MOVES = {
    torch.ops.aten.detach,
    torch.ops.aten.view,
    torch.ops.aten.clone,
    torch.ops.aten.copy_,
    torch.ops.aten._to_copy,
    torch.ops.aten.t,
    torch.ops.aten.expand,
    torch.ops.aten.transpose,
    torch.ops.aten.select,
    torch.ops.aten.slice,
    torch.ops.aten.unsqueeze,
    torch.ops.aten.index,
    torch.ops.aten.lift_fresh,
}


class Kind(NamedTuple):
    """Properties of an ATen operation."""

    name: str
    stem: str  # the name without namespace and mark of an in-place operation
    is_view: bool
    is_in_place: bool
    is_random: bool  # and therefore differs from batch to batch
    is_move: bool
    outs: frozenset[str]  # arguments that are written and not read


@functools.cache
def kind_of(func: Any) -> Kind:
    """Return the properties of an overload of an ATen operation."""
    name = str(func.overloadpacket)
    return Kind(
        name,
        name.removeprefix("aten.").rstrip("_"),
        func.is_view,
        func._schema.is_mutable,
        torch.Tag.nondeterministic_seeded in func.tags,
        func.overloadpacket in _MOVES,
        frozenset(a.name for a in func._schema.arguments if a.is_out),
    )


def fails_in_float32(func: Any, args: Any, kwargs: Any, out: Tensor) -> bool:
    """Whether an operation that has failed in half precision fails in float32 too.

    Parameters
    ----------
    func : OpOverload
        The operation.
    args, kwargs : object
        Its arguments.
    out : Tensor
        Its result, which is not finite.

    Returns
    -------
    bool
        False for an operation in place, which has overwritten its arguments.
    """

    def widened(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.float() if x.dtype in NARROW else x
        return torch.float32 if x in NARROW else x

    if out.dtype not in NARROW or kind_of(func).is_in_place:
        return False
    try:
        wide = func(*tree_map(widened, args), **tree_map(widened, kwargs))
    except RuntimeError:
        return False  # such as flash attention, which has no kernel for float32
    return not are_all_finite(tree_leaves(wide))


def operation_of(node: Any, traced: str) -> str:
    """Return the ATen name of the operation that a node differentiates.

    Parameters
    ----------
    node : torch.autograd.graph.Node
        Node of the autograd graph.
    traced : str
        First operation that ran below the node in the forward pass. It is the operation
        of the node unless that consists of several.

    Returns
    -------
    str
        Name of the class of an autograd function of the user's own.
    """
    name = re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])
    is_of_torch = node.name()[-1].isdigit()
    if type(node).__module__ == "torch.autograd.function" or not is_of_torch:
        return name  # of the user's own autograd function
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if snake == "addmm":
        return "aten.mm"  # a product is differentiated by products
    stem = traced.removeprefix("aten.").strip("_")
    return traced if stem.startswith(snake.split("_")[0]) else f"aten.{snake}"
