"""Means of gradients between rows and a background, with their variances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sknan.preprocessing._sources import Sources


class Place(NamedTuple):
    """Background row, and the point between it and an explained row."""

    network: int
    background: int
    point: float


def places_between(
    n_networks: int, n_background: int, n_samples: int, rng: np.random.RandomState
) -> Iterator[Place]:
    """Yield places: evenly spaced points for each network, with random rows."""
    n_each = -(-n_samples // n_networks)
    order = np.resize(rng.permutation(n_background), n_networks * n_each)
    for network in range(n_networks):
        points = (np.arange(n_each) + 0.5) / n_each
        for i, point in enumerate(points.tolist()):
            yield Place(network, int(order[network * n_each + i]), point)


def expected_gradients(
    gradients: Sequence[Callable[[Tensor], Tensor]],
    rows: Tensor,
    background: Tensor,
    places: Sequence[Place],
) -> tuple[Tensor, Tensor]:
    """Return contributions of the inputs, and the variances of their estimates.

    Parameters
    ----------
    gradients : sequence of callable
        Derivatives of each network, (n_outputs, n_samples, n_inputs), for rows.
    rows, background : Tensor of shape (n_samples, n_inputs), (n_rows, n_inputs)
        Rows to explain, and rows to compare them with.
    places : sequence of Place
        Points at which the derivatives are taken.

    Returns
    -------
    mean, variance : Tensor of shape (n_outputs, n_samples, n_inputs), float64
        Contributions and their variances, for the mean of the networks.
    """
    center = background.double().mean(dim=0)
    total: Any = 0.0
    spread: Any = 0.0
    for number, gradient in enumerate(gradients):
        own = [place for place in places if place.network == number]
        used = background[[place.background for place in own]].double()
        first: Any = 0.0
        second: Any = 0.0
        total_gradient: Any = 0.0
        for place, row in zip(
            own, background[[p.background for p in own]], strict=True
        ):
            at = (1 - place.point) * row + place.point * rows
            found = gradient(at).double()
            term = found * (rows.double() - row.double())
            first, second = first + term, second + term.square()
            total_gradient = total_gradient + found
        n = len(own)
        mean = first / n
        spread = spread + (second / n - mean.square()).clamp(min=0) / n
        # The mean of the sampled background differs from that of all of it. Its effect
        # is exact for a linear network, and removes much of the error for others.
        total = total + mean + (used.mean(dim=0) - center) * total_gradient / n
    return total / len(gradients), spread / len(gradients) ** 2


def in_proportion(variance: Tensor) -> Tensor:
    """Return weights of the inputs in proportion to their variances."""
    largest = variance.amax(dim=2, keepdim=True)
    scaled = variance / largest.where(largest > 0, 1.0)
    total = scaled.sum(dim=2, keepdim=True)
    return scaled / total.where(total > 0, 1.0)


def root_mean_square(values: Tensor) -> float:
    largest = float(values.abs().max()) or 1.0
    return largest * float((values / largest).square().mean().sqrt())


def shares_of(sources: Sources, n_columns: int) -> Tensor:
    """Return the share of each input that each column receives."""
    unknown = [
        name for name, i in zip(sources.names, sources.inputs, strict=True) if not i
    ]
    if unknown:
        raise ValueError(
            f"{len(unknown)} inputs of the network, such as {unknown[0]!r}, cannot be "
            "traced to columns of X. Explain the network by itself: "
            "attributions(model[-1], model[:-1].transform(X))."
        )
    shares = torch.zeros(len(sources.names), n_columns, dtype=torch.float64)
    for i, columns in enumerate(sources.inputs):
        shares[i, list(columns)] = 1 / len(columns)
    return shares
