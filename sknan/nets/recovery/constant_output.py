"""Loss of the best constant output, which a network that has learned must beat."""

from __future__ import annotations

import contextlib
import math
from operator import itemgetter
from typing import Any

import torch
from skorch.dataset import unpack_data
from torch import Tensor

from sknan._utils.random_state import kept_random_states
from sknan._utils.thresholds import N_TRIALS, SMALL
from sknan.nets.recovery.protocol import RefuseErrors, StepRefused

# Relative size of what is 0 up to rounding: the derivative of a loss at its minimum,
# the spread of the sum of probabilities.
_ROUNDING = torch.finfo(torch.float32).eps ** 0.5


def lowest_constant_loss(
    net: Any, batches: list[Any], outputs: list[list[Any]]
) -> float:
    """Return the lowest mean loss of one output for all rows.

    The constant is in the range of the outputs and of targets that are compared with
    them, since others may be no outputs at all: probabilities, for example, are at most
    1. If the outputs of a row are tied, as probabilities that add up to 1 are, it is a
    weighted mean of rows.

    Parameters
    ----------
    net : skorch net
        Net whose criterion is used.
    batches : list of tuple
        Inputs and targets.
    outputs : list of list
        Outputs for the batches, with each of some weights.

    Returns
    -------
    float
        NaN if the output is no tensor, or no constant has a finite loss.
    """
    every = [output for of_weights in outputs for output in of_weights]
    if not every or not all(isinstance(o, Tensor) and o.ndim for o in every):
        return math.nan
    if len({o.shape[1:] for o in every}) > 1:
        return math.nan
    values = torch.cat(every)
    targets = [unpack_data(batch)[1] for batch in batches]
    if all(isinstance(t, Tensor) and t.is_floating_point() for t in targets):
        known = torch.cat(targets).to(values)
        if known.numel() == values.numel():
            values = torch.cat([values, known.reshape(values.shape)])
    values = values.detach()
    are_tied = _are_tied(values)
    if are_tied:
        ends = values = values[torch.isfinite(values).all(1)]
    else:
        values = torch.nan_to_num(values).sort(0).values
        ends = values[[0, -1]]
    pairs = list(zip(batches, outputs[0], strict=True))

    def mean_loss(constant: Tensor, pairs: list[tuple[Any, Tensor]] = pairs) -> Tensor:
        losses = []
        for batch, output in pairs:
            inputs, target = unpack_data(batch)
            same = constant.expand_as(output)
            losses.append(net.get_loss(same, target, X=inputs, training=True))
        return torch.stack(losses).mean()

    lowest = math.nan
    found: list[tuple[float, int]] = []
    with kept_random_states(net.device):
        # An output may be outside the domain of the loss, and between outputs of 1e30 a
        # search does not resolve usual ones.
        for i in torch.linspace(0, len(values) - 1, N_TRIALS).long().tolist():
            with contextlib.suppress(StepRefused), RefuseErrors(), torch.no_grad():
                found.append((float(mean_loss(values[i : i + 1], pairs[-1:])), i))
        found = [pair for pair in found if math.isfinite(pair[0])]
        for _, i in sorted(found, key=itemgetter(0)):
            with contextlib.suppress(StepRefused), RefuseErrors(), torch.no_grad():
                lowest = float(mean_loss(values[i : i + 1]))
            if math.isfinite(lowest):
                break
        else:
            return math.nan
        if are_tied:
            place = values.new_zeros(len(ends), 1)
            place[i] = math.log(len(ends))  # half of the weight
        else:
            tiny = torch.finfo(values.dtype).tiny
            share = (values[i] - ends[0]) / (ends[1] - ends[0]).clamp_min(tiny)
            logit = share.clamp(SMALL, 1.0 - SMALL).logit()
            place = torch.stack([torch.zeros_like(logit), logit])
        place.requires_grad_()
        search = torch.optim.LBFGS(
            [place],
            tolerance_grad=_ROUNDING * abs(lowest),
            line_search_fn="strong_wolfe",
        )

        def evaluate() -> Tensor:
            nonlocal lowest
            search.zero_grad()
            loss = mean_loss((torch.softmax(place, 0) * ends).sum(0, keepdim=True))
            loss.backward()  # type: ignore[no-untyped-call]
            lowest = min(lowest, float(loss.detach().nan_to_num(math.inf)))
            return loss

        with contextlib.suppress(StepRefused), RefuseErrors(), torch.enable_grad():
            search.step(evaluate)  # type: ignore[no-untyped-call]
    return lowest


def _are_tied(outputs: Tensor) -> bool:
    """Whether the outputs of a row, or their exponentials, add up to one number."""
    if outputs.ndim != 2 or outputs.shape[1] == 1:
        return False
    known = outputs[torch.isfinite(outputs).all(1)].double()
    totals = (known.sum(1), known.logsumexp(1))
    return len(known) > 1 and any(bool(t.std() < _ROUNDING) for t in totals)
