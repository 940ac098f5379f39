"""Pickles that record the versions of the packages that made them.

scikit-learn warns if one of its own estimators is loaded under another version, but
records no version for classes of other packages. A pickled network also depends on
torch.
"""

from __future__ import annotations

import copy
import functools
import sys
import warnings
from collections import OrderedDict
from collections.abc import Generator, Iterable
from importlib.metadata import version
from typing import Any, ClassVar

import cloudpickle
import sklearn
import torch
from sklearn.exceptions import InconsistentVersionWarning
from torch import nn
from torch.nn.parameter import UninitializedBuffer
from torch.nn.utils import parametrize

from sknan._utils.outside import is_of_signal, unless

_KEY = "_pickled_with"

# Methods by which a class says how its instances are pickled or copied.
_COPY_METHODS = ("__reduce__", "__getstate__", "__deepcopy__")


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


def refuse_unpicklable(module: nn.Module) -> None:
    """Raise an error that names a part of a module that cannot be pickled or copied.

    Parameters
    ----------
    module : nn.Module
        Module that is to be pickled or copied.

    Raises
    ------
    TypeError
        If torch.jit has compiled a part, or an attribute is of a kind without pickles,
        such as a lock, unless the class of the part says how to pickle or copy it.
    """
    for path, part in module.named_modules():
        where, kind = f"The part {path!r}" if path else "The module", type(part)
        if isinstance(part, torch.jit.ScriptModule):
            raise TypeError(
                f"{where} cannot be pickled or copied, because torch.jit has compiled "
                "it. Use the module before torch.jit.script or torch.jit.trace."
            )
        known = [getattr(nn.Module, name, None) for name in _COPY_METHODS]
        if known != [getattr(kind, name, None) for name in _COPY_METHODS]:
            continue
        for name, value in vars(part).items():
            error = _error_of_pickle(value)
            if error is not None:
                raise TypeError(
                    f"{where} cannot be pickled or copied, because of its attribute "
                    f"{name!r}: {error}. Create it in forward, or leave it out in a "
                    f"__getstate__ of {kind.__name__}."
                )


def _error_of_pickle(value: Any) -> Exception | None:
    """Return the error of a pickle of an object of Python's own libraries, if any."""
    package = type(value).__module__.partition(".")[0]
    # Other objects, functions and containers may hold the net that is being pickled.
    may_hold_net = callable(value) or isinstance(value, Iterable)
    is_generator = isinstance(value, Generator)
    if package not in sys.stdlib_module_names or (may_hold_net and not is_generator):
        return None
    try:
        cloudpickle.dumps(value)
    except unless(is_of_signal, Exception) as error:
        return error
    return None


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
    refuse_unpicklable(module)
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
