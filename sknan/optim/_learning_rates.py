"""Learning rates of optimizers: temporary scaling, search by trial, refusals."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import torch

from sknan._utils.thresholds import FAR, MARGIN, SMALL

Optimizers = Sequence[torch.optim.Optimizer]

# Generator that yields factors of the learning rate to try, receives the loss with each
# of them, and returns the factor to go on with.
ScaleSearch = Generator[list[float], list[float], float]

_T = TypeVar("_T")

# Momentum up to which a gradient is repeated; with 1 its reach would be infinite.
_MOST_MOMENTUM = 1.0 - SMALL

# Rounds of trials after which the search stops even if the lowest or highest factor is
# the best. Each has seven factors, or two where lower ones are tried. Of 140 trainings
# at learning rates that are far too high, 113 and 115 end well with 2 and 4.
_MOST_ROUNDS = 4

# Weight decay from which on a lower learning rate is no remedy: the decay of weights of
# size 1 then outweighs a loss of size 1.
_HOPELESS_DECAY = 1.0


@contextlib.contextmanager
def scaled_rates(
    optimizers: Optimizers, factor: float, caps: Sequence[float] = ()
) -> Iterator[None]:
    """Multiply every learning rate by ``factor`` inside the block.

    The schedule and a roll back change learning rates only through this function. The
    optimizer keeps the learning rate that the user gave, so that a user's scheduler and
    ``set_params(lr=...)`` work as usual.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        Optimizers whose parameter groups are changed.
    factor : float
        Factor of the learning rates; 1.0 changes nothing.
    caps : sequence of float, default=()
        Largest learning rate of each parameter group, in order; empty for no limits.
    """
    if factor == 1.0 and not caps:
        yield
        return
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = [group["lr"] for group in groups]
    limits = caps if len(caps) == len(groups) else [math.inf] * len(groups)
    try:
        for group, rate, limit in zip(groups, rates, limits, strict=True):
            scaled = rate * factor
            group["lr"] = scaled if float(scaled) <= limit else rate * 0 + limit
        yield
    finally:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate


def momentum_of(group: dict[str, Any]) -> float:
    """Return the momentum of a group, 0.0 without, below 1.0 in any case."""
    return min(float(group.get("momentum", 0.0)), _MOST_MOMENTUM)


def longest_reach(optimizers: Optimizers) -> float:
    """Return the largest total change of the weights by one gradient of norm 1.

    It depends on the learning rate and on the momentum, which repeats the gradient in
    later steps.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        Optimizers of a network. For those that divide by the size of the gradient the
        result is an upper bound.

    Returns
    -------
    float
        Norm of the change.
    """
    reaches = [
        float(group["lr"]) / (1.0 - momentum_of(group))
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]
    return max(reaches, default=0.0)


def unseen_reach(optimizers: Optimizers, n_trials: int, n_steps: int | None) -> float:
    """Return how much farther the steps of a training reach than those of a trial.

    Momentum that starts at 0 repeats gradients less often in the first steps, so that
    short trials favor learning rates that are too high.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        Optimizers of a network.
    n_trials : int
        Number of steps of a trial.
    n_steps : int or None
        Number of steps of the training, if known.

    Returns
    -------
    float
        Ratio of the mean reaches of a step, at least 1.0; 1.0 without momentum.
    """

    def mean_reach(momentum: float, n: int) -> float:
        decayed = momentum * (1.0 - momentum**n) / (1.0 - momentum) / n
        return 1.0 - decayed

    ratios = [1.0]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            momentum = momentum_of(group)
            reach = 1.0 if n_steps is None else mean_reach(momentum, n_steps)
            ratios.append(reach / mean_reach(momentum, n_trials))
    return max(ratios)


def lower_scale(scale: float, growth: float) -> ScaleSearch:
    """Find by trial a lower factor of the learning rate with which training works.

    The search is a generator, so that several searches can run their trials together.

    Parameters
    ----------
    scale : float
        Factor that was too high.
    growth : float
        Distance that one step has moved the weights, relative to their size.

    Yields
    ------
    list of float
        Factors to try. The loss after some steps with each of them, inf if the steps
        fail, must be sent back.

    Returns
    -------
    float
        Factor with the lowest loss among those tried, which are half of a power of ten
        apart. The trials go on while the lowest or highest factor is the best.
    """
    # A learning rate that moves the weights by k times their size in one step is about
    # k times too high. This first guess is useful even for lr=1e30.
    guess = scale / max(FAR, growth)
    losses: dict[float, float] = {}
    tried = [guess * FAR ** (k / 2) for k in range(-2, 5)]
    for _ in range(_MOST_ROUNDS):
        tried = [s for s in tried if s <= scale / MARGIN]
        if not tried:
            break
        losses.update(zip(tried, (yield tried), strict=True))
        # Rates that are too low to change the weights have equal losses.
        best = min(losses, key=lambda s: (losses[s], -s))
        if best == min(losses) or not math.isfinite(losses[best]):
            best = min(losses)
            tried = [best / FAR**0.5, best / FAR]
        elif best == max(losses):
            # The guess is far too low if the optimizer divides by the gradient.
            tried = [best * FAR ** (k / 2) for k in range(1, 8)]
        else:
            break
    return best


def run_search(
    search: Generator[list[float], list[float], _T],
    losses_after: Callable[[list[float]], list[float]],
) -> _T:
    """Run a search for a learning rate to its end, and return its result.

    Parameters
    ----------
    search : generator
        Search that yields factors of the learning rate and receives losses.
    losses_after : callable
        Function of a list of factors that returns the loss with each of them.

    Returns
    -------
    object
        Return value of the generator.
    """
    losses: Any = None
    while True:
        try:
            scales = search.send(losses)
        except StopIteration as end:
            result: _T = end.value
            return result
        losses = losses_after(scales)


def hopeless_decay(optimizers: Optimizers) -> str | None:
    """Return a message if weight decay alone makes the weights explode.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        Optimizers of a network. Only SGD and AdamW are examined, since others divide
        the decay by the size of the gradient.

    Returns
    -------
    str or None
        Sentence with the learning rate and the decay; None if there is no such decay.
    """
    for optimizer in optimizers:
        if not isinstance(optimizer, (torch.optim.SGD, torch.optim.AdamW)):
            continue
        for group in optimizer.param_groups:
            lr, decay = float(group["lr"]), float(group["weight_decay"])
            # With a lower learning rate such a decay keeps the weights near 0.
            if decay >= _HOPELESS_DECAY and lr * decay > 2.0:
                return (
                    f"lr={lr:.3g} times weight_decay={decay:.3g} multiplies every "
                    f"weight by {1.0 - lr * decay:.3g} at each step, whatever the data."
                )
    return None


def ascends(optimizers: Optimizers) -> str | None:
    """Return a message if an optimizer maximizes the loss.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        Optimizers of a network.

    Returns
    -------
    str or None
        Sentence with the name of the optimizer; None if all minimize the loss.
    """
    for optimizer in optimizers:
        if any(group.get("maximize") for group in optimizer.param_groups):
            return f"{type(optimizer).__name__} climbs the loss: maximize=True."
    return None


def growing_momentum(optimizers: Optimizers) -> str | None:
    """Return a message if the momentum of an optimizer makes every step grow.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        Optimizers of a network.

    Returns
    -------
    str or None
        Sentence with the momentum; None if none is above 1.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            momentum = group.get("momentum", 0.0)
            if momentum > 1.0:
                return (
                    f"{type(optimizer).__name__} adds {momentum:.3g} times the last "
                    "step to each step, whatever the learning rate: "
                    f"momentum={momentum:.3g}."
                )
    return None
