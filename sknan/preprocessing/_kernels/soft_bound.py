"""The soft bound ``z / sqrt(1 + (z / bound)**2)`` by steps that cannot overflow.

Each step rounds monotonously, so that larger values never come out smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sknan.preprocessing._kernels.blocks import (
    Block,
    PerColumn,
    Workspace,
    blocks,
    where,
)

__all__ = ["Ordinary", "round_down", "squash", "unsquash"]

# Below bound * 2**-27 the squashed value and the value differ by less than half the
# distance between neighbouring float64.
_IDENTITY = 2.0**-27

# Sizes of centers and scales, and inverse sizes of scales, within which no step of the
# short way overflows or loses digits; the same of bounds, and of scales times bounds.
_LARGEST = {np.dtype(np.float32): 2.0**60, np.dtype(np.float64): 2.0**400}
_BOUND = {np.dtype(np.float32): 2.0**30, np.dtype(np.float64): 2.0**100}
_REACH = {np.dtype(np.float32): 2.0**48, np.dtype(np.float64): 2.0**480}

# A deviation of at least this, and at least this part of the scale, has a square with
# all its digits, by which the square of the scale can be divided.
_EDGE = {np.dtype(np.float32): 2.0**-62, np.dtype(np.float64): 2.0**-510}

# The bit of a sign, by which it is moved in half the time of numpy's copysign.
_SIGN: dict[np.dtype[Any], np.unsignedinteger[Any]] = {
    np.dtype(np.float32): np.uint32(1 << 31),
    np.dtype(np.float64): np.uint64(1 << 63),
}

# Cells of a block: up to the first, torch starts no threads, which a process forked
# later would wait for. Where it has one thread anyhow, fewer calls take less time.
_SERIAL_CELLS, _CELLS = 1 << 15, 1 << 17

# Up to here numpy's calls, which cost less than torch's, take less time in all.
_FEW_CELLS = 1 << 15


class Ordinary:
    r"""Scaling and bounding in the table's own dtype, for columns of ordinary size.

    With :math:`d = x - m` the output is :math:`1 / \sqrt{1 / b^2 + s^2 / d^2}` with the
    sign of :math:`d`. Each step rounds as IEEE 754 says, hence monotonously, and alike
    in a row alone and within a table.

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
        self._dtype, self._is_bounded = dtype, bound is not None
        self._scratch = Workspace()
        self._constant: NDArray[np.intp] | None = None
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
            high, reach = _BOUND[dtype], _REACH[dtype]
            is_ordinary = 1 / reach <= least * bound <= most * bound <= reach
            self.applies = self.applies and 1 / high <= bound <= high and is_ordinary
        if not self.applies:
            return
        self._center, self._scale = center.astype(dtype), scale.astype(dtype)
        # A median between two float32 may have one digit more.
        self._rest = (center - self._center).astype(dtype)
        self._has_rest = dtype != np.float64 and bool(self._rest.any())
        if bound is not None:
            self._set_bound(scale, bound)

    def _set_bound(self, scale: NDArray[np.float64], bound: float) -> None:
        dtype = self._dtype
        self._offset, self._factor = dtype.type(1 / bound**2), dtype.type(1)
        if 1 / np.sqrt(self._offset) != bound:
            # Infinities are to reach the bound to the last digit: it becomes a factor.
            self._offset, self._factor = self._factor, dtype.type(bound)
            scale = scale * bound
        self._square = (scale * scale).astype(dtype)
        edge = (np.maximum(scale, 1.0) * _EDGE[dtype]).astype(dtype)
        # Where a center is 0 or nearly, deviations other than 0 can be below the edge:
        # numbers stand apart by some part of their size, and the center by the rest.
        apart = float(np.finfo(dtype).eps) / 8
        self._is_near_0 = np.abs(self._center) < edge / dtype.type(apart)
        if self._has_rest:
            self._is_near_0 |= (np.abs(self._rest) < edge) & (self._rest != 0)
        if self._is_near_0.any():
            self._largest_edge = edge.max()
            self._at_edge = PerColumn(np.array([edge, self._scale, self._sizes(edge)]))

    def write(self, X: NDArray[Any], out: NDArray[Any]) -> None:
        """Write the scaled table; ``out`` may be ``X``."""
        # What overflows or is divided by 0 is to be infinite: the bound, or 0.
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            if not self._is_bounded:
                self._write_scaled(X, out)
            elif X.size <= _FEW_CELLS:
                self._write_few(X, out)
            else:
                # Gradients are not asked for, and not asking at each step saves time.
                with torch.inference_mode():
                    self._write_many(X, out)
        if self._constant is not None:
            for j in self._constant:
                column = out[:, j]
                column[~np.isnan(column)] = 0.0

    def _write_scaled(self, X: NDArray[Any], out: NDArray[Any]) -> None:
        values = PerColumn(np.array([self._center, self._rest, self._scale]))
        largest = np.finfo(self._dtype).max
        for block in blocks(X, out):
            center, rest, scale = values.along(block)
            d = np.subtract(block.cells, center, out=block.out)
            if self._has_rest:
                d -= rest
            d /= scale
            np.clip(d, -largest, largest, out=d)

    def _write_few(self, X: NDArray[Any], out: NDArray[Any]) -> None:
        d = np.subtract(X, self._center, order="C")
        if self._has_rest:
            d -= self._rest
        block = Block(slice(0, d.shape[1]), d, d)
        self._write_sizes(block, self._sizes(d))
        out[...] = d

    def _write_many(self, X: NDArray[Any], out: NDArray[Any]) -> None:
        # Copied as a whole, as new memory is slow to be written to block by block.
        if out is not X:
            np.copyto(out, X)
        n_cells = _CELLS if torch.get_num_threads() == 1 else _SERIAL_CELLS
        offsets = np.full_like(self._square, self._offset)
        values = PerColumn(np.array([self._center, self._rest, offsets, self._square]))
        laid: NDArray[Any] | None = None
        for block in blocks(out, out, n_cells):
            along = values.along(block)
            if along is not laid:
                laid = along
                center, rest, offset, square = torch.from_numpy(laid).unbind()
            d = torch.from_numpy(block.out).sub_(center)
            if self._has_rest:
                d.sub_(rest)
            sizes = self._scratch.like(block.out, "sizes", self._dtype)
            np.square(block.out, out=sizes)
            # The steps of `_sizes`, by torch as numpy's root of float64 is slow.
            y = torch.from_numpy(sizes)
            torch.addcdiv(offset, square, y, out=y).rsqrt_()
            if self._factor != 1:
                sizes *= self._factor
            self._write_sizes(block, sizes)

    def _sizes(self, d: NDArray[Any]) -> NDArray[Any]:
        """What deviations are bounded to, without the sign."""
        y: NDArray[Any] = self._square / np.square(d)
        y += self._offset
        np.sqrt(y, out=y)
        np.reciprocal(y, out=y)
        if self._factor != 1:
            y *= self._factor
        return y

    def _write_sizes(self, block: Block, sizes: NDArray[Any]) -> None:
        """Put sizes, with the signs of the deviations, in the place of these."""
        d = block.out
        if self._is_near_0[block.columns].any():
            self._mend(block, sizes)
        sign = _SIGN[self._dtype]
        bits = d.view(sign.dtype)
        np.bitwise_and(bits, sign, out=bits)
        np.bitwise_or(bits, sizes.view(sign.dtype), out=bits)

    def _mend(self, block: Block, sizes: NDArray[Any]) -> None:
        """Scale what is too small to be squared; there is nothing to bound."""
        d, limit = block.out, self._largest_edge
        is_tiny = self._scratch.like(d, "is tiny", np.bool_)
        mask = self._scratch.like(d, "mask", np.bool_)
        np.less(d, limit, out=is_tiny)
        is_tiny &= np.greater(d, -limit, out=mask)
        # Mostly it is zeros that are found, to which nothing is to be done.
        if is_tiny.any():
            is_tiny &= np.not_equal(d, 0, out=mask)
        if not is_tiny.any():
            return
        places = where(is_tiny)
        size, bounded = np.abs(d.reshape(-1)[places]), sizes.reshape(-1)
        edge, scale, most = self._at_edge.at(block, places)
        # Rounding must not lift them above the first that is squared.
        scaled = np.minimum(size / scale, most)
        bounded[places] = np.where(size < edge, scaled, bounded[places])


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
