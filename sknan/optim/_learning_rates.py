"""Learning rates of optimizers: scaled for a while, searched for by trial, refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch

__all__ = ["ascends", "hopeless_decay", "longest_reach", "lower_scale", "scaled_rates"]

Optimizers = Sequence[torch.optim.Optimizer]

# A search for a lower rate starts at this multiple of the present one, or lower ...
_BACKOFF = 0.1

# ... and ends at no more than this.
_LEAST_BACKOFF = 0.5

# So many factors are tried, while the lowest of them is the best.
_MOST_TRIALS = 12

# A decay below this is a matter of the rate, which can be lowered.
_HOPELESS_DECAY = 1.0


@contextlib.contextmanager
def scaled_rates(
    optimizers: Optimizers, factor: float, caps: Sequence[float] = ()
) -> Iterator[None]:
    """Multiply every learning rate by ``factor`` inside the block.

    Schedule and back-off only ever act through this: the optimizer keeps the rate that
    the user gave, so that neither a user's own scheduler nor ``set_params(lr=...)`` has
    anything to undo.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        Whose parameter groups are changed.
    factor : float
        1.0 changes nothing.
    caps : sequence of float, default=()
        Largest rate of each parameter group, in order; empty for none.
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


def longest_reach(optimizers: Optimizers) -> float:
    """How far a gradient of norm 1 can carry the weights in the end: rate and momentum.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        Plain ones; those that divide by the gradient's size reach less.

    Returns
    -------
    float
    """
    reaches = [
        float(group["lr"]) / (1.0 - min(float(group.get("momentum", 0.0)), 0.99))
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]
    return max(reaches, default=0.0)


def lower_scale(
    scale: float, growth: float, loss_at: Callable[[float], float]
) -> float:
    """A factor of the rate at which training goes well, found by trial.

    Parameters
    ----------
    scale : float
        Factor that was too high.
    growth : float
        By how many times their size one step has moved the weights.
    loss_at : callable
        Loss after some steps at a factor; inf if they fail.

    Returns
    -------
    float
        Of some dozen factors, a quarter or half a decade apart, the one with the least
        loss.
    """
    # A rate that in one step moves the weights by k times their size is about k times
    # too high: one look brings even lr=1e30 down to earth.
    guess = scale * (min(_BACKOFF, 1.0 / growth) if growth else _BACKOFF)
    losses: dict[float, float] = {}

    def best_of(scales: list[float]) -> float:
        for candidate in scales:
            if candidate <= scale * _LEAST_BACKOFF:
                losses[candidate] = loss_at(candidate)
        return min(losses, key=losses.__getitem__)

    coarse = best_of([guess * 10.0 ** (k / 2) for k in range(-2, 5)])
    while coarse == min(losses) and len(losses) < _MOST_TRIALS:
        coarse = best_of([coarse * 10.0**-0.5, coarse * 10.0**-1.0])
    if not math.isfinite(losses[coarse]):
        return min(losses)
    return best_of([coarse * 10.0**0.25, coarse * 10.0**-0.25])


def hopeless_decay(optimizers: Optimizers) -> str | None:
    """Say so if weight decay alone makes the weights explode, at any useful rate.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        SGD and AdamW; others divide the decay by the size of the gradient.

    Returns
    -------
    str or None
        A sentence with the numbers.
    """
    for optimizer in optimizers:
        if not isinstance(optimizer, (torch.optim.SGD, torch.optim.AdamW)):
            continue
        for group in optimizer.param_groups:
            lr, decay = float(group["lr"]), float(group["weight_decay"])
            # From 1 on it keeps the weights near zero wherever it does not explode.
            if decay >= _HOPELESS_DECAY and lr * decay > 2.0:
                return (
                    f"lr={lr:.3g} times weight_decay={decay:.3g} multiplies every "
                    f"weight by {1.0 - lr * decay:.3g} at each step, whatever the data."
                )
    return None


def ascends(optimizers: Optimizers) -> str | None:
    """Say so if an optimizer is set to make the loss larger.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        Any.

    Returns
    -------
    str or None
        A sentence.
    """
    for optimizer in optimizers:
        if any(group.get("maximize") for group in optimizer.param_groups):
            return f"{type(optimizer).__name__} climbs the loss: maximize=True."
    return None
