"""Detection of losses and gradients that diverge although they are finite."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A loss has exploded if it exceeds the untrained loss by this factor ...
_EXPLOSION = 10.0
# ... for this many consecutive steps (fewer in a short training). A spike is shorter.
_PATIENCE = 16

# Weights are verified only while the loss is below this multiple of the untrained loss.
_TRUSTED = 2.0

# A gradient norm that is this many times the largest recent one, and larger than any
# before, is a fault. In the first steps it is compared with the loss too.
_SPIKE = 1e6
_FEWEST_NORMS = 5


def _exceeds(loss: float, reference: float, factor: float = _EXPLOSION) -> bool:
    # The difference also works for negative losses.
    return loss - reference > (factor - 1.0) * max(abs(reference), 1e-6)


def _patience(n_steps: int | None) -> int:
    return max(3, _PATIENCE if n_steps is None else min(_PATIENCE, n_steps // 8))


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
        self._recent: deque[float] = deque(maxlen=_patience(n_steps))
        self._has_loss = False
        self._n_norms = 0
        self._usual_norm = 0.0
        self._largest_norm = 1.0

    def forget(self) -> None:
        """Forget the recent losses after a failed step."""
        self._recent.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers."""
        return {**vars(self), "_recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the state of another watch."""
        recent = deque(state["_recent"], maxlen=self._recent.maxlen)
        vars(self).update({**state, "_recent": recent})

    def is_trusted(self, loss: float) -> bool:
        """Whether the loss is low enough for a roll back to these weights."""
        return not _exceeds(loss, self.reference, _TRUSTED)

    def has_exploded(self, loss: float, untrained_loss: Callable[[], float]) -> bool:
        """Whether a finite loss has diverged.

        It is suspected if each of the recent losses exceeds the untrained loss tenfold.
        It is confirmed if the loss of this batch exceeds tenfold the loss that the
        untrained weights give for the same batch. If not, the data are larger here, and
        the reference is raised.

        Parameters
        ----------
        loss : float
            Finite loss of the present step.
        untrained_loss : callable
            Function that computes the loss of the same batch with the untrained
            weights. It is called only on suspicion.

        Returns
        -------
        bool
        """
        if not self._has_loss:
            self.reference = max(self.reference, loss)
            self._has_loss = True
        self._recent.append(loss)
        is_suspect = len(self._recent) == self._recent.maxlen and _exceeds(
            min(self._recent), self.reference
        )
        if not is_suspect:
            return False
        before = untrained_loss()
        if math.isfinite(before) and _exceeds(loss, before):
            return True
        self.reference = max(self.reference, min(self._recent))
        return False

    def is_spike(self, loss: float, norm: float) -> bool:
        """Whether a finite gradient is absurdly large compared with the previous ones.

        This is so if the loss is ordinary and the norm exceeds a million times the
        largest recent norm (in the first steps also the loss). The learning rate is
        then not to blame, and a step along the gradient would ruin the weights.

        Parameters
        ----------
        loss, norm : float
            Finite loss and gradient norm.

        Returns
        -------
        bool
        """
        usual = self._usual_norm
        if self._n_norms < _FEWEST_NORMS:
            usual = max(usual, abs(loss), 1.0)
        is_ordinary = not self._has_loss or not _exceeds(loss, self.reference)
        is_absurd = norm > _SPIKE * usual > 0.0 and norm > self._largest_norm
        if is_ordinary and is_absurd:
            return True
        self._n_norms += 1
        self._usual_norm = max(0.99 * self._usual_norm, norm)
        self._largest_norm = max(self._largest_norm, norm)
        return False


class LossWatches:
    """Suspicions of :class:`LossWatch` for many trainings that step together.

    A suspicion is confirmed by watching the training alone.

    Parameters
    ----------
    n_steps : int
        Number of steps of each training.
    n_trainings : int
        Number of trainings.
    """

    def __init__(self, n_steps: int, n_trainings: int) -> None:
        self._recent = np.full((_patience(n_steps), n_trainings), -math.inf)
        self._n_losses = self._n_norms = 0
        self._usual_norm = np.zeros(n_trainings)
        self._largest_norm = np.ones(n_trainings)
        self._is_new = True
        self._reference = np.full(n_trainings, -math.inf)
        self._bound = np.full(n_trainings, math.inf)

    def keep(self, index: NDArray[np.int64]) -> None:
        """Drop all other trainings."""
        self._recent = self._recent[:, index]
        self._usual_norm = self._usual_norm[index]
        self._largest_norm = self._largest_norm[index]
        self._reference = self._reference[index]
        self._bound = self._bound[index]

    def may_have_exploded(self, losses: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether the loss of each training is suspected to have diverged.

        Parameters
        ----------
        losses : ndarray of shape (n_steps, n_trainings)
            Losses of the next steps.

        Returns
        -------
        ndarray of bool, same shape
        """
        self._begin(losses[0])
        suspects = self._exceeds(losses)
        is_calm = not suspects.any()
        n_recent = len(self._recent)
        for step in range(
            max(0, len(losses) - n_recent) if is_calm else 0, len(losses)
        ):
            self._recent[(self._n_losses + step) % n_recent] = losses[step]
            if not is_calm:
                suspects[step] = self._exceeds(self._recent.min(axis=0))
        self._n_losses += len(losses)
        return suspects

    def is_spike(
        self, losses: NDArray[np.float64], norms: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Whether the gradient of each training is absurdly large.

        Parameters
        ----------
        losses, norms : ndarray of shape (n_steps, n_trainings)
            Losses and gradient norms of the next steps.

        Returns
        -------
        ndarray of bool, same shape
        """
        self._begin(losses[0])
        is_absurd = ~self._exceeds(losses)
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            usual = self._usual_norm
            if self._n_norms < _FEWEST_NORMS:
                usual = np.maximum(usual, np.maximum(np.abs(loss), 1.0))
            is_absurd[step] &= (norm > _SPIKE * usual) & (usual > 0.0)
            is_absurd[step] &= norm > self._largest_norm
            self._n_norms += 1
            self._usual_norm = np.maximum(0.99 * self._usual_norm, norm)
            self._largest_norm = np.maximum(self._largest_norm, norm)
        return is_absurd

    def _begin(self, losses: NDArray[np.float64]) -> None:
        """Use the first losses as those of the untrained networks."""
        if not self._is_new:
            return
        self._is_new = False
        self._reference = losses.copy()
        self._bound = (_EXPLOSION - 1.0) * np.maximum(np.abs(losses), 1e-6)

    def _exceeds(self, losses: NDArray[np.float64]) -> NDArray[np.bool_]:
        exceeds: NDArray[np.bool_] = losses - self._reference > self._bound
        return exceeds
