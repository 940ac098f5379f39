"""What curves at many rates tell: which rates are stable, and which one to take.

What counts is the loss at the end on rows that are held out: by that on the training
rows, the rate that memorizes fastest would win.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sknan._engine.range_test.curves import RateCurves

__all__ = ["Judged", "counted", "suggested"]

# The rate that is taken where a test cannot tell.
_USUAL_RATE = 1e-3

# A rate is stable if the loss falls by this share of the farthest fall. What is
# suggested stays below the largest stable one by the margin.
_KEPT_FALL = 0.5
_MARGIN = 2.0

# Rates whose loss is this share of the fall above the lowest one count 1/e of the best.
_TOLERANCE = 0.02

# The end of a curve: its last fifth, or the last checks on held-out rows.
_END = 5
_N_LAST_CHECKS = 3

# Where all curves have ended after so many steps, it was not the rate.
_FIRST_STEPS = 1

# A smaller fall (share of the first loss) is none.
_LEAST_FALL = 0.01

# Fewer held-out rows than a fifth of this leave some doubt.
_ENOUGH_ROWS = 200

# Suggestions of two starts that differ by more than these factors.
_FAR_APART = 3.0
_VERY_FAR_APART = 10.0

_ALL_ENDED = (
    "Every curve ended at once, whatever the rate, so that the usual rate is taken: "
    "the rate is not to blame. Scale X with SafeScaler()."
)
_NONE_STABLE = (
    "No rate tried is stable: from one start or another, a step was refused or the "
    "loss did not fall. Try lower rates, and scale X with SafeScaler()."
)
_ONLY_LOWEST = (
    "No rate tried is below half of the largest stable one, which is taken. Try lower "
    "rates."
)
_CANNOT_TELL = (
    "cannot tell rates apart: the usual rate is taken, or half of the largest stable "
    "one."
)
_FLAT = (
    "The curves are flat: the loss on held-out rows fell by less than 1 % at any rate "
    "that is stable, so that the usual rate is taken, or half of the largest stable "
    "one."
)


@dataclass(frozen=True, eq=False)
class Judged:
    """Losses before and after the test, and what is stable.

    Parameters
    ----------
    first : ndarray of shape (n_seeds,)
        Training loss of the first batch.
    train : ndarray of shape (n_rates, n_seeds)
        Training loss at the end, infinite where a curve has ended.
    first_valid, valid : ndarray of these shapes, or None
        The same on held-out rows.
    n_whole : int
        So many of the rates, from the lowest, have no curve that has ended.
    fastest : int or None
        The rate of these with the lowest training loss.
    is_stable : ndarray of shape (n_rates,), bool
        Whether a rate, and each below it, is stable.
    """

    first: np.ndarray
    train: np.ndarray
    first_valid: np.ndarray | None
    valid: np.ndarray | None
    n_whole: int
    fastest: int | None
    is_stable: np.ndarray

    @classmethod
    def of(cls, curves: RateCurves) -> Judged:
        """What the curves come to."""
        losses = curves.losses.astype(np.float64)
        n_rates, _, n_steps = losses.shape
        train = _end(losses, max(1, n_steps // _END))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all of them may be NaN
            first = np.nanmax(losses[:, :, 0], axis=0)
            valid = first_valid = None
            if curves.valid_losses.size:
                checks = curves.valid_losses.astype(np.float64)
                valid = _end(checks, _N_LAST_CHECKS)
                first_valid = np.nanmax(checks[:, :, 0], axis=0)
        is_whole = np.isfinite(train).all(axis=1)
        n_whole = n_rates if is_whole.all() else int(is_whole.argmin())
        is_stable = np.zeros(n_rates, dtype=bool)
        if not n_whole:
            return cls(first, train, first_valid, valid, 0, None, is_stable)
        fastest = int(train[:n_whole].mean(axis=1).argmin())
        lowest = train[:n_whole].min(axis=0)
        limit = first - _KEPT_FALL * (first - lowest)
        # Where nothing falls, what does not rise is stable.
        risen = first + 0.1 * np.abs(first)
        limit = np.where(lowest < first, limit, risen)
        above = (train[fastest:n_whole] <= limit).all(axis=1)
        n_above = len(above) if above.all() else int(above.argmin())
        is_stable[: fastest + n_above] = n_above > 0
        return cls(first, train, first_valid, valid, n_whole, fastest, is_stable)


def suggested(
    rates: np.ndarray,
    curves: RateCurves,
    judged: Judged,
    largest: float | None,
    n_rows: int,
) -> tuple[float, int, str]:
    """Rate to take, level of confidence, and the reason for both.

    Parameters
    ----------
    rates : ndarray of shape (n_rates,)
        Ascending.
    curves : RateCurves
        Theirs.
    judged : Judged
        Those curves.
    largest : float or None
        Largest stable rate.
    n_rows : int
        Rows of the table.

    Returns
    -------
    tuple of float, int and str
        The level is 0, 1 or 2.
    """
    if np.isnan(curves.losses[:, :, _FIRST_STEPS:]).all():
        return _USUAL_RATE, 0, _ALL_ENDED
    if largest is None:
        return min(_USUAL_RATE, float(rates[0]) / _MARGIN), 0, _NONE_STABLE
    most = largest / _MARGIN
    allowed = np.flatnonzero(rates <= most * (1.0 + 1e-9))
    if not len(allowed):
        return most, 0, _ONLY_LOWEST
    usual = min(_USUAL_RATE, most)
    if judged.valid is None or judged.first_valid is None:
        return usual, 0, f"{counted(n_rows, 'row')} {_CANNOT_TELL}"
    first, last = judged.first_valid, judged.valid
    falls = first - last[allowed].min(axis=0)
    if (falls < _LEAST_FALL * np.abs(first)).any():
        return usual, 0, _FLAT
    mean = last.mean(axis=1)
    rate = _centre(rates, mean, float(first.mean()), allowed)
    each = [
        _centre(rates, own, float(start), allowed)
        for own, start in zip(last.T, first, strict=True)
    ]
    best = int(allowed[mean[allowed].argmin()])
    reason = (
        f"The loss on held-out rows is lowest there: {mean[best]:.3g} in the end, from "
        f"{first.mean():.3g}."
    )
    doubts = list(_doubts_of_starts(each)) + list(
        _doubts_of_edges(rates, mean, best, int(allowed[-1]), largest)
    )
    if n_rows < _ENOUGH_ROWS:
        doubts.append((1, f"There are few rows, {n_rows}, to judge by."))
    level = min([2, *(level for level, _ in doubts)])
    return rate, level, " ".join([reason, *(text for _, text in doubts)])


def _end(losses: np.ndarray, n_last: int) -> np.ndarray:
    """Mean of the last ones of each curve, infinite if it has ended before."""
    means: np.ndarray = losses[:, :, -n_last:].mean(axis=2)
    return np.where(np.isfinite(means), means, np.inf)


def _doubts_of_starts(each: list[float]) -> Iterator[tuple[int, str]]:
    """What each start by itself would suggest."""
    if len(each) == 1:
        yield 1, "There was one start only."
    ratio = max(each) / min(each)
    if ratio > _FAR_APART:
        level = 0 if ratio > _VERY_FAR_APART else 1
        yield level, f"The starts disagree: {min(each):.2g} to {max(each):.2g}."


def _doubts_of_edges(
    rates: np.ndarray, losses: np.ndarray, best: int, last: int, largest: float
) -> Iterator[tuple[int, str]]:
    if best == 0:
        yield 0, "It is the lowest rate tried: try lower ones."
    if best == last and largest == rates[-1]:
        yield 0, "It is at the edge of what was tried: try larger rates."
    elif best == last and losses[best + 1] < losses[best]:
        yield 1, f"It is at the edge of what is stable, {largest:.3g}."


def _centre(
    rates: np.ndarray, losses: np.ndarray, first: float, allowed: np.ndarray
) -> float:
    """Mean of the logarithms of the best rates, so that noise moves it but little."""
    capped = np.minimum(losses, first + abs(first))
    padded = np.pad(capped, 1, mode="edge")
    smooth = ((padded[:-2] + 2.0 * padded[1:-1] + padded[2:]) / 4.0)[allowed]
    fall = max(first - float(smooth.min()), 1e-12 * max(abs(first), 1e-300))
    weights = np.exp((smooth.min() - smooth) / (_TOLERANCE * fall))
    return float(np.exp(np.average(np.log(rates[allowed]), weights=weights)))


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
