"""Prediction intervals and standard deviations of an ensemble."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sknan._utils.validation import is_number
from sknan.estimators._held_out import HeldOutPredictions

# Halvings of the bracket of a bound, down to the precision of float64.
_N_HALVINGS = 55


@dataclass(frozen=True)
class HeldOutResiduals:
    """Absolute residuals of one target, for the rows held out of each network.

    Parameters
    ----------
    residuals : list of ndarray of shape (n_held_out,), float32
        Sorted residuals for each network, in units of the largest of all.
    unit : float
        Largest residual.
    weights : list of ndarray of shape (n_held_out + 1,) or None
        Total weight of the first residuals, from none to all, for each network. None
        if all rows count the same.
    """

    residuals: list[np.ndarray]
    unit: float
    weights: list[np.ndarray] | None

    @classmethod
    def of(
        cls, errors: list[np.ndarray], weights: list[np.ndarray] | None
    ) -> HeldOutResiduals:
        """Sort the residuals of each network; NaN for rows without a target."""
        largest = max((float(np.nanmax(e, initial=0.0)) for e in errors), default=0.0)
        unit = largest if largest > 0 else 1.0
        sorted_residuals, totals = [], []
        for i, error in enumerate(errors):
            order = np.argsort(error, kind="stable")  # NaN comes last
            order = order[: np.count_nonzero(~np.isnan(error))]
            sorted_residuals.append((error[order] / unit).astype(np.float32))
            if weights is not None:
                total = np.concatenate([[0.0], np.cumsum(weights[i][order])])
                totals.append(total)
        return cls(sorted_residuals, unit, totals if weights is not None else None)

    @property
    def n_rows(self) -> int:
        """Number of residuals of all networks."""
        return sum(map(len, self.residuals))

    def bounds(
        self, centers: np.ndarray, coverage: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and upper ends of CV+ intervals.

        Parameters
        ----------
        centers : ndarray of shape (n_networks, n_samples), float64
            Predictions of each network.
        coverage : float
            Share of new targets that the intervals are to contain.

        Returns
        -------
        lower, upper : ndarray of shape (n_samples,), float64
        """
        middle = (centers / len(centers)).sum(axis=0)
        limit = np.finfo(np.float32).max
        with np.errstate(over="ignore"):
            offsets = np.clip((centers - middle) / self.unit, -limit, limit)
        upper = self._quantile(offsets, coverage)
        lower = -self._quantile(-offsets, coverage)
        # For a small coverage the ends may cross; exchanged, they contain no less.
        first, last = np.minimum(lower, upper), np.maximum(lower, upper)
        with np.errstate(over="ignore"):
            return middle + first * self.unit, middle + last * self.unit

    def _quantile(self, offsets: np.ndarray, coverage: float) -> np.ndarray:
        """Return for each sample the quantile of offset plus residual of all rows.

        Of n values, this is number ``ceil(coverage * (n + 1))`` in ascending order.
        Bisection needs no matrix of samples times training rows.
        """
        n_rows, weights = self.n_rows, self.weights
        total = n_rows if weights is None else sum(float(w[-1]) for w in weights)
        # The new row counts as much as the others in the mean. The last factor is for a
        # product that is an integer up to rounding.
        needed = total * min(coverage * (1 + 1 / n_rows), 1.0) * (1 - 1e-9)
        pairs = [(o, r) for o, r in zip(offsets, self.residuals, strict=True) if len(r)]
        low = np.min([offset + residuals[0] for offset, residuals in pairs], axis=0)
        low = np.nextafter(low, -np.inf)
        high = np.max([offset + residuals[-1] for offset, residuals in pairs], axis=0)
        for _ in range(_N_HALVINGS):
            value = low + (high - low) / 2
            is_enough = self._weight_up_to(value, offsets) >= needed
            high = np.where(is_enough, value, high)
            low = np.where(is_enough, low, value)
        found: np.ndarray = high
        return found

    def _weight_up_to(self, value: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Return the weight of the rows with a sum of at most ``value``."""
        found = np.zeros(len(value))
        for i, residuals in enumerate(self.residuals):
            count = np.searchsorted(residuals, value - offsets[i], side="right")
            found += count if self.weights is None else self.weights[i][count]
        return found


def residuals_of(held_out: HeldOutPredictions) -> list[HeldOutResiduals]:
    """Return the residuals of each target."""
    errors = []
    limit = np.finfo(np.float64).max / 2
    for rows, predicted in zip(held_out.rows, held_out.predicted, strict=True):
        # Halves: the difference of two values near the largest float overflows.
        halves = np.abs(held_out.target[rows] / 2.0 - predicted / 2.0)
        errors.append(2.0 * np.minimum(halves, limit).reshape(len(rows), -1))
    weights = None
    if held_out.weights is not None:
        weights = [held_out.weights[rows] for rows in held_out.rows]
    return [
        HeldOutResiduals.of([error[:, column] for error in errors], weights)
        for column in range(errors[0].shape[1])
    ]


def mixture_deviation(
    means: list[np.ndarray], deviations: list[np.ndarray] | None
) -> np.ndarray:
    """Return the standard deviation of the mixture of the networks' distributions.

    Deviations are None for networks that predict only a number.
    """
    centers = np.stack(means).astype(np.float64)
    limit = np.finfo(np.float64).max
    with np.errstate(over="ignore"):
        parts = np.abs(centers - (centers / len(centers)).sum(axis=0))
        if deviations is not None:
            parts = np.hypot(parts, np.stack(deviations))
        parts = np.minimum(parts, limit)
    # In units of the largest part no square overflows.
    unit = np.maximum(parts.max(axis=0), np.finfo(np.float64).tiny)
    total: np.ndarray = np.sqrt(np.mean((parts / unit) ** 2, axis=0)) * unit
    return total


class IntervalMixin:
    """Method ``predict_interval`` of an ensemble of regressors."""

    _of_each: Callable[..., list[np.ndarray]]
    _residuals: list[HeldOutResiduals] | None

    def predict_interval(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        r"""Return intervals that contain a given share of new targets.

        The intervals are CV+ intervals of the rows held out of each network [1]_. With
        a network's prediction :math:`\mu_k(x)` and the absolute residual :math:`R_i`
        of a row that was held out of network :math:`k(i)`, the ends for :math:`n` such
        rows are the values number :math:`\lceil c (n + 1) \rceil` of
        :math:`\mu_{k(i)}(x) + R_i` in ascending and of :math:`\mu_{k(i)}(x) - R_i` in
        descending order, where :math:`c` is ``coverage``.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features: finite numbers within float32.
        coverage : float, default=0.9
            Share of new targets that the intervals are to contain.

        Returns
        -------
        ndarray of shape (n_samples, 2) or (n_samples, n_targets, 2)
            Lower and upper ends, in the units of ``y``. The coverage holds for each
            target on its own.

        Raises
        ------
        ValueError
            If no rows were held out, or too few for the coverage; if the networks
            predict several quantiles; or if ``coverage`` is not between 0 and 1.

        Notes
        -----
        If the rows of ``fit`` and the new row are exchangeable, a CV+ interval of
        :math:`K` folds contains the new target with a probability of at least

        .. math::

            1 - 2 \alpha - \min\Bigl(\frac{2 (1 - 1/K)}{n/K + 1},
            \frac{1 - K/n}{K + 1}\Bigr) \ge 1 - 2 \alpha - \sqrt{2/n},
            \qquad \alpha = 1 - c,

        whatever the network and the distribution ([1]_, theorem 4). In practice the
        coverage is close to :math:`1 - \alpha`; ``benchmarks/intervals.py`` measures
        it. The theorem does not cover:

        - the choice of each network's best epoch, for which the same rows were used;
        - more than five networks, whose further folds are of another partition. Their
          residuals are pooled;
        - rows in groups or in an order of time, which are not exchangeable with new
          ones. Whole groups can be held out (``groups``);
        - ``sample_weight``. Rows count in the quantiles by their weights, which suits
          new rows that are distributed as the weighted ones. The new row has the mean
          weight.

        The probability is over all new rows. For rows of one kind it may be lower.

        References
        ----------
        .. [1] R. F. Barber, E. J. Candès, A. Ramdas and R. J. Tibshirani (2021),
           "Predictive inference with the jackknife+", Annals of Statistics 49(1),
           arXiv:1905.02928v5, equation 8 and theorem 4.
        """
        check_is_fitted(self)
        if not is_number(coverage) or not 0 < coverage < 1:
            raise ValueError(
                "coverage must be a number between 0 and 1, both excluded, got "
                f"{coverage!r}."
            )
        residuals = self._residuals_for(coverage)
        each = self._of_each("predict", X)
        centers = np.stack(each).astype(np.float64)
        centers = centers.reshape(len(each), -1, len(residuals))
        ends = [r.bounds(centers[:, :, i], coverage) for i, r in enumerate(residuals)]
        dtype = each[0].dtype
        limit = np.finfo(dtype).max
        bounds = np.clip(np.transpose(ends, (2, 0, 1)), -limit, limit)
        intervals: np.ndarray = bounds.reshape(*each[0].shape, 2).astype(dtype)
        return intervals

    def _residuals_for(self, coverage: float) -> list[HeldOutResiduals]:
        """Return the residuals of each target, if they are enough for a coverage."""
        name = type(self).__name__
        if not hasattr(self, "_residuals"):
            raise ValueError(
                "predict_interval needs residuals of rows that were held out of the "
                f"networks, but this {name} held out none: set early_stopping=True in "
                "its estimator, and do not pass X_val."
            )
        if self._residuals is None:
            raise ValueError(
                "predict_interval needs one prediction per target, but these networks "
                "predict several quantiles: set criterion__quantile to one number, or "
                "use predict_quantiles(X)."
            )
        n_rows = min(of_one.n_rows for of_one in self._residuals)
        most = n_rows / (n_rows + 1)
        if coverage > most:
            nearest = math.floor(1e3 * most) / 1e3
            n_needed = math.ceil(coverage / (1 - coverage) - 1e-9)
            raise ValueError(
                f"coverage={coverage} needs at least {n_needed} held-out rows, but "
                f"there are {n_rows}: lower it to at most {nearest}, or fit more rows."
            )
        residuals: list[HeldOutResiduals] = self._residuals
        return residuals
