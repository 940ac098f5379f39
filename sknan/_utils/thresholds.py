"""Sizes, shares and numbers that the rules of guard, diagnosis and searches share."""

from __future__ import annotations

from typing import Any

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
# size. Of 140 trainings of networks and recurrent networks at learning rates that are
# far too high, 116, 115 and 113 end well if losses are compared with 5, 10 and 30; 3 to
# 30 give the same results for weights, and 1 to 10 for gains of gradients.
FAR = 10.0

# Share of a size that is small beside it: a gain of a loss that is only its noise, or a
# step beside the weights. Trainings that have learned the mean have a noise of 0.3 %. A
# gain also shows a learning rate that is too low to learn. A smallest rate would not:
# SGD on 1e12 times the squared error is rescued at 3.2e-13, where a linear network
# learns its table exactly. Of the 140 trainings above, 115, 115 and 115 end well with a
# gain of 0.001, 0.01 and 0.1, and 116, 115 and 114 with steps of 0.01, 0.03 and 0.1.
SMALL = 0.01

# A learning rate is clearly below another one if it is at most half of it. Weights
# whose loss is at most twice the untrained one can be rolled back to. Weights of
# less than half their first size have shrunk: in number 26 of the healthy trainings of
# benchmarks/false_alarms.py, weight decay alone brings them to 0.15 of it.
MARGIN = 2.0

# Number of standard errors by which a mean is clearly above another one: some 95 % of
# what chance gives are closer.
N_ERRORS = 2.0

# Number of times that something is tried, or seen in a row, before it is judged: steps
# at a lower learning rate, high losses, constant outputs, parts of a curve. Of the 140
# trainings above, 115, 115 and 117 end well with 5, 10 and 20 steps, and 117, 115 and
# 116 with 10, 16 and 32 losses.
N_TRIALS = 10

# Number of rows on which a network is tried. It bounds the time, and was not tuned.
N_TRIAL_ROWS = 256


def is_far_above(loss: Any, reference: Any) -> Any:
    """Whether a loss, or each of an array, is tenfold another one.

    Parameters
    ----------
    loss, reference : float or ndarray
        The difference is compared, so that losses may be negative.

    Returns
    -------
    bool or ndarray of bool
    """
    return loss - reference > (FAR - 1.0) * abs(reference)


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
