"""Callback that ends a training when its time is used up."""

from __future__ import annotations

import time
from typing import Any

from skorch.callbacks import Callback


class TimeLimit(Callback):
    """End a training when another epoch would take longer than the time left.

    The next epoch is expected to take as long as the last one. The first epoch is
    always completed. The learning rate schedule is planned again after each epoch, for
    the number of epochs that the time allows.

    Parameters
    ----------
    max_time : float
        Number of seconds.

    Attributes
    ----------
    n_epochs_ : int
        Number of epochs so far.
    n_epochs_left_ : int
        Number of epochs for which time is left.
    is_reached_ : bool
        Whether no time is left for another epoch.
    """

    def __init__(self, max_time: float) -> None:
        self.max_time = max_time

    def initialize(self) -> TimeLimit:
        """Start the clock."""
        self._spent_ = 0.0
        self.n_epochs_ = self.n_epochs_left_ = 0
        self.is_reached_ = False
        self._latest_ = time.monotonic()
        return self

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Start the clock."""
        self.initialize()

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """End the training if no time is left for another epoch."""
        if not self.allows_epoch():
            raise KeyboardInterrupt  # skorch's way for a callback to end the training
        n_steps = self.n_epochs_left_ * net.history[-1, "train_batch_count"]
        net.schedule_.plan_rest(net._training_.n_steps, n_steps)

    def allows_epoch(self, n_networks: int = 1) -> bool:
        """Whether another epoch may begin; called at the end of each epoch.

        Networks that were trained together are charged equal shares of its time.
        """
        now = time.monotonic()
        seconds = (now - self._latest_) / n_networks
        self._latest_ = now
        self._spent_ += seconds
        self.n_epochs_ += 1
        self.is_reached_ = self._spent_ + seconds > self.max_time
        # The time may be infinite, and an epoch shorter than the clock's resolution.
        left = max(self.max_time - self._spent_, 0.0)
        self.n_epochs_left_ = int(min(left / max(seconds, 1e-9), 1e9))
        return not self.is_reached_
