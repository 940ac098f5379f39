"""Listeners for the epochs of an estimator's training: progress bar, callbacks.

scikit-learn 1.9 has a protocol by which callbacks follow a fit: a fit is a task, and
each epoch is a task within it (https://scikit-learn.org/stable/api/sklearn.callback.html).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from skorch.callbacks import Callback

from sknan._engine.table_net import TableNet
from sknan._utils.compiled import original_of
from sknan._utils.progress import advance
from sknan._utils.random_state import random_states, set_random_states

# Columns of the history that a progress bar shows.
_SHOWN = ("train_loss", "valid_loss", "valid_score", "lr")


class EpochBar(Callback):
    """Callback that advances the progress bar at the end of each epoch."""

    def on_train_begin(
        self, net: TableNet, X: Any = None, y: Any = None, **_: Any
    ) -> None:
        """Advance the bar by the epochs that a restored backup has done."""
        self.n_reports = 0
        if net._backup_ is not None:
            advance(net._backup_.n_epochs_done)

    def on_epoch_end(self, net: TableNet, **_: Any) -> None:
        """Advance the bar by one epoch, and show its losses and recoveries."""
        row = net.history[-1]
        numbers = {name: row[name] for name in _SHOWN if name in row}
        n_reports = len(net.guard_.reports)
        advance(1, n_reports - self.n_reports, **numbers)
        self.n_reports = n_reports


class SupportsCallbacks(Protocol):
    """Estimator with scikit-learn's ``CallbackSupportMixin``.

    Attributes
    ----------
    max_epochs : int or "auto"
        Number of epochs of a training.
    """

    max_epochs: int | str

    def _init_callback_context(self, *, max_subtasks: int | None) -> Any:
        """Start the root task of scikit-learn's callback protocol.

        Parameters
        ----------
        max_subtasks : int or None
            Number of epochs, if it is known.

        Returns
        -------
        sklearn.callback.CallbackContext
        """


class EpochTasks(Callback):
    """Callback that passes the tasks of a fit on to scikit-learn's callbacks.

    They receive the ``X`` and ``y`` that the user passed, and an estimator that
    predicts with the weights of the epoch. It is a copy, which they may keep.

    Attributes
    ----------
    has_listeners : bool
        Whether the estimator has callbacks of scikit-learn.
    """

    def begin(
        self, estimator: SupportsCallbacks, X: Any, y: Any, sample_weight: Any
    ) -> None:
        """Begin the task of the fit.

        Parameters
        ----------
        estimator : SupportsCallbacks
            Estimator whose ``fit`` runs under scikit-learn's ``with_callbacks``.
        X, y : object
            Data as given to ``fit``.
        sample_weight : object
            Sample weights as given to ``fit``, or None.
        """
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self.arguments = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self.has_listeners = hasattr(estimator, "_skl_callbacks")
        n_epochs = estimator.max_epochs
        known = None if isinstance(n_epochs, str) else n_epochs
        self.task = estimator._init_callback_context(max_subtasks=known)
        self.task.call_on_fit_task_begin(**self.arguments)
        self.epoch: Any = None

    def end(self) -> None:
        """End the task of the fit, when the estimator is fitted."""
        self.task.call_on_fit_task_end(**self.arguments, reconstruction_attributes={})

    def on_epoch_begin(self, net: TableNet, **_: Any) -> None:
        """Begin the task of the epoch."""
        self.epoch = self.task.subcontext(task_name="epoch")
        attributes = partial(_fitted_attributes, net, len(net.history) - 1)
        with _kept_random_states(net):
            self.epoch.call_on_fit_task_begin(
                **self.arguments, reconstruction_attributes=attributes
            )

    def on_epoch_end(self, net: TableNet, **_: Any) -> None:
        """End the task of the epoch, and the training if a callback requests it."""
        if self._end_epoch(net):
            raise KeyboardInterrupt  # skorch ends the training in order

    def on_train_end(
        self, net: TableNet, X: Any = None, y: Any = None, **_: Any
    ) -> None:
        """End the task of an epoch that was interrupted."""
        if self.epoch is not None:
            self._end_epoch(net)

    def _end_epoch(self, net: TableNet) -> bool:
        epoch, self.epoch = self.epoch, None
        attributes = partial(_fitted_attributes, net, len(net.history))
        with _kept_random_states(net):
            is_stop_requested: bool = epoch.call_on_fit_task_end(
                **self.arguments, reconstruction_attributes=attributes
            )
        return is_stop_requested


@contextlib.contextmanager
def _kept_random_states(net: TableNet) -> Iterator[None]:
    """Restore the generators after callbacks, which may draw random numbers."""
    states = random_states(net.device)
    try:
        yield
    finally:
        set_random_states(states, net.device)


def _fitted_attributes(net: TableNet, n_epochs: int) -> dict[str, Any]:
    """Return the fitted attributes of an estimator after this number of epochs."""
    present = net.fitted()
    fitted = replace(
        present,
        module_=copy.deepcopy(original_of(net.module_)),
        criterion_=copy.deepcopy(original_of(net.criterion_)),
        history=present.history[:n_epochs],
    )
    return {
        "_fitted": fitted,
        "n_iter_": len(fitted.history),
        "best_epoch_": None,
        "nonfinite_reports_": net.nonfinite_reports_,
        "effective_lr_": net.effective_lr_,
    }
