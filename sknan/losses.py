"""Losses by name, and what an estimator must know of each of them.

An estimator that is told ``criterion="huber"`` needs three facts: whether the loss is
for classes or for numbers, whether it makes sense on a standardised target, and how the
network's raw output becomes a prediction. Each class here carries them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sknan._checks import did_you_mean

__all__ = [
    "CLASSIFICATION_LOSSES",
    "REGRESSION_LOSSES",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "HuberLoss",
    "L1Loss",
    "MSELoss",
    "PoissonNLLLoss",
    "get_criterion",
]

Task = Literal["classification", "regression"]


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Cross-entropy of logits (n_samples, n_classes) and class codes (n_samples,)."""

    task: ClassVar[Task] = "classification"

    @staticmethod
    def predict(output: Tensor) -> Tensor:
        """Probabilities (n_samples, n_classes)."""
        return torch.softmax(output, dim=-1)


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """Binary cross-entropy of logits (n_samples, 1) and 0 or 1 of the same shape."""

    task: ClassVar[Task] = "classification"

    @staticmethod
    def predict(output: Tensor) -> Tensor:
        """Probabilities of the second class (n_samples, 1)."""
        return torch.sigmoid(output)


class _RegressionLoss:
    """A loss whose optimum moves and stretches with the target."""

    task: ClassVar[Task] = "regression"
    standardizes_target: ClassVar[bool] = True

    @staticmethod
    def predict(output: Tensor) -> Tensor:
        """The output itself, in the units it was trained on."""
        return output


class MSELoss(_RegressionLoss, nn.MSELoss):
    """Squared error."""


class L1Loss(_RegressionLoss, nn.L1Loss):
    """Absolute error."""


class HuberLoss(_RegressionLoss, nn.HuberLoss):
    """Squared error up to ``delta`` (in target standard deviations), then absolute."""


class PoissonNLLLoss(_RegressionLoss, nn.PoissonNLLLoss):
    """Poisson likelihood of counts; the network's output is the log of the rate."""

    standardizes_target = False

    @staticmethod
    def predict(output: Tensor) -> Tensor:
        """The rate: exp of the output, bounded to stay finite in float32."""
        return torch.exp(output.clamp(max=88.0))


CLASSIFICATION_LOSSES: dict[str, type[Any]] = {
    "cross_entropy": CrossEntropyLoss,
    "binary_cross_entropy": BCEWithLogitsLoss,
}
REGRESSION_LOSSES: dict[str, type[Any]] = {
    "mse": MSELoss,
    "squared_error": MSELoss,
    "mae": L1Loss,
    "absolute_error": L1Loss,
    "huber": HuberLoss,
    "poisson": PoissonNLLLoss,
}


def get_criterion(name: str) -> type[Any]:
    """Loss class of a name.

    Parameters
    ----------
    name : str
        A key of ``CLASSIFICATION_LOSSES`` or ``REGRESSION_LOSSES``.

    Returns
    -------
    type
        Subclass of ``torch.nn.Module``.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists the known ones.
    """
    known = CLASSIFICATION_LOSSES | REGRESSION_LOSSES
    if name not in known:
        listed = ", ".join(repr(key) for key in known)
        raise ValueError(
            f"Unknown criterion {name!r}.{did_you_mean(name, known)} "
            f"Known criteria: {listed}."
        )
    return known[name]
