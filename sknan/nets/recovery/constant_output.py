"""Loss of the best constant output, which a network that has learned must beat."""

from __future__ import annotations

import math
from typing import Any

import torch
from skorch.dataset import unpack_data
from torch import Tensor

from sknan._utils.random_state import kept_random_states
from sknan.diagnosis._raised import may_concern_values
from sknan.nets.recovery.step_loss import loss_of

# Steps of the search for the constant. A mean or a share of a class takes a dozen.
_N_STEPS = 30


def lowest_constant_loss(
    net: Any, batches: list[Any], fit_params: dict[str, Any]
) -> float:
    """Return the lowest mean loss of one output for all rows.

    The constant is in the range of the outputs and of targets that are compared with
    them, since others may be no outputs at all: probabilities, for example, are at most
    1.

    Parameters
    ----------
    net : skorch net
        Net whose criterion is used.
    batches : list of tuple
        Inputs and targets.
    fit_params : dict
        Parameters of the module's ``forward``.

    Returns
    -------
    float
        NaN if the output is no tensor, or no constant has a finite loss.
    """
    with kept_random_states(net.device), torch.no_grad():
        outputs = [loss_of(net, b, fit_params)[0] for b in batches]
    if not all(isinstance(output, Tensor) and output.ndim for output in outputs):
        return math.nan
    values = torch.cat(outputs)
    targets = [unpack_data(batch)[1] for batch in batches]
    if all(isinstance(t, Tensor) and t.is_floating_point() for t in targets):
        known = torch.cat(targets).to(values)
        if known.numel() == values.numel():
            values = torch.cat([values, known.reshape(values.shape)])
    values = torch.nan_to_num(values)
    low, high = values.amin(0, keepdim=True), values.amax(0, keepdim=True)
    place = torch.zeros_like(low, requires_grad=True)
    search = torch.optim.LBFGS(
        [place], max_iter=_N_STEPS, line_search_fn="strong_wolfe"
    )
    found: list[float] = []

    def mean_loss() -> Tensor:
        search.zero_grad()
        constant = low + (high - low) * torch.sigmoid(place)
        losses = []
        for batch, output in zip(batches, outputs, strict=True):
            inputs, target = unpack_data(batch)
            same = constant.expand_as(output)
            losses.append(net.get_loss(same, target, X=inputs, training=True))
        mean = torch.stack(losses).mean()
        mean.backward()  # type: ignore[no-untyped-call]
        found.append(float(mean.detach()))
        return mean

    with kept_random_states(net.device), torch.enable_grad():
        try:
            search.step(mean_loss)  # type: ignore[no-untyped-call]
        except Exception as error:
            if not may_concern_values(error):
                raise
    return min(filter(math.isfinite, found), default=math.nan)
