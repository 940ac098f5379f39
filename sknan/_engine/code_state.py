"""State that the code of a module can read and change: attributes, globals, closures.

The operations of a step are recorded once. If Python code would do something else in a
later step, because it counts its calls or draws numbers of its own, the recorded
operations would not show it.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from sknan._utils.outside import is_of_signal, unless
from sknan.nets._dropout import is_dropout

# Packages whose functions and classes are taken as constant.
_LIBRARIES = {"numpy", "sklearn", "skorch", "sknan", "torch", *sys.stdlib_module_names}

# Attributes of every module that do not tell what it computes: its mode, and its
# registered weights, buffers and parts.
_MODULE_STATE = frozenset(k for k in vars(nn.Module()) if not k.endswith("hooks"))

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_CONSTANT = (types.BuiltinFunctionType, nn.Parameter)

# Code that can read more values than this is not compared.
_MOST_VALUES = 10_000


def code_state(*roots: object) -> tuple[Hashable, ...]:
    """Return all values that the code of objects can read, in a form to compare.

    Weights and buffers of modules are left out. What cannot be compared, such as an
    iterator, is represented by an object that is equal to no other.

    Parameters
    ----------
    *roots : object
        Modules, or objects that hold modules or functions.

    Returns
    -------
    tuple of hashable
    """
    found: list[Hashable] = []
    seen: dict[int, tuple[int, object]] = {}
    pending: list[Any] = list(roots)
    while pending:
        value = pending.pop()
        if len(seen) > _MOST_VALUES:
            return (object(),)
        if isinstance(value, _PLAIN):
            found.append((type(value), repr(value)))
        elif id(value) in seen:
            found.append(seen[id(value)][0])
        else:
            # The object is kept so that no other gets its identity.
            seen[id(value)] = len(seen), value
            key, values = _contents(value)
            found.append(key)
            pending += values
    return tuple(found)


def _contents(value: Any) -> tuple[Any, Iterable[Any]]:
    """Return a key of an object, and the objects that it holds or its code names."""
    if isinstance(value, (types.FunctionType, type)) and _is_of_library(value):
        return id(value), ()
    if isinstance(value, (*_CONSTANT, types.ModuleType)):
        return id(value), ()
    if isinstance(value, nn.Module):
        own = {k: v for k, v in vars(value).items() if k not in _MODULE_STATE}
        if is_dropout(value):  # each member has its own probability
            own["p"] = value.p > 0.0
        return type(value), (type(value), own, dict(value._modules))
    if isinstance(value, types.FunctionType):
        closure = [_content_of(cell) for cell in value.__closure__ or ()]
        held = (closure, value.__defaults__, value.__kwdefaults__, vars(value))
        return id(value), (_globals_of(value.__code__, value.__globals__), *held)
    if isinstance(value, type):
        own = {k: v for k, v in vars(value).items() if not _is_special(k, v)}
        return id(value), (own, *value.__bases__)
    if isinstance(value, (staticmethod, classmethod)):
        return type(value), (value.__func__,)
    if isinstance(value, property):
        return type(value), (value.fget, value.fset)
    if isinstance(value, Mapping):
        return (type(value), len(value)), (*value.keys(), *value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return (type(value), len(value)), value
    return _contents_of_instance(value)


def _contents_of_instance(value: Any) -> tuple[Any, Iterable[Any]]:
    if isinstance(value, Iterator):
        return object(), ()
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu().numpy()
        if isinstance(value, np.ndarray):
            return (value.dtype.str, value.shape, value.tobytes()), ()
        reduced = value.__reduce_ex__(2)
    except unless(is_of_signal, Exception):  # cannot be copied, such as a lock
        return (id(value) if _is_of_library(type(value)) else object()), ()
    if isinstance(reduced, str):
        return reduced, ()
    parts = (list(p) if isinstance(p, Iterator) else p for p in reduced)
    return type(value), (type(value), *parts)


def _is_of_library(value: Any) -> bool:
    is_module = isinstance(value, types.ModuleType)
    return (
        str(value.__name__ if is_module else value.__module__).partition(".")[0]
        in _LIBRARIES
    )


def _is_special(name: str, value: object) -> bool:
    """Whether Python itself sets an attribute of a class."""
    is_special = name.startswith(("__", "_abc_"))
    return is_special and not isinstance(value, types.FunctionType)


def _content_of(cell: Any) -> Any:
    with contextlib.suppress(ValueError):  # an empty cell
        return cell.cell_contents


def _globals_of(code: types.CodeType, namespace: Mapping[str, Any]) -> list[Any]:
    """Return the globals that code names, and the attributes of modules that it names.

    This includes the code of functions that are defined within.
    """
    found = [namespace[name] for name in code.co_names if name in namespace]
    for value in list(found):
        if isinstance(value, types.ModuleType) and not _is_of_library(value):
            found += [vars(value)[n] for n in code.co_names if n in vars(value)]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found += _globals_of(constant, namespace)
    return found
