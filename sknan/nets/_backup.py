"""Resume a training that was killed, and end at the weights it would have had."""

from __future__ import annotations

import os
from typing import Any

import torch
from skorch.callbacks import Callback

from sknan._utils.archive import save
from sknan.nets._training_state import (
    begin_epoch_as,
    data_of,
    difference,
    put_net,
    put_random_states,
    put_training,
    random_states_of,
    state_of,
)

__all__ = ["BackupAndRestore"]

# Of the archive; a reader refuses what it does not know.
_FORMAT = "sknan backup 1"


class BackupAndRestore(Callback):
    """Back up a training after each epoch, and resume it there if it was killed.

    As Keras's callback of this name, and to the bit: a later ``fit`` of the same net on
    the same data finds the file, trains only the epochs that remain, and ends at the
    weights of a training that was never broken off.

    Parameters
    ----------
    path : str or path-like
        Of the file. Missing folders are made; each epoch replaces the file as a whole,
        so that it is never half written.
    delete_checkpoint : bool, default=True
        Whether the file goes away when a training has come to its end; Keras calls it
        ``delete_checkpoint``. A file that stays lets the next ``fit`` train the last
        epoch again, or go on to a larger ``max_epochs``.

    Attributes
    ----------
    n_restored_epochs_ : int
        Epochs that the latest training found done.

    Raises
    ------
    ValueError
        At the beginning of ``fit``, if the file is no backup, or one of another
        network, of other settings or data. It is left as it is.
    TypeError
        If the net is not guarded, or something in it cannot be kept.

    Notes
    -----
    Kept are weights and buffers, optimizers, schedule, guard, adaptive clipping,
    history and all random states; early stopping, schedulers of skorch, and whatever
    callback has ``state_dict`` and ``load_state_dict``. Attributes of a module that are
    no buffers are not. The file is a weights-only archive of torch: no code in it is
    run. It holds the latest batches, so treat it as you treat the data.

    After Ctrl-C in the middle of an epoch the file stays. One fit at a time may use a
    file: in a search or a cross-validation fits would find each other's.

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
        """Forget earlier trainings."""
        self.n_restored_epochs_ = 0
        self._found_: dict[str, Any] | None = None
        self._last_of_epoch_ = ""
        return self

    @property
    def n_epochs_done(self) -> int:
        """Epochs of the training about to begin that need not be done again."""
        return 0 if self._found_ is None else int(self._found_["n_epochs"])

    def restore_net(self, net: Any) -> None:
        """Bring back net and history, if there is a file; for ``GuardMixin``.

        Parameters
        ----------
        net : skorch net with GuardMixin
            Before its callbacks begin.
        """
        path = os.fspath(self.path)
        self._last_of_epoch_ = ""
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self._found_ = found = self._read() if os.path.exists(path) else None
        self.n_restored_epochs_ = self.n_epochs_done
        if found is None:
            self._n_before_ = len(net.history)
            self._first_states_ = random_states_of(net)
            return
        other = difference(net, found)
        if other is None and self.n_epochs_done >= net.max_epochs:
            other = (
                f"holds {self.n_epochs_done} finished epochs, where "
                f"max_epochs={net.max_epochs} asks for no more"
            )
        if other is not None:
            raise self._refusal(other)
        self._n_before_ = len(found["history"]) - self.n_epochs_done
        self._first_states_ = found["first_random_states"]
        put_net(net, found)
        # The data are split before the first epoch.
        put_random_states(net, self._first_states_)

    def restore_training(self, net: Any) -> None:
        """Bring back all that is made with the first epoch; for ``GuardMixin``.

        Parameters
        ----------
        net : skorch net with GuardMixin
            Before its first batch.
        """
        self._data_ = data_of(net._training_.batches)
        found, self._found_ = self._found_, None
        if found is None:
            return
        was, now = found["data"], self._data_
        for name in ("rows", "batches"):
            if was[name] != now[name]:
                raise self._refusal(
                    f"was made in a training on {was[name]} {name}, where this one is "
                    f"on {now[name]}"
                )
        if was["checksum"] != now["checksum"]:
            raise self._refusal("was made in a training on other data of this shape")
        put_training(net, found)

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Refuse a net that does not ask for what was kept."""
        if getattr(net, "_backup_", None) is not self:
            raise TypeError(
                f"BackupAndRestore serves one of sknan's guarded nets, once, and not "
                f"{type(net).__name__}. Take GuardedNet or its kin, or put GuardMixin "
                "before the net's class."
            )

    def on_epoch_begin(self, net: Any, dataset_valid: Any = None, **_: Any) -> None:
        """Write the file; before a first epoch, put back what it holds."""
        prefix = "train" if dataset_valid is None else "valid"
        self._last_of_epoch_ = f"{prefix}_batch_count"
        # Not at the end of the epoch, which other callbacks may not have seen yet.
        if net._training_ is not None:
            self._write(net)
        elif self._found_ is not None:
            begin_epoch_as(net, self._found_)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Remove the file, unless training was broken off in the middle of an epoch."""
        is_over = len(net.history) and self._last_of_epoch_ in net.history[-1]
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
        path = os.fspath(self.path)
        with open(f"{path}.new", "wb") as file:
            save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.new", path)

    def _read(self) -> dict[str, Any]:
        # Each tensor goes back to the device it was on, where there is one.
        location = None if torch.cuda.is_available() else "cpu"
        try:
            found = torch.load(self.path, map_location=location, weights_only=True)
        except OSError:
            raise
        except Exception:  # whatever a reader makes of the bytes of another file
            found = None
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise self._refusal("was not written by this version of BackupAndRestore")
        return found

    def _refusal(self, what: str) -> ValueError:
        return ValueError(
            f"The backup {os.fspath(self.path)!r} {what}. Go back to what it was made "
            "with, remove the file to start anew, or choose another path."
        )

    def __getstate__(self) -> dict[str, Any]:
        # Neither random states nor data outlive a training.
        live = ("_found_", "_first_states_", "_data_", "_n_before_")
        kept = {name: v for name, v in self.__dict__.items() if name not in live}
        return {**kept, "_found_": None}
