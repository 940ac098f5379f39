"""Means of columns that are updated chunk by chunk."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Every finite float64 is a whole multiple of 2**-1074.
_FRACTION_BITS = 1074


class RunningMeans:
    """Means of the columns over all chunks seen so far.

    The total of a column is a Python integer, the sum in units of ``2**-1074``. Adding
    a chunk therefore neither rounds nor overflows, and the order of the chunks does not
    matter. Each mean is between the smallest and the largest mean of the chunks, and so
    within the range of the values.

    Parameters
    ----------
    means : ndarray of shape (n_columns,)
        Means of the first chunk. The mean of a column without a value is ignored.
    counts : ndarray of shape (n_columns,)
        Number of values in each column of the first chunk.
    """

    def __init__(self, means: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        self.means, self.counts = means, counts
        self._totals: list[int] | None = None

    def add(self, chunk: RunningMeans) -> None:
        """Include the values of one more chunk."""
        if self._totals is None:
            self._totals = list(map(_total, self.means.tolist(), self.counts.tolist()))
        self.means, self.counts = self.means.copy(), self.counts + chunk.counts
        for j in np.flatnonzero(chunk.counts):
            self._totals[j] += _total(float(chunk.means[j]), int(chunk.counts[j]))
            # True division of integers is rounded correctly.
            self.means[j] = self._totals[j] / (int(self.counts[j]) << _FRACTION_BITS)


def _total(mean: float, count: int) -> int:
    """Return ``count * mean`` exactly, in units of ``2**-1074``."""
    if not count:
        return 0
    numerator, denominator = mean.as_integer_ratio()  # the latter is a power of two
    return count * numerator << _FRACTION_BITS + 1 - denominator.bit_length()
