"""Fitted attributes as one text, one array, and objects that are neither.

A pickle of a module calls functions of torch, and formats that run no code, such as
skops, know neither tensors nor the objects of pandas. The encoded form of a module has
the name of its class, its attributes and its weights. Classes of torch and sknan are
encoded by name. Other classes are kept, so that a reader decides whether to trust them.
"""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import date, datetime, tzinfo
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sknan._utils.trusted_types import TRUSTED_TYPES

# Classes and functions that are encoded by name. None of them acts beyond its inputs.
_CLASSES = ("torch.nn.modules.", "torch.nn.utils.", "torch.optim.", "sknan.")
_FUNCTIONS = ("torch.nn.functional.", "sknan.functional.")

# Whether an object is being encoded, whose parts are then encoded with it.
_is_encoding: ContextVar[bool] = ContextVar("is_encoding", default=False)

_CONTAINERS = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
_MAPPINGS = {kind.__name__: kind for kind in (dict, OrderedDict)}

# Attributes of a module that has no content.
_BLANK = vars(nn.Module())


class Encoded:
    """Encoded object, which :func:`decode` restores.

    Parameters
    ----------
    text : str
        Description of the object, in JSON.
    data : ndarray of uint8
        Bytes of all arrays and tensors.
    others : list
        Objects that are kept as they are.
    """

    def __init__(self, text: str, data: np.ndarray, others: list[Any]) -> None:
        self.text = text
        self.data = data
        self.others = others


def encode(value: Any) -> Encoded:
    """Return the encoded form of a value, which does not change.

    Parameters
    ----------
    value : object
        Numbers, strings, arrays, tensors, modules, and nested containers of them.
        Objects of other classes are kept.

    Returns
    -------
    Encoded
    """
    encoder = _Encoder()
    token = _is_encoding.set(True)
    try:
        root = encoder.described(value)
    finally:
        _is_encoding.reset(token)
    text = json.dumps([root, encoder.objects], separators=(",", ":"))
    data = np.concatenate([np.zeros(0, np.uint8), *encoder.parts])
    return Encoded(text, data, encoder.others)


def decode(encoded: Encoded) -> Any:
    """Return the value that :func:`encode` has encoded, with arrays of its own.

    Parameters
    ----------
    encoded : Encoded
        Encoded value.

    Returns
    -------
    object

    Raises
    ------
    ValueError
        If it names a class that :func:`encode` does not encode by name.
    """
    root, objects = json.loads(encoded.text)
    return _Decoder(encoded, objects).restored(root)


class _Encoder:
    """Description of one value, and the bytes and objects that it refers to."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.objects: list[Any] = []
        self.others: list[Any] = []
        self._end = 0
        self._known: dict[int, Any] = {}

    def described(self, value: Any) -> Any:
        """Return a value as an object of JSON, in which lists begin with a tag."""
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind.__name__ in _CONTAINERS and kind in _CONTAINERS.values():
            items: Iterable[Any] = value
            if kind in (set, frozenset):  # whose order differs between processes
                items = sorted(value, key=repr)
            return [kind.__name__, *map(self.described, items)]
        if kind in _MAPPINGS.values():
            pairs = [[self.described(k), self.described(v)] for k, v in value.items()]
            return [kind.__name__, *pairs]
        if _is_named(value):
            return ["name", _name_of(value)]
        if isinstance(value, torch.dtype):
            return ["torch.dtype", str(value).removeprefix("torch.")]
        if isinstance(value, np.dtype) and value.kind in "biufcUSOmM":
            return ["dtype", value.str]
        if id(value) not in self._known:
            # The value is kept, because another object could get its id.
            self._known[id(value)] = (self._of_object(value), value)
        return self._known[id(value)][0]

    def _of_object(self, value: Any) -> Any:
        found = None
        if isinstance(value, nn.Module) or _is_restorable(type(value)):
            found = self._of_attributes(value)
        elif isinstance(value, Tensor):
            found = self._of_tensor(value)
        elif type(value) is np.ndarray or isinstance(value, np.generic):
            found = self._of_array(value)
        elif isinstance(value, (pd.Index, pd.api.extensions.ExtensionDtype)):
            found = self._of_pandas(value)
        elif isinstance(value, Fraction):
            found = ["fraction", str(value)]
        elif isinstance(value, tzinfo):
            found = self._of_zone(value)
        elif type(value) is pd.Timestamp or type(value) is pd.Timedelta:
            zone = self.described(getattr(value, "tz", None))
            found = ["moment", self.described(value.asm8), zone]
        elif type(value) in (date, datetime) and getattr(value, "tzinfo", None) is None:
            found = ["date", value.isoformat()]
        if found is not None:
            return found
        self.others.append(value)
        return ["other", len(self.others) - 1]

    def _of_array(self, value: Any) -> Any:
        array = np.asarray(value)
        if array.dtype.kind == "O":
            items = map(self.described, array.ravel().tolist())
            return ["objects", list(array.shape), *items]
        if array.dtype.kind not in "biufcUSmM":
            return None
        order = "F" if array.flags.f_contiguous and array.ndim > 1 else "C"
        if isinstance(value, np.generic):
            order = "scalar"
        flat = array.ravel("F" if order == "F" else "C")
        place = self._put(flat.view(np.uint8) if flat.size else flat)
        return ["array", array.dtype.str, list(array.shape), place, order]

    def _of_tensor(self, tensor: Tensor) -> Any:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            return None
        # Kept, because kernels for another order of the dimensions round differently.
        strides = tensor.stride()
        order = sorted(range(tensor.ndim), key=lambda i: -strides[i])
        values = tensor.detach().cpu().resolve_conj().resolve_neg()
        flat = values.permute(order).flatten()
        place = self._put(flat.view(torch.uint8).numpy())
        dtype = str(tensor.dtype).removeprefix("torch.")
        is_parameter = isinstance(tensor, nn.Parameter)
        grad = tensor.requires_grad if is_parameter else None
        return ["tensor", dtype, list(tensor.shape), place, grad, order]

    def _put(self, values: np.ndarray) -> int:
        """Append bytes, and return the place of the first one."""
        place = self._end
        self.parts.append(values)
        self._end += values.nbytes
        return place

    def _of_pandas(self, value: Any) -> Any:
        if isinstance(value, pd.CategoricalDtype):
            if value.categories is None:
                return None
            return ["categories", self.described(value.categories), bool(value.ordered)]
        if isinstance(value, pd.Index):
            if type(value) is not pd.Index or not _is_exact(value.dtype):
                return None
            cells = np.asarray(value, dtype=object)
            name = self.described(value.name)
            return ["index", self.described(cells), str(value.dtype), name]
        return ["pandas.dtype", str(value)] if _is_exact(value) else None

    def _of_zone(self, zone: tzinfo) -> Any:
        dtype = pd.DatetimeTZDtype(tz=zone)
        return ["zone", str(dtype)] if _is_exact(dtype) else None

    def _of_attributes(self, value: Any) -> Any:
        """Return the class of an object and its attributes, without calling code."""
        kind: type = type(value)
        if isinstance(value, nn.Module) and parametrize.is_parametrized(value):
            kind = parametrize.type_before_parametrizations(value)
            # A local hook of weight norm only converts the state of its former form.
            state: Any = {**vars(value), "_load_state_dict_pre_hooks": OrderedDict()}
        else:
            reduced = value.__reduce_ex__(2)
            if isinstance(reduced, str) or reduced[1] != (kind,) or any(reduced[3:]):
                return None  # items of a container are no attributes
            state = reduced[2]
        if not isinstance(state, dict):
            return None
        if isinstance(value, nn.Module):
            state = {
                k: v for k, v in state.items() if k not in _BLANK or v != _BLANK[k]
            }
        number = len(self.objects)
        self.objects.append(None)
        # An object may contain itself.
        self._known[id(value)] = (["object", number], value)
        self.objects[number] = [self.described(kind), self.described(state)]
        return ["object", number]


def _pandas_dtype(name: str) -> Any:
    return pd.api.types.pandas_dtype(name)


def _is_exact(dtype: Any) -> bool:
    """Whether the name of a dtype of pandas is enough to restore it."""
    try:
        return bool(_pandas_dtype(str(dtype)) == dtype)
    except TypeError:
        return False


def _name_of(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _is_named(value: Any) -> bool:
    """Whether a value is a class or function that is encoded by name."""
    if "." in getattr(value, "__qualname__", ".") or not callable(value):
        return False
    name = _name_of(value)
    if name in TRUSTED_TYPES:
        return True
    if isinstance(value, type):
        return name.startswith(_CLASSES) or _is_restorable(value)
    return name.startswith(_FUNCTIONS)


def _is_restorable(kind: type) -> bool:
    """Whether objects of a class are restored from their attributes.

    As in skops, estimators of scikit-learn are; modules of any class are, too.
    """
    is_estimator = issubclass(kind, BaseEstimator)
    is_known = is_estimator and kind.__module__.startswith("sklearn.")
    return is_known or _name_of(kind) in TRUSTED_TYPES


class _Decoder:
    """Restoration of one value from its description."""

    def __init__(self, encoded: Encoded, objects: list[Any]) -> None:
        self._data = np.asarray(encoded.data, dtype=np.uint8)
        self._others = encoded.others
        self._objects = objects
        self._unread = len(self._data)
        self._arrays: dict[Any, Any] = {}
        self._restored: dict[int, Any] = {}

    def restored(self, found: Any) -> Any:
        """Return the value of a description."""
        if not isinstance(found, list):
            return found
        tag, *rest = found
        if tag in _CONTAINERS:
            return _CONTAINERS[tag](map(self.restored, rest))
        if tag in _MAPPINGS:
            pairs = ((self.restored(k), self.restored(v)) for k, v in rest)
            return _MAPPINGS[tag](pairs)
        return getattr(self, f"_from_{tag.replace('.', '_')}")(*rest)

    def _from_name(self, name: str) -> Any:
        module, _, attribute = name.rpartition(".")
        value = None
        if name.startswith((*_CLASSES, *_FUNCTIONS, "sklearn.", "skrub.")):
            value = getattr(importlib.import_module(module), attribute)
        if not _is_named(value):
            raise ValueError(f"{name!r} is no known class or function.")
        return value

    def _from_torch_dtype(self, name: str) -> Any:
        return _torch_dtype(name)

    def _from_dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(name)

    def _from_pandas_dtype(self, name: str) -> Any:
        return _pandas_dtype(name)

    def _from_zone(self, name: str) -> Any:
        return _pandas_dtype(name).tz

    def _from_moment(self, instant: Any, zone: Any) -> Any:
        found = self.restored(instant)
        if found.dtype.kind == "m":
            return pd.Timedelta(found)
        moment = pd.Timestamp(found)  # in UTC, if it has a zone
        zone = self.restored(zone)
        return moment if zone is None else moment.tz_localize("UTC").tz_convert(zone)

    def _from_date(self, text: str) -> date:
        return (datetime if "T" in text else date).fromisoformat(text)

    def _from_fraction(self, text: str) -> Fraction:
        return Fraction(text)

    def _from_other(self, number: int) -> Any:
        return self._others[number]

    def _bytes(self, place: int, size: int) -> np.ndarray:
        # Each byte belongs to one array, so that copies are no larger than the data.
        self._unread -= size
        if place < 0 or place + size > len(self._data) or self._unread < 0:
            raise ValueError("The arrays are larger than the data.")
        return self._data[place : place + size].copy()

    def _from_objects(self, shape: list[int], *items: Any) -> np.ndarray:
        array = np.empty(len(items), dtype=object)
        for i, item in enumerate(items):
            array[i] = self.restored(item)
        return array.reshape(shape)

    def _from_array(self, dtype: str, shape: list[int], place: int, order: str) -> Any:
        kind, size = np.dtype(dtype), _product(shape)
        if size and place in self._arrays:
            return self._arrays[place]  # one that is used twice
        values = self._bytes(place, size * kind.itemsize)
        array: Any = values.view(kind) if size else np.zeros(0, kind)
        array = array.reshape(shape, order="F" if order == "F" else "C")
        if order == "scalar":
            array = array[()]
        if size:
            self._arrays[place] = array
        return array

    def _from_tensor(
        self,
        dtype: str,
        shape: list[int],
        place: int,
        grad: bool | None,
        order: list[int],
    ) -> Any:
        kind = _torch_dtype(dtype)
        size = _product(shape) * kind.itemsize
        if size and place in self._arrays:
            return self._arrays[place]  # one that is used twice
        if size:
            values = torch.from_numpy(self._bytes(place, size))
            stored = values.view(kind).reshape([shape[i] for i in order])
            tensor = stored.permute(sorted(order, key=order.__getitem__))
        else:
            tensor = torch.zeros(shape, dtype=kind)
        if grad is not None:
            tensor = nn.Parameter(tensor, grad)
        if size:
            self._arrays[place] = tensor
        return tensor

    def _from_index(self, cells: Any, dtype: str, name: Any) -> pd.Index:
        return pd.Index(self.restored(cells), dtype=dtype, name=self.restored(name))

    def _from_categories(self, categories: Any, ordered: bool) -> pd.CategoricalDtype:
        return pd.CategoricalDtype(self.restored(categories), ordered)

    def _from_object(self, number: int) -> Any:
        if number in self._restored:
            return self._restored[number]
        kind, state = self._objects[number]
        kind = self.restored(kind)
        is_module = isinstance(kind, type) and issubclass(kind, nn.Module)
        if not (is_module or _is_restorable(kind)):
            raise ValueError(f"{kind!r} is not restored from attributes.")
        found = self._restored[number] = kind.__new__(kind)
        if is_module:
            nn.Module.__init__(found)
        attributes = {**vars(found), **self.restored(state)}
        getattr(found, "__setstate__", vars(found).update)(attributes)
        if is_module and "parametrizations" in found._modules:
            parametrize._inject_new_class(found)
            for name in found._modules["parametrizations"]:
                parametrize._inject_property(found, name)
        return found


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype of torch.")
    return dtype


def _product(shape: list[int]) -> int:
    size = 1
    for n in shape:
        if n < 0:
            raise ValueError("A shape is negative.")
        size *= n
    return size


class EncodedStateMixin:
    """Mixin whose pickles contain the attributes of an object in encoded form."""

    def __getstate__(self) -> dict[str, Any]:
        # The state of an object without attributes is None.
        inherited: Any = super().__getstate__()
        state: dict[str, Any] = {**(inherited or {})}
        return state if _is_encoding.get() else {"_encoded": encode(state)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        restore = getattr(super(), "__setstate__", self.__dict__.update)
        restore(decode(state["_encoded"]) if "_encoded" in state else state)

    def __copy__(self) -> Any:
        copied = object.__new__(type(self))
        copied.__dict__.update(vars(self))
        return copied
