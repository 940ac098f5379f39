"""Learning-rate schedules as functions of progress.

A schedule maps the progress of training, from 0 to 1, to a factor that multiplies the
learning rate. Being pure functions of progress they need neither the optimizer nor the
number of steps, so one schedule serves a network alone and a stack of networks.

`LearningRateSchedule` is what training loops use: it turns step numbers into progress,
adds a warm-up and tells `Plateau`, the one schedule that listens, how the loss does.
"""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sknan._utils.validation import did_you_mean

__all__ = [
    "SCHEDULES",
    "LearningRateSchedule",
    "Plateau",
    "constant",
    "cosine",
    "coslog4",
    "exponential",
    "one_cycle",
    "step",
]


def constant(progress: float) -> float:
    """The learning rate as given, all the way.

    Parameters
    ----------
    progress : float
        Fraction of the training that is done, in [0, 1].

    Returns
    -------
    float
        1.0.

    Examples
    --------
    >>> constant(0.7)
    1.0
    """
    return 1.0


def cosine(progress: float, *, final: float = 0.0) -> float:
    """Half a cosine wave from 1 down to ``final``.

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
    """Fall by the same proportion in every step, from 1 down to ``final``.

    Parameters
    ----------
    progress : float
        Fraction of the training that is done, in [0, 1].
    final : float, default=0.01
        Factor at progress 1, above 0.

    Returns
    -------
    float
        ``final ** progress``.

    Examples
    --------
    >>> exponential(0.5)
    0.1
    """
    return float(final**progress)


def step(progress: float, *, n_steps: int = 3, gamma: float = 0.1) -> float:
    """A staircase of ``n_steps`` levels of equal length: 1, gamma, gamma squared, ...

    Parameters
    ----------
    progress : float
        Fraction of the training that is done, in [0, 1].
    n_steps : int, default=3
        Number of levels; the factor drops ``n_steps - 1`` times.
    gamma : float, default=0.1
        Each level relative to the one before.

    Returns
    -------
    float
        ``gamma ** floor(progress * n_steps)``; progress 1 belongs to the last level.

    Examples
    --------
    >>> step(0.2, gamma=0.5), step(0.5, gamma=0.5), step(1.0, gamma=0.5)
    (1.0, 0.5, 0.25)
    """
    return float(gamma ** min(int(progress * n_steps), n_steps - 1))


def one_cycle(
    progress: float,
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> float:
    """Rise from low to 1, then fall to almost nothing, along two half cosines.

    Parameters
    ----------
    progress : float
        Fraction of the training that is done, in [0, 1].
    pct_start : float, default=0.3
        Progress at the peak, in [0, 1].
    div_factor : float, default=25.0
        The factor starts at ``1 / div_factor``.
    final_div_factor : float, default=1e4
        The factor ends at ``1 / (div_factor * final_div_factor)``.

    Returns
    -------
    float
        Factor; 1.0 at the peak, so that the learning rate given is the highest one.

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
    if progress < pct_start:
        return 1.0 + (low - 1.0) * (1.0 + math.cos(math.pi * progress / pct_start)) / 2
    if pct_start >= 1.0:
        return 1.0
    return cosine(
        (progress - pct_start) / (1.0 - pct_start), final=low / final_div_factor
    )


def coslog4(progress: float) -> float:
    """Four waves from 0 over 1 to 0, each about twice as long as the one before.

    Parameters
    ----------
    progress : float
        Fraction of the training that is done, in [0, 1].

    Returns
    -------
    float
        ``(1 - cos(2 pi log2(1 + 15 progress))) / 2``, in [0, 1]: 0 at both ends.

    References
    ----------
    Holzmüller, Grinsztajn and Steinwart (2024), Better by Default, arXiv 2407.04491:
    the schedule of RealMLP.

    Examples
    --------
    >>> coslog4(0.0), round(coslog4((2**3.5 - 1) / 15), 12)
    (0.0, 1.0)
    """
    return (1.0 - math.cos(2.0 * math.pi * math.log2(1.0 + 15.0 * progress))) / 2.0


@dataclass
class Plateau:
    """A factor that falls when the monitored loss stops falling.

    Parameters
    ----------
    factor : float, default=0.5
        What the factor is multiplied by on a plateau, in (0, 1).
    patience : int, default=5
        Updates without improvement that are borne; the next one lowers the factor.
    threshold : float, default=1e-4
        Relative improvement on the best loss so far that counts as one.
    min_factor : float, default=1e-3
        The factor never falls below this.

    Attributes
    ----------
    current : float
        The factor in force.
    best : float
        Lowest loss so far; inf before the first finite one.
    n_bad : int
        Updates since the last improvement or the last fall.

    Raises
    ------
    ValueError
        When a parameter is outside its range.

    Notes
    -----
    The rule is that of `torch.optim.lr_scheduler.ReduceLROnPlateau`, but the threshold
    is relative to the absolute value of the best loss, so that a negative loss
    (a log-likelihood, say) has to fall too before it counts as improved.

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
        """Take note of the loss of one more epoch.

        Parameters
        ----------
        monitored : float
            The loss, lower is better. NaN and infinities count as no improvement.
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
        """The factor in force, whatever the progress."""
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
"""The schedules by name; "plateau" is the class, one object of which serves a fit."""


class LearningRateSchedule:
    """The factor of every training step: a warm-up, then a schedule.

    Parameters
    ----------
    schedule : None, str, callable or Plateau, default=None
        None is constant; a name from `SCHEDULES` (underscores or hyphens); a function
        of the progress in [0, 1] that returns a finite factor of at least 0.
    warmup : float or int, default=0.0
        A float in [0, 1) is the fraction of all steps, an int the number of steps, over
        which the factor rises linearly to 1.

    Raises
    ------
    ValueError
        When the name is unknown or ``warmup`` out of its range.
    TypeError
        When either is of another type.

    Notes
    -----
    In step ``i`` of ``n`` warm-up steps the factor is ``(i + 1) / (n + 1)``: never 0,
    which would waste a step, and 1 is reached at the first step of the schedule.
    ``one_cycle`` and ``coslog4`` start low by themselves and want no warm-up.

    In step ``i`` of the ``n`` that follow, the progress is ``(i + 0.5) / n``, the
    middle of the step. From its left end ``coslog4`` would waste the first step with a
    factor of 0, from its right end it and ``cosine`` the last one.

    Examples
    --------
    >>> schedule = LearningRateSchedule("cosine", warmup=1)
    >>> schedule.start(total_steps=5)
    >>> [round(schedule.factor(step), 3) for step in range(5)]
    [0.5, 0.962, 0.691, 0.309, 0.038]
    """

    def __init__(
        self,
        schedule: str | Callable[[float], float] | None = None,
        warmup: float = 0.0,
    ) -> None:
        _check_warmup(warmup)
        self.schedule = schedule
        self.warmup = warmup
        self._function = _resolve(schedule)
        self.start(0)

    def __repr__(self) -> str:
        return f"LearningRateSchedule({self.schedule!r}, warmup={self.warmup!r})"

    def start(self, total_steps: int) -> None:
        """Begin a training of so many steps; what `update` told is forgotten.

        Parameters
        ----------
        total_steps : int
            Steps of the whole training. With 0 the schedule has nothing to run over:
            after the warm-up the factor is 1, or that of the plateau.

        Raises
        ------
        ValueError
            When ``total_steps`` is negative.
        """
        if total_steps < 0:
            raise ValueError(f"total_steps must be 0 or more, got {total_steps!r}.")
        self.total_steps = int(total_steps)
        is_count = isinstance(self.warmup, numbers.Integral)
        n_warmup = self.warmup if is_count else round(self.warmup * self.total_steps)
        self.warmup_steps = int(n_warmup)
        if isinstance(self._function, Plateau):
            self._function.reset()

    @property
    def is_listening(self) -> bool:
        """Whether the factors depend on what `update` is told."""
        return isinstance(self._function, Plateau)

    def factor(self, step: int) -> float:
        """The factor to multiply the learning rate by in a step.

        Parameters
        ----------
        step : int
            Number of steps done before this one. From ``total_steps`` on the last
            factor is held (a warm-up still goes on to its end).

        Returns
        -------
        float
            Finite, at least 0.

        Raises
        ------
        ValueError
            When a callable returns a factor that is NaN, infinite or negative.
        """
        if step < self.warmup_steps:
            ramp = (step + 1) / (self.warmup_steps + 1)
            if isinstance(self._function, Plateau):
                return ramp * self._function.current
            return ramp
        if isinstance(self._function, Plateau):
            return self._function.current
        n_steps = self.total_steps - self.warmup_steps
        if n_steps <= 0:
            return 1.0
        index = min(step, self.total_steps - 1) - self.warmup_steps
        progress = (index + 0.5) / n_steps
        factor = float(self._function(progress))
        if not 0.0 <= factor < math.inf:
            name = getattr(self._function, "__qualname__", repr(self._function))
            raise ValueError(
                f"The lr_schedule {name} returned {factor!r} at progress {progress!r}. "
                "Return a finite factor of 0 or more."
            )
        return factor

    def update(self, monitored: float) -> None:
        """Tell the schedule the monitored loss, once an epoch; only plateau listens.

        Parameters
        ----------
        monitored : float
            The loss, lower is better; NaN and infinities count as no improvement.
        """
        if isinstance(self._function, Plateau):
            self._function.update(monitored)

    def state_dict(self) -> dict[str, float]:
        """What `update` has told: of a plateau; other schedules need only the step."""
        if not isinstance(self._function, Plateau):
            return {}
        return {name: getattr(self._function, name) for name in _TOLD}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what another schedule of this kind was told, after `start`."""
        vars(self._function).update(state)


# What a plateau learns.
_TOLD = ("current", "best", "n_bad")


def _resolve(schedule: object) -> Callable[[float], float]:
    """The function behind a name; a plateau of its own, so that nothing is shared."""
    if schedule is None:
        return constant
    if isinstance(schedule, Plateau):
        return copy.deepcopy(schedule)
    if isinstance(schedule, str):
        name = schedule.lower().replace("-", "_")
        if name == "plateau":
            return Plateau()
        if name in SCHEDULES:
            return SCHEDULES[name]
        hint = did_you_mean(name, SCHEDULES)
        known = ", ".join(repr(name) for name in sorted(SCHEDULES))
        raise ValueError(
            f"Unknown lr_schedule {schedule!r}.{hint} Known schedules: {known}."
        )
    # A class (torch's CosineAnnealingLR, say) is callable too, but would build an
    # object out of the progress.
    if callable(schedule) and not isinstance(schedule, type):
        return schedule
    found = (
        f"the class {schedule.__name__}"
        if isinstance(schedule, type)
        else f"{schedule!r} of type {type(schedule).__name__}"
    )
    raise TypeError(
        "lr_schedule must be None, a name or a function of the progress in [0, 1], "
        f"got {found}."
    )


def _check_warmup(warmup: object) -> None:
    if isinstance(warmup, bool) or not isinstance(warmup, numbers.Real):
        raise TypeError(
            "warmup must be a fraction of all steps (float) or a number of steps "
            f"(int), got {warmup!r} of type {type(warmup).__name__}."
        )
    if isinstance(warmup, numbers.Integral):
        if warmup < 0:
            raise ValueError(
                f"warmup as a number of steps must be 0 or more, got {warmup!r}."
            )
    elif not 0.0 <= float(warmup) < 1.0:
        raise ValueError(
            f"warmup as a fraction of all steps must be in [0, 1), got {warmup!r}. "
            "Pass an int for a number of steps."
        )
