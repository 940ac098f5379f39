"""Parameters of an estimator: rules, automatic values, and prefixed parameters."""

from __future__ import annotations

import functools
import math
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.metrics import get_scorer_names

from sknan._utils.validation import (
    COUNT,
    FLAG,
    VERBOSE,
    Rule,
    check_parameter,
    is_flag,
    is_number,
    is_one_of,
    nearest_name,
)
from sknan.estimators._validation_split import is_chunks, is_splitter
from sknan.nets._guard_parts import guard_parts
from sknan.nets._parameters import is_callback

_PARTS = ("module", "criterion", "optimizer")
_PREFIXES = (*_PARTS, "compile")
# Names of the same parameters in Keras, torch and scikit-learn's MLPClassifier.
_SYNONYMS = {
    "activation": "module__activation",
    "alpha": "weight_decay",
    "dropout": "module__dropout",
    "epochs": "max_epochs",
    "hidden_layer_sizes": "module__width",
    "learning_rate": "lr",
    "learning_rate_init": "lr",
    "loss": "criterion",
    "max_iter": "max_epochs",
    "patience": "n_iter_no_change",
    "seed": "random_state",
    "solver": "optimizer",
}
# Code that reads the signature of the constructor, such as the checks of scikit-learn,
# may set a parameter of this name. It is refused in fit, not before.
_VAR_KEYWORD = "prefixed"

# Automatic batch sizes for tables of fewer rows than the first number; 1024 for larger
# tables. The smaller the table, the more steps an epoch needs to make progress.
_AUTO_BATCH_SIZES = (
    (700, 32),
    (1500, 64),
    (6000, 128),
    (30_000, 256),
    (100_000, 512),
)


# Automatic numbers of epochs for tables of fewer rows than the first number; 8 for
# larger tables, of which an epoch has more steps.
_AUTO_EPOCHS = ((30_000, 30), (100_000, 12))


def is_auto(value: Any) -> bool:
    """Whether ``value`` is the string ``"auto"``."""
    return isinstance(value, str) and value == "auto"


def automatic_batch_size(n_rows: int) -> int:
    """Return the batch size that ``batch_size="auto"`` means for ``n_rows`` rows."""
    return next((size for below, size in _AUTO_BATCH_SIZES if n_rows < below), 1024)


def automatic_epochs(n_rows: int) -> int:
    """Return the epochs that ``max_epochs="auto"`` means for ``n_rows`` rows."""
    return next((epochs for below, epochs in _AUTO_EPOCHS if n_rows < below), 8)


def _metrics() -> tuple[str, ...]:
    return ("loss", *get_scorer_names())


# `guard_parts` checks the parameters of the guard, of clipping and of the schedule.
_COUNT_OR_AUTO = (
    lambda v: COUNT[0](v) or is_auto(v),
    "an integer of at least 1 or 'auto'",
)
_RULES: dict[str, Rule] = {
    "lr": (
        lambda v: (is_number(v) and 0 < v < math.inf) or is_auto(v),
        "a finite number above 0 or 'auto'",
    ),
    "max_epochs": _COUNT_OR_AUTO,
    "max_time": (
        lambda v: v is None or (is_number(v) and v > 0),
        "a number above 0 or None",
    ),
    "batch_size": _COUNT_OR_AUTO,
    "weight_decay": (
        lambda v: is_number(v) and 0 <= v < math.inf,
        "a finite number of at least 0",
    ),
    "early_stopping": (
        lambda v: is_flag(v) or is_auto(v),
        "True, False or 'auto'",
    ),
    "validation_fraction": (
        lambda v: is_number(v) and 0 < v < 1,
        "a number between 0 and 1, both excluded",
    ),
    "validation_split": (
        lambda v: v is None or is_splitter(v) or is_chunks(v),
        "a splitter such as GroupKFold(), a list of (train, valid) pairs of row "
        "numbers, 'chunks' or None",
    ),
    "scoring": (
        lambda v: v is None or callable(v) or is_one_of(v, _metrics()),
        "'loss', a name from sklearn.metrics.get_scorer_names(), a callable or None",
    ),
    "n_iter_no_change": COUNT,
    "warm_start": FLAG,
    "num_threads": _COUNT_OR_AUTO,
    "compile": FLAG,
    "verbose": VERBOSE,
    "callbacks": (
        lambda v: (
            v is None or (isinstance(v, (list, tuple)) and all(map(is_callback, v)))
        ),
        "a list of skorch callbacks or None",
    ),
}


def check_parameters(estimator: PrefixedParamsMixin) -> None:
    """Raise an error for the first parameter that breaks its rule.

    Raises
    ------
    ValueError or TypeError
        If a parameter is invalid. The message contains its name, rule and value.
    """
    if hasattr(estimator, _VAR_KEYWORD):
        raise ValueError(estimator._unknown_parameter(_VAR_KEYWORD))
    for name in _RULES:
        check_own_parameter(estimator, name)
    guard_parts(estimator)


def check_own_parameter(estimator: BaseEstimator, name: str) -> None:
    """Raise an error if a parameter of an estimator breaks its rule."""
    owner = type(estimator).__name__
    check_parameter(owner, name, getattr(estimator, name), _RULES[name])


class PrefixedParamsMixin(BaseEstimator):
    """Estimator whose constructor accepts parameters of the network's components.

    These parameters are stored as attributes. ``get_params``, ``set_params``, ``clone``
    and parameter grids include them.
    """

    def _store_params(self, given: dict[str, Any]) -> None:
        """Set the arguments of the constructor, its ``locals()``, as attributes.

        Raises
        ------
        TypeError
            If an argument is neither a parameter nor prefixed.
        """
        for name in self._get_param_names():
            setattr(self, name, given[name])
        for name, value in given[_VAR_KEYWORD].items():
            if not self._is_prefixed(name) and name != _VAR_KEYWORD:
                raise TypeError(self._unknown_parameter(name))
            setattr(self, name, value)

    @classmethod
    @functools.cache
    def _get_param_names(cls) -> list[str]:
        # Without the cache, reading the signature takes most of the time of a clone.
        names: list[str] = super()._get_param_names()
        return names

    @staticmethod
    def _is_prefixed(name: str) -> bool:
        prefix, _, rest = name.partition("__")
        return prefix in _PREFIXES and bool(rest)

    def _unknown_parameter(self, name: str) -> str:
        """Return the message about an unknown parameter."""
        prefixes = ", ".join(f"{prefix}__..." for prefix in _PARTS)
        meant = self._nearest_parameter(name)
        hint = f" Did you mean {meant!r}?" if meant else ""
        return (
            f"{type(self).__name__} has no parameter {name!r}.{hint} Parameters of "
            f"the network's parts are written {prefixes}."
        )

    @classmethod
    def _nearest_parameter(cls, name: str) -> str | None:
        """Return the parameter that a name of another object may stand for."""
        if cls._is_prefixed(name):
            return name
        known = sorted(cls._get_param_names())
        last = name.rpartition("__")[2]
        meant = _SYNONYMS.get(last, last)
        is_known = meant in known or cls._is_prefixed(meant)
        return meant if is_known else nearest_name(name, known)

    def _prefixed_params(self) -> dict[str, Any]:
        names = [name for name in vars(self) if "__" in name]
        return {k: getattr(self, k) for k in names if self._is_prefixed(k)}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, including those with a prefix.

        Parameters
        ----------
        deep : bool, default=True
            Whether to include the parameters of nested estimators.

        Returns
        -------
        dict of str to object
        """
        return {**super().get_params(deep=deep), **self._prefixed_params()}

    def set_params(self, **params: Any) -> PrefixedParamsMixin:
        """Set parameters, including those with a prefix.

        Parameters
        ----------
        **params : object
            Values by parameter name, as in the constructor.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is unknown.
        """
        known = set(self._get_param_names())
        for name, value in params.items():
            if not (name in known or self._is_prefixed(name) or name == _VAR_KEYWORD):
                raise ValueError(self._unknown_parameter(name))
            setattr(self, name, value)
        return self

    def _params_for(self, prefix: str) -> dict[str, Any]:
        """Return the parameters with this prefix, without the prefix."""
        start = f"{prefix}__"
        return {
            name.removeprefix(start): value
            for name, value in vars(self).items()
            if name.startswith(start)
        }
