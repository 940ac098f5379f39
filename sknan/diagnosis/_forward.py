"""Tracer for the operation of a forward pass that makes a number non-finite.

A dispatch mode sees each operation below autograd. An operation whose arguments are
finite and whose result is not is the origin of a fault. The tracer follows the result
until the loss, so that a NaN in a branch that does not reach the loss is not blamed.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sknan._utils.tree import tree_leaves
from sknan.diagnosis._evidence import (
    CRITERION,
    UNWRITTEN,
    FailedOperation,
    NonFiniteWeight,
)
from sknan.diagnosis._operations import (
    OF_LOGARITHMS,
    SPREADS,
    Kind,
    fails_in_float32,
    kind_of,
    operation_of,
)
from sknan.diagnosis._user_code import line_of_user
from sknan.diagnosis._values import (
    all_finite,
    bad_rows,
    is_inexact,
    largest,
    nonempty_floats,
    storage_key,
    value_range,
)


class _Origin(NamedTuple):
    """An operation at which a fault began, and how many ran before it."""

    order: int
    failed: FailedOperation


class ActiveModule(NamedTuple):
    """Path of a module, and its class if that is one of torch."""

    path: str
    layer: str = ""


class Made(NamedTuple):
    """Operation that made a tensor, and how its arguments were made."""

    name: str
    arguments: tuple[Made, ...] = ()

    def describe(self, depth: int = 5) -> str:
        """Return the expression that made the tensor, without its innermost parts."""
        if not self.arguments or not depth:
            return self.name
        arguments = (made.describe(depth - 1) for made in self.arguments)
        return f"{self.name}({', '.join(arguments)})"


_CONSTANT = Made("constant")


class GraphNode(NamedTuple):
    """Facts about the operation behind one node of the autograd graph."""

    operation: str
    module: ActiveModule
    source: str | None
    argument_origin: _Origin | None  # why an argument was not finite
    arguments: tuple[Made, ...]
    is_derivative: bool = False  # the node differentiates the gradient of the operation

    def operation_of(self, node: Any) -> str:
        """Return the name of the operation that a node differentiates."""
        return (
            self.operation if self.is_derivative else operation_of(node, self.operation)
        )


@dataclass(frozen=True)
class _Call:
    """One call of an operation, as it was before the operation ran."""

    func: Any
    kind: Kind
    args: Any
    kwargs: Any
    inputs: list[Tensor]
    keys: list[int]  # of the storages of the inputs
    arguments: tuple[Made, ...]
    depends_on_batch: bool
    has_faults: bool  # whether an input is not finite, by design or not
    origin: _Origin | None  # the earliest origin of an input
    passed_on: _Origin | None  # the earliest that passed infinities on by design
    had_nan: bool
    fills_memory: bool  # writes memory that is not all written

    @property
    def takes_zeros_as_logarithms(self) -> bool:
        """Whether all infinities among the arguments are logarithms of 0."""
        return (
            self.kind.stem in OF_LOGARITHMS
            and not self.had_nan
            and not any(bool(x.isposinf().any()) for x in nonempty_floats(self.inputs))
        )

    def has_summarized(self, out: Tensor) -> bool:
        """Whether the operation has made one number of several."""
        if self.kind.is_move or self.kind.is_view or self.kind.is_in_place:
            return False
        if self.kind.stem in ("logaddexp", "logcumsumexp"):
            return True
        return any(x.numel() > out.numel() for x in nonempty_floats(self.inputs))


def _has_too_few_elements(call: _Call, out: Tensor) -> bool:
    """Whether an operation is a statistic of fewer elements than it needs."""
    sample = next((x for x in call.inputs if x.is_floating_point()), None)
    if sample is None:
        return False
    is_spread = call.kind.stem in SPREADS
    return not sample.numel() or (is_spread and sample.numel() <= out.numel())


def _is_by_design(call: _Call, out: Tensor) -> bool:
    """Whether a non-finite result was asked for, or only moved from the weights."""
    has_infinity = any(isinstance(a, float) and math.isinf(a) for a in call.args)
    if (has_infinity or not call.inputs) and not out.isnan().any():
        return True  # such as a mask of minus infinities
    return call.kind.is_move and all(
        x.dtype == out.dtype for x in nonempty_floats(call.inputs)
    )


def _is_without_memory(data: Any) -> bool:
    """Whether a tensor is only a shape, or zeros such as a derivative that vanishes.

    To read its numbers would raise an exception, or end the process.
    """
    return any(x.is_meta or x._is_zerotensor() for x in tree_leaves(data))


class OperationTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that follows non-finite numbers from the operation they come from.

    Parameters
    ----------
    n_rows : int
        Number of rows in the batch.
    batch : tuple
        Inputs, and target if there is one; each may be nested.
    stop : frame
        Outermost frame in which to look for the user's code, itself excluded.
    nonfinite_weights : dict of int to NonFiniteWeight
        Weights and buffers that are not finite before the step, by storage key.

    Attributes
    ----------
    module_stack : list of ActiveModule
        Modules whose forward pass is running.
    nodes : dict of int to GraphNode
        Facts about the nodes of the autograd graph, by sequence number.
    nonfinite_nodes : set of int
        Sequence numbers of the nodes whose value is not finite.
    raised : (Exception, FailedOperation) or None
        Latest exception of an operation, and the operation.
    """

    def __init__(
        self,
        n_rows: int,
        batch: tuple[Any, ...],
        stop: FrameType,
        nonfinite_weights: dict[int, NonFiniteWeight],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_rows = n_rows
        self.module_stack: list[ActiveModule] = []
        self.nodes: dict[int, GraphNode] = {}
        self.nonfinite_nodes: set[int] = set()
        self.raised: tuple[Exception, FailedOperation] | None = None
        self._stop = stop
        self._nonfinite_weights = dict(nonfinite_weights)
        self._latest: _Call | None = None  # the latest that is not a move
        self._alive: list[Any] = []  # keeps torch from reusing storages
        # Origin of each storage that is not finite; None for infinities by design.
        self._origins: dict[int, _Origin | None] = {
            key: None for key, w in nonfinite_weights.items() if w.is_mask
        }
        # The first reduction whose result consists of infinities by design. It is the
        # origin if they reach the loss, or become NaN.
        self._passed_on: dict[int, _Origin] = {}
        self._users: dict[int, list[str]] = {}  # of each origin's result, by its order
        self._made = {
            storage_key(t): Made(name)
            for name, part in zip(("input", "target"), batch, strict=False)
            for t in tree_leaves(part)
        }
        self._of_batch = set(self._made)
        self._finite: set[int] = set()  # storages that are finite as a whole
        # Storages that are not all written yet, and to blame if they are read before.
        self._unwritten: dict[int, _Origin] = {}

    @property
    def module(self) -> ActiveModule:
        """Innermost module whose forward pass is running."""
        return self.module_stack[-1] if self.module_stack else ActiveModule(CRITERION)

    def origin_of(self, x: Tensor) -> FailedOperation | None:
        """Return the operation that made a tensor non-finite, or None."""
        key = storage_key(x)
        return self.failed_at(self._origins.get(key) or self._passed_on.get(key))

    def is_asked_for(self, x: Tensor) -> bool:
        """Whether the infinities of a tensor are there by design."""
        return not self._origins.get(storage_key(x))

    def first_failed(self) -> FailedOperation | None:
        """Return the first operation that made any tensor non-finite, or None."""
        return self.failed_at(_earliest(self._origins.values()))

    def failed_at(self, origin: _Origin | None) -> FailedOperation | None:
        """Return the operation of an origin, with those that used its result."""
        if origin is None:
            return None
        users = tuple(self._users.get(origin.order, ()))
        return dataclasses.replace(origin.failed, used_by=users)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_without_memory((args, kwargs)):
            return func(*args, **kwargs)
        call = self._call(func, args, kwargs)
        try:
            output = func(*args, **kwargs)
        except Exception as error:
            self.raised = error, self._raised(call)
            raise
        outputs = [output] if isinstance(output, Tensor) else tree_leaves(output)
        self._alive.append((call.inputs, outputs))
        if not call.kind.is_move:
            self._latest = call
        is_batch_norm = "batch_norm" in call.kind.name
        if is_batch_norm or call.kind.is_in_place:
            self._finite.difference_update(call.keys)
        number = self._note_node(call)
        # Batch normalization writes its running statistics, which are among its inputs.
        for out in [*outputs, *call.inputs[1:]] if is_batch_norm else outputs:
            self._follow(call, out, number)
        return output

    def _call(self, func: Any, args: Any, kwargs: Any) -> _Call:
        """Describe a call before the operation runs, which may overwrite its inputs."""
        kind = kind_of(func)
        if kind.stem in UNWRITTEN:  # it reads only the shape of a tensor
            args, kwargs = (), {}
        read = (value for name, value in kwargs.items() if name not in kind.outs)
        inputs = tree_leaves((*args, *read))
        keys = [storage_key(t) for t in inputs]
        origins, fills_memory = [], False
        for i, (x, key) in enumerate(zip(inputs, keys, strict=True)):
            if key in self._origins:
                origins.append(self._origins[key])
            elif key in self._unwritten and not (kind.is_view or all_finite(x)):
                if kind.is_in_place and not kind.outs and i == 0:
                    fills_memory = True
                else:
                    origins.append(self._unwritten[key])
        origin = _earliest(origins)
        arguments = self._arguments(args)
        if origin is not None and not (kind.is_move or kind.is_view):
            user = Made(kind.stem, arguments).describe()
            self._users.setdefault(origin.order, []).append(user)
        return _Call(
            func,
            kind,
            args,
            kwargs,
            inputs,
            keys,
            arguments=arguments,
            depends_on_batch=kind.is_random or not self._of_batch.isdisjoint(keys),
            has_faults=bool(origins),
            origin=origin,
            passed_on=_earliest(self._passed_on.get(key) for key in keys),
            had_nan=bool(origins)
            and any(bool(t.isnan().any()) for t in nonempty_floats(inputs)),
            fills_memory=fills_memory and not origins,
        )

    def _arguments(self, args: Any) -> tuple[Made, ...]:
        """Return numbers among the arguments, and how tensors were made."""
        made: list[Made] = []
        for argument in args:
            if isinstance(argument, (int, float)):
                made.append(Made(f"{argument:.3g}"))
            for leaf in tree_leaves(argument):
                made.append(self._made.get(storage_key(leaf), _CONSTANT))
        return tuple(made)

    def _note_node(self, call: _Call) -> int:
        """Record the node of the graph that belongs to a call; return its number."""
        # torch has created the node just before.
        number = torch._C._autograd._get_sequence_nr() - 1
        if number not in self.nodes:
            origin = None if call.takes_zeros_as_logarithms else call.origin
            node = self._differentiated()
            if node is not None:
                node = node._replace(argument_origin=origin, is_derivative=True)
            else:
                line = line_of_user(self._stop, is_of_node=True)
                node = GraphNode(
                    call.kind.name, self.module, line, origin, call.arguments
                )
            self.nodes[number] = node
        return number

    def _differentiated(self) -> GraphNode | None:
        """Return the node whose gradient the user's code computes at the moment."""
        node = torch._C._current_autograd_node()
        return None if node is None else self.nodes.get(int(node._sequence_nr()))

    def _follow(self, call: _Call, out: Tensor, number: int) -> None:
        """Record whether a result is finite, and what is to blame if it is not."""
        if out.layout is not torch.strided or _is_without_memory(out):
            return  # sparse tensors have no storage either
        key = storage_key(out)
        if call.depends_on_batch:
            self._of_batch.add(key)
        if call.kind.stem in UNWRITTEN:
            self._unwritten[key] = self._origin(call, out)
            return
        if call.kind.is_move or call.kind.is_view:
            self._made.setdefault(key, call.arguments[0])
        else:
            self._made[key] = Made(call.kind.stem, call.arguments)
        if not is_inexact(out) or not out.numel():
            return
        if call.kind.is_view and key in self._finite:
            return
        if all_finite(out):
            is_whole = out._base is None and (
                out.untyped_storage().nbytes() == out.numel() * out.itemsize
            )
            if is_whole:  # all former numbers are overwritten
                self._origins.pop(key, None)
                self._passed_on.pop(key, None)
            if not (call.kind.is_view or call.kind.is_in_place):
                self._finite.add(key)
            return
        self._finite.discard(key)
        is_unread = key in self._unwritten and key not in self._origins
        is_partial = call.kind.is_view or (call.fills_memory and out.isnan().any())
        if is_unread and is_partial:
            return
        self.nonfinite_nodes.add(number)
        self._blame(call, out, key)

    def _blame(self, call: _Call, out: Tensor, key: int) -> None:
        """Record the origin of a result that is not finite."""
        has_nan = bool(out.isnan().any())
        if has_nan and not call.inputs:
            return  # a constant: what takes it into a result is to blame
        weights = [w for k in call.keys if (w := self._nonfinite_weights.get(k))]
        origin = call.origin
        if origin is not None:
            if call.takes_zeros_as_logarithms:  # such as logsumexp of a masked row
                origin = self._origin(call, out)
            self._origins[key] = origin
        elif weights and (has_nan or not weights[0].is_mask):
            if call.kind.is_move:
                self._nonfinite_weights[key] = weights[0]
            else:
                self._origins[key] = self._origin(call, out, weights[0])
        elif call.has_faults and not has_nan:
            self._origins[key] = None  # infinities by design, passed on
            passed_on = call.passed_on
            if passed_on is None and call.has_summarized(out):
                passed_on = self._origin(call, out)
            if passed_on is not None:
                self._passed_on[key] = passed_on
        elif call.depends_on_batch or not call.had_nan:
            is_by_design = _is_by_design(call, out)
            origin = call.passed_on or self._origin(call, out)
            self._origins[key] = None if is_by_design else origin

    def _origin(
        self, call: _Call, out: Tensor, weight: NonFiniteWeight | None = None
    ) -> _Origin:
        rows = bad_rows(~torch.isfinite(out), self.n_rows)
        return _Origin(len(self._alive), self._failed(call, out, rows, weight))

    def _divides_by_zero_weight(self, call: _Call) -> bool:
        if call.kind.stem != "div" or not call.inputs[-1].requires_grad:
            return False
        is_zero = bool((call.inputs[-1] == 0.0).any())
        return is_zero and call.keys[-1] not in self._of_batch

    def _raised(self, call: _Call) -> FailedOperation:
        """Return the operation that has raised, or whose result a check refuses."""
        out = call.inputs[0] if call.inputs else torch.empty(0)
        if "check_errors" in call.kind.name and self._latest is not None:
            rows = bad_rows(out != 0, self.n_rows)  # a code for each matrix
            failed = self._failed(self._latest, out, rows)
        else:
            failed = dataclasses.replace(self._failed(call, out, ()), domain=None)
        return dataclasses.replace(failed, has_raised=True)

    def _failed(
        self,
        call: _Call,
        out: Tensor,
        rows: tuple[int, ...],
        weight: NonFiniteWeight | None = None,
    ) -> FailedOperation:
        floats = nonempty_floats(call.inputs)
        path, layer = self.module
        failed = FailedOperation(
            phase="loss" if path == CRITERION else "forward",
            module=path,
            operation=call.kind.name,
            source=line_of_user(self._stop),
            rows=rows,
            largest=largest(floats),
            domain=value_range(floats[-1]) if floats else None,
            dtype=out.dtype,
            fails_in_float32=fails_in_float32(call.func, call.args, call.kwargs, out),
            depends_on_batch=call.depends_on_batch,
            divides_by_zero_weight=self._divides_by_zero_weight(call),
            has_too_few_elements=_has_too_few_elements(call, out),
            weight=weight,
            arguments=tuple(made.describe() for made in call.arguments),
            layer=layer,
        )
        node = self._differentiated()
        if node is None:
            return failed
        return dataclasses.replace(
            failed,
            phase="backward",
            module=node.module.path,
            operation=node.operation_of(torch._C._current_autograd_node()),
            source=node.source,
            domain=None,
            arguments=tuple(made.describe() for made in node.arguments),
            layer=node.module.layer,
        )


def _earliest(origins: Any) -> _Origin | None:
    """Return the origin that came first, or None if there is none."""
    found = [origin for origin in origins if origin is not None]
    return min(found, key=operator.attrgetter("order"), default=None)
