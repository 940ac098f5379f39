"""Targets and predictions of a net in the terms of its estimator, for callbacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from sklearn.metrics import d2_pinball_score, r2_score
from skorch.dataset import Dataset
from torch import Tensor, nn

from sknan._utils.validation import FLOAT32_MAX
from sknan.losses._bounded import unbounded
from sknan.nets._batching import TensorTable

# Of a float32 of this exponent, a sum of squares is far within the range.
_LARGE_EXPONENT = 40


class TargetCoding(Protocol):
    """Conversion between the targets of a net and those of its estimator."""

    @property
    def classes(self) -> np.ndarray | None:
        """Labels of the classes; None for a regressor."""

    def decode(self, target: Tensor) -> np.ndarray:
        """Return labels, or numbers in the units of ``y``, for targets of the net."""

    def responses(
        self, criterion: nn.Module, output: Tensor, *, in_logits: bool = False
    ) -> Tensor:
        """Return predicted numbers or probabilities, differentiable by the output."""

    def probabilities(self, criterion: nn.Module, output: Tensor) -> np.ndarray:
        """Return the probabilities of the classes, (n_samples, n_classes)."""

    def predict(self, criterion: nn.Module, output: Tensor) -> np.ndarray:
        """Return labels, or numbers in the units of ``y``, for outputs of the net."""


def decoded(y: Any, coding: TargetCoding) -> np.ndarray:
    """Return the targets of rows, or of pairs of target and weight, as the user did."""
    return coding.decode(y[0] if isinstance(y, tuple) else y)


def levels_of(criterion: nn.Module) -> Any:
    """Return the quantiles that a loss predicts, a number or several, or None."""
    return getattr(unbounded(criterion), "quantile", None)


def regression_score(
    criterion: nn.Module, y: Any, predicted: np.ndarray, sample_weight: Any = None
) -> float:
    """Return the R2 score, or the mean D2 pinball score of several quantiles."""
    levels = levels_of(criterion)
    y, predicted = _in_moderate_unit(y, predicted)
    if np.ndim(levels) == 0:
        return float(r2_score(y, predicted, sample_weight=sample_weight))
    scores = [
        d2_pinball_score(y, predicted[..., i], sample_weight=sample_weight, alpha=q)
        for i, q in enumerate(levels)
    ]
    return float(np.mean(scores))


def _in_moderate_unit(y: Any, predicted: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return both in a unit in which no square overflows or vanishes, without error."""
    values = np.asarray(y)
    if values.dtype.kind != "f" or not values.size:
        return y, predicted
    exponents = np.frexp(np.abs(values).max(axis=0))[1]
    if np.abs(exponents).max() < _LARGE_EXPONENT:
        return y, predicted
    per_target = exponents.reshape(-1, *[1] * (predicted.ndim - values.ndim))
    return np.ldexp(values, -exponents), np.ldexp(predicted, -per_target)


@dataclass(frozen=True)
class ColumnScaling:
    """Standardization of the columns of ``X`` that are in raw units.

    It is computed in float64, since float32 cannot resolve a small spread on a large
    offset, such as seconds of a Unix time.

    Parameters
    ----------
    mean, scale : ndarray of shape (n_features,), float64
        Mean and standard deviation of each column; 0 and 1 for the other columns.
    """

    mean: np.ndarray
    scale: np.ndarray

    def scaled(self, X: np.ndarray) -> np.ndarray:
        """Return rows in the units of the network, as float32."""
        # Halves: the difference of two values near the largest float overflows.
        halves = X.astype(np.float64) / 2 - self.mean / 2
        scaled = halves / self.scale * 2
        scaled = np.minimum(np.maximum(scaled, -FLOAT32_MAX), FLOAT32_MAX)
        rows: np.ndarray = scaled.astype(np.float32)
        return rows

    def unscaled(self, X: Tensor) -> np.ndarray:
        """Return rows in the units of the user, as float64."""
        rows: np.ndarray = X.double().numpy(force=True) * self.scale + self.mean
        return rows


class UserRows(Dataset):
    """Rows of a table with the inputs and targets that the user passed.

    Parameters
    ----------
    table : TensorTable
        Rows as the net is trained on them.
    coding : TargetCoding
        Conversion of the targets.
    scaling : ColumnScaling or None
        Conversion of the inputs.
    """

    def __init__(
        self, table: TensorTable, coding: TargetCoding, scaling: ColumnScaling | None
    ) -> None:
        self.table = table
        self.coding = coding
        self.scaling = scaling

    @property
    def X(self) -> Any:
        """Inputs of all rows."""
        return self._unscaled(self.table.X)

    def _unscaled(self, X: Any) -> Any:
        return X if self.scaling is None else self.scaling.unscaled(X)

    @property
    def y(self) -> np.ndarray:
        """Targets of all rows."""
        return decoded(self.table.y, self.coding)

    @property
    def numbers(self) -> Tensor:
        """Row numbers in the data of the user."""
        return self.table.numbers

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        X, y = self.table.rows(slice(index, index + 1))
        return self._unscaled(X)[0], decoded(y, self.coding)[0]
