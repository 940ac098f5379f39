"""Sizes beyond which a loss, a gradient or a change of weights counts as a fault."""

from __future__ import annotations

import torch

# Above this size a float32 loss comes from numbers whose squares are about to overflow.
HUGE = 1e15

# Dtypes in which a forward pass overflows or rounds to 0 long before float32 would.
NARROW = (torch.float16, torch.bfloat16)

# Gradients of this size and more have squares near the end of the float32 range. An
# optimizer that keeps the square may then keep inf.
OVERFLOWS_SQUARED = 1e18

# Weights that have moved by more than their own size since the last verified snapshot
# did not get there by learning.
_RUNAWAY = 1.0


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
