"""Detection of losses and gradients that diverge although they are finite."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from sknan._utils.member_arrays import MemberArrays
from sknan._utils.thresholds import MARGIN, N_TRIALS, is_far_above

Floats = NDArray[np.float64]

# Beside a gradient that is this many times as large as any before, float32 does not
# resolve these.
_SPIKE = 1.0 / float(np.finfo(np.float32).eps)


def is_trusted(loss: Any, reference: Any) -> Any:
    """Whether a loss is low enough for a roll back to its weights.

    Parameters
    ----------
    loss : float or ndarray
        Loss of a step.
    reference : float or ndarray
        Loss of the untrained network.
    """
    # The difference is compared, so that losses may be negative.
    return np.asarray(loss - reference <= (MARGIN - 1.0) * abs(reference))


def _patience(n_steps: int | None) -> int:
    """Return for how many steps a loss must be high: fewer in a short training."""
    return N_TRIALS if n_steps is None else min(N_TRIALS, 1 + n_steps // N_TRIALS)


class LossWatch:
    """Comparison of losses and gradients with untrained and recent ones.

    Parameters
    ----------
    n_steps : int or None
        Number of steps of the training, if known. In a short training an explosion is
        recognized sooner.
    reference : float, default=-inf
        Loss of the untrained network in a previous training.
    """

    def __init__(self, n_steps: int | None, reference: float = -math.inf) -> None:
        self.reference = reference
        self._largest_norm = 1.0
        self._recent: deque[float] = deque(maxlen=_patience(n_steps))
        self._has_loss = False

    def forget(self) -> None:
        """Forget the recent losses after a failed step."""
        self._recent.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers."""
        return {**vars(self), "_recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the state of another watch."""
        recent = deque(map(float, state["_recent"]), maxlen=self._recent.maxlen)
        vars(self).update({**state, "_recent": recent})

    def is_trusted(self, loss: float) -> bool:
        """Whether the loss is low enough for a roll back to these weights."""
        return bool(is_trusted(loss, self.reference))

    def has_exploded(self, loss: float, untrained_loss: Callable[[], float]) -> bool:
        """Whether a finite loss has diverged.

        It is suspected if each of the recent losses exceeds the untrained loss tenfold.
        It is confirmed if the present loss exceeds tenfold what the untrained weights
        or a constant output give for the recent batches. If not, the data are larger
        here, and the reference is raised. A loss of exactly 0 gives no scale and
        confirms nothing.

        Parameters
        ----------
        loss : float
            Finite loss of the present step.
        untrained_loss : callable
            Function that returns the largest loss of recent batches with the untrained
            weights or a constant output. It is called only on suspicion.

        Returns
        -------
        bool
        """
        if not self._has_loss:
            self.reference = max(self.reference, loss)
            self._has_loss = True
        self._recent.append(loss)
        is_suspect = len(self._recent) == self._recent.maxlen and is_far_above(
            min(self._recent), self.reference
        )
        if not is_suspect:
            return False
        before = untrained_loss()
        if not math.isfinite(before):
            before = -math.inf
        elif before != 0.0 and is_far_above(loss, before):
            return True
        self.reference = max(self.reference, before, min(self._recent))
        return False

    def is_spike(self, loss: float, norm: float) -> bool:
        """Whether a finite gradient is absurdly large compared with the previous ones.

        This is so if the loss is ordinary and the norm is so much larger than the loss
        and any norm before that float32 would lose these beside it. The learning rate
        is then not to blame, and a step along the gradient would ruin the weights.

        Parameters
        ----------
        loss, norm : float
            Finite loss and gradient norm.

        Returns
        -------
        bool
        """
        is_ordinary = not self._has_loss or not is_far_above(loss, self.reference)
        if is_ordinary and norm > _SPIKE * max(self._largest_norm, abs(loss)):
            return True
        self._largest_norm = max(self._largest_norm, norm)
        return False


class LossWatches(MemberArrays):
    """Suspicions of :class:`LossWatch` for many trainings that step together.

    The :class:`LossWatch` of a training confirms a suspicion.

    Parameters
    ----------
    n_steps : int
        Number of steps of each training.
    n_trainings : int
        Number of trainings.
    """

    _arrays = ("_recent", "_largest_norm", "_reference")

    def __init__(self, n_steps: int, n_trainings: int) -> None:
        self._largest_norm = np.ones(n_trainings)
        self._recent = np.full((_patience(n_steps), n_trainings), -math.inf)
        self._reference = np.full(n_trainings, math.nan)

    def watch_of(self, k: int) -> LossWatch:
        """Return the watch of a training by itself.

        Parameters
        ----------
        k : int
            Position of the training.
        """
        watch = LossWatch(None)
        recent = self._recent[:, k]
        watch._recent = deque(recent[recent > -math.inf].tolist(), maxlen=len(recent))
        watch._has_loss = not math.isnan(self._reference[k])
        watch.reference = float(self._reference[k]) if watch._has_loss else -math.inf
        watch._largest_norm = float(self._largest_norm[k])
        return watch

    def set_watch(self, k: int, watch: LossWatch) -> None:
        """Continue a training from the state of its watch.

        Parameters
        ----------
        k : int
            Position of the training.
        watch : LossWatch
            Watch of the training by itself.
        """
        recent = list(watch._recent)
        self._recent[:, k] = -math.inf
        self._recent[len(self._recent) - len(recent) :, k] = recent
        self._reference[k] = watch.reference if watch._has_loss else math.nan
        self._largest_norm[k] = watch._largest_norm

    def are_trusted(self, losses: Floats) -> NDArray[np.bool_]:
        """Whether losses are low enough for a roll back to the weights.

        Parameters
        ----------
        losses : ndarray of shape (n_trainings,)
            Losses of a step.

        Returns
        -------
        ndarray of bool, same shape
        """
        are_trusted: NDArray[np.bool_] = is_trusted(losses, self._reference)
        return are_trusted

    def have_risen(self, losses: Floats) -> NDArray[np.bool_]:
        """Whether losses, of shape (n_trainings,), are above the untrained ones."""
        have_risen: NDArray[np.bool_] = ~(losses <= self._reference)
        return have_risen

    def may_have_exploded(self, losses: Floats) -> NDArray[np.bool_]:
        """Whether the loss of each training is suspected to have diverged.

        Parameters
        ----------
        losses : ndarray of shape (n_steps, n_trainings)
            Losses of the next steps.

        Returns
        -------
        ndarray of bool, same shape
        """
        reference = self._reference_of(losses)
        recent = np.concatenate([self._recent, losses])
        n_recent = len(self._recent)
        self._recent = recent[-n_recent:]
        suspects: NDArray[np.bool_] = is_far_above(losses, reference)
        if suspects.any():
            windows = sliding_window_view(recent[1:], n_recent, axis=0)
            suspects = is_far_above(windows.min(axis=-1), reference)
        return suspects

    def is_spike(self, losses: Floats, norms: Floats) -> NDArray[np.bool_]:
        """Whether the gradient of each training is absurdly large.

        Parameters
        ----------
        losses, norms : ndarray of shape (n_steps, n_trainings)
            Losses and gradient norms of the next steps.

        Returns
        -------
        ndarray of bool, same shape
        """
        reference = self._reference_of(losses)
        is_ordinary = ~is_far_above(losses, reference)
        largest = np.maximum.accumulate([self._largest_norm, *norms])
        self._largest_norm = largest[-1]
        limits = _SPIKE * np.maximum(largest[:-1], abs(losses))
        is_spike: NDArray[np.bool_] = is_ordinary & (norms > limits)
        return is_spike

    def _reference_of(self, losses: Floats) -> Floats:
        """Return the untrained losses: the first losses of all."""
        is_new = np.isnan(self._reference)
        self._reference = np.where(is_new, losses[0], self._reference)
        return self._reference
