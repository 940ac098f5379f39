"""Pickles that record the versions of the packages that made them.

scikit-learn warns if one of its own estimators is loaded under another version, but
records no version for classes of other packages. A pickled network also depends on
torch.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections import OrderedDict
from importlib.metadata import version
from typing import Any, ClassVar

import sklearn
import torch
from sklearn.exceptions import InconsistentVersionWarning
from torch import nn
from torch.nn.parameter import UninitializedBuffer
from torch.nn.utils import parametrize

_KEY = "_pickled_with"


@functools.cache
def versions() -> dict[str, str]:
    """Return the installed versions of the packages that a model depends on."""
    return {
        "sknan": version("sknan"),
        "torch": str(torch.__version__),
        "scikit-learn": sklearn.__version__,
    }


def make_picklable(module: nn.Module) -> None:
    """Make the parametrized parts of a module picklable, as under weight norm.

    torch gives each parametrized part a class of its own, which refuses to be pickled
    because no other process can import it. The class before the parametrization and the
    attributes are enough to restore it.

    Parameters
    ----------
    module : nn.Module
        Module whose parts may be parametrized.
    """
    for part in module.modules():
        if parametrize.is_parametrized(part):
            kind: Any = type(part)
            kind.__reduce__ = _reduce_parametrized


def _reduce_parametrized(part: nn.Module) -> Any:
    original = parametrize.type_before_parametrizations(part)
    # A local hook of weight norm only converts the state of torch's former weight norm.
    attributes = {**vars(part), "_load_state_dict_pre_hooks": OrderedDict()}
    return _restore_parametrized, (original, attributes)


def _restore_parametrized(original: Any, attributes: dict[str, Any]) -> nn.Module:
    part: nn.Module = original.__new__(original)
    part.__dict__.update(attributes)
    parametrize._inject_new_class(part)
    for name in part.parametrizations:  # type: ignore[union-attr]
        parametrize._inject_property(part, name)
    return part


def copy_of_module(module: nn.Module) -> nn.Module:
    """Return a deep copy of a module, including tensors that torch cannot copy.

    These are buffers of lazy layers, and weights that are computed from parameters, by
    torch's former weight norm or by pruning.

    Parameters
    ----------
    module : nn.Module
        Module before or after a training.

    Returns
    -------
    nn.Module
    """
    copies: dict[int, Any] = {}
    for part in module.modules():
        for tensor in (*vars(part).values(), *part._buffers.values()):
            if type(tensor) is UninitializedBuffer:
                options: Any = {"device": tensor.device, "dtype": tensor.dtype}
                copies[id(tensor)] = UninitializedBuffer(**options)
            elif isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
                copies[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(module, copies)


def complete_copy(optimizer: Any) -> None:
    """Restore attributes that copies and pickles of an optimizer of torch lack.

    Parameters
    ----------
    optimizer : object
        Copy of an optimizer.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer._params = optimizer.param_groups[0]["params"]
        optimizer._numel_cache = None


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
            state[_KEY] = dict(versions())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        made_with = state.pop(_KEY, {})
        for package, current in versions().items() if self._is_versioned else ():
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
