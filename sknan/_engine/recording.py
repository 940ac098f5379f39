"""Recording of the operations of a function, which then run again on new values.

To differentiate a module for many members, ``torch.func`` runs Python code for each
operation. In a small network this takes several times as long as the operations. They
are therefore recorded once, below ``torch.func``, with the tensors that they read and
write. To run them again, the inputs are overwritten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from sknan._engine.products import stacked_product
from sknan._utils.tree import tree_leaves

_aten = torch.ops.aten

# Arguments of functions that create a tensor; a variant with ``out`` lacks them.
_CREATION_OPTIONS = frozenset({"dtype", "layout", "device", "pin_memory"})


@dataclass(eq=False)
class _Operation:
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @cached_property
    def reads(self) -> list[Tensor]:
        return tree_leaves((self.args, self.kwargs))

    @cached_property
    def results(self) -> list[Tensor]:
        return tree_leaves(self.result)

    @property
    def has_effect(self) -> bool:
        """Whether the operation may do more than compute its result."""
        # The schema of native_batch_norm omits that it writes the running statistics.
        is_mutable = self.function._schema.is_mutable
        is_norm = self.function is _aten.native_batch_norm.default
        return is_mutable or is_norm or not self.results

    @property
    def call(self) -> Callable[[], object]:
        """Function that runs the operation again, in the same memory."""
        function, args, kwargs = self.function, self.args, self.kwargs
        result = self.result
        if function is _aten.bmm.default:
            return stacked_product(args[0], args[1], result)
        if function is _aten.relu.default:  # its variant with out makes a copy
            return partial(_aten.clamp_min.out, args[0], 0, out=result)
        if _storages(self.results) <= _storages(self.reads):
            return partial(function, *args, **kwargs)
        results = result if isinstance(result, (tuple, list)) else (result,)
        variant, names, accepted = _variant_with_out(function)
        if not len(names) == len(results) == len(self.results):
            return self._compute_and_copy
        kwargs = {name: v for name, v in kwargs.items() if name in accepted}
        return partial(
            variant, *args, **kwargs, **dict(zip(names, results, strict=True))
        )

    def _compute_and_copy(self) -> None:
        found = tree_leaves(self.function(*self.args, **self.kwargs))
        for tensor, value in zip(self.results, found, strict=True):
            tensor.copy_(value)


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations that run inside the block, which can run again.

    Attributes
    ----------
    reads_values : bool
        Whether Python code has read the value of a tensor, on which the operations may
        depend.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[_Operation] = []
        self.reads_values = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.inplace_view in func.tags:
            self._keep_shape(args[0])
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        self.reads_values |= func is _aten._local_scalar_dense.default
        self.operations.append(_Operation(func, args, kwargs, result))
        return result

    def _keep_shape(self, tensor: Tensor) -> None:
        """Keep the present shape of a tensor in the operations so far."""
        view = tensor.view_as(tensor)
        self.operations = [
            _Operation(
                op.function,
                *tree_map(
                    lambda leaf: view if leaf is tensor else leaf,
                    (op.args, op.kwargs, op.result),
                ),
            )
            for op in self.operations
        ]

    def calls(
        self, inputs: Iterable[Tensor], outputs: Iterable[Tensor]
    ) -> list[Callable[[], object]]:
        """Return the functions that compute the outputs again from the inputs.

        Intermediate results that are not needed at the same time share memory.

        Parameters
        ----------
        inputs : iterable of Tensor
            Tensors whose values change.
        outputs : iterable of Tensor
            Results, which keep their values until the next run.

        Returns
        -------
        list of callable
        """
        kept = self._needed_operations(_storages([*inputs, *outputs]))
        self._share_memory(kept, _storages(outputs))
        return [operation.call for operation in kept]

    def _needed_operations(self, needed: set[int]) -> list[_Operation]:
        """Return the operations without views, constants and unused results."""
        effects = [op for op in self.operations if op.has_effect]
        written = set().union(*(_storages(op.reads) for op in effects))
        kept = []
        for operation in reversed(self.operations):
            reads, results = _storages(operation.reads), _storages(operation.results)
            is_view = results <= reads
            is_constant = not reads and not results & written
            if not operation.has_effect and (
                is_view or is_constant or not results & needed
            ):
                continue
            kept.append(operation)
            needed = needed | reads
        return kept[::-1]

    def _share_memory(self, kept: list[_Operation], outputs: set[int]) -> None:
        last_uses: dict[int, int] = {}
        for i, operation in enumerate(kept):
            for used in _storages([*operation.reads, *operation.results]):
                last_uses[used] = i
        free: dict[int, list[torch.UntypedStorage]] = defaultdict(list)
        replaced: dict[int, torch.UntypedStorage] = {}
        for i, operation in enumerate(kept):
            known = _storages(operation.reads)
            for tensor in operation.results:
                storage = tensor.untyped_storage()
                if storage._cdata not in known | outputs | replaced.keys():
                    found = free[storage.nbytes()]
                    replaced[storage._cdata] = found.pop() if found else storage
            for used in known | _storages(operation.results):
                if used in replaced and last_uses[used] == i:
                    free[replaced[used].nbytes()].append(replaced[used])
        tensors = {
            id(tensor): tensor
            for operation in self.operations
            for tensor in [*operation.reads, *operation.results]
        }
        for tensor in tensors.values():
            new = replaced.get(tensor.untyped_storage()._cdata)
            if new is not None:
                place = tensor.storage_offset(), tensor.shape, tensor.stride()
                tensor.set_(new, *place)


def _storages(tensors: Iterable[Tensor]) -> set[int]:
    """Return the identities of the memory of tensors."""
    return {tensor.untyped_storage()._cdata for tensor in tensors}


@cache
def _variant_with_out(function: Any) -> tuple[Any, list[str], set[str]]:
    """Return the variant of a function that writes to given tensors.

    With it, the names of these tensors and of all its arguments are returned. The
    variant is None if there is none.
    """
    packet, wanted = function._overloadpacket, function._schema
    for name in packet.overloads():
        variant = getattr(packet, name)
        arguments = variant._schema.arguments
        outs = [a.name for a in arguments if a.is_out]
        if len(outs) == len(wanted.returns) and _inputs(variant._schema) == _inputs(
            wanted
        ):
            if outs == ["out"] and torch.Tag.generated not in variant.tags:
                # The function of Python takes half of the time of the variant.
                name = wanted.name.removeprefix("aten::")
                variant = getattr(torch._C._VariableFunctions, name, variant)
            return variant, outs, {a.name for a in arguments}
    return None, [], set()


def _inputs(schema: Any) -> list[tuple[str, str]]:
    return [
        (a.name, str(a.type))
        for a in schema.arguments
        if not a.is_out and a.name not in _CREATION_OPTIONS
    ]
