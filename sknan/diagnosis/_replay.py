"""Run one step again under observation, and find the operation that broke it.

Forward, a dispatch mode sees each operation below autograd: one whose inputs are sound
and whose output is not is a source, and what becomes of it is followed until the loss,
so that a NaN in a branch that is never taken is not blamed. Backward, a hook on each
node of the graph sees gradients come in and go out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import operator
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode

from sknan._utils.tree import tree_leaves
from sknan.diagnosis._report import Phase

__all__ = [
    "FailedOperation",
    "Names",
    "replay",
    "sanitized_backward",
    "trace_operations",
]

# The criterion's place, in place of a path of modules.
CRITERION = "criterion"

_PACKAGE = str(Path(__file__).parents[1])  # the root of sknan
_NOT_USERS = (
    str(Path(torch.__file__).parent),
    _PACKAGE,
    sysconfig.get_paths()["stdlib"],
)
_NOT_USERS_NAMES = ("skorch", "sklearn", "joblib", "_pytest", "pluggy")


@dataclass(frozen=True)
class FailedOperation:
    """The operation that a replay has found.

    ``largest`` is the size of the largest number that went into it, and ``domain`` the
    range of its last argument, such as a denominator; ``is_of_batch``
    whether any of it depends on the batch; ``is_of_too_few`` whether it is a spread of
    fewer elements than a spread needs; ``is_of_buffer`` whether only a buffer is not
    finite for it; ``is_of_dead_branch`` whether its value was not finite either, and
    did not go into the loss; ``weight`` names one that was not finite to begin with.
    """

    phase: Phase
    module: str
    operation: str
    source: str | None
    rows: tuple[int, ...] = ()
    largest: float = 0.0
    domain: tuple[float, float] | None = None
    dtype: torch.dtype | None = None
    is_of_batch: bool = True
    is_of_too_few: bool = False
    is_of_buffer: bool = False
    is_of_dead_branch: bool = False
    weight: str | None = None


# -- names and places ----------------------------------------------------------------


class Names:
    """What the modules of a net are called in reports.

    Parameters
    ----------
    modules : dict of str to nn.Module
        Networks by name; the paths in ``"module"`` have no prefix.
    criteria : iterable of nn.Module
        All of whose parts are the criterion.
    """

    def __init__(self, modules: dict[str, Any], criteria: Iterable[Any]) -> None:
        self._path: dict[int, str] = {}
        self.buffers: list[Tensor] = []
        self.bad_weights: dict[int, str] = {}
        for name, module in modules.items():
            if isinstance(module, nn.Module):
                prefix = "" if name == "module" else name
                for path, part in module.named_modules(prefix=prefix):
                    self._path.setdefault(id(part), path)
                self.buffers += module.buffers()
                for path, weight in module.named_parameters(prefix=prefix):
                    if weight.numel() and not _is_sound(weight.detach()):
                        self.bad_weights[_key(weight)] = path
        for criterion in criteria:
            if isinstance(criterion, nn.Module):
                for part in criterion.modules():
                    self._path[id(part)] = CRITERION

    def of(self, module: nn.Module) -> str | None:
        """Path of a module, or None if it is not one of the net's."""
        return self._path.get(id(module))


@functools.cache
def _is_users(filename: str) -> bool:
    if filename.startswith(_NOT_USERS) or filename.startswith("<frozen"):
        # Packages live below the standard library in some installations.
        is_site = "site-packages" in filename and not filename.startswith(
            (_NOT_USERS[0], _PACKAGE)
        )
        if not is_site:
            return False
    return not any(
        f"{name}/" in filename.replace("\\", "/").rpartition("site-packages/")[2]
        for name in _NOT_USERS_NAMES
        if "site-packages" in filename
    )


# Of torch, around the code of someone's own operation.
_OWN_OPERATION = torch.autograd.Function.apply.__code__


def _line_of_user(stop: Any, *, is_of_node: bool = False) -> str | None:
    """``file:line`` of the innermost frame in the user's code, up to a frame.

    For a node of the graph that is the line that calls for it, even if it is someone's
    own operation.
    """
    frame: Any = sys._getframe(1)
    found = None
    while frame is not None and frame is not stop:
        if is_of_node and frame.f_code is _OWN_OPERATION:
            found = None
        elif found is None and _is_users(frame.f_code.co_filename):
            found = frame
            if not is_of_node:
                break
        frame = frame.f_back
    return f"{found.f_code.co_filename}:{found.f_lineno}" if found else None


def _number_of(node: Any) -> int:
    """Number of a node in the graph; -1 for one without."""
    return int(node._sequence_nr()) if hasattr(node, "_sequence_nr") else -1


def _operation_of_node(node: Any, made_by: dict[int, str]) -> str:
    """ATen name of the operation that a node differentiates."""
    name = re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])
    if type(node).__module__ == "torch.autograd.function" or not (
        node.name()[-1].isdigit()
    ):
        return name  # of someone's own
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if snake == "addmm":
        return "aten.mm"  # a product is differentiated by products
    seen = made_by.get(_number_of(node), "")
    # The first operation below a node is its own, unless it is made of several.
    is_own = seen.removeprefix("aten.").strip("_").startswith(snake.split("_")[0])
    return seen if is_own else f"aten.{snake}"


# -- soundness -----------------------------------------------------------------------


def _is_inexact(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _real(x: Tensor) -> Tensor:
    """The numbers of a tensor, real and imaginary parts alike."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _is_sound(x: Tensor) -> bool:
    x = _real(x)
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    total = x.sum(dtype=dtype).item()
    # A sum of finite numbers may overflow.
    return math.isfinite(total) or bool(torch.isfinite(x).all())


def _largest(tensors: Iterable[Tensor]) -> float:
    sizes = [
        float(torch.nan_to_num(_real(t.detach()).double(), 0.0, 0.0, 0.0).abs().max())
        for t in tensors
        if t.numel()
    ]
    return max(sizes, default=0.0)


def _range_of(tensors: list[Tensor]) -> tuple[float, float] | None:
    """Least and largest number of the last tensor."""
    if not tensors:
        return None
    low, high = _real(tensors[-1].detach()).double().aminmax()
    return float(low), float(high)


def _bad_rows(x: Tensor, n_rows: int) -> tuple[int, ...]:
    if not x.ndim or len(x) != n_rows:
        return ()
    bad = ~torch.isfinite(x.detach()).reshape(n_rows, -1).all(dim=1)
    return tuple(bad.nonzero().flatten().tolist())


def _floats(things: Any) -> list[Tensor]:
    return [t for t in tree_leaves(things) if _is_inexact(t) and t.numel()]


def _key(x: Tensor) -> int:
    # Views share it; a tensor that is wrapped anew keeps it.
    return int(x.untyped_storage()._cdata)


_SPREADS = ("std", "var", "std_mean", "var_mean")


def _is_of_too_few(name: str, inputs: list[Tensor], out: Tensor) -> bool:
    """Whether a statistic is one of fewer elements than it needs."""
    of = next((x for x in inputs if x.is_floating_point()), None)
    if of is None:
        return False
    is_spread = name.removeprefix("aten.") in _SPREADS
    return not of.numel() or (is_spread and of.numel() <= out.numel())


class _Kind(NamedTuple):
    """What is to be known of an operation of torch."""

    name: str
    is_view: bool
    is_in_place: bool
    is_random: bool  # and so differs from batch to batch


@functools.cache
def _kind_of(func: Any) -> _Kind:
    return _Kind(
        str(func.overloadpacket),
        func.is_view,
        func._schema.is_mutable,
        torch.Tag.nondeterministic_seeded in func.tags,
    )


class _OperationWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow non-finite numbers from the operation that made them."""

    def __init__(
        self, n_rows: int, batch: Any, stop: Any, bad_weights: dict[int, str]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_rows = n_rows
        self._bad_weights = bad_weights
        self.place: list[str] = []
        self.broken: FailedOperation | None = None
        # By the number of the node in the graph: its operation, module and line, and
        # what has made an argument non-finite.
        self.made_by: dict[int, str] = {}
        self.place_of: dict[int, str] = {}
        self.line_of: dict[int, str | None] = {}
        self.fed_by: dict[int, FailedOperation] = {}
        self.unsound: set[int] = set()
        self._latest: tuple[str, list[Tensor]] = ("", [])
        self._stop = stop
        self._alive: list[Any] = []  # so that no storage is used twice
        # By the storage that it made non-finite; the number tells which came first.
        self._source: dict[int, tuple[int, FailedOperation] | None] = {}
        self._of_batch = {_key(t) for t in tree_leaves(batch)}
        self._sound: set[int] = set()  # storages that are so as a whole

    def _broken_by(
        self, func: Any, inputs: list[Tensor], of_batch: bool
    ) -> FailedOperation | None:
        """The decomposition that has no result, in place of the check that says so."""
        info = inputs[0]
        name = _kind_of(func).name
        if "check_errors" in name:
            name, inputs = self._latest
        found = self._finding(func, inputs, info, of_batch, None)
        rows: tuple[int, ...] = ()
        if info.ndim and len(info) == self.n_rows and not info.is_floating_point():
            bad = (info != 0).reshape(self.n_rows, -1).any(dim=1)
            rows = tuple(bad.nonzero().flatten().tolist())
        return dataclasses.replace(found, operation=name, rows=rows)

    def source_of(self, x: Tensor) -> FailedOperation | None:
        """Where what is wrong with a tensor comes from."""
        found = self._source.get(_key(x))
        return found[1] if found else None

    def first(self) -> FailedOperation | None:
        """The first operation that made anything non-finite."""
        found = [source for source in self._source.values() if source is not None]
        return min(found, key=operator.itemgetter(0))[1] if found else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = tree_leaves((*args, *kwargs.values()))
        keys = [_key(t) for t in inputs]
        kind = _kind_of(func)
        of_batch = kind.is_random or not self._of_batch.isdisjoint(keys)
        # Read before the call, which may work in place.
        known = [self._source[key] for key in keys if key in self._source]
        had_nan = known and any(bool(t.isnan().any()) for t in _floats(inputs))
        try:
            output = func(*args, **kwargs)
        except LinAlgError:
            self.broken = self._broken_by(func, inputs, of_batch)
            raise
        outputs = [output] if isinstance(output, Tensor) else tree_leaves(output)
        self._alive.append((inputs, outputs))
        if func.overloadpacket not in _MOVES:
            self._latest = kind.name, inputs
        if "batch_norm" in kind.name:  # which writes running statistics
            outputs = [*outputs, *inputs[1:]]
            self._sound.difference_update(keys)
        # The node of the graph has been made just before.
        number = torch._C._autograd._get_sequence_nr() - 1
        blamed = [source for source in known if source is not None]
        if number not in self.made_by:
            self.made_by[number] = kind.name
            self.place_of[number] = self.place[-1] if self.place else CRITERION
            self.line_of[number] = _line_of_user(self._stop, is_of_node=True)
            if blamed:
                self.fed_by[number] = min(blamed, key=operator.itemgetter(0))[1]
        if kind.is_in_place:
            self._sound.difference_update(keys)
        for out in outputs:
            key = _key(out)
            if of_batch:
                self._of_batch.add(key)
            if not _is_inexact(out) or not out.numel():
                continue
            if kind.is_view and key in self._sound:
                continue
            if _is_sound(out):
                # Written over, as a whole: what was there before is gone.
                is_whole = out._base is None and (
                    out.untyped_storage().nbytes() == out.numel() * out.itemsize
                )
                if key in self._source and is_whole:
                    del self._source[key]
                if not (kind.is_view or kind.is_in_place):
                    self._sound.add(key)
                continue
            self._sound.discard(key)
            self.unsound.add(number)
            weights = [w for k in keys if (w := self._bad_weights.get(k))]
            if blamed:
                self._source[key] = min(blamed, key=operator.itemgetter(0))
            elif weights:
                if func.overloadpacket not in _MOVES:
                    found = self._finding(func, inputs, out, of_batch, weights[0])
                    self._source[key] = len(self._alive), found
            elif known and not bool(out.isnan().any()):
                self._source[key] = None  # infinities by design, handed on
            elif not had_nan:
                judged = self._judge(func, args, inputs, out, of_batch)
                self._source[key] = (
                    None if judged is None else (len(self._alive), judged)
                )
        return output

    def _judge(
        self, func: Any, args: Any, inputs: list[Tensor], out: Tensor, of_batch: bool
    ) -> FailedOperation | None:
        has_infinity = any(isinstance(a, float) and math.isinf(a) for a in args)
        if (has_infinity or not inputs) and not out.isnan().any():
            return None  # by design: a mask of minus infinities
        if func.overloadpacket in _MOVES and not any(
            t.dtype != out.dtype for t in _floats(inputs)
        ):
            return None  # infinities that came with the weights
        return self._finding(func, inputs, out, of_batch, None)

    def _finding(
        self,
        func: Any,
        inputs: list[Tensor],
        out: Tensor,
        of_batch: bool,
        weight: str | None,
    ) -> FailedOperation:
        name = _kind_of(func).name
        place = self.place[-1] if self.place else CRITERION
        floats = _floats(inputs)
        return FailedOperation(
            phase="loss" if place == CRITERION else "forward",
            module=place,
            operation=name,
            source=_line_of_user(self._stop),
            rows=_bad_rows(out, self.n_rows),
            largest=_largest(floats),
            domain=_range_of(floats),
            dtype=out.dtype,
            is_of_batch=of_batch,
            is_of_too_few=_is_of_too_few(name, inputs, out),
            weight=weight,
        )


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
}


# -- the graph -----------------------------------------------------------------------


@contextlib.contextmanager
def _hooked(names: Names, watch: _OperationWatch) -> Iterator[None]:
    """Note where the forward pass is, in all modules at once."""

    def enter(module: nn.Module, inputs: Any) -> None:
        path = names.of(module)
        watch.place.append(_inner(watch.place, path))

    def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
        if watch.place:
            watch.place.pop()

    before = nn.modules.module.register_module_forward_pre_hook(enter)
    after = nn.modules.module.register_module_forward_hook(leave)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def _inner(places: list[str], path: str | None) -> str:
    """Place of a module: its own name, or that of what it is called from."""
    if path is not None:
        return path
    return places[-1] if places else CRITERION


def _watch_nodes(
    loss: Tensor,
    judge: Callable[[Any, tuple[Any, ...], tuple[Any, ...]], Any],
) -> list[Any]:
    """Hook all nodes below a loss; the handles."""
    seen: set[Any] = set()
    stack: list[Any] = [loss.grad_fn]
    handles = []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)

        def hook(grads_in: Any, grads_out: Any, node: Any = node) -> Any:
            return judge(node, grads_in, grads_out)

        handles.append(node.register_hook(hook))
        stack.extend(following for following, _ in node.next_functions)
    return handles


def _sound(grads: Iterable[Any]) -> bool:
    return all(_is_sound(g) for g in grads if isinstance(g, Tensor) and g.numel())


def sanitized_backward(loss: Tensor) -> None:
    """Differentiate, with 0 for each entry that an operation makes non-finite.

    Parameters
    ----------
    loss : Tensor of shape ()
        Finite.
    """

    def clean(node: Any, grads_in: Any, grads_out: Any) -> Any:
        if _sound(grads_in):
            return None
        return tuple(
            g if g is None else torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0)
            for g in grads_in
        )

    handles = _watch_nodes(loss, clean)
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()


# -- the replay ----------------------------------------------------------------------


def replay(
    run: Callable[[], tuple[Any, Tensor]], names: Names, batch: Any, n_rows: int
) -> FailedOperation | None:
    """Run a step again and find the first operation that broke it.

    Parameters
    ----------
    run : callable
        Computes outputs and loss of the batch, with the random state of the first time.
    names : Names
        Of the modules.
    batch : Tensor, or nested tuples or dicts of Tensor
        What ``run`` reads.
    n_rows : int
        Length of the batch.

    Returns
    -------
    FailedOperation or None
        None if nothing is found, or the gradients come out finite this time.
    """
    watch = _OperationWatch(n_rows, batch, sys._getframe(), names.bad_weights)
    with torch.enable_grad(), _hooked(names, watch):
        try:
            with watch:
                outputs, loss = run()
        except Exception:  # what it found until then is all there is to say
            return watch.broken or watch.first()
        if not bool(torch.isfinite(loss.detach()).all()):
            return watch.source_of(loss)
        for output in _floats(outputs):  # a stable loss may make light of it
            if watch.source_of(output) is not None and not _is_sound(output):
                return watch.source_of(output)
        for buffer in names.buffers:
            if watch.source_of(buffer) is not None and not _is_sound(buffer):
                found = watch.source_of(buffer)
                return found and dataclasses.replace(found, is_of_buffer=True)
        return _first_bad_node(loss, watch)


class _Found(Exception):
    """Breaks off a backward pass: what follows is of no interest."""

    def __init__(self, finding: FailedOperation) -> None:
        super().__init__()
        self.finding = finding


def _first_bad_node(loss: Tensor, watch: _OperationWatch) -> FailedOperation | None:
    def judge(node: Any, grads_in: Any, grads_out: Any) -> None:
        if _sound(grads_in) or not _sound(grads_out):
            return
        number = _number_of(node)
        if number in watch.fed_by:  # its value was finite all the same, as tanh(inf)
            raise _Found(watch.fed_by[number])
        bad = [g for g in grads_in if g is not None and not _is_sound(g)]
        raise _Found(
            FailedOperation(
                phase="backward",
                module=watch.place_of.get(number, CRITERION),
                operation=_operation_of_node(node, watch.made_by),
                source=watch.line_of.get(number),
                rows=_bad_rows(bad[0], watch.n_rows),
                largest=_largest(g for g in grads_out if g is not None),
                dtype=bad[0].dtype,
                is_of_dead_branch=number in watch.unsound,
            )
        )

    if loss.grad_fn is None:
        return None  # nothing in it is trained
    handles = _watch_nodes(loss, judge)
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except _Found as found:
        return found.finding
    finally:
        for handle in handles:
            handle.remove()
    return None


def trace_operations(run: Callable[[], Any]) -> FailedOperation | None:
    """The first operation of any code that makes a non-finite number.

    Parameters
    ----------
    run : callable
        Without arguments, such as an optimizer's ``step``.

    Returns
    -------
    FailedOperation or None
    """
    watch = _OperationWatch(-1, (), sys._getframe(), {})
    with watch:
        run()
    return watch.first()
