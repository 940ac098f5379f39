"""When a loss or a gradient that is finite has gone astray."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LossWatch", "LossWatches"]

# A loss counts as exploded when it exceeds the untrained one by this factor ...
_EXPLOSION = 10.0
# ... for this many steps on end (fewer in a short training): a spike passes.
_PATIENCE = 16

# Weights are only kept while the loss is below this multiple of the untrained one.
_TRUSTED = 2.0

# A gradient that is so many times the largest of late, and larger than any before, is a
# fault; before so many steps the loss takes its place.
_SPIKE = 1e6
_LEAST_HISTORY = 5


def _exceeds(loss: float, reference: float, factor: float = _EXPLOSION) -> bool:
    # Measured from the reference, so that it also holds for negative losses.
    return loss - reference > (factor - 1.0) * max(abs(reference), 1e-6)


def _patience(n_steps: int | None) -> int:
    return max(3, _PATIENCE if n_steps is None else min(_PATIENCE, n_steps // 8))


class LossWatch:
    """Compare losses and gradients with those of the untrained network, and of late.

    Parameters
    ----------
    n_steps : int or None
        Length of the training, if known: a short one is judged sooner.
    reference : float, default=-inf
        Loss of an untrained network of before.
    """

    def __init__(self, n_steps: int | None, reference: float = -math.inf) -> None:
        self.reference = reference
        self._recent: deque[float] = deque(maxlen=_patience(n_steps))
        self._has_loss = False
        self._n_norms = 0
        self._usual_norm = 0.0
        self._largest_norm = 1.0

    def forget(self) -> None:
        """Begin anew after a failed step."""
        self._recent.clear()

    def state_dict(self) -> dict[str, Any]:
        """What has been seen, as plain numbers."""
        return {**vars(self), "_recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what another watch has seen."""
        recent = deque(state["_recent"], maxlen=self._recent.maxlen)
        vars(self).update({**state, "_recent": recent})

    def is_trusted(self, loss: float) -> bool:
        """Whether weights with this loss may be worth going back to."""
        return not _exceeds(loss, self.reference, _TRUSTED)

    def has_exploded(self, loss: float, untrained_loss: Callable[[], float]) -> bool:
        """Whether a finite loss has left for good.

        Suspicion: each of the last steps' losses exceeds that of the untrained network
        tenfold. Proof: so does this batch's loss exceed what the untrained weights give
        on this very batch; otherwise the data are larger here, and the reference is
        raised.

        Parameters
        ----------
        loss : float
            Finite loss of the step at hand.
        untrained_loss : callable
            Computes the loss of the same batch with the untrained weights; called only
            on suspicion.

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
        """Whether a finite gradient is absurd beside those before it.

        By a million times the largest of late, or at first the loss, at an ordinary
        loss: no rate is to blame, and a step along it would fling the weights away.

        Parameters
        ----------
        loss, norm : float
            Finite.

        Returns
        -------
        bool
        """
        usual = self._usual_norm
        if self._n_norms < _LEAST_HISTORY:
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
    """A :class:`LossWatch` for each of many trainings that step together.

    They suspect what a single one would; who is suspected is to be watched alone.

    Parameters
    ----------
    n_steps : int
        Length of the trainings.
    n_trainings : int
        How many there are.
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
        """Let all other trainings go."""
        self._recent = self._recent[:, index]
        self._usual_norm = self._usual_norm[index]
        self._largest_norm = self._largest_norm[index]
        self._reference = self._reference[index]
        self._bound = self._bound[index]

    def may_have_exploded(self, losses: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether the loss of each may have left for good: the suspicion of one.

        Parameters
        ----------
        losses : ndarray of shape (n_steps, n_trainings)
            Of the next steps.

        Returns
        -------
        ndarray of the same shape
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
        """Whether the gradient of each is absurd beside those before it.

        Parameters
        ----------
        losses, norms : ndarray of shape (n_steps, n_trainings)
            Of the next steps.

        Returns
        -------
        ndarray of the same shape
        """
        self._begin(losses[0])
        is_absurd = ~self._exceeds(losses)
        for step, (own_losses, own) in enumerate(zip(losses, norms, strict=True)):
            usual = self._usual_norm
            if self._n_norms < _LEAST_HISTORY:
                usual = np.maximum(usual, np.maximum(np.abs(own_losses), 1.0))
            is_absurd[step] &= (own > _SPIKE * usual) & (usual > 0.0)
            is_absurd[step] &= own > self._largest_norm
            self._n_norms += 1
            self._usual_norm = np.maximum(0.99 * self._usual_norm, own)
            self._largest_norm = np.maximum(self._largest_norm, own)
        return is_absurd

    def _begin(self, losses: NDArray[np.float64]) -> None:
        """Take the first losses for those of the untrained networks."""
        if not self._is_new:
            return
        self._is_new = False
        self._reference = losses.copy()
        self._bound = (_EXPLOSION - 1.0) * np.maximum(np.abs(losses), 1e-6)

    def _exceeds(self, losses: NDArray[np.float64]) -> NDArray[np.bool_]:
        # As `_exceeds` of a single number.
        exceeds: NDArray[np.bool_] = losses - self._reference > self._bound
        return exceeds
