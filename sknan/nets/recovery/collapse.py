"""Networks that give one output for different rows.

A learning rate that is far too high makes every hidden unit constant. The loss stays
finite, at that of a constant prediction, and an accuracy score does not distinguish
this from a weak model.
"""

from __future__ import annotations

from typing import Any

import torch
from skorch.dataset import unpack_data
from torch import Tensor

from sknan._utils.random_state import kept_random_states
from sknan._utils.tree import first_of, tree_leaves
from sknan.diagnosis._raised import result_of_trial


def varies(rows: Any) -> bool:
    """Whether the rows of nested tensors differ."""
    leaves = tree_leaves(rows)
    return any(len(leaf) > 1 and bool((leaf != leaf[:1]).any()) for leaf in leaves)


def is_collapsed(inputs: Any, output: Any) -> bool:
    """Whether a network gives bitwise identical outputs for different rows.

    Parameters
    ----------
    inputs : nested Tensor
        Inputs of a batch.
    output : object
        Output for them, the first of which counts.
    """
    first = first_of(output)
    is_known = isinstance(first, Tensor) and first.ndim > 0 and len(first) > 1
    return is_known and not varies(first) and varies(inputs)


def has_collapsed(net: Any, batches: list[Any]) -> bool:
    """Whether a network gives one output for all rows, as it did not at first.

    Parameters
    ----------
    net : skorch net with GuardMixin
        Net in training.
    batches : list of tuple
        Inputs and targets.
    """

    def differ() -> bool:
        outputs = []
        with kept_random_states(net.device), torch.no_grad():
            net._set_training(False)
            for batch in batches:
                output = net.infer(unpack_data(batch)[0])
                outputs.append(first_of(output))
        return varies(torch.cat(outputs))

    # None: forward may have parameters that are not known here.
    if result_of_trial(differ) is not False:
        return False
    with net.guard_.first_weights():
        return result_of_trial(differ) is True
