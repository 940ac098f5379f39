"""State of a training between two epochs, as tensors and plain Python objects."""

from __future__ import annotations

import copy
import inspect
import random
import zlib
from collections import deque
from typing import Any

import numpy as np
import torch
from skorch.callbacks import EarlyStopping, LRScheduler, PassthroughScoring
from skorch.history import History
from torch import Tensor, nn

from sknan._utils.archive import MAPPINGS, SEQUENCES, require_like, shape_in_words
from sknan._utils.outside import is_of_signal, unless
from sknan._utils.pickling import complete_copy
from sknan._utils.random_state import random_states
from sknan._utils.tree import tree_leaves
from sknan.diagnosis._values import are_all_finite
from sknan.nets._batching import TensorTable
from sknan.nets._curves import NET_ENTRIES
from sknan.nets.guard._snapshots import Snapshot

# Parameters that may differ in a resumed training.
_FREE = ("callbacks", "device", "max_epochs", "verbose", "warm_start")

# Packages whose code changes options of an optimizer only by a scheduler of torch.
_PACKAGES = ("sknan.", "skorch.", "torch.optim.")

# Options that schedulers of torch change after their creation.
_SCHEDULED = ("lr", "momentum", "betas")

# State of skorch callbacks that is not in the history.
_CALLBACK_STATE: dict[type, tuple[str, ...]] = {
    EarlyStopping: (
        "misses_",
        "dynamic_threshold_",
        "best_epoch_",
        "best_model_weights_",
    ),
    PassthroughScoring: ("best_score_",),
}


def plain(value: Any, name: str) -> Any:
    """Return a copy of ``value`` that a weights-only archive can contain.

    It may have tensors, numbers and strings in nested tuples, lists and dicts.

    Raises
    ------
    TypeError
        If it contains an object of another type.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return plain(value.item(), name)
    if type(value) in SEQUENCES:
        items = [plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
        return type(value)(items)
    if type(value) in MAPPINGS:
        found = {key: plain(item, f"{name}[{key!r}]") for key, item in value.items()}
        return type(value)(found)
    raise TypeError(
        f"{name} is of type {type(value).__name__}, which a backup cannot contain. A "
        "backup consists of tensors, numbers and strings, so that no code runs when it "
        "is read. Use one of these types."
    )


def _schedulers_of(net: Any) -> list[LRScheduler]:
    return [c for _, c in net.callbacks_ if isinstance(c, LRScheduler)]


def _state_after_a_step(net: Any, optimizer: Any) -> Any:
    """Return a state in which all that a step creates has its type and shape."""
    twin = copy.deepcopy(optimizer)
    complete_copy(twin)

    def loss() -> float:
        parameters = [p for group in twin.param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.grad = parameter.detach() + 1
        return float(sum(p.grad.norm() for p in parameters))

    try:
        loss()
        twin.step(loss)
    except unless(is_of_signal, Exception):  # it needs gradients of another kind
        pass
    if optimizer is net.optimizer_:
        for callback in _schedulers_of(net):  # which add options
            callback.policy_(twin, **callback.kwargs)
    return twin.state_dict()


def _refuse_other_options(net: Any, states: Any, expected: Any) -> None:
    """Refuse options of optimizers that this training does not reach.

    Code of the user's own may change any number.
    """
    schedulers = _schedulers_of(net)
    parts = [net, *net._all_optimizers(), *(c for _, c in net.callbacks_)]
    kinds = [*map(type, parts), *(c.policy_ for c in schedulers)]
    is_plain = all(kind.__module__.startswith(_PACKAGES) for kind in kinds)
    changing = _SCHEDULED if schedulers else ()
    was, now = (
        [
            {
                k: v
                for k, v in group.items()
                if k == "params" or type(v) is bool or (is_plain and k not in changing)
            }
            for state in part
            for group in state["param_groups"]
        ]
        for part in (states, expected)
    )
    keys = [
        (part["state"].keys(), e["state"].keys())
        for part, e in zip(states, expected, strict=True)
    ]
    if was != now or any(blank and not found <= blank for found, blank in keys):
        raise ValueError("the optimizers have other parameters or options")


def _refuse_other_rates(net: Any, states: Any) -> None:
    """Refuse learning rates that the schedulers of torch have not set."""
    schedulers = [c.lr_scheduler_ for c in _schedulers_of(net)]
    parts = [*schedulers, *(c for _, c in net.callbacks_)]
    if schedulers and all(type(p).__module__.startswith(_PACKAGES) for p in parts):
        rates = [group["lr"] for group in states[0]["param_groups"]]
        if all(rates != scheduler.get_last_lr() for scheduler in schedulers):
            raise ValueError("the learning rates are not those of the scheduler")


# -- identity of a training ----------------------------------------------------------


def _as_text(value: Any) -> str:
    """Return a parameter as text that is the same in every process."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_as_text, value))})"
    if isinstance(value, dict):
        items = (f"{key!r}: {_as_text(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    named = value if hasattr(value, "__qualname__") else type(value)
    return str(named.__qualname__)


def settings_of(net: Any) -> dict[str, str]:
    """Return the parameters of a net as text, without those that may change.

    A net of an estimator may have other parameters in a dict ``estimator_params_``.
    """
    given = {**net.get_params(deep=False), **getattr(net, "estimator_params_", {})}
    return {
        name: _as_text(value)
        for name, value in given.items()
        if name.partition("__")[0] not in _FREE and not name.startswith("_")
    }


def data_of(batches: Any) -> dict[str, Any]:
    """Return the numbers of rows and batches, and a checksum of a whole table.

    Unknown values are None.
    """
    dataset = getattr(batches, "dataset", None)
    checksum = None
    if isinstance(dataset, TensorTable):
        checksum = 0
        for leaf in tree_leaves((dataset.X, dataset.y)):
            flat = leaf.detach().cpu().contiguous().flatten()
            checksum = zlib.crc32(flat.view(torch.uint8).numpy().data, checksum)
    rows, n_batches = _length(dataset), _length(batches)
    return {"rows": rows, "batches": n_batches, "checksum": checksum}


def other_data(was: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Describe how the data of a backup differ from others; see :func:`difference`."""
    for name in ("rows", "batches"):
        if was[name] != now[name]:
            return (
                f"is of a training on {was[name]} {name}, but this training has "
                f"{now[name]}"
            )
    is_same = was["checksum"] == now["checksum"]
    return None if is_same else "is of a training on other data of the same shape"


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except TypeError:  # an iterable dataset has no length
        return None


def _modules_of(net: Any) -> dict[str, nn.Module]:
    parts = {n: getattr(net, f"{n}_") for n in [*net._modules, *net._criteria]}
    return {n: part for n, part in parts.items() if isinstance(part, nn.Module)}


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return weights and buffers, including those that ``state_dict`` omits."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def difference(net: Any, state: dict[str, Any]) -> str | None:
    """Describe the first difference between a backup and a net, if there is one.

    The text is the predicate of a sentence that starts with "The backup".
    """
    for name, module in _modules_of(net).items():
        saved, current = state["modules"].get(name, {}), _tensors_of(module)
        for key in [*current, *saved]:
            if key not in saved:
                return f"does not contain the tensor {key!r} of {name}_"
            if key not in current:
                return (
                    f"contains a tensor {key!r} of {name}_, which this net does not "
                    "have"
                )
            if shape_in_words(saved[key]) != shape_in_words(current[key]):
                return (
                    f"contains a tensor {key!r} of {name}_ of shape "
                    f"{shape_in_words(saved[key])}, but this net has one of shape "
                    f"{shape_in_words(current[key])}"
                )
    settings = state["settings"], settings_of(net)
    for name in sorted({*settings[0], *settings[1]}):
        was, now = (texts.get(name, "not given") for texts in settings)
        if was != now:
            return f"is of a net with {name}={was}, but this net has {name}={now}"
    return None


# -- random states -------------------------------------------------------------------


def random_states_of(net: Any) -> dict[str, Any]:
    """Return the states of all random generators that a training may use."""
    cpu, gpu = random_states(net.device or "cpu")
    state: Any = np.random.get_state()  # noqa: NPY002
    name, keys, *rest = state
    numpy_state = [name, torch.from_numpy(keys.astype(np.int64)), *rest]
    return {"cpu": cpu, "gpu": gpu, "numpy": numpy_state, "python": random.getstate()}


def put_random_states(net: Any, states: dict[str, Any]) -> None:
    """Restore the states that :func:`random_states_of` returned."""
    torch.set_rng_state(states["cpu"])
    if states["gpu"] is not None and torch.device(net.device).type == "cuda":
        torch.cuda.set_rng_state(states["gpu"].cpu(), net.device)
    if not isinstance(states["numpy"], list):  # a tensor would be split into its items
        raise ValueError("the state of numpy's generator is no list")
    name, keys, *rest = states["numpy"]
    if not 0 <= rest[0] <= len(keys):  # numpy would read other memory
        raise ValueError(f"the position {rest[0]} of numpy's generator is invalid")
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(states["python"])


# -- state of a training -------------------------------------------------------------


def clipper_state(clipper: Any) -> dict[str, Any]:
    """Return the attributes of an adaptive clipper, with lists for deques."""
    return {
        name: list(value) if isinstance(value, deque) else value
        for name, value in getattr(clipper, "__dict__", {}).items()
    }


def put_clipper_state(clipper: Any, state: dict[str, Any]) -> None:
    """Restore the attributes that :func:`clipper_state` returned."""
    for name, value in state.items():
        was = getattr(clipper, name, None)
        value = deque(value, was.maxlen) if isinstance(was, deque) else value
        setattr(clipper, name, value)


def _state_of_callback(callback: Any) -> dict[str, Any] | None:
    for kind, names in _CALLBACK_STATE.items():
        if isinstance(callback, kind):
            return {name: getattr(callback, name) for name in names}
    if isinstance(callback, LRScheduler):
        return dict(callback.lr_scheduler_.state_dict())
    return callback.state_dict() if hasattr(callback, "state_dict") else None


def _refuse_other(part: Any, found: Any, current: Any, name: str) -> None:
    """Refuse a state that a part of sknan, skorch or torch cannot reach from here.

    What its constructor was given does not change.
    """
    if not type(part).__module__.startswith(_PACKAGES):
        return
    current = plain(current, name)
    require_like(found, current, name)
    fixed = {"base_lrs", *inspect.signature(type(part)).parameters} - {"last_epoch"}
    for key in found.keys() & fixed | found.keys() ^ current.keys():
        if key not in current or found[key] != current[key]:
            raise ValueError(f"{name}[{key!r}] is not of this training")


def _put_callback(callback: Any, state: dict[str, Any], name: str) -> None:
    part = callback.lr_scheduler_ if isinstance(callback, LRScheduler) else callback
    _refuse_other(part, state, _state_of_callback(callback), name)
    if isinstance(callback, tuple(_CALLBACK_STATE)):
        vars(callback).update(state)
    else:
        part.load_state_dict(state)


def _batches_if_plain(training: dict[str, Any]) -> dict[str, Any]:
    """Return the state without recent batches if these are not plain objects.

    Recent batches are used only to test learning rates.
    """
    try:
        batches = plain(training["latest_batches"], "")
    except TypeError:
        batches = []
    return {**training, "latest_batches": batches}


def state_of(net: Any) -> dict[str, Any]:
    """Return the state of a training at the beginning of an epoch, as plain objects.

    The history already has a row for the epoch.

    Raises
    ------
    TypeError
        If a part of the state is not plain.
    """
    training = net._training_
    generator = getattr(training.batches, "generator", None)
    callbacks = {name: _state_of_callback(c) for name, c in net.callbacks_}
    modules = _modules_of(net)
    parts = {
        "settings": settings_of(net),
        "history": net.history.to_list()[:-1],
        "modules": {name: _tensors_of(module) for name, module in modules.items()},
        "frozen": {
            name: [key for key, p in module.named_parameters() if not p.requires_grad]
            for name, module in modules.items()
        },
        "optimizers": [optimizer.state_dict() for optimizer in net._all_optimizers()],
        "schedule": net.schedule_.state_dict(),
        "adaptive_clip": clipper_state(net.adaptive_clip_),
        "training": _batches_if_plain(training.state_dict()),
        "callbacks": {n: state for n, state in callbacks.items() if state is not None},
        "random_states": random_states_of(net),
        "generator": generator.get_state() if generator is not None else None,
        "split_seed": getattr(net, "_split_seed_", None),
        "average": net._average_ and dict(net._average_.state.state_dict()),
    }
    return {name: plain(part, name) for name, part in parts.items()}


def put_net(net: Any, state: dict[str, Any]) -> None:
    """Restore weights, optimizers and history, before any callback reads them."""
    optimizers = [_state_after_a_step(net, o) for o in net._all_optimizers()]
    expected = plain(optimizers, "optimizers")
    require_like(state["optimizers"], expected, "optimizers")
    _refuse_other_options(net, state["optimizers"], expected)
    require_like(state["history"], [{"epoch": 1, "batches": [{}]}], "history")
    for i, row in enumerate(state["history"]):
        for part in (row, *row["batches"]):
            numbers = dict.fromkeys(NET_ENTRIES & part.keys(), 0.0)
            flags = {f"{name}_best" for name in numbers} & part.keys()
            kinds = {**numbers, **dict.fromkeys(flags, True)}
            require_like(part, kinds, f"history[{i}]")
    present = Snapshot(net._all_modules())
    with torch.no_grad():
        for name, module in _modules_of(net).items():
            for key, tensor in _tensors_of(module).items():
                tensor.copy_(state["modules"][name][key])
            for key, parameter in module.named_parameters():
                parameter.requires_grad_(key not in state["frozen"][name])
    averages = (state["average"] or {}).values()
    if not (present.is_live_finite() and are_all_finite(averages)):
        raise ValueError("the weights are not finite")
    if state["average"] is not None:
        net._prepare_average()
        net._average_.state.load_state_dict(state["average"])
    _put_optimizers(net, state)
    net.history_ = History(state["history"])
    seed = net._split_seed_ = state["split_seed"]
    if seed is not None and not 0 <= seed < 2**32:
        raise ValueError(f"the seed {seed} of the split is invalid")


def _put_optimizers(net: Any, state: dict[str, Any]) -> None:
    for optimizer, kept in zip(net._all_optimizers(), state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)


def begin_epoch_as(net: Any, state: dict[str, Any]) -> None:
    """Restore the state of callbacks and the random states."""
    for name, callback in net.callbacks_:
        if name in state["callbacks"]:
            _put_callback(callback, state["callbacks"][name], name)
    _refuse_other_rates(net, state["optimizers"])
    # A learning-rate scheduler of skorch has changed the optimizers.
    _put_optimizers(net, state)
    put_random_states(net, state["random_states"])


def put_training(net: Any, state: dict[str, Any]) -> None:
    """Restore guard, clipping and schedule of a training that has just begun."""
    # Only a callback knows which states it may have.
    require_like(state, {**state_of(net), "callbacks": {}}, "state")
    training, n_batches = net._training_, state["data"]["batches"]
    training.load_state_dict(state["training"])
    if n_batches and not 0 <= training.n_steps <= state["n_epochs"] * n_batches:
        raise ValueError(
            f"{training.n_steps} steps are not of {state['n_epochs']} epochs"
        )
    net.schedule_.load_state_dict(state["schedule"])
    clipper, kept = net.adaptive_clip_, state["adaptive_clip"]
    if clipper is not None:
        current = {
            name: value or [0.0] if type(value) is list else value
            for name, value in clipper_state(clipper).items()
        }
        _refuse_other(clipper, kept, current, "adaptive_clip")
        put_clipper_state(clipper, kept)
    if state["generator"] is not None:
        training.batches.generator.set_state(state["generator"])
