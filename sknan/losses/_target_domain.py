"""Targets for which a loss is defined and has a lower bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sknan.exceptions import NonFiniteDataError
from sknan.losses._traits import traits_of

# Rounding error of targets in float32, such as smoothed labels.
_ROUNDING = 1e-6

# Largest number of values that a message lists.
_MOST_LISTED = 10


class _Domain(NamedTuple):
    needed: str
    is_outside: Callable[[np.ndarray], np.ndarray]
    remedy: str = ""  # for labels, which the message lists


_DOMAINS = {
    "all": _Domain("", lambda y: np.zeros(y.shape, dtype=bool)),
    "non-negative": _Domain("of at least 0", lambda y: y < 0),
    "positive": _Domain("above 0", lambda y: y <= 0),
    "unit interval": _Domain(
        "between 0 and 1",
        lambda y: (y < -_ROUNDING) | (y > 1 + _ROUNDING),
        "code the two classes as 0 and 1",
    ),
    "signs": _Domain(
        "of -1 and 1", lambda y: np.abs(y) != 1, "code the two classes as -1 and 1"
    ),
}


def refuse_outside_domain(criterion: Any, values: np.ndarray, name: str) -> None:
    """Raise an error for targets for which a loss is undefined or unbounded.

    A loss whose targets are logarithms (``log_target``) accepts any, and so does each
    loss NaN.

    Raises
    ------
    NonFiniteDataError
        If a target is outside the domain of the loss. The message gives the first one
        and its row, and lists labels.
    """
    is_log = getattr(criterion, "log_target", False)
    domain = _DOMAINS["all" if is_log else traits_of(criterion).target_domain]
    outside = domain.is_outside(values)
    if not outside.any():
        return
    place = tuple(np.argwhere(outside)[0])
    message = (
        f"criterion={name} needs y {domain.needed}, but it is {values[place]:g} at row "
        f"{place[0]}."
    )
    found = np.unique(values[~np.isnan(values)])
    if domain.remedy and len(found) <= _MOST_LISTED:
        listed = ", ".join(f"{value:g}" for value in found)
        message += f" It contains {listed}: {domain.remedy}."
    raise NonFiniteDataError(message)
