"""Losses with finite values and gradients, as classes and by name.

A loss that torch also has is a subclass of torch's class, has the same parameters, and
is bitwise equal to it where torch's value is finite. These properties hold for every
loss:

- It accepts ``sample_weight``, has the reductions ``"mean"``, ``"sum"`` and ``"none"``,
  and is 0 if there is nothing to average.
- float16 and bfloat16 are computed and returned in float32, because the sum over many
  rows may exceed their range.
- A NaN in the input gives NaN. A batch whose loss exceeds the range of the dtype has
  the largest number as its loss, and gradient 0.

Estimators accept a loss by name, as in ``criterion="huber"``. The facts about a loss
that they need are in its attribute ``traits``, see :class:`LossTraits`; its method
``predict`` turns the output of a network into predictions.
"""

from sknan.losses._bounded import BoundedLoss, unbounded
from sknan.losses._classification import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    FocalLoss,
    NLLLoss,
    ProbabilityNLLLoss,
)
from sknan.losses._multiplicative import (
    GammaLoss,
    MAPELoss,
    MSLELoss,
    PoissonNLLLoss,
    SMAPELoss,
    TweedieLoss,
)
from sknan.losses._registry import (
    CLASSIFICATION_LOSSES,
    REGRESSION_LOSSES,
    get_criterion,
)
from sknan.losses._regression import (
    GaussianNLLLoss,
    HuberLoss,
    L1Loss,
    LogCoshLoss,
    MSELoss,
    PseudoHuberLoss,
    QuantileLoss,
    RMSELoss,
)
from sknan.losses._similarity import CorrelationLoss, CosineSimilarityLoss, KLDivLoss
from sknan.losses._traits import LossTraits, traits_of

__all__ = [
    "CLASSIFICATION_LOSSES",
    "REGRESSION_LOSSES",
    "BCEWithLogitsLoss",
    "BoundedLoss",
    "CorrelationLoss",
    "CosineSimilarityLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "GammaLoss",
    "GaussianNLLLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "LogCoshLoss",
    "LossTraits",
    "MAPELoss",
    "MSELoss",
    "MSLELoss",
    "NLLLoss",
    "PoissonNLLLoss",
    "ProbabilityNLLLoss",
    "PseudoHuberLoss",
    "QuantileLoss",
    "RMSELoss",
    "SMAPELoss",
    "TweedieLoss",
    "get_criterion",
    "traits_of",
    "unbounded",
]
