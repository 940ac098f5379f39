"""Keep the weights of the best epoch, and stop when none better comes."""

from __future__ import annotations

import math
from typing import Any

from skorch.callbacks import Callback

from sknan.nets.guard._snapshots import Snapshot

__all__ = ["BestWeights"]

_LEARNT = ("best_epoch_", "best_score_", "_last_gain_")


class BestWeights(Callback):
    """Stop after epochs without improvement, and restore the best epoch's weights.

    skorch's ``EarlyStopping(load_best=True)`` restores nothing where the loss was never
    finite, and keeps the first of equally good epochs; here an epoch whose loss is not
    finite is no candidate, and the later of equals wins (it has seen more data).

    Parameters
    ----------
    patience : int
        Epochs without improvement after which training stops.
    monitor : str, default="valid_loss"
        Key of the history to be small.

    Attributes
    ----------
    best_epoch_ : int or None
        Epoch whose weights were kept, counted from 1; None if no epoch had a finite
        value.
    best_score_ : float
        Its value.
    """

    def __init__(self, patience: int, monitor: str = "valid_loss") -> None:
        self.patience = patience
        self.monitor = monitor

    def initialize(self) -> BestWeights:
        """Forget earlier trainings."""
        self.best_epoch_: int | None = None
        self.best_score_ = math.inf
        self._last_gain_ = 0
        self._snapshot_: Snapshot | None = None
        return self

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Start with no candidate."""
        self.initialize()
        self._last_gain_ = len(net.history)
        names = [*net._modules, *net._criteria]
        self._snapshot_ = Snapshot([getattr(net, f"{n}_") for n in names])

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Keep the epoch if it is the best so far; stop if patience is over."""
        epoch = len(net.history)
        value = net.history[-1, self.monitor]
        if math.isfinite(value) and value <= self.best_score_:
            if value < self.best_score_:
                self._last_gain_ = epoch
            self.best_score_, self.best_epoch_ = value, epoch
            assert self._snapshot_ is not None
            self._snapshot_.take()
        if epoch - self._last_gain_ >= self.patience:
            raise KeyboardInterrupt  # how a skorch callback ends the training

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Put the best weights in place, and let the copy go."""
        if self._snapshot_ is not None and self.best_epoch_ is not None:
            self._snapshot_.restore()
        self._snapshot_ = None

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far, with its weights."""
        assert self._snapshot_ is not None
        state = {name: getattr(self, name) for name in _LEARNT}
        return {**state, "snapshot": self._snapshot_.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what was best in a training that was broken off."""
        assert self._snapshot_ is not None
        for name in _LEARNT:
            setattr(self, name, state[name])
        self._snapshot_.load_state_dict(state["snapshot"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_snapshot_": None}
