"""What can be learnt from a table chunk by chunk, and methods that only some have."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import update_wrapper
from types import MethodType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NotAStreamError", "OnlyIf", "RunningMeans"]


class NotAStreamError(AttributeError, ValueError):
    """What was asked for cannot be learnt chunk by chunk.

    As an AttributeError it makes ``hasattr(imputer, "partial_fit")`` false, which is
    how scikit-learn and Dask ask; as a ValueError it says that a parameter is wrong.
    """


class OnlyIf:
    """A method that an object has only if ``refusal`` finds nothing to say.

    Parameters
    ----------
    refusal : callable
        Given the object, returns why it has not got the method, or an empty string.
    """

    def __init__(self, refusal: Callable[[Any], str]) -> None:
        self._refusal = refusal

    def __call__(self, function: Callable[..., Any]) -> OnlyIf:
        """Decorate the method."""
        self.__func__ = function
        update_wrapper(self, function)
        return self

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        """The method of an instance, or the function of the class."""
        if instance is None:
            return self.__func__
        if reason := self._refusal(instance):
            raise NotAStreamError(reason)
        return MethodType(self.__func__, instance)


class RunningMeans:
    """Means of the columns of all chunks so far.

    Totals are fractions: adding chunks neither rounds nor overflows, and as each mean
    is between those of the chunks, it is between the values.
    """

    def __init__(self, means: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        self.means, self.counts = means, counts
        self._totals: list[Fraction] | None = None

    def add(self, chunk: RunningMeans) -> None:
        """Take in one more chunk."""
        if self._totals is None:
            self._totals = list(map(_total, self.means, self.counts))
        self.means, self.counts = self.means.copy(), self.counts + chunk.counts
        for j in np.flatnonzero(chunk.counts):
            self._totals[j] += _total(chunk.means[j], chunk.counts[j])
            self.means[j] = float(self._totals[j] / int(self.counts[j]))


def _total(mean: float, count: int) -> Fraction:
    """Exactly the sum of so many values of this mean."""
    return Fraction(float(mean)) * int(count) if count else Fraction(0)
