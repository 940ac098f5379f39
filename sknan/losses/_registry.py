"""Registry of the losses by the names that estimators accept."""

from __future__ import annotations

from typing import Any

from sknan._utils.validation import did_you_mean
from sknan.losses import (
    _classification,
    _positive_mean,
    _regression,
    _relative,
    _similarity,
)
from sknan.losses._base import Loss

_FAMILIES = (_classification, _regression, _positive_mean, _relative, _similarity)


def _losses_by_name(task: str) -> dict[str, type[Any]]:
    """Return the losses for a task by each of their names, in order of definition."""
    return {
        name: kind
        for family in _FAMILIES
        for kind in vars(family).values()
        if isinstance(kind, type)
        and issubclass(kind, Loss)
        and kind.traits.task == task
        for name in kind.traits.names
    }


CLASSIFICATION_LOSSES: dict[str, type[Any]] = _losses_by_name("classification")
REGRESSION_LOSSES: dict[str, type[Any]] = _losses_by_name("regression")


def get_criterion(name: str) -> type[Any]:
    """Return the loss class of a name.

    Parameters
    ----------
    name : str
        A key of ``CLASSIFICATION_LOSSES`` or ``REGRESSION_LOSSES``.

    Returns
    -------
    type
        Subclass of ``torch.nn.Module``.

    Raises
    ------
    ValueError
        If the name is unknown. The message lists the known names.
    """
    known = CLASSIFICATION_LOSSES | REGRESSION_LOSSES
    if name not in known:
        listed = ", ".join(repr(key) for key in known)
        raise ValueError(
            f"Unknown criterion {name!r}.{did_you_mean(name, known)} "
            f"Known criteria: {listed}."
        )
    return known[name]
