"""Learning-rate schedules as functions of progress.

A schedule maps the progress of training, from 0 to 1, to a factor that multiplies the
learning rate. It does not need the optimizer, so that one schedule serves a single
network and a stack of networks. `Plateau` is the exception: its factor depends on the
loss. `one_cycle` and `coslog4` place their steps more exactly if the number of steps is
given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sknan._utils.validation import is_number


def constant(progress: float) -> float:
    """Keep the learning rate constant.

    Parameters
    ----------
    progress : float
        Fraction of the training that is done, in [0, 1].

    Returns
    -------
    float
        Factor 1.0.

    Examples
    --------
    >>> constant(0.7)
    1.0
    """
    return 1.0


def cosine(progress: float, *, final: float = 0.0) -> float:
    """Fall from 1 to ``final`` along half a cosine wave.

    Parameters
    ----------
    progress : float
        Fraction of the training that is done, in [0, 1].
    final : float, default=0.0
        Factor at progress 1.

    Returns
    -------
    float
        Factor between ``final`` and 1.

    References
    ----------
    Loshchilov and Hutter (2017), SGDR, arXiv 1608.03983, equation 5 without restarts.

    Examples
    --------
    >>> cosine(0.0), cosine(1.0), cosine(1.0, final=0.1)
    (1.0, 0.0, 0.1)
    """
    return final + (1.0 - final) * (1.0 + math.cos(math.pi * progress)) / 2.0


def exponential(progress: float, *, final: float = 0.01) -> float:
    """Fall exponentially from 1 to ``final``.

    Parameters
    ----------
    progress : float
        Fraction of the training that is done, in [0, 1].
    final : float, default=0.01
        Factor at progress 1, greater than 0.

    Returns
    -------
    float
        Factor ``final ** progress``.

    Examples
    --------
    >>> exponential(0.5)
    0.1
    """
    return float(final**progress)


def step(progress: float, *, n_steps: int = 3, gamma: float = 0.1) -> float:
    """Fall in steps of equal length: 1, gamma, gamma squared, ...

    Parameters
    ----------
    progress : float
        Fraction of the training that is done, in [0, 1].
    n_steps : int, default=3
        Number of different factors; the factor falls ``n_steps - 1`` times.
    gamma : float, default=0.1
        Ratio of each factor to the one before.

    Returns
    -------
    float
        Factor ``gamma ** floor(progress * n_steps)``; progress 1 belongs to the last
        step.

    Examples
    --------
    >>> step(0.2, gamma=0.5), step(0.5, gamma=0.5), step(1.0, gamma=0.5)
    (1.0, 0.5, 0.25)
    """
    # The product is rounded: 1/3 of the steps must belong to the second of three.
    return float(gamma ** min(int(progress * n_steps + 1e-9), n_steps - 1))


def one_cycle(
    progress: float,
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    total_steps: int | None = None,
) -> float:
    """Rise from a low factor to 1, then fall almost to 0, along two half cosines.

    Parameters
    ----------
    progress : float
        Fraction of the training that is done, in [0, 1].
    pct_start : float, default=0.3
        Progress at the peak, in [0, 1].
    div_factor : float, default=25.0
        Reciprocal of the factor at progress 0.
    final_div_factor : float, default=1e4
        Further divisor: the factor at progress 1 is
        ``1 / (div_factor * final_div_factor)``.
    total_steps : int or None, default=None
        Number of steps of the training. With it, step ``progress * total_steps`` has
        the factor of torch, whose peak is in step ``pct_start * total_steps - 1`` and
        whose end is in the last step.

    Returns
    -------
    float
        Factor, which is 1.0 at the peak: the given learning rate is the highest one.

    References
    ----------
    Smith and Topin (2018), arXiv 1708.07120, in the form and with the parameters of
    `torch.optim.lr_scheduler.OneCycleLR`.

    Examples
    --------
    >>> round(one_cycle(0.0), 6), one_cycle(0.3)
    (0.04, 1.0)
    """
    low = 1.0 / div_factor
    peak, end = pct_start, 1.0
    if total_steps is not None and total_steps > 1:
        progress *= total_steps
        peak, end = pct_start * total_steps - 1.0, total_steps - 1.0
    if progress < peak:
        return 1.0 + (low - 1.0) * (1.0 + math.cos(math.pi * progress / peak)) / 2
    if peak >= end:
        return 1.0
    share = min((progress - peak) / (end - peak), 1.0)
    return cosine(share, final=low / final_div_factor)


def coslog4(progress: float, *, total_steps: int | None = None) -> float:
    """Rise and fall between 0 and 1 four times, each time about twice as long.

    Parameters
    ----------
    progress : float
        Fraction of the training that is done, in [0, 1].
    total_steps : int or None, default=None
        Number of steps of the training. With it, the factor is that of the middle of
        the step, because the first step would be wasted with a factor of 0.

    Returns
    -------
    float
        Factor ``(1 - cos(2 pi log2(1 + 15 progress))) / 2`` in [0, 1], 0 at both ends.

    References
    ----------
    Holzmüller, Grinsztajn and Steinwart (2024), Better by Default, arXiv 2407.04491:
    the schedule of RealMLP.

    Examples
    --------
    >>> coslog4(0.0), round(coslog4((2**3.5 - 1) / 15), 12)
    (0.0, 1.0)
    """
    if total_steps:
        progress = min(progress + 0.5 / total_steps, 1.0)
    return (1.0 - math.cos(2.0 * math.pi * math.log2(1.0 + 15.0 * progress))) / 2.0


@dataclass
class Plateau:
    """Schedule whose factor falls when the monitored loss stops improving.

    Parameters
    ----------
    factor : float, default=0.5
        Multiplier of the current factor on a plateau, in (0, 1).
    patience : int, default=5
        Number of successive updates without improvement that are tolerated; the next
        one lowers the factor.
    threshold : float, default=1e-4
        Smallest decrease, relative to the best loss so far, that is an improvement.
    min_factor : float, default=1e-3
        Smallest factor.

    Attributes
    ----------
    current : float
        Current factor.
    best : float
        Lowest loss so far; inf before the first finite loss.
    n_bad : int
        Number of updates since the last improvement or the last change of the factor.

    Raises
    ------
    ValueError
        When a parameter is outside its range.

    Notes
    -----
    The rule is that of `torch.optim.lr_scheduler.ReduceLROnPlateau`, except that the
    threshold is relative to the absolute value of the best loss. A negative loss, such
    as a negative log-likelihood, must therefore fall, too, to count as improved.

    Examples
    --------
    >>> plateau = Plateau(patience=0)
    >>> for loss in (1.0, 0.8, float("nan")):
    ...     plateau.update(loss)
    >>> plateau.current
    0.5
    """

    factor: float = 0.5
    patience: int = 5
    threshold: float = 1e-4
    min_factor: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("factor", "patience", "threshold", "min_factor"):
            if not is_number(value := getattr(self, name)):
                raise ValueError(f"{name} must be a number, got {value!r}.")
        if not 0.0 < self.factor < 1.0:
            raise ValueError(f"factor must be between 0 and 1, got {self.factor!r}.")
        if not self.patience >= 0:
            raise ValueError(f"patience must be 0 or more, got {self.patience!r}.")
        if not 0.0 <= self.threshold < math.inf:
            raise ValueError(
                f"threshold must be 0 or more and finite, got {self.threshold!r}."
            )
        if not 0.0 <= self.min_factor <= 1.0:
            raise ValueError(f"min_factor must be in [0, 1], got {self.min_factor!r}.")
        self.reset()

    def reset(self) -> None:
        """Forget every update."""
        self.current = 1.0
        self.best = math.inf
        self.n_bad = 0

    def update(self, monitored: float) -> None:
        """Update the factor with the loss of one more epoch.

        Parameters
        ----------
        monitored : float
            Loss of the epoch, where lower is better. NaN and infinities count as no
            improvement.
        """
        if math.isfinite(monitored) and (
            self.best == math.inf
            or monitored < self.best - self.threshold * abs(self.best)
        ):
            self.best = float(monitored)
            self.n_bad = 0
            return
        self.n_bad += 1
        if self.n_bad > self.patience:
            self.current = max(self.current * self.factor, self.min_factor)
            self.n_bad = 0

    def __call__(self, progress: float) -> float:
        """Return the current factor, for every progress."""
        return self.current


SCHEDULES: dict[str, Callable[..., Any]] = {
    "constant": constant,
    "cosine": cosine,
    "coslog4": coslog4,
    "exponential": exponential,
    "one_cycle": one_cycle,
    "plateau": Plateau,
    "step": step,
}
"""Schedules by name. "plateau" is the class, since each fit needs a new object."""
