"""Losses of many networks at once, with explicit gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sknan.losses._registry import closed_form_of
from sknan.nets._chain import has_plain_forward


class StackedLoss:
    """Mean loss of each member over the rows of a batch.

    The output, its gradient and the losses are tensors that every batch uses again.

    Parameters
    ----------
    output : Tensor of shape (K, n_outputs, B)
        Tensor that the last layer writes its output to.

    Attributes
    ----------
    grad : Tensor of shape (K, n_outputs, B)
        Tensor that :meth:`evaluate` writes the gradient of the output to.
    """

    def __init__(self, output: Tensor) -> None:
        self.output = output
        self.grad, self.terms = (torch.empty_like(output) for _ in range(2))
        self.losses = output.new_empty(len(output))
        self.losses_array: NDArray[Any] = self.losses.numpy()

    @staticmethod
    def prepare_target(
        target: Tensor, shape: Sequence[int], reference: Tensor
    ) -> Tensor:
        """Convert targets to the form that :meth:`evaluate` uses.

        Parameters
        ----------
        target : Tensor
            Targets of all rows, one after the other.
        shape : sequence of int
            Shape (..., K, B) of the tensor of row numbers.
        reference : Tensor of shape (0, n_outputs)
            Tensor of the dtype of the outputs.

        Returns
        -------
        Tensor of shape (..., K, n_outputs, B)
        """
        raise NotImplementedError

    def evaluate(self, target: Tensor) -> NDArray[Any]:
        """Return the losses (K,), and write the gradient of the output to ``grad``.

        Parameters
        ----------
        target : Tensor of shape (K, n_outputs, B)
            Result of :meth:`prepare_target`.

        Returns
        -------
        ndarray of shape (K,)
        """
        raise NotImplementedError


class _CrossEntropy(StackedLoss):
    """Cross-entropy of logits, for class codes."""

    def __init__(self, output: Tensor) -> None:
        super().__init__(output)
        self.log_probabilities = torch.empty_like(output)
        self.flat_terms = self.terms.flatten(1)

    @staticmethod
    def prepare_target(
        target: Tensor, shape: Sequence[int], reference: Tensor
    ) -> Tensor:
        # Gradient of the loss with respect to the log-probabilities.
        *leading, n_rows = shape
        gradient = reference.new_zeros(*leading, reference.shape[1], n_rows)
        return gradient.scatter_(-2, target.view(*leading, 1, n_rows), -1.0 / n_rows)

    def evaluate(self, target: Tensor) -> NDArray[Any]:
        logs = torch._log_softmax(self.output, 1, False, out=self.log_probabilities)
        torch.mul(logs, target, out=self.terms)
        torch.sum(self.flat_terms, 1, out=self.losses)
        torch._log_softmax_backward_data(target, logs, 1, logs.dtype, out=self.grad)
        return self.losses_array


class _SquaredError(StackedLoss):
    """Squared error, averaged over rows and outputs."""

    def __init__(self, output: Tensor) -> None:
        super().__init__(output)
        self.gradient_factor = 2.0 / output[0].numel()

    @staticmethod
    def prepare_target(
        target: Tensor, shape: Sequence[int], reference: Tensor
    ) -> Tensor:
        return target.view(*shape, reference.shape[1]).transpose(-1, -2).contiguous()

    def evaluate(self, target: Tensor) -> NDArray[Any]:
        torch.sub(self.output, target, out=self.grad)
        torch.square(self.grad, out=self.terms)
        torch.mean(self.terms, (1, 2), out=self.losses)
        self.grad.mul_(self.gradient_factor)
        return self.losses_array


class _BinaryCrossEntropy(_SquaredError):
    """Binary cross-entropy of logits, averaged over rows and outputs."""

    def evaluate(self, target: Tensor) -> NDArray[Any]:
        self.terms = F.binary_cross_entropy_with_logits(
            self.output, target, reduction="none"
        )
        torch.mean(self.terms, (1, 2), out=self.losses)
        torch.sigmoid(self.output, out=self.grad)
        self.grad.sub_(target).mul_(self.gradient_factor / 2.0)
        return self.losses_array


_STACKED_LOSSES = {
    "cross_entropy": _CrossEntropy,
    "binary_cross_entropy": _BinaryCrossEntropy,
    "squared_error": _SquaredError,
}


def stacked_loss_of(criterion: object) -> type[StackedLoss] | None:
    """Return the stacked loss that is equal to a criterion.

    It is None if the criterion has no explicit form, or torch must call it for its
    hooks or weights.
    """
    form = closed_form_of(criterion)
    if form is None or not isinstance(criterion, nn.Module):
        return None
    is_plain = has_plain_forward(criterion) and not [*criterion.parameters()]
    return _STACKED_LOSSES[form] if is_plain else None


def plain_loss(criterion: object, output: Any, target: Any) -> Tensor | None:
    """Return the loss of one network in few operations.

    It is None unless the criterion has an explicit form and the shapes are the usual
    ones.
    """
    loss = stacked_loss_of(criterion)
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
        return None
    if loss is None or output.ndim != 2:
        return None
    if loss is _CrossEntropy:
        # With the rows last, the few logits of many rows are computed as vectors.
        logs = F.log_softmax(output.t().contiguous(), 0)
        return logs.gather(0, target.unsqueeze(0)).sum() * (-1.0 / len(output))
    if output.shape != target.shape:
        return None
    if loss is _BinaryCrossEntropy:
        return F.binary_cross_entropy_with_logits(output, target)
    return (output - target).square().mean()
