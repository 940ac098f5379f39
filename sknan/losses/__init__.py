"""Losses with finite values and gradients, as classes and by name."""

from sknan.losses._bounded import BoundedLoss, unbounded
from sknan.losses._classification import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    FocalLoss,
    NLLLoss,
    ProbabilityNLLLoss,
)
from sknan.losses._registry import (
    CLASSIFICATION_LOSSES,
    REGRESSION_LOSSES,
    get_criterion,
)
from sknan.losses._regression import (
    CorrelationLoss,
    CosineSimilarityLoss,
    GammaLoss,
    GaussianNLLLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    LogCoshLoss,
    MAPELoss,
    MSELoss,
    MSLELoss,
    PoissonNLLLoss,
    PseudoHuberLoss,
    QuantileLoss,
    RMSELoss,
    SMAPELoss,
    TweedieLoss,
)
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
