"""Facts about losses that estimators and training loops depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any, Literal

from torch import Tensor, nn

from sknan import functional as sf

TargetDomain = Literal["all", "non-negative", "positive", "unit interval", "signs"]


@dataclass(frozen=True, kw_only=True)
class LossTraits:
    """Facts about a loss that estimators and training loops depend on.

    A loss class states them in its attribute ``traits``. No other module needs to know
    the class, so that a new loss is complete with its own definition. A loss without
    ``traits`` is treated according to the defaults.

    Parameters
    ----------
    names : tuple of str, default=()
        Names of the loss in the ``criterion`` parameter of estimators.
    task : {"classification", "regression"} or None, default=None
        Task that the loss is for; None if it serves both.
    output_kind : {"logits", "log-probabilities", "probabilities"} or None, default=None
        Class scores that the loss expects from the network; None if it does not matter.
    is_binary : bool, default=False
        Whether the loss is for two classes and takes one output per row.
    standardizes_target : bool, default=False
        Whether the target may be standardized for training: the optimum is shifted and
        scaled with the target.
    scales_target : bool, default=False
        Whether the target is divided by a positive number for training, the mean of its
        absolute values: the optimum is scaled with the target.
    unit_power : int or None, default=None
        Power of the target's unit in the value of the loss, for a loss that compares
        output and target directly: 2 for the squared error.
    target_domain : str, default="all"
        Targets for which the loss is defined and has a lower bound: ``"all"``,
        ``"non-negative"``, ``"positive"``, ``"unit interval"``, or ``"signs"`` for -1
        and 1.
    outputs_per_target : int, default=1
        Number of network outputs for each target column.
    is_per_row : bool, default=True
        Whether the loss of a batch is the mean of the losses of its rows.
    infimum : float, default=-inf
        Greatest known lower bound of the loss.
    """

    names: tuple[str, ...] = ()
    task: Literal["classification", "regression"] | None = None
    output_kind: Literal["logits", "log-probabilities", "probabilities"] | None = None
    is_binary: bool = False
    standardizes_target: bool = False
    scales_target: bool = False
    unit_power: int | None = None
    target_domain: TargetDomain = "all"
    outputs_per_target: int = 1
    is_per_row: bool = True
    infimum: float = -math.inf


_CLASSES = LossTraits(task="classification", output_kind="logits", infimum=0.0)
_VALUES = LossTraits(task="regression")
_DISTANCE = replace(_VALUES, standardizes_target=True, unit_power=1, infimum=0.0)

# Binary cross-entropies have no task: a regression may have targets between 0 and 1.
_TRAITS_OF_TORCH: dict[type[Any], LossTraits] = {
    nn.CrossEntropyLoss: _CLASSES,
    nn.NLLLoss: LossTraits(task="classification", output_kind="log-probabilities"),
    nn.MultiMarginLoss: LossTraits(task="classification"),
    nn.MultiLabelMarginLoss: LossTraits(task="classification"),
    nn.BCEWithLogitsLoss: replace(
        _CLASSES, task=None, is_binary=True, target_domain="unit interval"
    ),
    nn.BCELoss: LossTraits(
        output_kind="probabilities", is_binary=True, target_domain="unit interval"
    ),
    nn.MultiLabelSoftMarginLoss: LossTraits(target_domain="unit interval"),
    nn.SoftMarginLoss: LossTraits(target_domain="signs"),
    nn.HingeEmbeddingLoss: LossTraits(target_domain="signs"),
    nn.KLDivLoss: LossTraits(target_domain="non-negative"),
    nn.MSELoss: replace(_DISTANCE, unit_power=2),
    nn.L1Loss: _DISTANCE,
    nn.SmoothL1Loss: replace(_DISTANCE, infimum=-math.inf),
    nn.HuberLoss: _DISTANCE,
    nn.PoissonNLLLoss: replace(
        _VALUES, scales_target=True, target_domain="non-negative"
    ),
    nn.GaussianNLLLoss: _VALUES,
}


def traits_of(criterion: Any) -> LossTraits:
    """Return the traits of a loss.

    Parameters
    ----------
    criterion : type, nn.Module or callable
        A loss, or its class. Its attribute ``traits`` is used if it has one. The
        classes of torch have an entry in a table; of that entry, a subclass keeps what
        does not depend on its formula. Any other loss has the default traits.

    Returns
    -------
    LossTraits

    Examples
    --------
    >>> from torch import nn
    >>> from sknan.losses import QuantileLoss, traits_of
    >>> traits_of(QuantileLoss(0.9)).standardizes_target
    True
    >>> traits_of(nn.MSELoss).unit_power
    2
    """
    declared = getattr(criterion, "traits", None)
    if isinstance(declared, LossTraits):
        return declared
    kind = criterion if isinstance(criterion, type) else type(criterion)
    if kind in _TRAITS_OF_TORCH:
        return _TRAITS_OF_TORCH[kind]
    known = (_TRAITS_OF_TORCH[b] for b in kind.__mro__ if b in _TRAITS_OF_TORCH)
    inherited = next(known, LossTraits())
    return replace(
        inherited,
        task=None,
        scales_target=False,
        target_domain="all",
        infimum=-math.inf,
    )


def is_own_loss(criterion: Any) -> bool:
    """Whether a loss is defined by the user, so that it may accept any target."""
    if isinstance(criterion, str):
        return False
    is_type = isinstance(criterion, (type, FunctionType))
    module = (criterion if is_type else type(criterion)).__module__
    return module.partition(".")[0] not in ("torch", "sknan")


def predictions(criterion: Any, output: Tensor) -> Tensor:
    """Convert the output of a network to predictions.

    The method ``predict`` of the loss, which is not wrapped, is called if it has one.
    """
    if hasattr(criterion, "predict"):
        predicted: Tensor = criterion.predict(output)
        return predicted
    if isinstance(criterion, nn.PoissonNLLLoss) and criterion.log_input:
        return sf.exp(output)
    return output
