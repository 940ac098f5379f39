"""Sizes beyond which a loss, a gradient or a change of weights counts as a fault."""

from __future__ import annotations

import torch

# Dtypes in which a forward pass overflows or rounds to 0 long before float32 would.
NARROW = (torch.float16, torch.bfloat16)

# The square of a number of this size and more, or a sum of some hundred such squares,
# exceeds the range of float32, which ends at 3.4e38. An optimizer that keeps squares of
# gradients may then keep inf, and so may a loss.
OVERFLOWS_SQUARED = 1e18

# Weights that have moved by more than this multiple of their own size did not get there
# by learning. Within one epoch, Adam at a learning rate of 0.05 moves small weights by
# their own size.
_RUNAWAY = 10.0


def is_runaway(relative_distance: float) -> bool:
    """Whether the weights have moved farther than learning explains.

    Parameters
    ----------
    relative_distance : float
        Distance from the last verified weights, as a multiple of their norm. NaN counts
        as far.

    Returns
    -------
    bool
    """
    return not relative_distance <= _RUNAWAY
