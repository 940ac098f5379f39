"""The soft bound ``z / sqrt(1 + (z / bound)**2)`` by steps that cannot overflow.

Each step rounds monotonously, so that larger values never come out smaller.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sknan._blocks import Block, PerColumn, Scratch, blocks, where

__all__ = ["Ordinary", "round_down", "squash", "unsquash"]

# Below bound * 2**-27 the squashed value and the value differ by less than half the
# distance between neighbouring float64.
_IDENTITY = 2.0**-27

# Sizes of centers and scales, and inverse sizes of scales, within which no step of the
# short way overflows or loses digits; and sizes and inverse sizes of bounds.
_LARGEST = {np.dtype(np.float32): 2.0**60, np.dtype(np.float64): 2.0**400}
_BOUND = {np.dtype(np.float32): 2.0**30, np.dtype(np.float64): 2.0**100}


class Ordinary:
    r"""Scaling and bounding in the table's own dtype, for columns of ordinary size.

    With :math:`d = x - m` the output is :math:`b / \sqrt{1 + (s b / d)^2}` with the
    sign of :math:`d`: one division less than scaling first.

    Parameters
    ----------
    center, scale : ndarray of shape (n_columns,), float64
        Where the scale is 0 the output is 0.
    bound : float or None
        A number of ``dtype``. With None nothing is bounded but by the dtype.
    dtype : dtype
        float32 or float64.

    Attributes
    ----------
    applies : bool
        Whether all columns are of ordinary size.
    """

    def __init__(
        self,
        center: NDArray[np.float64],
        scale: NDArray[np.float64],
        bound: float | None,
        dtype: np.dtype[Any],
    ) -> None:
        self._dtype = dtype
        self._bound = math.inf if bound is None else bound
        self._constant: NDArray[np.intp] | None = None
        if scale.min() == 0:
            self._constant = np.flatnonzero(scale == 0)
            center, scale = np.where(scale > 0, (center, scale), [[0.0], [1.0]])
        largest = _LARGEST[dtype]
        self.applies = bool(
            (bound is None or 1 / _BOUND[dtype] <= bound <= _BOUND[dtype])
            and scale.max() <= largest
            and scale.min() >= 1 / largest
            and np.abs(center).max() <= largest
        )
        if not self.applies:
            return
        self._center, self._scale = center.astype(dtype), scale.astype(dtype)
        # A median between two float32 may have one digit more.
        self._rest = (center - self._center).astype(dtype)
        self._reach = None if bound is None else (scale * bound).astype(dtype)
        if bound is not None:
            # What the first deviation is bounded to whose ratio has a finite square.
            self._edge = bound / np.sqrt(np.finfo(dtype).max)

    def write(self, X: NDArray[Any], out: NDArray[Any]) -> None:
        """Write the scaled table; ``out`` may be ``X``."""
        center, scale = PerColumn(self._center), PerColumn(self._scale)
        rest = PerColumn(self._rest) if self._rest.any() else None
        reach = None if self._reach is None else PerColumn(self._reach)
        scratch = Scratch()
        # A deviation of 0 has an infinite ratio, which becomes 0.
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            for block in blocks(X, out):
                d = scratch.like(block.cells, "deviation", self._dtype)
                np.subtract(block.cells, center.along(block), out=d)
                if rest is not None:
                    d -= rest.along(block)
                if reach is None:
                    d /= scale.along(block)
                    largest = np.finfo(self._dtype).max
                    np.clip(d, -largest, largest, out=block.out)
                else:
                    self._write_bounded(block, d, scale, reach.along(block), scratch)
        if self._constant is not None:
            for j in self._constant:
                column = out[:, j]
                column[~np.isnan(column)] = 0.0

    def _write_bounded(
        self,
        block: Block,
        d: NDArray[Any],
        scale: PerColumn,
        reach: NDArray[Any],
        scratch: Scratch,
    ) -> None:
        unsigned, sign_bit = _bits(self._dtype)
        y = scratch.like(d, "y", self._dtype)
        np.divide(reach, d, out=y)
        y *= y
        y += 1
        np.sqrt(y, out=y)
        np.divide(self._bound, y, out=y)
        y_bits, sign = y.view(unsigned), scratch.like(d, "sign", unsigned)
        np.bitwise_and(d.view(unsigned), sign_bit, out=sign)
        np.bitwise_or(y_bits, sign, out=block.out.view(unsigned))
        # As integers, since a NaN would be the smallest of floats.
        if y_bits.min() == 0:
            # The square of the ratio overflowed: nothing to bound there.
            places = where(y_bits == 0)
            z = d.reshape(-1)[places] / scale.at(block, places)
            block.out.reshape(-1)[places] = np.clip(z, -self._edge, self._edge)


def _bits(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], Any]:
    """The unsigned integers of the size of floats, and the one of a sign alone."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return unsigned, unsigned.type(1 << (8 * dtype.itemsize - 1))


def squash(z: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """``z / sqrt(1 + (z / bound)**2)`` of any float64."""
    small = bound * _IDENTITY
    size = np.abs(z)
    ratio = bound / np.maximum(size, small)
    bounded = bound / np.sqrt(1.0 + ratio * ratio)
    # Without the maximum, rounding might lower the first values past the identity.
    bounded = np.copysign(np.maximum(bounded, small), z)
    return np.where(size < small, z, bounded)


def unsquash(y: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """The inverse of `squash`; infinite at and beyond the bound."""
    ratio = np.abs(y) / bound
    inside = ~(ratio >= 1)  # NaN counts as inside, to come out as NaN
    ratio = np.where(inside, ratio, 0.0)
    z = y / np.sqrt((1.0 - ratio) * (1.0 + ratio))
    return np.where(inside, z, np.copysign(np.inf, y))


def round_down(bound: float | None, dtype: np.dtype[Any]) -> float:
    """The largest number of ``dtype`` up to ``bound``; its largest of all for None."""
    if bound is None:
        return float(np.finfo(dtype).max)
    nearest = dtype.type(bound)
    is_above = float(nearest) > bound  # compared as they are they would be cast first
    return float(np.nextafter(nearest, dtype.type(0)) if is_above else nearest)
