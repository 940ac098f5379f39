"""Methods of nets and callbacks that take part in a training step."""

from __future__ import annotations

from typing import Any

# Methods of callbacks that are called for each batch.
BATCH_METHODS = ("on_batch_begin", "on_batch_end", "on_grad_computed")

# Methods of a net that skorch calls in a training step.
_STEP_METHODS = ("notify", "infer", "get_loss", "train_step_single", *BATCH_METHODS)


def _is_known(owner: Any, method_name: str) -> bool:
    """Whether a method of a net or callback is defined in skorch or sknan."""
    method = getattr(owner, method_name, None)
    package = (getattr(method, "__module__", None) or "").partition(".")[0]
    return package in ("skorch", "sknan") and method_name not in vars(owner)


def runs_only_known_code(net: Any) -> bool:
    """Whether no user code runs in a step of a net, outside module and criterion.

    A user's method may do anything, for example freeze a layer in the middle of an
    epoch.

    Parameters
    ----------
    net : skorch net
        Initialized net.

    Returns
    -------
    bool
    """
    return all(_is_known(net, name) for name in _STEP_METHODS) and all(
        _is_known(callback, name)
        for _, callback in net.callbacks_
        for name in BATCH_METHODS
    )
