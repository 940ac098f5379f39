"""Parameters of the components of an estimator, such as ``module__width``."""

from __future__ import annotations

import functools
from typing import Any

from sklearn.base import BaseEstimator

from sknan._utils.validation import did_you_mean

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


class PrefixedParamsMixin(BaseEstimator):
    """Estimator whose constructor accepts parameters of the network's components.

    These parameters are stored as attributes. ``get_params``, ``set_params``, ``clone``
    and parameter grids include them.
    """

    def _store_params(self, given: dict[str, Any]) -> None:
        """Set the arguments of the constructor as attributes.

        Parameters
        ----------
        given : dict
            The ``locals()`` of the constructor.

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
        known = sorted(self._get_param_names())
        prefixes = ", ".join(f"{prefix}__..." for prefix in _PARTS)
        meant = _SYNONYMS.get(name)
        hint = f" Did you mean {meant!r}?" if meant else did_you_mean(name, known)
        return (
            f"{type(self).__name__} has no parameter {name!r}.{hint} Parameters of "
            f"the network's parts are written {prefixes}."
        )

    def _prefixed_params(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if self._is_prefixed(k)}

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
            for name, value in self._prefixed_params().items()
            if name.startswith(start)
        }

    def _check_no_stray_param(self) -> None:
        """Refuse a parameter with the name of the constructor's ``**`` argument."""
        if hasattr(self, _VAR_KEYWORD):
            raise ValueError(self._unknown_parameter(_VAR_KEYWORD))
