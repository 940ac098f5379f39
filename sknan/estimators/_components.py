"""Module, criterion, optimizer and device of a net from an estimator's parameters.

Each function receives a parameter, the prefixed parameters that belong to it, and the
class name of the estimator (``owner``) for messages.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sknan._utils.outside import is_of_environment, unless
from sknan._utils.pickling import copy_of_module
from sknan._utils.validation import did_you_mean
from sknan.losses._registry import (
    CLASSIFICATION_LOSSES,
    REGRESSION_LOSSES,
    get_criterion,
)
from sknan.losses._traits import traits_of
from sknan.nets._parameters import (
    accepted_by,
    check_accepted,
    check_complete,
    check_device,
    name_of,
)
from sknan.nets._tabular_mlp import TabularMLP

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}
# Optimizers with a kernel that updates all weights at once, on CPU and CUDA.
_FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad)
_KERNEL_CHOICES = {"fused", "foreach", "capturable", "differentiable"}

_LOSSES = {"classification": CLASSIFICATION_LOSSES, "regression": REGRESSION_LOSSES}


class CallableLoss(nn.Module):
    """Loss function as a module, which skorch requires.

    Parameters
    ----------
    function : callable
        Loss as a function of output and target.
    **options : object
        Further arguments of the function.
    """

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self.function = function
        self.traits = traits_of(function)
        self.options = options

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of ``output`` for ``target``."""
        return self.function(output, target, **self.options)


def _check_nothing_given(prefix: str, part: nn.Module, given: dict[str, Any]) -> None:
    if given:
        raise ValueError(
            f"{prefix} is an instance of {type(part).__name__}, so "
            f"{prefix}__{next(iter(given))} cannot be applied. Pass the class."
        )


def resolve_module(
    module: Any, given: dict[str, Any], sizes: dict[str, int], owner: str
) -> tuple[Any, dict[str, Any]]:
    """Return the module, or a factory and the parameters to call it with.

    Parameters
    ----------
    module : type, nn.Module, callable or None
        Module of an estimator. None means :class:`~sknan.TabularMLP`.
    given : dict
        Values of the ``module__...`` parameters.
    sizes : dict of str to int
        Parameters to add if the factory has them and they are not given.
    owner : str
        Class name of the estimator.

    Returns
    -------
    module : nn.Module or callable
        Copy of an instance, or the factory.
    parameters : dict
        Parameters for the factory.

    Raises
    ------
    ValueError
        If ``module`` is not a module or a factory, or does not have a given parameter.
    """
    module = TabularMLP if module is None else module
    if isinstance(module, nn.Module):
        _check_nothing_given("module", module, given)
        try:
            return copy_of_module(module), {}
        except unless(is_of_environment, Exception) as error:
            raise ValueError(
                f"{owner} trains a copy of an instance, but {type(module).__name__} "
                f"cannot be copied: {str(error).rstrip('.')}. Pass a class or a "
                "function that returns a new module."
            ) from error
    if not callable(module):
        raise ValueError(
            "module must be a torch.nn.Module class or instance, a function that "
            f"returns one, or None, got {module!r}."
        )
    check_accepted("module", module, given, owner)
    accepted = accepted_by(module) or ()
    filled = {name: size for name, size in sizes.items() if name in accepted}
    filled |= given
    check_complete("module", module, filled, owner)
    return module, filled


def resolve_criterion(
    criterion: Any, given: dict[str, Any], *, task: str, per_row: bool, owner: str
) -> nn.Module:
    """Return a new module for the criterion.

    Parameters
    ----------
    criterion : str, type, nn.Module or callable
        A name of :func:`~sknan.losses.get_criterion`, a class, an instance (which is
        copied), or a function of output and target.
    given : dict
        Values of the ``criterion__...`` parameters.
    task : {"classification", "regression"}
        Task of the estimator.
    per_row : bool
        Whether the module must return one loss per row.
    owner : str
        Class name of the estimator.

    Returns
    -------
    nn.Module

    Raises
    ------
    ValueError
        If the criterion is unknown, is for the other task, does not have a given
        parameter, or cannot return a loss per row.
    """
    name = name_of(criterion)
    if isinstance(criterion, str):
        criterion = get_criterion(criterion)
    traits = traits_of(criterion)
    if traits.task not in (None, task):
        raise ValueError(
            f"criterion={name} is for {traits.task}, but {owner} does "
            f"{task}. Choose one of: "
            f"{', '.join(repr(name) for name in _LOSSES[task])}."
        )
    built: Any
    if isinstance(criterion, nn.Module):
        _check_nothing_given("criterion", criterion, given)
        built = copy.deepcopy(criterion)
    elif callable(criterion):
        check_accepted("criterion", criterion, given, owner)
        is_class = isinstance(criterion, type)
        built = criterion(**given) if is_class else CallableLoss(criterion, **given)
    else:
        raise ValueError(
            "criterion must be a name, a torch.nn.Module class or instance, or a "
            f"function, got {criterion!r}."
        )
    if per_row:
        if not hasattr(built, "reduction"):
            raise ValueError(
                "sample_weight and class_weight need a loss per row, but "
                f"{name} has no 'reduction' to turn off. Use a criterion by "
                "name, or one whose reduction can be 'none'."
            )
        # A loss defined on whole batches receives the weights as an argument.
        if traits.is_per_row:
            built.reduction = "none"
    module: nn.Module = built
    return module


def resolve_optimizer(
    optimizer: Any, given: dict[str, Any], weight_decay: float, owner: str
) -> tuple[Any, dict[str, Any]]:
    """Return the class of the optimizer and its parameters.

    Parameters
    ----------
    optimizer : str or type
        A name, or a class of ``torch.optim``.
    given : dict
        Values of the ``optimizer__...`` parameters.
    weight_decay : float
        Weight decay to add if the optimizer has this parameter and it is not given.
    owner : str
        Class name of the estimator.

    Returns
    -------
    optimizer : type
        Class of the optimizer.
    parameters : dict
        Parameters for the class. They include ``fused=True`` if torch has a fused
        kernel for it.

    Raises
    ------
    ValueError
        If the name is unknown, or the class does not have a given parameter.
    """
    if isinstance(optimizer, str):
        if optimizer not in _OPTIMIZERS:
            raise ValueError(
                f"Unknown optimizer {optimizer!r}."
                f"{did_you_mean(optimizer, _OPTIMIZERS)} Known optimizers: "
                f"{', '.join(repr(name) for name in _OPTIMIZERS)}."
            )
        optimizer = _OPTIMIZERS[optimizer]
    if not callable(optimizer):
        raise ValueError(
            f"optimizer must be a name or a class of torch.optim, got {optimizer!r}."
        )
    # skorch accepts param_groups for any optimizer.
    named = {name: v for name, v in given.items() if name != "param_groups"}
    check_accepted("optimizer", optimizer, named, owner)
    parameters = dict(given)
    if "weight_decay" in (accepted_by(optimizer) or ()):
        parameters.setdefault("weight_decay", weight_decay)
    if optimizer in _FUSED and not _KERNEL_CHOICES & set(given):
        parameters["fused"] = True
    return optimizer, parameters


def resolve_device(device: str) -> str:
    """Return the name of the device to train on; ``"auto"`` is the GPU if there is one.

    Raises
    ------
    ValueError
        If the name is invalid, or this machine does not have the device.
    """
    if isinstance(device, str) and device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device, "'auto'", ", or device='auto' for the GPU if there is one")
    return device
