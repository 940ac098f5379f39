"""Kernels for the soft bound ``z / sqrt(1 + (z / bound)**2)`` that cannot overflow.

Each step rounds monotonically, so that a larger value never gives a smaller result.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sknan._utils.threads import threads_for
from sknan.preprocessing._kernels.blocks import (
    FEW_CELLS,
    Block,
    PerColumn,
    blocks,
)

# Below bound * 2**-27 the bounded value and the value itself differ by less than half
# the distance between adjacent float64 numbers.
_IDENTITY = 2.0**-27

# Limits within which no step of `DirectScaling` overflows or loses digits: of centers,
# scales and their inverses; of bounds; and of scales times bounds.
_LARGEST = {np.dtype(np.float32): 2.0**60, np.dtype(np.float64): 2.0**400}
_BOUND = {np.dtype(np.float32): 2.0**30, np.dtype(np.float64): 2.0**100}
_REACH = {np.dtype(np.float32): 2.0**48, np.dtype(np.float64): 2.0**480}

# Smallest deviation, absolute and relative to the scale, whose square has all digits
# and by whose square the square of the scale can be divided.
_EDGE = {np.dtype(np.float32): 2.0**-62, np.dtype(np.float64): 2.0**-510}


class DirectScaling:
    r"""Scaling and bounding in the dtype of the table, for columns of ordinary size.

    With :math:`d = x - m` the output is :math:`1 / \sqrt{1 / b^2 + s^2 / d^2}` with the
    sign of :math:`d`. Each step rounds as specified by IEEE 754. Rounding is therefore
    monotonic, and a row gives the same bits alone and within a table.

    Parameters
    ----------
    center, scale : ndarray of shape (n_columns,), float64
        Center and scale of each column. Where the scale is 0 the output is 0.
    bound : float or None
        Bound of the output, rounded down to ``dtype``. None limits the output only to
        the range of the dtype.
    dtype : dtype
        Dtype of the table: float32 or float64.

    Attributes
    ----------
    applies : bool
        Whether all centers, scales and bounds are within the limits of this method.
    """

    def __init__(
        self,
        center: NDArray[np.float64],
        scale: NDArray[np.float64],
        bound: float | None,
        dtype: np.dtype[Any],
    ) -> None:
        self._dtype, self._is_bounded = dtype, bound is not None
        self._constant: NDArray[np.intp] | tuple[()] = ()
        least = float(scale.min())
        if least == 0:
            self._constant = np.flatnonzero(scale == 0)
            center, scale = np.where(scale > 0, (center, scale), 1.0)
            least = float(scale.min())
        most, largest = float(scale.max()), _LARGEST[dtype]
        self.applies = bool(
            1 / largest <= least <= most <= largest and np.abs(center).max() <= largest
        )
        if bound is not None:
            bound = round_down(bound, dtype)
            high, reach = _BOUND[dtype], _REACH[dtype]
            is_ordinary = 1 / reach <= least * bound <= most * bound <= reach
            self.applies = self.applies and 1 / high <= bound <= high and is_ordinary
        if not self.applies:
            return
        self._center, self._scale = center.astype(dtype), scale.astype(dtype)
        # The midpoint of two float32 numbers may need one more bit.
        self._rest = (center - self._center).astype(dtype)
        self._has_rest = dtype != np.float64 and bool(self._rest.any())
        divisor = self._scale
        if bound is not None:
            self._set_bound(scale, bound)
            divisor = self._square
        self._columns = np.array([self._center, self._rest, divisor])
        self._values = PerColumn(self._columns)
        self._largest = np.finfo(dtype).max

    def _set_bound(self, scale: NDArray[np.float64], bound: float) -> None:
        dtype = self._dtype
        self._offset, self._factor = dtype.type(1 / bound**2), dtype.type(1)
        if 1 / np.sqrt(self._offset) != bound:
            # Infinities must reach the bound exactly, so the bound becomes a factor.
            self._offset, self._factor = self._factor, dtype.type(bound)
            scale = scale * bound
        self._square = (scale * scale).astype(dtype)
        edge = (np.maximum(scale, 1.0) * _EDGE[dtype]).astype(dtype)
        # Only where a center is near 0 can a nonzero deviation be below the edge:
        # adjacent numbers differ by a fixed part of their size, and a center that is no
        # float32 differs from its neighbors by its rest.
        apart = float(np.finfo(dtype).eps) / 8
        self._is_near_0 = np.abs(self._center) < edge / dtype.type(apart)
        if self._has_rest:
            self._is_near_0 |= (np.abs(self._rest) < edge) & (self._rest != 0)
        self._has_near_0 = bool(self._is_near_0.any())
        if self._has_near_0:
            self._largest_edge = edge.max()
            self._at_edge = PerColumn(
                np.array([edge, self._scale, self._sizes(edge, self._square)])
            )

    def write(self, X: NDArray[Any], out: NDArray[Any]) -> None:
        """Write the scaled table; ``out`` may be ``X``."""
        # A ratio that overflows, or whose divisor is 0, is meant to become infinite.
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            if X.size <= FEW_CELLS:
                self._write_block(Block(slice(0, X.shape[1]), X, out), self._columns)
            else:
                with threads_for(0.0, 1):
                    for block in blocks(X, out):
                        self._write_block(block, self._values.along(block))
        for j in self._constant:
            column = out[:, j]
            column[~np.isnan(column)] = 0.0

    def _write_block(self, block: Block, columns: NDArray[Any]) -> None:
        center, rest, divisor = columns
        d = block.cells - center
        if self._has_rest:
            d -= rest
        if self._is_bounded:
            self._write_sizes(block, d, self._sizes(d, divisor))
        else:
            d /= divisor
            np.clip(d, -self._largest, self._largest, out=block.out)

    def _sizes(self, d: NDArray[Any], square: NDArray[Any]) -> NDArray[Any]:
        """Return the absolute values of the bounded deviations."""
        y: NDArray[Any] = np.square(d)
        if y.size > FEW_CELLS:
            # The same steps and bits in two passes, and no threads to wait for.
            t = torch.from_numpy(y)
            offset = t.new_full(t.shape[1:], float(self._offset))
            torch.addcdiv(offset, torch.from_numpy(square), t, out=t).rsqrt_()
        else:
            np.divide(square, y, out=y)
            y += self._offset
            np.sqrt(y, out=y)
            np.reciprocal(y, out=y)
        if self._factor != 1:
            y *= self._factor
        return y

    def _write_sizes(self, block: Block, d: NDArray[Any], sizes: NDArray[Any]) -> None:
        """Write ``sizes`` with the signs of the deviations ``d``."""
        if self._has_near_0 and self._is_near_0[block.columns].any():
            self._scale_tiny(block, d, sizes)
        if d.size <= FEW_CELLS:
            np.copysign(sizes, d, out=block.out)
            return
        # For many numbers numpy.copysign takes twice as long.
        integers = f"u{d.itemsize}"
        signs = d.view(integers)
        signs &= self._dtype.type(-0.0).view(integers)
        np.bitwise_or(signs, sizes.view(integers), out=block.out.view(integers))

    def _scale_tiny(self, block: Block, d: NDArray[Any], sizes: NDArray[Any]) -> None:
        """Scale the deviations that are too small to be squared, and need no bound."""
        limit = self._largest_edge
        is_tiny = (d < limit) & (d > -limit)
        # Most tiny deviations are zeros, which stay as they are.
        if is_tiny.any():
            is_tiny &= d != 0
        if not is_tiny.any():
            return
        size = np.abs(d[is_tiny])
        edge, scale, most = self._at_edge.where(block, is_tiny)
        # Rounding must not raise them above the smallest one that is squared.
        scaled = np.minimum(size / scale, most)
        sizes[is_tiny] = np.where(size < edge, scaled, sizes[is_tiny])


@lru_cache(maxsize=16)
def direct_scaling(
    center: bytes, scale: bytes, bound: float | None, dtype: np.dtype[Any]
) -> DirectScaling:
    """Return the scaling by the bytes of centers and scales, in float64.

    To prepare it takes several times as long as to scale a row.
    """
    return DirectScaling(np.frombuffer(center), np.frombuffer(scale), bound, dtype)


def squash(z: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """Return ``z / sqrt(1 + (z / bound)**2)`` for any float64."""
    small = bound * _IDENTITY
    size = np.abs(z)
    ratio = bound / np.maximum(size, small)
    bounded = bound / np.sqrt(1.0 + ratio * ratio)
    # Without the maximum, rounding might put the smallest bounded values below `small`.
    bounded = np.copysign(np.maximum(bounded, small), z)
    return np.where(size < small, z, bounded)


def unsquash(y: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """Return the inverse of `squash`, which is infinite at and beyond the bound."""
    ratio = np.abs(y) / bound
    inside = ~(ratio >= 1)  # NaN counts as inside, so that the result is NaN
    ratio = np.where(inside, ratio, 0.0)
    z = y / np.sqrt((1.0 - ratio) * (1.0 + ratio))
    return np.where(inside, z, np.copysign(np.inf, y))


def round_down(bound: float | None, dtype: np.dtype[Any]) -> float:
    """Return the largest number of ``dtype`` up to ``bound``, finite for None."""
    if bound is None:
        return float(np.finfo(dtype).max)
    nearest = dtype.type(bound)
    is_above = float(nearest) > bound  # in float64: numpy would cast `bound` first
    return float(np.nextafter(nearest, dtype.type(0)) if is_above else nearest)
