"""Targets and predictions of a net in the terms of its estimator, for callbacks."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from skorch.dataset import Dataset
from torch import Tensor, nn

from sknan.nets._batching import TensorTable


class TargetCoding(Protocol):
    """Conversion between the targets of a net and those of its estimator."""

    @property
    def classes(self) -> np.ndarray | None:
        """Labels of the classes; None for a regressor."""

    def decode(self, target: Tensor) -> np.ndarray:
        """Return labels, or numbers in the units of ``y``, for targets of the net."""

    def probabilities(self, criterion: nn.Module, output: Tensor) -> np.ndarray:
        """Return the probabilities of the classes, (n_samples, n_classes)."""

    def predict(self, criterion: nn.Module, output: Tensor) -> np.ndarray:
        """Return labels, or numbers in the units of ``y``, for outputs of the net."""


def decoded(y: Any, coding: TargetCoding) -> np.ndarray:
    """Return the targets of rows as the user passed them.

    Parameters
    ----------
    y : Tensor or tuple of (Tensor, Tensor)
        Targets as the net is trained on them, or pairs of target and weight.
    coding : TargetCoding
        Conversion of the targets.
    """
    return coding.decode(y[0] if isinstance(y, tuple) else y)


class UserRows(Dataset):
    """Rows of a table with the targets that the user passed.

    Parameters
    ----------
    table : TensorTable
        Rows as the net is trained on them.
    coding : TargetCoding
        Conversion of the targets.
    """

    def __init__(self, table: TensorTable, coding: TargetCoding) -> None:
        self.table = table
        self.coding = coding

    @property
    def X(self) -> Any:
        """Inputs of all rows."""
        return self.table.X

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
        return X[0], decoded(y, self.coding)[0]
