"""Who hears of each epoch of an estimator's training: a bar, scikit-learn's callbacks.

scikit-learn 1.9 has a protocol by which callbacks follow a fit: a fit is a task, and
each epoch a task within it (https://scikit-learn.org/stable/api/sklearn.callback.html).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from skorch.callbacks import Callback

from sknan._utils.compiled import original_of
from sknan._utils.progress import advance
from sknan._utils.random_state import random_states

__all__ = ["EpochBar", "EpochTasks"]

# What a bar shows of an epoch's row of the history.
_SHOWN = ("train_loss", "valid_loss", "lr")


class EpochBar(Callback):
    """Move the bar by one at the end of each epoch."""

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Begin where a backup goes on."""
        self.n_reports = 0
        if net._backup_ is not None:
            advance(net._backup_.n_epochs_done)

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Count the epoch, and show how it went."""
        row = net.history[-1]
        numbers = {name: row[name] for name in _SHOWN if name in row}
        n_reports = len(net.guard_.reports)
        advance(1, n_reports - self.n_reports, **numbers)
        self.n_reports = n_reports


class EpochTasks(Callback):
    """Tell scikit-learn's callbacks of a fit and of each epoch.

    They see the caller's own ``X`` and ``y``, and an estimator that predicts with the
    weights of the epoch: a copy, which they may keep.

    Attributes
    ----------
    has_listeners : bool
        Whether there is a callback to be told.
    """

    def begin(self, estimator: Any, X: Any, y: Any, sample_weight: Any) -> None:
        """The fit begins.

        Parameters
        ----------
        estimator : StableNetBase
            Whose ``fit`` runs under scikit-learn's ``with_callbacks``.
        X, y : object
            As given to it.
        sample_weight : object
            As given to it, None included.
        """
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self.given = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self.has_listeners = hasattr(estimator, "_skl_callbacks")
        self.task = estimator._init_callback_context(max_subtasks=estimator.max_epochs)
        self.task.call_on_fit_task_begin(**self.given)
        self.epoch: Any = None

    def end(self) -> None:
        """The estimator is fitted."""
        self.task.call_on_fit_task_end(**self.given, reconstruction_attributes={})

    def on_epoch_begin(self, net: Any, **_: Any) -> None:
        """Begin the epoch's task."""
        self.epoch = self.task.subcontext(task_name="epoch")
        with _drawn_aside(net):
            self.epoch.call_on_fit_task_begin(
                **self.given,
                reconstruction_attributes=lambda: _attributes(net, is_begun=True),
            )

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """End the epoch's task, and the training if a callback asks for that."""
        if self._end_epoch(net):
            raise KeyboardInterrupt  # how a skorch callback ends the training

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """End the task of an epoch that was broken off."""
        if self.epoch is not None:
            self._end_epoch(net)

    def _end_epoch(self, net: Any) -> bool:
        epoch, self.epoch = self.epoch, None
        with _drawn_aside(net):
            stops: bool = epoch.call_on_fit_task_end(
                **self.given, reconstruction_attributes=lambda: _attributes(net)
            )
        return stops


@contextlib.contextmanager
def _drawn_aside(net: Any) -> Iterator[None]:
    """Let what callbacks draw at random change nothing that the training draws."""
    on_cpu, on_gpu = random_states(net.device)
    try:
        yield
    finally:
        torch.set_rng_state(on_cpu)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, net.device)


def _attributes(net: Any, *, is_begun: bool = False) -> dict[str, Any]:
    """What makes an estimator one that was fitted up to here."""
    twin = _twin_of(net, n_epochs=len(net.history) - is_begun)
    return {
        "net_": twin,
        "n_iter_": len(twin.history),
        "best_epoch_": None,
        "nonfinite_reports_": net.nonfinite_reports_,
        "effective_lr_": net.effective_lr_,
    }


def _twin_of(net: Any, n_epochs: int) -> Any:
    """A net that predicts as this one does now, and trains no more."""
    twin = object.__new__(type(net))
    vars(twin).update(vars(net))
    for name in [*net._modules, *net._criteria]:
        vars(twin)[f"{name}_"] = copy.deepcopy(original_of(vars(net)[f"{name}_"]))
    vars(twin).update(
        history_=type(net.history)(net.history.to_list()[:n_epochs]),
        callbacks=None,
        callbacks_=[],
        train_split=None,
        _training_=None,
        _backup_=None,
    )
    return twin
