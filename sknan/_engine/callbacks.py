"""Callbacks of skorch that a stack can serve: those that see whole epochs."""

from __future__ import annotations

from typing import Any

from skorch.callbacks import (
    Callback,
    EpochScoring,
    InputShapeSetter,
    LoadInitState,
    MlflowLogger,
    NeptuneLogger,
    ParamMapper,
    SacredLogger,
    TensorBoard,
    WandbLogger,
)

from sknan.nets._backup import BackupAndRestore

_METHODS_OF_BATCHES = ("on_batch_begin", "on_batch_end", "on_grad_computed")

# Methods that do nothing. EpochScoring's collects outputs, which the net forbids.
_EMPTY_METHODS = {
    *(getattr(Callback, name) for name in _METHODS_OF_BATCHES),
    EpochScoring.on_batch_end,
    TensorBoard.on_batch_end,
}

# Loggers whose method does nothing unless it is asked for.
_LOGGERS = (MlflowLogger, NeptuneLogger, SacredLogger)

# Callbacks that change the net before or during the training, or watch gradients.
_USERS_OF_STEPS = (
    BackupAndRestore,
    InputShapeSetter,
    LoadInitState,
    ParamMapper,
    WandbLogger,
)


def follows_epochs(callback: Any) -> bool:
    """Whether a callback needs to see no more than whole epochs.

    One with a method for batches or gradients needs more, and so do those of skorch and
    sknan that restore or freeze a part of the net.
    """
    if isinstance(callback, _USERS_OF_STEPS):
        return False
    methods = {
        getattr(getattr(callback, name, None), "__func__", None)
        for name in _METHODS_OF_BATCHES
    }
    if isinstance(callback, _LOGGERS) and not callback.log_on_batch_end:
        methods -= {kind.on_batch_end for kind in _LOGGERS}
    return methods <= _EMPTY_METHODS
