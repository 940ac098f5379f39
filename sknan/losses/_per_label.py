"""Losses of rows that have several labels, each of which is absent or present."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sknan.losses._base import reduced
from sknan.losses._classification import BCEWithLogitsLoss
from sknan.losses._registry import plain_form_of
from sknan.losses._traits import traits_of


def loss_per_label(criterion: Any, name: str, weights: Tensor | None) -> nn.Module:
    """Return the loss that compares one output per label with targets of 0 and 1.

    It is the mean over rows and labels, or one loss for each of them. Weights of absent
    and present labels have the shape (2, n_labels).

    Raises
    ------
    ValueError
        If the criterion compares exactly one class per row.
    """
    traits = traits_of(criterion)
    takes_classes = traits.output_kind == "logits" and not traits.is_binary
    is_general = traits.task is None and traits.output_kind is None
    is_general &= traits.target_domain != "signs"
    if not (takes_classes or traits.is_binary or is_general):
        raise ValueError(
            f"criterion={name} is for one class per row, but y has several labels per "
            "row. Use criterion='cross_entropy', 'binary_cross_entropy' or 'focal'."
        )
    if plain_form_of(criterion) == "cross_entropy":
        criterion = BCEWithLogitsLoss(reduction=criterion.reduction)
        takes_classes = False
    if weights is None and not takes_classes:
        direct: nn.Module = criterion
        return direct
    return PerLabelLoss(criterion, weights, takes_classes=takes_classes)


class PerLabelLoss(nn.Module):
    """Mean of the weighted losses of all labels of all rows.

    A loss of several classes is computed for each label from the two logits 0 and the
    output. The softmax of these is the sigmoid of the output.

    Parameters
    ----------
    loss : nn.Module
        Loss, which is changed to return one loss per label.
    weights : Tensor of shape (2, n_labels) or None
        Weights of absent and present labels.
    takes_classes : bool
        Whether the loss is one of several classes.

    Shape
    -----
    Output and target (n_samples, n_labels). Unreduced: the same.
    """

    weights: Tensor | None

    def __init__(
        self, loss: Any, weights: Tensor | None, *, takes_classes: bool
    ) -> None:
        super().__init__()
        self.traits = replace(traits_of(loss), is_binary=True)
        self.takes_classes = takes_classes
        self.register_buffer("weights", weights)
        self.loss = loss
        if hasattr(loss, "reduction"):
            self.reduction = loss.reduction
            loss.reduction = "none"

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of outputs against targets of 0 and 1."""
        output, codes = input, target
        if self.takes_classes:
            output = torch.stack([torch.zeros_like(input), input], dim=1)
            codes = target.long()
        losses: Tensor = self.loss(output, codes)
        if not hasattr(self, "reduction"):
            return losses
        if self.weights is not None:
            if losses.shape != target.shape:
                raise ValueError(
                    f"class_weight needs a loss per label, but {len(target)} rows of "
                    f"{target.shape[1]} labels have losses of shape "
                    f"{tuple(losses.shape)}. Use criterion='binary_cross_entropy'."
                )
            absent, present = self.weights
            losses = losses * torch.where(target > 0.5, present, absent)
        return reduced(losses, None, self.reduction)
