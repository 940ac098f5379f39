"""Losses of many networks at once, written out with their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from sknan.losses._closed_forms import closed_form_of

__all__ = ["StackedLoss", "loss_of"]


class StackedLoss:
    """Mean loss of the rows of each slice, over outputs that lie in one place.

    Parameters
    ----------
    output : Tensor of shape (K, n_outputs, B)
        Where the outputs will be.

    Attributes
    ----------
    grad : Tensor of shape (K, n_outputs, B)
        Where the gradient of the outputs is left.
    """

    def __init__(self, output: Tensor) -> None:
        self.output = output
        self.grad, self.terms = (torch.empty_like(output) for _ in range(2))
        self.losses = output.new_empty(len(output))
        self.found: NDArray[Any] = self.losses.numpy()

    @staticmethod
    def takes(y: Tensor) -> bool:
        """Whether these are targets that it knows."""
        raise NotImplementedError

    @staticmethod
    def prepared(target: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
        """Targets of rows (..., K, B) as :meth:`evaluate` takes them.

        Parameters
        ----------
        target : Tensor
            Of these rows, one after the other.
        shape : sequence of int
            (..., K, B).
        like : Tensor of shape (0, n_outputs)
            Of the dtype of the outputs.
        """
        raise NotImplementedError

    def evaluate(self, target: Tensor) -> NDArray[Any]:
        """Losses (K,); the gradient of the outputs is left in its place."""
        raise NotImplementedError


class _CrossEntropy(StackedLoss):
    """Of logits, for class codes."""

    def __init__(self, output: Tensor) -> None:
        super().__init__(output)
        self.logs = torch.empty_like(output)
        self.rows_of_terms = self.terms.flatten(1)

    @staticmethod
    def takes(y: Tensor) -> bool:
        return y.ndim == 1 and y.dtype == torch.int64

    @staticmethod
    def prepared(target: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
        # The gradient of the loss by the logarithms of the probabilities.
        *slices, n_rows = shape
        shares = like.new_zeros(*slices, like.shape[1], n_rows)
        return shares.scatter_(-2, target.view(*slices, 1, n_rows), -1.0 / n_rows)

    def evaluate(self, target: Tensor) -> NDArray[Any]:
        logs = torch._log_softmax(self.output, 1, False, out=self.logs)
        torch.mul(logs, target, out=self.terms)
        torch.sum(self.rows_of_terms, 1, out=self.losses)
        torch._log_softmax_backward_data(target, logs, 1, logs.dtype, out=self.grad)
        return self.found


class _SquaredError(StackedLoss):
    """Mean over the outputs as well."""

    def __init__(self, output: Tensor) -> None:
        super().__init__(output)
        self.slope = 2.0 / output[0].numel()

    @staticmethod
    def takes(y: Tensor) -> bool:
        return y.is_floating_point()

    @staticmethod
    def prepared(target: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
        return target.view(*shape, like.shape[1]).transpose(-1, -2).contiguous()

    def evaluate(self, target: Tensor) -> NDArray[Any]:
        torch.sub(self.output, target, out=self.grad)
        torch.square(self.grad, out=self.terms)
        torch.mean(self.terms, (1, 2), out=self.losses)
        self.grad.mul_(self.slope)
        return self.found


_STACKED_LOSSES = {"cross_entropy": _CrossEntropy, "squared_error": _SquaredError}


def loss_of(criterion: Any) -> type[StackedLoss] | None:
    """The loss of stacked outputs, if it is written out here.

    Parameters
    ----------
    criterion : nn.Module
        Any.

    Returns
    -------
    type or None
    """
    form = closed_form_of(criterion)
    return None if form is None else _STACKED_LOSSES[form]
