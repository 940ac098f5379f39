"""Sizes beyond which a loss, a gradient or a change of weights counts as a fault."""

from __future__ import annotations

import torch

# Dtypes in which a forward pass overflows or rounds to 0 long before float32 would.
NARROW = (torch.float16, torch.bfloat16)

# The square of a number of this size and more, or a sum of some hundred such squares,
# exceeds the range of float32, which ends at 3.4e38. An optimizer that keeps squares of
# gradients may then keep inf, and so may a loss.
OVERFLOWS_SQUARED = 1e18

# How many times a size must exceed the usual one to be a fault: a loss that of the
# untrained network, a movement of weights their own size, data standardized data.
# Within one epoch, Adam at a learning rate of 0.05 moves small weights by their own
# size. In trainings at rates that are far too high, 3 to 30 give the same results for
# weights, and 30 for losses misses explosions.
FAR = 10.0

# Share of a loss by which a network must improve on another one to be better. Less is
# the noise of an epoch: 0.3 % in trainings that have learned the mean. It also tells a
# learning rate that is too low to learn. A smallest rate would not: SGD on 1e12 times
# the squared error is rescued at 3.2e-13, where a linear network learns its table
# exactly.
LEAST_GAIN = 0.01

# Number of rows on which a network is tried. It bounds the time, and was not tuned.
N_TRIAL_ROWS = 256


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
    return not relative_distance <= FAR
