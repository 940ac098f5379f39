"""Validity rules and automatic values for the parameters of an estimator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from skorch.callbacks import Callback

from sknan._utils.validation import is_integer, is_number

# Automatic batch sizes for tables of fewer rows than the first number; 1024 for larger
# tables. The smaller the table, the more steps an epoch needs to make progress.
_AUTO_BATCH_SIZES = (
    (700, 32),
    (1500, 64),
    (6000, 128),
    (30_000, 256),
    (100_000, 512),
)


def is_auto(value: Any) -> bool:
    """Whether ``value`` is the string ``"auto"``."""
    return isinstance(value, str) and value == "auto"


def automatic_batch_size(n_rows: int) -> int:
    """Return the batch size that ``batch_size="auto"`` means for ``n_rows`` rows."""
    return next((size for below, size in _AUTO_BATCH_SIZES if n_rows < below), 1024)


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_positive_integer(value: Any) -> bool:
    return is_integer(value) and value >= 1


def _is_positive_integer_or_auto(value: Any) -> bool:
    return _is_positive_integer(value) or is_auto(value)


def _is_callback(value: Any) -> bool:
    """Whether skorch accepts ``value``: an instance, a class, or a pair with a name."""
    if isinstance(value, tuple):
        return len(value) == 2 and isinstance(value[0], str) and _is_callback(value[1])
    return isinstance(value, Callback) or (
        isinstance(value, type) and issubclass(value, Callback)
    )


# A test of each parameter, and the same in words for the message. The parameters of the
# guard, of clipping and of the schedule are checked by the net, which uses them.
_COUNT = (_is_positive_integer, "an integer of at least 1")
_COUNT_OR_AUTO = (_is_positive_integer_or_auto, "an integer of at least 1 or 'auto'")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (
        lambda v: (is_number(v) and 0 < v < math.inf) or is_auto(v),
        "a finite number above 0 or 'auto'",
    ),
    "max_epochs": _COUNT,
    "batch_size": _COUNT_OR_AUTO,
    "weight_decay": (
        lambda v: is_number(v) and 0 <= v < math.inf,
        "a finite number of at least 0",
    ),
    "early_stopping": (
        lambda v: _is_flag(v) or v == "auto",
        "True, False or 'auto'",
    ),
    "validation_fraction": (
        lambda v: is_number(v) and 0 < v < 1,
        "a number between 0 and 1, both excluded",
    ),
    "n_iter_no_change": _COUNT,
    "warm_start": (_is_flag, "True or False"),
    "num_threads": _COUNT_OR_AUTO,
    "compile": (_is_flag, "True or False"),
    "verbose": (
        lambda v: _is_flag(v) or (is_integer(v) and v >= 0),
        "an integer of at least 0",
    ),
    "callbacks": (
        lambda v: (
            v is None or (isinstance(v, (list, tuple)) and all(map(_is_callback, v)))
        ),
        "a list of skorch callbacks or None",
    ),
}


def check_parameters(estimator: BaseEstimator) -> None:
    """Raise ``ValueError`` for the first parameter that breaks its rule.

    Parameters
    ----------
    estimator : StableNetClassifier or StableNetRegressor
        Estimator whose parameters are checked.

    Raises
    ------
    ValueError
        If a parameter is invalid. The message contains its name, rule and value.
    """
    for name, (is_valid, rule) in _RULES.items():
        value = getattr(estimator, name)
        if not is_valid(value):
            raise ValueError(
                f"The {name!r} parameter of {type(estimator).__name__} must be {rule}, "
                f"got {value!r}."
            )
