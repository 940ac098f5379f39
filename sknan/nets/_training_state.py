"""All that the rest of a training depends on, as tensors and plain Python objects."""

from __future__ import annotations

import random
import zlib
from collections import Counter, OrderedDict, deque
from typing import Any

import numpy as np
import torch
from skorch.callbacks import EarlyStopping, LRScheduler, PassthroughScoring
from skorch.history import History
from torch import Tensor, nn

from sknan._utils.random_state import random_states
from sknan._utils.tree import tree_leaves
from sknan.nets._batching import TensorTable

__all__ = [
    "begin_epoch_as",
    "data_of",
    "difference",
    "plain",
    "put_net",
    "put_random_states",
    "put_training",
    "random_states_of",
    "settings_of",
    "state_of",
]

# Settings that a resumed training may change.
_FREE = ("callbacks", "device", "max_epochs", "verbose", "warm_start")

# What callbacks of skorch know and do not read off the history.
_KNOWN: dict[type, tuple[str, ...]] = {
    EarlyStopping: (
        "misses_",
        "dynamic_threshold_",
        "best_epoch_",
        "best_model_weights_",
    ),
    PassthroughScoring: ("best_score_",),
}

# Containers that a weights-only archive gives back as what they were.
_SEQUENCES = (list, tuple)
_MAPPINGS = (dict, OrderedDict, Counter)


def plain(value: Any, where: str) -> Any:
    """A copy of ``value`` that a weights-only archive can hold.

    Parameters
    ----------
    value : object
        Tensors, numbers and strings, in nested tuples, lists and dicts.
    where : str
        What it is called in the message.

    Returns
    -------
    object

    Raises
    ------
    TypeError
        If there is anything else in it.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return plain(value.item(), where)
    if type(value) in _SEQUENCES:
        items = [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return type(value)(items)
    if type(value) in _MAPPINGS:
        found = {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
        return type(value)(found)
    raise TypeError(
        f"{where} is of type {type(value).__name__}, which a backup cannot hold: it "
        "consists of tensors, numbers and strings, so that no code runs when it is "
        "read. Keep it as one of these."
    )


# -- what a backup belongs to --------------------------------------------------------


def _as_text(value: Any) -> str:
    """A setting as text that is the same in every process."""
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
    """The parameters of a net by name, as text, but for those that are free to change.

    Parameters
    ----------
    net : skorch net

    Returns
    -------
    dict of str to str
    """
    return {
        name: _as_text(value)
        for name, value in net.get_params(deep=False).items()
        if name.partition("__")[0] not in _FREE and not name.startswith("_")
    }


def data_of(batches: Any) -> dict[str, Any]:
    """What is known of training data: rows, batches, and a checksum of whole tables.

    Parameters
    ----------
    batches : iterable of tuple
        Of the training.

    Returns
    -------
    dict of str to object
        None for what is not known.
    """
    dataset = getattr(batches, "dataset", None)
    checksum = None
    if isinstance(dataset, TensorTable):
        checksum = 0
        for leaf in tree_leaves((dataset.X, dataset.y)):
            flat = leaf.detach().cpu().contiguous().flatten()
            checksum = zlib.crc32(flat.view(torch.uint8).numpy().data, checksum)
    return {
        "rows": _length(dataset),
        "batches": _length(batches),
        "checksum": checksum,
    }


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except TypeError:  # as of an iterable data set
        return None


def _modules_of(net: Any) -> dict[str, nn.Module]:
    parts = {n: getattr(net, f"{n}_") for n in [*net._modules, *net._criteria]}
    return {n: part for n, part in parts.items() if isinstance(part, nn.Module)}


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers, those too that ``state_dict`` leaves out."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def difference(net: Any, state: dict[str, Any]) -> str | None:
    """Say in which way a backup is not of this net.

    Parameters
    ----------
    net : skorch net
        Initialized.
    state : dict
        That :func:`state_of` has made.

    Returns
    -------
    str or None
        To follow on "The backup ..."; None if it is.
    """
    for name, module in _modules_of(net).items():
        there, here = state["modules"].get(name, {}), _tensors_of(module)
        for key in [*here, *there]:
            if key not in there or key not in here:
                holds = "holds no" if key not in there else "holds a"
                return f"{holds} tensor {key!r} of {name}_"
            if _shape(there[key]) != _shape(here[key]):
                return (
                    f"holds a tensor {key!r} of {name}_ of shape {_shape(there[key])}, "
                    f"where this network has one of shape {_shape(here[key])}"
                )
    settings = state["settings"], settings_of(net)
    for name in sorted({*settings[0], *settings[1]}):
        was, now = (texts.get(name, "not given") for texts in settings)
        if was != now:
            return f"was made with {name}={was}, where this net has {name}={now}"
    return None


# -- random states -------------------------------------------------------------------


def random_states_of(net: Any) -> dict[str, Any]:
    """States of all generators that a training may draw from.

    Parameters
    ----------
    net : skorch net
        For its device.

    Returns
    -------
    dict
        Of torch, numpy and Python, plain.
    """
    cpu, gpu = random_states(net.device or "cpu")
    state: Any = np.random.get_state()  # noqa: NPY002
    name, keys, *rest = state
    numpy_state = [name, torch.from_numpy(keys.astype(np.int64)), *rest]
    return {"cpu": cpu, "gpu": gpu, "numpy": numpy_state, "python": random.getstate()}


def put_random_states(net: Any, states: dict[str, Any]) -> None:
    """Bring back what :func:`random_states_of` has found.

    Parameters
    ----------
    net : skorch net
        For its device.
    states : dict
    """
    torch.set_rng_state(states["cpu"])
    if states["gpu"] is not None and torch.device(net.device).type == "cuda":
        torch.cuda.set_rng_state(states["gpu"].cpu(), net.device)
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(states["python"])


# -- the whole -----------------------------------------------------------------------


def _state_of_clipper(clipper: Any) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, deque) else value
        for name, value in getattr(clipper, "__dict__", {}).items()
    }


def _put_clipper(clipper: Any, state: dict[str, Any]) -> None:
    for name, value in state.items():
        was = getattr(clipper, name, None)
        value = deque(value, was.maxlen) if isinstance(was, deque) else value
        setattr(clipper, name, value)


def _state_of_callback(callback: Any) -> dict[str, Any] | None:
    for kind, names in _KNOWN.items():
        if isinstance(callback, kind):
            return {name: getattr(callback, name) for name in names}
    if isinstance(callback, LRScheduler):
        return dict(callback.lr_scheduler_.state_dict())
    return callback.state_dict() if hasattr(callback, "state_dict") else None


def _put_callback(callback: Any, state: dict[str, Any]) -> None:
    if isinstance(callback, tuple(_KNOWN)):
        vars(callback).update(state)
    elif isinstance(callback, LRScheduler):
        callback.lr_scheduler_.load_state_dict(state)
    else:
        callback.load_state_dict(state)


def _batches_if_plain(training: dict[str, Any]) -> dict[str, Any]:
    """Without the latest batches, which serve only to try rates, if they are not."""
    try:
        batches = plain(training["latest_batches"], "")
    except TypeError:
        batches = []
    return {**training, "latest_batches": batches}


def state_of(net: Any) -> dict[str, Any]:
    """Everything that the rest of a training depends on, at the beginning of an epoch.

    Parameters
    ----------
    net : skorch net with GuardMixin
        In training; the epoch at hand has been opened in the history.

    Returns
    -------
    dict
        Plain.

    Raises
    ------
    TypeError
        If some of it cannot be kept.
    """
    training = net._training_
    generator = getattr(training.batches, "generator", None)
    callbacks = {
        name: _state_of_callback(callback) for name, callback in net.callbacks_
    }
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
        "adaptive_clip": _state_of_clipper(net.adaptive_clip_),
        "training": _batches_if_plain(training.state_dict()),
        "callbacks": {n: state for n, state in callbacks.items() if state is not None},
        "random_states": random_states_of(net),
        "generator": generator.get_state() if generator is not None else None,
        "split_seed": getattr(net, "_split_seed_", None),
    }
    return {name: plain(part, name) for name, part in parts.items()}


def put_net(net: Any, state: dict[str, Any]) -> None:
    """Bring back weights, optimizers and history, before any callback looks at them.

    Parameters
    ----------
    net : skorch net with GuardMixin
        Initialized, and not different.
    state : dict
        That :func:`state_of` has made.
    """
    with torch.no_grad():
        for name, module in _modules_of(net).items():
            for key, tensor in _tensors_of(module).items():
                tensor.copy_(state["modules"][name][key])
            for key, parameter in module.named_parameters():
                parameter.requires_grad_(key not in state["frozen"][name])
    _put_optimizers(net, state)
    net.history_ = History(state["history"])
    net._split_seed_ = state["split_seed"]


def _put_optimizers(net: Any, state: dict[str, Any]) -> None:
    for optimizer, kept in zip(net._all_optimizers(), state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)


def begin_epoch_as(net: Any, state: dict[str, Any]) -> None:
    """Bring back what callbacks have made anew, and the random states.

    Parameters
    ----------
    net : skorch net with GuardMixin
        At the place in the epoch where :func:`state_of` stood.
    state : dict
        That it has made.
    """
    # A scheduler of rates has set them at its beginning.
    _put_optimizers(net, state)
    for name, callback in net.callbacks_:
        if name in state["callbacks"]:
            _put_callback(callback, state["callbacks"][name])
    put_random_states(net, state["random_states"])


def put_training(net: Any, state: dict[str, Any]) -> None:
    """Bring back what watches, clips and schedules.

    Parameters
    ----------
    net : skorch net with GuardMixin
        Whose training has just begun.
    state : dict
        That :func:`state_of` has made.
    """
    training = net._training_
    training.load_state_dict(state["training"])
    net.schedule_.load_state_dict(state["schedule"])
    if net.adaptive_clip_ is not None:
        _put_clipper(net.adaptive_clip_, state["adaptive_clip"])
    if state["generator"] is not None:
        training.batches.generator.set_state(state["generator"])
