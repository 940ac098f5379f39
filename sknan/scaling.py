"""Columns of a table brought to one scale, whatever stands in them: SafeScaler."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from sknan._checks import first_text_cell
from sknan._columns import BLOCK_CELLS, columns_of, midpoint
from sknan._pickling import VersionedPickleMixin

__all__ = ["SafeScaler"]

_MAX = float(np.finfo(np.float64).max)
_TINY = float(np.finfo(np.float64).smallest_subnormal)

# Up to here a center or scale can be subtracted from, or divide, any float64 without an
# overflow: it is less than half the distance between the two largest float64.
_HUGE = 2.0**969

# Below bound * 2**-27 the squashed value and the value differ by less than half the
# distance between neighbouring float64.
_IDENTITY = 2.0**-27

_BOUND_RANGE = (1e-30, 1e30)


class SafeScaler(
    VersionedPickleMixin, OneToOneFeatureMixin, TransformerMixin, BaseEstimator
):
    r"""Scale by median and interquartile range, then bound outliers softly.

    Every finite or infinite number comes out finite, however large, and the order of
    values within a column is kept. NaN stays NaN.

    Parameters
    ----------
    quantile_range : tuple of two floats, default=(25.0, 75.0)
        Percentages between which the spread of a column is taken, from 0 to 100.

    bound : float or None, default=3.0
        Scaled values are bounded softly to ``(-bound, bound)``, from 1e-30 to 1e30.
        Infinities become ``-bound`` and ``bound``. With None nothing is bounded but by
        the output's dtype: what lies beyond its largest finite number, infinities
        included, becomes that number, so that nothing infinite is passed on.

    copy : bool, default=True
        If False, scale in place where possible: an array of float32 or float64 that can
        be written to is overwritten by :meth:`transform`.

    Attributes
    ----------
    center_ : ndarray of shape (n_features,), float64
        Median of the finite values of each column; NaN where there is none.

    scale_ : ndarray of shape (n_features,), float64
        Spread between the quantiles; where they coincide, the range of the finite
        values. 0 where the column is constant or holds no finite value. Capped at the
        largest float64.

    n_features_in_ : int
        Number of columns seen during ``fit``.

    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns seen during ``fit``, if all of them are strings.

    See Also
    --------
    NaNImputer : Fills missing and infinite values; stands before the scaler.
    sklearn.preprocessing.RobustScaler : The same scaling, unbounded; no infinities.

    Notes
    -----
    With :math:`m` the median, :math:`s` the spread and :math:`b` the bound,

    .. math:: z = \frac{x - m}{s}, \qquad
       y = \frac{z}{\sqrt{1 + (z / b)^2}} = \frac{b}{\sqrt{1 + (b / z)^2}}

    (the last for positive :math:`z`). The bounding is the smooth clipping of RealMLP
    [1]_. In its usual form, the first, the square overflows: in float32 every value
    beyond about 5e19 comes out as 0, the median. The second form, computed here in
    float64, cannot overflow; and as each of its steps rounds monotonously, larger
    values never come out smaller, by not even the last digit. Where ``z / bound`` is
    under 2**-27 the result is ``z`` itself.

    NaN and infinities take no part in the statistics. Quantiles are interpolated
    linearly, as in :func:`numpy.nanpercentile`. A constant column becomes 0, also for
    values that come up later; so does what comes up in a column that had no finite
    value.

    References
    ----------
    .. [1] D. Holzmüller, L. Grinsztajn and I. Steinwart (2024). Better by default:
       strong pre-tuned MLPs and boosted trees on tabular data. arXiv:2407.04491v3.

    Examples
    --------
    >>> import numpy as np
    >>> from sknan.scaling import SafeScaler
    >>> X = np.array([[2.5, 0.0], [4.6, 0.0], [3.0, 1.0], [1e300, 0.0], [np.nan, 0.0]])
    >>> SafeScaler().fit_transform(X).round(2)
    array([[-0.  ,  0.  ],
           [ 0.  ,  0.  ],
           [-0.  ,  0.95],
           [ 2.4 ,  0.  ],
           [  nan,  0.  ]])
    >>> scaler = SafeScaler().fit([[1.0], [2.0], [3.0], [4.0], [5.0]])
    >>> scaler.transform([[3.0], [4.0], [1e300], [np.inf]]).round(2)
    array([[0.  ],
           [0.49],
           [3.  ],
           [3.  ]])
    """

    def __init__(
        self,
        *,
        quantile_range: tuple[float, float] = (25.0, 75.0),
        bound: float | None = 3.0,
        copy: bool = True,
    ) -> None:
        self.quantile_range = quantile_range
        self.bound = bound
        self.copy = copy

    def fit(self, X: ArrayLike, y: Any = None) -> SafeScaler:
        """Learn the median and the spread of each column.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Numbers; NaN and infinities are left out of the statistics.

        y : Ignored
            Present by convention.

        Returns
        -------
        SafeScaler
            The fitted scaler itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range or ``X`` holds text.
        """
        self._check_parameters()
        X_in = self._validate(X, reset=True)
        low, high = (percent / 100 for percent in self.quantile_range)
        statistics = [
            _center_and_scale(column[np.isfinite(column)], low, high)
            for column in columns_of(X_in)
        ]
        self.center_, self.scale_ = np.array(statistics, dtype=np.float64).T.copy()
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Center, scale and bound each column.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Numbers, NaN and infinities.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            float32 if ``X`` is, else float64; NaN where ``X`` is NaN, finite elsewhere.
        """
        check_is_fitted(self)
        X_in = self._validate(X, reset=False)
        bound = _round_down(self.bound, X_in.dtype)

        # A column of huge numbers is divided by 4 throughout, which is exact there.
        huge = np.maximum(np.abs(np.nan_to_num(self.center_)), self.scale_) > _HUGE
        shrink = np.where(huge, 0.25, 1.0)
        known = self.scale_ > 0
        center = np.where(known, self.center_, 0.0) * shrink
        scale = np.where(known, np.maximum(self.scale_ * shrink, _TINY), 1.0)
        # Where no spread is known every deviation counts as 0.
        farthest = np.where(known, np.inf, 0.0)

        def scaled(
            block: NDArray[Any], columns: NDArray[Any], out: NDArray[Any]
        ) -> None:
            shrink, center, scale, farthest = columns
            z = block * shrink
            z -= center
            np.clip(z, 0.0 - farthest, farthest, out=z)  # 0.0 - 0.0 has no sign
            z /= scale
            out[...] = _squash(z, bound) if self.bound is not None else _cap(z, bound)

        return self._map(scaled, X_in, np.stack([shrink, center, scale, farthest]))

    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """Undo :meth:`transform`, as far as what was bounded can be told apart.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Scaled values.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Values in the units of the data; always finite but for NaN. Values at or
            beyond the bound become the lowest and largest finite number of the dtype; a
            constant column becomes its constant, one that had no finite value 0.
        """
        check_is_fitted(self)
        X_in = _numbers(self, X, check_array)
        if X_in.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {X_in.shape[1]} features, but SafeScaler is expecting "
                f"{self.n_features_in_} features as input."
            )
        bound = _round_down(self.bound, X_in.dtype)
        largest = float(np.finfo(X_in.dtype).max)
        farthest = _MAX * (1 - 2.0**-52) / np.maximum(self.scale_, 1.0)
        center = np.nan_to_num(self.center_)

        def restored(
            block: NDArray[Any], columns: NDArray[Any], out: NDArray[Any]
        ) -> None:
            center, scale, farthest = columns
            z = block.astype(np.float64)
            if self.bound is not None:
                z = _unsquash(z, bound)
            # In halves, since the sum of two finite numbers may not be finite.
            half = np.clip(z, -farthest, farthest) * (scale * 0.5) + center * 0.5
            half = np.clip(half, -largest * 0.5, largest * 0.5)
            # Infinite deviations are to be extremes, whatever the scale.
            beyond = np.isinf(z) & (scale > 0)
            out[...] = np.where(beyond, np.copysign(largest, z), half * 2.0)

        return self._map(restored, X_in, np.stack([center, self.scale_, farthest]))

    def _check_parameters(self) -> None:
        bound, pair = self.bound, self.quantile_range
        low, high = _BOUND_RANGE
        if bound is not None and not (_is_number(bound) and low <= bound <= high):
            raise ValueError(
                "The 'bound' parameter of SafeScaler must be None or a number from "
                f"{low} to {high}. Got {bound!r} instead."
            )
        if not (
            isinstance(pair, (tuple, list))
            and len(pair) == 2
            and all(_is_number(percent) for percent in pair)
            and 0 <= pair[0] < pair[1] <= 100
        ):
            raise ValueError(
                "The 'quantile_range' parameter of SafeScaler must be two numbers with "
                f"0 <= low < high <= 100. Got {pair!r} instead."
            )

    def _validate(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        def validate(X: ArrayLike, **options: Any) -> NDArray[Any]:
            checked: NDArray[Any] = validate_data(self, X, reset=reset, **options)
            return checked

        return _numbers(self, X, validate)

    def _map(
        self,
        work: Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], None],
        X: NDArray[Any],
        columns: NDArray[Any],
    ) -> NDArray[Any]:
        """Have ``work`` write the output, block by block in the order of memory."""
        in_place = not self.copy and X.flags.writeable
        out = X if in_place else np.empty_like(X, subok=False)
        source, target = X, out
        per_column = columns[:, None, :]
        by_column = not X.flags.c_contiguous and X.flags.f_contiguous
        if by_column:
            source, target = X.T, out.T
            per_column = columns[:, :, None]
        size = max(1, BLOCK_CELLS // source.shape[1])
        # What underflows is meant to round to 0; what overflows, to be bounded.
        with np.errstate(under="ignore", over="ignore"):
            for start in range(0, len(source), size):
                rows = slice(start, start + size)
                part = per_column[:, rows] if by_column else per_column
                work(source[rows], part, target[rows])
        return out

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _center_and_scale(
    values: NDArray[Any], low: float, high: float
) -> tuple[float, float]:
    """Median and spread of finite ``values``, which are reordered."""
    if values.size == 0:
        return math.nan, 0.0
    last = values.size - 1
    middle = (last // 2, (last + 1) // 2)
    floors = [math.floor(last * fraction) for fraction in (low, high)]
    ranks = {0, last, *middle, *floors, *(min(rank + 1, last) for rank in floors)}
    values.partition(sorted(ranks))
    at = {rank: float(values[rank]) for rank in ranks}
    center = midpoint(at[middle[0]], at[middle[1]])
    first, third = (
        _interpolate(at[rank], at[min(rank + 1, last)], last * fraction - rank)
        for fraction, rank in zip((low, high), floors, strict=True)
    )
    spread = third - first if third > first else at[last] - at[0]
    return center, min(spread, _MAX)


def _interpolate(low: float, high: float, weight: float) -> float:
    """The point between two finite numbers: numpy's, and finite where that is not."""
    gap = high - low
    if not math.isfinite(gap):
        return low * (1 - weight) + high * weight
    return high - gap * (1 - weight) if weight >= 0.5 else low + gap * weight


def _squash(z: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """``z / sqrt(1 + (z / bound)**2)`` by steps that cannot overflow; see Notes."""
    small = bound * _IDENTITY
    size = np.abs(z)
    ratio = bound / np.maximum(size, small)
    bounded = bound / np.sqrt(1.0 + ratio * ratio)
    # Without the maximum, rounding might lower the first values past the identity.
    bounded = np.copysign(np.maximum(bounded, small), z)
    return np.where(size < small, z, bounded)


def _unsquash(y: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """The inverse of `_squash`; infinite at and beyond the bound."""
    ratio = np.abs(y) / bound
    inside = ~(ratio >= 1)  # NaN counts as inside, to come out as NaN
    ratio = np.where(inside, ratio, 0.0)
    z = y / np.sqrt((1.0 - ratio) * (1.0 + ratio))
    return np.where(inside, z, np.copysign(np.inf, y))


def _cap(z: NDArray[np.float64], largest: float) -> NDArray[np.float64]:
    return np.clip(z, -largest, largest)


def _round_down(bound: float | None, dtype: np.dtype[Any]) -> float:
    """The largest number of ``dtype`` up to ``bound``; its largest of all for None."""
    if bound is None:
        return float(np.finfo(dtype).max)
    nearest = dtype.type(bound)
    is_above = float(nearest) > bound  # compared as they are they would be cast first
    return float(np.nextafter(nearest, dtype.type(0)) if is_above else nearest)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _numbers(
    scaler: SafeScaler, X: ArrayLike, validate: Callable[..., NDArray[Any]]
) -> NDArray[Any]:
    """``X`` as float32 or float64; text is refused by name of column and row."""
    try:
        # Beyond float64 is infinite, and infinities are welcome.
        with np.errstate(over="ignore"):
            return validate(
                X,
                dtype=[np.float64, np.float32],
                ensure_all_finite=False,
                estimator=scaler,
            )
    except ValueError as error:
        if "could not convert" not in str(error):
            raise
        place = first_text_cell(X, getattr(X, "columns", None))
        raise ValueError(
            f"SafeScaler needs numbers, and X holds {place or 'text'}: {error}. "
            "Encode text first, for example with skrub.TableVectorizer()."
        ) from None
