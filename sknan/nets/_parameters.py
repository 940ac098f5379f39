"""Rules for the parameters of a net, which skorch passes on without a check.

A rule holds as long as no class of the user's own defines the method of skorch that
reads the parameter.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from sknan._utils.outside import is_of_environment, is_of_signal, unless
from sknan._utils.validation import (
    Rule,
    check_parameter,
    did_you_mean,
    is_flag,
    is_integer,
    is_number,
    is_one_of,
)
from sknan.nets._own_step import has_own_method


def is_callback(value: Any) -> bool:
    """Whether skorch accepts ``value``: an instance, a class, or a pair with a name."""
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2
    part = value[1] if is_pair and isinstance(value[0], str) else value
    return hasattr(part, "on_epoch_end")


def _is_nothing(value: Any) -> bool:
    """Whether skorch takes a value for none."""
    kinds = (bool, int, list, tuple, dict)
    return value is None or (isinstance(value, kinds) and not value)


def _are_callbacks(value: Any) -> bool:
    if not isinstance(value, list):
        return _is_nothing(value) or is_one_of(value, ("disable",))
    # skorch leaves out a callback that was replaced by None.
    known = (v for v in value if v is not None and not _names_nothing(v))
    return all(map(is_callback, known))


def _names_nothing(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and value[1] is None


def _is_flag(value: Any) -> bool:
    return value is None or is_flag(value) or is_integer(value)


def _is_rate(value: Any) -> bool:
    if isinstance(value, (torch.Tensor, np.ndarray)) and math.prod(value.shape) == 1:
        value = value.item()
    is_rate = isinstance(value, (float, np.floating)) or is_integer(value)
    return is_rate and 0.0 <= value < math.inf


def _is_batch_size(value: Any) -> bool:
    return value is None or (is_integer(value) and (value >= 1 or value == -1))


def _is_sized(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str)


_FLAG: Rule = _is_flag, "True or False"
_RATE: Rule = _is_rate, "a finite number of at least 0"
_BATCH_SIZE: Rule = (
    _is_batch_size,
    "an integer of at least 1, -1 for all rows, or None for a data set of batches",
)
_ITERATOR: Rule = callable, "a class, such as torch.utils.data.DataLoader"

# The method of skorch that reads a parameter, and the rule.
_RULES: dict[str, tuple[str, Rule]] = {
    "module": (
        "initialize_module",
        (callable, "a torch.nn.Module class or instance, or a function returning one"),
    ),
    "criterion": (
        "initialize_criterion",
        (callable, "a loss class or instance, or a function returning one"),
    ),
    "optimizer": (
        "initialize_optimizer",
        (callable, "a class such as torch.optim.Adam"),
    ),
    "lr": ("initialize", _RATE),
    "optimizer__lr": ("initialize_optimizer", _RATE),
    "max_epochs": (
        "fit_loop",
        (lambda v: is_integer(v) and v >= 0, "an integer of at least 0"),
    ),
    "iterator_train": ("get_iterator", _ITERATOR),
    "iterator_valid": ("get_iterator", _ITERATOR),
    "dataset": (
        "get_dataset",
        (lambda v: callable(v) or _is_sized(v), "a data set, or a class of data sets"),
    ),
    "train_split": (
        "get_split_datasets",
        (
            lambda v: callable(v) or _is_nothing(v),
            "a function of the data set, such as skorch.dataset.ValidSplit(5), or None",
        ),
    ),
    "callbacks": (
        "initialize_callbacks",
        (_are_callbacks, "a list of skorch callbacks, 'disable' or None"),
    ),
    "predict_nonlinearity": (
        "_get_predict_nonlinearity",
        (
            lambda v: v is None or callable(v) or is_one_of(v, ("auto",)),
            "a function, 'auto' or None",
        ),
    ),
    "classes": (
        "classes_",
        (lambda v: v is None or _is_sized(v), "a list of labels or None"),
    ),
    "threshold": ("predict", (is_number, "a number")),
    "warm_start": ("fit", _FLAG),
    "compile": ("torch_compile", _FLAG),
    "verbose": ("notify", (_is_flag, "an integer")),
    "use_caching": (
        "initialize",
        (
            lambda v: is_flag(v) or is_one_of(v, ("auto",)),
            "True, False or 'auto'",
        ),
    ),
    "torch_load_kwargs": (
        "load_params",
        (lambda v: v is None or isinstance(v, Mapping), "a dict or None"),
    ),
}
# Prefixes of parameters, and the method of skorch that passes them to a class.
_PARTS = {
    "module": "initialize_module",
    "criterion": "initialize_criterion",
    "optimizer": "initialize_optimizer",
    "iterator_train": "get_iterator",
    "iterator_valid": "get_iterator",
    "dataset": "get_dataset",
}


def check_net_parameters(net: Any) -> None:
    """Raise an error for the first parameter of a net that breaks its rule.

    Parameters
    ----------
    net : GuardMixin
        Net before its initialization or its training.

    Raises
    ------
    ValueError
        If a parameter is invalid. The message contains its name, rule and value.
    """
    owner = type(net).__name__
    for name, (reader, rule) in _RULES.items():
        if hasattr(net, name) and not has_own_method(type(net), reader):
            check_parameter(owner, name, getattr(net, name), rule)
    check_device(net.device, "None")
    for prefix, reader in _PARTS.items():
        if has_own_method(type(net), reader):
            continue
        part, given = getattr(net, prefix), net.get_params_for(prefix)
        if isinstance(part, torch.nn.Module):
            part = type(part)  # skorch makes a new one
        if prefix == "optimizer":
            given.pop("param_groups", None)
        if part is DataLoader:
            _check_loader(net, owner, prefix, given)
        if given:
            check_accepted(prefix, part, given, owner)
        if prefix == "optimizer":
            _refuse_nan(owner, given)
        is_new = part is getattr(net, prefix)  # and not an instance that is used itself
        if prefix in ("module", "criterion") and (given or is_new):
            check_complete(prefix, part, given, owner)


def _check_loader(net: Any, owner: str, prefix: str, given: dict[str, Any]) -> None:
    name = f"{prefix}__batch_size" if "batch_size" in given else "batch_size"
    check_parameter(owner, name, getattr(net, name), _BATCH_SIZE)
    for option in given.keys() & {"shuffle", "drop_last"}:
        check_parameter(owner, f"{prefix}__{option}", given[option], _FLAG)


def _refuse_nan(owner: str, options: dict[str, Any]) -> None:
    for name, value in options.items():
        rule = (lambda v: not (is_number(v) and math.isnan(v))), "a number"
        check_parameter(owner, f"optimizer__{name}", value, rule)


def check_device(device: Any, other: str, remedy: str = "") -> None:
    """Raise an error unless torch knows a device and this machine has it.

    Parameters
    ----------
    device : str, torch.device, int or None
        Device. None leaves the modules where they are.
    other : str
        Another value that the parameter may have, for the message.
    remedy : str, default=""
        Further remedy for a device that is missing, which continues a sentence.

    Raises
    ------
    ValueError
        If the device is unknown or missing.
    """
    if device is None:
        return
    try:
        known = torch.device(device)
    except unless(is_of_signal, RuntimeError, TypeError, ValueError):
        raise ValueError(
            f"device must be a torch device such as 'cpu' or 'cuda', or {other}, got "
            f"{device!r}."
        ) from None
    try:
        torch.empty(0, device=known)
    except unless(is_of_environment, Exception) as error:
        raise ValueError(
            f"device={device!r} is not available here. Use device='cpu'{remedy}."
        ) from error


# -- the parts of a net --------------------------------------------------------------


def name_of(component: Any) -> str:
    """Return the name of a component in messages.

    This is a string in quotes, the name of a class or function, or else the name of the
    class of the object.
    """
    if isinstance(component, str):
        return repr(component)
    return getattr(component, "__name__", None) or type(component).__name__


def _read_signature(factory: Any) -> tuple[inspect.Parameter, ...]:
    try:
        return tuple(inspect.signature(factory).parameters.values())
    except unless(is_of_signal, TypeError, ValueError):
        return (inspect.Parameter("any", inspect.Parameter.VAR_KEYWORD),)


# Reading a signature takes 0.1 ms, and a search does so for each candidate.
_cached_signature = functools.lru_cache(maxsize=64)(_read_signature)


def _parameters_of(factory: Any) -> tuple[inspect.Parameter, ...]:
    try:
        return _cached_signature(factory)
    except unless(is_of_signal, TypeError):  # the factory is not hashable
        return _read_signature(factory)


def accepted_by(factory: Any) -> tuple[str, ...] | None:
    """Return the names of the factory's parameters, or None if it accepts any name."""
    parameters = _parameters_of(factory)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters if p.kind is not p.VAR_POSITIONAL)


def check_accepted(
    prefix: str, factory: Any, given: dict[str, Any], owner: str
) -> None:
    """Refuse a prefixed parameter that the factory does not have."""
    accepted = accepted_by(factory)
    for name in given:
        if accepted is not None and name not in accepted:
            raise ValueError(
                f"{owner} got {prefix}__{name}, but {name_of(factory)} has no "
                f"parameter {name!r}.{did_you_mean(name, accepted)} It has: "
                f"{', '.join(repr(known) for known in accepted)}."
            )


def check_complete(
    prefix: str, factory: Any, given: dict[str, Any], owner: str
) -> None:
    """Refuse a factory whose parameters without a default are not all given."""
    for parameter in _parameters_of(factory):
        is_any = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        is_needed = not is_any and parameter.default is parameter.empty
        if is_needed and parameter.name not in given:
            name = name_of(factory)
            hint = ""
            if prefix == "criterion" and not isinstance(factory, type):
                hint = (
                    f" If {name} is the loss itself, pass a function that returns it."
                )
            raise ValueError(
                f"{owner} needs {prefix}__{parameter.name}, because {name} has no "
                f"default for its parameter {parameter.name!r}.{hint}"
            )


@contextlib.contextmanager
def noted_options(prefix: str, factory: Any, options: dict[str, Any]) -> Iterator[None]:
    """Add the options of a part to an error that its class raises."""
    try:
        yield
    except unless(is_of_environment, Exception) as error:
        if options:
            given = ", ".join(f"{prefix}__{k}={v!r}" for k, v in options.items())
            error.add_note(f"while creating {name_of(factory)} with {given}")
        raise


def optimizer_error(net: Any, error: Exception) -> ValueError:
    """Return an error that contains the options of an optimizer, and its own message.

    Parameters
    ----------
    net : GuardMixin
        Net whose optimizer could not be created.
    error : Exception
        Error of the optimizer.
    """
    options = {f"optimizer__{k}": v for k, v in net.get_params_for("optimizer").items()}
    if "optimizer__lr" not in options:
        options["lr"] = net.lr
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    reason = str(error).rstrip(".")
    return ValueError(
        f"The optimizer {name_of(net.optimizer)} refuses {given}: {reason}."
    )
