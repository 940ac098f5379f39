"""Columns of a table brought to one scale, whatever stands in them: SafeScaler."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.callback import CallbackSupportMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from sknan._utils.callbacks import fit_as_task
from sknan._utils.pickling import VersionedPickleMixin
from sknan._utils.validation import first_text_cell
from sknan.preprocessing._kernels.blocks import KnownMask, PerColumn, blocks
from sknan.preprocessing._kernels.column_means import midpoint
from sknan.preprocessing._kernels.quantiles import bracketing_values, quantile_rank
from sknan.preprocessing._kernels.soft_bound import (
    DirectScaling,
    round_down,
    squash,
    unsquash,
)

__all__ = ["SafeScaler"]

_MAX = float(np.finfo(np.float64).max)
_TINY = float(np.finfo(np.float64).smallest_subnormal)

# Up to here a center or scale can be subtracted from, or divide, any float64 without an
# overflow: it is less than half the distance between the two largest float64.
_HUGE = 2.0**969

_BOUND_RANGE = (1e-30, 1e30)


class SafeScaler(
    VersionedPickleMixin,
    CallbackSupportMixin,
    OneToOneFeatureMixin,
    TransformerMixin,
    BaseEstimator,
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

    feature_names_in_ : ndarray of shape (n_features,)
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
    beyond about 5e19 comes out as 0, the median. The second form cannot overflow; and
    as each of its steps rounds monotonously, larger values never come out smaller, by
    not even the last digit. It is computed in the dtype of the table, as
    :math:`1 / \sqrt{1 / b^2 + s^2 / (x - m)^2}` and to four units of the last place;
    where the bound, a center, a spread or a spread times the bound is extreme for that
    dtype (beyond 1e9, 1e18, 1e18 and 1e14 in float32) all columns take a longer way in
    float64.

    Quartiles are found in blocks of the table, by one pass that counts what lies
    between values of a sample: exactly, and in little memory beside the table.

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
    >>> from sknan.preprocessing import SafeScaler
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

    @fit_as_task
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
        known = KnownMask()
        near = bracketing_values(X_in, (low, 0.5, high), known)
        below, above, n_known = (array.tolist() for array in near)
        self.center_ = np.array(list(map(midpoint, below[1], above[1])))
        self.scale_ = np.zeros(len(n_known))
        for j in np.flatnonzero(near.n_known):
            first, third = (
                _interpolate(
                    below[q][j], above[q][j], quantile_rank(fraction, n_known[j]) % 1
                )
                for q, fraction in ((0, low), (2, high))
            )
            if not third > first:
                column = X_in[:, j]
                column = column[known(column)]
                first, third = float(column.min()), float(column.max())
            self.scale_[j] = min(third - first, _MAX)
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
        if not hasattr(self, "scale_"):
            check_is_fitted(self)
        X_in = X if self._is_valid(X) else self._validate(X, reset=False)
        bound = round_down(self.bound, X_in.dtype)
        direct = DirectScaling(
            self.center_,
            self.scale_,
            None if self.bound is None else bound,
            X_in.dtype,
        )
        if direct.applies:
            out = self._place_for(X_in)
            direct.write(X_in, out)
            return out

        # A column of huge numbers is divided by 4 throughout, which is exact there.
        huge = np.maximum(np.abs(np.nan_to_num(self.center_)), self.scale_) > _HUGE
        shrink = np.where(huge, 0.25, 1.0)
        known = self.scale_ > 0
        center = np.where(known, self.center_, 0.0) * shrink
        scale = np.where(known, np.maximum(self.scale_ * shrink, _TINY), 1.0)
        # Where no spread is known every deviation counts as 0.
        farthest = np.where(known, np.inf, 0.0)

        def scaled(
            cells: NDArray[Any], columns: Sequence[NDArray[Any]], out: NDArray[Any]
        ) -> None:
            shrink, center, scale, farthest = columns
            z = cells * shrink
            z -= center
            np.clip(z, 0.0 - farthest, farthest, out=z)  # 0.0 - 0.0 has no sign
            z /= scale
            out[...] = squash(z, bound) if self.bound is not None else _cap(z, bound)

        return self._map(scaled, X_in, (shrink, center, scale, farthest))

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
        bound = round_down(self.bound, X_in.dtype)
        largest = float(np.finfo(X_in.dtype).max)
        farthest = _MAX * (1 - 2.0**-52) / np.maximum(self.scale_, 1.0)
        center = np.nan_to_num(self.center_)

        def restored(
            cells: NDArray[Any], columns: Sequence[NDArray[Any]], out: NDArray[Any]
        ) -> None:
            center, scale, farthest = columns
            z = cells.astype(np.float64)
            if self.bound is not None:
                z = unsquash(z, bound)
            # In halves, since the sum of two finite numbers may not be finite.
            half = np.clip(z, -farthest, farthest) * (scale * 0.5) + center * 0.5
            half = np.clip(half, -largest * 0.5, largest * 0.5)
            # Infinite deviations are to be extremes, whatever the scale.
            beyond = np.isinf(z) & (scale > 0)
            out[...] = np.where(beyond, np.copysign(largest, z), half * 2.0)

        return self._map(restored, X_in, (center, self.scale_, farthest))

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

    def _is_valid(self, X: Any) -> TypeGuard[NDArray[Any]]:
        """Whether validation in ``transform`` would find nothing and change nothing."""
        return (
            type(X) is np.ndarray
            and X.dtype in (np.float64, np.float32)
            and X.ndim == 2
            and len(X) > 0
            and X.shape[1] == self.n_features_in_
            and not hasattr(self, "feature_names_in_")
        )

    def _place_for(self, X: NDArray[Any]) -> NDArray[Any]:
        """Where the output for ``X`` goes."""
        in_place = not self.copy and X.flags.writeable
        return X if in_place else np.empty_like(X, subok=False)

    def _map(
        self,
        work: Callable[[NDArray[Any], Sequence[NDArray[Any]], NDArray[Any]], None],
        X: NDArray[Any],
        columns: Sequence[NDArray[Any]],
    ) -> NDArray[Any]:
        """Have ``work`` write the output, block by block in the order of memory."""
        out = self._place_for(X)
        per_column = [PerColumn(values) for values in columns]
        # What underflows is meant to round to 0; what overflows, to be bounded.
        with np.errstate(under="ignore", over="ignore"):
            for block in blocks(X, out):
                rows = [values.along(block) for values in per_column]
                work(block.cells, rows, block.out)
        return out

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _interpolate(low: float, high: float, weight: float) -> float:
    """The point between two finite numbers: numpy's, and finite where that is not."""
    gap = high - low
    if not math.isfinite(gap):
        return low * (1 - weight) + high * weight
    return high - gap * (1 - weight) if weight >= 0.5 else low + gap * weight


def _cap(z: NDArray[np.float64], largest: float) -> NDArray[np.float64]:
    return np.clip(z, -largest, largest)


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
