"""Pickles that record the versions of the packages that made them.

scikit-learn warns if one of its own estimators is loaded under another version, but
records no version for classes of other packages. A pickled network also depends on
torch.
"""

from __future__ import annotations

import functools
import warnings
from importlib.metadata import version
from typing import Any, ClassVar

import sklearn
import torch
from sklearn.exceptions import InconsistentVersionWarning

_KEY = "_pickled_with"


@functools.cache
def _versions() -> dict[str, str]:
    return {
        "sknan": version("sknan"),
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
    }


class VersionedPickleMixin:
    """Mixin that records versions in pickles and warns if they differ on loading.

    A class whose instances are always part of another object of this mixin sets
    ``_is_versioned`` to False, so that a model gives one warning.

    Warns
    -----
    InconsistentVersionWarning
        scikit-learn's warning, once for each package whose version differs.
    """

    _is_versioned: ClassVar[bool] = True

    def __getstate__(self) -> dict[str, Any]:
        # The state of an object without attributes is None.
        inherited: Any = super().__getstate__()
        state: dict[str, Any] = {**(inherited or {})}
        if self._is_versioned:
            state[_KEY] = dict(_versions())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        made_with = state.pop(_KEY, {})
        for package, current in _versions().items() if self._is_versioned else ():
            original = made_with.get(package, "unknown")
            if original != current:
                warnings.warn(
                    InconsistentVersionWarning(
                        estimator_name=type(self).__name__,
                        current_sklearn_version=f"{package} {current}",
                        original_sklearn_version=f"{package} {original}",
                    ),
                    stacklevel=2,
                )
        restore = getattr(super(), "__setstate__", self.__dict__.update)
        restore(state)
