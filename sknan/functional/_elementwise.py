"""Logarithms, exponentials, sigmoids and smooth bounds, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sknan.functional._domain import (
    EDGES,
    edge_of,
    elementwise,
    narrow,
    widen,
    within,
)


def log(x: Tensor) -> Tensor:
    """Natural logarithm that is finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.log`` for positive numbers. Zero and negative numbers
        give the logarithm of the smallest number, -103.3 in float32, and infinity that
        of the largest, with gradient 0.

    Examples
    --------
    >>> import torch
    >>> from sknan.functional import log
    >>> log(torch.tensor([0.0, 1.0, float("inf")]))
    tensor([-103.2789,    0.0000,   88.7228])
    """
    return logarithm(torch.log, x)


def logarithm(
    function: Callable[[Tensor], Tensor], x: Tensor, base: float = math.e
) -> Tensor:
    """Apply torch's logarithm to a base, finite as in :func:`log`."""
    edge = edge_of(x)
    return elementwise(
        function,
        lambda x: torch.reciprocal(x * math.log(base)),
        x,
        sound=(edge.tiny, edge.largest),
        domain=(edge.smallest, edge.largest),
        values=(math.log(edge.smallest, base), math.inf),
    )


def log1p(x: Tensor) -> Tensor:
    """Logarithm of 1 + x that is finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.log1p`` above -1. At and below it the value of the
        number next to -1, -16.6 in float32, with gradient 0. Infinity counts as the
        largest number, with gradient 0.
    """
    edge = edge_of(x)
    return elementwise(
        torch.log1p,
        lambda x: torch.reciprocal(x + 1.0),
        x,
        sound=(-0.5, edge.largest),
        domain=(edge.gap - 1.0, edge.largest),
    )


def exp(x: Tensor) -> Tensor:
    """Exponential that does not overflow.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.exp`` up to the logarithm of the largest number, 88.7
        in float32. Above, the largest number, with gradient 0. Negative infinity gives
        0.
    """
    sound = (-math.inf, math.log(edge_of(x).largest) - 1.0)
    return elementwise(torch.exp, torch.exp, x, sound=sound)


def expm1(x: Tensor) -> Tensor:
    """Exponential minus 1 that does not overflow.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.expm1`` up to the edge of :func:`exp`. Above, the
        largest number, with gradient 0.
    """
    sound = (-math.inf, math.log(edge_of(x).largest) - 1.0)
    return elementwise(torch.expm1, torch.exp, x, sound=sound)


def logit(x: Tensor) -> Tensor:
    """Inverse of the sigmoid that is finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.logit`` between 0 and 1. Elsewhere the value of the
        nearest number between (-103.3 or 16.6 in float32), with gradient 0. Around 1/2,
        where the value crosses 0, the absolute error is that of numbers around 1.
    """
    edge = edge_of(x)
    return elementwise(
        torch.logit,
        lambda x: torch.reciprocal(x * (1.0 - x)),
        x,
        sound=(edge.tiny, 1.0 - edge.gap),
        domain=(edge.smallest, 1.0 - edge.gap),
        values=(math.log(edge.smallest), math.inf),
    )


def sigmoid(x: Tensor) -> Tensor:
    """Logistic function, which is finite everywhere in torch too.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        ``torch.sigmoid``, in [0, 1]. The gradient is 0 at the infinities.
    """
    return torch.sigmoid(x)


def log_sigmoid(x: Tensor) -> Tensor:
    """Logarithm of the sigmoid that is finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.nn.functional.logsigmoid`` for finite numbers. Negative
        infinity gives the lowest finite number. The gradient is 0 at the infinities.
    """
    most = edge_of(x).largest
    return elementwise(
        F.logsigmoid, torch.sigmoid, x, sound=(-most, most), domain=(-most, most)
    )


def softplus(x: Tensor) -> Tensor:
    """Logarithm of 1 + exp(x) that is finite for every number.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.

    Returns
    -------
    Tensor of shape (*)
        Bitwise equal to ``torch.nn.functional.softplus`` for finite numbers up to 20.
        Above 20 torch returns ``x`` itself. This function does so above 40, where it is
        exact in float64 as well. Infinity gives the largest number, with gradient 0.
    """
    bounds = (-math.inf, edge_of(x).largest)
    return elementwise(
        lambda x: F.softplus(x, threshold=40.0),
        torch.sigmoid,
        x,
        sound=bounds,
        domain=bounds,
    )


def smooth_clip(x: Tensor, limit: float) -> Tensor:
    r"""Smooth clipping to a limit on both sides.

    .. math:: x / \sqrt{1 + (x / l)^2}

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.
    limit : float
        Positive limit of the absolute value, :math:`l`.

    Returns
    -------
    Tensor of shape (*)
        Numbers in [-limit, limit], with gradient 1 at 0. Large numbers approach the
        limit. The plain formula overflows in the square and returns 0 for them.

    Raises
    ------
    ValueError
        If ``limit`` is not a positive finite number.

    References
    ----------
    D. Holzmueller, L. Grinsztajn, I. Steinwart. Better by Default: Strong Pre-Tuned
    MLPs and Boosted Trees on Tabular Data. NeurIPS 2024, arXiv 2407.04491, section 3.
    """
    if not 0 < limit < math.inf:
        raise ValueError(f"limit must be a positive finite number, got {limit!r}.")
    wide, _ = widen(x)
    most = EDGES[wide.dtype].largest
    part = within(wide / limit, -most, most)
    return narrow(part / torch.hypot(part, torch.ones_like(part)) * limit, x.dtype)


def soft_clamp(
    x: Tensor,
    low: float | None = None,
    high: float | None = None,
    *,
    width: float | None = None,
) -> Tensor:
    r"""Smooth clamp to two bounds, with a gradient outside of them.

    Numbers that are farther than ``width`` from both bounds do not change. Beyond the
    knee :math:`k`, at the distance ``width`` from a bound, the value approaches the
    bound with the logarithm of the distance from the knee,

    .. math:: k + w \, (1 - 1 / (1 + \log(1 + (x - k) / w)))

    The gradient of this falls only a little faster than that of a logarithm, which is
    1/x. No bounded function can have a gradient of 1/x.

    Parameters
    ----------
    x : Tensor of shape (*), float
        Any numbers, including infinities.
    low, high : float or None, default=None
        Bounds; None for no bound on that side.
    width : float or None, default=None
        Distance between a bound and its knee, :math:`w`. None is a quarter of the
        distance between the bounds, or 1 if there is only one bound.

    Returns
    -------
    Tensor of shape (*)
        Numbers in [low, high], bitwise equal to ``x`` between the knees. The gradient
        is 1 at the knees, positive beyond them, and 0 at the infinities.

    Raises
    ------
    ValueError
        If the bounds are not finite or not in order, or if ``width`` is more than half
        of their distance.

    Examples
    --------
    >>> import torch
    >>> from sknan.functional import soft_clamp
    >>> x = torch.tensor([1.0, 1e4, 1e30], requires_grad=True)
    >>> y = soft_clamp(x, 0.0, 10.0)
    >>> [round(v, 3) for v in y.tolist()]
    [1.701, 9.731, 9.964]
    >>> y.sum().backward()
    >>> bool((x.grad > 0).all())
    True
    """
    low_knee, high_knee, w = _knees(low, high, width)
    y, _ = widen(x)
    if high_knee is not None:
        share = _share_of_width(y, high_knee, w)
        y = torch.where(y > high_knee, high_knee + w * share, y)
    if low_knee is not None:
        share = _share_of_width(-y, -low_knee, w)
        y = torch.where(y < low_knee, low_knee - w * share, y)
    largest = EDGES[y.dtype].largest
    return narrow(within(y, -largest, largest), x.dtype)


def _share_of_width(x: Tensor, knee: float, width: float) -> Tensor:
    """Return the position between knee and bound, from 0 to 1; 0 before the knee."""
    beyond = within((x - knee) / width, 0.0, EDGES[x.dtype].largest)
    return 1 - 1 / (1 + torch.log1p(beyond))


def _knees(
    low: float | None, high: float | None, width: float | None
) -> tuple[float | None, float | None, float]:
    """Return both knees of :func:`soft_clamp` and their distance from the bounds."""
    bounds = [bound for bound in (low, high) if bound is not None]
    if not all(math.isfinite(bound) for bound in bounds) or bounds != sorted(bounds):
        raise ValueError(
            f"low must be less than high and both finite, got {low!r} and {high!r}."
        )
    span = bounds[1] - bounds[0] if len(bounds) == 2 else math.inf
    if width is None:
        width = span / 4 if span < math.inf else 1.0
    if not 0 < width <= span / 2:
        raise ValueError(
            f"width must be positive and at most half of high - low, got {width!r} for "
            f"{low!r} and {high!r}."
        )
    return (
        None if low is None else low + width,
        None if high is None else high - width,
        width,
    )
