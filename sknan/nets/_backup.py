"""Callback that backs up a training and resumes it after an interruption."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from skorch.callbacks import Callback

from sknan._utils.archive import load, save
from sknan._utils.outside import is_of_signal, unless
from sknan._utils.validation import FLAG, PATH, check_parameter
from sknan.nets._training_state import (
    begin_epoch_as,
    data_of,
    difference,
    other_data,
    put_net,
    put_random_states,
    put_training,
    random_states_of,
    state_of,
)

# Format of the archive. Other formats are refused on reading.
_FORMAT = "sknan backup 1"


class BackupAndRestore(Callback):
    """Callback that backs up a training after each epoch and resumes it from there.

    A later ``fit`` of the same net on the same data finds the file, trains only the
    remaining epochs, and ends at bitwise the weights of an uninterrupted training.
    Keras has a callback of the same name.

    Parameters
    ----------
    path : str or path-like
        Path of the backup. Missing folders are created. Each epoch replaces the file
        atomically, so that it is never partly written.
    delete_checkpoint : bool, default=True
        Whether to delete the file at the end of a training. If the file is kept, the
        next ``fit`` trains the last epoch again, or continues to a larger
        ``max_epochs``. The name is that of Keras.

    Attributes
    ----------
    n_restored_epochs_ : int
        Number of epochs that the latest training restored instead of training them.

    Raises
    ------
    ValueError
        At the beginning of ``fit``, if the file is not a backup, is damaged, or is a
        backup of another network, other settings or other data. The file is not
        changed.
    TypeError
        If the net is not guarded, or a part of its state cannot be saved.
    OSError
        If the file cannot be written or read. A file from before is not changed.

    Notes
    -----
    The backup contains weights and buffers, optimizers, schedule, guard, adaptive
    clipping, history, all random states, early stopping, learning-rate schedulers of
    skorch, and every callback with ``state_dict`` and ``load_state_dict``. It does not
    contain attributes of a module that are not buffers. The file is a weights-only
    archive of torch with a checksum, from which no code is run. It contains recent
    batches, so protect it like the data.

    The file remains after Ctrl-C. Only one fit at a time may
    use a file: in a search or a cross-validation, a fit would find the file of another.

    Examples
    --------
    >>> from sknan import BackupAndRestore, StableNetRegressor
    >>> backup = BackupAndRestore("training.backup")
    >>> model = StableNetRegressor(callbacks=[backup], random_state=0)
    """

    def __init__(
        self, path: str | os.PathLike[str], *, delete_checkpoint: bool = True
    ) -> None:
        self.path = path
        self.delete_checkpoint = delete_checkpoint

    def initialize(self) -> BackupAndRestore:
        """Reset the state of earlier trainings."""
        check_parameter("BackupAndRestore", "path", self.path, PATH)
        keeps = self.delete_checkpoint
        check_parameter("BackupAndRestore", "delete_checkpoint", keeps, FLAG)
        self.n_restored_epochs_ = 0
        self._found_: dict[str, Any] | None = None
        return self

    @property
    def n_epochs_done(self) -> int:
        """Number of finished epochs in the backup that this training resumes."""
        return 0 if self._found_ is None else int(self._found_["n_epochs"])

    def restore_net(self, net: Any) -> None:
        """Restore net and history if there is a file; called by ``GuardMixin``.

        Parameters
        ----------
        net : skorch net with GuardMixin
            Net before its callbacks begin.
        """
        path = os.fspath(self.path)
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self._found_ = found = self._read() if os.path.exists(path) else None
        self.n_restored_epochs_ = self.n_epochs_done
        if found is None:
            self._n_before_ = len(net.history)
            self._first_states_ = random_states_of(net)
            return
        with self._refusing():
            if not 0 <= self.n_epochs_done <= len(found["history"]):
                raise ValueError(
                    f"{self.n_epochs_done} finished epochs are not in a history of "
                    f"{len(found['history'])}"
                )
            other = difference(net, found)
        if other is None and self.n_epochs_done >= net.max_epochs:
            other = (
                f"contains {self.n_epochs_done} finished epochs, but "
                f"max_epochs={net.max_epochs} needs no more"
            )
        if other is not None:
            raise self._refusal(other)
        with self._refusing():
            self._n_before_ = len(found["history"]) - self.n_epochs_done
            self._first_states_ = found["first_random_states"]
            put_net(net, found)
            # Data are split before the first epoch.
            put_random_states(net, self._first_states_)

    def restore_training(self, net: Any) -> None:
        """Restore the state that the first epoch creates; called by ``GuardMixin``.

        Parameters
        ----------
        net : skorch net with GuardMixin
            Net before its first batch.
        """
        self._data_ = data_of(net._training_.batches)
        found, self._found_ = self._found_, None
        if found is None:
            return
        other = None
        with self._refusing():
            other = other_data(found["data"], self._data_)
        if other is not None:
            raise self._refusal(other)
        with self._refusing():
            put_training(net, found)

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Raise ``TypeError`` for a net that does not restore backups."""
        if getattr(net, "_backup_", None) is not self:
            raise TypeError(
                "BackupAndRestore needs one of sknan's guarded nets, and can be used "
                f"once in a net; got {type(net).__name__}. Use GuardedNet or one of "
                "its subclasses, or put GuardMixin before the class of the net."
            )

    def on_epoch_begin(self, net: Any, **_: Any) -> None:
        """Write the file, or restore its state before the first epoch."""
        # Not at the end of the epoch, when some callbacks have not run yet.
        if net._training_ is not None:
            self._write(net)
        elif self._found_ is not None:
            with self._refusing():
                begin_epoch_as(net, self._found_)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Delete the file, unless the user has interrupted the training."""
        is_over = not net._has_stopped_
        if self.delete_checkpoint and is_over and os.path.exists(self.path):
            os.remove(self.path)

    def _write(self, net: Any) -> None:
        contents = {
            "format": _FORMAT,
            "n_epochs": len(net.history) - 1 - self._n_before_,
            "data": self._data_,
            "first_random_states": self._first_states_,
            **state_of(net),
        }
        save(contents, self.path)

    def _read(self) -> dict[str, Any]:
        # Each tensor returns to its device, if this machine has one.
        location = None if torch.cuda.is_available() else "cpu"
        found: Any = load(self.path, location)
        is_backup = isinstance(found, dict) and found.get("format") == _FORMAT
        if not is_backup or type(found.get("n_epochs")) is not int:
            raise self._refusal(
                "is damaged, or was not written by this version of BackupAndRestore",
                "Put an intact copy in its place",
            )
        contents: dict[str, Any] = found
        return contents

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Refuse a file with a valid checksum whose contents cannot be restored."""
        try:
            yield
        except unless(is_of_signal, Exception) as error:
            raise self._refusal(
                f"cannot be restored: {type(error).__name__}: {error}",
                "Put an intact copy in its place",
            ) from error

    def _refusal(
        self, what: str, remedy: str = "Restore these settings and data"
    ) -> ValueError:
        return ValueError(
            f"The backup {os.fspath(self.path)!r} {what}. {remedy}, delete the file to "
            "start from scratch, or choose another path."
        )

    def __getstate__(self) -> dict[str, Any]:
        # Pickles contain neither random states nor data.
        live = ("_found_", "_first_states_", "_data_", "_n_before_")
        kept = {name: v for name, v in self.__dict__.items() if name not in live}
        return {**kept, "_found_": None}
