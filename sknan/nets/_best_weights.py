"""Callback for early stopping that restores the weights of the best epoch."""

from __future__ import annotations

import math
from typing import Any

from skorch.callbacks import Callback

from sknan._utils.validation import COUNT, FLAG, check_parameter
from sknan.nets.guard._snapshots import Snapshot

_STATE = ("best_epoch_", "best_score_", "_last_gain_")


class BestWeights(Callback):
    """Early stopping that restores the weights of the best epoch.

    An epoch with a non-finite loss is never the best. Of equally good epochs the latest
    is kept, because it has been trained longer. skorch's
    ``EarlyStopping(load_best=True)`` keeps the first of equally good epochs, and
    restores nothing if the loss was never finite.

    Parameters
    ----------
    patience : int
        Number of epochs without improvement after which training stops.
    monitor : str, default="valid_loss"
        Key of the history.
    greater_is_better : bool, default=False
        Whether ``monitor`` is maximized instead of minimized.

    Attributes
    ----------
    best_epoch_ : int or None
        Epoch whose weights were restored, counted from 1; None if no epoch had a finite
        value.
    best_score_ : float
        Value of ``monitor`` in that epoch.
    """

    def __init__(
        self,
        patience: int,
        monitor: str = "valid_loss",
        greater_is_better: bool = False,
    ) -> None:
        self.patience = patience
        self.monitor = monitor
        self.greater_is_better = greater_is_better

    def initialize(self) -> BestWeights:
        """Reset the state of earlier trainings."""
        check_parameter("BestWeights", "patience", self.patience, COUNT)
        greater = self.greater_is_better
        check_parameter("BestWeights", "greater_is_better", greater, FLAG)
        self.best_epoch_: int | None = None
        self.best_score_ = -math.inf if greater else math.inf
        self._last_gain_ = 0
        self._snapshot_: Snapshot | None = None
        return self

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Start without a best epoch."""
        self.initialize()
        self._last_gain_ = len(net.history)
        self._snapshot_ = self._snapshot_of(net)

    def _snapshot_of(self, net: Any) -> Snapshot:
        names = [*net._modules, *net._criteria]
        return Snapshot([getattr(net, f"{n}_") for n in names])

    def keep_weights_of(self, net: Any) -> None:
        """Keep the present weights of a net as those of the best epoch.

        Parameters
        ----------
        net : skorch net
            Net whose earlier epochs were compared by :meth:`update`.
        """
        self._snapshot_ = self._snapshot_of(net)
        self._snapshot_.take()

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Save the weights of a best epoch, and stop if patience is exhausted."""
        is_best, continues = self.update(
            len(net.history), net.history[-1, self.monitor]
        )
        if is_best:
            assert self._snapshot_ is not None
            self._snapshot_.take()
        if not continues:
            raise KeyboardInterrupt  # skorch's way for a callback to end the training

    def update(self, epoch: int, value: float) -> tuple[bool, bool]:
        """Compare an epoch with the best one so far.

        Parameters
        ----------
        epoch : int
            Number of the epoch, counted from 1.
        value : float
            Value of ``monitor`` in the epoch.

        Returns
        -------
        is_best : bool
            Whether the weights of the epoch are to be kept.
        continues : bool
            Whether the training continues: False when patience is exhausted.
        """
        best = self.best_score_
        is_better = value > best if self.greater_is_better else value < best
        is_best = math.isfinite(value) and (is_better or value == best)
        if is_best:
            if is_better:
                self._last_gain_ = epoch
            self.best_score_, self.best_epoch_ = value, epoch
        return is_best, epoch - self._last_gain_ < self.patience

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Restore the best weights, and free the copy."""
        if self._snapshot_ is not None and self.best_epoch_ is not None:
            self._snapshot_.restore()
        self._snapshot_ = None

    def state_dict(self) -> dict[str, Any]:
        """Return the best epoch so far, with its weights."""
        assert self._snapshot_ is not None
        state = {name: getattr(self, name) for name in _STATE}
        return {**state, "snapshot": self._snapshot_.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the best epoch of an interrupted training."""
        assert self._snapshot_ is not None
        for name in _STATE:
            setattr(self, name, state[name])
        self._snapshot_.load_state_dict(state["snapshot"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_snapshot_": None}
