"""Parameters with a prefix, such as ``module__width``, of an estimator."""

from __future__ import annotations

import functools
from typing import Any

from sklearn.base import BaseEstimator

from sknan._utils.validation import did_you_mean

__all__ = ["PrefixedParamsMixin"]

# Of the network's parts, and of what is done with them.
_PARTS = ("module", "criterion", "optimizer")
_PREFIXES = (*_PARTS, "compile")
# What the same thing is called elsewhere: in Keras, torch and scikit-learn's own MLP.
_ELSEWHERE = {
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
# Whoever walks the constructor's signature finds this name among the parameters, as
# scikit-learn's own checks do; it is only refused when it comes to training.
_VAR_KEYWORD = "prefixed"


class PrefixedParamsMixin(BaseEstimator):
    """Estimator whose constructor also takes the parameters of its network's parts.

    They are attributes like any other, and live in ``get_params``, ``set_params``,
    ``clone`` and parameter grids.
    """

    def _store_params(self, given: dict[str, Any]) -> None:
        """Set the constructor's arguments as attributes.

        Parameters
        ----------
        given : dict
            ``locals()`` of the constructor.

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
        # Reading them off the signature is most of what a clone takes.
        names: list[str] = super()._get_param_names()
        return names

    @staticmethod
    def _is_prefixed(name: str) -> bool:
        prefix, _, rest = name.partition("__")
        return prefix in _PREFIXES and bool(rest)

    def _unknown_parameter(self, name: str) -> str:
        known = sorted(self._get_param_names())
        prefixes = ", ".join(f"{prefix}__..." for prefix in _PARTS)
        meant = _ELSEWHERE.get(name)
        hint = f" Did you mean {meant!r}?" if meant else did_you_mean(name, known)
        return (
            f"{type(self).__name__} has no parameter {name!r}.{hint} Parameters of "
            f"the network's parts are written {prefixes}."
        )

    def _prefixed_params(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if self._is_prefixed(k)}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Get the parameters, those with a prefix included.

        Parameters
        ----------
        deep : bool, default=True
            Whether to add the parameters of parameters that are estimators.

        Returns
        -------
        dict of str to object
        """
        return {**super().get_params(deep=deep), **self._prefixed_params()}

    def set_params(self, **params: Any) -> PrefixedParamsMixin:
        """Set parameters, those with a prefix included.

        Parameters
        ----------
        **params : object
            As in ``__init__``.

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
        start = f"{prefix}__"
        return {
            name.removeprefix(start): value
            for name, value in self._prefixed_params().items()
            if name.startswith(start)
        }

    def _check_no_stray_param(self) -> None:
        if hasattr(self, _VAR_KEYWORD):
            raise ValueError(self._unknown_parameter(_VAR_KEYWORD))
