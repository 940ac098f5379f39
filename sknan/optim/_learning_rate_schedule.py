"""Learning-rate factor of each training step: a warm-up, then a schedule."""

from __future__ import annotations

import copy
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

from sknan._utils.outside import is_of_signal, unless
from sknan._utils.validation import did_you_mean, is_number, meant_by_word
from sknan.optim._schedules import SCHEDULES, Plateau, constant

# Attributes in which `Plateau` stores what it has learned.
_PLATEAU_STATE = ("current", "best", "n_bad")


# Words in the names that other libraries give to a schedule.
_WORDS = {
    "coslog": "coslog4",
    "cosine": "cosine",
    "cycle": "one_cycle",
    "exp": "exponential",
    "step": "step",
    "plateau": "plateau",
    "adaptive": "plateau",
}


class LearningRateSchedule:
    """Factor of the learning rate in each training step: a warm-up, then a schedule.

    Parameters
    ----------
    schedule : None, str, callable or Plateau, default=None
        Schedule after the warm-up: None for a constant factor, a name from `SCHEDULES`
        (with underscores or hyphens), or a function of the progress in [0, 1] that
        returns a finite factor of at least 0. A function with a parameter
        ``total_steps`` also gets the number of steps after the warm-up.
    warmup : float or int, default=0.0
        Length of the warm-up, in which the factor rises linearly to 1: a float in
        [0, 1) is a fraction of all steps, an int a number of steps.

    Raises
    ------
    ValueError
        When the name is unknown or ``warmup`` is out of range.
    TypeError
        When a parameter has another type.

    Notes
    -----
    In step ``i`` of ``n`` warm-up steps the factor is ``(i + 1) / (n + 1)``. It is
    never 0, which would waste a step, and it reaches 1 at the first step of the
    schedule. ``one_cycle`` and ``coslog4`` start with a low factor and need no warm-up.

    In step ``i`` of the ``n`` steps after the warm-up the progress is ``i / n``. Each
    schedule with a counterpart in torch then gives the same factor in each step:
    ``LinearLR`` (the warm-up), ``CosineAnnealingLR(T_max=n)``, ``OneCycleLR``,
    ``ExponentialLR``, ``StepLR`` and ``ReduceLROnPlateau``.

    Examples
    --------
    >>> schedule = LearningRateSchedule("cosine", warmup=1)
    >>> schedule.start(total_steps=5)
    >>> [round(schedule.factor(step), 3) for step in range(5)]
    [0.5, 1.0, 0.854, 0.5, 0.146]
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
        self._takes_total_steps = _takes_total_steps(self._function)
        self.start(0)

    def __repr__(self) -> str:
        return f"LearningRateSchedule({self.schedule!r}, warmup={self.warmup!r})"

    def start(self, total_steps: int) -> None:
        """Start a training; losses passed to `update` before are forgotten.

        Parameters
        ----------
        total_steps : int
            Number of steps in the whole training. If it is 0, the factor after the
            warm-up is 1, or the factor of the plateau.

        Raises
        ------
        ValueError
            When ``total_steps`` is negative.
        """
        if total_steps < 0:
            raise ValueError(f"total_steps must be 0 or more, got {total_steps!r}.")
        self.total_steps = int(total_steps)
        # Number of steps at the last call of `plan_rest`, position in the schedule at
        # that step, and number of positions that each later step advances.
        self._plan: tuple[int, float, float] = (0, 0, 1)
        is_count = isinstance(self.warmup, numbers.Integral)
        n_warmup = self.warmup if is_count else round(self.warmup * self.total_steps)
        self.warmup_steps = int(n_warmup)
        if isinstance(self._function, Plateau):
            self._function.reset()

    def plan_rest(self, step: int, n_steps: int) -> None:
        """Run through the rest of the schedule in fewer steps.

        Parameters
        ----------
        step : int
            Number of steps so far. The factor of the next one does not change.
        n_steps : int
            Number of steps that are expected to follow. More than are left of
            ``total_steps`` count as these.
        """
        n_steps = min(n_steps, self.total_steps - step)
        if n_steps > 0:
            position = min(self._position(step), self.total_steps)
            self._plan = step, position, (self.total_steps - position) / n_steps

    def _position(self, step: int) -> float:
        start, position, pace = self._plan
        return position + (step - start) * pace

    @property
    def is_listening(self) -> bool:
        """Whether the factors depend on the losses passed to `update`."""
        return isinstance(self._function, Plateau)

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate in a step.

        Parameters
        ----------
        step : int
            Number of steps before this one. From ``total_steps`` on, the factor of the
            last step is returned, but a warm-up continues to its end.

        Returns
        -------
        float
            Finite factor of at least 0.

        Raises
        ------
        ValueError
            When a callable returns a factor that is NaN, infinite or negative.
        """
        position = self._position(step)
        in_warmup = position < self.warmup_steps
        ramp = (position + 1) / (self.warmup_steps + 1) if in_warmup else 1.0
        if isinstance(self._function, Plateau):
            return ramp * self._function.current
        n_steps = self.total_steps - self.warmup_steps
        if in_warmup or n_steps <= 0:
            return ramp
        index = min(position, self.total_steps - 1) - self.warmup_steps
        progress = index / n_steps
        options = {"total_steps": n_steps} if self._takes_total_steps else {}
        factor = float(self._function(progress, **options))
        if not 0.0 <= factor < math.inf:
            name = getattr(self._function, "__qualname__", repr(self._function))
            raise ValueError(
                f"The lr_schedule {name} returned {factor!r} at progress {progress!r}. "
                "Return a finite factor of 0 or more."
            )
        return factor

    def update(self, monitored: float) -> None:
        """Update a plateau with the monitored loss of an epoch.

        Other schedules ignore the loss.

        Parameters
        ----------
        monitored : float
            Loss of the epoch, where lower is better. NaN and infinities count as no
            improvement.
        """
        if isinstance(self._function, Plateau):
            self._function.update(monitored)

    def state_dict(self) -> dict[str, Any]:
        """Return the plan of the rest, and the state of a plateau."""
        names = _PLATEAU_STATE if self.is_listening else ()
        learned = {name: getattr(self._function, name) for name in names}
        return {"plan": self._plan, "learned": learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of another schedule of this kind, after `start`."""
        start, position, pace = self._plan = state["plan"]
        if not (0 <= start <= position <= self.total_steps and 0 < pace < math.inf):
            raise ValueError(
                f"the plan {self._plan!r} of the lr_schedule does not belong to "
                f"{self.total_steps} steps"
            )
        if self.is_listening:
            vars(self._function).update(state["learned"])
            if not 0.0 <= self.factor(start) < math.inf:
                raise ValueError(f"a plateau has no factor {self.factor(start)!r}")


def _takes_total_steps(function: Callable[..., float]) -> bool:
    try:
        return "total_steps" in inspect.signature(function).parameters
    except unless(is_of_signal, ValueError):  # a builtin without a signature
        return False


def _resolve(schedule: object) -> Callable[..., float]:
    """Return the function of a schedule, or a new plateau that shares no state."""
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
        hint = meant_by_word(name, _WORDS) or did_you_mean(name, SCHEDULES)
        known = ", ".join(repr(name) for name in sorted(SCHEDULES))
        raise ValueError(
            f"Unknown lr_schedule {schedule!r}.{hint} Known schedules: {known}."
        )
    # A class such as torch's CosineAnnealingLR is callable, too, but would make an
    # object of the progress.
    if callable(schedule) and not isinstance(schedule, type):
        return schedule
    found = f"{schedule!r} of type {type(schedule).__name__}"
    if isinstance(schedule, type):
        found = f"the class {schedule.__name__}"
    raise TypeError(
        "lr_schedule must be None, a name or a function of the progress in [0, 1], "
        f"got {found}."
    )


def _check_warmup(warmup: object) -> None:
    if not is_number(warmup):
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
