"""Refusal of class codes that do not fit the outputs of the network."""

from __future__ import annotations

from typing import Any

import torch
from skorch.dataset import unpack_data
from torch import Tensor, nn

from sknan._utils.random_state import kept_random_states
from sknan._utils.thresholds import FAR
from sknan._utils.tree import first_of
from sknan.diagnosis._raised import result_of_trial
from sknan.exceptions import NonFiniteDataError
from sknan.nets._batching import TensorTable
from sknan.nets.recovery.protocol import Answer, Failure, Training

_OF_CODES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)

# Largest number of labels that a message lists.
_MOST_LISTED = 10


class RefuseLabels:
    """Refuse a table whose labels are coded otherwise, such as from 1.

    Steps without the rows to blame would learn all classes but one.
    """

    says = "The labels were refused."

    def applies(self, failure: Failure) -> bool:
        """Whether the criterion has raised an error."""
        return failure.refused.error is not None

    def attempt(self, training: Training, failure: Failure, batch: Any) -> Answer:
        """Raise an error if labels of many rows have no output.

        Raises
        ------
        NonFiniteDataError
            The message lists the labels and the first row.
        """
        net = training.net
        criterion = getattr(net, "criterion_", None)
        table = getattr(training.batches, "dataset", None)
        if not isinstance(table, TensorTable):
            return None
        labels = table.y
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            return None
        if not isinstance(criterion, _OF_CODES) or labels.ndim != 1:
            return None
        n_outputs = _n_outputs(training, batch, failure.fit_params)
        ignored = getattr(criterion, "ignore_index", None)
        known = torch.ones_like(labels).bool() if ignored is None else labels != ignored
        if n_outputs is None or not known.any():
            return None
        outside = known & ((labels < 0) | (labels >= n_outputs))
        limits = labels[known].aminmax()
        is_from_one = int(limits.min) == 1 and int(limits.max) == n_outputs
        if not is_from_one and FAR * int(outside.sum()) <= len(labels):
            return None  # faults of a few rows
        found = sorted(set(labels[outside].tolist()))
        raise NonFiniteDataError(
            f"criterion={type(criterion).__name__} needs labels from 0 to "
            f"{n_outputs - 1} for the {n_outputs} outputs of the module, but y "
            f"contains {', '.join(map(str, found[:_MOST_LISTED]))} in "
            f"{int(outside.sum())} of {len(labels)} rows, first at row "
            f"{int(table.numbers[outside.cpu()].min())}. Code the classes from 0, or "
            "give the module more outputs."
        )


def _n_outputs(
    training: Training, batch: Any, fit_params: dict[str, Any]
) -> int | None:
    """Return the number of outputs for each row; None if there is no such number."""
    net = training.net
    net._set_training(False)
    with kept_random_states(net.device), torch.no_grad():
        output = result_of_trial(lambda: net.infer(unpack_data(batch)[0], **fit_params))
    net._set_training(True)
    output = first_of(output)
    if not isinstance(output, Tensor) or output.ndim != 2:
        return None
    return output.shape[1]
