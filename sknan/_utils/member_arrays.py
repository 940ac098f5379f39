"""Arrays whose last axis has one entry for each of several trainings."""

from __future__ import annotations

import copy
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray


class MemberArrays:
    """Object with arrays whose last axis has one entry for each training.

    A subclass lists the names of these attributes in ``_arrays``.
    """

    _arrays: ClassVar[tuple[str, ...]] = ()

    def select(self, index: NDArray[np.int64]) -> Self:
        """Return a copy for some of the trainings.

        Parameters
        ----------
        index : ndarray of int
            Positions of these trainings.
        """
        selected = copy.copy(self)
        for name in self._arrays:
            setattr(selected, name, getattr(self, name)[..., index])
        return selected

    def put(self, index: NDArray[np.int64], other: Self) -> None:
        """Overwrite the entries of some trainings.

        Parameters
        ----------
        index : ndarray of int
            Positions of these trainings.
        other : object
            Object of the same class, with the new entries.
        """
        for name in self._arrays:
            getattr(self, name)[..., index] = getattr(other, name)
