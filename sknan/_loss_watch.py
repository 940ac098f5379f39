"""When a loss or a gradient that is finite has gone astray."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["LossWatch"]

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
        patience = _PATIENCE if n_steps is None else min(_PATIENCE, n_steps // 8)
        self.reference = reference
        self._recent: deque[float] = deque(maxlen=max(patience, 3))
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
