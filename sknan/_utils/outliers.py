"""Values that outweigh all the others of a column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sknan._utils.validation import places
from sknan._utils.warn import warn
from sknan.exceptions import NonFiniteDataError

# Share of the values of a column up to which they are outliers.
_FEW = 0.1

# Values farther from the median than this multiple of the standard deviation dominate
# it if they make up this share of the squared deviations: with 1 to 5 such cells, rows
# or targets among 400, the default network loses more than a quarter of R2.
_OUTLYING = 3.0
DOMINANT = 0.9

# They are this far out beyond nine tenths of the other values. One value of 60 standard
# deviations among 400 of a normal distribution is 35 to 40 times as far out as these
# are; those that dominate log-normal columns are 8 to 30 times as far (log of standard
# deviation 1 to 2), and those of Student's t with 3 degrees of freedom 15.
_APART = 30.0

Mask = NDArray[np.bool_]


def check_outliers(
    values: np.ndarray,
    numbers: np.ndarray,
    *,
    name: str,
    effect: str,
    remedy: str,
    columns: Sequence[Any] | None = None,
    dtype: type[np.floating[Any]] = np.float32,
    is_harmful: Callable[[Mask], bool] = np.any,
) -> None:
    """Refuse or warn of a few values that outweigh all the others of a column.

    Parameters
    ----------
    values : ndarray of shape (n_samples,) or (n_samples, n_columns)
        Finite values.
    numbers : ndarray of shape (n_samples,)
        Row numbers in the data of the user.
    name, remedy, columns
        See :func:`~sknan._utils.validation.check_finite`.
    effect : str
        Sentence that the warning says of the outliers.
    dtype : type, default=numpy.float32
        Type of the numbers in the network.
    is_harmful : callable, default=numpy.any
        Function of the mask of outliers that returns whether they do harm.

    Raises
    ------
    NonFiniteDataError
        If at most a tenth of the values of a column are so large that the differences
        between the others are below the resolution of the network.

    Warns
    -----
    UserWarning
        If values more than three standard deviations from the median make up nine
        tenths of the squared deviations, and are far beyond the others, most of which
        differ from the median too.
    """
    vanishing, dominant = _find_outliers(values, dtype)
    if vanishing.any() and is_harmful(vanishing):
        raise NonFiniteDataError(
            f"{name} contains values too large for {dtype.__name__} to distinguish the "
            f"others{_places_in_data(vanishing, numbers, columns)}. {remedy}"
        )
    if dominant.any() and is_harmful(dominant):
        warn(
            f"{name} contains outliers{_places_in_data(dominant, numbers, columns)}. "
            f"{effect} {remedy}"
        )


def without_outliers(values: np.ndarray) -> NDArray[np.float64]:
    """Return values with NaN in place of those that :func:`check_outliers` names."""
    vanishing, dominant = _find_outliers(values, np.float32)
    return np.where(vanishing | dominant, np.nan, values.astype(np.float64))


def _find_outliers(
    values: np.ndarray, dtype: type[np.floating[Any]]
) -> tuple[Mask, Mask]:
    """Return the values beside which the others vanish, and those that dominate."""
    halves = values / 2
    deviation = np.abs(halves - np.median(halves, axis=0)).astype(np.float64)
    largest = deviation.max(axis=0)
    is_large = deviation > np.finfo(dtype).eps * largest
    is_rest_lost = ((deviation > 0) & ~is_large).any(axis=0)
    vanishing = is_large & is_rest_lost & (is_large.mean(axis=0) <= _FEW)
    in_units = deviation / np.maximum(largest, np.finfo(np.float64).tiny)
    squares = np.square(in_units)
    bad = squares > _OUTLYING**2 * squares.mean(axis=0)
    share = (squares * bad).sum(axis=0) / np.maximum(squares.sum(axis=0), 1.0)
    bad &= (share >= DOMINANT) & (np.median(deviation, axis=0) > 0)
    for column in np.argwhere(bad.any(axis=0)):  # () for a single column
        of_column = bad[:, *column], deviation[:, *column]
        bad[:, *column] &= _are_apart(*of_column)
    return vanishing, bad


def _are_apart(bad: Mask, deviation: NDArray[np.float64]) -> bool:
    usual = float(np.quantile(deviation[~bad], 0.9))
    return float(deviation[bad].min()) >= _APART * usual


def _places_in_data(
    bad: Mask, numbers: np.ndarray, columns: Sequence[Any] | None
) -> str:
    in_data = np.zeros((numbers.max() + 1, *bad.shape[1:]), dtype=bool)
    in_data[numbers] = bad
    return places(in_data, columns)
